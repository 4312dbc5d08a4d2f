//! Publishes many requests, and waits until workers in this process have committed them.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use async_nats::Client;
use bytes::Bytes;
use cli::tokens::Tokens;
use client::{PayloadKeys, Published, Publisher, PublisherOptions};
use config::Settings;
use runtime::{Stats, broker};
use tokio::time::sleep;
use uuid::Uuid;

/// A message to publish.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    pub(crate) subject: String,
    pub(crate) id: Uuid,
    pub(crate) body: Bytes,
}

/// Publishes as the operator, with a token for the service and user of each subject.
pub(crate) struct Bulk {
    client: Client,
    payload_keys: PayloadKeys,
    tokens: Tokens,
}

impl Bulk {
    pub(crate) async fn open(settings: &Settings) -> anyhow::Result<Self> {
        Ok(Self {
            client: broker::connect_operator(&settings.nats, "bench").await?,
            payload_keys: PayloadKeys::read(settings.trust.payload_ring_file.as_deref().map(Path::new))?,
            tokens: Tokens::open(settings, None).await?,
        })
    }

    /// The connection.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The tokens of its messages.
    pub(crate) fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    pub(crate) fn publisher(&self) -> Publisher {
        let publisher = Publisher::new(self.client.clone(), PublisherOptions::default());
        publisher.with_payload_keys(self.payload_keys.clone())
    }

    /// Publishes one message. Waits only if too many are in flight.
    pub(crate) async fn send(&self, publisher: &mut Publisher, message: Prepared) -> anyhow::Result<()> {
        let token = self.tokens.of(&message.subject).await?;
        publisher.send(message.subject, message.id, message.body, token).await;
        Ok(())
    }

    /// Publishes messages and waits until JetStream has stored them.
    pub(crate) async fn publish(&self, messages: impl IntoIterator<Item = Prepared>) -> anyhow::Result<()> {
        let mut publisher = self.publisher();
        for message in messages {
            self.send(&mut publisher, message).await?;
        }
        stored(&publisher.finish().await)
    }
}

/// Returns an error if a message was not stored.
pub(crate) fn stored(published: &Published) -> anyhow::Result<()> {
    let Published { refused, reasons, .. } = published;
    ensure!(*refused == 0, "the broker refused {refused} messages: {}", reasons.join("; "));
    Ok(())
}

const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Waits until workers in this process have settled `count` messages. Fails if there is no progress for `stuck_after`.
pub(crate) async fn until_settled(
    stats: &[Arc<Stats>],
    count: u64,
    stuck_after: Duration,
) -> anyhow::Result<()> {
    let (mut progress_at, mut seen) = (Instant::now(), 0);
    loop {
        let mut settled = 0;
        for report in stats.iter().map(|stats| stats.report()) {
            ensure!(report.dead.is_empty(), "messages were dead-lettered: {:?}", report.dead);
            settled += report.applied + report.unchanged + report.repeated;
        }
        if settled >= count {
            return Ok(());
        }
        if settled != seen {
            (progress_at, seen) = (Instant::now(), settled);
        }
        ensure!(
            progress_at.elapsed() < stuck_after,
            "{settled} of {count} messages were committed, then none for {} s; see the workers' log",
            stuck_after.as_secs()
        );
        sleep(POLL_INTERVAL).await;
    }
}
