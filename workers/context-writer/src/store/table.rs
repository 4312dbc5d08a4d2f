//! What a table of the worker is, and what a change of one is.

/// A table and how it is written.
#[derive(Debug)]
pub(crate) struct Table {
    /// Its name in the database.
    pub(crate) name: &'static str,
    /// How a batch's changes of it are written.
    pub(crate) writer: Writer,
}

/// How changes of a table are written.
#[derive(Debug)]
pub(crate) enum Writer {
    /// By statements that take an array of records: one for what is put, one for what is removed; the same if it does both.
    Records {
        put: &'static str,
        remove: &'static str,
    },
    /// By the function of its own module.
    Contexts,
    Conversations,
    Messages,
    AgentContexts,
}

/// What a request changes.
#[derive(Debug)]
pub(crate) struct Change {
    /// The table that it writes.
    pub(crate) table: &'static Table,
    /// What is unique in it for a user, where that is one text.
    pub(crate) key: String,
    /// Whether it removes.
    pub(crate) removes: bool,
}
