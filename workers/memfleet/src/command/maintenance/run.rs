//! `memfleet maintenance run`
//!
//! Each step is a transaction of its own, or several where PostgreSQL allows none around it. A step that fails is named, and keeps no other
//! from running. A run that is killed leaves at most an invalid index, which the next one drops.

use anyhow::{Context, ensure};
use chrono::Utc;
use cli::outln;
use cli::output::{out_json, printable};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use serde::Serialize;
use store::{Connection, partition};
use uuid::Uuid;

use super::RUN;
use super::needs::{self, Treatment};

/// The advisory lock that keeps runs from overlapping: "memmaint" in ASCII.
const LOCK: i64 = 0x6d65_6d6d_6169_6e74;
/// How many partitions a run makes or drops of each table at most.
const PARTITIONS: usize = 120;

/// For statements whose lock would keep writers waiting. VACUUM and REINDEX CONCURRENTLY keep nobody waiting, and rest a little.
const SHORT_LOCKS: &str = "SET lock_timeout = '100ms'; SET statement_timeout = 0";
const LONG_WORK: &str = "SET lock_timeout = 0; SET statement_timeout = '6h'; SET vacuum_cost_delay = '2ms'; SET vacuum_cost_limit = 1000";

/// What was done, or would be.
#[derive(Debug, Serialize)]
struct Step {
    what: String,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
}

/// The steps of a run.
#[derive(Debug, Default, Serialize)]
struct Steps {
    steps: Vec<Step>,
}

impl Steps {
    fn note(&mut self, what: impl Into<String>, result: Result<(), String>) {
        self.steps.push(Step { what: what.into(), failure: result.err() });
    }

    fn failed(&self) -> usize {
        self.steps.iter().filter(|step| step.failure.is_some()).count()
    }
}

#[derive(QueryableByName)]
struct Name {
    #[diesel(sql_type = Nullable<Text>)]
    name: Option<String>,
}

pub(super) async fn execute(connection: &mut Connection, dry_run: bool, json: bool) -> anyhow::Result<()> {
    let steps = if dry_run { plan(connection).await? } else { run(connection).await? };
    if json {
        out_json(serde_json::to_string(&steps)?);
    } else {
        for step in &steps.steps {
            match &step.failure {
                Some(failure) => outln!("{}: failed: {}", step.what, printable(failure)),
                None => outln!("{}", step.what),
            }
        }
        if steps.steps.is_empty() {
            outln!("nothing to do");
        }
    }
    let failed = steps.failed();
    ensure!(failed == 0, "{failed} of {} steps failed", steps.steps.len());
    Ok(())
}

async fn plan(connection: &mut Connection) -> anyhow::Result<Steps> {
    let mut steps = Steps::default();
    for alarm in super::alarms(connection).await? {
        steps.note(alarm, Ok(()));
    }
    for name in leftovers(connection).await? {
        steps.note(format!("DROP INDEX CONCURRENTLY {name}"), Ok(()));
    }
    for one in needs::tables(connection).await? {
        if let Some(treatment) = one.treatment() {
            steps.note(statement(treatment, &one.name), Ok(()));
        }
    }
    for one in needs::indexes(connection).await?.into_iter().filter(needs::IndexNeed::is_bloated) {
        steps.note(format!("REINDEX INDEX CONCURRENTLY {}", one.name), Ok(()));
    }
    Ok(steps)
}

async fn run(connection: &mut Connection) -> anyhow::Result<Steps> {
    const NOTE: &str = "
        WITH old AS (DELETE FROM job_runs WHERE job = $2 AND started_at < now() - interval '30 days')
        INSERT INTO job_runs (id, job, started_at, examined, changed, skipped, failure, details)
        VALUES ($1, $2, $3, $4, $5, $4 - $5, $6, $7::jsonb)
        ON CONFLICT (job) WHERE is_idle DO UPDATE SET started_at = excluded.started_at, finished_at = excluded.finished_at";
    lock(connection).await?;
    let began = Utc::now();
    let mut steps = Steps::default();
    connection.batch_execute(SHORT_LOCKS).await?;
    partitions(connection, &mut steps).await;
    connection.batch_execute(LONG_WORK).await?;
    tables(connection, &mut steps).await?;
    // After VACUUM the server knows how many rows an index has.
    indexes(connection, &mut steps).await?;
    let count = i64::try_from(steps.steps.len()).unwrap_or(i64::MAX);
    let failed = i64::try_from(steps.failed()).unwrap_or(i64::MAX);
    let failure = (failed > 0).then(|| format!("{failed} of {count} steps failed"));
    let note = diesel::sql_query(NOTE)
        .bind::<SqlUuid, _>(Uuid::now_v7())
        .bind::<Text, _>(RUN)
        .bind::<Timestamptz, _>(began)
        .bind::<BigInt, _>(count)
        .bind::<BigInt, _>(count - failed)
        .bind::<Nullable<Text>, _>(failure)
        .bind::<Text, _>(serde_json::to_string(&steps)?);
    note.execute(connection).await.context("cannot note what the run did")?;
    Ok(steps)
}

