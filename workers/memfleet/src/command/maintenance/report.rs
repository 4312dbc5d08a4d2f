//! `memfleet maintenance report`

use anyhow::{Context, ensure};
use chrono::{DateTime, SecondsFormat, Utc};
use cli::output::{out_json, printable};
use cli::table::{Align, Table, grouped};
use cli::{out, outln};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;
use serde::Serialize;
use store::Connection;

use super::needs::{self, IndexNeed, TableNeed, Treatment};
use super::{RUN, alarms};

/// How many tables and indexes are printed; JSON has all of them.
const PRINTED: usize = 25;

/// How a table has grown.
#[derive(Debug, QueryableByName, Serialize)]
struct Growth {
    #[diesel(sql_type = Text)]
    table: String,
    #[diesel(sql_type = Timestamptz)]
    since: DateTime<Utc>,
    #[diesel(sql_type = BigInt)]
    bytes: i64,
    #[diesel(sql_type = BigInt)]
    bytes_before: i64,
    /// Values of more than 2 kB, which are mostly JSON.
    #[diesel(sql_type = BigInt)]
    toast_bytes: i64,
    #[diesel(sql_type = BigInt)]
    toast_bytes_before: i64,
}

/// The last day, and the first of the 30 days before.
const GROWTH: &str = "
    WITH size AS MATERIALIZED (
        SELECT m.measured_at, m.labels ->> 'table' AS table, m.labels ->> 'part' AS part, m.metric_value FROM audit.security_metrics m
        WHERE m.metric_name = 'table-bytes' AND m.measured_at >= now() - interval '31 days'
    ), span AS (SELECT min(measured_at) AS since, max(measured_at) AS until FROM size)
    SELECT * FROM (SELECT s.table, p.since, sum(s.metric_value) FILTER (WHERE s.measured_at = p.until)::bigint AS bytes,
        coalesce(sum(s.metric_value) FILTER (WHERE s.measured_at = p.since), 0)::bigint AS bytes_before,
        coalesce(sum(s.metric_value) FILTER (WHERE s.measured_at = p.until AND s.part = 'toast'), 0)::bigint AS toast_bytes,
        coalesce(sum(s.metric_value) FILTER (WHERE s.measured_at = p.since AND s.part = 'toast'), 0)::bigint AS toast_bytes_before
    FROM size s CROSS JOIN span p WHERE s.measured_at IN (p.since, p.until) GROUP BY s.table, p.since
    HAVING sum(s.metric_value) FILTER (WHERE s.measured_at = p.until) > 0) AS g ORDER BY g.bytes - g.bytes_before DESC, g.table";

/// When a job or a command ran last.
#[derive(Debug, QueryableByName, Serialize)]
pub(in crate::command) struct LastRun {
    #[diesel(sql_type = Text)]
    pub(in crate::command) job: String,
    #[diesel(sql_type = Timestamptz)]
    pub(in crate::command) started_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Text>)]
    pub(in crate::command) failure: Option<String>,
}

/// The last runs of each job that notes them.
pub(in crate::command) async fn last_runs(connection: &mut Connection) -> anyhow::Result<Vec<LastRun>> {
    const RUNS: &str = "SELECT DISTINCT ON (job) job::text AS job, started_at, failure FROM public.job_runs ORDER BY job, started_at DESC";
    diesel::sql_query(RUNS).load(connection).await.context("cannot read the runs of jobs")
}

#[derive(Serialize)]
struct Report {
    alarms: Vec<String>,
    last_runs: Vec<LastRun>,
    tables: Vec<TableNeed>,
    indexes: Vec<IndexNeed>,
    growth: Vec<Growth>,
}

pub(super) async fn execute(connection: &mut Connection, json: bool) -> anyhow::Result<()> {
    let report = Report {
        alarms: alarms(connection).await?,
        last_runs: last_runs(connection).await?,
        tables: needs::tables(connection).await?,
        indexes: needs::indexes(connection).await?,
        growth: diesel::sql_query(GROWTH)
            .load(connection)
            .await
            .context("cannot read the sizes of tables")?,
    };
    if json {
        out_json(serde_json::to_string(&report)?);
    } else {
        show(&report);
    }
    ensure!(report.alarms.is_empty(), "{}", report.alarms.join("; "));
    Ok(())
}

fn show(report: &Report) {
    let last = report.last_runs.iter().find(|run| run.job == RUN);
    match last {
        Some(run) => outln!(
            "The last `memfleet maintenance run` was at {}{}.",
            run.started_at.to_rfc3339_opts(SecondsFormat::Secs, true),
            run.failure.as_ref().map(|failure| format!(": {}", printable(failure))).unwrap_or_default()
        ),
        None => outln!("`memfleet maintenance run` has not run in the last 30 days."),
    }
    show_tables(&report.tables);
    show_indexes(&report.indexes);
    show_growth(&report.growth);
}

fn count(number: i64) -> String {
    grouped(u64::try_from(number).unwrap_or(0))
}

fn show_tables(tables: &[TableNeed]) {
    let mut table = Table::new([
        ("table", Align::Left),
        ("rows", Align::Right),
        ("dead", Align::Right),
        ("bytes", Align::Right),
        ("estimated", Align::Right),
        ("TOAST", Align::Right),
        ("JSON in rows", Align::Right),
        ("indexes", Align::Right),
        ("needs", Align::Left),
    ]);
    for one in tables.iter().take(PRINTED) {
        let needs = match one.treatment() {
            Some(Treatment::Vacuum) => "VACUUM",
            Some(Treatment::Analyze) => "ANALYZE",
            None => "",
        };
        table.row([
            one.name.clone(),
            count(one.live),
            count(one.dead),
            count(one.heap_bytes),
            count(one.estimated_bytes),
            count(one.toast_bytes),
            count(one.json_bytes),
            count(one.index_bytes),
            needs.to_owned(),
        ]);
    }
    out!("\n{table}");
}

fn show_indexes(indexes: &[IndexNeed]) {
    let mut table = Table::new([
        ("index", Align::Left),
        ("table", Align::Left),
        ("bytes", Align::Right),
        ("estimated", Align::Right),
        ("scans", Align::Right),
        ("needs", Align::Left),
    ]);
    for one in indexes.iter().take(PRINTED) {
        let needs = match (one.is_bloated(), one.is_unused()) {
            (true, true) => "REINDEX; never used",
            (true, false) => "REINDEX",
            (false, true) => "never used",
            (false, false) => "",
        };
        table.row([
            one.name.clone(),
            one.table.clone(),
            count(one.bytes),
            count(one.estimated_bytes),
            count(one.scans),
            needs.to_owned(),
        ]);
    }
    out!("\n{table}");
}

fn show_growth(growth: &[Growth]) {
    let Some(first) = growth.first() else {
        outln!("\nNo sizes are noted yet; the job maintenance does so once a day.");
        return;
    };
    outln!("\nGrowth since {}:", first.since.to_rfc3339_opts(SecondsFormat::Secs, true));
    let mut table = Table::new([
        ("table", Align::Left),
        ("bytes", Align::Right),
        ("grown by", Align::Right),
        ("TOAST grown by", Align::Right),
    ]);
    let signed = |change: i64| if change < 0 { format!("-{}", count(-change)) } else { count(change) };
    for one in growth.iter().take(PRINTED) {
        table.row([
            one.table.clone(),
            count(one.bytes),
            signed(one.bytes - one.bytes_before),
            signed(one.toast_bytes - one.toast_bytes_before),
        ]);
    }
    out!("{table}");
}
