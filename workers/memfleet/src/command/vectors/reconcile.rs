//! `memfleet vectors reconcile`

use std::time::Duration;

use ::vectors::Embedders;
use anyhow::{bail, ensure};
use clap::Args;
use cli::outln;
use cli::output::{out_json, printable};
use cli::signal::interrupted;
use cli::table::grouped;
use config::Settings;
use serde_json::json;
use store::job_runs::{self, Counts};
use store::vector::{self, Collection};
use tokio::time::{MissedTickBehavior, interval};
use vector_indexer::collection;
use vector_indexer::reconcile::{Findings, Reconciler};

/// The reconciler in `job_runs`.
const JOB: &str = "vector-reconcile";

#[derive(Debug, Args)]
pub(super) struct ReconcileArgs {
    /// Delete points without a memory, and embed memories without a point again.
    #[arg(long)]
    repair: bool,
    /// Repeat every vectors.reconcile_every_s seconds until SIGTERM or Ctrl-C, also after failures.
    #[arg(long)]
    follow: bool,
    /// Seconds during which a point without a memory is ignored: its transaction may not be committed yet.
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=3600))]
    grace: u64,
    /// Number of memories without a point to accept: those left out by `migrate --without`.
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    without: u64,
    /// Print one JSON object for each collection.
    #[arg(long)]
    json: bool,
}

pub(super) async fn execute(args: &ReconcileArgs, settings: &Settings) -> anyhow::Result<()> {
    // Reports configuration errors immediately instead of only in the log of --follow.
    collection::vectors(settings)?;
    let embedders = Embedders::open(&[&settings.embedder, &settings.next_embedder]).await?;
    tokio::select! {
        done = reconcile(args, settings, &embedders), if !args.follow => done,
        () = follow(args, settings, &embedders), if args.follow => Ok(()),
        stopped = interrupted() => {
            stopped?;
            if args.follow { Ok(()) } else { bail!("interrupted; completed repairs are kept") }
        }
    }
}

/// Reconciles periodically, forever. Failures are logged: an unreachable server may come back.
async fn follow(args: &ReconcileArgs, settings: &Settings, embedders: &Embedders) {
    let mut ticks = interval(Duration::from_secs(settings.vectors.reconcile_every_s));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match reconcile(args, settings, embedders).await {
            Ok(()) => tracing::info!(without = args.without, "the vector store matches the database"),
            Err(error) => tracing::error!("reconciliation failed: {error:#}"),
        }
    }
}

/// Compares each collection once. Returns an error if the stores differ and were not repaired.
async fn reconcile(args: &ReconcileArgs, settings: &Settings, embedders: &Embedders) -> anyhow::Result<()> {
    let vectors = collection::vectors(settings)?;
    let mut connection = super::connect(settings).await?;
    let collections = vector::collections(&mut connection, vectors.alias(), &["active", "filling"]).await?;
    ensure!(!collections.is_empty(), "no collection; `memfleet vectors apply` creates it");
    collection::check_owned(&vectors, &collections).await?;
    let (mut orphans, mut gaps, mut counts) = (0, 0, Counts::default());
    for one in &collections {
        let reconciler = Reconciler {
            vectors: &vectors,
            collection: one,
            embedder: embedders.of(&one.model),
            // `migrate` fills the gaps of a collection that is being filled.
            repair: args.repair && one.is_active(),
            grace: Duration::from_secs(args.grace),
        };
        let found = reconciler.run(&mut connection).await?;
        print_findings(one, &found, args.json);
        counts.examined += found.points + found.memories;
        counts.changed += found.repaired;
        if one.is_active() {
            // After a repair, only gaps that are not repairable remain.
            (orphans, gaps) = if args.repair { (0, found.lost) } else { (found.orphans, found.gaps) };
        }
    }
    let differs = orphans > 0 || gaps > args.without;
    counts.failure = differs.then(|| format!("the stores differ in {} places", orphans + gaps));
    job_runs::note_pass(&mut connection, JOB, &counts).await?;
    ensure!(
        !differs,
        "the stores differ in {} places{}",
        orphans + gaps,
        if args.repair { " that cannot be repaired" } else { "; run with --repair" }
    );
    Ok(())
}

pub(super) fn print_findings(one: &Collection, found: &Findings, json: bool) {
    let Findings { points, memories, orphans, gaps, repaired, lost } = *found;
    if json {
        out_json(
            json!({ "collection": one.collection_name, "state": one.state, "points": points, "memories": memories,
                "orphans": orphans, "gaps": gaps, "repaired": repaired, "lost": lost }),
        );
    } else {
        outln!(
            "{}: {} points of {} memories; {orphans} points without a memory, {gaps} memories without a point; \
             {repaired} repaired, {lost} not repairable (vector supplied by the publisher, or text rejected by the embedder)",
            printable(&one.collection_name),
            grouped(points),
            grouped(memories)
        );
    }
}
