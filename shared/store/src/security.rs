//! The security context of a transaction, the record of rejected accesses, and the privilege check of a worker's role.

use std::time::Duration;

use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Text, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use uuid::Uuid;

use crate::fault::{Fault, FaultKind};
use crate::prepared;

/// Opens the security context of this transaction for the users of these grants. Without a context, a transaction can
/// neither read nor write any user's rows. The context ends with the transaction. Returns the process id of the
/// connection's backend, for [`lock::wait_of`](crate::lock::wait_of).
///
/// # Errors
/// A [`Fault`] of the kind `Denied` if the database rejects a grant.
pub async fn open_context(connection: &mut AsyncPgConnection, grants: &[&str]) -> Result<i32, Fault> {
    open(connection, grants, PlanCacheMode::Auto).await
}

/// Messages of a batch whose statements are not planned anew. Planning takes as long for one row as for five hundred: of a single
/// message it would be a quarter of the transaction.
const SMALL_BATCH: usize = 32;

/// As [`open_context`], for a batch of so many messages.
///
/// # Errors
/// As [`open_context`].
pub async fn open_context_of_batch(
    connection: &mut AsyncPgConnection,
    grants: &[&str],
    messages: usize,
) -> Result<i32, Fault> {
    let is_small = messages <= SMALL_BATCH;
    let plans = if is_small { PlanCacheMode::ForceGenericPlan } else { PlanCacheMode::Auto };
    open(connection, grants, plans).await
}

async fn open(
    connection: &mut AsyncPgConnection,
    grants: &[&str],
    plan_cache_mode: PlanCacheMode,
) -> Result<i32, Fault> {
    // A generic plan is kept until its tables are analyzed. Made while they were empty, it would read them from end to end.
    const OPEN: &str = "SELECT sec.open_context($1) AS users, pg_backend_pid() AS backend,
        set_config('plan_cache_mode', $2, true) AS plan_cache_mode,
        set_config('enable_seqscan', CASE $2 WHEN 'auto' THEN 'on' ELSE 'off' END, true) AS enable_seqscan";
    #[derive(QueryableByName)]
    struct Opened {
        #[allow(dead_code, reason = "the answer is the absence of an error")]
        #[diesel(sql_type = Integer)]
        users: i32,
        #[diesel(sql_type = Integer)]
        backend: i32,
    }
    let query =
        diesel::sql_query(OPEN).bind::<Array<Text>, _>(grants).bind::<Text, _>(plan_cache_mode.as_str());
    let opened: Vec<Opened> = prepared(query).load(connection).await?;
    Ok(opened.as_slice().first().map_or(0, |opened| opened.backend))
}

/// The `plan_cache_mode` of a transaction: how PostgreSQL plans its prepared statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanCacheMode {
    /// PostgreSQL chooses between a plan for the values at hand and a generic one.
    Auto,
    /// One plan for all values: for statements whose best plan does not depend on the values.
    ForceGenericPlan,
}

impl PlanCacheMode {
    fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::ForceGenericPlan => "force_generic_plan",
        }
    }
}

/// Opens the security context of one grant for reading, with a statement timeout.
///
/// # Errors
/// A [`Fault`] of the kind `Denied` if the database rejects the grant.
pub async fn open_context_for(
    connection: &mut AsyncPgConnection,
    grant: &str,
    deadline: Duration,
    plan_cache_mode: PlanCacheMode,
) -> Result<(), Fault> {
    const OPEN: &str =
        "SELECT sec.open_context(ARRAY[$1]) AS users, set_config('statement_timeout', $2, true) AS deadline,
        set_config('plan_cache_mode', $3, true) AS plan_cache_mode";
    #[derive(QueryableByName)]
    struct Opened {
        #[allow(dead_code, reason = "the answer is the absence of an error")]
        #[diesel(sql_type = Integer)]
        users: i32,
    }
    let query = diesel::sql_query(OPEN)
        .bind::<Text, _>(grant)
        .bind::<Text, _>(format!("{}ms", deadline.as_millis()))
        .bind::<Text, _>(plan_cache_mode.as_str());
    let _: Vec<Opened> = prepared(query).load(connection).await?;
    Ok(())
}

/// Ends the transactions of workers' roles that have been idle for half a minute or open for five, and returns their
/// number. A role can set its own timeouts to nothing, so the other workers enforce these.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn end_old_transactions(connection: &mut AsyncPgConnection) -> Result<i32, Fault> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Integer)]
        ended: i32,
    }
    let query = diesel::sql_query("SELECT sec.end_old_transactions() AS ended");
    let rows: Vec<Row> = prepared(query).load(connection).await?;
    Ok(rows.iter().map(|row| row.ended).sum())
}

/// Makes the names in the statements of this connection those of PostgreSQL itself, whatever `search_path` the database or
/// the role is set to: a function or an operator of another schema takes no part. Tables must then be named with their
/// schema. For those who judge a database that somebody may have changed; it must be the first statement.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn fix_search_path(connection: &mut AsyncPgConnection) -> Result<(), Fault> {
    Ok(connection.batch_execute("SET search_path = pg_catalog, pg_temp").await?)
}

/// An access to a user's data that writes no row.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// The user.
    pub user_id: i32,
    /// The id of the query or request.
    pub request_id: Uuid,
    /// The number of rows or points.
    pub amount: i64,
}

