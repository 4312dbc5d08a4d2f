//! The tokens of services: issued, used, refused, revoked.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use contract::{Service, SessionId, UserId};
use diesel::dsl;
use diesel::expression::SqlLiteral;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::sql_types::{Array, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde_json::json;
use trust::{IssueError, IssuedToken, Scope, TokenIssuer, TokenRequest};
use uuid::Uuid;

use super::trust_state;
use crate::fault::Fault;
use crate::prepared;
use crate::schema::cross_service_auth;

/// Records when tokens were last used. Unregistered tokens are ignored.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn record_use(
    connection: &mut AsyncPgConnection,
    used: &HashMap<Uuid, DateTime<Utc>>,
) -> Result<(), Fault> {
    let (ids, times): (Vec<Uuid>, Vec<DateTime<Utc>>) = used.iter().map(|(id, time)| (*id, *time)).unzip();
    prepared(
        diesel::sql_query("SELECT sec.note_token_use($1, $2)").bind::<Array<SqlUuid>, _>(ids).bind::<Array<
            Timestamptz,
        >, _>(
            times
        ),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A token that was rejected.
#[derive(Clone, Copy, Debug)]
pub struct RefusedToken<'a> {
    /// The reason, as a label.
    pub kind: &'static str,
    /// The reason, as a sentence.
    pub reason: &'a str,
    /// The user of the request, if known.
    pub user_id: Option<UserId>,
    /// The service in its subject.
    pub service: &'a Service,
    /// The id of the request.
    pub request_id: Uuid,
}

/// The most refusals that the database records in one transaction.
const MAX_REFUSALS: usize = 1_000;

/// Records rejected tokens in `audit.security_violations`. The database cannot verify the user and the service, and
/// marks the service as claimed.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn record_refused(
    connection: &mut AsyncPgConnection,
    refused: &[RefusedToken<'_>],
) -> Result<(), Fault> {
    for some in refused.chunks(MAX_REFUSALS) {
        prepared(
            diesel::sql_query("SELECT audit.record_refused_tokens($1, $2, $3, $4, $5)")
                .bind::<Array<Text>, _>(some.iter().map(|one| one.kind).collect::<Vec<_>>())
                .bind::<Array<Text>, _>(some.iter().map(|one| one.reason).collect::<Vec<_>>())
                .bind::<Array<Nullable<Integer>>, _>(
                    some.iter().map(|one| one.user_id.map(UserId::get)).collect::<Vec<_>>(),
                )
                .bind::<Array<Text>, _>(some.iter().map(|one| one.service.as_str()).collect::<Vec<_>>())
                .bind::<Array<SqlUuid>, _>(some.iter().map(|one| one.request_id).collect::<Vec<_>>()),
        )
        .execute(connection)
        .await?;
    }
    Ok(())
}

/// Registers issued tokens in one statement. For the token issuer or an administrator.
///
/// # Errors
/// A [`Fault`] of the database, which rejects tokens of unregistered services.
pub async fn register(
    connection: &mut AsyncPgConnection,
    tokens: &[(&TokenRequest, &IssuedToken)],
) -> Result<(), Fault> {
    let time = |time| DateTime::<Utc>::from(time).to_rfc3339();
    let rows: Vec<serde_json::Value> = tokens
        .iter()
        .map(|(request, issued)| {
            json!({
                "token_id": issued.id,
                "service": request.service.as_str(),
                "user_id": request.user_id.get(),
                "session_id": request.session.as_ref().map(SessionId::as_str),
                "scopes": request.scopes.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "key_id": issued.key_name,
                "issued_at": time(issued.not_before),
                "expires_at": time(issued.expires),
                "grants_expire_at": time(issued.grants_expire),
            })
        })
        .collect();
    prepared(
        diesel::sql_query("SELECT sec.register_tokens($1::text::jsonb)")
            .bind::<Text, _>(serde_json::Value::from(rows).to_string()),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Why a token was not issued.
#[derive(Debug, thiserror::Error)]
pub enum NotIssued {
    /// The service is unknown.
    #[error("the service {0} is not registered or is disabled")]
    UnknownService(Service),
    /// The service may not have that scope.
    #[error("the service {service} may not have the scope {scope}; it may have {may}")]
    Scope {
        /// The service.
        service: Service,
        /// The scope.
        scope: Scope,
        /// The scopes that it may have.
        may: String,
    },
    /// The token would be invalid.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The registry cannot be read, or rejects the token.
    #[error("the token cannot be registered: {0}")]
    Registry(#[from] Fault),
}

/// Issues a token if its service may have it, and registers it. A request without scopes asks for all scopes of the
/// service. Returns the request with its scopes, and the token.
///
/// # Errors
/// [`NotIssued`].
pub async fn issue(
    connection: &mut AsyncPgConnection,
    issuer: &TokenIssuer,
    mut request: TokenRequest,
    now: SystemTime,
) -> Result<(TokenRequest, IssuedToken), NotIssued> {
    let state = trust_state(connection).await?;
    let Some(entry) = state.services.get(&request.service) else {
        return Err(NotIssued::UnknownService(request.service));
    };
    let may = |wanted: &Scope| entry.scopes.iter().any(|scope| scope.contains(wanted));
    if let Some(scope) = request.scopes.iter().find(|scope| !may(scope)) {
        let (scope, may) = (scope.clone(), Scope::list(&entry.scopes));
        return Err(NotIssued::Scope { service: request.service, scope, may });
    }
    if request.scopes.is_empty() {
        request.scopes.clone_from(&entry.scopes);
    }
    let issued = issuer.issue(&request, now)?;
    register(connection, &[(&request, &issued)]).await?;
    Ok((request, issued))
}

/// The tokens of the filter's service and user, in any state.
fn tokens_of(filter: &TokenFilter) -> cross_service_auth::BoxedQuery<'_, Pg> {
    let mut tokens = cross_service_auth::table.into_boxed();
    if let Some(service) = &filter.service {
        tokens = tokens.filter(cross_service_auth::service.eq(service.as_str()));
    }
    if let Some(user_id) = filter.user_id {
        tokens = tokens.filter(cross_service_auth::user_id.eq(user_id.get()));
    }
    tokens
}

/// The ids of tokens whose grants have not expired, at most as many as the filter's limit.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn revocable(connection: &mut AsyncPgConnection, filter: &TokenFilter) -> Result<Vec<Uuid>, Fault> {
    Ok(tokens_of(filter)
        .filter(cross_service_auth::revoked_at.is_null())
        .filter(cross_service_auth::grants_expire_at.gt(dsl::now))
        .select(cross_service_auth::token_id)
        .limit(filter.limit)
        .load(connection)
        .await?)
}

/// Those of these ids that no registered token has, in their order.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn unregistered(connection: &mut AsyncPgConnection, ids: &[Uuid]) -> Result<Vec<Uuid>, Fault> {
    let registered: HashSet<Uuid> = cross_service_auth::table
        .filter(cross_service_auth::token_id.eq_any(ids))
        .select(cross_service_auth::token_id)
        .load(connection)
        .await?
        .into_iter()
        .collect();
    Ok(ids.iter().copied().filter(|id| !registered.contains(id)).collect())
}

/// Revokes tokens by id and returns how many were not revoked before. An id that is not registered is revoked too: the
/// token may have been issued after the backup that the database was restored from. For an administrator.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn revoke(connection: &mut AsyncPgConnection, ids: &[Uuid]) -> Result<usize, Fault> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Integer)]
        revoked: i32,
    }
    let rows: Vec<Row> = diesel::sql_query("SELECT sec.revoke_tokens($1) AS revoked")
        .bind::<Array<SqlUuid>, _>(ids)
        .load(connection)
        .await?;
    Ok(rows.iter().map(|row| usize::try_from(row.revoked).unwrap_or_default()).sum())
}

