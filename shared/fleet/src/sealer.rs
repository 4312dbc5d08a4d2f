//! Seals the rows of the audit trail whose transactions have ended, at a fixed interval.

use std::path::Path;

use audit::AuditError;
use audit::anchor::Anchors;
use config::Settings;
use runtime::broker::{self, ConnectError};
use store::Connection;
use tokio::time::{MissedTickBehavior, interval};
use trust::{KeyError, PrivateKey};

/// The audit trail cannot be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// No key is configured.
    #[error("audit.seal_key_file is not set: it names the key that signs seals")]
    NoKey,
    /// The key cannot be used.
    #[error("audit.seal_key_file: {0}")]
    Key(#[from] KeyError),
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

/// The anchored seals on the broker.
///
/// # Errors
/// [`SealError::Broker`].
pub async fn anchors(settings: &Settings) -> Result<Anchors, SealError> {
    let client = broker::connect_operator(&settings.nats, "audit").await?;
    Ok(Anchors::new(async_nats::jetstream::new(client)))
}

/// Seals once. It opens its own connections, which is cheap at this rate. Returns the number of seals and the number of
/// sealed rows.
///
/// # Errors
/// [`SealError`].
pub async fn seal(settings: &Settings) -> Result<(u64, u64), SealError> {
    let key = seal_key(settings)?;
    let mut connection: Connection = store::connect(&settings.postgres.url).await?;
    let anchors = anchors(settings).await?;
    Ok(audit::seal_all(&mut connection, &anchors, &key).await?)
}

/// Seals every `audit.seal_every_s` seconds. It never returns: after a failure, it tries again at the next interval.
pub async fn follow(settings: &Settings) {
    let mut ticks = interval(settings.audit.seal_every());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match seal(settings).await {
            Ok((0, _)) => {}
            Ok((seals, rows)) => tracing::info!(seals, rows, "sealed"),
            Err(error) => tracing::error!(%error, "cannot seal the audit trail"),
        }
    }
}
