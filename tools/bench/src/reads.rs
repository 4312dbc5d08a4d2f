//! `memfleet bench reads`: the reference document's query patterns with row-level security and without.

use anyhow::{Context, bail};
use clap::Args;
use cli::outln;
use cli::table::{Align, Table};
use config::Settings;
use contract::UserId;
use diesel_async::SimpleAsyncConnection;
use serde::Serialize;

use super::filled::{self, FilledArgs};
use super::{median, on_private_servers, percentile, rounded};

#[derive(Debug, Args)]
pub(super) struct ReadsArgs {
    #[command(flatten)]
    filled: FilledArgs,

    /// Print one JSON object, on the last line of standard output.
    #[arg(long)]
    json: bool,
}

/// The queries; `$1` is the user. They are the same with and without row-level security: the explicit condition on the
/// user selects the index, and the policy enforces isolation.
pub(super) const QUERIES: [(&str, &str); 5] = [
    (
        "session_lookup",
        "WITH user_sessions AS (
            SELECT session_id, chat_mode, created_at FROM chat_mode_sessions WHERE user_id = $1 AND is_active
        )
        SELECT s.session_id, s.chat_mode, s.created_at, count(c.id) AS context_count
        FROM user_sessions s LEFT JOIN simple_chat_context c ON c.user_id = $1 AND c.session_id = s.session_id
        GROUP BY s.session_id, s.chat_mode, s.created_at ORDER BY s.created_at DESC",
    ),
    (
        "context_get",
        "SELECT context_value FROM simple_chat_context WHERE user_id = $1 AND session_id = 's3' AND context_key = 'k3'",
    ),
    (
        "hourly_analytics",
        "SELECT date_trunc('hour', created_at) AS hour, avg(processing_time_ms), avg(complexity_score), count(*),
            count(*) FILTER (WHERE success)
        FROM router_decision_log WHERE user_id = $1 AND created_at >= now() - interval '24 hours'
        GROUP BY 1 ORDER BY 1",
    ),
    (
        "graph_walk",
        "WITH RECURSIVE node_tree AS (
            SELECT id, node_type, title, 0 AS depth FROM consensus_memory_nodes
            WHERE user_id = $1 AND node_type = 'fact' AND node_key = 'n0'
            UNION ALL
            SELECT n.id, n.node_type, n.title, t.depth + 1
            FROM node_tree t
            JOIN consensus_memory_relations r ON r.user_id = $1 AND r.source_node_id = t.id
            JOIN consensus_memory_nodes n ON n.user_id = $1 AND n.id = r.target_node_id
            WHERE t.depth < 3
        )
        SELECT * FROM node_tree ORDER BY depth, title",
    ),
    (
        "events_after",
        "SELECT id, event_sequence, event_payload FROM blackboard_events
        WHERE user_id = $1 AND session_id = 's3' AND event_sequence > 0 ORDER BY event_sequence LIMIT 100",
    ),
];

/// The results.
#[derive(Debug, Serialize)]
struct Report {
    rows: u32,
    users: u32,
    /// The highest ratio of all queries.
    ratio: f64,
    queries: Vec<Query>,
}

#[derive(Debug, Serialize)]
struct Query {
    name: &'static str,
    /// Time with row-level security, in milliseconds, without opening the security context.
    ms_p50: f64,
    ms_p99: f64,
    /// Time as a role that bypasses row-level security.
    bare_ms_p50: f64,
    bare_ms_p99: f64,
    /// `ms_p50` divided by `bare_ms_p50`.
    ratio: f64,
    /// The indexes in its plan with row-level security.
    indexes: Vec<String>,
    /// Tables with a sequential scan in the plan; there must be none.
    sequential_scans: Vec<String>,
}

