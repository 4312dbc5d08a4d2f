//! Seals the rows of the audit trail whose transactions have ended, at a fixed interval.

use std::path::Path;
use std::time::Duration;

use audit::anchor::Anchors;
use audit::{AuditError, Cause, HeldBack};
use config::Settings;
use runtime::broker::{self, ConnectError};
use store::Connection;
use store::job_runs::{self, Counts};
use tokio::time::{Instant, MissedTickBehavior, interval};
use trust::{KeyError, PrivateKey, PublicKey};

/// The audit trail cannot be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// No key is configured.
    #[error("audit.seal_key_file is not set: it names the key that signs seals")]
    NoKey,
    /// The key cannot be used.
    #[error("audit.seal_key_file: {0}")]
    Key(#[from] KeyError),
    /// The public keys of earlier sealers cannot be read.
    #[error("audit.public_keys_file: {0}")]
    PublicKeys(KeyError),
    /// The database cannot be reached.
    #[error("the audit trail cannot be read from the database of postgres.url: {0}")]
    Database(#[from] store::PoolError),
    /// The broker cannot be reached.
    #[error(transparent)]
    Broker(#[from] ConnectError),
    /// Sealing failed.
    #[error("the audit trail cannot be sealed: {0}")]
    Audit(#[from] AuditError),
}

/// The key that signs seals.
///
/// # Errors
/// [`SealError::NoKey`] or [`SealError::Key`].
pub fn seal_key(settings: &Settings) -> Result<PrivateKey, SealError> {
    let file = settings.audit.seal_key_file.as_ref().ok_or(SealError::NoKey)?;
    Ok(PrivateKey::read(Path::new(file))?)
}

/// The public keys of earlier sealers, which may have left a seal to be anchored.
fn earlier_keys(settings: &Settings) -> Result<Vec<PublicKey>, SealError> {
    match &settings.audit.public_keys_file {
        Some(file) => PublicKey::read_all(Path::new(file)).map_err(SealError::PublicKeys),
        None => Ok(Vec::new()),
    }
}

/// The anchored seals on the broker.
///
/// # Errors
/// [`SealError::Broker`].
pub async fn anchors(settings: &Settings) -> Result<Anchors, SealError> {
    let client = broker::connect_operator(&settings.nats, "audit").await?;
    Ok(Anchors::new(async_nats::jetstream::new(client)))
}

/// What one pass of the sealer did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The number of new seals.
    pub seals: u64,
    /// The number of rows under them.
    pub rows: u64,
    /// What keeps later rows from being sealed, if they are old.
    pub held_back: Option<HeldBack>,
}

/// Seals once. It opens its own connections, which is cheap at this rate.
///
/// # Errors
/// [`SealError`].
pub async fn seal(settings: &Settings) -> Result<Sealed, SealError> {
    let key = seal_key(settings)?;
    let earlier = earlier_keys(settings)?;
    let mut connection: Connection = store::connect(&settings.postgres.url).await?;
    let anchors = anchors(settings).await?;
    let (mut seals, mut rows) = audit::seal_all(&mut connection, &anchors, &key, &earlier).await?;
    let mut held_back = audit::held_back(&mut connection).await.map_err(AuditError::from)?;
    if held_back.as_ref().is_some_and(|held| held.cause != Cause::Transactions) {
        // A long transaction may have been committed between the two.
        let more = audit::seal_all(&mut connection, &anchors, &key, &earlier).await?;
        (seals, rows) = (seals + more.0, rows + more.1);
        held_back = audit::held_back(&mut connection).await.map_err(AuditError::from)?;
    }
    let sealed = Sealed { seals, rows, held_back };
    note(&mut connection, &sealed).await;
    Ok(sealed)
}

/// The sealer in `job_runs`.
const JOB: &str = "audit-seal";

/// Notes a pass that sealed something, or that something held back. That it is not noted keeps nobody from sealing.
async fn note(connection: &mut Connection, sealed: &Sealed) {
    if sealed.seals == 0 && sealed.held_back.is_none() {
        return;
    }
    let failure = sealed.held_back.as_ref().map(ToString::to_string);
    let counts = Counts { examined: sealed.rows, changed: sealed.rows, failure, ..Counts::default() };
    if let Err(error) = job_runs::note_pass(connection, JOB, &counts).await {
        tracing::warn!(%error, "cannot note what was sealed in job_runs");
    }
}

/// The minimum time between two warnings about a transaction that holds back sealing.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Seals every `audit.seal_every_s` seconds. It never returns: after a failure, it tries again at the next interval.
pub async fn follow(settings: &Settings) {
    let mut ticks = interval(settings.audit.seal_every());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut warned: Option<Instant> = None;
    loop {
        ticks.tick().await;
        let sealed = match seal(settings).await {
            Ok(sealed) => sealed,
            Err(error) => {
                tracing::error!(%error, "cannot seal the audit trail");
                continue;
            }
        };
        let Sealed { seals, rows, held_back } = sealed;
        if seals > 0 {
            tracing::info!(seals, rows, "sealed");
        }
        if let Some(held) = held_back
            && warned.is_none_or(|warned| warned.elapsed() >= WARN_EVERY)
        {
            tracing::warn!("{held}");
            warned = Some(Instant::now());
        }
    }
}
