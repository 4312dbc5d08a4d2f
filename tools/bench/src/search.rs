//! `memfleet bench search`: latency, recall and memory of vector searches.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;
use cli::{errln, outln};
use config::{EmbedderSettings, Quantization, Settings};
use contract::VectorType;
use fleet::{Fleet, WorkerName};
use playground::Local;
use serde::Serialize;
use uuid::Uuid;
use vectors::{ALIAS, CollectionInfo, VectorQuery, VectorStore};

use super::asking::{Asker, Ready, Similar};
use super::clustered::{self, DIMENSION, Loaded, MODEL, Search};
use super::process::resident_mib;
use super::{on_private_servers_with_vectors, percentile, rounded};

#[derive(Debug, Args)]
pub(super) struct SearchArgs {
    /// Vectors to search among.
    #[arg(long, default_value_t = 50_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1_000..=5_000_000))]
    points: u32,

    /// Users that they belong to.
    #[arg(long, default_value_t = 200, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    users: u32,

    /// How vectors are kept in memory: none, int8 or binary.
    #[arg(long, default_value = "int8", value_name = "HOW", value_parser = quantization)]
    quantization: Quantization,

    /// How many questions are asked in each way.
    #[arg(long, default_value_t = 1_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(10..=100_000))]
    questions: u32,

    /// Print one JSON object, on the last line of standard output.
    #[arg(long)]
    json: bool,
}

fn quantization(name: &str) -> Result<Quantization, String> {
    Quantization::from_name(name).ok_or_else(|| "must be none, int8 or binary".to_owned())
}

/// Searches before anything is measured, so that connections are open and statements are prepared.
const WARM_UP: usize = 20;
/// How many memories a timed question asks for.
const TOP: u32 = 5;
/// Of so many memories recall is.
const RECALL_AT: u64 = 10;
/// Over how many questions.
const RECALL_QUESTIONS: usize = 200;
/// How long a call of the vector store may take, in milliseconds: while it builds indexes it stores points slowly.
const TIMEOUT_MS: u64 = 60_000;

/// What was measured.
#[derive(Debug, Serialize)]
struct Report {
    points: u32,
    users: u32,
    quantization: &'static str,
    /// The call to the vector store alone.
    engine_ms_p50: f64,
    engine_ms_p95: f64,
    engine_ms_p99: f64,
    /// From the question to the answer, over the broker.
    end_to_end_ms_p50: f64,
    end_to_end_ms_p95: f64,
    end_to_end_ms_p99: f64,
    /// Of the ten memories that a comparison with every original vector finds, which share a search finds.
    recall_at_10: f64,
    /// What is searched by takes so many bytes in the files of the vector store, which holds them in memory. None where there
    /// are too few points for it to make them.
    vector_bytes_per_point: Option<f64>,
    /// The bytes of an original vector by that.
    memory_ratio: Option<f64>,
    /// What the vector store's process holds in memory, original vectors that it has just read from disk included.
    resident_mib: f64,
    /// Storing the points, and waiting until their indexes are built.
    load_seconds: f64,
}

pub(super) async fn execute(args: &SearchArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut settings = settings.clone();
    // Questions bring their vectors, so that no text is made one.
    (settings.embedder, settings.next_embedder) = (EmbedderSettings::default(), EmbedderSettings::default());
    settings.vectors.quantization = args.quantization;
    (settings.vectors.model, settings.vectors.dimension) = (Some(MODEL.to_owned()), Some(DIMENSION));
    settings.vectors.timeout_ms = TIMEOUT_MS;
    let measured =
        on_private_servers_with_vectors(&settings, async |local| measure(args, local).await).await?;
    if args.json {
        outln!("{}", serde_json::to_string(&measured).context("the report cannot be written")?);
    } else {
        show(&measured);
    }
    Ok(())
}

/// The collection that is searched.
struct Searched {
    vectors: VectorStore,
    collection: String,
    loaded: Loaded,
}

