//! `memfleet bench sync`: syncs between sessions through memory-sync, the time until one is completed, and how far a live sync
//! lags behind its source.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::Args;
use cli::tokens::Tokens;
use cli::{errln, outln};
use client::{Client, ClientOptions};
use config::Settings;
use contract::{ContextPut, Event, OutcomeStatus, SyncCarried, SyncStart};
use fleet::{Fleet, WorkerName};
use futures::StreamExt;
use memory_sync::MemorySync;
use playground::Local;
use runtime::broker;
use serde::Serialize;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use uuid::Uuid;

use super::asking::SERVICE;
use super::bulk::Prepared;
use super::ceiling;
use super::filled::fill_tables;
use super::pipeline::{Pipeline, Run, add_payload_key};
use super::process::Meter;
use super::{median, on_private_servers, percentile, rounded};

#[derive(Debug, Args)]
pub(super) struct SyncArgs {
    /// Syncs in each run.
    #[arg(long, default_value_t = 300, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(10..=100_000))]
    syncs: u32,

    /// Runs of each kind.
    #[arg(long, default_value_t = 3, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=20))]
    runs: u32,

    /// Syncs that are started at a steady rate, and timed one by one.
    #[arg(long, default_value_t = 100, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(10..=10_000))]
    paced: u32,

    /// How many of these are started each second. More than the machine carries makes them wait for each other.
    #[arg(long, default_value_t = 5, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rate: u32,

    /// Rounds of writes to the sources of ten live syncs.
    #[arg(long, default_value_t = 20, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    live: u32,

    /// Print one JSON object, on the last line of standard output.
    #[arg(long)]
    json: bool,
}

/// The first user of the benchmark.
const FIRST_USER: i32 = 2_000_000_001;
const USERS: i32 = 50;
/// Keys of a source. The target has written half of them too.
const KEYS: u32 = 100;
/// Users with a live sync.
const LIVE: i32 = 10;
/// Syncs before the time of one is measured, so that connections are open and statements are prepared.
const WARM_UP: u32 = 10;
/// No sync and no event takes longer.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// The results.
#[derive(Debug, Serialize)]
struct Report {
    /// Through the worker, from its first pull until everything is settled.
    syncs_per_second: f64,
    /// The same statements from prebuilt batches.
    ceiling_syncs_per_second: f64,
    /// `syncs_per_second` divided by `ceiling_syncs_per_second`.
    ratio: f64,
    /// From publish until the outcome, at a steady rate.
    p50_ms: f64,
    p99_ms: f64,
    /// From the publish of a context in the source of a live sync until the event that it has been carried.
    live_lag_ms_p50: f64,
    live_lag_ms_p99: f64,
    /// The peak memory of the worker process.
    peak_rss_mib: f64,
}

pub(super) async fn execute(args: &SyncArgs, settings: &Settings) -> anyhow::Result<()> {
    let report = on_private_servers(settings, async |local| measure(args, local).await).await?;
    if args.json {
        outln!("{}", serde_json::to_string(&report).context("cannot serialize the report")?);
        return Ok(());
    }
    outln!("syncs of {KEYS} keys/s        {:>10.1}", report.syncs_per_second);
    outln!("ceiling, syncs/s          {:>10.1}", report.ceiling_syncs_per_second);
    outln!("ratio                     {:>10.2}", report.ratio);
    outln!("publish to outcome, ms p50 {:>9.1}", report.p50_ms);
    outln!("publish to outcome, ms p99 {:>9.1}", report.p99_ms);
    outln!("lag of a live sync, ms p50 {:>9.1}", report.live_lag_ms_p50);
    outln!("lag of a live sync, ms p99 {:>9.1}", report.live_lag_ms_p99);
    outln!("peak worker memory, MiB   {:>10.1}", report.peak_rss_mib);
    Ok(())
}

