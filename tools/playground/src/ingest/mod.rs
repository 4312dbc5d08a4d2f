//! Publishes dialogues, waits until the workers have written them to PostgreSQL, and reports what was stored.
//!
//! A separate thread reads the dialogues and turns them into requests, [`Publisher`] publishes them, and the workers
//! commit them concurrently. Texts to embed are published after the rest is committed, so that each part is measured by
//! itself: an embedder uses all cores. [`ingest()`] returns when everything is committed, or fails if workers are
//! stuck.

mod broker;
mod progress;
mod read;
mod result;
mod rows;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use async_nats::jetstream;
use cli::tokens::Tokens;
use client::{PayloadKeys, Published, Publisher, PublisherOptions};
use config::Settings;
use contract::{VECTOR_INDEXER, WORKERS, WorkerInfo};
use runtime::{Stats, StatsReport};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::dialogue::Prepared;
use broker::Broker;
use progress::Progress;
use read::{Ready, read};
pub use result::{Delay, Embedding, Ingested, Sent, Stored};
pub use rows::{Contents, TABLES};

/// The source of dialogues.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// The built-in sample.
    Sample,
}

/// What to ingest, and how.
#[derive(Clone, Debug)]
pub struct IngestOptions {
    /// The source of the dialogues.
    pub source: Source,
    /// Number of users to distribute dialogues without a user over.
    pub users: u32,
    /// Whether to wait until the workers have committed everything.
    pub wait: bool,
    /// Whether to index utterances for searches, which requires a vector store.
    pub vectors: bool,
}

/// Publishing stops when more requests than this were rejected: the rest would be rejected too.
const MAX_REFUSED: u64 = 100;
/// Number of dialogues read ahead.
const READ_AHEAD: usize = 16;
/// The next dialogue of the sample is published when no more requests than this are uncommitted: chats arrive one after
/// another, and not all at once.
const SAMPLE_UNCOMMITTED: u64 = 60;
/// How often the commits are counted meanwhile.
const COUNT_EVERY: Duration = Duration::from_millis(1);

/// Ingests dialogues. `stats` are those of the workers in this process, context-writer's first; empty if the workers
/// run elsewhere.
///
/// # Errors
/// If the dialogues cannot be read, a request is rejected, or the workers commit nothing for a minute.
pub async fn ingest(
    settings: &Settings,
    stats: Vec<Arc<Stats>>,
    options: &IngestOptions,
) -> anyhow::Result<Ingested> {
    let client = runtime::broker::connect_operator(&settings.nats, "load").await?;
    let broker = Broker::new(jetstream::new(client.clone()), stats);
    let dead_before = if options.wait { broker.dead_letters().await? } else { 0 };

    let payload_keys = PayloadKeys::read(settings.trust.payload_ring_file.as_deref().map(Path::new))?;
    let mut ingest = Ingest {
        publisher: Publisher::new(client, PublisherOptions::default())
            .with_payload_keys(payload_keys)
            .with_message_ids(cli::message_ids::of(&settings.nats, "operator").await?),
        tokens: Tokens::open(settings, None).await?,
        broker,
        progress: Progress::start(),
    };
    let began = Instant::now();
    let (mut sent, to_embed) = ingest.publish_dialogues(options).await?;
    if options.wait {
        // Whoever embeds texts has nothing to do yet.
        let workers: Vec<&WorkerInfo> = WORKERS.iter().filter(|worker| **worker != VECTOR_INDEXER).collect();
        ingest.drained(&workers).await?;
    }
    let seconds = began.elapsed().as_secs_f64();
    let written = ingest.publisher.so_far().clone();
    let began = Instant::now();
    for request in to_embed {
        ingest.send(request).await?;
    }
    sent.published = ingest.publisher.flush().await.clone();
    ensure_accepted(&sent.published)?;
    if !options.wait {
        return Ok(Ingested { sent, stored: None });
    }
    let embedding = if options.vectors {
        ingest.drained(&[&VECTOR_INDEXER]).await?;
        Some(Embedding::new(sent.turns, began.elapsed()))
    } else {
        None
    };

    let Ingest { broker, progress, .. } = ingest;
    progress.finish();
    let contents = Contents::read(&settings.postgres.url).await?;
    let dead_letters = broker.dead_letters().await?.saturating_sub(dead_before);
    let reports: Vec<StatsReport> = broker.stats.iter().map(|stats| stats.report()).collect();
    let stored = Stored::new(contents, dead_letters, &reports, seconds, &written, embedding);
    Ok(Ingested { sent, stored: Some(stored) })
}

