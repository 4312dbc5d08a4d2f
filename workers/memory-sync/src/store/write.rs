//! What a batch of rounds writes: cells of targets, states that are kept in sources, ciphertexts, and the record of each key.

use std::collections::HashMap;
use std::sync::LazyLock;

use ::store::unnest::{UnnestRow, with_rows};
use ::store::{Connection, Fault};
use chrono::{DateTime, Utc};
use contract::{ENCRYPTED, UserId};
use diesel::QueryableByName;
use diesel::sql_types::Integer;
use diesel_async::RunQueryDsl;
use keys::{DataKeys, Field};
use secrecy::SecretString;
use sync::{Cell, Key, KeyState};
use uuid::Uuid;

use super::rows::agent_of;
use super::table::Table;
use super::{json, overtaken};

/// A cell to write, or to delete.
#[derive(Debug)]
pub(crate) struct CellWrite {
    pub(crate) user: UserId,
    pub(crate) session: sync::Session,
    pub(crate) key: Key,
    pub(crate) row: Uuid,
    /// Whether there is no row yet.
    pub(crate) is_new: bool,
    /// Absent: the row is deleted.
    pub(crate) cell: Option<Cell>,
    pub(crate) request_id: Uuid,
    pub(crate) at: DateTime<Utc>,
}

/// A state that is kept beside a value that stays as it is.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) user: UserId,
    pub(crate) table: Table,
    pub(crate) row: Uuid,
    pub(crate) state: KeyState,
    pub(crate) writes: u64,
    pub(crate) is_sensitive: bool,
    pub(crate) request_id: Uuid,
    pub(crate) at: DateTime<Utc>,
}

/// What a round did to a key.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) id: Uuid,
    pub(crate) user: UserId,
    pub(crate) sync_id: Uuid,
    pub(crate) source: sync::Session,
    pub(crate) target: sync::Session,
    pub(crate) key: Key,
    pub(crate) node_id: Option<Uuid>,
    pub(crate) effect: contract::SyncEffect,
    pub(crate) reason: Option<String>,
    pub(crate) before: Option<String>,
    pub(crate) before_digest: Option<String>,
    pub(crate) after_digest: Option<String>,
    pub(crate) writes: u64,
    pub(crate) conflicts: Vec<contract::SyncConflict>,
    pub(crate) disputed: Vec<contract::SyncCandidate>,
    pub(crate) is_sensitive: bool,
    pub(crate) request_id: Uuid,
    pub(crate) at: DateTime<Utc>,
}

/// All that the rounds of a batch write.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    pub(crate) cells: Vec<CellWrite>,
    pub(crate) kept: Vec<Kept>,
    pub(crate) changes: Vec<Change>,
    secrets: Vec<(Uuid, Secret)>,
}

#[derive(Debug)]
struct Secret {
    user: UserId,
    table: &'static str,
    column: &'static str,
    value: SecretString,
    request_id: Uuid,
    at: DateTime<Utc>,
}

::store::unnest_row! {
    struct CellRow<'a> {
        id: Uuid,
        user_id: i32,
        session_id: &'a str,
        agent_id: Option<&'a str>,
        memory_tier: Option<&'a str>,
        context_key: &'a str,
        context_value: Option<String>,
        context_type: Option<&'a str>,
        access_level: &'a str,
        priority: i32,
        expires_at: Option<DateTime<Utc>>,
        is_persistent: bool,
        is_shareable: bool,
        is_sensitive: bool,
        writes: i64,
        written_at: Option<DateTime<Utc>>,
        sync_state: Option<String>,
        sync_values: Option<String>,
        at: DateTime<Utc>,
        request_id: Uuid,
    }
}

fn columns(table: Table) -> (&'static str, &'static str) {
    match table {
        Table::Contexts => (
            "context_key, context_type, access_level, priority, is_persistent",
            "i.context_key, i.context_type::context_type, i.access_level::access_level, i.priority, i.is_persistent",
        ),
        Table::Agents => (
            "agent_id, memory_tier, context_key, is_shareable",
            "i.agent_id, i.memory_tier::memorytier, i.context_key, i.is_shareable",
        ),
    }
}

