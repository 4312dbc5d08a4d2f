//! `memfleet bench retention`: rows that retention-cleaner deletes in a second, beside a bare `DELETE` of as many; what writers notice of
//! it; and rows that it archives in a second.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use async_nats::jetstream;
use chrono::{DateTime, Utc};
use clap::Args;
use cli::{errln, outln};
use config::Settings;
use diesel::QueryableByName;
use diesel::sql_types::{Bool, Integer, Nullable, Timestamptz};
use diesel_async::RunQueryDsl;
use fleet::{Fleet, WorkerName};
use playground::Local;
use runtime::broker;
use serde::Serialize;
use store::Connection;
use tokio::sync::watch;
use tokio::time::sleep;

use super::filled::fill_tables;
use super::{archived, on_private_servers, percentile, rounded};

#[derive(Debug, Args)]
pub(super) struct RetentionArgs {
    /// Rows that are due; as many are deleted by a bare statement.
    #[arg(long, default_value_t = 100_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(2_000..=10_000_000))]
    rows: u32,

    /// Users to distribute them over.
    #[arg(long, default_value_t = 200, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(2..=100_000))]
    users: u32,

    /// Print one JSON object, on the last line of standard output.
    #[arg(long)]
    json: bool,
}

/// The results.
#[derive(Debug, Serialize)]
struct Report {
    /// Rows a second through the worker, and by one `DELETE` statement.
    deleted_rows_per_second: f64,
    bare_rows_per_second: f64,
    /// The former divided by the latter.
    delete_ratio: f64,
    /// Rows a second that are written into archives, verified and deleted; that a bare `COPY` writes; and that `COPY` and then `DELETE`
    /// move.
    archived_rows_per_second: f64,
    bare_copied_rows_per_second: f64,
    bare_moved_rows_per_second: f64,
    /// The first divided by the last: an archive moves rows.
    archive_ratio: f64,
    /// The 99th percentile of the time of a write, without and during the sweep, in milliseconds.
    writer_p99_ms: f64,
    writer_p99_ms_during: f64,
    /// The latter divided by the former.
    writer_p99_ratio: f64,
}

/// Contexts of sessions that ended long ago: `{rows}` of `{users}` users from `{first}` on, in ten sessions each.
const FILL: [&str; 3] = [
    "INSERT INTO users (id, username, email) SELECT n, 'u' || n, n || '@example.org' FROM generate_series({first}, {first} + {users} - 1) AS n",
    "INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode, is_active, ended_at, created_at)
     SELECT uuid7(), u, 's' || s, 'simple', false, now() - interval '100 days', now() - interval '101 days'
     FROM generate_series({first}, {first} + {users} - 1) AS u, generate_series(0, 9) AS s",
    "INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value)
     SELECT uuid7(), {first} + n % {users}, 's' || (n / {users}) % 10, 'k' || n / {users}, jsonb_build_object('note', repeat('quiet museum ', 8))
     FROM generate_series(0, {rows} - 1) AS n",
];
/// The users of the bare statement and of the writer have larger ids than those of the sweep.
const BARE: i32 = 1_000_000;
const WRITER: i32 = 2_000_000;
const COPIED: i32 = 3_000_000;
/// How long the writer is measured before the sweep.
const ALONE: Duration = Duration::from_secs(5);
const STUCK_AFTER: Duration = Duration::from_secs(120);

