//! `memfleet bench`

mod asking;
mod ceiling;
mod clustered;
mod context;
mod corpus;
mod filled;
mod grants;
mod index;
mod indexes;
mod pipeline;
mod process;
mod questions;
mod reads;
mod retrieval;
mod router;
mod search;
mod secured;
mod trust;
mod write_path;

use anyhow::ensure;
use clap::{Args, Subcommand};
use config::Settings;
use stack::StackOptions;

use crate::carry::step;
use crate::local::Local;
use context::ContextArgs;
use index::IndexArgs;
use indexes::IndexesArgs;
use questions::QuestionsArgs;
use reads::ReadsArgs;
use retrieval::RetrievalArgs;
use router::RouterArgs;
use search::SearchArgs;
use trust::TrustArgs;
use write_path::WritePathArgs;

/// Measures on private servers, which are removed afterwards.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Contexts through the context-writer: how close it comes to what the database alone can do.
    ///
    /// Messages of 1 KB, a quarter of them updates of earlier keys, are stored in the broker first; then one worker
    /// process takes them all. The ceiling is the same statements on the same server, from batches made before.
    /// Both are run in turns, and the medians are printed.
    Context(ContextArgs),
    /// What isolation, events and the audit trail cost a batch of inserts, one after the other.
    ///
    /// The same batches go to four tables like the one of contexts: a bare one, one with row-level security under a batch's
    /// context, the same with an event for each row, and that with the audit trail. They take turns, batch by batch.
    WritePath(WritePathArgs),
    /// Which index serves which query, and what it costs a batch of inserts.
    Indexes(IndexesArgs),
    /// What row-level security costs the reads of the reference document, over many rows of many users.
    Reads(ReadsArgs),
    /// Decisions through the router-logger: how close it comes to what the database alone can do.
    ///
    /// As for contexts. A decision is written to the log and added to what is learnt by the hour.
    Router(RouterArgs),
    /// What memory-reader takes for an answer, in PostgreSQL, in one process and over NATS, beside the bare queries.
    Questions(QuestionsArgs),
    /// What it costs to believe a message and to keep a secret: a token, seen before or not, the grant in it, a field
    /// encrypted and decrypted; and the whole way with everything on beside the same with it off.
    Trust(TrustArgs),
    /// What a search among vectors takes and finds: at the vector store, and over NATS with everything else.
    ///
    /// The vectors are made up and lie in clusters, some twenty for each user. Recall is what a search finds of what a comparison
    /// with every vector finds.
    Search(SearchArgs),
    /// How many memories vector-indexer takes a second, and how long it is until a search finds one.
    Index(IndexArgs),
    /// How much of what answers a question searches find, by words, by meaning and by both.
    ///
    /// Conversations are told to the memory turn by turn, and it is asked questions of which is known which turns answer them.
    Retrieval(RetrievalArgs),
}

/// Carries out `memfleet bench`.
///
/// # Errors
/// If the servers do not start or not everything arrives.
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
    }
}

/// Measures something on private servers, which are stopped whatever comes of it, also by Ctrl-C.
async fn on_private_servers<T>(
    settings: &Settings,
    measure: impl AsyncFnOnce(&Local) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let starting = Local::temporary(settings, StackOptions::default());
    on_servers(step("starting private NATS and PostgreSQL", starting).await?, measure).await
}

/// The same with a vector store.
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
        interrupted = super::run::interrupted() => interrupted.and_then(|()| anyhow::bail!("interrupted")),
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

/// The value below which this share of all lies.
fn percentile(values: &[f64], share: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    // Of a hundred values the 99th is the one at the 99th percentile.
    let place = (share * values.len() as f64).ceil() as usize;
    values.get(place.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
