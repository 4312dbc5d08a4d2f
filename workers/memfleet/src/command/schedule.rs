//! `memfleet schedule`

use anyhow::Context;
use async_nats::jetstream;
use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Args, Subcommand};
use cli::output::{out_json, printable};
use cli::table::{Align, Table, grouped};
use cli::{database, errln, outln};
use config::Settings;
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Double, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use runtime::broker;
use topology::JobSchedule;
use uuid::Uuid;

use crate::command::maintenance::{LastRun, last_runs};

/// Lists, changes and pauses the schedules of jobs, runs a job at once, and shows its runs.
///
/// A schedule is a message in the stream JOBS, by which the NATS server publishes the ticks of a job.
#[derive(Debug, Args)]
pub struct ScheduleArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List the jobs: how often they run, whether they are paused, when each began its last run, and how that ended.
    ///
    /// If the database is unreachable, the schedules are listed without the runs.
    List {
        /// Print one JSON object: {"schedules": [...]}.
        #[arg(long)]
        json: bool,
    },
    /// Set how often a job runs.
    Set {
        /// The job.
        #[arg(value_name = "JOB")]
        job: String,
        /// Cron with six fields (second, minute, hour, day of the month, month, day of the week), or `@every 30s`.
        #[arg(value_name = "SCHEDULE")]
        every: String,
        /// Time zone of a cron expression, such as Europe/Berlin; UTC by default.
        #[arg(long, value_name = "ZONE")]
        time_zone: Option<String>,
    },
    /// Run a job at once, beside its schedule.
    RunNow {
        /// The job.
        #[arg(value_name = "JOB")]
        job: String,
    },
    /// Stop the ticks of a job until it is resumed.
    Pause {
        /// The job.
        #[arg(value_name = "JOB")]
        job: String,
    },
    /// Resume a paused job, as often as before.
    Resume {
        /// The job.
        #[arg(value_name = "JOB")]
        job: String,
    },
    /// Show the runs of jobs, the latest first: what was due, what was changed, and why one failed.
    ///
    /// Of the runs of a job that changed nothing, the last one is there. Of retention-sweep, rows are counted; of other jobs, the users
    /// who had work due, and events. Beside them are `maintenance run` (maintenance-run) and, with a row for an hour, `audit seal`
    /// (audit-seal) and `vectors reconcile` (vector-reconcile).
    History {
        /// Only runs of this job.
        #[arg(value_name = "JOB")]
        job: Option<String>,
        /// Maximum number of runs, 1 to 10000.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
        /// Print one JSON object: {"runs": [...]}.
        #[arg(long)]
        json: bool,
    },
}

/// Runs `memfleet schedule`.
///
/// # Errors
/// If the broker or the database is unreachable, there is no such job, or the broker refuses the schedule.
pub async fn execute(args: ScheduleArgs, settings: &Settings) -> anyhow::Result<()> {
    if let What::History { job, limit, json } = &args.what {
        return history(settings, job.as_deref(), *limit, *json).await;
    }
    let client = broker::connect_operator(&settings.nats, "schedule").await?;
    let jetstream = jetstream::new(client);
    match args.what {
        What::List { json } => {
            let schedules = topology::schedules(&jetstream).await?;
            list(&schedules, known_runs(settings).await.as_deref(), json)?;
        }
        What::Set { job, every, time_zone } => {
            topology::set_schedule(&jetstream, &job, &every, time_zone.as_deref()).await?;
            outln!("{job} runs {}", printable(&every));
            let schedules = topology::schedules(&jetstream).await?;
            if let Some(next) = schedules.iter().find(|one| one.job == job).and_then(|one| one.next) {
                outln!("next: {}", next.to_rfc3339_opts(SecondsFormat::Secs, true));
            }
        }
        What::RunNow { job } => {
            topology::run_now(&jetstream, &job).await?;
            outln!("{job} runs now; `memfleet schedule history` shows what it did");
        }
        What::Pause { job } => {
            topology::pause(&jetstream, &job).await?;
            outln!("{job} is paused");
        }
        What::Resume { job } => {
            topology::resume(&jetstream, &job).await?;
            outln!("{job} runs again");
        }
        What::History { .. } => {}
    }
    Ok(())
}

/// The last run of each job. `None` if the database does not answer: schedules are in NATS, and are listed without it.
async fn known_runs(settings: &Settings) -> Option<Vec<LastRun>> {
    let read = async {
        let mut connection =
            database::connect(&settings.postgres.url, "postgres.url", "the database with the runs").await?;
        last_runs(&mut connection).await
    };
    match read.await {
        Ok(runs) => Some(runs),
        Err(error) => {
            errln!("warning: the last runs of jobs are not known: {}", printable(&format!("{error:#}")));
            None
        }
    }
}

