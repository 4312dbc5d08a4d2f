//! The requests of a worker: which of them the database has, and the consumer that delivers them again.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::Context;
use async_nats::jetstream;
use async_nats::jetstream::consumer::{self, PullConsumer};
use async_nats::jetstream::stream::RawMessageErrorKind;
use chrono::{DateTime, Utc};
use cli::errln;
use contract::{DeadLetterSummary, RequestSubject};
use serde::Serialize;
use store::{Connection, recovery};
use tokio::time::Instant;

use super::scan::{From, Stored, scan};

/// The messages of each stream that have a dead letter, by sequence number.
#[derive(Default)]
pub(super) struct Dead(HashMap<String, HashSet<u64>>);

const DEAD: &str = "DEAD";

impl Dead {
    pub(super) async fn read(jetstream: &jetstream::Context) -> anyhow::Result<Self> {
        let (mut dead, mut lists) = (Self::default(), Vec::new());
        scan(jetstream, DEAD, From::Start, u64::MAX, async |batch| {
            for letter in batch {
                let source = letter.dead_source.as_deref().and_then(|source| source.rsplit_once('/'));
                if letter.is_list {
                    lists.push(letter.sequence);
                } else if let Some((stream, sequence)) = source
                    && let Ok(sequence) = sequence.parse()
                {
                    dead.add(stream, [sequence]);
                }
            }
            Ok(())
        })
        .await?;
        let stream = jetstream.get_stream_no_info(DEAD).await.context("cannot open the stream DEAD")?;
        for sequence in lists {
            let letter = match stream.get_raw_message(sequence).await {
                Ok(letter) => letter,
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => continue,
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot read dead letter {sequence}"));
                }
            };
            let list: DeadLetterSummary = serde_json::from_slice(&letter.payload)
                .with_context(|| format!("dead letter {sequence} is no list of messages"))?;
            for (first, last) in list.ranges {
                dead.add(&list.stream, first..=last);
            }
        }
        Ok(dead)
    }

    fn add(&mut self, stream: &str, sequences: impl IntoIterator<Item = u64>) {
        self.0.entry(stream.to_owned()).or_default().extend(sequences);
    }

    fn has(&self, stream: &str, sequence: u64) -> bool {
        self.0.get(stream).is_some_and(|sequences| sequences.contains(&sequence))
    }
}

/// A message of a stream.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Place {
    pub(super) sequence: u64,
    pub(super) stored_at: DateTime<Utc>,
}

/// The requests that the consumer of a worker has delivered, compared with the worker's inbox.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Requests {
    pub(super) worker: &'static str,
    pub(super) stream: &'static str,
    /// The last one that the consumer has delivered. Later ones are not considered: nothing has acknowledged them.
    delivered: u64,
    #[serde(flatten)]
    pub(super) counts: Counts,
}

/// What the comparison found.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Counts {
    /// How many were compared.
    pub(super) considered: u64,
    pub(super) in_database: u64,
    /// Not in the inbox, with a dead letter.
    pub(super) dead_letters: u64,
    /// Neither in the inbox nor a dead letter: lost, being processed, or a dead letter that was deleted.
    pub(super) missing: u64,
    pub(super) oldest_missing: Option<Place>,
    /// Of the dead letters, those after the oldest missing request.
    #[serde(skip)]
    pub(super) dead_letters_after: u64,
    /// As `missing`, but before everything that the inbox has, so that it may have forgotten them.
    pub(super) forgotten: u64,
}

/// What a worker still has to process.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Unfinished {
    pending: u64,
    in_flight: u64,
}

/// Interval at which the progress of a consumer is read.
const POLL: Duration = Duration::from_millis(500);
/// How long a consumer may have no pull before a worker is asked for.
const WITHOUT_PULL: Duration = Duration::from_secs(10);

impl Requests {
    /// The delivered requests of a worker, not compared yet.
    pub(super) async fn open(
        jetstream: &jetstream::Context,
        worker: &'static str,
        stream: &'static str,
    ) -> anyhow::Result<Self> {
        let info = info(&consumer(jetstream, worker, stream).await?).await?;
        let delivered = info.delivered.stream_sequence;
        Ok(Self { worker, stream, delivered, counts: Counts::default() })
    }

    /// Compares the requests that were stored at `since` or later.
    pub(super) async fn compare(
        mut self,
        jetstream: &jetstream::Context,
        connection: &mut Connection,
        since: Option<DateTime<Utc>>,
        dead: &Dead,
    ) -> anyhow::Result<Self> {
        let oldest =
            recovery::oldest_in_inbox(connection, self.worker).await.context("cannot read the inbox")?;
        let from = match since {
            // Everything from then on is remembered.
            Some(since) if oldest.is_none_or(|oldest| oldest <= since) => From::Time(since),
            Some(_) | None => From::Start,
        };
        let mut memory = Memory { oldest, has_begun: false };
        let (stream, until) = (self.stream, self.delivered);
        scan(jetstream, stream, from, until, async |batch| {
            self.add(connection, batch, since, dead, &mut memory).await
        })
        .await?;
        Ok(self)
    }

