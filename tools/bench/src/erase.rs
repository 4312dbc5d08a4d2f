//! `memfleet bench erase`: the time in which a person with many rows, points and messages is exported and erased, and what a neighbour's writes
//! notice of the erasure.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use async_nats::jetstream;
use clap::Args;
use cli::{errln, outln};
use config::{EmbedderSettings, Settings};
use contract::UserId;
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Text};
use diesel_async::RunQueryDsl;
use playground::Local;
use privacy::access::{self, DEFAULT_PART_BYTES, NewExport, Recipient};
use privacy::process::{self, Stores};
use privacy::request::{self, NewRequest};
use privacy::{Advance, Removal, Step};
use runtime::broker;
use serde::Serialize;
use store::Connection;
use tokio::sync::watch;
use tokio::time::sleep;
use uuid::Uuid;
use vectors::ALIAS;

use super::clustered::{self, DIMENSION, MODEL};
use super::filled::fill_tables;
use super::{on_private_servers_with_vectors, percentile, retention, rounded};

#[derive(Debug, Args)]
pub(super) struct EraseArgs {
    /// Rows of the person in the tables of contexts, memories of agents, decisions and events together.
    #[arg(long, default_value_t = 10_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(100..=10_000_000))]
    rows: u32,

    /// Indexed memories of the person, each with a row, a node and a point.
    #[arg(long, default_value_t = 10_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    points: u32,

    /// Requests of the person that the broker stores.
    #[arg(long, default_value_t = 100, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(0..=100_000))]
    messages: u32,

    /// Print one JSON object, on the last line of standard output.
    #[arg(long)]
    json: bool,
}

/// The results.
#[derive(Debug, Serialize)]
struct Report {
    /// The time in which all that is stored of the person was exported, with vectors, before the erasure.
    export_seconds: f64,
    /// From the fence until no store has anything of the person and the data keys are destroyed. The seal and the receipt come after it.
    erase_seconds: f64,
    /// The 99th percentile of the time of a neighbour's write during that time, divided by the one before.
    writer_p99_ratio: f64,
    /// Rows, messages and points of the person afterwards.
    canaries_found: u64,
}

/// The person.
const PERSON: i32 = 1;
/// What every text of the person has.
const CANARY: &str = "canary-7f21";
/// Rows of the person beside the memories: `{rows}` together.
const FILL: [&str; 4] = [
    "INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value)
     SELECT uuid7(), 1, 's', 'k' || n, jsonb_build_object('note', '{canary}') FROM generate_series(1, {rows} / 4) AS n",
    "INSERT INTO agent_context_states (id, agent_id, user_id, session_id, memory_tier, context_key, context_value)
     SELECT uuid7(), 'a', 1, 's', 'shared', 'k' || n, jsonb_build_object('note', '{canary}') FROM generate_series(1, {rows} / 4) AS n",
    "INSERT INTO router_decision_log (id, user_id, session_id, user_request, routing_decision)
     SELECT uuid7(), 1, 's', '{canary}', '{}' FROM generate_series(1, {rows} / 4) AS n",
    "INSERT INTO blackboard_events (id, event_type, performative, source_agent_id, user_id, session_id, event_payload, logical_timestamp)
     SELECT uuid7(), 'context.stored', 'inform', 'bench', 1, 's', jsonb_build_object('note', '{canary}'), 1
     FROM generate_series(1, {rows} / 4) AS n",
];
/// How long the neighbour is measured before the erasure.
const ALONE: Duration = Duration::from_secs(5);
const STUCK_AFTER: Duration = Duration::from_secs(600);
/// The pause before a step that has to wait is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(50);

pub(super) async fn execute(args: &EraseArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut settings = settings.clone();
    // The memories bring their vectors.
    (settings.embedder, settings.next_embedder) = (EmbedderSettings::default(), EmbedderSettings::default());
    (settings.vectors.model, settings.vectors.dimension) = (Some(MODEL.to_owned()), Some(DIMENSION));
    let report = on_private_servers_with_vectors(&settings, async |local| measure(args, local).await).await?;
    if args.json {
        outln!("{}", serde_json::to_string(&report).context("cannot serialize the report")?);
        return Ok(());
    }
    outln!("exported within, s        {:>10.2}", report.export_seconds);
    outln!("erased within, s          {:>10.2}", report.erase_seconds);
    outln!("writer p99, during/before {:>10.2}", report.writer_p99_ratio);
    outln!("found afterwards          {:>10}", report.canaries_found);
    Ok(())
}

async fn measure(args: &EraseArgs, local: &Local) -> anyhow::Result<Report> {
    let settings = &local.settings;
    let mut owner = store::connect(&settings.postgres.url).await?;
    fill(args, settings, &mut owner).await?;
    errln!("exporting");
    let export_seconds = rounded(export(settings).await?.as_secs_f64());
    let (stop, stopped) = watch::channel(false);
    let writer = tokio::spawn(retention::write(settings.postgres.url.clone(), stopped));
    sleep(ALONE).await;
    errln!("erasing");
    let erased = erase(settings, &mut owner).await;
    let _ = stop.send(true);
    let times = writer.await.context("the writer panicked")??;
    let (began, took) = erased?;
    let of = |during: bool| {
        let within = |at: Instant| (began..began + took).contains(&at) == during;
        times.iter().filter(|(at, _)| within(*at)).map(|(_, time)| *time).collect::<Vec<f64>>()
    };
    Ok(Report {
        export_seconds,
        erase_seconds: rounded(took.as_secs_f64()),
        writer_p99_ratio: rounded(percentile(&of(true), 0.99) / percentile(&of(false), 0.99)),
        canaries_found: found(settings, &mut owner).await?,
    })
}

