//! Grants by which a scheduled job acts for the users whose work is due.
//!
//! Nobody's token accompanies the tick of a schedule. The database itself determines whose work is due, mints a grant for each
//! of these users, and writes to the audit trail for whom it did. The worker opens its security context from them as from any
//! other grant ([`crate::security::open_context`]).

use std::fmt;

use diesel::QueryableByName;
use diesel::sql_types::{Integer, Text, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use crate::fault::Fault;
use crate::prepared;

/// The most users of one mint. With the platform's grant they fill one security context.
pub const MAX_USERS: i32 = 9_999;

/// A grant to act for one user within one job, good for five minutes. Its `Debug` shows the user only.
#[derive(Clone, QueryableByName)]
pub struct JobGrant {
    /// For whom; 0 is the platform, whose message a tick is.
    #[diesel(sql_type = Integer)]
    pub user_id: i32,
    /// What [`crate::security::open_context`] takes.
    #[diesel(sql_type = Text, column_name = grant_text)]
    pub grant: String,
}

impl fmt::Debug for JobGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobGrant").field("user_id", &self.user_id).finish_non_exhaustive()
    }
}

/// Mints grants for at most `max_users` users whose work is due, and one for the platform. They come in no particular order. Who
/// is left out is due at the next tick.
///
/// Call it outside a transaction, or commit before the grants are used: the database refuses a grant until its mint is committed,
/// and with it the audit rows that name the job, the tick and the users. A tick that is delivered again mints again.
///
/// # Errors
/// A [`Fault`] of the kind `Denied` if the job is not this role's; `Permanent` if `max_users` is not 1 to [`MAX_USERS`].
pub async fn mint(
    connection: &mut AsyncPgConnection,
    job: &str,
    tick: Uuid,
    max_users: i32,
) -> Result<Vec<JobGrant>, Fault> {
    const MINT: &str = "SELECT user_id, grant_text FROM sec.job_grants($1, $2, $3)";
    let query =
        diesel::sql_query(MINT).bind::<Text, _>(job).bind::<SqlUuid, _>(tick).bind::<Integer, _>(max_users);
    Ok(prepared(query).load(connection).await?)
}