    /// The same requests once the consumer was reset and has delivered them again.
    pub(super) async fn compare_again(
        &self,
        jetstream: &jetstream::Context,
        connection: &mut Connection,
        dead: &Dead,
    ) -> anyhow::Result<Self> {
        let mut after = Self { counts: Counts::default(), ..self.clone() };
        let from = From::Sequence(self.reset_to().unwrap_or(0));
        let mut memory = Memory { oldest: None, has_begun: true };
        scan(jetstream, self.stream, from, self.delivered, async |batch| {
            after.add(connection, batch, None, dead, &mut memory).await
        })
        .await?;
        Ok(after)
    }

    async fn add(
        &mut self,
        connection: &mut Connection,
        batch: Vec<Stored>,
        since: Option<DateTime<Utc>>,
        dead: &Dead,
        memory: &mut Memory,
    ) -> anyhow::Result<()> {
        // A message without a valid subject and id cannot have had an effect.
        let requests: Vec<_> = batch
            .into_iter()
            .filter_map(|stored| {
                let subject: RequestSubject = stored.subject.parse().ok()?;
                Some(((subject.user_id.get(), stored.id?), stored))
            })
            .collect();
        let keys: Vec<_> = requests.iter().map(|(key, _)| *key).collect();
        let known = recovery::in_inbox(connection, self.worker, &keys).await;
        let known = known.context("cannot read the inbox")?;
        let counts = &mut self.counts;
        for (key, Stored { sequence, stored_at, .. }) in requests {
            let is_known = known.contains(&key);
            memory.has_begun |= is_known;
            if since.is_some_and(|since| stored_at < since) {
                continue;
            }
            counts.considered += 1;
            if is_known {
                counts.in_database += 1;
            } else if dead.has(self.stream, sequence) {
                counts.dead_letters += 1;
                counts.dead_letters_after += u64::from(counts.oldest_missing.is_some());
            } else if memory.may_have_forgotten(stored_at) {
                counts.forgotten += 1;
            } else {
                counts.missing += 1;
                counts.oldest_missing.get_or_insert(Place { sequence, stored_at });
            }
        }
        Ok(())
    }

    /// The sequence number from which the consumer has to deliver again. `None` if nothing is missing.
    pub(super) fn reset_to(&self) -> Option<u64> {
        self.counts.oldest_missing.map(|place| place.sequence)
    }

    /// Has the consumer deliver everything from the oldest missing request again. The workers' pulls stay open.
    pub(super) async fn reset(&self, jetstream: &jetstream::Context) -> anyhow::Result<()> {
        let stream = jetstream.get_stream_no_info(self.stream).await;
        let stream = stream.with_context(|| format!("cannot open the stream {}", self.stream))?;
        stream.reset_consumer(self.worker, self.reset_to()).await.with_context(|| {
            format!(
                "cannot reset the consumer {} of the stream {}; it needs NATS 2.14",
                self.worker, self.stream
            )
        })?;
        Ok(())
    }

    /// Waits until everything that had been delivered is settled again. Returns what is left at the deadline.
    pub(super) async fn wait(
        &self,
        jetstream: &jetstream::Context,
        deadline: Instant,
    ) -> anyhow::Result<Option<Unfinished>> {
        let consumer = consumer(jetstream, self.worker, self.stream).await?;
        let (mut pulled_at, mut has_asked) = (Instant::now(), false);
        loop {
            let info = info(&consumer).await?;
            let left = Unfinished {
                pending: info.num_pending,
                in_flight: u64::try_from(info.num_ack_pending).unwrap_or(u64::MAX),
            };
            if info.ack_floor.stream_sequence >= self.delivered || (left.pending == 0 && left.in_flight == 0)
            {
                return Ok(None);
            }
            if Instant::now() >= deadline {
                return Ok(Some(left));
            }
            if info.num_waiting > 0 || left.in_flight > 0 {
                pulled_at = Instant::now();
            } else if !has_asked && pulled_at.elapsed() > WITHOUT_PULL {
                errln!("no worker pulls from {}; start `memfleet run {}`", self.stream, self.worker);
                has_asked = true;
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// What the inbox of a worker can still know.
struct Memory {
    /// When its oldest entry was made.
    oldest: Option<DateTime<Utc>>,
    /// Whether it has an entry of a request of the stream, in the order of the stream.
    has_begun: bool,
}

impl Memory {
    /// Whether entries of requests that were stored then may have been deleted. Entries are deleted by age.
    fn may_have_forgotten(&self, stored_at: DateTime<Utc>) -> bool {
        !self.has_begun && self.oldest.is_some_and(|oldest| stored_at < oldest)
    }
}

async fn consumer(
    jetstream: &jetstream::Context,
    worker: &str,
    stream: &str,
) -> anyhow::Result<PullConsumer> {
    jetstream.get_consumer_from_stream(worker, stream).await.with_context(|| {
        format!("cannot open the consumer {worker} of the stream {stream}; `memfleet nats apply` creates it")
    })
}

async fn info(consumer: &PullConsumer) -> anyhow::Result<consumer::Info> {
    consumer.get_info().await.context("cannot read the state of a consumer")
}
