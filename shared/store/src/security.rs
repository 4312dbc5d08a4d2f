//! The security context of a transaction, what was refused, and what the role of a connection may do too much.

use std::time::Duration;

use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Text, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use crate::fault::{Fault, FaultKind};
use crate::prepared;

/// Opens the context of this transaction for the users of these grants. Without one, the transaction sees no row of any
/// user and writes none. The context ends with the transaction.
///
/// # Errors
/// A [`Fault`] of the kind `Denied` if the database refuses a grant.
pub async fn open_context(connection: &mut AsyncPgConnection, grants: &[&str]) -> Result<(), Fault> {
    const OPEN: &str = "SELECT sec.open_context($1) AS users";
    #[derive(QueryableByName)]
    struct Opened {
        #[allow(dead_code, reason = "the answer is the absence of an error")]
        #[diesel(sql_type = Integer)]
        users: i32,
    }
    let _: Vec<Opened> =
        prepared(diesel::sql_query(OPEN).bind::<Array<Text>, _>(grants)).load(connection).await?;
    Ok(())
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

/// Opens the context of one grant for reading, in which no statement takes longer than this.
///
/// # Errors
/// A [`Fault`] of the kind `Denied` if the grant is not good.
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

/// A use of a user's data that leaves no row behind.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Whose it is.
    pub user_id: i32,
    /// The query or request.
    pub request_id: Uuid,
    /// How many rows or points it was.
    pub amount: i64,
}

/// Notes uses of one kind in `audit.data_access_log`, in the name of the open context, which has all their users.
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

/// What the role of this connection is or may beyond what a worker's role needs, a phrase each: `is a superuser`, `may
/// DELETE users`.
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

/// The role that this connection has logged in with.
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

/// A refusal by the database.
#[derive(Clone, Copy, Debug)]
pub struct Violation<'a> {
    /// What the database said. Only its sort is recorded.
    pub message: &'a str,
    /// For whom the request was.
    pub user_id: i32,
    /// Who published it.
    pub service: &'a str,
    /// The request.
    pub request_id: Uuid,
}

/// Records a refusal in `audit.security_violations`. Not in the transaction that was refused, which is rolled back.
///
/// # Errors
/// A [`Fault`] of the database, also if it does not take the error for a violation.
pub async fn record_violation(
    connection: &mut AsyncPgConnection,
    violation: &Violation<'_>,
) -> Result<(), Fault> {
    // The SQLSTATE of a refusal, insufficient_privilege: what a fault of the kind `Denied` is.
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

/// Makes a key for grants known to the database, or replaces the one of this name. For an administrator.
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

/// Gives every worker's role this password. For an administrator of a private server: in production each role has its
/// own.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn set_worker_passwords(connection: &mut AsyncPgConnection, password: &str) -> Result<(), Fault> {
    // A role's password is no value that a statement takes as a parameter, so it is quoted by the server.
    let rows: Vec<Statement> = diesel::sql_query(
        "SELECT DISTINCT format('ALTER ROLE %I PASSWORD %L', role_name, $1) AS statement FROM sec.worker_privileges",
    )
    .bind::<Text, _>(password)
    .load(connection)
    .await?;
    for row in rows {
        diesel::sql_query(row.statement).execute(connection).await?;
    }
    Ok(())
}

#[derive(QueryableByName)]
struct Statement {
    #[diesel(sql_type = Text)]
    statement: String,
}
