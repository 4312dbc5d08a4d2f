//! A database with many rows of many users, for benchmarks of reads and indexes.

use anyhow::Context;
use clap::Args;
use cli::errln;
use config::Settings;
use contract::UserId;
use diesel::QueryableByName;
use diesel::sql_types::{Integer, Text};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use serde_json::Value;
use store::{Connection, security};
use trust::worker_role;

use super::grants::Grants;

/// Options of benchmarks on a filled database.
#[derive(Debug, Args)]
pub(super) struct FilledArgs {
    /// Number of contexts, and of router decisions and events each.
    #[arg(long, default_value_t = 1_000_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1_000..=20_000_000))]
    pub(super) rows: u32,

    /// Users to distribute the rows over.
    #[arg(long, default_value_t = 10_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    pub(super) users: u32,

    /// Number of runs of each query, each for a different user.
    #[arg(long, default_value_t = 500, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(10..=100_000))]
    pub(super) times: u32,
}

impl FilledArgs {
    pub(super) fn size(&self) -> Size {
        Size { rows: self.rows, users: self.users, sessions: 10 }
    }
}

/// The user of a run. Consecutive runs use distant users.
///
/// # Errors
/// If the user id is out of range.
pub(super) fn user(number: u32, users: u32) -> anyhow::Result<UserId> {
    Ok(UserId::new(i32::try_from(1 + u64::from(number) * 7_919 % u64::from(users))?)?)
}

/// The numbers of rows, users and sessions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    /// Number of contexts, router decisions and events each; all other tables have a fifth of it.
    pub(super) rows: u32,
    pub(super) users: u32,
    /// Sessions per user.
    pub(super) sessions: u32,
}

/// The worker whose role reads. It gets more privileges in this database, which is removed afterwards.
pub(super) const READER: &str = "context-writer";

/// The statements that fill the tables. `{rows}`, `{users}`, `{sessions}` and `{part}`, a fifth of the rows, are
/// replaced. Rows of one user are spread over the table, as when users write alternately.
const FILL: [&str; 9] = [
    "INSERT INTO users (id, username, email) SELECT n, 'u' || n, n || '@example.org' FROM generate_series(1, {users}) AS n",
    "INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode, is_active, configuration, ended_at, created_at)
     SELECT uuid7(), u, 's' || s, (ARRAY['simple', 'smart-router', 'expert-group', 'socratic'])[1 + s % 4]::chat_mode, s % 3 > 0,
         jsonb_build_object('model', 'm' || s % 7, 'temperature', s % 3), CASE WHEN s % 3 = 0 THEN now() END,
         now() - make_interval(hours => s)
     FROM generate_series(0, {sessions} - 1) AS s, generate_series(1, {users}) AS u",
    "INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value)
     SELECT uuid7(), 1 + n % {users}, 's' || (n / {users}) % {sessions}, 'k' || n / {users},
         jsonb_build_object('intent', 'i' || n % 5000, 'note', repeat('quiet museum ', 8), 'turn', n % 17)
     FROM generate_series(0, {rows} - 1) AS n",
    "INSERT INTO router_decision_log (id, user_id, session_id, user_request, routing_decision, complexity_score, confidence_score,
         processing_time_ms, success, created_at)
     SELECT uuid7(), 1 + n % {users}, 's' || (n / {users}) % {sessions}, 'plan a trip', jsonb_build_object('route', 'r' || n % 4, 'plan', 'p' || n % 5000),
         (n % 100) / 100.0, 0.5, n % 900, n % 20 > 0, now() - make_interval(mins => (n / {users}) * 30)
     FROM generate_series(0, {rows} - 1) AS n",
    "INSERT INTO blackboard_events (id, event_type, performative, source_agent_id, user_id, session_id, event_payload, logical_timestamp)
     SELECT uuid7(), 'context.stored', 'inform', 'bench', 1 + n % {users}, 's' || (n / {users}) % {sessions},
         jsonb_build_object('key', 'k' || n % 5000, 'note', repeat('quiet museum ', 8)), 1
     FROM generate_series(0, {rows} - 1) AS n",
    "INSERT INTO agent_context_states (id, agent_id, user_id, session_id, memory_tier, context_key, context_value)
     SELECT uuid7(), 'a' || n % 5, 1 + n % {users}, 's' || (n / {users}) % {sessions},
         (ARRAY['private', 'shared', 'consensus'])[1 + n % 3]::memorytier, 'k' || n / {users}, '{\"v\": 1}'
     FROM generate_series(0, {part} - 1) AS n",
    "INSERT INTO consensus_memory_nodes (id, user_id, node_type, node_key, title, content, validation_status, consensus_score)
     SELECT md5(u || ' ' || k)::uuid, u, 'fact', 'n' || k, 'title ' || k, jsonb_build_object('claim', 'c' || (u * 20 + k) % 5000),
         (ARRAY['unvalidated', 'validated', 'disputed'])[1 + k % 3]::validationstatus, (k % 10) / 10.0
     FROM generate_series(0, greatest({part} / {users}, 1) - 1) AS k, generate_series(1, {users}) AS u",
    // A tree in which each node has three children.
    "INSERT INTO consensus_memory_relations (id, user_id, source_node_id, target_node_id, relation_type)
     SELECT uuid7(), u, md5(u || ' ' || (k - 1) / 3)::uuid, md5(u || ' ' || k)::uuid, 'supports'
     FROM generate_series(1, greatest({part} / {users}, 1) - 1) AS k, generate_series(1, {users}) AS u",
    "INSERT INTO cross_service_memory_sync (id, user_id, source_session_id, target_session_id, sync_type, sync_status, data_transferred)
     SELECT uuid7(), 1 + n % {users}, 's1', 's2', 'state_sync', (ARRAY['pending', 'completed', 'failed'])[1 + n % 3]::sync_status, '{}'
     FROM generate_series(0, {part} - 1) AS n",
];

