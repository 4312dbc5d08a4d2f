//! What the registry of services says, kept current: a key that is added, a service that is disabled or a token that is
//! revoked holds on every replica within a second.

use std::sync::Arc;
use std::time::Duration;

use store::registry::{self, TrustState};
use store::{Fault, Pool};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::authorise::Gate;
use crate::readiness::{Dependency, Readiness, look_for};

/// How often is asked for the registry's version. A change is seen after this and two questions.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often the use of tokens is noted there.
const NOTE_EVERY: Duration = Duration::from_secs(5);

/// Asks the registry what tokens are judged by.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn read(pool: &Pool) -> Result<TrustState, Fault> {
    registry::trust_state(&mut *store::lend(pool).await?).await
}

/// Keeps a gate current, and with it what is known of the database, until `stop` is cancelled. While the database is away it judges
/// by what it knew: nothing is written meanwhile, and the database checks every grant by itself.
pub async fn follow(readiness: Readiness, gate: Arc<Gate>, pool: Pool, stop: CancellationToken) {
    let worker = readiness.worker();
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut noted_at = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = tick.tick() => {}
        }
        let (dependency, found) = look_for(Dependency::Postgres, refresh(&gate, &pool)).await;
        readiness.note(dependency, found);
        if noted_at.elapsed() >= NOTE_EVERY {
            noted_at = Instant::now();
            gate.tidy();
            note(worker, &gate, &pool).await;
        }
    }
    note(worker, &gate, &pool).await;
}

/// Reads the registry again if it has changed.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn refresh(gate: &Gate, pool: &Pool) -> Result<(), Fault> {
    let mut connection = store::lend(pool).await?;
    if registry::trust_version(&mut connection).await? != gate.state().version {
        gate.tell(registry::trust_state(&mut connection).await?);
    }
    Ok(())
}

async fn note(worker: &'static str, gate: &Gate, pool: &Pool) {
    let used = gate.take_used();
    if used.is_empty() {
        return;
    }
    let noted = async { registry::note_use(&mut *store::lend(pool).await?, &used).await };
    if let Err(fault) = noted.await {
        // It says when a token was used last, to within some seconds; the next use says it again.
        tracing::debug!(worker, %fault, "the use of tokens is not noted");
    }
}
