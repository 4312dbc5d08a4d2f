//! What comes late: messages of an erased person that a publisher sent without knowing, points of a replica that was embedding when the
//! points were deleted, and notes that a token was used by a transaction that was open when the token went.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use config::Settings;
use contract::UserId;
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use store::{Connection, Fault};
use uuid::Uuid;

use crate::error::PrivacyError;
use crate::stores::Stores;
use crate::{streams, vectors, verify};

/// How often it is done in the passes of one run.
const EVERY: Duration = Duration::from_secs(600);
/// The most messages that are deleted from a stream, and the most notes, at a time. If there are more, the next pass goes on.
const MOST: usize = 20_000;
/// For how long after an erasure. The stream that keeps messages longest, DEAD, keeps them for 30 days.
pub(crate) const KEPT_FOR: TimeDelta = TimeDelta::days(31);

/// When which run has done it last in this process.
static LAST: Mutex<Option<(Uuid, Instant)>> = Mutex::new(None);

/// Has the next pass do it again.
fn go_on_at_once() {
    *LAST.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
}

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
pub async fn run_if_due(settings: &Settings, run: Uuid, now: DateTime<Utc>) -> Result<(), PrivacyError> {
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
    let stores = &mut Stores::open(settings).await?;
    let since = now - KEPT_FOR;
    let Any { any } =
        diesel::sql_query(ANY).bind::<Timestamptz, _>(since).get_result(&mut stores.database).await?;
    if any {
        match delete_messages(stores).await {
            Ok(true) => {}
            Ok(false) => go_on_at_once(),
            Err(error) => tracing::warn!(%error, "cannot look for late messages of erased persons"),
        }
        if let Err(error) = delete_points(stores, since).await {
            tracing::warn!(%error, "cannot look for late points of erased persons");
        }
    }
    if delete_uses_of_no_token(&mut stores.database).await? == MOST {
        go_on_at_once();
    }
    diesel::sql_query(FORGET).bind::<Timestamptz, _>(since).execute(&mut stores.database).await?;
    Ok(())
}

/// Says whether that was all.
async fn delete_messages(stores: &mut Stores) -> Result<bool, PrivacyError> {
    let jetstream = stores.jetstream().await?;
    let parallel = stores.settings.privacy.streams_parallel;
    let mut is_all = true;
    for name in streams::names() {
        let mut users = streams::users(&jetstream, name).await?;
        let ids: Vec<UserId> = users.keys().copied().collect();
        let (mut left, mut persons) = (MOST, 0_u64);
        for user in verify::erased(&mut stores.database, &ids).await? {
            let places = users.remove(&user).unwrap_or_default();
            left -= streams::delete_at(&jetstream, name, &places, left, parallel).await?;
            persons += 1;
            if left == 0 {
                is_all = false;
                break;
            }
        }
        if persons > 0 {
            let messages = MOST - left;
            tracing::info!(stream = name, messages, persons, "deleted late messages of erased persons");
        }
    }
    Ok(is_all)
}

/// Deletes notes of uses of tokens that are not registered: the transaction of such a note may have been open when the tokens of an erased
/// person went. Returns their number.
async fn delete_uses_of_no_token(database: &mut Connection) -> Result<usize, Fault> {
    const DELETE: &str = "
        DELETE FROM sec.token_uses WHERE ctid = ANY (ARRAY(SELECT u.ctid FROM sec.token_uses u
            WHERE NOT EXISTS (SELECT FROM public.cross_service_auth a WHERE a.token_id = u.token_id) LIMIT $1 FOR UPDATE SKIP LOCKED))";
    let most = i64::try_from(MOST).unwrap_or(i64::MAX);
    Ok(diesel::sql_query(DELETE).bind::<BigInt, _>(most).execute(database).await?)
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
