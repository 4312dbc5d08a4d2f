//! The backstop: messages that were delivered `max_deliver` times and never settled.
//!
//! The server tells so once, in an advisory that a stream keeps. Here each advisory becomes a dead letter, unless
//! the message had its effect after all.

use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{self, AckKind};
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use contract::{DeadClass, RequestSubject, header};
use serde::Deserialize;
use store::Pool;
use store::inbox::{self, Entry};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::dead::{Corpse, DeadLetter, Death};
use crate::decode;
use crate::pull::Puller;
use crate::settings::WorkerSettings;
use crate::stats::Stats;

use std::sync::Arc;

/// The stream that keeps advisories.
pub(crate) const STREAM: &str = "ADVISORY";

/// The durable consumer of a worker's advisories.
pub(crate) fn consumer(worker: &str) -> String {
    format!("{worker}-advisory")
}

/// The part of the server's advisory (`io.nats.jetstream.advisory.v1.max_deliver`) that is needed.
#[derive(Deserialize)]
struct MaxDeliver {
    stream_seq: u64,
    deliveries: u64,
}

/// Turns the advisories of one worker into dead letters.
pub(crate) struct Undertaker {
    pub(crate) worker: &'static str,
    pub(crate) stream: &'static str,
    pub(crate) client: Client,
    pub(crate) jetstream: jetstream::Context,
    pub(crate) pool: Pool,
    pub(crate) stats: Arc<Stats>,
}

const AFTER_ERROR: Duration = Duration::from_secs(5);

impl Undertaker {
    pub(crate) async fn run(self, consumer: PullConsumer, settings: WorkerSettings, stop: CancellationToken) {
        let mut puller = loop {
            match Puller::open(&consumer, &settings).await {
                Ok(puller) => break puller,
                Err(error) => {
                    tracing::warn!(worker = self.worker, %error, "cannot pull advisories; trying again");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(AFTER_ERROR) => {}
            }
        };
        while let Some(advisories) = puller.next(&stop).await {
            for advisory in advisories {
                let settled = match serde_json::from_slice::<MaxDeliver>(&advisory.message.payload) {
                    Ok(max_deliver) => self.bury(&max_deliver).await,
                    Err(error) => {
                        tracing::error!(worker = self.worker, %error, "an advisory cannot be read");
                        Ok(())
                    }
                };
                let kind = match settled {
                    Ok(()) => AckKind::Ack,
                    Err(problem) => {
                        tracing::warn!(worker = self.worker, problem, "an advisory is put off");
                        AckKind::Nak(Some(AFTER_ERROR))
                    }
                };
                if let Err(error) = advisory.message.ack_with(kind).await {
                    tracing::debug!(worker = self.worker, %error, "an advisory is not acknowledged");
                }
            }
        }
    }

    async fn bury(&self, advisory: &MaxDeliver) -> Result<(), String> {
        let stream =
            self.jetstream.get_stream_no_info(self.stream).await.map_err(|error| error.to_string())?;
        let message = match stream.get_raw_message(advisory.stream_seq).await {
            Ok(message) => message,
            Err(error) if error.kind() == jetstream::stream::RawMessageErrorKind::NoMessageFound => {
                tracing::error!(
                    worker = self.worker,
                    sequence = advisory.stream_seq,
                    "an undeliverable message is gone from its stream"
                );
                return Ok(());
            }
            Err(error) => return Err(error.to_string()),
        };
        if self.had_its_effect(&message.subject, &message.headers).await? {
            return Ok(());
        }
        let corpse = Corpse {
            worker: self.worker,
            stream: self.stream,
            sequence: advisory.stream_seq,
            subject: &message.subject,
            headers: Some(&message.headers),
            body: &Bytes::clone(&message.payload),
        };
        let death = Death {
            class: DeadClass::Undeliverable,
            reason: format!(
                "delivered {} times and never settled; a worker may have died of it",
                advisory.deliveries
            ),
            tries: u32::try_from(advisory.deliveries).unwrap_or(u32::MAX),
        };
        let letter = DeadLetter::new(&corpse, &death, self.client.server_info().max_payload);
        let sent = self.jetstream.publish_with_headers(letter.subject, letter.headers, letter.body).await;
        let acknowledged = sent.map_err(|error| error.to_string())?;
        acknowledged.await.map_err(|error| error.to_string())?;
        self.stats.died(DeadClass::Undeliverable);
        Ok(())
    }

    /// Whether the last delivery was committed although it was not acknowledged in time.
    async fn had_its_effect(&self, subject: &str, headers: &HeaderMap) -> Result<bool, String> {
        let Ok(subject) = subject.parse::<RequestSubject>() else { return Ok(false) };
        let Ok(Some(message_id)) = decode::id(Some(headers), header::MESSAGE_ID) else { return Ok(false) };
        let entry = Entry { user_id: subject.user_id.get(), message_id, event_id: Uuid::nil() };
        let mut connection = store::lend(&self.pool).await.map_err(|error| error.to_string())?;
        let found = inbox::event_ids(&mut connection, self.worker, &[entry]).await;
        found.map(|found| !found.is_empty()).map_err(|fault| fault.to_string())
    }
}