async fn lock(connection: &mut Connection) -> anyhow::Result<()> {
    #[derive(QueryableByName)]
    struct Locked {
        #[diesel(sql_type = Bool)]
        locked: bool,
    }
    let query =
        diesel::sql_query("SELECT pg_catalog.pg_try_advisory_lock($1) AS locked").bind::<BigInt, _>(LOCK);
    let rows: Vec<Locked> = query.load(connection).await?;
    ensure!(rows.iter().all(|row| row.locked), "another `memfleet maintenance run` is under way");
    Ok(())
}

/// Months ahead, months that were missed, and months of which nothing is left.
async fn partitions(connection: &mut Connection, steps: &mut Steps) {
    match partition::create_ahead(connection, partition::MONTHS_AHEAD).await {
        Ok(0) => {}
        Ok(created) => steps.note(format!("created {created} partitions ahead"), Ok(())),
        Err(fault) => steps.note("partitions ahead", Err(fault.to_string())),
    }
    const MISSED: &str = "SELECT make_missed_partition($1::regclass) AS name";
    const EMPTY: &str = "SELECT drop_empty_partition($1::regclass) AS name";
    for (call, what) in
        [(MISSED, "moved rows into the new partition"), (EMPTY, "dropped the empty partition")]
    {
        for table in partition::TABLES {
            for _ in 0..PARTITIONS {
                let done: Result<Vec<Name>, _> =
                    diesel::sql_query(call).bind::<Text, _>(table).load(connection).await;
                match done.map(|rows| rows.into_iter().next().and_then(|row| row.name)) {
                    Ok(Some(name)) => steps.note(format!("{what} {name}"), Ok(())),
                    Ok(None) => break,
                    Err(error) => {
                        steps.note(format!("partitions of {table}"), Err(error.to_string()));
                        break;
                    }
                }
            }
        }
    }
}

/// Invalid indexes that an interrupted rebuild has left.
async fn leftovers(connection: &mut Connection) -> anyhow::Result<Vec<String>> {
    const LEFT: &str = "
        SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE NOT i.indisvalid AND c.relkind = 'i' AND c.relname ~ '_cc(new|old)\\d*$' AND n.nspname IN ('public', 'audit', 'sec')
        ORDER BY 1";
    let names: Vec<Name> =
        diesel::sql_query(LEFT).load(connection).await.context("cannot read which indexes are invalid")?;
    Ok(names.into_iter().filter_map(|row| row.name).collect())
}

async fn indexes(connection: &mut Connection, steps: &mut Steps) -> anyhow::Result<()> {
    for name in leftovers(connection).await? {
        perform(connection, steps, format!("DROP INDEX CONCURRENTLY {name}")).await;
    }
    for one in needs::indexes(connection).await?.into_iter().filter(needs::IndexNeed::is_bloated) {
        if perform(connection, steps, format!("REINDEX INDEX CONCURRENTLY {}", one.name)).await {
            const NOTE: &str = "
                INSERT INTO maintenance_indexes (index_name, bytes) VALUES ($1, pg_relation_size($1::regclass))
                ON CONFLICT (index_name) DO UPDATE SET rebuilt_at = now(), bytes = excluded.bytes";
            diesel::sql_query(NOTE).bind::<Text, _>(&one.name).execute(connection).await?;
        }
    }
    Ok(())
}

async fn tables(connection: &mut Connection, steps: &mut Steps) -> anyhow::Result<()> {
    for one in needs::tables(connection).await? {
        if let Some(treatment) = one.treatment() {
            perform(connection, steps, statement(treatment, &one.name)).await;
        }
    }
    Ok(())
}

/// A table that something else holds is left to the next run.
fn statement(treatment: Treatment, table: &str) -> String {
    match treatment {
        Treatment::Vacuum => format!("VACUUM (ANALYZE, SKIP_LOCKED) {table}"),
        Treatment::Analyze => format!("ANALYZE (SKIP_LOCKED) {table}"),
    }
}

/// Whether it succeeded.
async fn perform(connection: &mut Connection, steps: &mut Steps, statement: String) -> bool {
    let done = connection.batch_execute(&statement).await.map_err(|error| error.to_string());
    let is_done = done.is_ok();
    steps.note(statement, done);
    is_done
}