/// Inserts rows that were not there when the round was planned. One that is there by now means that the plan is out of date.
fn insert_sql(table: Table) -> String {
    let (arrays, names) = (CellRow::arrays(1), CellRow::names());
    let (columns, values) = columns(table);
    let (name, key) = match table {
        Table::Contexts => (table.name(), "context_key"),
        Table::Agents => (table.name(), "agent_id, memory_tier, context_key"),
    };
    format!(
        "WITH written AS (
        INSERT INTO {name} (id, user_id, session_id, {columns}, context_value, version, expires_at, is_sensitive, writes,
            written_at, synced_writes, sync_state, sync_values, request_id, created_at, updated_at, removed_at)
        SELECT i.id, i.user_id, i.session_id, {values}, i.context_value::jsonb, 1, i.expires_at, i.is_sensitive, i.writes,
            i.written_at, i.writes, i.sync_state, i.sync_values, i.request_id, i.at, i.at,
            CASE WHEN i.context_value IS NULL THEN i.at END
        FROM unnest({arrays}) AS i ({names}) ORDER BY i.user_id, i.session_id, {ordered}
        ON CONFLICT (user_id, session_id, {key}) DO NOTHING RETURNING 1
    ) SELECT count(*)::integer AS written FROM written",
        ordered = key.split(", ").map(|column| format!("i.{column}")).collect::<Vec<_>>().join(", "),
    )
}

/// Updates rows that the plan has locked.
fn update_sql(table: Table) -> String {
    let (arrays, names) = (CellRow::arrays(1), CellRow::names());
    let own = match table {
        Table::Contexts => {
            "context_type = i.context_type::context_type, access_level = i.access_level::access_level, priority = i.priority,
            is_persistent = i.is_persistent"
        }
        Table::Agents => "is_shareable = i.is_shareable",
    };
    format!(
        "WITH written AS (
        UPDATE {name} t SET {own}, context_value = i.context_value::jsonb, expires_at = i.expires_at,
            is_sensitive = i.is_sensitive, writes = i.writes, written_at = i.written_at, synced_writes = i.writes,
            sync_state = i.sync_state, sync_values = i.sync_values, request_id = i.request_id, updated_at = i.at,
            removed_at = CASE WHEN i.context_value IS NULL THEN coalesce(t.removed_at, i.at) END
        FROM unnest({arrays}) AS i ({names}) WHERE t.user_id = i.user_id AND t.id = i.id RETURNING 1
    ) SELECT count(*)::integer AS written FROM written",
        name = table.name(),
    )
}

static INSERT_CONTEXTS: LazyLock<String> = LazyLock::new(|| insert_sql(Table::Contexts));
static INSERT_AGENTS: LazyLock<String> = LazyLock::new(|| insert_sql(Table::Agents));
static UPDATE_CONTEXTS: LazyLock<String> = LazyLock::new(|| update_sql(Table::Contexts));
static UPDATE_AGENTS: LazyLock<String> = LazyLock::new(|| update_sql(Table::Agents));

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = Integer)]
    written: i32,
}

::store::unnest_row! {
    struct RowKey {
        user_id: i32,
        id: Uuid,
    }
}

fn delete_sql(table: Table) -> String {
    // A role with the right to delete might lock the table.
    format!("SELECT FROM sec.delete_rows('{}', {})", table.name(), RowKey::arrays(1))
}

static DELETE_CONTEXTS: LazyLock<String> = LazyLock::new(|| delete_sql(Table::Contexts));
static DELETE_AGENTS: LazyLock<String> = LazyLock::new(|| delete_sql(Table::Agents));

::store::unnest_row! {
    struct KeptRow {
        user_id: i32,
        id: Uuid,
        sync_state: String,
        sync_values: Option<String>,
        writes: i64,
    }
}

