//! Keeps the registry state of each authorizer up to date. An added key, a disabled service or a revoked token takes
//! effect on every replica within a second.

use std::sync::Arc;
use std::time::Duration;

use store::registry::{self, TrustState};
use store::{Fault, Pool, security};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, interval_at};
use tokio_util::sync::CancellationToken;

use crate::process::readiness::{Dependency, Readiness, probe};
use crate::stages::authorize::Authorizer;

/// Interval between checks of the registry's version. A change takes effect after this time plus two queries.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// Interval between writes of token uses to the registry, and between looks for old transactions.
const RECORD_INTERVAL: Duration = Duration::from_secs(5);

/// Reads the registry state that tokens are authorized with.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn read(pool: &Pool) -> Result<TrustState, Fault> {
    registry::trust_state(&mut *store::acquire(pool).await?).await
}

/// Refreshes the registry state of an authorizer, and the readiness of the database, until `stop` is cancelled. While
/// the database is unreachable, the last known state applies. This is safe: nothing can be written meanwhile, and the
/// database verifies every grant itself. Old transactions are ended in the key store, too, if the worker has one.
pub async fn follow(
    readiness: Readiness,
    authorizer: Arc<Authorizer>,
    pool: Pool,
    key_store: Option<Pool>,
    stop: CancellationToken,
) {
    // Apart from each other: what a note of use waits for holds up no revocation.
    tokio::join!(
        refresh_often(&readiness, &authorizer, &pool, &stop),
        keep(&readiness, &authorizer, &pool, key_store.as_ref(), &stop)
    );
}

async fn refresh_often(
    readiness: &Readiness,
    authorizer: &Authorizer,
    pool: &Pool,
    stop: &CancellationToken,
) {
    let mut tick = interval(CHECK_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while wait(&mut tick, stop).await {
        let (dependency, found) = probe(Dependency::Postgres, refresh(authorizer, pool)).await;
        readiness.note(dependency, found);
    }
}

/// Records the use of tokens, and ends what other workers left open.
async fn keep(
    readiness: &Readiness,
    authorizer: &Authorizer,
    pool: &Pool,
    key_store: Option<&Pool>,
    stop: &CancellationToken,
) {
    let worker = readiness.worker();
    let mut tick = interval_at(Instant::now() + RECORD_INTERVAL, RECORD_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while wait(&mut tick, stop).await {
        authorizer.prune();
        record_uses(worker, authorizer, pool).await;
        end_old_transactions(worker, pool).await;
        if let Some(key_store) = key_store {
            end_old_transactions(worker, key_store).await;
        }
    }
    record_uses(worker, authorizer, pool).await;
}

/// Waits for the next tick. False once the process stops.
async fn wait(tick: &mut Interval, stop: &CancellationToken) -> bool {
    tokio::select! {
        () = stop.cancelled() => false,
        _ = tick.tick() => true,
    }
}

/// Reads the registry state again if its version has changed.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn refresh(authorizer: &Authorizer, pool: &Pool) -> Result<(), Fault> {
    let mut connection = store::acquire(pool).await?;
    if registry::trust_version(&mut connection).await? != authorizer.state().version {
        authorizer.set_state(registry::trust_state(&mut connection).await?);
    }
    Ok(())
}

async fn record_uses(worker: &'static str, authorizer: &Authorizer, pool: &Pool) {
    let used = authorizer.take_used();
    if used.is_empty() {
        return;
    }
    let recorded = async { registry::record_use(&mut *store::acquire(pool).await?, &used).await };
    if let Err(fault) = recorded.await {
        // Acceptable loss: the time of the last use is approximate, and the next use updates it.
        tracing::debug!(worker, %fault, "cannot record the use of tokens");
    }
}

async fn end_old_transactions(worker: &'static str, pool: &Pool) {
    let ended = async { security::end_old_transactions(&mut *store::acquire(pool).await?).await };
    match ended.await {
        Ok(0) => {}
        Ok(count) => {
            tracing::warn!(worker, count, "ended transactions of workers that were open for too long");
        }
        Err(fault) => tracing::debug!(worker, %fault, "cannot end old transactions of workers"),
    }
}