/// Gives the person rows, points and messages.
async fn fill(args: &EraseArgs, settings: &Settings, owner: &mut Connection) -> anyhow::Result<()> {
    clustered::fill(owner, args.points, 1).await?;
    let values = [("{rows}", args.rows.to_string()), ("{canary}", CANARY.to_owned())];
    fill_tables(owner, &FILL, &values).await?;
    let vectors = vector_indexer::collection::vectors(settings)?;
    let collection = active(owner).await?;
    clustered::load(owner, &vectors, &collection).await?;
    errln!("publishing messages");
    let jetstream = broker(settings).await?;
    for number in 0..args.messages {
        let body = serde_json::json!({ "username": CANARY, "email": format!("{number}@example.org") });
        let subject = format!("memory.req.bench.user.put.{PERSON}");
        jetstream.publish(subject, body.to_string().into()).await?.await?;
    }
    Ok(())
}

async fn broker(settings: &Settings) -> anyhow::Result<jetstream::Context> {
    Ok(jetstream::new(broker::connect_operator(&settings.nats, "bench").await?))
}

/// The collection that is searched.
async fn active(owner: &mut Connection) -> anyhow::Result<String> {
    let active = store::vector::collections(owner, ALIAS, &["active"]).await?.into_iter().next();
    Ok(active.context("no active collection")?.collection_name)
}

/// Exports all that is stored of the person into a folder, which is deleted afterwards. Gives how long it took.
async fn export(settings: &Settings) -> anyhow::Result<Duration> {
    let folder = tempfile::tempdir().context("cannot create a folder for the export")?;
    let (recipient, _) = Recipient::generate();
    let new = NewExport {
        user: UserId::new(PERSON)?,
        service: "operator".to_owned(),
        reason: None,
        folder: folder.path().join("export"),
        recipient,
        part_bytes: DEFAULT_PART_BYTES,
    };
    let began = Instant::now();
    let export = access::export(settings, new).await?;
    ensure!(export.rows > 0, "the export of a filled person is empty");
    Ok(began.elapsed())
}

/// Erases the person. Gives when the fence was begun, and how long it took until the last store was empty.
async fn erase(settings: &Settings, owner: &mut Connection) -> anyhow::Result<(Instant, Duration)> {
    let new = NewRequest {
        removal: Removal::Erase,
        service: "operator".to_owned(),
        reason: "benchmark".to_owned(),
    };
    let id = request::submit(owner, UserId::new(PERSON)?, new).await?.id;
    let mut stores = Stores::open(settings).await?;
    let began = Instant::now();
    let mut took = None;
    while began.elapsed() < STUCK_AFTER {
        let claimed = request::claim(owner, Uuid::now_v7(), Some(id)).await?;
        let mut claimed = claimed.context("the erasure is gone")?;
        loop {
            match process::advance(&mut stores, &mut claimed).await? {
                Advance::Next(step) => {
                    if step == Step::Seal {
                        took = Some(began.elapsed());
                    }
                }
                Advance::Waiting(_) => break,
                Advance::Done => return Ok((began, took.context("no step before the seal")?)),
                Advance::Held(hold) => bail!("the hold {} keeps the rows of a new person", hold.id),
            }
        }
        sleep(RETRY_AFTER).await;
    }
    bail!("the erasure has not come to its end within {} s", STUCK_AFTER.as_secs())
}

#[derive(QueryableByName)]
struct Name {
    #[diesel(sql_type = Text)]
    name: String,
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = BigInt)]
    number: i64,
}

/// Rows with a text of the person, rows of the person, points, and messages.
async fn found(settings: &Settings, owner: &mut Connection) -> anyhow::Result<u64> {
    const TABLES: &str = "SELECT oid::regclass::text AS name FROM pg_class
        WHERE relkind = 'r' AND relnamespace IN ('public'::regnamespace, 'audit'::regnamespace, 'sec'::regnamespace)";
    let tables: Vec<Name> = diesel::sql_query(TABLES).load(owner).await?;
    ensure!(!tables.is_empty(), "the database has no tables");
    let mut found = 0;
    for table in tables {
        // The name comes from the catalog, which quotes it.
        let query = format!(
            "SELECT count(*) AS number FROM {} AS t
             WHERE position($1 IN t::text) > 0 OR (to_jsonb(t) ->> 'user_id') = '{PERSON}'",
            table.name
        );
        let row: Number = diesel::sql_query(query).bind::<Text, _>(CANARY).get_result(owner).await?;
        found += row.number.unsigned_abs();
    }
    let vectors = vector_indexer::collection::vectors(settings)?;
    found += vectors.collection_info(&active(owner).await?).await?.points;
    let jetstream = broker(settings).await?;
    let stream = jetstream.get_stream("CONTEXT").await?;
    let mut subjects = stream.info_with_subjects(format!("memory.req.*.*.*.{PERSON}")).await?;
    while let Some(subject) = futures::TryStreamExt::try_next(&mut subjects).await? {
        found += u64::try_from(subject.1).unwrap_or(u64::MAX);
    }
    Ok(found)
}