async fn measure(args: &SyncArgs, local: &Local) -> anyhow::Result<Report> {
    let settings = &local.settings;
    add_payload_key(settings)?;
    let worker = MemorySync::open(settings)?;
    let pipeline = Pipeline::open::<MemorySync>(settings).await?;
    let mut pairs = Pairs { next: 0 };
    fill(settings, 1 + 2 * args.runs * args.syncs + WARM_UP + args.paced).await?;
    let meter = Meter::new(local.stack());
    // Connections are open and statements are prepared afterwards.
    pipeline.process(pairs.requests(1)?, WorkerName::MemorySync).await?;
    let (mut ceilings, mut runs): (Vec<f64>, Vec<Run>) = (Vec::new(), Vec::new());
    for run in 1..=args.runs {
        errln!("run {run} of {}: the statements alone, then the worker", args.runs);
        ceilings.push(ceiling::measure(&worker, settings, pairs.requests(args.syncs)?).await?);
        runs.push(pipeline.measure(&pairs.requests(args.syncs)?, &meter).await?);
    }
    let fleet = Fleet::start(&[WorkerName::ContextWriter, WorkerName::MemorySync], settings);
    let timed = async {
        let client = client(settings).await?;
        let times = paced(args, &client, &mut pairs).await?;
        let lags = live(args, settings, &client).await?;
        anyhow::Ok((times, lags))
    };
    let timed = timed.await;
    let stopped = fleet.stop().await;
    let (times, lags) = timed?;
    stopped?;
    let syncs_per_second = median(runs.iter().map(|run| run.messages_per_second))?;
    let ceiling_syncs_per_second = median(ceilings)?;
    Ok(Report {
        syncs_per_second: rounded(syncs_per_second),
        ceiling_syncs_per_second: rounded(ceiling_syncs_per_second),
        ratio: rounded(syncs_per_second / ceiling_syncs_per_second),
        p50_ms: rounded(percentile(&times, 0.5)),
        p99_ms: rounded(percentile(&times, 0.99)),
        live_lag_ms_p50: rounded(percentile(&lags, 0.5)),
        live_lag_ms_p99: rounded(percentile(&lags, 0.99)),
        peak_rss_mib: rounded(median(runs.iter().map(|run| run.peak_rss_mib))?),
    })
}

/// The rows: pairs of sessions, of which each is synced once, and a pair for each live sync.
const FILL: [&str; 4] = [
    "INSERT INTO users (id, username, email) SELECT u, 'bench' || u, u || '@example.org'
     FROM generate_series({first}, {first} + {users} - 1) AS u",
    "INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode)
     SELECT uuid7(), {first} + n % {users}, side || n, 'simple'
     FROM generate_series(0, {pairs} - 1) AS n, unnest(ARRAY['source-', 'target-']) AS side",
    "INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode)
     SELECT uuid7(), {first} + n, 'live-' || side, 'simple' FROM generate_series(0, {live} - 1) AS n, unnest(ARRAY['source', 'target']) AS side",
    "INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value, access_level)
     SELECT uuid7(), {first} + n % {users}, side || n, 'key-' || k, jsonb_build_object('of', k, 'note', repeat('quiet museum ', 8), side, n), 'shared'
     FROM generate_series(0, {pairs} - 1) AS n, generate_series(1, {keys}) AS k, unnest(ARRAY['source-', 'target-']) AS side
     WHERE side = 'source-' OR k % 2 = 0",
];

async fn fill(settings: &Settings, pairs: u32) -> anyhow::Result<()> {
    let mut owner = store::connect(&settings.postgres.url).await?;
    let values = [
        ("{first}", FIRST_USER.to_string()),
        ("{users}", USERS.to_string()),
        ("{pairs}", pairs.to_string()),
        ("{keys}", KEYS.to_string()),
        ("{live}", LIVE.to_string()),
    ];
    fill_tables(&mut owner, &FILL, &values).await
}

/// Pairs of sessions that no sync has named yet.
struct Pairs {
    next: u32,
}

impl Pairs {
    fn start(&mut self) -> anyhow::Result<(i32, SyncStart)> {
        let pair = self.next;
        self.next += 1;
        let body = json!({
            "sync_id": Uuid::now_v7(), "source_session_id": format!("source-{pair}"),
            "target_session_id": format!("target-{pair}"), "sync_type": "context_transfer",
        });
        Ok((FIRST_USER + i32::try_from(pair)? % USERS, serde_json::from_value(body)?))
    }

