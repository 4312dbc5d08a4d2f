//! The types of a table of the worker and of a change to it.

/// A table and how it is written.
#[derive(Debug)]
pub(crate) struct Table {
    /// Its name in the database.
    pub(crate) name: &'static str,
    /// How changes to it are written.
    pub(crate) writer: Writer,
}

/// How changes to a table are written.
#[derive(Debug)]
pub(crate) enum Writer {
    /// By statements that take an array of records: one for puts, one for removals. They are the same if one statement
    /// does both.
    Records {
        put: &'static str,
        remove: &'static str,
    },
    /// By a function of the table's own module.
    Contexts,
    Conversations,
    Messages,
    AgentContexts,
}

/// The change that a request makes.
#[derive(Debug)]
pub(crate) struct Change {
    /// The table that it writes.
    pub(crate) table: &'static Table,
    /// The unique key within the user's rows, if it is a single text.
    pub(crate) key: String,
    /// Whether it removes the row.
    pub(crate) removes: bool,
}
