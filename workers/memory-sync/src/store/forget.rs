//! The job `sync-forget`: the history of a removed key is forgotten in all sessions at once, when all that could bring it back have
//! seen the removal.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use ::store::{Connection, Fault};
use chrono::DateTime;
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use sync::{Attributes, Cell, Holder, Json, KeyState, Session, forgettable};
use uuid::Uuid;

use super::cells::BYTES;
use super::table::Table;

/// The most keys of a tick. Others are looked at by another one.
const KEYS: i32 = 1_000;

/// The keys of a tick with all sessions that have them, as many as have so many bytes of states together, but one in any case. An ended
/// session that a sync still reads to its end is not ended yet.
fn load_sql(table: Table) -> String {
    let (key, same) = match table {
        Table::Contexts => ("context_key", "t.context_key = r.context_key"),
        Table::Agents => (
            "agent_id, memory_tier, context_key",
            "t.agent_id = r.agent_id AND t.memory_tier = r.memory_tier AND t.context_key = r.context_key",
        ),
    };
    let (agent, tier) = match table {
        Table::Contexts => ("NULL::text", "NULL::text"),
        Table::Agents => ("t.agent_id::text", "t.memory_tier::text"),
    };
    let of = |alias: &str| {
        key.split(", ").map(|column| format!("{alias}.{column}")).collect::<Vec<_>>().join(", ")
    };
    format!(
        "WITH r AS MATERIALIZED (
        SELECT user_id, {key} FROM (
            SELECT r.*, sum(r.bytes) OVER (ORDER BY r.place ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before FROM (
                SELECT r.*, row_number() OVER (ORDER BY r.rank, r.user_id, {of_r}) AS place, (
                    SELECT sum(octet_length(coalesce(t.sync_values, t.sync_state))) FROM {name} t
                    WHERE t.user_id = r.user_id AND {same}) AS bytes
                FROM (SELECT DISTINCT user_id, {key}, rank FROM (
                    SELECT user_id, {key}, hashtextextended(context_key, extract(epoch FROM now())::bigint) AS rank
                    FROM {name} WHERE removed_at IS NOT NULL AND sync_state IS NOT NULL ORDER BY rank LIMIT $1) AS removed) AS r
            ) AS r) AS r WHERE coalesce(before, 0) < $2)
    SELECT t.user_id, {agent} AS agent_id, {tier} AS memory_tier, t.context_key::text AS context_key, t.session_id::text AS session_id,
        t.id, t.removed_at IS NOT NULL AS is_removed, t.writes, coalesce(t.sync_values, t.sync_state) AS state,
        coalesce(NOT s.is_active, false) AND NOT EXISTS (SELECT FROM cross_service_memory_sync y
            WHERE y.user_id = t.user_id AND y.source_session_id = t.session_id AND y.sync_status = 'in_progress') AS has_ended
    FROM r JOIN {name} t ON t.user_id = r.user_id AND {same} AND t.sync_state IS NOT NULL
    LEFT JOIN chat_mode_sessions s ON s.user_id = t.user_id AND s.session_id = t.session_id
    ORDER BY t.user_id, t.session_id, {ordered} FOR UPDATE OF t",
        name = table.name(),
        ordered = of("t"),
        of_r = of("r"),
    )
}

static LOAD_CONTEXTS: LazyLock<String> = LazyLock::new(|| load_sql(Table::Contexts));
static LOAD_AGENTS: LazyLock<String> = LazyLock::new(|| load_sql(Table::Agents));

fn forget_sql(table: Table) -> String {
    format!(
        "UPDATE {} SET sync_state = NULL, sync_values = NULL
        WHERE (user_id, id) IN (SELECT * FROM unnest($1::integer[], $2::uuid[]))",
        table.name()
    )
}

static FORGET_CONTEXTS: LazyLock<String> = LazyLock::new(|| forget_sql(Table::Contexts));
static FORGET_AGENTS: LazyLock<String> = LazyLock::new(|| forget_sql(Table::Agents));

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = Nullable<Text>)]
    agent_id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    memory_tier: Option<String>,
    #[diesel(sql_type = Text)]
    context_key: String,
    #[diesel(sql_type = Text)]
    session_id: String,
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Bool)]
    is_removed: bool,
    #[diesel(sql_type = BigInt)]
    writes: i64,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = Bool)]
    has_ended: bool,
}

impl Row {
    /// The cell; `None` if its state cannot be read.
    fn cell(&self) -> Option<Cell> {
        let state: KeyState = serde_json::from_str(&self.state).ok()?;
        Some(Cell {
            // Which value it is makes no difference.
            value: (!self.is_removed).then_some(Json::Null),
            attributes: Attributes::default(),
            writes: u64::try_from(self.writes).unwrap_or(0),
            written_at: DateTime::UNIX_EPOCH,
            state: Some(state),
        })
    }
}

/// Forgets what may be forgotten of the users that the tick acts for.
pub(crate) async fn forget(connection: &mut Connection) -> Result<(), Fault> {
    for table in Table::ALL {
        let (load, forget) = match table {
            Table::Contexts => (&LOAD_CONTEXTS, &FORGET_CONTEXTS),
            Table::Agents => (&LOAD_AGENTS, &FORGET_AGENTS),
        };
        let query = diesel::sql_query(load.as_str())
            .bind::<Integer, _>(KEYS)
            .bind::<BigInt, _>(i64::try_from(BYTES).unwrap_or(i64::MAX));
        let rows: Vec<Row> = ::store::prepared(query).load(connection).await?;
        let mut keys: BTreeMap<_, Vec<Row>> = BTreeMap::new();
        for row in rows {
            let key = (row.user_id, row.agent_id.clone(), row.memory_tier.clone(), row.context_key.clone());
            keys.entry(key).or_default().push(row);
        }
        let (mut users, mut ids) = (Vec::new(), Vec::new());
        for rows in keys.into_values() {
            // Who has seen the removal is not known then: nothing is forgotten.
            let Some(cells) = rows.iter().map(Row::cell).collect::<Option<Vec<_>>>() else { continue };
            let sessions: Vec<Session> = rows.iter().map(|row| row.session_id.as_str().into()).collect();
            let holders: Vec<Holder<'_>> = rows
                .iter()
                .zip(&cells)
                .zip(&sessions)
                .map(|((row, cell), session)| Holder { session, cell, ended: row.has_ended })
                .collect();
            if forgettable(&holders) {
                users.extend(rows.iter().map(|row| row.user_id));
                ids.extend(rows.iter().map(|row| row.id));
            }
        }
        if !ids.is_empty() {
            let query = diesel::sql_query(forget.as_str())
                .bind::<Array<Integer>, _>(users)
                .bind::<Array<SqlUuid>, _>(ids);
            ::store::prepared(query).execute(connection).await?;
        }
    }
    Ok(())
}
