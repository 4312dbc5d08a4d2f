//! Row counts in PostgreSQL.

use std::collections::BTreeMap;

use anyhow::Context;
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Text};
use diesel_async::RunQueryDsl;

/// The tables that requests write, each with the noun of its requests.
pub const TABLES: [(&str, &str); 14] = [
    ("users", "user"),
    ("user_profiles", "profile"),
    ("system_settings", "setting"),
    ("registered_devices", "device"),
    ("user_two_factor_auth", "second-factor"),
    ("passkey_credentials", "passkey"),
    ("chat_mode_sessions", "session"),
    ("simple_chat_context", "context"),
    ("chat_history", "conversation"),
    ("chat_messages", "message"),
    ("chat_session_summary", "summary"),
    ("message_feedback", "feedback"),
    ("agent_context_states", "agent-context"),
    ("router_decision_log", "decision"),
];

/// The table that a noun's requests write.
pub(super) fn table_of(noun: &str) -> Option<&'static str> {
    TABLES.iter().find(|(_, of)| *of == noun).map(|(table, _)| *table)
}

/// Numbers of rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Rows by table, including tombstones of removed ones. The platform is not counted as a user.
    pub rows: BTreeMap<&'static str, u64>,
    /// Events on the blackboard.
    pub events: u64,
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = BigInt)]
    rows: i64,
}

impl Contents {
    /// Counts the rows.
    ///
    /// # Errors
    /// If the database is unreachable or the query fails.
    pub async fn read(url: &str) -> anyhow::Result<Self> {
        let mut connection = store::connect(url).await?;
        let counts: Vec<Count> = diesel::sql_query(query())
            .load(&mut connection)
            .await
            .context("cannot count the rows of the database")?;
        let of = |table: &str| counts.iter().find(|count| count.name == table).map_or(0, |count| count.rows);
        let rows = |table: &str| u64::try_from(of(table)).unwrap_or(0);
        Ok(Self {
            rows: TABLES.iter().map(|(table, _)| (*table, rows(table))).collect(),
            events: rows(EVENTS),
        })
    }
}

const EVENTS: &str = "blackboard_events";

/// The query of all counts: one statement, so that they are from one snapshot.
fn query() -> String {
    let tables = TABLES.iter().map(|(table, _)| *table).chain([EVENTS]);
    let counts = tables.map(|table| {
        let condition = if table == "users" { " WHERE id > 0" } else { "" };
        format!("SELECT '{table}'::text AS name, count(*) AS rows FROM {table}{condition}")
    });
    counts.collect::<Vec<_>>().join(" UNION ALL ")
}
