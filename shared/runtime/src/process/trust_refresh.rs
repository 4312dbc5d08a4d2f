//! Keeps the registry state of each authorizer up to date. An added key, a disabled service or a revoked token takes
//! effect on every replica within a second.

use std::sync::Arc;
use std::time::Duration;

use store::registry::{self, TrustState};
use store::{Fault, Pool};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::process::readiness::{Dependency, Readiness, probe};
use crate::stages::authorize::Authorizer;

/// Interval between checks of the registry's version. A change takes effect after this time plus two queries.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// Interval between writes of token uses to the registry.
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
/// database verifies every grant itself.
pub async fn follow(readiness: Readiness, authorizer: Arc<Authorizer>, pool: Pool, stop: CancellationToken) {
    let worker = readiness.worker();
    let mut tick = interval(CHECK_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut recorded_at = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = tick.tick() => {}
        }
        let (dependency, found) = probe(Dependency::Postgres, refresh(&authorizer, &pool)).await;
        readiness.note(dependency, found);
        if recorded_at.elapsed() >= RECORD_INTERVAL {
            recorded_at = Instant::now();
            authorizer.prune();
            record_uses(worker, &authorizer, &pool).await;
        }
    }
    record_uses(worker, &authorizer, &pool).await;
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