/// The state of an ingestion: the publisher and the view of the workers' progress.
struct Ingest {
    publisher: Publisher,
    tokens: Tokens,
    broker: Broker,
    progress: Progress,
}

impl Ingest {
    /// Publishes the dialogues, and returns the requests that have texts to embed.
    async fn publish_dialogues(&mut self, options: &IngestOptions) -> anyhow::Result<(Sent, Vec<Prepared>)> {
        let (to_publish, mut dialogues) = mpsc::channel(READ_AHEAD);
        let (source, users) = (options.source.clone(), options.users);
        // A plain thread, since reading blocks. After an interruption, the process exits without joining it.
        let reader = thread::Builder::new()
            .name("dialogues".to_owned())
            .spawn(move || read(&source, users, &to_publish))
            .context("cannot start the thread that reads dialogues")?;
        let (mut sent, mut to_embed) = (Sent::default(), Vec::new());
        while let Some(dialogue) = dialogues.recv().await {
            let mut dialogue: Ready = dialogue?;
            if matches!(options.source, Source::Sample) {
                self.catch_up(SAMPLE_UNCOMMITTED).await;
            }
            let is_embedded = |request: &Prepared| request.kind.worker == VECTOR_INDEXER.name;
            dialogue.requests.retain(|request| options.vectors || !is_embedded(request));
            sent.count(&dialogue);
            for request in dialogue.requests {
                if is_embedded(&request) {
                    // Only the built-in sample has such requests, so the list is short.
                    to_embed.push(request);
                } else {
                    self.send(request).await?;
                }
            }
            let published = self.publisher.so_far();
            self.progress.update(published.stored + published.duplicate, self.broker.settled(), None);
            if published.refused > MAX_REFUSED {
                break;
            }
        }
        // If publishing stopped early, the reader may be blocked on input that never ends, so it is not joined.
        if self.publisher.so_far().refused <= MAX_REFUSED && reader.join().is_err() {
            bail!("the thread that reads dialogues panicked");
        }
        ensure_accepted(self.publisher.flush().await)?;
        Ok((sent, to_embed))
    }

    /// Waits until the workers in this process have at most so many requests left.
    async fn catch_up(&mut self, uncommitted: u64) {
        let stored = self.publisher.flush().await.stored;
        while self.broker.settled().is_some_and(|settled| settled + uncommitted < stored) {
            sleep(COUNT_EVERY).await;
        }
    }

    async fn send(&mut self, request: Prepared) -> anyhow::Result<()> {
        let subject = request.subject.to_string();
        let token = self.tokens.of(&subject).await?;
        self.publisher.send(subject, request.id, request.body, token).await;
        Ok(())
    }

    /// Waits until these workers have committed all that was published.
    async fn drained(&mut self, workers: &[&WorkerInfo]) -> anyhow::Result<()> {
        self.broker.drained(workers, self.publisher.so_far(), &mut self.progress).await
    }
}

fn ensure_accepted(published: &Published) -> anyhow::Result<()> {
    if published.refused == 0 {
        return Ok(());
    }
    let stopped = if published.refused > MAX_REFUSED { " (publishing stopped)" } else { "" };
    bail!(
        "the broker refused {} requests{stopped} and accepted {}; first reasons:\n  {}",
        published.refused,
        published.stored + published.duplicate,
        published.reasons.join("\n  ")
    )
}

/// Numbers of requests by kind.
type Counts = BTreeMap<String, u64>;
