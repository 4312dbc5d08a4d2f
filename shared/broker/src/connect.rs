//! Connects as a worker, a service or the operator.

use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use config::{NatsSettings, without_password};
use percent_encoding::percent_decode_str;
use tokio_util::sync::CancellationToken;

use crate::relay::Relay;
use crate::servers::{CONNECT_TIMEOUT, Servers};

/// The connection to the broker failed.
#[derive(Debug, thiserror::Error)]
#[error("NATS at {url}: {problem}")]
pub struct ConnectError {
    url: String,
    problem: String,
}

/// Interval at which a silent connection is probed. After the third probe without an answer, 10 to 15 seconds after the last
/// sign of life, the client connects to another server: one whose machine or network fails closes nothing.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// Connects once, as a worker or a service. Its name appears in the server's list of connections, in the inbox prefix
/// (`_INBOX.<name>`) and in the path of its nkey. The client reconnects automatically if the connection breaks.
///
/// # Errors
/// [`ConnectError`] with the address and the cause.
pub async fn connect(settings: &NatsSettings, name: &str) -> Result<Client, ConnectError> {
    connect_as(settings, name, name).await
}

/// Connects once as the operator, for the command with this name.
///
/// # Errors
/// [`ConnectError`] with the address and the cause.
pub async fn connect_operator(settings: &NatsSettings, command: &str) -> Result<Client, ConnectError> {
    connect_as(settings, OPERATOR, command).await
}

/// The operator's identity at the broker.
const OPERATOR: &str = "operator";

/// What an identity alone has at the broker: its key and its credentials, as configured; without either, the address. Something
/// that others must not guess, and that is the same in every process of the identity, can be derived from it.
///
/// # Errors
/// The file that cannot be read.
pub async fn secret_of(settings: &NatsSettings, identity: &str) -> Result<Vec<u8>, String> {
    let mut secret = Vec::new();
    let nkey_file = settings.nkey_file.as_ref().map(|template| template.replace("{name}", identity));
    for file in nkey_file.iter().chain(&settings.credentials_file) {
        let read = tokio::fs::read(file).await;
        secret.extend(read.map_err(|error| format!("cannot read {file}: {error}"))?);
    }
    if secret.is_empty() {
        secret.extend(settings.url.as_bytes());
    }
    Ok(secret)
}

async fn connect_as(settings: &NatsSettings, identity: &str, name: &str) -> Result<Client, ConnectError> {
    let failed = |problem: String| ConnectError { url: without_password(&settings.url), problem };
    let mut options = ConnectOptions::new()
        .name(format!("memfleet {name}"))
        .custom_inbox_prefix(format!("_INBOX.{name}"))
        .ping_interval(PING_INTERVAL)
        // The relay connects to the server meanwhile.
        .connection_timeout(CONNECT_TIMEOUT * 2);
    if let Some(file) = &settings.credentials_file {
        options = options
            .credentials_file(file)
            .await
            .map_err(|error| failed(format!("nats.credentials_file {file}: {error}")))?;
    }
    if let Some(template) = &settings.nkey_file {
        let file = template.replace("{name}", identity);
        let seed = tokio::fs::read_to_string(&file).await;
        let seed = seed.map_err(|error| {
            failed(format!(
                "nats.nkey_file {file}: {error}; `memfleet nats keys` creates a key for each identity"
            ))
        })?;
        options = options.nkey(seed.trim().to_owned());
    }
    let servers: Vec<ServerAddr> = settings
        .url
        .split(',')
        .map(|url| url.trim().parse())
        .collect::<Result<_, _>>()
        .map_err(|error| failed(format!("nats.url is invalid: {error}")))?;
    // The client parses the user information of an address but does not send it.
    if let Some((user, password)) = servers.iter().find_map(user_information) {
        options = options.user_and_password(user, password);
    }
    let websocket = servers.iter().find(|address| address.is_websocket());
    if let Some(address) = websocket {
        return Err(failed(format!("nats.url is invalid: {}:// is not supported", address.scheme())));
    }
    let relay = Relay::start(Servers::new(servers, settings.ca_file.as_deref())).await.map_err(&failed)?;
    let closed = relay.closed.clone();
    options = options.event_callback(move |event| handle_event(event, closed.clone()));
    let ending = relay.closed.clone().drop_guard();
    let client = options.connect(relay.address.to_string()).await;
    let client = client.map_err(|error| failed(error.to_string()))?;
    ending.disarm();
    Ok(client)
}

/// The user and password of an address, percent-decoded.
fn user_information(address: &ServerAddr) -> Option<(String, String)> {
    let decoded =
        |part: Option<&str>| percent_decode_str(part.unwrap_or_default()).decode_utf8_lossy().into_owned();
    address.has_user_pass().then(|| (decoded(address.username()), decoded(address.password())))
}

#[allow(clippy::wildcard_enum_match_arm, reason = "the client's enumeration; new variants are logged")]
async fn handle_event(event: Event, relay_closed: CancellationToken) {
    match event {
        Event::Connected => tracing::debug!(%event, "NATS connection"),
        Event::Closed => {
            tracing::debug!(%event, "NATS connection");
            relay_closed.cancel();
        }
        // The server reports a denied publish only here; its acknowledgement merely times out.
        Event::ServerError(error) => tracing::error!(%error, "NATS server error"),
        other => tracing::warn!(event = %other, "NATS connection"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::user_information;

    #[test]
    fn user_information_is_percent_decoded() {
        let of = |url: &str| user_information(&url.parse().unwrap());
        assert_eq!(of("nats://u:p%40s%3As%C3%A4@h:4222"), Some(("u".to_owned(), "p@s:s\u{e4}".to_owned())));
        assert_eq!(of("nats://h:4222"), None);
    }
}
