//! The registry of services: their scopes and rate limits, the keys that sign their tokens, the issued tokens and which
//! of them are revoked. Workers read it as a [`TrustState`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use contract::{Service, SessionId, UserId};
use diesel::dsl;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel::upsert::excluded;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde::Deserialize;
use serde_json::json;
use trust::text::from_hex;
use trust::{IssueError, IssuedToken, PublicKey, Scope, TokenIssuer, TokenRequest};
use uuid::Uuid;

use crate::fault::{Fault, FaultKind};
use crate::prepared;
use crate::schema::{cross_service_auth, services, token_keys};

diesel::define_sql_function! {
    /// A time, or another one if it is NULL.
    #[sql_name = "coalesce"]
    fn time_or(time: Nullable<Timestamptz>, otherwise: Timestamptz) -> Timestamptz;
}

/// Rate limits: requests per second and replica. None: the limit of the replica's settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Rates {
    /// For a service.
    #[serde(rename = "per_second")]
    pub of_service: Option<u32>,
    /// For one noun and verb of a service.
    #[serde(rename = "scope_per_second")]
    pub of_scope: Option<u32>,
    /// For one user of a service.
    #[serde(rename = "user_per_second")]
    pub of_user: Option<u32>,
}

/// The scopes and rate limits of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// The scopes that its tokens may have.
    pub scopes: Vec<Scope>,
    /// The rate limits.
    pub rates: Rates,
}

/// A snapshot of everything that the authorization of a token depends on.
#[derive(Clone, Debug, Default)]
pub struct TrustState {
    /// Increases with every change.
    pub version: i64,
    /// The active keys, by name.
    pub keys: HashMap<String, PublicKey>,
    /// The registered services that are not disabled.
    pub services: HashMap<Service, ServiceEntry>,
    /// Revoked tokens that have not expired.
    pub revoked: HashSet<Uuid>,
}

#[derive(QueryableByName)]
struct Version {
    #[diesel(sql_type = BigInt)]
    version: i64,
}

/// The current version of the [`trust_state`].
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn trust_version(connection: &mut AsyncPgConnection) -> Result<i64, Fault> {
    let rows: Vec<Version> =
        prepared(diesel::sql_query("SELECT sec.trust_version() AS version")).load(connection).await?;
    Ok(rows.iter().map(|row| row.version).max().unwrap_or_default())
}

/// Reads the current snapshot.
///
/// # Errors
/// A [`Fault`] of the database, also if it contains values that this program cannot parse.
pub async fn trust_state(connection: &mut AsyncPgConnection) -> Result<TrustState, Fault> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        state: String,
    }
    #[derive(Deserialize)]
    struct Entry {
        scopes: Vec<String>,
        #[serde(flatten)]
        rates: Rates,
    }
    #[derive(Deserialize)]
    struct State {
        version: i64,
        keys: BTreeMap<String, String>,
        services: BTreeMap<String, Entry>,
        revoked: HashSet<Uuid>,
    }
    let rows: Vec<Row> =
        diesel::sql_query("SELECT sec.trust_state()::text AS state").load(connection).await?;
    let text = rows.iter().map(|row| row.state.as_str()).next().unwrap_or_default();
    let state: State = serde_json::from_str(text).map_err(|error| unreadable(&error.to_string()))?;
    let keys = state.keys.into_iter().map(|(name, digits)| {
        let bytes = from_hex(&digits).and_then(|bytes| bytes.try_into().ok());
        let key = bytes.and_then(|bytes| PublicKey::from_bytes(&name, &bytes).ok());
        Ok((name.clone(), key.ok_or_else(|| unreadable(&format!("the key {name} is not a public key")))?))
    });
    let services = state.services.into_iter().map(|(name, Entry { scopes, rates })| {
        let service = name.parse().map_err(|_| unreadable(&format!("{name:?} is not a service name")))?;
        let scopes = scopes
            .iter()
            .map(|scope| scope.parse::<Scope>().map_err(|error| unreadable(&format!("{name}: {error}"))))
            .collect::<Result<_, Fault>>()?;
        Ok((service, ServiceEntry { scopes, rates }))
    });
    Ok(TrustState {
        version: state.version,
        keys: keys.collect::<Result<_, Fault>>()?,
        services: services.collect::<Result<_, Fault>>()?,
        revoked: state.revoked,
    })
}

fn unreadable(problem: &str) -> Fault {
    Fault {
        kind: FaultKind::Unavailable,
        reason: format!("the registry of services cannot be read: {problem}"),
    }
}

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

