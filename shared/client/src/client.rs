use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use contract::Service;
use tokio::sync::OnceCell;

use crate::error::ClientError;
use crate::message_ids::MessageIds;
use crate::options::ClientOptions;
use crate::outcomes::OutcomeRouter;
use crate::payload_keys::PayloadKeys;
use crate::publisher::{PublisherOptions, jetstream};
use crate::tokens::{NatsTokens, TokenSource};

/// The connection of a service to NATS, with its service tokens. Clones share the connection.
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) connection: async_nats::Client,
    pub(crate) jetstream: Context,
    pub(crate) publishing: PublisherOptions,
    pub(crate) service: Service,
    pub(crate) tokens: Box<dyn TokenSource>,
    pub(crate) payload_keys: PayloadKeys,
    pub(crate) message_ids: MessageIds,
    pub(crate) outcome_timeout: Duration,
    pub(crate) query_deadline_ms: u64,
    /// The subscription to outcomes, created by the first request that waits for one.
    outcomes: OnceCell<OutcomeRouter>,
}

impl Client {
    /// Connects, and requests service tokens from token-issuer when they are needed.
    ///
    /// # Errors
    /// If a file cannot be read, or the broker is unreachable or rejects the service.
    pub async fn connect(options: ClientOptions) -> Result<Self, ClientError> {
        let connection = options.connect().await?;
        let tokens = NatsTokens::new(connection.clone(), options.service.clone());
        Self::over(connection, tokens, &options)
    }

    /// Creates a client over an existing connection, with tokens from another source. The options for connecting are
    /// ignored.
    ///
    /// # Errors
    /// If the payload keys cannot be read.
    pub fn over(
        connection: async_nats::Client,
        tokens: impl TokenSource + 'static,
        options: &ClientOptions,
    ) -> Result<Self, ClientError> {
        let publishing = PublisherOptions::default();
        let shared = Shared {
            jetstream: jetstream(connection.clone(), &publishing),
            connection,
            publishing,
            service: options.service.clone(),
            tokens: Box::new(tokens),
            payload_keys: PayloadKeys::read(options.payload_ring_file.as_deref())?,
            message_ids: MessageIds::random(),
            outcome_timeout: options.outcome_timeout,
            query_deadline_ms: u64::try_from(options.query_deadline.as_millis()).unwrap_or(u64::MAX),
            outcomes: OnceCell::new(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }
}

impl Shared {
    pub(crate) async fn outcomes(&self) -> Result<&OutcomeRouter, ClientError> {
        self.outcomes.get_or_try_init(|| OutcomeRouter::start(&self.connection, &self.service)).await
    }
}
