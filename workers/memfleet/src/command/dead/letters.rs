//! Reads and deletes dead letters of the stream DEAD.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use contract::{DeadLetterSummary, WORKERS, has_ticks, header, printable};
use futures::TryStreamExt;
use runtime::broker::{self, StoredMessage, StoredMessageError};
use runtime::delivery::dead_letter::{STILL_AT, carried};
use uuid::Uuid;

use super::time_of;

/// The stream of dead letters.
pub(super) const STREAM: &str = "DEAD";

/// A dead letter. Its body is empty if only headers were fetched.
#[derive(Clone, Debug)]
pub(super) struct Letter {
    pub(super) sequence: u64,
    pub(super) subject: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) died_at: Option<DateTime<Utc>>,
}

impl Letter {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.as_str())
    }

    pub(super) fn worker(&self) -> &str {
        self.subject.split('.').nth(2).unwrap_or("")
    }

    pub(super) fn user(&self) -> &str {
        self.subject.rsplit('.').next().unwrap_or("")
    }

    /// The stream and sequence number of the message, if its body was not copied to DEAD: it was too large, or beyond the
    /// share of its service.
    pub(super) fn left_behind(&self) -> Option<(&str, u64)> {
        let is_left = self.body.is_empty() && self.header(header::DEAD_REASON).contains(STILL_AT);
        self.source().filter(|_| is_left)
    }

    /// The stream and sequence number of the message.
    pub(super) fn source(&self) -> Option<(&str, u64)> {
        let (stream, sequence) = self.header(header::DEAD_SOURCE).split_once('/')?;
        Some((stream, sequence.parse().ok()?))
    }

    /// Whether its worker takes messages from this stream.
    fn may_come_from(&self, stream: &str) -> bool {
        let mut workers = WORKERS.iter().filter(|worker| worker.name == self.worker());
        has_ticks(stream) || workers.any(|worker| worker.stream == Some(stream))
    }

    /// Takes the body and the headers of its message.
    fn complete(&mut self, original: StoredMessage) {
        self.body = original.body;
        let mut headers = carried(Some(&original.headers));
        // Which request it is says the message, not the letter.
        let id = header::request_id(|name| original.headers.get(name).map(HeaderValue::as_str));
        if let Some((_, id)) = id {
            headers.insert(header::DEAD_REQUEST_ID, id);
        }
        for (name, values) in self.headers.iter() {
            let lower = name.to_string().to_ascii_lowercase();
            if lower == header::DEAD_REQUEST_ID.to_ascii_lowercase() {
                continue;
            }
            if lower.starts_with("memfleet-dead-") || lower == header::MESSAGE_ID.to_ascii_lowercase() {
                for value in values {
                    headers.append(name.clone(), value.clone());
                }
            }
        }
        self.headers = headers;
    }

    /// The id of its request, if it has one.
    pub(super) fn request_id(&self) -> Option<Uuid> {
        let own = header::request_id(|name| self.headers.get(name).map(HeaderValue::as_str));
        let told = self.headers.get(header::DEAD_REQUEST_ID).map(HeaderValue::as_str);
        // The header Nats-Msg-Id of a dead letter is its own id.
        let own = own.filter(|(name, _)| *name == header::REQUEST_ID).map(|(_, id)| id);
        Uuid::try_parse(own.or(told)?).ok()
    }

    /// The id under which its request is published again. It is derived from the place of its message, so that replaying a
    /// message twice has a single effect, whichever dead letter tells of it.
    pub(super) fn replay_id(&self) -> anyhow::Result<Uuid> {
        let (stream, sequence) = self.source().context("it does not name its message")?;
        let name = format!("{} {stream}/{sequence} replay", self.worker());
        Ok(Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()))
    }

    /// The subject and headers to publish the request again, without an id: the stream would drop the old one as a duplicate.
    pub(super) fn to_replay(&self) -> anyhow::Result<(String, HeaderMap)> {
        let subject = self.header(header::DEAD_SUBJECT);
        anyhow::ensure!(!subject.is_empty(), "the dead letter lacks its original subject");
        let mut headers = HeaderMap::new();
        for (name, values) in self.headers.iter() {
            let lower = name.to_string().to_ascii_lowercase();
            let is_id = lower == header::REQUEST_ID.to_ascii_lowercase();
            if !is_id && !lower.starts_with("nats-") && !lower.starts_with("memfleet-dead-") {
                for value in values {
                    headers.append(name.clone(), value.clone());
                }
            }
        }
        Ok((subject.to_owned(), headers))
    }
}

/// The stream of dead letters.
pub(super) struct Letters {
    pub(super) jetstream: jetstream::Context,
    stream: Stream,
}

/// The messages that one dead letter lists.
#[derive(Debug)]
pub(super) struct Listed {
    /// The subject of the dead letter.
    subject: String,
    class: String,
    pub(super) service: Option<String>,
    pub(super) stream: String,
    pub(super) sequences: Vec<u64>,
}

