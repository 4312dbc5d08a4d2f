//! `memfleet bench index`: the throughput of vector-indexer, and the time until a search finds a memory.

use std::slice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use clap::Args;
use cli::{errln, outln};
use config::{EmbedderKind, Settings};
use fastrand::Rng;
use fleet::{Fleet, WorkerName};
use runtime::Stats;
use serde::Serialize;
use serde_json::json;
use store::vector::Collection;
use tokio::time::sleep;
use uuid::Uuid;
use vectors::ALIAS;

use super::asking::{Asker, Ready, SERVICE, Similar};
use super::bulk::{Bulk, Prepared, until_settled};
use super::corpus::Corpus;
use super::{on_private_servers_with_vectors, percentile, rounded};

#[derive(Debug, Args)]
pub(super) struct IndexArgs {
    /// Texts for vector-indexer to embed.
    #[arg(long, default_value_t = 500, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    texts: u32,

    /// Memories that are published with their vectors.
    #[arg(long, default_value_t = 5_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=50_000))]
    ready: u32,

    /// Users to distribute the memories over.
    #[arg(long, default_value_t = 50, value_name = "COUNT", value_parser = clap::value_parser!(i32).range(1..=10_000))]
    users: i32,

    /// Print one JSON object, on the last line of standard output.
    #[arg(long)]
    json: bool,
}

/// The session of each user.
pub(super) const SESSION: &str = "bench";
/// Memories indexed before measuring, so that connections are open and statements prepared.
const WARM_UP: usize = 20;
/// Memories published and timed one by one, at most as many as are published with their vectors.
const SINGLE: usize = 200;
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// A run without progress for this long has failed.
const STUCK_AFTER: Duration = Duration::from_secs(120);

/// The results.
#[derive(Debug, Serialize)]
struct Report {
    /// Texts divided by the time from the first publish to the last commit; `None` without an embedder in this process.
    texts_per_second: Option<f64>,
    /// The same for memories published with their vectors, one per message.
    ready_per_second: f64,
    /// Time from publishing a message until a search over NATS returns its memory as the first result.
    publish_to_searchable_ms_p50: f64,
    publish_to_searchable_ms_p95: f64,
    users: i32,
}

pub(super) async fn execute(args: &IndexArgs, settings: &Settings) -> anyhow::Result<()> {
    let measured =
        on_private_servers_with_vectors(settings, async |local| measure(args, &local.settings).await);
    let report = measured.await?;
    if args.json {
        outln!("{}", serde_json::to_string(&report).context("cannot serialize the report")?);
        return Ok(());
    }
    let texts = report.texts_per_second.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.0}"));
    outln!("texts/s                       {texts:>10}");
    outln!("memories with vectors/s       {:>10.0}", report.ready_per_second);
    outln!("publish to searchable, ms p50 {:>10.3}", report.publish_to_searchable_ms_p50);
    outln!("publish to searchable, ms p95 {:>10.3}", report.publish_to_searchable_ms_p95);
    Ok(())
}

async fn measure(args: &IndexArgs, settings: &Settings) -> anyhow::Result<Report> {
    let workers = [WorkerName::ContextWriter, WorkerName::VectorIndexer, WorkerName::MemoryReader];
    let mut fleet = Fleet::start(&workers, settings);
    let (writer, indexer) =
        (stats_of(&fleet, WorkerName::ContextWriter), stats_of(&fleet, WorkerName::VectorIndexer));
    let report = tokio::select! {
        report = measure_with(args, settings, writer, indexer) => report,
        ended = fleet.ended() => ended.map_err(Into::into).and_then(|()| bail!("a worker ended unexpectedly")),
    };
    let stopped = fleet.stop().await;
    let report = report?;
    stopped?;
    Ok(report)
}

fn stats_of(fleet: &Fleet, name: WorkerName) -> Option<Arc<Stats>> {
    fleet.stats().iter().find(|(one, _)| *one == name).map(|(_, stats)| Arc::clone(stats))
}

async fn measure_with(
    args: &IndexArgs,
    settings: &Settings,
    writer: Option<Arc<Stats>>,
    indexer: Option<Arc<Stats>>,
) -> anyhow::Result<Report> {
    let (writer, indexer) = writer.zip(indexer).context("the workers are not running")?;
    let mut bench = Bench::open(settings, args.users, indexer).await?;
    errln!("opening sessions");
    bench.bulk.publish(accounts(args.users)).await?;
    until_settled(&[writer], 2 * u64::from(args.users.unsigned_abs()), STUCK_AFTER).await?;
    let warm_up = bench.ready(WARM_UP)?;
    bench.rate(&warm_up).await?;
    let texts_per_second = if settings.embedder.kind == EmbedderKind::Local {
        let warm_up = bench.texts(WARM_UP)?;
        bench.rate(&warm_up).await?;
        errln!("indexing texts");
        let texts = bench.texts(args.texts as usize)?;
        Some(rounded(bench.rate(&texts).await?))
    } else {
        errln!("skipping texts: this process has no embedder; `make setup` downloads its model");
        None
    };
    errln!("indexing memories with vectors");
    let ready = bench.ready(args.ready as usize)?;
    let ready_per_second = rounded(bench.rate(&ready).await?);
    errln!("publishing memories one by one");
    let times = bench.search_delays(settings, SINGLE.min(args.ready as usize)).await?;
    Ok(Report {
        texts_per_second,
        ready_per_second,
        publish_to_searchable_ms_p50: rounded(percentile(&times, 0.5)),
        publish_to_searchable_ms_p95: rounded(percentile(&times, 0.95)),
        users: args.users,
    })
}

