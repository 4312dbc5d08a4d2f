use std::path::PathBuf;
use std::time::Duration;

use async_nats::{ConnectOptions, Event, ServerAddr};
use contract::{Service, limit};

use crate::error::ClientError;

/// How a [`Client`](crate::Client) connects and works.
#[derive(Clone)]
pub struct ClientOptions {
    /// `nats://host:port`, several separated by commas.
    pub url: String,
    /// The service that publishes and asks.
    pub service: Service,
    /// The file with the seed of the service's nkey; none for a broker without accounts.
    pub nkey_file: Option<PathBuf>,
    /// The file with the certificates that sign the broker's, in PEM. With it, connections are encrypted or fail.
    pub ca_file: Option<PathBuf>,
    /// The file with the service's payload keys. With it, the bodies of requests travel encrypted.
    pub payload_ring_file: Option<PathBuf>,
    /// How long [`User::send`](crate::User::send) waits for an outcome.
    pub outcome_timeout: Duration,
    /// How long memory-reader may take for a query.
    pub query_deadline: Duration,
}

/// How long a connection may take to come up.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);

impl ClientOptions {
    /// A service at a broker, with the usual limits.
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

    /// Connects with the nkey and the inbox prefix of the service. A connection that breaks later is restored by itself.
    pub(crate) async fn connect(&self) -> Result<async_nats::Client, ClientError> {
        let failed = |problem: String| ClientError::Connection { url: self.url.clone(), problem };
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
            .map_err(|error| failed(format!("no address: {error}")))?;
        options.connect(servers).await.map_err(|error| failed(error.to_string()))
    }
}

#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "the enumeration of async-nats; new events are worth a line"
)]
async fn log_event(event: Event) {
    match event {
        Event::Connected | Event::Closed => tracing::debug!(%event, "NATS connection"),
        // A denied publish is reported here only, before its acknowledgement times out.
        Event::ServerError(error) => tracing::error!(%error, "NATS permission or protocol error"),
        other => tracing::warn!(event = %other, "NATS connection"),
    }
}
