//! What comes late: messages of an erased person that a publisher sent without knowing, and points of a replica that was embedding when the
//! points were deleted.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use contract::UserId;
use diesel::QueryableByName;
use diesel::sql_types::{Bool, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use store::Fault;
use uuid::Uuid;

use crate::error::PrivacyError;
use crate::stores::Stores;
use crate::{streams, vectors, verify};

/// How often it is done in the passes of one run.
const EVERY: Duration = Duration::from_secs(600);
/// For how long after an erasure. The stream that keeps messages longest, DEAD, keeps them for 30 days.
const KEPT_FOR: TimeDelta = TimeDelta::days(31);

/// When which run has done it last in this process.
static LAST: Mutex<Option<(Uuid, Instant)>> = Mutex::new(None);

fn is_due(run: Uuid) -> bool {
    let mut last = LAST.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if last.is_some_and(|(of, at)| of == run && at.elapsed() < EVERY) {
        return false;
    }
    *last = Some((run, Instant::now()));
    true
}

/// Does it if this run has not done it for ten minutes. A store that is away is warned of: the next time does what this one could not.
///
/// # Errors
/// [`PrivacyError`] of the main database.
pub(crate) async fn run_if_due(
    stores: &mut Stores,
    run: Uuid,
    now: DateTime<Utc>,
) -> Result<(), PrivacyError> {
    #[derive(QueryableByName)]
    struct Any {
        #[diesel(sql_type = Bool)]
        any: bool,
    }
    const ANY: &str = "SELECT EXISTS (SELECT FROM sec.erased_users WHERE erased_at > $1) AS any";
    const FORGET: &str =
        "UPDATE sec.erased_users SET tenant = NULL WHERE tenant IS NOT NULL AND erased_at <= $1";
    if !is_due(run) {
        return Ok(());
    }
    let since = now - KEPT_FOR;
    let Any { any } =
        diesel::sql_query(ANY).bind::<Timestamptz, _>(since).get_result(&mut stores.database).await?;
    if any {
        if let Err(error) = delete_messages(stores).await {
            tracing::warn!(%error, "cannot look for late messages of erased persons");
        }
        if let Err(error) = delete_points(stores, since).await {
            tracing::warn!(%error, "cannot look for late points of erased persons");
        }
    }
    diesel::sql_query(FORGET).bind::<Timestamptz, _>(since).execute(&mut stores.database).await?;
    Ok(())
}

async fn delete_messages(stores: &mut Stores) -> Result<(), PrivacyError> {
    let jetstream = stores.jetstream().await?;
    let parallel = stores.settings.privacy.streams_parallel;
    for name in streams::names() {
        let mut users = streams::users(&jetstream, name).await?;
        let ids: Vec<UserId> = users.keys().copied().collect();
        for user in verify::erased(&mut stores.database, &ids).await? {
            let places = users.remove(&user).unwrap_or_default();
            let messages = streams::delete_at(&jetstream, name, &places, parallel).await?;
            tracing::info!(stream = name, messages, "deleted late messages of an erased person");
        }
    }
    Ok(())
}

async fn delete_points(stores: &mut Stores, since: DateTime<Utc>) -> Result<(), PrivacyError> {
    #[derive(QueryableByName)]
    struct Erased {
        #[diesel(sql_type = SqlUuid)]
        tenant: Uuid,
    }
    const TENANTS: &str = "SELECT tenant FROM sec.erased_users WHERE tenant IS NOT NULL AND erased_at > $1";
    let Some(vectors) = stores.vectors()? else { return Ok(()) };
    let database = &mut stores.database;
    let tenants: Vec<Erased> =
        diesel::sql_query(TENANTS).bind::<Timestamptz, _>(since).load(database).await.map_err(Fault::from)?;
    for Erased { tenant } in tenants {
        let points = vectors::delete(database, &vectors, tenant).await?;
        if points > 0 {
            tracing::info!(points, "deleted late points of an erased person");
        }
    }
    Ok(())
}