/// Maximum number of messages in a list. Workers list 1,000.
const MAX_LISTED: u64 = 10_000;
/// Dead letters per fetch.
const BATCH: usize = 500;
/// Time limit of a fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

impl Letters {
    pub(super) async fn open(jetstream: jetstream::Context) -> anyhow::Result<Self> {
        let stream = jetstream.get_stream(STREAM).await;
        let stream = stream
            .with_context(|| format!("cannot open the stream {STREAM}; `memfleet nats apply` creates it"))?;
        Ok(Self { jetstream, stream })
    }

    /// The dead letter with its body; `None` if no dead letter has that sequence number.
    pub(super) async fn get(&self, sequence: u64) -> anyhow::Result<Option<Letter>> {
        match self.stream.get_raw_message(sequence).await {
            Ok(message) => Ok(Some(Letter {
                sequence: message.sequence,
                subject: message.subject.to_string(),
                died_at: time_of(message.time.unix_timestamp_nanos()),
                headers: message.headers,
                body: message.payload,
            })),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read dead letter {sequence}")),
        }
    }

    /// Compares a letter with its message, and takes body and headers from there. Only its service can have published the
    /// message, but the letter may be of a worker that was taken over.
    pub(super) async fn verify(&self, letter: &mut Letter, unverified: bool) -> anyhow::Result<()> {
        let (stream, sequence) = letter.source().context("it does not name its message")?;
        let place = format!("{}/{sequence}", printable(stream));
        ensure!(letter.may_come_from(stream), "its worker takes no messages from {place}: it is forged");
        let original = match broker::stored_message(&self.jetstream, stream, sequence).await {
            Ok(original) => original,
            Err(StoredMessageError::NotFound { .. }) if unverified && letter.left_behind().is_none() => {
                return Ok(());
            }
            Err(StoredMessageError::NotFound { .. }) => bail!(
                "its message {place} is no longer there to compare it with; inspect it, and pass --unverified to \
                 replay what was copied of it"
            ),
            Err(error @ StoredMessageError::Failed { .. }) => return Err(error.into()),
        };
        let is_same = original.subject == letter.header(header::DEAD_SUBJECT)
            && (letter.left_behind().is_some() || original.body == letter.body);
        ensure!(is_same, "it is not about its message {place}: it is forged, or NATS lost data");
        letter.complete(original);
        Ok(())
    }

    /// The messages that a dead letter lists, each as a dead letter of its own. `None` if it lists none.
    pub(super) fn listed(&self, list: &Letter) -> anyhow::Result<Option<Listed>> {
        // Workers publish lists under no user, and no message's own dead letter there unless its subject is malformed.
        let is_list = list.user() == "none" && list.header(header::DEAD_SUBJECT).is_empty();
        if list.header(header::DEAD_COUNT).is_empty() || !is_list {
            return Ok(None);
        }
        let DeadLetterSummary { service, stream, ranges } =
            serde_json::from_slice(&list.body).context("its body is no list of messages")?;
        ensure!(
            list.may_come_from(&stream),
            "its worker takes no messages from {}: it is forged",
            printable(&stream)
        );
        let count = ranges
            .iter()
            .try_fold(0_u64, |sum, (first, last)| sum.checked_add(last.checked_sub(*first)?.checked_add(1)?));
        let is_bounded = count.is_some_and(|count| count <= MAX_LISTED);
        ensure!(is_bounded, "it lists more than {MAX_LISTED} messages: it is forged");
        let sequences = ranges.into_iter().flat_map(|(first, last)| first..=last).collect();
        Ok(Some(Listed {
            subject: list.subject.clone(),
            class: list.header(header::DEAD_CLASS).to_owned(),
            service,
            stream,
            sequences,
        }))
    }

    /// A message that is listed.
    pub(super) async fn of_list(&self, listed: &Listed, sequence: u64) -> Result<Letter, StoredMessageError> {
        let original = broker::stored_message(&self.jetstream, &listed.stream, sequence).await?;
        let mut headers = HeaderMap::new();
        headers.insert(header::DEAD_SUBJECT, original.subject.as_str());
        headers.insert(header::DEAD_SOURCE, format!("{}/{sequence}", listed.stream));
        headers.insert(header::DEAD_CLASS, listed.class.as_str());
        let subject = listed.subject.clone();
        let mut letter = Letter { sequence, subject, headers, body: Bytes::new(), died_at: None };
        letter.complete(original);
        Ok(letter)
    }

    /// Deletes a dead letter. Returns false if it no longer exists.
    pub(super) async fn delete(&self, sequence: u64) -> anyhow::Result<bool> {
        match self.stream.delete_message(sequence).await {
            Ok(_) => Ok(true),
            // The server has no specific error code for a missing message.
            Err(error) => match self.stream.get_raw_message(sequence).await {
                Err(gone) if gone.kind() == RawMessageErrorKind::NoMessageFound => Ok(false),
                Ok(_) | Err(_) => Err(error).with_context(|| format!("cannot delete dead letter {sequence}")),
            },
        }
    }