/// Records accesses of one kind in `audit.data_access_log`, under the open context, which must include all their users.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn log_data_access(
    connection: &mut AsyncPgConnection,
    kind: &str,
    object: &str,
    accesses: &[Access],
) -> Result<(), Fault> {
    const LOG: &str = "SELECT audit.log_data_access($1, $2, $3, $4, $5) AS noted";
    #[derive(QueryableByName)]
    struct Noted {
        #[allow(dead_code, reason = "the answer is the absence of an error")]
        #[diesel(sql_type = Integer)]
        noted: i32,
    }
    let query = diesel::sql_query(LOG)
        .bind::<Text, _>(kind)
        .bind::<Text, _>(object)
        .bind::<Array<Integer>, _>(accesses.iter().map(|access| access.user_id).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(accesses.iter().map(|access| access.request_id).collect::<Vec<_>>())
        .bind::<Array<BigInt>, _>(accesses.iter().map(|access| access.amount).collect::<Vec<_>>());
    let _: Vec<Noted> = prepared(query).load(connection).await?;
    Ok(())
}

/// The attributes and privileges of this connection's role beyond those that a worker's role needs, one phrase each:
/// `is a superuser`, `may DELETE users`.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn excess_privileges(connection: &mut AsyncPgConnection) -> Result<Vec<String>, Fault> {
    const ASK: &str = "SELECT excess FROM sec.excess_privileges() AS excess";
    #[derive(QueryableByName)]
    struct Excess {
        #[diesel(sql_type = Text)]
        excess: String,
    }
    let rows: Vec<Excess> = diesel::sql_query(ASK).load(connection).await?;
    Ok(rows.into_iter().map(|row| row.excess).collect())
}

/// The role of this connection's login.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn role(connection: &mut AsyncPgConnection) -> Result<String, Fault> {
    #[derive(QueryableByName)]
    struct Role {
        #[diesel(sql_type = Text)]
        role: String,
    }
    let rows: Vec<Role> = diesel::sql_query("SELECT session_user::text AS role").load(connection).await?;
    Ok(rows.into_iter().map(|row| row.role).collect())
}

/// A statement that the database rejected.
#[derive(Clone, Copy, Debug)]
pub struct Violation<'a> {
    /// The error message of the database. Only its kind is recorded.
    pub message: &'a str,
    /// The user of the request.
    pub user_id: i32,
    /// The service that published it.
    pub service: &'a str,
    /// The id of the request.
    pub request_id: Uuid,
}

/// Records a violation in `audit.security_violations`. Call it outside the rejected transaction, which is rolled back.
///
/// # Errors
/// A [`Fault`] of the database, also if the database does not classify the error as a violation.
pub async fn record_violation(
    connection: &mut AsyncPgConnection,
    violation: &Violation<'_>,
) -> Result<(), Fault> {
    // insufficient_privilege: the SQLSTATE of a fault of the kind `Denied`.
    const RECORD: &str = "SELECT audit.check_security_violation('42501', $1, $2, $3, $4) AS recorded";
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Bool)]
        recorded: bool,
    }
    let rows: Vec<Row> = prepared(
        diesel::sql_query(RECORD)
            .bind::<Text, _>(violation.message)
            .bind::<Integer, _>(violation.user_id)
            .bind::<Text, _>(violation.service)
            .bind::<SqlUuid, _>(violation.request_id),
    )
    .load(connection)
    .await?;
    if rows.iter().any(|row| row.recorded) {
        return Ok(());
    }
    Err(Fault { kind: FaultKind::Permanent, reason: "the violation was not recorded".to_owned() })
}

/// Adds a key that signs grants, or replaces the key with this name. For an administrator.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn add_grant_key(connection: &mut AsyncPgConnection, name: &str, key: &[u8]) -> Result<(), Fault> {
    diesel::sql_query("SELECT sec.add_key($1, 'grant', $2)")
        .bind::<Text, _>(name)
        .bind::<diesel::sql_types::Binary, _>(key)
        .execute(connection)
        .await?;
    Ok(())
}

/// Retires a key that signs grants: none of its grants is accepted any more, and the contexts that they opened end. False if
/// there is no such key. For an administrator.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn retire_grant_key(connection: &mut AsyncPgConnection, name: &str) -> Result<bool, Fault> {
    const RETIRE: &str = "UPDATE sec.keys SET retired_at = coalesce(retired_at, now()) WHERE key_id = $1 AND purpose = 'grant'";
    Ok(diesel::sql_query(RETIRE).bind::<Text, _>(name).execute(connection).await? > 0)
}

/// Sets a password for the role of each worker. For an administrator of a private server.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn set_worker_passwords(
    connection: &mut AsyncPgConnection,
    mut password_of: impl FnMut(&str) -> String,
) -> Result<(), Fault> {
    // ALTER ROLE takes no parameters, so the server quotes the password.
    const QUOTE: &str = "SELECT format('ALTER ROLE %I PASSWORD %L', $1, $2) AS statement";
    #[derive(QueryableByName)]
    struct Role {
        #[diesel(sql_type = Text)]
        role: String,
    }
    let roles: Vec<Role> =
        diesel::sql_query("SELECT DISTINCT role_name::text AS role FROM sec.worker_privileges")
            .load(connection)
            .await?;
    for Role { role } in roles {
        let query = diesel::sql_query(QUOTE).bind::<Text, _>(&role).bind::<Text, _>(password_of(&role));
        let quoted: Vec<Statement> = query.load(connection).await?;
        for row in quoted {
            diesel::sql_query(row.statement).execute(connection).await?;
        }
    }
    Ok(())
}

#[derive(QueryableByName)]
struct Statement {
    #[diesel(sql_type = Text)]
    statement: String,
}
