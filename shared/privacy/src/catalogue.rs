//! Where a person's data are in the two databases, and what an erasure does with each table.
//!
//! Every table of the schemas `public`, `sec` and `audit` is here, as is every table of the key store; `tests/privacy_catalogue.rs` compares
//! the list with the migrated databases. Whoever adds a table adds its entry.

use Erase::{Delete, Kept, KeptUnderToken, LastSteps, RemoveFromArrays, Rewrite, Statement};
use Owner::{Arrays, Column, Nobody, Through, Token};

/// A table, and whose its rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The schema.
    pub schema: &'static str,
    /// The name. Of a partitioned table, that of the whole.
    pub table: &'static str,
    /// How a row names its user.
    pub owner: Owner,
    /// What an erasure does with the rows of its user.
    pub erase: Erase,
}

/// How a row names its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// By the id in this column.
    Column(&'static str),
    /// By ids in these columns, which are arrays.
    Arrays(&'static [&'static str]),
    /// By this column, which a table of the users has under the same name.
    Through {
        /// The column in both tables.
        column: &'static str,
        /// The other table. Its column `user_id` has the id.
        table: &'static str,
    },
    /// By the token of the user's subject, which says nothing without `audit.subjects`.
    Token,
    /// Not at all, and why a column that looks like it does not.
    Nobody(&'static str),
}

/// What an erasure does with the rows of its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Erase {
    /// They are deleted in the step [`Rows`](crate::Step::Rows), tables of a lower number first. Those of one number refer to each other in a
    /// circle, or not at all.
    Delete(u8),
    /// As `Delete`, each with a signed statement that it may be missing.
    Statement(u8),
    /// In the step [`Rows`](crate::Step::Rows), the id is taken out of the arrays.
    RemoveFromArrays(u8),
    /// In the step [`Archives`](crate::Step::Archives), what the row names is written anew without the user.
    Rewrite,
    /// They are deleted by the steps after it.
    LastSteps,
    /// They stay, under a token that nobody can assign any more.
    KeptUnderToken,
    /// They stay, and why.
    Kept(&'static str),
}

impl Entry {
    /// Schema and table, as in SQL. No name needs quotes.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}.{}", self.schema, self.table)
    }

    /// As in receipts: the table alone if its schema is `public`.
    #[must_use]
    pub fn label(&self) -> String {
        if self.schema == "public" { self.table.to_owned() } else { self.name() }
    }

    /// Whether rows of it go by themselves, when they are old: what was counted need not be there later.
    #[must_use]
    pub fn forgets(&self) -> bool {
        matches!(
            (self.schema, self.table),
            ("public", "cross_service_auth") | ("sec", "token_uses" | "minted_job_grants")
        )
    }

    /// Its place among the tables that the step [`Rows`](crate::Step::Rows) empties. None if it does not.
    #[must_use]
    pub fn order(&self) -> Option<u8> {
        match self.erase {
            Delete(order) | Statement(order) | RemoveFromArrays(order) => Some(order),
            Rewrite | LastSteps | KeptUnderToken | Kept(_) => None,
        }
    }
}

/// The tables that the step [`Rows`](crate::Step::Rows) empties, in its order.
#[must_use]
pub fn emptied() -> Vec<&'static Entry> {
    let mut emptied: Vec<&Entry> = TABLES.iter().filter(|entry| entry.order().is_some()).collect();
    emptied.sort_by_key(|entry| entry.order());
    emptied
}

/// The four tables of a consensus refer to each other in a circle: they are emptied by one statement, at whose end their keys are checked.
pub const CIRCLE: u8 = 11;

const USER: Owner = Column("user_id");
/// The reason of tables whose columns do not look as if they had users.
pub const DEPLOYMENT: &str = "about the deployment";
const OPERATION: Owner = Nobody(DEPLOYMENT);

const fn of_user(table: &'static str, order: u8) -> Entry {
    Entry { schema: "public", table, owner: USER, erase: Delete(order) }
}

const fn of_token(table: &'static str) -> Entry {
    Entry { schema: "audit", table, owner: Token, erase: KeptUnderToken }
}

const fn kept(schema: &'static str, table: &'static str, why: &'static str) -> Entry {
    Entry { schema, table, owner: OPERATION, erase: Kept(why) }
}

const fn other(schema: &'static str, table: &'static str, owner: Owner, erase: Erase) -> Entry {
    Entry { schema, table, owner, erase }
}

