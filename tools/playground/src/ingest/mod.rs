//! Publishes dialogues, waits until the workers have written them to PostgreSQL, and reports what was stored.
//!
//! A thread of its own reads the dialogues and turns them into requests, [`Publisher`] publishes them, and the workers
//! commit them meanwhile. [`ingest()`] returns when all of it is committed, or reports what is stuck.

mod progress;
mod result;
mod rows;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use async_nats::jetstream;
use async_nats::jetstream::consumer::PullConsumer;
use cli::tokens::Tokens;
use client::{PayloadKeys, Published, Publisher, PublisherOptions};
use config::Settings;
use runtime::{Stats, StatsReport, broker};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::dialogue::{Corpus, DialogueError, Dialogues, Mapper, Prepared, SAMPLE};
use progress::Progress;
pub use result::{Delay, Ingested, Sent, Stored};
pub use rows::{Contents, TABLES};

/// Where dialogues come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// The sample that is built in.
    Sample,
}

/// What is ingested, and how.
#[derive(Clone, Debug)]
pub struct IngestOptions {
    /// Where the dialogues come from.
    pub source: Source,
    /// Over how many users dialogues without a user are distributed.
    pub users: u32,
    /// Whether to wait until the workers have committed it all.
    pub wait: bool,
    /// Whether what was said is indexed for searches too, for which there must be a vector store.
    pub vectors: bool,
}

/// Publishing stops when so many requests were refused: the rest would be too.
const MOST_REFUSED: u64 = 100;
/// How often the consumers are checked.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Workers that commit nothing for so long are stuck.
const STUCK_AFTER: Duration = Duration::from_secs(60);
/// Dialogues that are read ahead.
const READ_AHEAD: usize = 16;

/// Ingests dialogues. `stats` are those of the workers in this process, context-writer's first; none if they run elsewhere.
///
/// # Errors
/// If the dialogues cannot be read, a request is refused, or the workers commit nothing for a minute.
pub async fn ingest(
    settings: &Settings,
    stats: Vec<Arc<Stats>>,
    options: &IngestOptions,
) -> anyhow::Result<Ingested> {
    let client = broker::connect_operator(&settings.nats, "load").await?;
    let broker = Broker { jetstream: jetstream::new(client.clone()), stats };
    let dead_before = if options.wait { broker.dead_letters().await? } else { 0 };
    let settled_before = broker.settled().unwrap_or(0);

    let mut progress = Progress::start();
    let began = Instant::now();
    let tokens = Tokens::open(settings, None).await?;
    let payload_keys = PayloadKeys::read(settings.trust.payload_ring_file.as_deref().map(Path::new))?;
    let publisher = Publisher::new(client, PublisherOptions::default()).with_payload_keys(payload_keys);
    let sent = publish(&broker, publisher, &tokens, options, settled_before, &mut progress).await?;
    if !options.wait {
        return Ok(Ingested { sent, stored: None });
    }
    broker.drained(&sent.published, settled_before, options.vectors, &mut progress).await?;
    let seconds = began.elapsed().as_secs_f64();
    progress.finish();

    let contents = Contents::read(&settings.postgres.url).await?;
    let dead_letters = broker.dead_letters().await?.saturating_sub(dead_before);
    let reports: Vec<StatsReport> = broker.stats.iter().map(|stats| stats.report()).collect();
    let stored = Stored::new(contents, dead_letters, &reports, seconds, &sent);
    Ok(Ingested { sent, stored: Some(stored) })
}

async fn publish(
    broker: &Broker,
    mut publisher: Publisher,
    tokens: &Tokens,
    options: &IngestOptions,
    settled_before: u64,
    progress: &mut Progress,
) -> anyhow::Result<Sent> {
    let (to_publish, mut dialogues) = mpsc::channel(READ_AHEAD);
    let (source, users) = (options.source.clone(), options.users);
    // A plain thread: reading blocks, and nobody waits for it when we are interrupted.
    let reader = thread::Builder::new()
        .name("dialogues".to_owned())
        .spawn(move || read(&source, users, &to_publish))
        .context("the thread that reads dialogues cannot be started")?;
    let mut sent = Sent::default();
    while let Some(dialogue) = dialogues.recv().await {
        let mut dialogue = dialogue?;
        dialogue
            .requests
            .retain(|request| options.vectors || request.kind.worker != contract::VECTOR_INDEXER.name);
        sent.count(&dialogue);
        for request in dialogue.requests {
            let subject = request.subject.to_string();
            let token = tokens.of(&subject).await?;
            publisher.send(subject, request.id, request.body, token).await;
        }
        let committed = broker.settled().map(|settled| settled - settled_before);
        let published = publisher.so_far();
        progress.tell(published.stored + published.duplicate, committed, None);
        if published.refused > MOST_REFUSED {
            break;
        }
    }
    // Where publishing has stopped, the reader may be in the middle of a line that never ends.
    if publisher.so_far().refused <= MOST_REFUSED && reader.join().is_err() {
        bail!("the thread that reads dialogues panicked");
    }
    sent.published = publisher.finish().await;
    refuse(&sent.published)?;
    Ok(sent)
}

