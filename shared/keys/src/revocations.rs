//! Brings what was revoked from the main database to the key store.
//!
//! Revocations are made in the main database alone, and hold there at once, whether the key store can be reached or not. The
//! key store refuses the same grants as soon as it knows. An operator's login writes there: a worker that could do it might
//! refuse anybody's grants.

use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncConnection, RunQueryDsl, SimpleAsyncConnection};
use store::{Connection, Fault};
use uuid::Uuid;

use crate::KeyError;

/// How many revoked grants are read at a time.
const PAGE: i64 = 10_000;

/// What the main database has revoked and the key store does not know, and the reverse for services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Revoked grants that the key store accepts, with the times at which they expire.
    pub grants: Vec<(Uuid, DateTime<Utc>)>,
    /// Disabled services whose grants the key store accepts.
    pub disabled: Vec<String>,
    /// Services whose grants the key store refuses although they are not disabled.
    pub enabled: Vec<String>,
    /// Retired grant keys whose grants the key store accepts.
    pub retired_keys: Vec<String>,
}

impl Difference {
    /// Whether the key store refuses what the main database refuses.
    #[must_use]
    pub fn is_none(&self) -> bool {
        let Self { grants, disabled, enabled, retired_keys } = self;
        grants.is_empty() && disabled.is_empty() && enabled.is_empty() && retired_keys.is_empty()
    }

