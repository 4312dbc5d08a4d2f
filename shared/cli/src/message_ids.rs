//! The ids by which the broker recognizes what a command publishes again.

use client::MessageIds;
use config::NatsSettings;

/// Ids that are the same in every run of a command. Their secret is what an identity has at the broker: `operator`, or the
/// name of a service.
///
/// # Errors
/// If a file with credentials cannot be read.
pub async fn of(settings: &NatsSettings, identity: &str) -> anyhow::Result<MessageIds> {
    let secret = broker::secret_of(settings, identity).await.map_err(anyhow::Error::msg)?;
    Ok(MessageIds::from_secret(&secret))
}
