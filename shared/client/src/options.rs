use std::path::PathBuf;
use std::time::Duration;

use async_nats::{ConnectOptions, Event, ServerAddr};
use contract::{Service, limit, without_password};

use crate::error::ClientError;

/// Options of a [`Client`](crate::Client).
#[derive(Clone)]
pub struct ClientOptions {
    /// The URL of the broker, `nats://host:port`; several are separated by commas.
    pub url: String,
    /// The service that publishes and queries.
    pub service: Service,
    /// A file with the seed of the service's nkey; none for a broker without accounts.
    pub nkey_file: Option<PathBuf>,
    /// A PEM file with the CA certificates of the broker. If it is set, connections require TLS.
    pub ca_file: Option<PathBuf>,
    /// A file with the service's payload keys. If it is set, request bodies are encrypted.
    pub payload_ring_file: Option<PathBuf>,
    /// The timeout of [`User::send`](crate::User::send) for an outcome.
    pub outcome_timeout: Duration,
    /// The deadline of queries, enforced by memory-reader.
    pub query_deadline: Duration,
}

/// The timeout for establishing a connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);

impl ClientOptions {
    /// The default options of a service at this URL.
    pub fn new(url: impl Into<String>, service: Service) -> Self {
        Self {
            url: url.into(),
            service,
            nkey_file: None,
            ca_file: None,
            payload_ring_file: None,
            outcome_timeout: Duration::from_secs(30),
            query_deadline: Duration::from_millis(limit::DEADLINE_MS_DEFAULT),
        }
    }

    /// Connects with the nkey and the inbox prefix of the service. A connection that breaks later is restored
    /// automatically.
    pub(crate) async fn connect(&self) -> Result<async_nats::Client, ClientError> {
        let failed = |problem: String| ClientError::Connection { url: without_password(&self.url), problem };
        let mut options = ConnectOptions::new()
            .name(self.service.as_str())
            .custom_inbox_prefix(format!("_INBOX.{}", self.service))
            .connection_timeout(CONNECTION_TIMEOUT)
            .event_callback(log_event);
        if let Some(file) = &self.nkey_file {
            let seed = tokio::fs::read_to_string(file).await;
            let seed =
                seed.map_err(|source| ClientError::File { path: file.display().to_string(), source })?;
            options = options.nkey(seed.trim().to_owned());
        }
        if let Some(file) = &self.ca_file {
            options = options.add_root_certificates(file.clone()).require_tls(true);
        }
        let servers: Vec<ServerAddr> = self
            .url
            .split(',')
            .map(|url| url.trim().parse())
            .collect::<Result<_, _>>()
            .map_err(|error| failed(format!("invalid address: {error}")))?;
        options.connect(servers).await.map_err(|error| failed(error.to_string()))
    }
}

#[allow(clippy::wildcard_enum_match_arm, reason = "async-nats may add events, which are logged as well")]
async fn log_event(event: Event) {
    match event {
        Event::Connected | Event::Closed => tracing::debug!(%event, "NATS connection"),
        // A denied publish is reported only here, before its acknowledgement times out.
        Event::ServerError(error) => tracing::error!(%error, "NATS permission or protocol error"),
        other => tracing::warn!(event = %other, "NATS connection"),
    }
}
