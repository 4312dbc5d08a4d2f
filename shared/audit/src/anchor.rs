//! Anchors: the hashes of seals in a NATS stream that denies deletion. A database administrator could delete the last
//! seals together with the rows that they cover; the anchors reveal it.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, consumer, context::PublishErrorKind, stream::LastRawMessageErrorKind};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use trust::text::to_hex;

use crate::AuditError;
use crate::digest::Digest;
use trust::text::from_hex;

/// The stream, configured in `nats/streams/SEAL.json`.
pub const STREAM: &str = "SEAL";
/// Its subjects: `memory.seal.<number>`.
const SUBJECTS: &str = "memory.seal.>";
/// The timeout for the next message of the stream.
const NEXT_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// The body of an anchor message.
#[derive(Debug, Serialize, Deserialize)]
struct Anchor {
    number: i64,
    hash: String,
}

/// The stream of anchors.
#[derive(Clone, Debug)]
pub struct Anchors {
    jetstream: jetstream::Context,
}

fn failed(problem: impl ToString) -> AuditError {
    AuditError::Anchor { problem: problem.to_string() }
}

impl Anchors {
    /// The anchors on this NATS server.
    pub fn new(jetstream: jetstream::Context) -> Self {
        Self { jetstream }
    }

    async fn stream(&self) -> Result<jetstream::stream::Stream, AuditError> {
        self.jetstream
            .get_stream(STREAM)
            .await
            .map_err(|error| failed(format!("{error}; `memfleet nats apply` creates it")))
    }

    /// The number of the last anchored seal; 0 if there is none.
    pub(crate) async fn last(&self) -> Result<i64, AuditError> {
        match self.stream().await?.get_last_raw_message_by_subject(SUBJECTS).await {
            Ok(message) => Ok(serde_json::from_slice::<Anchor>(&message.payload).map_err(failed)?.number),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(0),
            Err(error) => Err(failed(error)),
        }
    }

    /// Anchors a seal. An existing anchor of the same number is kept.
    pub(crate) async fn publish(&self, number: i64, hash: &Digest) -> Result<(), AuditError> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
        let body = serde_json::to_vec(&Anchor { number, hash: to_hex(hash) }).map_err(failed)?;
        let sent = self
            .jetstream
            .publish_with_headers(format!("memory.seal.{number}"), headers, body.into())
            .await
            .map_err(failed)?;
        match sent.await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    /// All anchored hashes by seal number. A message that is not an anchor yields a hash of zeros, which no seal has.
    pub(crate) async fn read(&self) -> Result<BTreeMap<i64, Digest>, AuditError> {
        let mut known = BTreeMap::new();
        let stream = self.stream().await?;
        let state = &stream.cached_info().state;
        let (last, messages) = (state.last_sequence, state.messages);
        if messages == 0 {
            return Ok(known);
        }
        let config =
            consumer::pull::OrderedConfig { filter_subject: SUBJECTS.to_owned(), ..Default::default() };
        let consumer = stream.create_consumer(config).await.map_err(failed)?;
        let mut messages = consumer.messages().await.map_err(failed)?;
        loop {
            let next = tokio::time::timeout(NEXT_MESSAGE_TIMEOUT, messages.next()).await;
            let message = match next {
                Ok(Some(message)) => message.map_err(failed)?,
                Ok(None) => return Err(failed("the consumer ended before the last message")),
                Err(_) => {
                    return Err(failed(format!(
                        "no message arrived within {} s",
                        NEXT_MESSAGE_TIMEOUT.as_secs()
                    )));
                }
            };
            let sequence = message.info().map_err(failed)?.stream_sequence;
            let number = message.subject.rsplit('.').next().and_then(|number| number.parse().ok());
            let anchor = serde_json::from_slice::<Anchor>(&message.payload).ok();
            let hash = anchor.and_then(|anchor| from_hex(&anchor.hash)?.try_into().ok()).unwrap_or_default();
            known.insert(number.unwrap_or_default(), hash);
            if sequence >= last {
                return Ok(known);
            }
        }
    }
}