    /// Calls `each` for all current dead letters, oldest first and without bodies. Those added during the scan are
    /// skipped, so that it terminates.
    pub(super) async fn scan(
        &self,
        worker: Option<&str>,
        mut each: impl FnMut(Letter),
    ) -> anyhow::Result<()> {
        let state = self.stream.get_info().await.context("cannot read the stream DEAD")?.state;
        if state.messages == 0 {
            return Ok(());
        }
        let config = pull::Config {
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::None,
            filter_subject: worker
                .map_or_else(|| "memory.dead.>".to_owned(), |name| format!("memory.dead.{name}.*")),
            headers_only: true,
            memory_storage: true,
            inactive_threshold: FETCH_TIMEOUT * 3,
            ..Default::default()
        };
        let consumer = self.stream.create_consumer(config).await.context("cannot read the dead letters")?;
        let name = consumer.cached_info().name.clone();
        let read = self.read_all(&consumer, state.last_sequence, &mut each).await;
        // If this fails, the server deletes the consumer once it is inactive.
        if let Err(error) = self.stream.delete_consumer(&name).await {
            tracing::debug!(%error, "cannot delete the temporary consumer of dead letters; it will expire");
        }
        read
    }

    async fn read_all(
        &self,
        consumer: &PullConsumer,
        last_sequence: u64,
        each: &mut impl FnMut(Letter),
    ) -> anyhow::Result<()> {
        loop {
            let batch = consumer.fetch().max_messages(BATCH).messages().await?;
            let fetched = tokio::time::timeout(
                FETCH_TIMEOUT,
                batch.map_err(anyhow::Error::from_boxed).try_collect::<Vec<_>>(),
            );
            let fetched = fetched
                .await
                .with_context(|| format!("no dead letters received for {} s", FETCH_TIMEOUT.as_secs()))??;
            if fetched.is_empty() {
                return Ok(());
            }
            for message in fetched {
                let info = message.info().map_err(anyhow::Error::from_boxed)?;
                let (sequence, died_at) =
                    (info.stream_sequence, time_of(info.published.unix_timestamp_nanos()));
                if sequence > last_sequence {
                    return Ok(());
                }
                each(Letter {
                    sequence,
                    subject: message.subject.to_string(),
                    died_at,
                    headers: message.headers.clone().unwrap_or_default(),
                    body: Bytes::new(),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use runtime::delivery::dead_letter::{DeadLetter, DeadLetterReason, FailedMessage};

    use super::*;

    fn letter(body: &Bytes, max_payload: usize) -> Letter {
        let mut headers = HeaderMap::new();
        headers.insert(header::MESSAGE_ID, "0192f0c4-7b1e-7c3a-9d7e-5a1f0c2b3d4e");
        headers.insert(header::REQUEST_ID, "0192f0c4-7b1e-7c3a-9d7e-5a1f0c2b3d4f");
        headers.insert(header::TRACEPARENT, "00-1-2-01");
        let subject = "memory.req.simple-chat.context.put.42";
        let message = FailedMessage {
            worker: "context-writer",
            id_namespace: Uuid::NAMESPACE_OID,
            stream: "CONTEXT",
            sequence: 7,
            subject,
            headers: Some(&headers),
            body,
        };
        let reason = DeadLetterReason {
            class: contract::DeadLetterClass::MissingPrerequisite,
            reason: "no session".to_owned().into(),
            tries: 8,
        };
        let dead = DeadLetter::new(&message, &reason, max_payload);
        Letter {
            sequence: 1,
            subject: dead.subject.to_string(),
            headers: dead.headers,
            body: dead.body,
            died_at: None,
        }
    }

    #[test]
    fn a_replayed_request_has_a_new_and_stable_id() {
        let dead = letter(&Bytes::from_static(b"{}"), 1 << 20);
        assert_eq!((dead.worker(), dead.user(), dead.left_behind()), ("context-writer", "42", None));
        let (subject, headers) = dead.to_replay().unwrap();
        assert_eq!(subject, "memory.req.simple-chat.context.put.42");
        let mut names: Vec<String> = headers.iter().map(|(name, _)| name.to_string()).collect();
        names.sort();
        assert_eq!(names, [header::TRACEPARENT]);
        let own = "0192f0c4-7b1e-7c3a-9d7e-5a1f0c2b3d4f";
        assert_eq!(dead.request_id().map(|id| id.to_string()).as_deref(), Some(own));
        let id = dead.replay_id().unwrap();
        assert_eq!(id, dead.replay_id().unwrap());
        assert_ne!(id.to_string(), own);
    }

    #[test]
    fn a_body_too_large_to_copy_is_detected() {
        let dead = letter(&Bytes::from(vec![b'x'; 40_000]), 20_000);
        assert_eq!(dead.left_behind(), Some(("CONTEXT", 7)));
    }
}
