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
    /// Number of vectors to search.
    #[arg(long, default_value_t = 50_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1_000..=5_000_000))]
    points: u32,

    /// Users to distribute the vectors over.
    #[arg(long, default_value_t = 200, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    users: u32,

    /// Quantization of vectors in memory: none, int8 or binary.
    #[arg(long, default_value = "int8", value_name = "HOW", value_parser = quantization)]
    quantization: Quantization,

    /// Number of timed searches, at the vector store and over NATS each.
    #[arg(long, default_value_t = 1_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(10..=100_000))]
    questions: u32,

    /// Print one JSON object, on the last line of standard output.
    #[arg(long)]
    json: bool,
}

fn quantization(name: &str) -> Result<Quantization, String> {
    Quantization::from_name(name).ok_or_else(|| "must be none, int8 or binary".to_owned())
}

/// Searches before measuring, so that connections are open and statements prepared.
const WARM_UP: usize = 20;
/// The limit of results of a timed search.
const TOP: u32 = 5;
/// The number of results that recall is computed for.
const RECALL_AT: u64 = 10;
/// The number of searches that recall is computed from.
const RECALL_QUESTIONS: usize = 200;
/// Timeout of a call of the vector store, in milliseconds: it stores points slowly while it builds indexes.
const TIMEOUT_MS: u64 = 60_000;

/// The results.
#[derive(Debug, Serialize)]
struct Report {
    points: u32,
    users: u32,
    quantization: &'static str,
    /// Time of the call to the vector store only.
    engine_ms_p50: f64,
    engine_ms_p95: f64,
    engine_ms_p99: f64,
    /// Time from query to answer over NATS.
    end_to_end_ms_p50: f64,
    end_to_end_ms_p95: f64,
    end_to_end_ms_p99: f64,
    /// Share of the ten results of an exact search that a search finds.
    recall_at_10: f64,
    /// Bytes per point of the vectors used for searching, in the vector store's files, which it keeps in memory. `None`
    /// if there are too few points for it to create these files.
    vector_bytes_per_point: Option<f64>,
    /// The bytes of an original vector divided by `vector_bytes_per_point`.
    memory_ratio: Option<f64>,
    /// Resident memory of the vector store, including original vectors that it has just read from disk.
    resident_mib: f64,
    /// Time to store the points and to build their indexes.
    load_seconds: f64,
}

pub(super) async fn execute(args: &SearchArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut settings = settings.clone();
    // Queries contain vectors, so no embedder is needed.
    (settings.embedder, settings.next_embedder) = (EmbedderSettings::default(), EmbedderSettings::default());
    settings.vectors.quantization = args.quantization;
    (settings.vectors.model, settings.vectors.dimension) = (Some(MODEL.to_owned()), Some(DIMENSION));
    settings.vectors.timeout_ms = TIMEOUT_MS;
    let measured =
        on_private_servers_with_vectors(&settings, async |local| measure(args, local).await).await?;
    if args.json {
        outln!("{}", serde_json::to_string(&measured).context("cannot serialize the report")?);
    } else {
        show(&measured);
    }
    Ok(())
}

/// The collection to search.
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
    let collection = active.context("no active collection")?.collection_name;
    let vectors = vector_indexer::collection::vectors(settings)?;
    let loaded = clustered::load(&mut owner, &vectors, &collection).await?;
    let (info, waited) = clustered::settled(&vectors, &collection).await?;
    let searched = Searched { vectors, collection, loaded };

    errln!("searching at the vector store");
    let asked = searched.loaded.searches(WARM_UP + args.questions as usize, 1);
    let engine = searched.times(&asked).await?;
    let recall = searched.recall().await?;
    errln!("searching over NATS");
    let end_to_end = over_nats(settings, &asked).await?;

    let qdrant =
        local.stack().and_then(|stack| stack.qdrant.as_ref()).context("no vector store is running")?;
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
    /// Searches with the filters that memory-reader adds to a query without filters. Returns the results and
    /// milliseconds.
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
        ensure!(!found.is_empty(), "no search results for user {}", asked.user);
        Ok((found.into_iter().map(|one| one.memory).collect(), took))
    }

    /// Milliseconds of each search, run sequentially.
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
        let (mut found, mut expected) = (0, 0);
        for one in self.loaded.searches(RECALL_QUESTIONS, 2) {
            let (exact, _) = self.search(&one, true, RECALL_AT).await?;
            let (quick, _) = self.search(&one, false, RECALL_AT).await?;
            found += exact.intersection(&quick).count();
            expected += exact.len();
        }
        Ok(found as f64 / expected as f64)
    }
}

/// Milliseconds of each search over NATS, run sequentially, with memory-reader in this process.
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
            ensure!(!answer.hits.is_empty(), "no search results for user {}", one.user);
            if number >= WARM_UP {
                times.push(took);
            }
        }
        anyhow::Ok(times)
    };
    let times = tokio::select! {
        times = asking => times,
        ended = fleet.ended() => ended.map_err(Into::into).and_then(|()| anyhow::bail!("memory-reader ended unexpectedly")),
    };
    let stopped = fleet.stop().await;
    let times = times?;
    stopped?;
    Ok(times)
}

/// Bytes per point of the vectors used for searching; `None` if the vector store has no such files.
fn bytes_per_point(
    data: &Path,
    quantization: Quantization,
    info: CollectionInfo,
) -> anyhow::Result<Option<f64>> {
    let is_quantized = quantization != Quantization::None;
    let bytes = bytes_of(data, is_quantized).with_context(|| format!("cannot read {}", data.display()))?;
    // The latest points are in a segment without an index, where vectors are not quantized.
    let points = if is_quantized { info.indexed } else { info.points };
    Ok((bytes > 0 && points > 0).then(|| bytes as f64 / points as f64))
}

/// The size of all files under a folder that contain original or quantized vectors.
fn bytes_of(folder: &Path, is_quantized: bool) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (path, metadata) = (entry.path(), entry.metadata()?);
        if metadata.is_dir() {
            bytes += bytes_of(&path, is_quantized)?;
        } else if has_vectors(&path, is_quantized) {
            // Growing files are preallocated sparsely: their length exceeds their contents.
            bytes += metadata.len().min(metadata.blocks() * 512);
        }
    }
    Ok(bytes)
}

/// Whether a file contains vectors, by the engine's file names in a segment: `vector_storage/quantized.data`,
/// `vector_storage/matrix.dat` and `vector_storage/vectors/chunk_0.mmap`.
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
    let line = |name: &str, p50: f64, p95: f64, p99: f64| {
        outln!("{name:<28} p50 {p50:>8.3}  p95 {p95:>8.3}  p99 {p99:>8.3}");
    };
    outln!("{} points of {} users, quantization {}", report.points, report.users, report.quantization);
    line("at the vector store, ms", report.engine_ms_p50, report.engine_ms_p95, report.engine_ms_p99);
    line("over NATS, ms", report.end_to_end_ms_p50, report.end_to_end_ms_p95, report.end_to_end_ms_p99);
    outln!("{:<28} {:>12.3}", "recall at 10", report.recall_at_10);
    let known = |figure: Option<f64>| figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.1}"));
    outln!("{:<28} {:>12}", "bytes per vector", known(report.vector_bytes_per_point));
    outln!("{:<28} {:>12}", "compression ratio", known(report.memory_ratio));
    outln!("{:<28} {:>12.1}", "vector store memory, MiB", report.resident_mib);
    outln!("{:<28} {:>12.1}", "load and index, s", report.load_seconds);
}
