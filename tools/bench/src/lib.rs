//! `memfleet bench`: benchmarks on private servers, part of the feature `dev`.

#![warn(clippy::print_stdout, clippy::print_stderr)]

mod archived;
mod asking;
mod bulk;
mod ceiling;
mod clustered;
mod consensus;
mod consensus_stream;
mod context;
mod corpus;
mod crowd;
mod erase;
mod fairness;
mod filled;
mod grants;
mod index;
mod indexes;
mod pipeline;
mod process;
mod questions;
mod reads;
mod retention;
mod retrieval;
mod router;
mod search;
mod secured;
mod sync;
mod trust;
mod write_path;

use anyhow::ensure;
use clap::{Args, Subcommand};
use cli::output::step;
use cli::signal::interrupted;
use config::Settings;
use playground::Local;
use stack::StackOptions;

use consensus::ConsensusArgs;
use consensus_stream::ConsensusStreamArgs;
use context::ContextArgs;
use erase::EraseArgs;
use fairness::FairnessArgs;
use index::IndexArgs;
use indexes::IndexesArgs;
use questions::QuestionsArgs;
use reads::ReadsArgs;
use retention::RetentionArgs;
use retrieval::RetrievalArgs;
use router::RouterArgs;
use search::SearchArgs;
use sync::SyncArgs;
use trust::TrustArgs;
use write_path::WritePathArgs;

/// Runs benchmarks on private servers, which are removed afterwards.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Contexts through context-writer, compared with the same statements on the database alone.
    ///
    /// Messages of 1 KB, a quarter of them updates of earlier keys, are stored in the broker first; then one worker
    /// process consumes them all. The ceiling is the same statements on the same server, from prebuilt batches.
    /// Both run alternately, and the medians are printed.
    Context(ContextArgs),
    /// The cost of row-level security, events and the audit trail for a batch of inserts, layer by layer.
    ///
    /// The same batches are inserted into four tables shaped like that of contexts: a bare one, one with row-level
    /// security, one that also writes an event per row, and one that also writes the audit trail. The tables alternate,
    /// batch by batch.
    WritePath(WritePathArgs),
    /// The benefit of each index for its query, and its cost for a batch of inserts.
    Indexes(IndexesArgs),
    /// The cost of row-level security for the reads of the reference document, over many rows of many users.
    Reads(ReadsArgs),
    /// Routing decisions through router-logger, compared with the same statements on the database alone.
    ///
    /// Like `bench context`. A decision is written to the log and added to the hourly routing statistics.
    Router(RouterArgs),
    /// The latency of memory-reader in PostgreSQL, in one process and over NATS, compared with the bare SQL queries.
    Questions(QuestionsArgs),
    /// The cost of security: verifying tokens and grants, encrypting and decrypting fields, and the whole write path
    /// with security on and off.
    Trust(TrustArgs),
    /// The latency and the recall of vector searches, at the vector store and over NATS.
    ///
    /// The vectors are synthetic and lie in about twenty clusters per user. Recall is the share of the results of an
    /// exact search that a search finds.
    Search(SearchArgs),
    /// The throughput of vector-indexer, and the time from publish until a search finds the memory.
    Index(IndexArgs),
    /// The recall of full-text, vector and hybrid searches.
    ///
    /// Conversations are indexed turn by turn, and searched with questions whose answering turns are known.
    Retrieval(RetrievalArgs),
    /// The latency of a service while another one floods the workers.
    ///
    /// A neighbour asks or publishes at a steady rate, first alone and then during each flood: queries with bad tokens, large
    /// and small contexts, malformed requests, and long texts to index.
    Fairness(FairnessArgs),
    /// The accuracy of majority vote, of the batch rule and of the online rule on a crowd data set with known truth.
    ///
    /// The truth is used to score the rules and for nothing else. A tie between n answers counts as 1/n. Online, the answers go
    /// through consensus-builder as responses of agents, one by one in the order of the file; the agents' reliability is
    /// estimated anew by ticks of its job, after each tenth of the answers.
    Consensus(ConsensusArgs),
    /// Responses of agents through consensus-builder, compared with the same statements on the database alone; the close of a
    /// task; and the estimate of the agents' reliability.
    ///
    /// Like `bench context`: tasks of five agents are delegated first, and their responses are stored in the broker. The
    /// last response to a task closes it.
    ConsensusStream(ConsensusStreamArgs),
    /// Syncs of 100 keys through memory-sync, compared with the same statements on the database alone; the time until one is
    /// completed at a steady rate; and how far a live sync lags behind its source.
    ///
    /// Like `bench context`. The target of each sync has written half of the keys too, so these are merged.
    Sync(SyncArgs),
    /// Rows that retention-cleaner deletes in a second, compared with one DELETE of as many rows; and the time of a writer's
    /// transactions, without and during the sweep.
    Retention(RetentionArgs),
    /// The time in which a person is erased from all stores, and the time of a neighbour's transactions before and meanwhile.
    Erase(EraseArgs),
}

