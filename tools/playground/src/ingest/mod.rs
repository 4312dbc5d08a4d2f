//! Publishes dialogues, waits until the workers have written them to PostgreSQL, and reports what was stored.
//!
//! A thread of its own reads the dialogues and turns them into requests, [`Publisher`] publishes them, and the workers
//! commit them meanwhile. Texts to be embedded follow when the rest is committed: an embedder uses every core, and each
//! part is to be measured by itself. [`ingest()`] returns when all of it is committed, or reports what is stuck.

mod broker;
mod progress;
mod read;
mod result;
mod rows;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use anyhow::{Context, bail};
use async_nats::jetstream;
use cli::tokens::Tokens;
use client::{PayloadKeys, Published, Publisher, PublisherOptions};
use config::Settings;
use contract::{CONTEXT_WRITER, ROUTER_LOGGER, VECTOR_INDEXER, WorkerInfo};
use runtime::{Stats, StatsReport};
use tokio::sync::mpsc;

use crate::dialogue::Prepared;
use broker::Broker;
use progress::Progress;
use read::{Ready, read};
pub use result::{Delay, Embedding, Ingested, Sent, Stored};
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
    let client = runtime::broker::connect_operator(&settings.nats, "load").await?;
    let broker = Broker::new(jetstream::new(client.clone()), stats);
    let dead_before = if options.wait { broker.dead_letters().await? } else { 0 };

    let payload_keys = PayloadKeys::read(settings.trust.payload_ring_file.as_deref().map(Path::new))?;
    let mut ingest = Ingest {
        publisher: Publisher::new(client, PublisherOptions::default()).with_payload_keys(payload_keys),
        tokens: Tokens::open(settings, None).await?,
        broker,
        progress: Progress::start(),
    };
    let began = Instant::now();
    let (mut sent, to_embed) = ingest.publish_dialogues(options).await?;
    if options.wait {
        ingest.drained(&[&CONTEXT_WRITER, &ROUTER_LOGGER]).await?;
    }
    let seconds = began.elapsed().as_secs_f64();
    let written = ingest.publisher.so_far().clone();
    let began = Instant::now();
    for request in to_embed {
        ingest.send(request).await?;
    }
    sent.published = ingest.publisher.flush().await.clone();
    refuse(&sent.published)?;
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

/// What publishes, and what shows how far the workers are.
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
        // A plain thread: reading blocks, and nobody waits for it when we are interrupted.
        let reader = thread::Builder::new()
            .name("dialogues".to_owned())
            .spawn(move || read(&source, users, &to_publish))
            .context("the thread that reads dialogues cannot be started")?;
        let (mut sent, mut to_embed) = (Sent::default(), Vec::new());
        while let Some(dialogue) = dialogues.recv().await {
            let mut dialogue: Ready = dialogue?;
            let is_embedded = |request: &Prepared| request.kind.worker == VECTOR_INDEXER.name;
            dialogue.requests.retain(|request| options.vectors || !is_embedded(request));
            sent.count(&dialogue);
            for request in dialogue.requests {
                if is_embedded(&request) {
                    // Only the built-in sample has any, so that the list is short.
                    to_embed.push(request);
                } else {
                    self.send(request).await?;
                }
            }
            let published = self.publisher.so_far();
            self.progress.tell(published.stored + published.duplicate, self.broker.settled(), None);
            if published.refused > MOST_REFUSED {
                break;
            }
        }
        // Where publishing has stopped, the reader may be in the middle of a line that never ends.
        if self.publisher.so_far().refused <= MOST_REFUSED && reader.join().is_err() {
            bail!("the thread that reads dialogues panicked");
        }
        refuse(self.publisher.flush().await)?;
        Ok((sent, to_embed))
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

/// Requests by kind, and the rows they add.
type Counts = BTreeMap<String, u64>;
