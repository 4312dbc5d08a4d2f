//! Anchors: the hashes of seals in a NATS stream that denies deletion. A database administrator could delete the last
//! seals together with the rows that they cover; the anchors reveal it.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, consumer, context::PublishErrorKind, stream::LastRawMessageErrorKind};
use chrono::{DateTime, TimeDelta, Utc};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use trust::text::to_hex;

use crate::AuditError;
use crate::digest::Digest;
use crate::seal::Statement;
use trust::text::from_hex;

/// The stream, configured in `nats/streams/SEAL.json`.
pub const STREAM: &str = "SEAL";
/// Its subjects: `memory.seal.<number>`.
const SUBJECTS: &str = "memory.seal.>";
/// The timeout for the next message of the stream.
const NEXT_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// How old a seal may become without an anchor, as long as no later one has any. The sealer anchors a seal when it writes it,
/// and writes no other one before it has: only the last seal can be without an anchor, while NATS is away. A sealer that finds
/// NATS again anchors it at its next interval, of at most an hour.
const ANCHORED_WITHIN: TimeDelta = TimeDelta::hours(1);

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

/// The anchors of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// The hashes of seals by number. A message that is not an anchor has a hash of zeros, which no seal has.
    pub(crate) hashes: BTreeMap<i64, Digest>,
    /// How long the stream keeps an anchor; none without a limit.
    kept_for: Option<TimeDelta>,
}

impl Known {
    /// The number of the last anchored seal.
    pub(crate) fn last(&self) -> Option<i64> {
        self.hashes.keys().next_back().copied()
    }

    /// What is wrong with the anchor of a genuine seal.
    pub(crate) fn fault(&self, statement: &Statement, now: DateTime<Utc>) -> Option<String> {
        match self.hashes.get(&statement.number) {
            Some(hash) if *hash != statement.hash() => {
                Some("NATS has an anchor of another seal with this number".to_owned())
            }
            Some(_) => None,
            None if self.is_overdue(statement, now) => Some(
                "NATS has no anchor of it: it was kept from the sealer, or no sealer has run since (`memfleet audit seal` \
                 anchors the last seal)"
                    .to_owned(),
            ),
            None => None,
        }
    }

    fn is_overdue(&self, statement: &Statement, now: DateTime<Utc>) -> bool {
        let age = now - statement.sealed_at;
        let is_gone = self.kept_for.is_some_and(|kept_for| age > kept_for);
        !is_gone && (age > ANCHORED_WITHIN || self.last().is_some_and(|last| last > statement.number))
    }
}

impl Anchor {
    /// None if it is no anchor.
    fn read(payload: &[u8]) -> Option<(i64, Digest)> {
        let anchor: Self = serde_json::from_slice(payload).ok()?;
        Some((anchor.number, from_hex(&anchor.hash)?.try_into().ok()?))
    }
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

    /// The last anchored seal.
    pub(crate) async fn last(&self) -> Result<Option<(i64, Digest)>, AuditError> {
        self.last_of(SUBJECTS).await
    }

    /// The hash of the seal that was anchored with this number.
    pub(crate) async fn of(&self, number: i64) -> Result<Option<Digest>, AuditError> {
        Ok(self.last_of(&format!("memory.seal.{number}")).await?.map(|(_, hash)| hash))
    }

    /// The last anchor on a subject.
    async fn last_of(&self, subject: &str) -> Result<Option<(i64, Digest)>, AuditError> {
        match self.stream().await?.get_last_raw_message_by_subject(subject).await {
            Ok(message) => {
                let anchor = Anchor::read(&message.payload);
                Ok(Some(anchor.ok_or_else(|| failed("its last message is not the anchor of a seal"))?))
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Anchors a seal. An existing anchor of the same number is kept; of another seal, it is an error.
    pub(crate) async fn publish(&self, statement: &Statement) -> Result<(), AuditError> {
        let (number, hash) = (statement.number, statement.hash());
        let subject = format!("memory.seal.{number}");
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
        let body = serde_json::to_vec(&Anchor { number, hash: to_hex(&hash) }).map_err(failed)?;
        let sent = self.jetstream.publish_with_headers(subject.clone(), headers, body.into());
        match sent.await.map_err(failed)?.await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => {
                match self.last_of(&subject).await? {
                    Some((_, existing)) if existing != hash => Err(AuditError::other_anchor(number)),
                    Some(_) | None => Ok(()),
                }
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// All anchors.
    pub(crate) async fn read(&self) -> Result<Known, AuditError> {
        let stream = self.stream().await?;
        let kept_for = TimeDelta::from_std(stream.cached_info().config.max_age).ok();
        let mut known =
            Known { kept_for: kept_for.filter(|kept_for| !kept_for.is_zero()), ..Known::default() };
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
            let hash = Anchor::read(&message.payload).map(|(_, hash)| hash).unwrap_or_default();
            known.hashes.insert(number.unwrap_or_default(), hash);
            if sequence >= last {
                return Ok(known);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn only_the_last_seal_may_be_without_an_anchor_and_not_for_long() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap_or_default();
        let seal =
            |number: i64, age: TimeDelta| Statement::new(number, [0; 32], (1, Uuid::nil()), &[], now - age);
        let known = |numbers: &[i64]| Known {
            hashes: numbers.iter().map(|number| (*number, [0; 32])).collect(),
            kept_for: Some(TimeDelta::days(365)),
        };
        let minute = TimeDelta::minutes(1);
        for (anchored, statement, expected) in [
            (known(&[1]), seal(2, minute), false),
            (known(&[1]), seal(2, ANCHORED_WITHIN), false),
            (known(&[1]), seal(2, ANCHORED_WITHIN + minute), true),
            (known(&[]), seal(1, TimeDelta::days(364)), true),
            (known(&[]), seal(1, TimeDelta::days(366)), false),
            (known(&[1, 3]), seal(2, minute), true),
            (known(&[3]), seal(2, TimeDelta::days(366)), false),
        ] {
            assert_eq!(anchored.fault(&statement, now).is_some(), expected, "{anchored:?} {statement:?}");
        }
        let fault = known(&[2]).fault(&seal(2, minute), now);
        assert_eq!(fault.as_deref(), Some("NATS has an anchor of another seal with this number"));
        let mut exact = known(&[]);
        exact.hashes.insert(2, seal(2, minute).hash());
        assert_eq!(exact.fault(&seal(2, minute), now), None);
    }
}