pub(super) async fn execute(args: &ReadsArgs, settings: &Settings) -> anyhow::Result<()> {
    let queries = on_private_servers(settings, async |local| measure(args, &local.settings).await).await?;
    let ratio = queries.iter().map(|query| query.ratio).fold(0.0, f64::max);
    let report = Report { rows: args.filled.rows, users: args.filled.users, ratio, queries };
    if args.json {
        outln!("{}", serde_json::to_string(&report).context("cannot serialize the report")?);
    } else {
        show(&report);
    }
    match report.queries.iter().find(|query| !query.sequential_scans.is_empty()) {
        Some(query) => bail!("{} scans {} sequentially", query.name, query.sequential_scans.join(", ")),
        None => Ok(()),
    }
}

async fn measure(args: &ReadsArgs, settings: &Settings) -> anyhow::Result<Vec<Query>> {
    let mut owner = filled::fill(settings, args.filled.size()).await?;
    filled::create_plan_function(&mut owner).await?;
    let (mut reader, grants) = filled::reader(settings).await?;
    // PostgreSQL scans empty partitions sequentially, which is harmless.
    let empty = filled::empty_tables(&mut owner).await?;
    let mut measured = Vec::new();
    for (name, sql) in QUERIES {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for number in 0..args.filled.times {
            // Each user is queried with and without row-level security in alternating order, since the first query
            // loads the pages into memory.
            let user = filled::user(number, args.filled.users)?;
            if number % 2 == 0 {
                without.push(filled::time(&mut owner, sql, user).await?);
            }
            filled::begin_for(&mut reader, &grants, user).await?;
            with.push(filled::time(&mut reader, sql, user).await?);
            reader.batch_execute("COMMIT").await?;
            if number % 2 == 1 {
                without.push(filled::time(&mut owner, sql, user).await?);
            }
        }
        let user = UserId::new(1)?;
        filled::begin_for(&mut reader, &grants, user).await?;
        let plan = filled::plan(&mut reader, sql, user).await?;
        reader.batch_execute("COMMIT").await?;
        measured.push(Query {
            name,
            ms_p50: rounded(percentile(&with, 0.5)),
            ms_p99: rounded(percentile(&with, 0.99)),
            bare_ms_p50: rounded(percentile(&without, 0.5)),
            bare_ms_p99: rounded(percentile(&without, 0.99)),
            ratio: rounded(median(with.iter().copied())? / median(without.iter().copied())?),
            indexes: indexes(&plan),
            sequential_scans: sequential_scans(&plan)
                .into_iter()
                .filter(|table| !empty.contains(table))
                .collect(),
        });
    }
    Ok(measured)
}

fn indexes(plan: &serde_json::Value) -> Vec<String> {
    let mut names = Vec::new();
    filled::found(plan, "Index Name", &mut names);
    names.sort_unstable();
    names.dedup();
    names.into_iter().map(str::to_owned).collect()
}

/// The tables that a plan scans sequentially.
fn sequential_scans(plan: &serde_json::Value) -> Vec<String> {
    let mut scans = Vec::new();
    if let Some(parts) = plan.as_array() {
        scans.extend(parts.iter().flat_map(sequential_scans));
    } else if let Some(node) = plan.as_object() {
        let name = node.get("Relation Name").and_then(serde_json::Value::as_str);
        if node.get("Node Type").and_then(serde_json::Value::as_str) == Some("Seq Scan") {
            scans.extend(name.map(str::to_owned));
        }
        scans.extend(node.values().flat_map(sequential_scans));
    }
    scans
}

fn show(report: &Report) {
    let mut table = Table::new([
        ("query", Align::Left),
        ("ms p50", Align::Right),
        ("p99", Align::Right),
        ("bare p50", Align::Right),
        ("p99", Align::Right),
        ("ratio", Align::Right),
        ("indexes", Align::Left),
    ]);
    for query in &report.queries {
        table.row([
            query.name.to_owned(),
            format!("{:.3}", query.ms_p50),
            format!("{:.3}", query.ms_p99),
            format!("{:.3}", query.bare_ms_p50),
            format!("{:.3}", query.bare_ms_p99),
            format!("{:.2}", query.ratio),
            query.indexes.join(", "),
        ]);
    }
    outln!("{table}");
}