pub(super) async fn execute(args: &RetentionArgs, settings: &Settings) -> anyhow::Result<()> {
    let report = on_private_servers(settings, async |local| measure(args, local).await).await?;
    if args.json {
        outln!("{}", serde_json::to_string(&report).context("cannot serialize the report")?);
        return Ok(());
    }
    outln!("rows deleted a second     {:>10.0}", report.deleted_rows_per_second);
    outln!("by a bare DELETE          {:>10.0}", report.bare_rows_per_second);
    outln!("ratio                     {:>10.2}", report.delete_ratio);
    outln!("rows archived a second    {:>10.0}", report.archived_rows_per_second);
    outln!("by a bare COPY            {:>10.0}", report.bare_copied_rows_per_second);
    outln!("by COPY and DELETE        {:>10.0}", report.bare_moved_rows_per_second);
    outln!("ratio                     {:>10.2}", report.archive_ratio);
    outln!("writer alone, ms p99      {:>10.2}", report.writer_p99_ms);
    outln!("during the sweep, ms p99  {:>10.2}", report.writer_p99_ms_during);
    outln!("ratio                     {:>10.2}", report.writer_p99_ratio);
    Ok(())
}

async fn measure(args: &RetentionArgs, local: &Local) -> anyhow::Result<Report> {
    let folder = tempfile::tempdir().context("cannot create a folder for archives")?;
    let settings = &archived::with_target(&local.settings, folder.path())?;
    let mut owner = store::connect(&settings.postgres.url).await?;
    for first in [1, BARE] {
        let values = [
            ("{first}", first.to_string()),
            ("{users}", args.users.to_string()),
            ("{rows}", args.rows.to_string()),
        ];
        fill_tables(&mut owner, &FILL, &values).await?;
    }
    errln!("a bare DELETE");
    let began = Instant::now();
    let bare = diesel::sql_query("DELETE FROM simple_chat_context WHERE user_id >= $1");
    bare.bind::<Integer, _>(BARE).execute(&mut owner).await?;
    let bare_rows_per_second = f64::from(args.rows) / began.elapsed().as_secs_f64();
    diesel::sql_query("DELETE FROM chat_mode_sessions WHERE user_id >= $1")
        .bind::<Integer, _>(BARE)
        .execute(&mut owner)
        .await?;

    errln!("the sweep, while a writer writes");
    let (stop, stopped) = watch::channel(false);
    let writer = tokio::spawn(write(settings.postgres.url.clone(), stopped));
    sleep(ALONE).await;
    let fleet = Fleet::start(&[WorkerName::RetentionCleaner], settings);
    let swept = sweep(settings, &mut owner).await;
    let ended = fleet.stop().await;
    let _ = stop.send(true);
    let times = writer.await.context("the writer panicked")??;
    let (began, took) = swept?;
    ended?;
    let of = |during: bool| {
        let within = |at: Instant| (began..began + took).contains(&at) == during;
        times.iter().filter(|(at, _)| within(*at)).map(|(_, time)| *time).collect::<Vec<f64>>()
    };
    let (alone, during) = (percentile(&of(false), 0.99), percentile(&of(true), 0.99));
    let deleted_rows_per_second = f64::from(args.rows) / took.as_secs_f64();
    let (archived, copied, moved) = archive(args, settings, &mut owner).await?;
    Ok(Report {
        deleted_rows_per_second: rounded(deleted_rows_per_second),
        bare_rows_per_second: rounded(bare_rows_per_second),
        delete_ratio: rounded(deleted_rows_per_second / bare_rows_per_second),
        archived_rows_per_second: rounded(archived),
        bare_copied_rows_per_second: rounded(copied),
        bare_moved_rows_per_second: rounded(moved),
        archive_ratio: rounded(archived / moved),
        writer_p99_ms: rounded(alone),
        writer_p99_ms_during: rounded(during),
        writer_p99_ratio: rounded(during / alone),
    })
}

/// Rows a second that are archived, that `COPY` writes, and that `COPY` and `DELETE` move.
async fn archive(
    args: &RetentionArgs,
    settings: &Settings,
    owner: &mut Connection,
) -> anyhow::Result<(f64, f64, f64)> {
    archived::archive_instead(owner).await?;
    // The users of the sweep have their sessions still; those of the bare statements are new.
    for (first, fill) in [(1, &FILL[2..]), (COPIED, &FILL[..])] {
        let values = [
            ("{first}", first.to_string()),
            ("{users}", args.users.to_string()),
            ("{rows}", args.rows.to_string()),
        ];
        fill_tables(owner, fill, &values).await?;
    }
    let (copied, deleted) = archived::bare(owner, COPIED).await?;
    errln!("the sweep, which archives");
    let fleet = Fleet::start(&[WorkerName::RetentionCleaner], settings);
    let swept = sweep(settings, owner).await;
    fleet.stop().await?;
    let rows = f64::from(args.rows);
    Ok((rows / swept?.1.as_secs_f64(), rows / copied, rows / (copied + deleted)))
}