fn refuse(published: &Published) -> anyhow::Result<()> {
    if published.refused == 0 {
        return Ok(());
    }
    let given_up = if published.refused > MOST_REFUSED { " (given up)" } else { "" };
    bail!(
        "the broker refused {} requests{given_up} and took {}; the first of them:\n  {}",
        published.refused,
        published.stored + published.duplicate,
        published.reasons.join("\n  ")
    )
}

/// The requests of one dialogue.
struct Ready {
    requests: Vec<Prepared>,
    turns: usize,
    /// How many users have spoken so far.
    users: usize,
}

/// Reads and maps until the end, an error, or until nobody listens any more.
fn read(source: &Source, users: u32, to_publish: &mpsc::Sender<Result<Ready, DialogueError>>) {
    let (dialogues, corpus) = match source {
        Source::File(path) => (Dialogues::open(path), Corpus::Sgd),
        Source::Sample => (Dialogues::from_bytes("the sample", SAMPLE), Corpus::Sample),
    };
    let opened = dialogues.and_then(|dialogues| Ok((dialogues, Mapper::new(corpus, users)?)));
    let (dialogues, mut mapper) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            // Nobody listens only if we are being stopped.
            let _ = to_publish.blocking_send(Err(error));
            return;
        }
    };
    for dialogue in dialogues {
        let ready = dialogue.and_then(|dialogue| {
            let requests = mapper.requests(&dialogue)?;
            Ok(Ready { requests, turns: dialogue.turns.len(), users: mapper.users() })
        });
        let failed = ready.is_err();
        if to_publish.blocking_send(ready).is_err() || failed {
            return;
        }
    }
}

/// The broker's view of the workers, and the counters of those in this process.
struct Broker {
    jetstream: jetstream::Context,
    stats: Vec<Arc<Stats>>,
}

impl Broker {
    /// How many messages the workers in this process have settled.
    fn settled(&self) -> Option<u64> {
        let settled = |stats: &Arc<Stats>| {
            let report = stats.report();
            report.applied + report.unchanged + report.repeated + report.dead.values().sum::<u64>()
        };
        (!self.stats.is_empty()).then(|| self.stats.iter().map(settled).sum())
    }

    async fn dead_letters(&self) -> anyhow::Result<u64> {
        let stream = self.jetstream.get_stream(DEAD_STREAM).await;
        let stream = stream.with_context(|| {
            format!("the stream {DEAD_STREAM} cannot be read; `memfleet nats apply` creates it")
        })?;
        // The sequence and not the count: a dead letter that was replayed or dropped meanwhile was still one.
        Ok(stream.cached_info().state.last_sequence)
    }

    /// The consumers of the workers that process the requests.
    async fn consumers(&self, vectors: bool) -> anyhow::Result<Vec<PullConsumer>> {
        let mut consumers = Vec::new();
        let workers = [("CONTEXT", contract::CONTEXT_WRITER.name), ("ROUTER", contract::ROUTER_LOGGER.name)];
        let indexer = vectors.then_some(("VECTOR", contract::VECTOR_INDEXER.name));
        for (stream, name) in workers.into_iter().chain(indexer) {
            let consumer = self.jetstream.get_consumer_from_stream(name, stream).await;
            consumers.push(consumer.with_context(|| {
                format!(
                    "the consumer {name} of the stream {stream} cannot be read; `memfleet nats apply` creates it"
                )
            })?);
        }
        Ok(consumers)
    }

    /// Waits until every message of their streams is settled.
    async fn drained(
        &self,
        published: &Published,
        settled_before: u64,
        vectors: bool,
        progress: &mut Progress,
    ) -> anyhow::Result<()> {
        let mut consumers = self.consumers(vectors).await?;
        let (mut last_seen, mut moved_at) = (None, Instant::now());
        loop {
            let (mut waiting, mut in_flight) = (0, 0);
            for consumer in &mut consumers {
                let info = consumer.info().await.context("a worker's consumer cannot be read")?;
                waiting += info.num_pending;
                in_flight += info.num_ack_pending;
            }
            let settled = self.settled().map(|settled| settled - settled_before);
            let all_counted = settled.is_none_or(|settled| settled >= published.stored);
            if waiting == 0 && in_flight == 0 && all_counted {
                return Ok(());
            }
            let seen = Some((waiting, in_flight, settled));
            if seen != last_seen {
                (last_seen, moved_at) = (seen, Instant::now());
            }
            if moved_at.elapsed() > STUCK_AFTER {
                bail!(
                    "nothing was committed for {} s: {waiting} messages wait for the workers and {in_flight} are \
                     unsettled; the workers' log says why, and `memfleet status` whether any runs",
                    STUCK_AFTER.as_secs()
                );
            }
            let taken = published.stored + published.duplicate;
            let left = waiting + u64::try_from(in_flight).unwrap_or(0);
            progress.tell(taken, Some(taken.saturating_sub(left)), Some(taken));
            sleep(LOOK_EVERY).await;
        }
    }
}

/// The stream of dead letters.
const DEAD_STREAM: &str = "DEAD";

/// Requests by kind, and the rows they add.
type Counts = BTreeMap<String, u64>;