/// Fills tables with these statements, after replacing placeholders by their values. Disables triggers and foreign key
/// checks, which are not measured. Runs a vacuum and a checkpoint at the end, so that none is due during measurements.
pub(super) async fn fill_tables(
    owner: &mut Connection,
    statements: &[&str],
    values: &[(&str, String)],
) -> anyhow::Result<()> {
    owner
        .batch_execute("SET session_replication_role = replica")
        .await
        .context("cannot disable triggers, which only a superuser can do")?;
    for statement in statements {
        let table = statement.split_whitespace().nth(2).unwrap_or_default();
        errln!("filling {table}");
        let put = |sql: String, (name, value): &(&str, String)| sql.replace(name, value);
        let sql = values.iter().fold((*statement).to_owned(), put);
        owner.batch_execute(&sql).await.with_context(|| format!("cannot fill {table}"))?;
    }
    for sql in ["SET session_replication_role = origin", "VACUUM ANALYZE", "CHECKPOINT"] {
        owner.batch_execute(sql).await.with_context(|| format!("{sql} failed"))?;
    }
    Ok(())
}

/// Fills the tables, and grants the reader access to them.
pub(super) async fn fill(settings: &Settings, size: Size) -> anyhow::Result<Connection> {
    let mut owner = store::connect(&settings.postgres.url).await?;
    let values = [
        ("{rows}", size.rows.to_string()),
        ("{part}", (size.rows / 5).to_string()),
        ("{users}", size.users.to_string()),
        ("{sessions}", size.sessions.to_string()),
    ];
    fill_tables(&mut owner, &FILL, &values).await?;
    let role = worker_role(READER);
    owner
        .batch_execute(&format!("GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA public TO {role}"))
        .await
        .context("cannot grant privileges to the reader")?;
    Ok(owner)
}

/// A connection that reads under row-level security.
pub(super) async fn reader(settings: &Settings) -> anyhow::Result<(Connection, Grants)> {
    let grants = Grants::open(&settings.trust, READER)?;
    Ok((store::connect(&settings.postgres.url_of(&worker_role(READER))).await?, grants))
}

/// Begins a transaction with the security context of a user.
pub(super) async fn begin_for(
    connection: &mut Connection,
    grants: &Grants,
    user: UserId,
) -> anyhow::Result<()> {
    connection.batch_execute("BEGIN").await?;
    let grant = grants.of(&format!("memory.req.bench.context.put.{user}").parse()?);
    security::open_context(connection, &[&grant]).await?;
    Ok(())
}

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    line: String,
}

/// The query plan of a statement for a user.
pub(super) async fn plan(connection: &mut Connection, sql: &str, user: UserId) -> anyhow::Result<Value> {
    // The result column of EXPLAIN has a name that Diesel cannot map, so a function returns the plan.
    let sql = format!("EXPLAIN (FORMAT JSON) {}", sql.replace("$1", &user.to_string()));
    let rows: Vec<Line> =
        diesel::sql_query("SELECT bench_plan($1) AS line").bind::<Text, _>(sql).load(connection).await?;
    let text = rows.into_iter().next().context("EXPLAIN returned no plan")?.line;
    Ok(serde_json::from_str(&text)?)
}

/// Creates the function that [`plan`] needs.
pub(super) async fn create_plan_function(owner: &mut Connection) -> anyhow::Result<()> {
    owner
        .batch_execute(&format!(
            "CREATE FUNCTION bench_plan(statement text) RETURNS text LANGUAGE plpgsql AS $$
             DECLARE
                 plan json;
             BEGIN
                 EXECUTE statement INTO plan;
                 RETURN plan::text;
             END $$;
             GRANT EXECUTE ON FUNCTION bench_plan TO {}",
            worker_role(READER)
        ))
        .await?;
    Ok(())
}

/// Collects the values of a field at any depth of a plan.
pub(super) fn found<'a>(plan: &'a Value, field: &str, into: &mut Vec<&'a str>) {
    match plan {
        Value::Array(parts) => parts.iter().for_each(|part| found(part, field, into)),
        Value::Object(fields) => {
            into.extend(fields.get(field).and_then(Value::as_str));
            fields.values().for_each(|part| found(part, field, into));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The tables without rows.
pub(super) async fn empty_tables(owner: &mut Connection) -> anyhow::Result<Vec<String>> {
    const QUERY: &str = "SELECT relname::text AS line FROM pg_class WHERE relkind = 'r' AND reltuples = 0";
    let rows: Vec<Line> = diesel::sql_query(QUERY).load(owner).await?;
    Ok(rows.into_iter().map(|row| row.line).collect())
}

/// Runs a statement for a user, discards its rows and returns the milliseconds. It is prepared once per connection.
pub(super) async fn time(connection: &mut Connection, sql: &str, user: UserId) -> anyhow::Result<f64> {
    let started = std::time::Instant::now();
    store::prepared(diesel::sql_query(sql).bind::<Integer, _>(user.get())).execute(connection).await?;
    Ok(started.elapsed().as_secs_f64() * 1_000.0)
}
