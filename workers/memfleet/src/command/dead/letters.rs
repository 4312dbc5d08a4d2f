//! Dead letters as the stream DEAD holds them.

use std::time::Duration;

use anyhow::Context;
use async_nats::HeaderMap;
use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use contract::header;
use futures::TryStreamExt;
use uuid::Uuid;

use super::time_of;

/// The stream of dead letters.
pub(super) const STREAM: &str = "DEAD";

/// A dead letter. Its body is empty where only headers were asked for.
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

    /// Where the body stayed, if it was too large to move.
    pub(super) fn left_behind(&self) -> Option<&str> {
        let reason = self.header(header::DEAD_REASON);
        (self.body.is_empty() && reason.contains("; too large to move, ")).then_some(reason)
    }

    /// The request as it was published, under an id of its own: the stream would take the old one for a repeat.
    /// The same dead letter always gives the same id, so replaying it twice has one effect.
    pub(super) fn revived(&self) -> anyhow::Result<(String, HeaderMap)> {
        let subject = self.header(header::DEAD_SUBJECT);
        anyhow::ensure!(!subject.is_empty(), "it does not say where it was published");
        let mut headers = HeaderMap::new();
        for (name, values) in self.headers.iter() {
            let lower = name.to_string().to_ascii_lowercase();
            if !lower.starts_with("nats-") && !lower.starts_with("memfleet-dead-") {
                for value in values {
                    headers.append(name.clone(), value.clone());
                }
            }
        }
        let own = Uuid::try_parse(self.header(header::MESSAGE_ID)).unwrap_or_else(|_| {
            Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{STREAM}/{}", self.sequence).as_bytes())
        });
        headers.insert(header::MESSAGE_ID, Uuid::new_v5(&own, b"replay").to_string());
        Ok((subject.to_owned(), headers))
    }
}

/// The stream of dead letters.
pub(super) struct Letters {
    pub(super) jetstream: jetstream::Context,
    stream: Stream,
}

/// How many are fetched at once, and how long that may take.
const BATCH: usize = 500;
const PATIENCE: Duration = Duration::from_secs(10);

impl Letters {
    pub(super) async fn open(jetstream: jetstream::Context) -> anyhow::Result<Self> {
        let stream = jetstream.get_stream(STREAM).await;
        let stream =
            stream.with_context(|| format!("there is no stream {STREAM}; `memfleet nats apply` makes it"))?;
        Ok(Self { jetstream, stream })
    }

    /// The whole dead letter; none if there is none with that sequence.
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
            Err(error) => Err(error).with_context(|| format!("dead letter {sequence} cannot be read")),
        }
    }

    /// Deletes a dead letter. False if it was gone before.
    pub(super) async fn delete(&self, sequence: u64) -> anyhow::Result<bool> {
        match self.stream.delete_message(sequence).await {
            Ok(_) => Ok(true),
            // The server has no code of its own for a message that is not there.
            Err(error) => match self.stream.get_raw_message(sequence).await {
                Err(gone) if gone.kind() == RawMessageErrorKind::NoMessageFound => Ok(false),
                Ok(_) | Err(_) => {
                    Err(error).with_context(|| format!("dead letter {sequence} cannot be deleted"))
                }
            },
        }
    }

    /// Shows every dead letter there is now, oldest first and without bodies. Those that come meanwhile are left
    /// out, so that this ends.
    pub(super) async fn scan(
        &self,
        worker: Option<&str>,
        mut each: impl FnMut(Letter),
    ) -> anyhow::Result<()> {
        let state = self.stream.get_info().await.context("the stream of dead letters cannot be asked")?.state;
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
            inactive_threshold: PATIENCE * 3,
            ..Default::default()
        };
        let consumer =
            self.stream.create_consumer(config).await.context("the dead letters cannot be read")?;
        let name = consumer.cached_info().name.clone();
        let read = self.read_all(&consumer, state.last_sequence, &mut each).await;
        // If this fails, it goes by itself once it is inactive.
        if let Err(error) = self.stream.delete_consumer(&name).await {
            tracing::debug!(%error, "the consumer that read the dead letters stays for a while");
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
                PATIENCE,
                batch.map_err(anyhow::Error::from_boxed).try_collect::<Vec<_>>(),
            );
            let fetched = fetched
                .await
                .with_context(|| format!("the broker sent no dead letters for {} s", PATIENCE.as_secs()))??;
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
        headers.insert(header::TRACEPARENT, "00-1-2-01");
        let subject = "memory.req.simple-chat.context.put.42";
        let corpse = FailedMessage {
            worker: "context-writer",
            stream: "CONTEXT",
            sequence: 7,
            subject,
            headers: Some(&headers),
            body,
        };
        let death = DeadLetterReason {
            class: contract::DeadLetterClass::MissingPrerequisite,
            reason: "no session".to_owned(),
            tries: 8,
        };
        let dead = DeadLetter::new(&corpse, &death, max_payload);
        Letter {
            sequence: 1,
            subject: dead.subject.to_string(),
            headers: dead.headers,
            body: dead.body,
            died_at: None,
        }
    }

    #[test]
    fn a_revived_request_is_the_one_that_died_under_another_id() {
        let dead = letter(&Bytes::from_static(b"{}"), 1 << 20);
        assert_eq!((dead.worker(), dead.user(), dead.left_behind()), ("context-writer", "42", None));
        let (subject, headers) = dead.revived().unwrap();
        assert_eq!(subject, "memory.req.simple-chat.context.put.42");
        let mut names: Vec<String> = headers.iter().map(|(name, _)| name.to_string()).collect();
        names.sort();
        assert_eq!(names, [header::MESSAGE_ID, header::TRACEPARENT]);
        let id = headers.get(header::MESSAGE_ID).unwrap().as_str().to_owned();
        assert_ne!(id, "0192f0c4-7b1e-7c3a-9d7e-5a1f0c2b3d4e");
        assert_ne!(id, dead.header(header::MESSAGE_ID));
        let (_, again) = dead.revived().unwrap();
        assert_eq!(again.get(header::MESSAGE_ID).unwrap().as_str(), id);
    }

    #[test]
    fn a_body_that_stayed_behind_is_noticed() {
        let dead = letter(&Bytes::from(vec![b'x'; 40_000]), 20_000);
        assert!(dead.left_behind().unwrap().ends_with("still at CONTEXT/7"));
    }
}
