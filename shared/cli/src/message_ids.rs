//! The ids by which the broker recognizes what a command publishes again.

use anyhow::Context;
use client::MessageIds;
use config::NatsSettings;

/// Ids that are the same in every run of a command. Their secret is what an identity has at the broker: `operator`, or the
/// name of a service.
///
/// # Errors
/// If a file with credentials cannot be read.
pub async fn of(settings: &NatsSettings, identity: &str) -> anyhow::Result<MessageIds> {
    let mut secret = settings.url.clone().into_bytes();
    let nkey_file = settings.nkey_file.as_ref().map(|template| template.replace("{name}", identity));
    for file in nkey_file.iter().chain(&settings.credentials_file) {
        let read = tokio::fs::read(file).await;
        secret.extend(read.with_context(|| format!("cannot read {file}"))?);
    }
    Ok(MessageIds::from_secret(&secret))
}
