//! Grants with which a scheduled job acts for the users whose work is due.
//!
//! The tick of a schedule carries no token. The database itself determines whose work is due, mints a grant for each of
//! these users, and records them in the audit trail. The worker opens its security context with these grants as with
//! any others ([`crate::security::open_context`]).

use std::fmt;

use diesel::QueryableByName;
use diesel::sql_types::{Bool, Integer, Text, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use crate::fault::{Fault, FaultKind};
use crate::prepared;

/// The maximum number of due users per mint. With as many users of earlier mints and the platform, they fit one
/// security context.
pub const MAX_USERS: i32 = 4_999;

/// The reason of the database for a role that has no such job.
const NO_JOB: &str = "the security context is refused: this role has no such job";

/// A grant to act for one user within one job, valid for five minutes. Its `Debug` shows the user only.
#[derive(Clone, QueryableByName)]
pub struct JobGrant {
    /// The user; 0 is the platform, which every tick belongs to.
    #[diesel(sql_type = Integer)]
    pub user_id: i32,
    /// Whether work of the user is due. Otherwise it is the platform's grant, or that of a user for whom an earlier
    /// delivery of the same tick acted.
    #[diesel(sql_type = Bool)]
    pub is_due: bool,
    /// The grant, for [`crate::security::open_context`].
    #[diesel(sql_type = Text, column_name = grant_text)]
    pub grant: String,
}

impl fmt::Debug for JobGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobGrant").field("user_id", &self.user_id).finish_non_exhaustive()
    }
}

/// Whether any user has work due for a job of this connection's role. It mints nothing.
///
/// # Errors
/// A [`Fault`] of the kind `Denied` if the job is not this role's.
pub async fn has_due(connection: &mut AsyncPgConnection, job: &str) -> Result<bool, Fault> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Bool)]
        is_due: bool,
    }
    let query = diesel::sql_query("SELECT sec.has_due($1) AS is_due").bind::<Text, _>(job);
    let rows: Vec<Row> = prepared(query).load(connection).await?;
    Ok(rows.iter().any(|row| row.is_due))
}

/// Mints grants for at most `max_users` users whose work is due, one for the platform, and one for each user for whom
/// an earlier delivery of this tick minted in the last day; in no particular order. Further users are due at the next
/// tick.
///
/// Call it outside a transaction, or commit before the grants are used: the database rejects a grant until its mint is
/// committed, together with the audit rows that name the job, the tick and the users. A redelivered tick mints again.
///
/// # Errors
/// A [`Fault`] of the kind `Denied` if the job is not this role's or its due function fails; `Permanent` if `max_users`
/// is not 1 to [`MAX_USERS`].
pub async fn mint(
    connection: &mut AsyncPgConnection,
    job: &str,
    tick: Uuid,
    max_users: i32,
) -> Result<Vec<JobGrant>, Fault> {
    const MINT: &str = "SELECT user_id, is_due, grant_text FROM sec.job_grants($1, $2, $3)";
    let query =
        diesel::sql_query(MINT).bind::<Text, _>(job).bind::<SqlUuid, _>(tick).bind::<Integer, _>(max_users);
    prepared(query).load(connection).await.map_err(|error| {
        let fault = Fault::from(error);
        // A role without any job may not call the function. An operator has to register the job; waiting does not help.
        match fault.reason.contains("permission denied for function job_grants") {
            true => Fault { kind: FaultKind::Denied, reason: NO_JOB.to_owned() },
            false => fault,
        }
    })
}