/// Requests that create the accounts and a session of each.
pub(super) fn accounts(users: i32) -> Vec<Prepared> {
    let account = |user: i32| {
        let account = json!({ "username": format!("bench{user}"), "email": format!("{user}@example.org") });
        let open = json!({ "session_id": SESSION, "chat_mode": "simple" });
        [request("user.put", user, account.to_string()), request("session.open", user, open.to_string())]
    };
    (1..=users).flat_map(account).collect()
}

fn request(kind: &str, user: i32, body: String) -> Prepared {
    let subject = format!("memory.req.{SERVICE}.{kind}.{user}");
    Prepared { subject, id: Uuid::now_v7(), body: Bytes::from(body) }
}

/// A request to index one memory. Serialized directly, so that `f32` values keep their shortest form.
#[derive(Serialize)]
struct Index<'a> {
    session_id: &'static str,
    memories: [Memory<'a>; 1],
}

#[derive(Serialize)]
struct Memory<'a> {
    memory_id: Uuid,
    vector_type: &'static str,
    content_text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    embedding: Option<Ready<'a>>,
}

/// Publishes memories and searches for them.
struct Bench {
    bulk: Bulk,
    collection: Collection,
    indexer: Arc<Stats>,
    corpus: Corpus,
    random: Rng,
    users: i32,
    /// Number of memories so far.
    created: usize,
}

impl Bench {
    async fn open(settings: &Settings, users: i32, indexer: Arc<Stats>) -> anyhow::Result<Self> {
        let mut owner = store::connect(&settings.postgres.url).await?;
        let active = store::vector::collections(&mut owner, ALIAS, &["active"]).await?.into_iter().next();
        Ok(Self {
            bulk: Bulk::open(settings).await?,
            collection: active.context("no active collection")?,
            indexer,
            corpus: Corpus::new(),
            random: Rng::with_seed(11),
            users,
            created: 0,
        })
    }

    /// Messages per second, from the first publish until all are committed.
    async fn rate(&self, messages: &[Prepared]) -> anyhow::Result<f64> {
        self.indexer.reset();
        let started = Instant::now();
        self.bulk.publish(messages.iter().cloned()).await?;
        until_settled(slice::from_ref(&self.indexer), messages.len() as u64, STUCK_AFTER).await?;
        Ok(messages.len() as f64 / started.elapsed().as_secs_f64())
    }

    /// A random vector.
    fn vector(&mut self) -> anyhow::Result<Vec<f32>> {
        let dimension = usize::try_from(self.collection.dimension)?;
        Ok((0..dimension).map(|_| self.random.f32() * 2.0 - 1.0).collect())
    }

    /// A memory of the next user: its message, and the user.
    fn message(&mut self, memory_id: Uuid, vector: Option<&[f32]>) -> anyhow::Result<(Prepared, i32)> {
        self.created += 1;
        let user = 1 + i32::try_from(self.created % usize::try_from(self.users)?)?;
        let memory = Memory {
            memory_id,
            vector_type: "context",
            content_text: self.corpus.text(self.created),
            embedding: vector.map(|vector| Ready { model: &self.collection.model, vector }),
        };
        let body = serde_json::to_string(&Index { session_id: SESSION, memories: [memory] });
        Ok((request("vector.index", user, body.context("cannot serialize a request")?), user))
    }

    /// Texts without vectors.
    fn texts(&mut self, count: usize) -> anyhow::Result<Vec<Prepared>> {
        (0..count).map(|_| anyhow::Ok(self.message(Uuid::now_v7(), None)?.0)).collect()
    }

    /// Texts with their vectors.
    fn ready(&mut self, count: usize) -> anyhow::Result<Vec<Prepared>> {
        let one = |_| {
            let vector = self.vector()?;
            anyhow::Ok(self.message(Uuid::now_v7(), Some(&vector))?.0)
        };
        (0..count).map(one).collect()
    }

    /// Milliseconds from publishing a memory until a search finds it, one memory after the other.
    async fn search_delays(&mut self, settings: &Settings, count: usize) -> anyhow::Result<Vec<f64>> {
        let asker = Asker::open(settings).await?;
        let model = self.collection.model.clone();
        let mut times = Vec::with_capacity(count);
        for number in 0..count {
            let (id, vector) = (Uuid::now_v7(), self.vector()?);
            let (message, user) = self.message(id, Some(&vector))?;
            let similar = Similar::new(Ready { model: &model, vector: &vector }, true, 1);
            if number == 0 {
                asker.until_answered(user, &similar).await?;
            }
            let published = Instant::now();
            self.bulk.publish([message]).await?;
            loop {
                let (answer, _) = asker.search(user, &similar).await?;
                if answer.hits.first().is_some_and(|hit| hit.memory_id == id) {
                    break;
                }
                ensure!(published.elapsed() < STUCK_AFTER, "a memory was not found within {STUCK_AFTER:?}");
                sleep(POLL_INTERVAL).await;
            }
            times.push(published.elapsed().as_secs_f64() * 1_000.0);
        }
        Ok(times)
    }
}