    fn requests(&mut self, count: u32) -> anyhow::Result<Vec<Prepared>> {
        let request = |_| {
            let (user, start) = self.start()?;
            let body = serde_json::to_vec(&start).context("cannot serialize a request")?;
            let subject = format!("memory.req.bench.sync.start.{user}");
            Ok(Prepared { subject, id: Uuid::now_v7(), body: Bytes::from(body) })
        };
        (0..count).map(request).collect()
    }
}

/// A client as a chat service has it.
async fn client(settings: &Settings) -> anyhow::Result<Client> {
    let options = ClientOptions {
        outcome_timeout: STUCK_AFTER,
        payload_ring_file: settings.trust.payload_ring_file.as_ref().map(PathBuf::from),
        ..ClientOptions::new(settings.nats.url.clone(), SERVICE.parse()?)
    };
    let connection = broker::connect(&settings.nats, SERVICE).await?;
    let tokens = Tokens::open(settings, None).await?;
    Ok(Client::over(connection, tokens.of_service(options.service.clone()), &options)?)
}

/// Milliseconds from publish to outcome, of syncs that are started at a steady rate.
async fn paced(args: &SyncArgs, client: &Client, pairs: &mut Pairs) -> anyhow::Result<Vec<f64>> {
    errln!("starting {} syncs a second", args.rate);
    for _ in 0..WARM_UP {
        let (user, start) = pairs.start()?;
        client.user(user).send(start).await?;
    }
    let mut tick = interval(Duration::from_secs(1) / args.rate);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut running = JoinSet::new();
    for _ in 0..args.paced {
        let (user, start) = pairs.start()?;
        let user = client.user(user);
        tick.tick().await;
        running.spawn(async move {
            let since = Instant::now();
            let outcome = user.send(start).await?;
            ensure!(outcome.status == OutcomeStatus::Applied, "a sync had no effect: {:?}", outcome.reason);
            Ok(since.elapsed().as_secs_f64() * 1_000.0)
        });
    }
    let mut times = Vec::with_capacity(running.len());
    while let Some(done) = running.join_next().await {
        times.push(done.context("a sync panicked")??);
    }
    Ok(times)
}

/// Milliseconds from the publish of a context in the source of a live sync until the event that it has been carried.
async fn live(args: &SyncArgs, settings: &Settings, client: &Client) -> anyhow::Result<Vec<f64>> {
    errln!("writing to the sources of {LIVE} live syncs");
    let users = FIRST_USER..FIRST_USER + LIVE;
    let operator = broker::connect_operator(&settings.nats, "bench-events").await?;
    let mut events = operator.subscribe("memory.event.sync.carried.*").await?;
    operator.flush().await?;
    for user in users.clone() {
        let start: SyncStart = serde_json::from_value(json!({
            "sync_id": Uuid::now_v7(), "source_session_id": "live-source", "target_session_id": "live-target",
            "sync_type": "state_sync",
        }))?;
        client.user(user).send(start).await?;
    }
    let mut lags = Vec::new();
    // The first round opens connections, and is not counted.
    for round in 0..=args.live {
        let key = format!("round-{round}");
        let mut published = BTreeMap::new();
        for user in users.clone() {
            published.insert(user, Instant::now());
            client.user(user).publish(put(&key)?).await?;
        }
        while !published.is_empty() {
            let event = timeout(STUCK_AFTER, events.next()).await;
            let event = event.context("a live sync carried nothing in time")?.context("no more events")?;
            let event: Event = serde_json::from_slice(&event.payload)?;
            let carried: SyncCarried = serde_json::from_str(event.payload.as_str())?;
            if !carried.keys.iter().any(|carried| carried.context_key == key) {
                continue;
            }
            if let Some(since) = published.remove(&event.user_id.get()).filter(|_| round > 0) {
                lags.push(since.elapsed().as_secs_f64() * 1_000.0);
            }
        }
    }
    Ok(lags)
}

fn put(key: &str) -> anyhow::Result<ContextPut> {
    Ok(serde_json::from_value(json!({
        "session_id": "live-source", "context_key": key, "context_value": { "museum": "open" }, "version": 1,
        "access_level": "shared",
    }))?)
}