/// Runs the job until no row is left that is due. Gives when the first row was gone, or little earlier, and how long it took.
async fn sweep(settings: &Settings, owner: &mut Connection) -> anyhow::Result<(Instant, Duration)> {
    let client = broker::connect_operator(&settings.nats, "bench").await?;
    let jetstream = jetstream::new(client);
    let before = last_run(owner).await?;
    topology::run_now(&jetstream, "retention-sweep").await?;
    let (mut began, mut changed_at, mut last) = (Instant::now(), Instant::now(), before);
    loop {
        sleep(Duration::from_millis(10)).await;
        let now = last_run(owner).await?;
        if now == last {
            began = if last == before { Instant::now() } else { began };
            ensure!(changed_at.elapsed() < STUCK_AFTER, "the sweep does not go on: rows are left");
            continue;
        }
        (changed_at, last) = (Instant::now(), now);
        if !has_rows(owner).await? {
            return Ok((began, began.elapsed()));
        }
    }
}

/// When the last run ended that changed something. To ask for it costs the sweep nothing.
async fn last_run(owner: &mut Connection) -> anyhow::Result<Option<DateTime<Utc>>> {
    #[derive(QueryableByName)]
    struct Run {
        #[diesel(sql_type = Nullable<Timestamptz>)]
        finished_at: Option<DateTime<Utc>>,
    }
    let query =
        "SELECT max(finished_at) AS finished_at FROM job_runs WHERE job = 'retention-sweep' AND changed > 0";
    let run: Run = diesel::sql_query(query).get_result(owner).await?;
    Ok(run.finished_at)
}

/// Whether users of the sweep have contexts.
async fn has_rows(owner: &mut Connection) -> anyhow::Result<bool> {
    #[derive(QueryableByName)]
    struct Has {
        #[diesel(sql_type = Bool)]
        has: bool,
    }
    let query = "SELECT EXISTS (SELECT FROM simple_chat_context WHERE user_id < $1) AS has";
    let row: Has = diesel::sql_query(query).bind::<Integer, _>(BARE).get_result(owner).await?;
    Ok(row.has)
}

/// Writes contexts of another user until it is stopped. Gives when each write began, and its time in milliseconds.
pub(super) async fn write(
    url: String,
    stopped: watch::Receiver<bool>,
) -> anyhow::Result<Vec<(Instant, f64)>> {
    let mut connection = store::connect(&url).await?;
    for sql in [
        "INSERT INTO users (id, username, email) VALUES ($1, 'writer', 'w@example.org')",
        "INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode) VALUES (uuid7(), $1, 's', 'simple')",
    ] {
        diesel::sql_query(sql).bind::<Integer, _>(WRITER).execute(&mut connection).await?;
    }
    let mut times = Vec::new();
    let mut number = 0;
    while !*stopped.borrow() {
        number = (number + 1) % 1_000;
        let began = Instant::now();
        let sql = "INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value)
            VALUES (uuid7(), $1, 's', 'k' || $2, '{\"n\": 1}')
            ON CONFLICT (user_id, session_id, context_key) DO UPDATE SET context_value = excluded.context_value, version = 2";
        store::prepared(diesel::sql_query(sql).bind::<Integer, _>(WRITER).bind::<Integer, _>(number))
            .execute(&mut connection)
            .await?;
        times.push((began, began.elapsed().as_secs_f64() * 1_000.0));
    }
    Ok(times)
}