fn keep_sql(table: Table) -> String {
    let (arrays, names) = (KeptRow::arrays(1), KeptRow::names());
    format!(
        "UPDATE {} t SET sync_state = i.sync_state, sync_values = i.sync_values, synced_writes = i.writes
        FROM unnest({arrays}) AS i ({names}) WHERE t.user_id = i.user_id AND t.id = i.id",
        table.name()
    )
}

static KEEP_CONTEXTS: LazyLock<String> = LazyLock::new(|| keep_sql(Table::Contexts));
static KEEP_AGENTS: LazyLock<String> = LazyLock::new(|| keep_sql(Table::Agents));

/// A state as its two columns: without values, and with them unless they are stored encrypted.
fn state_columns(state: &KeyState, is_sensitive: bool) -> (String, Option<String>, Option<SecretString>) {
    let skeleton = json(&state.clone().without_values());
    match (state.has_values(), is_sensitive) {
        (false, _) => (skeleton, None, None),
        (true, false) => (skeleton, Some(json(state)), None),
        (true, true) => (skeleton, None, Some(json(state).into())),
    }
}

fn bigint(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Writes {
    pub(crate) fn extend(&mut self, other: Self) {
        let Self { cells, kept, changes, secrets } = other;
        self.cells.extend(cells);
        self.kept.extend(kept);
        self.changes.extend(changes);
        self.secrets.extend(secrets);
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// A [`Fault`]; a transient one if a key of a target was put meanwhile, so that the plan is out of date.
    pub(crate) async fn write(mut self, connection: &mut Connection, keys: &DataKeys) -> Result<(), Fault> {
        let cells = std::mem::take(&mut self.cells);
        for table in Table::ALL {
            let (insert, update, delete) = match table {
                Table::Contexts => (&INSERT_CONTEXTS, &UPDATE_CONTEXTS, &DELETE_CONTEXTS),
                Table::Agents => (&INSERT_AGENTS, &UPDATE_AGENTS, &DELETE_AGENTS),
            };
            let (mut new, mut changed, mut deleted) = (Vec::new(), Vec::new(), Vec::new());
            for write in cells.iter().filter(|write| Table::of(&write.key) == table) {
                match &write.cell {
                    Some(cell) if write.is_new => new.push(self.cell_row(write, cell)),
                    Some(cell) => changed.push(self.cell_row(write, cell)),
                    None => deleted.push(RowKey { user_id: write.user.get(), id: write.row }),
                }
            }
            written(connection, update, changed).await?;
            written(connection, insert, new).await?;
            if !deleted.is_empty() {
                with_rows(delete, deleted).execute(connection).await?;
            }
        }
        self.keep(connection).await?;
        self.record(connection).await?;
        let secrets: Vec<(Field<'_>, &SecretString)> = self
            .secrets
            .iter()
            .map(|(row, secret)| {
                let Secret { user, table, column, value, request_id, at } = secret;
                let (user, request_id, stored_at) = (*user, *request_id, *at);
                (Field { user, table, column, row: *row, request_id, stored_at }, value)
            })
            .collect();
        keys::encrypt_fields(connection, &secrets, keys).await
    }

    fn cell_row<'a>(&mut self, write: &'a CellWrite, cell: &'a Cell) -> CellRow<'a> {
        let attributes = &cell.attributes;
        let is_sensitive = attributes.sensitive;
        let (sync_state, sync_values, secret) = match &cell.state {
            Some(state) => {
                let (skeleton, values, secret) = state_columns(state, is_sensitive);
                (Some(skeleton), values, secret)
            }
            None => (None, None, None),
        };
        let mut value = cell.value.as_ref().map(ToString::to_string);
        let table = Table::of(&write.key).name();
        if is_sensitive {
            if let Some(value) = &mut value {
                let plain = std::mem::replace(value, format!("\"{ENCRYPTED}\""));
                self.seal(write, table, "context_value", plain.into());
            }
            if let Some(secret) = secret {
                self.seal(write, table, "sync_values", secret);
            }
        }
        let (agent_id, memory_tier) = agent_of(&write.key);
        CellRow {
            id: write.row,
            user_id: write.user.get(),
            session_id: &write.session,
            agent_id,
            memory_tier,
            context_key: write.key.name(),
            context_value: value,
            context_type: attributes.context_type.map(contract::ContextType::as_str),
            access_level: attributes.access_level.as_str(),
            priority: attributes.priority,
            expires_at: attributes.expires_at,
            is_persistent: attributes.is_persistent,
            is_shareable: attributes.is_shareable,
            is_sensitive,
            writes: bigint(cell.writes),
            written_at: (cell.writes > 0).then_some(cell.written_at),
            sync_state,
            sync_values,
            at: write.at,
            request_id: write.request_id,
        }
    }

    fn seal(&mut self, write: &CellWrite, table: &'static str, column: &'static str, value: SecretString) {
        let CellWrite { user, request_id, at, row, .. } = write;
        let secret = Secret { user: *user, table, column, value, request_id: *request_id, at: *at };
        self.secrets.push((*row, secret));
    }

    async fn keep(&mut self, connection: &mut Connection) -> Result<(), Fault> {
        let mut rows: HashMap<Table, Vec<KeptRow>> = HashMap::new();
        for kept in std::mem::take(&mut self.kept) {
            let Kept { user, table, row, state, writes, is_sensitive, request_id, at } = kept;
            let (sync_state, sync_values, secret) = state_columns(&state, is_sensitive);
            if let Some(value) = secret {
                let secret =
                    Secret { user, table: table.name(), column: "sync_values", value, request_id, at };
                self.secrets.push((row, secret));
            }
            let writes = bigint(writes);
            let kept = KeptRow { user_id: user.get(), id: row, sync_state, sync_values, writes };
            rows.entry(table).or_default().push(kept);
        }
        for table in Table::ALL {
            let sql = match table {
                Table::Contexts => &KEEP_CONTEXTS,
                Table::Agents => &KEEP_AGENTS,
            };
            if let Some(rows) = rows.remove(&table) {
                with_rows(sql, rows).execute(connection).await?;
            }
        }
        Ok(())
    }

    async fn record(&mut self, connection: &mut Connection) -> Result<(), Fault> {
        let changes = std::mem::take(&mut self.changes);
        if changes.is_empty() {
            return Ok(());
        }
        let rows: Vec<ChangeRow<'_>> = changes.iter().map(|change| self.change_row(change)).collect();
        with_rows(&RECORD, rows).execute(connection).await?;
        Ok(())
    }

    fn change_row<'a>(&mut self, change: &'a Change) -> ChangeRow<'a> {
        let (mut before, mut conflicts, mut disputed) =
            (change.before.clone(), json(&change.conflicts), json(&change.disputed));
        if change.is_sensitive {
            let columns =
                [("before", before.take()), ("conflicts", Some(conflicts)), ("disputed", Some(disputed))];
            for (column, value) in columns {
                let Some(value) = value.filter(|value| value != "[]") else { continue };
                let Change { user, request_id, at, .. } = change;
                let (user, request_id, at) = (*user, *request_id, *at);
                let value = value.into();
                self.secrets
                    .push((change.id, Secret { user, table: "sync_changes", column, value, request_id, at }));
            }
            conflicts = json(&change.conflicts.iter().map(without_values).collect::<Vec<_>>());
            disputed = json(&change.disputed.iter().map(marked).collect::<Vec<_>>());
        }
        let (agent_id, memory_tier) = agent_of(&change.key);
        ChangeRow {
            id: change.id,
            user_id: change.user.get(),
            sync_id: change.sync_id,
            source_session_id: &change.source,
            target_session_id: &change.target,
            agent_id,
            memory_tier,
            context_key: change.key.name(),
            node_id: change.node_id,
            effect: change.effect.as_str(),
            reason: change.reason.as_deref(),
            had_before: change.before.is_some(),
            before,
            before_digest: change.before_digest.as_deref(),
            after_digest: change.after_digest.as_deref(),
            writes: bigint(change.writes),
            conflicts,
            disputed,
            is_sensitive: change.is_sensitive,
            at: change.at,
            request_id: change.request_id,
        }
    }
}

async fn written(connection: &mut Connection, sql: &str, rows: Vec<CellRow<'_>>) -> Result<(), Fault> {
    if rows.is_empty() {
        return Ok(());
    }
    let expected = rows.len();
    let count: Count = with_rows(sql, rows).get_result(connection).await?;
    if usize::try_from(count.written).is_ok_and(|written| written == expected) {
        Ok(())
    } else {
        Err(overtaken("a key of the target"))
    }
}

::store::unnest_row! {
    struct ChangeRow<'a> {
        id: Uuid,
        user_id: i32,
        sync_id: Uuid,
        source_session_id: &'a str,
        target_session_id: &'a str,
        agent_id: Option<&'a str>,
        memory_tier: Option<&'a str>,
        context_key: &'a str,
        node_id: Option<Uuid>,
        effect: &'a str,
        reason: Option<&'a str>,
        had_before: bool,
        before: Option<String>,
        before_digest: Option<&'a str>,
        after_digest: Option<&'a str>,
        writes: i64,
        conflicts: String,
        disputed: String,
        is_sensitive: bool,
        at: DateTime<Utc>,
        request_id: Uuid,
    }
}