async fn measure(args: &SearchArgs, local: &Local) -> anyhow::Result<Report> {
    let settings = &local.settings;
    let mut owner = store::connect(&settings.postgres.url).await?;
    clustered::fill(&mut owner, args.points, args.users).await?;
    let active = store::vector::collections(&mut owner, ALIAS, &["active"]).await?.into_iter().next();
    let collection = active.context("there is no collection")?.collection_name;
    let vectors = vector_indexer::collection::vectors(settings)?;
    let loaded = clustered::load(&mut owner, &vectors, &collection).await?;
    let (info, waited) = clustered::settled(&vectors, &collection).await?;
    let searched = Searched { vectors, collection, loaded };

    errln!("asking the vector store");
    let asked = searched.loaded.searches(WARM_UP + args.questions as usize, 1);
    let engine = searched.times(&asked).await?;
    let recall = searched.recall().await?;
    errln!("asking over NATS");
    let end_to_end = over_nats(settings, &asked).await?;

    let qdrant = local.stack().and_then(|stack| stack.qdrant.as_ref()).context("there is no vector store")?;
    let bytes = bytes_per_point(&qdrant.data(), args.quantization, info)?;
    let at = |times: &[f64], share: f64| rounded(percentile(times, share));
    Ok(Report {
        points: args.points,
        users: args.users,
        quantization: args.quantization.as_str(),
        engine_ms_p50: at(&engine, 0.5),
        engine_ms_p95: at(&engine, 0.95),
        engine_ms_p99: at(&engine, 0.99),
        end_to_end_ms_p50: at(&end_to_end, 0.5),
        end_to_end_ms_p95: at(&end_to_end, 0.95),
        end_to_end_ms_p99: at(&end_to_end, 0.99),
        recall_at_10: rounded(recall),
        vector_bytes_per_point: bytes.map(rounded),
        memory_ratio: bytes.map(|bytes| rounded((4 * DIMENSION) as f64 / bytes)),
        resident_mib: rounded(resident_mib(qdrant.pid())?),
        load_seconds: rounded(searched.loaded.seconds + waited),
    })
}

impl Searched {
    /// The memories that are found, with the filters of a question to memory-reader that has none of its own.
    async fn search(&self, asked: &Search, exact: bool, limit: u64) -> anyhow::Result<(HashSet<Uuid>, f64)> {
        let query = VectorQuery {
            vector: asked.vector.clone(),
            vector_types: VectorType::ALL.to_vec(),
            exact,
            limit,
            ..VectorQuery::default()
        };
        let tenant = self.loaded.tenant(asked.user)?;
        let started = Instant::now();
        let found = self.vectors.search(tenant, &self.collection, &query).await?;
        let took = started.elapsed().as_secs_f64() * 1_000.0;
        ensure!(!found.is_empty(), "nothing is found for user {}", asked.user);
        Ok((found.into_iter().map(|one| one.memory).collect(), took))
    }

    /// Milliseconds of each question, one after the other.
    async fn times(&self, asked: &[Search]) -> anyhow::Result<Vec<f64>> {
        let mut times = Vec::with_capacity(asked.len());
        for (number, one) in asked.iter().enumerate() {
            let (_, took) = self.search(one, false, u64::from(TOP)).await?;
            if number >= WARM_UP {
                times.push(took);
            }
        }
        Ok(times)
    }

    async fn recall(&self) -> anyhow::Result<f64> {
        let (mut found, mut there) = (0, 0);
        for one in self.loaded.searches(RECALL_QUESTIONS, 2) {
            let (exact, _) = self.search(&one, true, RECALL_AT).await?;
            let (quick, _) = self.search(&one, false, RECALL_AT).await?;
            found += exact.intersection(&quick).count();
            there += exact.len();
        }
        Ok(found as f64 / there as f64)
    }
}

