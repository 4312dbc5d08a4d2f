//! `memfleet vectors reconcile`

use std::time::Duration;

use ::vectors::{ALIAS, Embedders};
use anyhow::{bail, ensure};
use clap::Args;
use cli::outln;
use cli::signal::interrupted;
use cli::table::grouped;
use config::Settings;
use serde_json::json;
use store::vector::{self, Collection};
use tokio::time::{MissedTickBehavior, interval};
use vector_indexer::collection;
use vector_indexer::reconcile::{Findings, Reconciler};

#[derive(Debug, Args)]
pub(super) struct ReconcileArgs {
    /// Delete what has no memory, and make missing vectors anew.
    #[arg(long)]
    repair: bool,
    /// Go on every vectors.reconcile_every_s seconds until SIGTERM or Ctrl-C, also after a failure.
    #[arg(long)]
    follow: bool,
    /// How long a point may be without its memory, in seconds: its transaction may be under way.
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=3600))]
    grace: u64,
    /// How many memories may be without their points: what `migrate --without` has left out.
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    without: u64,
    /// Print one JSON object for each collection.
    #[arg(long)]
    json: bool,
}

pub(super) async fn execute(args: &ReconcileArgs, settings: &Settings) -> anyhow::Result<()> {
    // What is configured wrong shows at once, and not in a log later.
    collection::vectors(settings)?;
    let embedders = Embedders::open(&[&settings.embedder, &settings.next_embedder]).await?;
    tokio::select! {
        done = reconcile(args, settings, &embedders), if !args.follow => done,
        () = follow(args, settings, &embedders), if args.follow => Ok(()),
        stopped = interrupted() => {
            stopped?;
            if args.follow { Ok(()) } else { bail!("interrupted; what is repaired stays repaired") }
        }
    }
}

/// Compares again and again. It never ends by itself: a server that is away comes back.
async fn follow(args: &ReconcileArgs, settings: &Settings, embedders: &Embedders) {
    let mut ticks = interval(Duration::from_secs(settings.vectors.reconcile_every_s));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match reconcile(args, settings, embedders).await {
            Ok(()) => tracing::info!(without = args.without, "the vector store and the database agree"),
            Err(error) => tracing::error!("vectors are not reconciled: {error:#}"),
        }
    }
}

/// Compares each collection once. An error if the stores differ, and are not repaired.
async fn reconcile(args: &ReconcileArgs, settings: &Settings, embedders: &Embedders) -> anyhow::Result<()> {
    let vectors = collection::vectors(settings)?;
    let mut connection = store::connect(&settings.postgres.url).await?;
    let collections = vector::collections(&mut connection, ALIAS, &["active", "filling"]).await?;
    ensure!(!collections.is_empty(), "there is no collection; `memfleet vectors apply` makes it");
    let (mut orphans, mut gaps) = (0, 0);
    for one in &collections {
        let reconciler = Reconciler {
            vectors: &vectors,
            collection: one,
            embedder: embedders.of(&one.model),
            // What is missing in a collection that is being filled comes with `migrate`.
            repair: args.repair && one.is_active(),
            grace: Duration::from_secs(args.grace),
        };
        let found = reconciler.run(&mut connection).await?;
        tell(one, &found, args.json);
        if one.is_active() {
            // A repair leaves no orphan, and of the gaps those that nobody can mend.
            (orphans, gaps) = if args.repair { (0, found.lost) } else { (found.orphans, found.gaps) };
        }
    }
    ensure!(
        orphans == 0 && gaps <= args.without,
        "the stores differ in {} places{}",
        orphans + gaps,
        if args.repair { ", which cannot be repaired" } else { "; --repair mends them" }
    );
    Ok(())
}

pub(super) fn tell(one: &Collection, found: &Findings, json: bool) {
    let Findings { points, memories, orphans, gaps, repaired, lost } = *found;
    if json {
        outln!(
            "{}",
            json!({ "collection": one.collection_name, "state": one.state, "points": points, "memories": memories,
                "orphans": orphans, "gaps": gaps, "repaired": repaired, "lost": lost })
        );
    } else {
        outln!(
            "{}: {} points of {} memories; {orphans} points without a memory, {gaps} memories without a point; {repaired} repaired, \
             {lost} cannot be: brought by their publishers, who alone can send them again, or refused by the embedder",
            one.collection_name,
            grouped(points),
            grouped(memories)
        );
    }
}
