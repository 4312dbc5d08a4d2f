//! The tables whose rows can be archived.

/// A table whose rows can be archived. Its rows have `id`, `user_id`, `session_id` and `created_at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its name, as policies name it.
    pub name: &'static str,
    /// The columns that a row is known by, across archives: a later row of the same key is the newer one.
    pub key: &'static [&'static str],
    /// The tables with what belongs to its rows, and goes with them.
    pub parts: &'static [&'static str],
    /// Whether its rows need their session.
    pub needs_session: bool,
}

/// Ciphertexts of values, by table and row.
pub const ENCRYPTED_FIELDS: &str = "encrypted_fields";

/// All of them, in the order in which they are restored: a session comes before what belongs to it.
pub const TABLES: [Table; 5] = [
    Table {
        name: "chat_mode_sessions",
        key: &["user_id", "session_id"],
        parts: &["chat_session_summary", ENCRYPTED_FIELDS],
        needs_session: false,
    },
    Table {
        name: "simple_chat_context",
        key: &["user_id", "session_id", "context_key"],
        parts: &[ENCRYPTED_FIELDS],
        needs_session: true,
    },
    Table {
        name: "agent_context_states",
        key: &["user_id", "session_id", "agent_id", "memory_tier", "context_key"],
        parts: &[ENCRYPTED_FIELDS],
        needs_session: false,
    },
    Table {
        name: "router_decision_log",
        key: &["user_id", "id"],
        parts: &[ENCRYPTED_FIELDS],
        needs_session: true,
    },
    Table { name: "blackboard_events", key: &["user_id", "id"], parts: &[], needs_session: false },
];

/// The table of this name, if its rows can be archived.
pub fn table(name: &str) -> Option<&'static Table> {
    TABLES.iter().find(|table| table.name == name)
}