/// Runs `memfleet bench`.
///
/// # Errors
/// If a server cannot be started, or a measurement fails.
pub async fn execute(args: BenchArgs, settings: &Settings) -> anyhow::Result<()> {
    match args.what {
        What::Context(args) => context::execute(args, settings).await,
        What::WritePath(args) => write_path::execute(&args, settings).await,
        What::Indexes(args) => indexes::execute(&args, settings).await,
        What::Reads(args) => reads::execute(&args, settings).await,
        What::Router(args) => router::execute(&args, settings).await,
        What::Questions(args) => questions::execute(&args, settings).await,
        What::Trust(args) => trust::execute(&args, settings).await,
        What::Search(args) => search::execute(&args, settings).await,
        What::Index(args) => index::execute(&args, settings).await,
        What::Retrieval(args) => retrieval::execute(&args, settings).await,
        What::Fairness(args) => fairness::execute(&args, settings).await,
        What::Consensus(args) => consensus::execute(args, settings).await,
        What::ConsensusStream(args) => consensus_stream::execute(&args, settings).await,
        What::Sync(args) => sync::execute(&args, settings).await,
        What::Retention(args) => retention::execute(&args, settings).await,
        What::Erase(args) => erase::execute(&args, settings).await,
    }
}

/// Runs a measurement on private servers, which are stopped in any case, also after Ctrl-C.
async fn on_private_servers<T>(
    settings: &Settings,
    measure: impl AsyncFnOnce(&Local) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let starting = Local::temporary(settings, StackOptions::default());
    on_servers(step("starting private NATS and PostgreSQL", starting).await?, measure).await
}

/// As [`on_private_servers`], with a vector store.
async fn on_private_servers_with_vectors<T>(
    settings: &Settings,
    measure: impl AsyncFnOnce(&Local) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let starting = Local::temporary(settings, StackOptions { vectors: true, ..StackOptions::default() });
    on_servers(step("starting private NATS, PostgreSQL and vector store", starting).await?, measure).await
}

async fn on_servers<T>(
    local: Local,
    measure: impl AsyncFnOnce(&Local) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let measured = tokio::select! {
        measured = measure(&local) => measured,
        interrupted = interrupted() => interrupted.and_then(|()| anyhow::bail!("interrupted")),
    };
    let stopped = local.stop().await;
    let report = measured?;
    stopped?;
    Ok(report)
}

fn median(values: impl IntoIterator<Item = f64>) -> anyhow::Result<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    ensure!(!values.is_empty(), "nothing was measured");
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    Ok(if values.len().is_multiple_of(2) { f64::midpoint(at(middle - 1), at(middle)) } else { at(middle) })
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The percentile of values, by nearest rank.
fn percentile(values: &[f64], share: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    // Of a hundred values, the 99th smallest is the 99th percentile.
    let place = (share * values.len() as f64).ceil() as usize;
    values.get(place.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