/// Records rejected tokens in `audit.security_violations`.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn record_refused(
    connection: &mut AsyncPgConnection,
    refused: &[RefusedToken<'_>],
) -> Result<(), Fault> {
    prepared(
        diesel::sql_query("SELECT audit.record_refused_tokens($1, $2, $3, $4, $5)")
            .bind::<Array<Text>, _>(refused.iter().map(|one| one.kind).collect::<Vec<_>>())
            .bind::<Array<Text>, _>(refused.iter().map(|one| one.reason).collect::<Vec<_>>())
            .bind::<Array<Nullable<Integer>>, _>(
                refused.iter().map(|one| one.user_id.map(UserId::get)).collect::<Vec<_>>(),
            )
            .bind::<Array<Text>, _>(refused.iter().map(|one| one.service.as_str()).collect::<Vec<_>>())
            .bind::<Array<SqlUuid>, _>(refused.iter().map(|one| one.request_id).collect::<Vec<_>>()),
    )
    .execute(connection)
    .await?;
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
    /// Its scopes.
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
    Ok(tokens
        .order(cross_service_auth::token_id.desc())
        .limit(filter.limit)
        .select(RegisteredToken::as_select())
        .load(connection)
        .await?)
}

/// Registers a service or updates it. A disabled service is enabled again. For an administrator.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn put_service(
    connection: &mut AsyncPgConnection,
    service: &Service,
    entry: &ServiceEntry,
) -> Result<(), Fault> {
    let rate = |rate: Option<u32>| rate.map(|rate| i32::try_from(rate).unwrap_or(i32::MAX));
    diesel::insert_into(services::table)
        .values((
            services::service.eq(service.as_str()),
            services::scopes.eq(texts(&entry.scopes)),
            services::per_second.eq(rate(entry.rates.of_service)),
            services::scope_per_second.eq(rate(entry.rates.of_scope)),
            services::user_per_second.eq(rate(entry.rates.of_user)),
        ))
        .on_conflict(services::service)
        .do_update()
        .set((
            services::scopes.eq(excluded(services::scopes)),
            services::per_second.eq(excluded(services::per_second)),
            services::scope_per_second.eq(excluded(services::scope_per_second)),
            services::user_per_second.eq(excluded(services::user_per_second)),
            services::updated_at.eq(dsl::now),
            services::disabled_at.eq(None::<DateTime<Utc>>),
        ))
        .execute(connection)
        .await?;
    Ok(())
}

/// Registers a service or updates its scopes only. False if the service is disabled; it stays disabled. For an
/// administrator who loads a list.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn load_service(
    connection: &mut AsyncPgConnection,
    service: &Service,
    scopes: &[Scope],
) -> Result<bool, Fault> {
    Ok(diesel::insert_into(services::table)
        .values((services::service.eq(service.as_str()), services::scopes.eq(texts(scopes))))
        .on_conflict(services::service)
        .do_update()
        .set((services::scopes.eq(excluded(services::scopes)), services::updated_at.eq(dsl::now)))
        .returning(services::disabled_at.is_null())
        .get_result(connection)
        .await?)
}

fn texts(scopes: &[Scope]) -> Vec<String> {
    scopes.iter().map(ToString::to_string).collect()
}

/// Whether a service is registered, disabled or not.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn is_registered(connection: &mut AsyncPgConnection, service: &Service) -> Result<bool, Fault> {
    let registered = services::table.find(service.as_str()).count().get_result::<i64>(connection).await?;
    Ok(registered > 0)
}

/// Disables a service: all its tokens are rejected. False if it is not registered. For an administrator.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn disable_service(connection: &mut AsyncPgConnection, service: &Service) -> Result<bool, Fault> {
    let disabled = diesel::update(services::table.find(service.as_str()))
        .set((
            services::disabled_at.eq(time_or(services::disabled_at, dsl::now).nullable()),
            services::updated_at.eq(dsl::now),
        ))
        .execute(connection)
        .await?;
    Ok(disabled > 0)
}

/// Adds a signing key, or enables it again: tokens that it signs are accepted. False if there is another key of this
/// name or this key under another name: a name always refers to the same key. For an administrator.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn add_token_key(connection: &mut AsyncPgConnection, key: &PublicKey) -> Result<bool, Fault> {
    let public_key = key.to_bytes().to_vec();
    let added = diesel::insert_into(token_keys::table)
        .values((token_keys::key_id.eq(key.name()), token_keys::public_key.eq(&public_key)))
        .on_conflict_do_nothing()
        .execute(connection)
        .await?;
    if added > 0 {
        return Ok(true);
    }
    let same = token_keys::table.find(key.name()).filter(token_keys::public_key.eq(&public_key));
    let enabled = diesel::update(same)
        .set(token_keys::retired_at.eq(None::<DateTime<Utc>>))
        .execute(connection)
        .await?;
    Ok(enabled > 0)
}

/// Retires a signing key: every token that it signed is rejected. False if there is no such key. For an administrator.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn retire_token_key(connection: &mut AsyncPgConnection, name: &str) -> Result<bool, Fault> {
    let retired = diesel::update(token_keys::table.find(name))
        .set(token_keys::retired_at.eq(time_or(token_keys::retired_at, dsl::now).nullable()))
        .execute(connection)
        .await?;
    Ok(retired > 0)
}
