//! `memfleet bench indexes`: the benefit and cost of every index of the reference document.

use anyhow::Context;
use clap::Args;
use cli::table::{Align, Table};
use cli::{errln, outln};
use config::Settings;
use contract::UserId;
use diesel_async::SimpleAsyncConnection;
use serde::Serialize;
use store::Connection;

use super::filled::{self, Size};
use super::grants::Grants;
use super::{median, on_private_servers, rounded};

#[derive(Debug, Args)]
pub(super) struct IndexesArgs {
    /// Number of contexts, and of router decisions and events each.
    #[arg(long, default_value_t = 200_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1_000..=20_000_000))]
    rows: u32,

    /// Users to distribute the rows over.
    #[arg(long, default_value_t = 40, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    users: u32,

    /// Number of runs of each query and each batch of inserts.
    #[arg(long, default_value_t = 15, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(3..=1_000))]
    times: u32,

    /// Print one JSON object, on the last line of standard output.
    #[arg(long)]
    json: bool,
}

/// Indexes help users with many rows. For few rows, the primary key, which starts with the user id, is as fast.
const SESSIONS_OF_A_USER: u32 = 200;

/// An index of the reference document's "Indexing Strategy".
struct Candidate {
    name: &'static str,
    table: &'static str,
    /// The part of CREATE INDEX after the table's name.
    columns: &'static str,
    /// Whether the migrations create it.
    made: bool,
    /// The query it is intended for; `$1` is the user.
    query: &'static str,
    /// 500 new rows of many users.
    insert: &'static str,
}

const SESSIONS: &str = "INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode, configuration)
    SELECT uuid7(), 1 + n % 10, 'new' || n, 'simple', jsonb_build_object('model', 'm' || n) FROM generate_series(1, 500) AS n";
const DECISIONS: &str = "INSERT INTO router_decision_log (id, user_id, session_id, user_request, routing_decision)
    SELECT uuid7(), 1 + n % 10, 's1', 'plan', jsonb_build_object('route', 'new' || n) FROM generate_series(1, 500) AS n";
const SYNCS: &str = "INSERT INTO cross_service_memory_sync (id, user_id, source_session_id, target_session_id, sync_type, data_transferred)
    SELECT uuid7(), 1 + n % 10, 's1', 's2', 'state_sync', '{}' FROM generate_series(1, 500) AS n";
const AGENTS: &str = "INSERT INTO agent_context_states (id, agent_id, user_id, session_id, memory_tier, context_key, context_value)
    SELECT uuid7(), 'a', 1 + n % 10, 's1', 'private', 'new' || n, '1' FROM generate_series(1, 500) AS n";
const NODES: &str = "INSERT INTO consensus_memory_nodes (id, user_id, node_type, node_key, title, content)
    SELECT uuid7(), 1 + n % 10, 'fact', 'new' || n, 't', jsonb_build_object('claim', 'new' || n) FROM generate_series(1, 500) AS n";
const CONTEXTS: &str = "INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value)
    SELECT uuid7(), 1 + n % 10, 's1', 'new' || n, jsonb_build_object('intent', 'new' || n, 'notes', repeat('quiet ', 20))
    FROM generate_series(1, 500) AS n";
const EVENTS: &str = "INSERT INTO blackboard_events (id, event_type, performative, source_agent_id, user_id, session_id, event_payload,
    logical_timestamp) SELECT uuid7(), 'context.stored', 'inform', 'bench', 1 + n % 10, 's1', jsonb_build_object('key', 'new' || n), 1
    FROM generate_series(1, 500) AS n";

