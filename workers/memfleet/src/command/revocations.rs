//! Revocations reach the key store, too.

use std::time::Duration;

use anyhow::Context;
use cli::database;
use config::Settings;
use keys::Difference;
use store::Connection;
use tokio::time::timeout;

/// Time limit for the key store: a revocation holds in the database, whatever becomes of this.
const DEADLINE: Duration = Duration::from_secs(15);

/// What the key store does not know of the revocations in the database.
///
/// # Errors
/// If one of them cannot be read within [`DEADLINE`].
pub(super) async fn difference(main: &mut Connection, settings: &Settings) -> anyhow::Result<Difference> {
    within(async {
        let mut key_store = database::connect(&settings.keys.url, "keys.url", "the key store").await?;
        Ok(keys::difference(main, &mut key_store).await?)
    })
    .await
}

/// Brings the revocations of the database to the key store. Returns what was missing there.
///
/// # Errors
/// If one of them is unreachable or does not answer within [`DEADLINE`].
pub(super) async fn sync(main: &mut Connection, settings: &Settings) -> anyhow::Result<Difference> {
    within(async {
        let mut key_store = database::connect(&settings.keys.url, "keys.url", "the key store").await?;
        Ok(keys::sync(main, &mut key_store).await?)
    })
    .await
}

/// The same after a change that was committed in the database. The error says that it holds there.
///
/// # Errors
/// As [`sync`].
pub(super) async fn sync_after(main: &mut Connection, settings: &Settings) -> anyhow::Result<()> {
    let synced = sync(main, settings).await;
    synced.map(drop).context(
        "the database and all replicas have it, but not the key store yet; run `memfleet security sync` when it can be reached",
    )
}

async fn within<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let done = timeout(DEADLINE, work).await;
    done.with_context(|| format!("the key store did not answer within {} s", DEADLINE.as_secs()))?
}
