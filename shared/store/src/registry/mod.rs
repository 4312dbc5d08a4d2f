//! The registry of services: their scopes and rate limits, the keys that sign their tokens, the issued tokens and which
//! of them are revoked. Workers read it as a [`TrustState`].

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, Utc};
use contract::Service;
use diesel::dsl;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text, Timestamptz};
use diesel::upsert::excluded;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde::Deserialize;
use trust::text::from_hex;
use trust::{PublicKey, Scope};
use uuid::Uuid;

use crate::fault::{Fault, FaultKind};
use crate::prepared;
use crate::schema::{services, token_keys};

mod tokens;

pub use tokens::{
    NotIssued, RefusedToken, RegisteredToken, TokenFilter, issue, list, record_refused, record_use, register,
    revocable, revoke, unregistered,
};

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

/// Whether a service is registered and disabled.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn is_disabled(connection: &mut AsyncPgConnection, service: &Service) -> Result<bool, Fault> {
    let disabled = services::table.find(service.as_str()).filter(services::disabled_at.is_not_null());
    Ok(disabled.count().get_result::<i64>(connection).await? > 0)
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