const CANDIDATES: [Candidate; 9] = [
    Candidate {
        name: "idx_chat_session_correlation",
        table: "chat_mode_sessions",
        columns: "(user_id, chat_mode, is_active, created_at)",
        made: true,
        query: "SELECT session_id FROM chat_mode_sessions
            WHERE user_id = $1 AND chat_mode = 'socratic' AND is_active ORDER BY created_at DESC LIMIT 20",
        insert: SESSIONS,
    },
    Candidate {
        name: "idx_router_analytics",
        table: "router_decision_log",
        columns: "(user_id, created_at, success, complexity_score, processing_time_ms)",
        made: true,
        query: "SELECT avg(processing_time_ms), avg(complexity_score), count(*) FROM router_decision_log
            WHERE user_id = $1 AND created_at >= now() - interval '24 hours'",
        insert: DECISIONS,
    },
    Candidate {
        name: "idx_memory_sync_queries",
        table: "cross_service_memory_sync",
        columns: "(user_id, sync_status, sync_type, created_at)",
        made: true,
        query: "SELECT id FROM cross_service_memory_sync
            WHERE user_id = $1 AND sync_status = 'pending' AND sync_type = 'state_sync' ORDER BY created_at LIMIT 100",
        insert: SYNCS,
    },
    Candidate {
        name: "idx_agent_context_lookup",
        table: "agent_context_states",
        columns: "(user_id, agent_id, session_id, memory_tier, created_at)",
        made: true,
        query: "SELECT context_value FROM agent_context_states
            WHERE user_id = $1 AND agent_id = 'a1' AND session_id = 's3' AND memory_tier = 'shared' ORDER BY created_at",
        insert: AGENTS,
    },
    Candidate {
        name: "idx_chat_sessions_config_gin",
        table: "chat_mode_sessions",
        columns: "USING gin (configuration jsonb_path_ops)",
        made: false,
        query: "SELECT session_id FROM chat_mode_sessions WHERE user_id = $1 AND configuration @> '{\"model\": \"m6\"}'",
        insert: SESSIONS,
    },
    Candidate {
        name: "idx_router_decisions_gin",
        table: "router_decision_log",
        columns: "USING gin (routing_decision jsonb_path_ops)",
        made: false,
        query: "SELECT id FROM router_decision_log WHERE user_id = $1 AND routing_decision @> '{\"plan\": \"p77\"}'",
        insert: DECISIONS,
    },
    Candidate {
        name: "idx_context_values_gin",
        table: "simple_chat_context",
        columns: "USING gin (context_value jsonb_path_ops)",
        made: false,
        query: "SELECT id FROM simple_chat_context WHERE user_id = $1 AND context_value @> '{\"intent\": \"i77\"}'",
        insert: CONTEXTS,
    },
    Candidate {
        name: "idx_blackboard_payload_gin",
        table: "blackboard_events",
        columns: "USING gin (event_payload jsonb_path_ops)",
        made: false,
        query: "SELECT id FROM blackboard_events WHERE user_id = $1 AND event_payload @> '{\"key\": \"k77\"}'",
        insert: EVENTS,
    },
    Candidate {
        name: "idx_consensus_content_gin",
        table: "consensus_memory_nodes",
        columns: "USING gin (content jsonb_path_ops)",
        made: false,
        query: "SELECT id FROM consensus_memory_nodes WHERE user_id = $1 AND content @> '{\"claim\": \"c77\"}'",
        insert: NODES,
    },
];

/// The results.
#[derive(Debug, Serialize)]
struct Report {
    rows: u32,
    users: u32,
    indexes: Vec<Measured>,
}

#[derive(Debug, Serialize)]
struct Measured {
    name: &'static str,
    table: &'static str,
    /// Whether the schema has the index.
    made: bool,
    /// The measured query, for one user.
    query: String,
    /// Whether the plan under row-level security uses the index.
    serves: bool,
    /// Whether the plan without row-level security uses it, for the same query without the condition on the user.
    serves_without_rls: bool,
    /// Time of the query under row-level security with and without the index, in milliseconds.
    with_ms: f64,
    without_ms: f64,
    /// Time of a batch of 500 inserts with the index, divided by the time without it.
    insert_cost: f64,
}

pub(super) async fn execute(args: &IndexesArgs, settings: &Settings) -> anyhow::Result<()> {
    let indexes = on_private_servers(settings, async |local| measure(args, &local.settings).await).await?;
    let report = Report { rows: args.rows, users: args.users, indexes };
    if args.json {
        outln!("{}", serde_json::to_string(&report).context("cannot serialize the report")?);
    } else {
        show(&report);
    }
    Ok(())
}

