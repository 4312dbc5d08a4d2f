//! The registry of services: who they are, which keys sign their tokens, which tokens there are and which were revoked. What
//! workers see of it is a [`TrustState`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use contract::{Service, SessionId, UserId};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Binary, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde::Deserialize;
use serde_json::json;
use trust::text::from_hex;
use trust::{IssueError, IssuedToken, PublicKey, Scope, TokenIssuer, TokenRequest};
use uuid::Uuid;

use crate::fault::{Fault, FaultKind};
use crate::prepared;

/// Requests a second that one replica lets through. None where nothing is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Rates {
    /// Of a service.
    #[serde(rename = "per_second")]
    pub of_service: Option<u32>,
    /// Of one noun and verb of a service.
    #[serde(rename = "scope_per_second")]
    pub of_scope: Option<u32>,
    /// Of a service for one user.
    #[serde(rename = "user_per_second")]
    pub of_user: Option<u32>,
}

/// What a service may do at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// What its tokens may allow.
    pub scopes: Vec<Scope>,
    /// How often.
    pub rates: Rates,
}

/// All that tokens are judged by, as of one moment.
#[derive(Clone, Debug, Default)]
pub struct TrustState {
    /// It grows with every change.
    pub version: i64,
    /// The keys in use, by name.
    pub keys: HashMap<String, PublicKey>,
    /// The services that are registered and not disabled.
    pub services: HashMap<Service, ServiceEntry>,
    /// Tokens that were revoked and could still be used.
    pub revoked: HashSet<Uuid>,
}

#[derive(QueryableByName)]
struct Version {
    #[diesel(sql_type = BigInt)]
    version: i64,
}

/// The version that [`trust_state`] would have now.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn trust_version(connection: &mut AsyncPgConnection) -> Result<i64, Fault> {
    let rows: Vec<Version> =
        prepared(diesel::sql_query("SELECT sec.trust_version() AS version")).load(connection).await?;
    Ok(rows.iter().map(|row| row.version).max().unwrap_or_default())
}

/// Reads all that tokens are judged by.
///
/// # Errors
/// A [`Fault`] of the database, also if it holds what this program cannot read.
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
        Ok((name.clone(), key.ok_or_else(|| unreadable(&format!("the key {name} is none")))?))
    });
    let services = state.services.into_iter().map(|(name, Entry { scopes, rates })| {
        let service = name.parse().map_err(|_| unreadable(&format!("the service {name:?} is none")))?;
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

/// Notes when tokens were used last. Those that are not registered are passed over.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn note_use(
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

/// A token that was refused.
#[derive(Clone, Copy, Debug)]
pub struct RefusedToken<'a> {
    /// Why, in a word.
    pub kind: &'static str,
    /// Why, in a sentence.
    pub reason: &'a str,
    /// For whom the request was, as far as is known.
    pub user_id: Option<UserId>,
    /// The service in its subject.
    pub service: &'a Service,
    /// The request.
    pub request_id: Uuid,
}

/// Records refusals in `audit.security_violations`.
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

/// Registers tokens that were just issued, in one statement. For the issuer or an administrator.
///
/// # Errors
/// A [`Fault`] of the database, which refuses tokens of services that are not registered.
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

/// Why a token is not issued.
#[derive(Debug, thiserror::Error)]
pub enum NotIssued {
    /// Nobody knows the service.
    #[error("the service {0} is not registered or is disabled")]
    UnknownService(Service),
    /// The service may not do that.
    #[error("the service {service} may not have the scope {scope}; it may have {may}")]
    Scope {
        /// The service.
        service: Service,
        /// What it may not do.
        scope: Scope,
        /// What it may.
        may: String,
    },
    /// There can be no such token.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The registry cannot be asked, or does not take it.
    #[error("the token cannot be registered: {0}")]
    Registry(#[from] Fault),
}

/// Issues a token if its service may have it, and registers it. No scopes in the request stand for all that the service may
/// have. Gives the request with its scopes, and the token.
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

/// The ids of tokens whose grants could still be used, at most `which.limit` of them.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn revocable(connection: &mut AsyncPgConnection, which: &Which) -> Result<Vec<Uuid>, Fault> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = SqlUuid)]
        token_id: Uuid,
    }
    let rows: Vec<Row> = diesel::sql_query(
        "SELECT token_id FROM cross_service_auth
        WHERE ($1 IS NULL OR service = $1) AND ($2 IS NULL OR user_id = $2)
            AND revoked_at IS NULL AND grants_expire_at > now() LIMIT $3",
    )
    .bind::<Nullable<Text>, _>(which.service.as_ref().map(Service::as_str))
    .bind::<Nullable<Integer>, _>(which.user_id.map(UserId::get))
    .bind::<BigInt, _>(which.limit)
    .load(connection)
    .await?;
    Ok(rows.into_iter().map(|row| row.token_id).collect())
}

/// Revokes tokens by id and gives how many were not revoked before. For an administrator.
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

/// A token as the registry knows it.
#[derive(Clone, Debug, PartialEq, Eq, QueryableByName, serde::Serialize)]
pub struct Registered {
    /// Its `jti`.
    #[diesel(sql_type = SqlUuid)]
    pub token_id: Uuid,
    /// To whom it was issued.
    #[diesel(sql_type = Text)]
    pub service: String,
    /// For whom it may act.
    #[diesel(sql_type = Integer)]
    pub user_id: i32,
    /// The only session it is for, if it is for one.
    #[diesel(sql_type = Nullable<Text>)]
    pub session_id: Option<String>,
    /// What it allows.
    #[diesel(sql_type = Array<Text>)]
    pub scopes: Vec<String>,
    /// The key that signed it.
    #[diesel(sql_type = Text)]
    pub key_id: String,
    /// When it was issued.
    #[diesel(sql_type = Timestamptz)]
    pub issued_at: DateTime<Utc>,
    /// When it ends.
    #[diesel(sql_type = Timestamptz)]
    pub expires_at: DateTime<Utc>,
    /// When a request of it was stored last, to within some seconds.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub last_used_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub revoked_at: Option<DateTime<Utc>>,
}

