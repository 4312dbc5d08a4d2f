//! What the registry of services says, kept current: a key that is added, a service that is disabled or a token that is
//! revoked holds on every replica within a second.

use std::sync::Arc;
use std::time::Duration;

use store::registry::{self, TrustState};
use store::{Fault, Pool};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::process::readiness::{Dependency, Readiness, probe};
use crate::stages::authorize::Authorizer;

/// How often is asked for the registry's version. A change is seen after this and two queries.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often the use of tokens is noted there.
const NOTE_EVERY: Duration = Duration::from_secs(5);

/// Asks the registry what tokens are authorized by.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn read(pool: &Pool) -> Result<TrustState, Fault> {
    registry::trust_state(&mut *store::acquire(pool).await?).await
}

/// Keeps a authorizer current, and with it what is known of the database, until `stop` is cancelled. While the database is away it judges
/// by what it knew: nothing is written meanwhile, and the database checks every grant by itself.
pub async fn follow(readiness: Readiness, authorizer: Arc<Authorizer>, pool: Pool, stop: CancellationToken) {
    let worker = readiness.worker();
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut noted_at = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = tick.tick() => {}
        }
        let (dependency, found) = probe(Dependency::Postgres, refresh(&authorizer, &pool)).await;
        readiness.note(dependency, found);
        if noted_at.elapsed() >= NOTE_EVERY {
            noted_at = Instant::now();
            authorizer.tidy();
            note(worker, &authorizer, &pool).await;
        }
    }
    note(worker, &authorizer, &pool).await;
}

/// Reads the registry again if it has changed.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn refresh(authorizer: &Authorizer, pool: &Pool) -> Result<(), Fault> {
    let mut connection = store::acquire(pool).await?;
    if registry::trust_version(&mut connection).await? != authorizer.state().version {
        authorizer.tell(registry::trust_state(&mut connection).await?);
    }
    Ok(())
}

async fn note(worker: &'static str, authorizer: &Authorizer, pool: &Pool) {
    let used = authorizer.take_used();
    if used.is_empty() {
        return;
    }
    let noted = async { registry::record_use(&mut *store::acquire(pool).await?, &used).await };
    if let Err(fault) = noted.await {
        // It says when a token was used last, to within some seconds; the next use says it again.
        tracing::debug!(worker, %fault, "the use of tokens is not noted");
    }
}