/// A key that failed for the same reason in the round before is not recorded again.
static RECORD: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (ChangeRow::arrays(1), ChangeRow::names());
    format!(
        "INSERT INTO sync_changes (id, user_id, sync_id, source_session_id, target_session_id, agent_id, memory_tier, context_key,
            node_id, effect, reason, had_before, before, before_digest, after_digest, writes, conflicts, disputed, is_sensitive,
            changed_at, request_id)
        SELECT i.id, i.user_id, i.sync_id, i.source_session_id, i.target_session_id, i.agent_id, i.memory_tier::memorytier,
            i.context_key, i.node_id, i.effect, i.reason, i.had_before, i.before, i.before_digest, i.after_digest, i.writes,
            i.conflicts::jsonb, i.disputed::jsonb, i.is_sensitive, i.at, i.request_id
        FROM unnest({arrays}) WITH ORDINALITY AS i ({names}, ordinal)
        WHERE i.effect <> 'failed' OR (SELECT c.reason FROM sync_changes c
            WHERE c.user_id = i.user_id AND c.target_session_id = i.target_session_id AND c.context_key = i.context_key
                AND c.sync_id = i.sync_id AND c.agent_id IS NOT DISTINCT FROM i.agent_id
                AND c.memory_tier IS NOT DISTINCT FROM i.memory_tier::memorytier
            ORDER BY c.position DESC LIMIT 1) IS DISTINCT FROM i.reason
        ORDER BY i.ordinal"
    )
});

fn marker() -> Option<contract::Json> {
    contract::Json::recorded(format!("\"{ENCRYPTED}\"")).ok()
}

/// A value that is stored encrypted only, with a marker in its place.
pub(crate) fn marked(candidate: &contract::SyncCandidate) -> contract::SyncCandidate {
    let contract::SyncCandidate { session_id, write, written_at, value } = candidate;
    let value = value.as_ref().and_then(|_| marker());
    contract::SyncCandidate { session_id: session_id.clone(), write: *write, written_at: *written_at, value }
}

/// The record of a conflict of values that are stored encrypted only. Its path names members and items of the value.
pub(crate) fn without_values(conflict: &contract::SyncConflict) -> contract::SyncConflict {
    let contract::SyncConflict { path: _, cause, rule, base, ours, theirs, kept, lost } = conflict;
    let mark = |value: &Option<contract::Json>| value.as_ref().and_then(|_| marker());
    contract::SyncConflict {
        path: String::new(),
        cause: *cause,
        rule: *rule,
        base: mark(base),
        ours: mark(ours),
        theirs: mark(theirs),
        kept: mark(kept),
        lost: lost.iter().map(marked).collect(),
    }
}