/// The registry's record of a token.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable, serde::Serialize)]
#[diesel(table_name = cross_service_auth, check_for_backend(Pg))]
pub struct RegisteredToken {
    /// The `jti` of the token.
    pub token_id: Uuid,
    /// The service that it was issued to.
    pub service: String,
    /// The user that it may act for.
    pub user_id: i32,
    /// The session that it is restricted to, if any.
    pub session_id: Option<String>,
    /// Its scopes. The role of token-issuer could leave NULL among them before migration 000066.
    #[diesel(select_expression = dsl::sql("ARRAY(SELECT s FROM unnest(cross_service_auth.scopes) AS s WHERE s IS NOT NULL)"))]
    #[diesel(select_expression_type = SqlLiteral<Array<Text>>)]
    pub scopes: Vec<String>,
    /// The key that signed it.
    pub key_id: String,
    /// When it was issued.
    pub issued_at: DateTime<Utc>,
    /// When it expires.
    pub expires_at: DateTime<Utc>,
    /// When a request with it was last stored, accurate to a few seconds.
    pub last_used_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
}

/// Selects tokens.
#[derive(Clone, Debug, Default)]
pub struct TokenFilter {
    /// Only those of this service.
    pub service: Option<Service>,
    /// Only those for this user.
    pub user_id: Option<UserId>,
    /// Also expired and revoked ones.
    pub all: bool,
    /// The maximum number of tokens.
    pub limit: i64,
}

/// The newest tokens, newest first.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn list(
    connection: &mut AsyncPgConnection,
    filter: &TokenFilter,
) -> Result<Vec<RegisteredToken>, Fault> {
    let mut tokens = tokens_of(filter);
    if !filter.all {
        tokens = tokens
            .filter(cross_service_auth::revoked_at.is_null())
            .filter(cross_service_auth::expires_at.gt(dsl::now));
    }
    let mut found: Vec<RegisteredToken> = tokens
        .order(cross_service_auth::token_id.desc())
        .limit(filter.limit)
        .select(RegisteredToken::as_select())
        .load(connection)
        .await?;
    let used = last_uses(connection, &found).await?;
    for token in &mut found {
        token.last_used_at = used.get(&token.token_id).copied();
    }
    Ok(found)
}

/// When any worker last used each of these tokens. Each worker's role has a row of its own.
async fn last_uses(
    connection: &mut AsyncPgConnection,
    tokens: &[RegisteredToken],
) -> Result<HashMap<Uuid, DateTime<Utc>>, Fault> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = SqlUuid)]
        token_id: Uuid,
        #[diesel(sql_type = Timestamptz)]
        used_at: DateTime<Utc>,
    }
    const USES: &str = "
        SELECT token_id, max(used_at) AS used_at FROM sec.token_uses WHERE token_id = ANY ($1) GROUP BY token_id";
    let ids: Vec<Uuid> = tokens.iter().map(|token| token.token_id).collect();
    let rows: Vec<Row> = diesel::sql_query(USES).bind::<Array<SqlUuid>, _>(ids).load(connection).await?;
    Ok(rows.into_iter().map(|row| (row.token_id, row.used_at)).collect())
}