async fn measure(args: &IndexesArgs, settings: &Settings) -> anyhow::Result<Vec<Measured>> {
    let mut owner =
        filled::fill(settings, Size { rows: args.rows, users: args.users, sessions: SESSIONS_OF_A_USER })
            .await?;
    filled::create_plan_function(&mut owner).await?;
    let (mut reader, grants) = filled::reader(settings).await?;
    let mut measured = Vec::new();
    for candidate in &CANDIDATES {
        errln!("measuring {}", candidate.name);
        let one = measure_one(args, &mut owner, &mut reader, &grants, candidate).await;
        measured.push(one.with_context(|| candidate.name.to_owned())?);
    }
    Ok(measured)
}

async fn measure_one(
    args: &IndexesArgs,
    owner: &mut Connection,
    reader: &mut Connection,
    grants: &Grants,
    candidate: &Candidate,
) -> anyhow::Result<Measured> {
    let Candidate { name, table, columns, made, query, insert } = *candidate;
    let create = format!("CREATE INDEX IF NOT EXISTS {name} ON {table} {columns}; ANALYZE {table}");
    let user = UserId::new(7)?;
    owner.batch_execute(&create).await?;
    filled::begin_for(reader, grants, user).await?;
    let serves = uses(reader, name, query, user).await?;
    reader.batch_execute("COMMIT").await?;
    let without_user = query.replace("user_id = $1 AND ", "");
    let serves_without_rls = uses(owner, name, &without_user, user).await?;
    // Removes dead rows of rolled-back batches, which would slow down the next measurement.
    let vacuum = format!("VACUUM {table}");
    owner.batch_execute(&vacuum).await?;
    let (with_ms, with_insert) = times(args, owner, reader, grants, query, insert).await?;
    owner.batch_execute(&format!("DROP INDEX {name}")).await?;
    owner.batch_execute(&vacuum).await?;
    let (without_ms, without_insert) = times(args, owner, reader, grants, query, insert).await?;
    if made {
        owner.batch_execute(&create).await?;
    }
    Ok(Measured {
        name,
        table,
        made,
        query: query.split_whitespace().collect::<Vec<_>>().join(" "),
        serves,
        serves_without_rls,
        with_ms: rounded(with_ms),
        without_ms: rounded(without_ms),
        insert_cost: rounded(with_insert / without_insert),
    })
}

/// Whether the plan uses the index, or its index of a partition, whose name PostgreSQL derives from the table's.
async fn uses(connection: &mut Connection, name: &str, query: &str, user: UserId) -> anyhow::Result<bool> {
    let plan = filled::plan(connection, query, user).await?;
    let mut names = Vec::new();
    filled::found(&plan, "Index Name", &mut names);
    Ok(names.iter().any(|used| *used == name || used.ends_with("_event_payload_idx")))
}

/// The median times of the query under row-level security and of a batch of inserts, which is rolled back.
async fn times(
    args: &IndexesArgs,
    owner: &mut Connection,
    reader: &mut Connection,
    grants: &Grants,
    query: &str,
    insert: &str,
) -> anyhow::Result<(f64, f64)> {
    let (mut queries, mut inserts) = (Vec::new(), Vec::new());
    for number in 0..args.times {
        let user = filled::user(number, args.users)?;
        filled::begin_for(reader, grants, user).await?;
        queries.push(filled::time(reader, query, user).await?);
        reader.batch_execute("COMMIT").await?;
        // As the owner and without triggers, so that only the index is measured.
        owner.batch_execute("BEGIN; SET LOCAL session_replication_role = replica").await?;
        let started = std::time::Instant::now();
        owner.batch_execute(insert).await?;
        inserts.push(started.elapsed().as_secs_f64() * 1_000.0);
        owner.batch_execute("ROLLBACK").await?;
    }
    Ok((median(queries)?, median(inserts)?))
}

fn show(report: &Report) {
    let mut table = Table::new([
        ("index", Align::Left),
        ("in schema", Align::Left),
        ("used", Align::Left),
        ("used without RLS", Align::Left),
        ("query ms with", Align::Right),
        ("without", Align::Right),
        ("insert cost", Align::Right),
    ]);
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    for index in &report.indexes {
        table.row([
            index.name.to_owned(),
            yes(index.made),
            yes(index.serves),
            yes(index.serves_without_rls),
            format!("{:.3}", index.with_ms),
            format!("{:.3}", index.without_ms),
            format!("{:.2}", index.insert_cost),
        ]);
    }
    outln!("{table}");
}