/// Milliseconds of each question, one after the other, with memory-reader in this process.
async fn over_nats(settings: &Settings, asked: &[Search]) -> anyhow::Result<Vec<f64>> {
    let mut fleet = Fleet::start(&[WorkerName::MemoryReader], settings);
    let asking = async {
        let asker = Asker::open(settings).await?;
        let mut times = Vec::with_capacity(asked.len());
        for (number, one) in asked.iter().enumerate() {
            let similar = Similar::new(Ready { model: MODEL, vector: &one.vector }, false, TOP);
            if number == 0 {
                asker.until_answered(one.user, &similar).await?;
            }
            let (answer, took) = asker.search(one.user, &similar).await?;
            ensure!(!answer.hits.is_empty(), "nothing is found for user {}", one.user);
            if number >= WARM_UP {
                times.push(took);
            }
        }
        anyhow::Ok(times)
    };
    let times = tokio::select! {
        times = asking => times,
        ended = fleet.ended() => ended.map_err(Into::into).and_then(|()| anyhow::bail!("memory-reader ended by itself")),
    };
    let stopped = fleet.stop().await;
    let times = times?;
    stopped?;
    Ok(times)
}

/// How many bytes what is searched by takes for a point; none if the vector store has no files of it.
fn bytes_per_point(
    data: &Path,
    quantization: Quantization,
    info: CollectionInfo,
) -> anyhow::Result<Option<f64>> {
    let is_quantized = quantization != Quantization::None;
    let bytes = bytes_of(data, is_quantized).with_context(|| format!("{} cannot be read", data.display()))?;
    // Points that came last are in a segment without an index, where vectors are not quantized.
    let points = if is_quantized { info.indexed } else { info.points };
    Ok((bytes > 0 && points > 0).then(|| bytes as f64 / points as f64))
}

/// The bytes of the files under a folder that have vectors, as they are or quantized.
fn bytes_of(folder: &Path, is_quantized: bool) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (path, metadata) = (entry.path(), entry.metadata()?);
        if metadata.is_dir() {
            bytes += bytes_of(&path, is_quantized)?;
        } else if has_vectors(&path, is_quantized) {
            // A file that grows is made longer than what is in it.
            bytes += metadata.len().min(metadata.blocks() * 512);
        }
    }
    Ok(bytes)
}

/// As the engine names its files in a segment: `vector_storage/quantized.data`, `vector_storage/matrix.dat`, and
/// `vector_storage/vectors/chunk_0.mmap`.
fn has_vectors(path: &Path, is_quantized: bool) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let in_folder =
        |start: &str| path.iter().filter_map(|part| part.to_str()).any(|part| part.starts_with(start));
    if !in_folder("vector_storage") || in_folder("temp_segments") {
        return false;
    }
    match (is_quantized, in_folder("quantized")) {
        (true, true) => !name.ends_with(".json"),
        (false, false) => name == "matrix.dat" || name.starts_with("chunk_"),
        (true, false) | (false, true) => false,
    }
}

fn show(report: &Report) {
    let line = |what: &str, p50: f64, p95: f64, p99: f64| {
        outln!("{what:<28} p50 {p50:>8.3}  p95 {p95:>8.3}  p99 {p99:>8.3}");
    };
    outln!("{} points of {} users, quantization {}", report.points, report.users, report.quantization);
    line("at the vector store, ms", report.engine_ms_p50, report.engine_ms_p95, report.engine_ms_p99);
    line("over NATS, ms", report.end_to_end_ms_p50, report.end_to_end_ms_p95, report.end_to_end_ms_p99);
    outln!("{:<28} {:>12.3}", "recall of ten", report.recall_at_10);
    let known = |figure: Option<f64>| figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.1}"));
    outln!("{:<28} {:>12}", "bytes of a vector", known(report.vector_bytes_per_point));
    outln!("{:<28} {:>12}", "times smaller", known(report.memory_ratio));
    outln!("{:<28} {:>12.1}", "the store's memory, MiB", report.resident_mib);
    outln!("{:<28} {:>12.1}", "loading, s", report.load_seconds);
}