/// Which tokens a list shows.
#[derive(Clone, Debug, Default)]
pub struct Which {
    /// Those of a service.
    pub service: Option<Service>,
    /// Those for a user.
    pub user_id: Option<UserId>,
    /// Those that have ended or were revoked too.
    pub all: bool,
    /// At most so many.
    pub limit: i64,
}

/// The newest tokens, newest first.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn list(connection: &mut AsyncPgConnection, which: &Which) -> Result<Vec<Registered>, Fault> {
    const LIST: &str = "
        SELECT token_id, service, user_id, session_id, scopes, key_id, issued_at, expires_at, last_used_at, revoked_at
        FROM cross_service_auth
        WHERE ($1 IS NULL OR service = $1) AND ($2 IS NULL OR user_id = $2)
            AND ($3 OR (revoked_at IS NULL AND expires_at > now()))
        ORDER BY token_id DESC LIMIT $4";
    Ok(diesel::sql_query(LIST)
        .bind::<Nullable<Text>, _>(which.service.as_ref().map(Service::as_str))
        .bind::<Nullable<Integer>, _>(which.user_id.map(UserId::get))
        .bind::<Bool, _>(which.all)
        .bind::<BigInt, _>(which.limit)
        .load(connection)
        .await?)
}

/// Registers a service, or changes it. A disabled one is enabled again. For an administrator.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn put_service(
    connection: &mut AsyncPgConnection,
    service: &Service,
    entry: &ServiceEntry,
) -> Result<(), Fault> {
    const PUT: &str = "
        INSERT INTO sec.services AS s (service, scopes, per_second, scope_per_second, user_per_second)
        VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (service) DO UPDATE SET scopes = excluded.scopes, per_second = excluded.per_second,
            scope_per_second = excluded.scope_per_second, user_per_second = excluded.user_per_second,
            updated_at = now(), disabled_at = NULL";
    let rate = |rate: Option<u32>| rate.map(|rate| i32::try_from(rate).unwrap_or(i32::MAX));
    diesel::sql_query(PUT)
        .bind::<Text, _>(service.as_str())
        .bind::<Array<Text>, _>(entry.scopes.iter().map(ToString::to_string).collect::<Vec<_>>())
        .bind::<Nullable<Integer>, _>(rate(entry.rates.of_service))
        .bind::<Nullable<Integer>, _>(rate(entry.rates.of_scope))
        .bind::<Nullable<Integer>, _>(rate(entry.rates.of_user))
        .execute(connection)
        .await?;
    Ok(())
}

/// Registers a service, or changes what it may do and nothing else. False if it is disabled, which it then stays. For an
/// administrator who loads a list.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn load_service(
    connection: &mut AsyncPgConnection,
    service: &Service,
    scopes: &[Scope],
) -> Result<bool, Fault> {
    const LOAD: &str = "
        INSERT INTO sec.services AS s (service, scopes) VALUES ($1, $2)
        ON CONFLICT (service) DO UPDATE SET scopes = excluded.scopes, updated_at = now()
        RETURNING disabled_at IS NULL AS enabled";
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Bool)]
        enabled: bool,
    }
    let rows: Vec<Row> = diesel::sql_query(LOAD)
        .bind::<Text, _>(service.as_str())
        .bind::<Array<Text>, _>(scopes.iter().map(ToString::to_string).collect::<Vec<_>>())
        .load(connection)
        .await?;
    Ok(rows.iter().all(|row| row.enabled))
}

/// Disables a service: none of its tokens is believed any more. False if it is not registered. For an administrator.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn disable_service(connection: &mut AsyncPgConnection, service: &Service) -> Result<bool, Fault> {
    let disabled = diesel::sql_query(
        "UPDATE sec.services SET disabled_at = coalesce(disabled_at, now()), updated_at = now() WHERE service = $1",
    )
    .bind::<Text, _>(service.as_str())
    .execute(connection)
    .await?;
    Ok(disabled > 0)
}

/// Has tokens believed that this key signs. False if there is another key of this name or this key under another name: a
/// name stands for one key for ever. For an administrator.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn add_token_key(connection: &mut AsyncPgConnection, key: &PublicKey) -> Result<bool, Fault> {
    const ADD: &str = "
        INSERT INTO sec.token_keys AS k (key_id, public_key) VALUES ($1, $2)
        ON CONFLICT DO NOTHING";
    const SAME: &str = "
        UPDATE sec.token_keys SET retired_at = NULL WHERE key_id = $1 AND public_key = $2";
    for statement in [ADD, SAME] {
        let done = diesel::sql_query(statement)
            .bind::<Text, _>(key.name())
            .bind::<Binary, _>(key.to_bytes().to_vec())
            .execute(connection)
            .await?;
        if done > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Has tokens believed no more that the key of this name signed. False if there is none. For an administrator.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn retire_token_key(connection: &mut AsyncPgConnection, name: &str) -> Result<bool, Fault> {
    let retired = diesel::sql_query(
        "UPDATE sec.token_keys SET retired_at = coalesce(retired_at, now()) WHERE key_id = $1",
    )
    .bind::<Text, _>(name)
    .execute(connection)
    .await?;
    Ok(retired > 0)
}