/// The tables of the main database.
pub static TABLES: &[Entry] = &[
    // First, as a row that goes takes its ciphertext with it, uncounted.
    of_user("encrypted_fields", 1),
    other("public", "blackboard_events", USER, Statement(2)),
    of_user("session_knowledge", 3),
    of_user("sync_changes", 3),
    of_user("cross_service_memory_sync", 4),
    of_user("message_feedback", 5),
    of_user("chat_messages", 6),
    of_user("chat_history", 7),
    of_user("chat_session_summary", 8),
    of_user("simple_chat_context", 8),
    of_user("agent_context_states", 8),
    of_user("router_decision_log", 8),
    of_user("unified_memory_vectors", 8),
    of_user("router_hourly_patterns", 8),
    of_user("session_clocks", 8),
    of_user("gpu_allocations", 8),
    of_user("agent_profiles", 8),
    of_user("agent_records", 8),
    of_user("chat_mode_sessions", 9),
    of_user("consensus_dossiers", 10),
    of_user("consensus_memory_relations", 10),
    of_user("task_estimates", 10),
    of_user("agent_responses", CIRCLE),
    of_user("task_delegations", CIRCLE),
    of_user("consensus_tasks", CIRCLE),
    of_user("consensus_memory_nodes", CIRCLE),
    of_user("multi_agent_conversations", 12),
    of_user("agent_configurations", 13),
    of_user("user_profiles", 14),
    of_user("system_settings", 14),
    of_user("registered_devices", 14),
    of_user("user_two_factor_auth", 14),
    of_user("passkey_credentials", 14),
    of_user("data_retention_policies", 14),
    of_user("retention_holds", 14),
    of_user("archive_restores", 14),
    of_user("inbox", 15),
    other(
        "sec",
        "token_uses",
        Through { column: "token_id", table: "public.cross_service_auth" },
        Delete(16),
    ),
    of_user("cross_service_auth", 17),
    other("sec", "minted_job_grants", Arrays(&["users", "earlier"]), RemoveFromArrays(18)),
    other("public", "users", Column("id"), Delete(19)),
    other("public", "archives", Arrays(&["user_ids"]), Rewrite),
    other("public", "privacy_requests", USER, LastSteps),
    other("audit", "subjects", USER, LastSteps),
    other("sec", "fenced_users", USER, LastSteps),
    other("sec", "restricted_users", USER, LastSteps),
    of_token("audit_log"),
    of_token("security_violations"),
    of_token("data_access_log"),
    of_token("service_subjects"),
    kept("audit", "erasures", "lists of digests, by which the trail is verified"),
    kept("audit", "maintenance_state", "how far the upkeep of the trail is"),
    kept("audit", "retirements", "sums and digests, by which the trail is verified"),
    kept("audit", "seals", "digests, by which the trail is verified"),
    kept("audit", "security_metrics", "sums of an hour over all users"),
    kept("public", "__diesel_schema_migrations", "the migrations"),
    other(
        "public",
        "anonymous_statistics",
        Nobody("persons is how many a sum is of"),
        Kept("sums over many persons"),
    ),
    kept("public", "gpu_resources", "machines"),
    kept("public", "job_runs", "numbers of runs, and texts of faults without values"),
    kept("public", "maintenance_indexes", "indexes that are being built"),
    kept("public", "qdrant_access_control", "rights of services"),
    other(
        "public",
        "retention_state",
        Nobody("after_user is where the sweep goes on, of whomever; slice_users is a number of users"),
        Kept("one row"),
    ),
    kept("public", "vector_collections", "collections"),
    kept("sec", "deployment", "the id of the deployment"),
    kept("sec", "erased_users", "tombstones, by which an id is known again, and receipts"),
    kept("sec", "event_writers", "rights of roles"),
    kept("sec", "jobs", "jobs"),
    kept("sec", "keys", "keys of the deployment"),
    kept("sec", "published_events", "ids of events of the last two hours"),
    kept(
        "sec",
        "revoked_grants",
        "ids of tokens for ten days; whose they were is in cross_service_auth alone",
    ),
    kept("sec", "services", "services"),
    kept("sec", "token_keys", "public keys"),
    kept("sec", "trust_version", "a number"),
    kept("sec", "unpublished_transactions", "transactions of the last two hours"),
    kept("sec", "worker_privileges", "rights of roles"),
];

/// The tables of the key store.
pub static KEY_STORE_TABLES: &[Entry] = &[
    other("public", "data_keys", USER, LastSteps),
    other("sec", "fenced_users", USER, LastSteps),
    kept("public", "__diesel_schema_migrations", "the migrations"),
    kept("sec", "disabled_services", "services"),
    kept("sec", "erased_users", "tombstones, by which an id is known again"),
    kept("sec", "keys", "keys of the deployment"),
    kept("sec", "revoked_grants", "ids of tokens for ten days"),
    kept("sec", "trust_version", "a number"),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_table_is_listed_twice() {
        for tables in [TABLES, KEY_STORE_TABLES] {
            let names: HashSet<String> = tables.iter().map(Entry::name).collect();
            assert_eq!(names.len(), tables.len());
        }
    }

    #[test]
    fn what_is_kept_has_a_reason_and_what_is_nobodys_is_kept() {
        for entry in TABLES.iter().chain(KEY_STORE_TABLES) {
            match (entry.owner, entry.erase) {
                (Nobody(why), Kept(reason)) => assert!(!why.is_empty() && !reason.is_empty(), "{entry:?}"),
                (Nobody(_), erase) => panic!("{} has no user, and {erase:?}", entry.name()),
                (Token, erase) => assert_eq!(erase, KeptUnderToken),
                (Column(_) | Arrays(_) | Through { .. }, Kept(_) | KeptUnderToken) => {
                    panic!("{} is kept, though it has a user", entry.name())
                }
                (
                    Column(_) | Arrays(_) | Through { .. },
                    Delete(_) | Statement(_) | RemoveFromArrays(_) | Rewrite | LastSteps,
                ) => {}
            }
        }
    }
}