    /// One phrase for each kind of difference.
    #[must_use]
    pub fn phrases(&self) -> Vec<String> {
        let Self { grants, disabled, enabled, retired_keys } = self;
        let named = |names: &[String], what: &str| {
            (!names.is_empty()).then(|| format!("{what} {}", names.join(", ")))
        };
        [
            (!grants.is_empty()).then(|| format!("{} revoked tokens", grants.len())),
            named(disabled, "the disabled service"),
            named(enabled, "the service that was enabled again,"),
            named(retired_keys, "the retired grant key"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Compares the two databases. Both connections are an administrator's.
///
/// # Errors
/// [`KeyError::Main`] or [`KeyError::Store`] if one of them cannot be read.
pub async fn difference(main: &mut Connection, key_store: &mut Connection) -> Result<Difference, KeyError> {
    const DISABLED: &str =
        "SELECT service::text AS name FROM sec.services WHERE disabled_at IS NOT NULL ORDER BY 1";
    const RETIRED: &str = "SELECT key_id::text AS name FROM sec.keys WHERE purpose = 'grant' AND retired_at IS NOT NULL ORDER BY 1";
    const KNOWN: &str = "SELECT service::text AS name FROM sec.disabled_services ORDER BY 1";
    const USED: &str =
        "SELECT key_id::text AS name FROM sec.keys WHERE purpose = 'grant' AND retired_at IS NULL";
    let disabled = names(main, DISABLED).await.map_err(of_main)?;
    let retired = names(main, RETIRED).await.map_err(of_main)?;
    let known = names(key_store, KNOWN).await?;
    let used = names(key_store, USED).await?;
    Ok(Difference {
        grants: unknown_grants(main, key_store).await?,
        enabled: known.iter().filter(|name| !disabled.contains(name)).cloned().collect(),
        disabled: disabled.into_iter().filter(|name| !known.contains(name)).collect(),
        retired_keys: retired.into_iter().filter(|name| used.contains(name)).collect(),
    })
}

/// Brings the key store up to date and returns what was missing. What it knows as revoked stays so, although the main database
/// may have forgotten it with a restored backup.
///
/// # Errors
/// As [`difference`]. Nothing was changed then.
pub async fn sync(main: &mut Connection, key_store: &mut Connection) -> Result<Difference, KeyError> {
    let found = difference(main, key_store).await?;
    if found.is_none() {
        return Ok(found);
    }
    key_store
        .transaction(async |key_store| {
            // Of several at a time, the last one must have read the main database after the others.
            let alone = "SET LOCAL lock_timeout = '10s'; LOCK TABLE sec.disabled_services IN SHARE ROW EXCLUSIVE MODE";
            key_store.batch_execute(alone).await?;
            let found = difference(main, key_store).await?;
            write(key_store, &found).await?;
            Ok(found)
        })
        .await
}

async fn write(key_store: &mut Connection, found: &Difference) -> Result<(), Fault> {
    const GRANTS: &str = "INSERT INTO sec.revoked_grants (grant_id, expires_at)
        SELECT grant_id, expires_at FROM unnest($1::uuid[], $2::timestamptz[]) AS r (grant_id, expires_at) ON CONFLICT DO NOTHING";
    const FORGET: &str = "DELETE FROM sec.revoked_grants WHERE expires_at < now() - interval '1 day'";
    const DISABLE: &str =
        "INSERT INTO sec.disabled_services (service) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING";
    const ENABLE: &str = "DELETE FROM sec.disabled_services WHERE service = ANY ($1::text[])";
    const RETIRE: &str = "UPDATE sec.keys SET retired_at = now()
        WHERE key_id = ANY ($1::text[]) AND purpose = 'grant' AND retired_at IS NULL";
    let (ids, ends): (Vec<Uuid>, Vec<DateTime<Utc>>) = found.grants.iter().copied().unzip();
    diesel::sql_query(GRANTS)
        .bind::<Array<SqlUuid>, _>(ids)
        .bind::<Array<Timestamptz>, _>(ends)
        .execute(key_store)
        .await?;
    diesel::sql_query(FORGET).execute(key_store).await?;
    for (statement, names) in
        [(DISABLE, &found.disabled), (ENABLE, &found.enabled), (RETIRE, &found.retired_keys)]
    {
        if !names.is_empty() {
            diesel::sql_query(statement).bind::<Array<Text>, _>(names).execute(key_store).await?;
        }
    }
    Ok(())
}

fn of_main(fault: Fault) -> KeyError {
    KeyError::Main(fault.reason)
}

async fn names(connection: &mut Connection, query: &str) -> Result<Vec<String>, Fault> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        name: String,
    }
    let rows: Vec<Row> = diesel::sql_query(query).load(connection).await?;
    Ok(rows.into_iter().map(|row| row.name).collect())
}

#[derive(QueryableByName)]
struct Revoked {
    #[diesel(sql_type = SqlUuid)]
    grant_id: Uuid,
    #[diesel(sql_type = Timestamptz)]
    expires_at: DateTime<Utc>,
}

/// The revoked grants that the key store does not know. What is forgotten soon is left out.
async fn unknown_grants(
    main: &mut Connection,
    key_store: &mut Connection,
) -> Result<Vec<(Uuid, DateTime<Utc>)>, KeyError> {
    const REVOKED: &str = "SELECT grant_id, expires_at FROM sec.revoked_grants
        WHERE ($1::uuid IS NULL OR grant_id > $1) AND expires_at > now() ORDER BY grant_id LIMIT $2";
    const UNKNOWN: &str = "SELECT r.grant_id, r.expires_at
        FROM unnest($1::uuid[], $2::timestamptz[]) AS r (grant_id, expires_at)
        WHERE NOT EXISTS (SELECT FROM sec.revoked_grants k WHERE k.grant_id = r.grant_id)";
    let (mut unknown, mut after) = (Vec::new(), None);
    loop {
        let query = diesel::sql_query(REVOKED).bind::<Nullable<SqlUuid>, _>(after).bind::<BigInt, _>(PAGE);
        let page: Vec<Revoked> = query.load(main).await.map_err(|error| of_main(error.into()))?;
        let Some(last) = page.last() else { return Ok(unknown) };
        after = Some(last.grant_id);
        let (ids, ends): (Vec<Uuid>, Vec<DateTime<Utc>>) =
            page.iter().map(|one| (one.grant_id, one.expires_at)).unzip();
        let query =
            diesel::sql_query(UNKNOWN).bind::<Array<SqlUuid>, _>(ids).bind::<Array<Timestamptz>, _>(ends);
        let found: Vec<Revoked> = query.load(key_store).await.map_err(Fault::from)?;
        unknown.extend(found.into_iter().map(|one| (one.grant_id, one.expires_at)));
    }
}