/// `runs`: the last runs of jobs, if they are known.
fn list(schedules: &[JobSchedule], runs: Option<&[LastRun]>, json: bool) -> anyhow::Result<()> {
    let time = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Secs, true);
    let last_of = |job: &str| runs.and_then(|runs| runs.iter().find(|run| run.job == job));
    if json {
        let listed: Vec<_> = schedules
            .iter()
            .map(|one| {
                let last = last_of(one.job);
                serde_json::json!({ "job": one.job, "schedule": one.every, "time_zone": one.time_zone,
                    "paused": one.is_paused, "default": one.default, "set_at": one.set_at.map(time),
                    "next": one.next.map(time), "last_run": last.map(|run| time(run.started_at)),
                    "last_failure": last.and_then(|run| run.failure.as_deref()) })
            })
            .collect();
        out_json(serde_json::json!({ "schedules": listed }).to_string());
        return Ok(());
    }
    let mut table = Table::new([
        ("job", Align::Left),
        ("schedule", Align::Left),
        ("time zone", Align::Left),
        ("state", Align::Left),
        ("default", Align::Left),
        ("set", Align::Left),
        ("next", Align::Left),
        ("last run", Align::Left),
        ("outcome", Align::Left),
    ]);
    for one in schedules {
        let state = match (&one.every, one.is_paused) {
            (None, _) => "missing; run `memfleet nats apply`",
            (Some(_), true) => "paused",
            (Some(_), false) => "runs",
        };
        let last = last_of(one.job);
        let outcome = match (runs, last.map(|run| run.failure.is_some())) {
            (None, _) => "unknown",
            (Some(_), None) => "never",
            (Some(_), Some(true)) => "failed",
            (Some(_), Some(false)) => "ok",
        };
        table.row([
            one.job.to_owned(),
            printable(one.every.as_deref().unwrap_or_default()).to_string(),
            printable(one.time_zone.as_deref().unwrap_or_default()).to_string(),
            state.to_owned(),
            one.default.to_owned(),
            one.set_at.map(time).unwrap_or_default(),
            one.next.map(time).unwrap_or_default(),
            last.map(|run| time(run.started_at)).unwrap_or_default(),
            outcome.to_owned(),
        ]);
    }
    outln!("{}", table.to_string().trim_end());
    Ok(())
}

#[derive(QueryableByName)]
struct Run {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Text)]
    job: String,
    #[diesel(sql_type = Timestamptz)]
    started_at: DateTime<Utc>,
    #[diesel(sql_type = Double)]
    seconds: f64,
    #[diesel(sql_type = Integer)]
    tries: i32,
    #[diesel(sql_type = BigInt)]
    examined: i64,
    #[diesel(sql_type = BigInt)]
    changed: i64,
    #[diesel(sql_type = BigInt)]
    skipped: i64,
    #[diesel(sql_type = Nullable<Text>)]
    failure: Option<String>,
    #[diesel(sql_type = Text)]
    details: String,
}

async fn history(settings: &Settings, job: Option<&str>, limit: u32, json: bool) -> anyhow::Result<()> {
    const RUNS: &str = "
        SELECT id, job::text AS job, started_at, extract(epoch FROM finished_at - started_at)::float8 AS seconds, tries, examined,
            changed, skipped, failure, CASE WHEN $3 THEN details::text ELSE '{}' END AS details
        FROM job_runs WHERE $1 IS NULL OR job = $1 ORDER BY started_at DESC, id LIMIT $2";
    let mut connection =
        database::connect(&settings.postgres.url, "postgres.url", "the database with the runs").await?;
    let runs: Vec<Run> = diesel::sql_query(RUNS)
        .bind::<Nullable<Text>, _>(job)
        .bind::<BigInt, _>(i64::from(limit))
        .bind::<Bool, _>(json)
        .load(&mut connection)
        .await
        .context("cannot read the runs")?;
    let time = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Secs, true);
    if json {
        let mut listed = Vec::with_capacity(runs.len());
        for run in &runs {
            // A worker writes what it likes there, such as lists that nest a thousand deep. The other runs are listed all the same.
            let details: serde_json::Value =
                serde_json::from_str(&run.details).unwrap_or(serde_json::Value::Null);
            listed.push(
                serde_json::json!({ "id": run.id, "job": run.job, "started_at": time(run.started_at),
                "seconds": run.seconds, "tries": run.tries, "examined": run.examined, "changed": run.changed,
                "skipped": run.skipped, "failure": run.failure, "details": details }),
            );
        }
        out_json(serde_json::json!({ "runs": listed }).to_string());
        return Ok(());
    }
    if runs.is_empty() {
        outln!("no runs");
        return Ok(());
    }
    let mut table = Table::new([
        ("started", Align::Left),
        ("job", Align::Left),
        ("seconds", Align::Right),
        ("due", Align::Right),
        ("changed", Align::Right),
        ("skipped", Align::Right),
        ("result", Align::Left),
    ]);
    for run in runs {
        let result =
            run.failure.map_or_else(|| "completed".to_owned(), |failure| printable(&failure).to_string());
        table.row([
            time(run.started_at),
            run.job,
            format!("{:.2}", run.seconds),
            grouped(run.examined.unsigned_abs()),
            grouped(run.changed.unsigned_abs()),
            grouped(run.skipped.unsigned_abs()),
            result,
        ]);
    }
    outln!("{}", table.to_string().trim_end());
    Ok(())
}
