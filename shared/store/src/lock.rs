//! Which lock a transaction waits for, and who holds it.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Integer, Nullable, Text, Timestamptz};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::fault::Fault;
use crate::prepared;

/// A lock that a transaction waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockWait {
    /// The table, if the whole table is locked. `None` if a row is, or something else that belongs to few transactions.
    pub table: Option<String>,
    /// Those who hold it or wait for it before: one to three.
    pub holders: Vec<Holder>,
}

/// A server process that another one waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process id.
    pub pid: i32,
    /// Its role. `None` for a process without one, or one that has just ended.
    pub role: Option<String>,
    /// The `application_name`, which its client has chosen.
    pub application: Option<String>,
    /// Its state, such as `idle in transaction`, and since when its transaction is open. The server shows both only for
    /// connections of one's own role, unless that role is a member of `pg_read_all_stats`.
    pub state: Option<String>,
    /// See `state`.
    pub since: Option<DateTime<Utc>>,
}

impl fmt::Display for LockWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, holder) in self.holders.iter().enumerate() {
            if place > 0 {
                f.write_str(", ")?;
            }
            holder.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid)?;
        if let Some(role) = &self.role {
            write!(f, " of the role {role:?}")?;
        }
        // Escaped, because any client can choose the name.
        if let Some(application) = self.application.as_ref().filter(|name| !name.is_empty()) {
            write!(f, ", application {application:?}")?;
        }
        if let Some(state) = &self.state {
            write!(f, ", {state}")?;
        }
        if let Some(since) = self.since {
            write!(f, ", in a transaction since {}", since.to_rfc3339_opts(SecondsFormat::Secs, true))?;
        }
        Ok(())
    }
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Nullable<Text>)]
    locked_table: Option<String>,
    #[diesel(sql_type = Nullable<Integer>)]
    pid: Option<i32>,
    #[diesel(sql_type = Nullable<Text>)]
    role: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    application: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    state: Option<String>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    since: Option<DateTime<Utc>>,
}

/// The lock that a backend waits for, as another connection sees it. `None` if it waits for none, or no longer did when its
/// holders were asked for. It needs no privilege beyond those of every role.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn wait_of(connection: &mut AsyncPgConnection, backend: i32) -> Result<Option<LockWait>, Fault> {
    const WAIT: &str = "
        SELECT CASE WHEN l.locktype = 'relation' THEN l.relation::regclass::text END AS locked_table,
            b.pid, a.usename::text AS role, a.application_name AS application, a.state, a.xact_start AS since
        FROM pg_locks l
        LEFT JOIN LATERAL (SELECT DISTINCT u AS pid FROM unnest(pg_blocking_pids($1)) AS u ORDER BY u LIMIT 3) AS b ON true
        LEFT JOIN pg_stat_activity a ON a.pid = b.pid
        WHERE l.pid = $1 AND NOT l.granted
        ORDER BY b.pid LIMIT 3";
    let query = diesel::sql_query(WAIT).bind::<Integer, _>(backend);
    Ok(named(prepared(query).load(connection).await?))
}

/// The wait, if these rows name somebody. The server looks at the waiting lock first and at its holders after that, so a wait
/// that ends in between is a row without any: it must not replace what an earlier look has seen.
fn named(rows: Vec<Row>) -> Option<LockWait> {
    let table = rows.as_slice().first()?.locked_table.clone();
    let holders = rows.into_iter().filter_map(|Row { pid, role, application, state, since, .. }| {
        Some(Holder { pid: pid?, role, application, state, since })
    });
    let holders: Vec<_> = holders.collect();
    (!holders.is_empty()).then_some(LockWait { table, holders })
}

/// Sets the `lock_timeout` of the open transaction.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn set_timeout(connection: &mut AsyncPgConnection, timeout: Duration) -> Result<(), Fault> {
    const SET: &str = "SELECT set_config('lock_timeout', $1, true) AS lock_timeout";
    #[derive(QueryableByName)]
    struct Set {
        #[allow(dead_code, reason = "the answer is the absence of an error")]
        #[diesel(sql_type = Text)]
        lock_timeout: String,
    }
    // For PostgreSQL, zero means no timeout.
    let timeout = format!("{}ms", timeout.as_millis().max(1));
    let _: Vec<Set> = prepared(diesel::sql_query(SET).bind::<Text, _>(timeout)).load(connection).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_described_on_one_line() {
        let holder = Holder {
            pid: 7,
            role: Some("admin".to_owned()),
            application: Some("psql\n\u{1b}[2J".to_owned()),
            state: Some("idle in transaction".to_owned()),
            since: DateTime::from_timestamp(1_800_000_000, 0),
        };
        let short = Holder { pid: 8, role: None, application: None, state: None, since: None };
        let wait = LockWait { table: None, holders: vec![holder, short] };
        assert_eq!(
            wait.to_string(),
            "process 7 of the role \"admin\", application \"psql\\n\\u{1b}[2J\", idle in transaction, in a transaction \
             since 2027-01-15T08:00:00Z, process 8"
        );
    }

    #[test]
    fn a_wait_that_ends_during_the_look_is_none() {
        let row = |pid| Row {
            locked_table: Some("users".to_owned()),
            pid,
            role: None,
            application: None,
            state: None,
            since: None,
        };
        assert_eq!(named(vec![row(None)]), None);
        let wait = named(vec![row(Some(7)), row(Some(8))]).map(|wait| (wait.to_string(), wait.table));
        assert_eq!(wait, Some(("process 7, process 8".to_owned(), Some("users".to_owned()))));
    }
}
