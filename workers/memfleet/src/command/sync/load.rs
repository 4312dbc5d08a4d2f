//! Reads syncs and what they did.

use anyhow::{Context, bail};
use contract::{SyncChangeInfo, SyncInfo, SyncStatus, SyncUndone, UserId};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use serde::{Deserialize, Serialize};
use store::Connection;
use uuid::Uuid;

/// A sync, and whose it is.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Sync {
    pub(super) user_id: i32,
    #[serde(flatten)]
    pub(super) info: SyncInfo,
}

/// Which syncs are listed.
#[derive(Debug, Default)]
pub(super) struct Which<'a> {
    pub(super) user: Option<UserId>,
    pub(super) sync: Option<Uuid>,
    pub(super) session: Option<&'a str>,
    pub(super) status: Option<SyncStatus>,
}

/// The row of a sync that is none for this program: the role of memory-sync wrote it, or a newer program.
#[derive(Debug, Serialize)]
pub(super) struct Unreadable {
    pub(super) user_id: i32,
    pub(super) sync_id: Uuid,
    pub(super) problem: String,
}

/// The rows that were found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) syncs: Vec<Sync>,
    pub(super) unreadable: Vec<Unreadable>,
    /// Whether there are more.
    pub(super) more: bool,
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    found: String,
}

#[derive(QueryableByName)]
struct SyncRow {
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Text)]
    found: String,
}

/// Syncs, the latest first, at most `limit`.
pub(super) async fn syncs(
    connection: &mut Connection,
    which: &Which<'_>,
    limit: u32,
) -> anyhow::Result<Found> {
    const SYNCS: &str = "
        SELECT user_id, id, jsonb_build_object('user_id', user_id, 'sync_id', id, 'source_session_id', source_session_id,
            'target_session_id', target_session_id, 'sync_type', sync_type, 'sync_status', sync_status, 'end_reason', end_reason,
            'filter', filter, 'crosses_private', crosses_private, 'service', service, 'expires_at', expires_at, 'rounds', rounds,
            'transferred', data_transferred, 'created_at', created_at, 'updated_at', updated_at, 'completed_at', completed_at,
            'undone_at', undone_at)::text AS found
        FROM cross_service_memory_sync
        WHERE ($1 IS NULL OR user_id = $1) AND ($2 IS NULL OR id = $2)
            AND ($3 IS NULL OR $3 IN (source_session_id, target_session_id))
            AND ($4 IS NULL OR sync_status = $4::sync_status)
        ORDER BY created_at DESC, id DESC, user_id LIMIT $5";
    let statement = diesel::sql_query(SYNCS)
        .bind::<Nullable<Integer>, _>(which.user.map(UserId::get))
        .bind::<Nullable<SqlUuid>, _>(which.sync)
        .bind::<Nullable<Text>, _>(which.session)
        .bind::<Nullable<Text>, _>(which.status.map(SyncStatus::as_str))
        .bind::<BigInt, _>(i64::from(limit) + 1);
    let mut rows: Vec<SyncRow> = statement.load(connection).await.context("cannot read the syncs")?;
    let limit = usize::try_from(limit)?;
    let mut found = Found { more: rows.len() > limit, ..Found::default() };
    rows.truncate(limit);
    for row in rows {
        match serde_json::from_str(&row.found) {
            Ok(sync) => found.syncs.push(sync),
            Err(error) => found.unreadable.push(Unreadable {
                user_id: row.user_id,
                sync_id: row.id,
                problem: error.to_string(),
            }),
        }
    }
    Ok(found)
}

/// The sync with this id, which may be one of several users.
pub(super) async fn one(
    connection: &mut Connection,
    sync: Uuid,
    user: Option<UserId>,
) -> anyhow::Result<Sync> {
    let which = Which { user, sync: Some(sync), ..Which::default() };
    let mut found = syncs(connection, &which, 2).await?;
    let readable = found.syncs.iter().map(|one| one.user_id);
    let users: Vec<i32> = readable.chain(found.unreadable.iter().map(|one| one.user_id)).collect();
    if let [first, second, ..] = users[..] {
        bail!("several users have a sync {sync}, such as {first} and {second}; name one with --user");
    }
    if let Some(one) = found.unreadable.as_slice().first() {
        bail!("the sync {sync} of user {} {UNREADABLE}: {}", one.user_id, one.problem);
    }
    found.syncs.pop().with_context(|| {
        let of = user.map(|user| format!(" of user {user}")).unwrap_or_default();
        format!("there is no sync {sync}{of}; `memfleet sync list` shows all")
    })
}

/// What a sync did to keys, the latest first, and one more than `limit` if there is more.
pub(super) async fn changes(
    connection: &mut Connection,
    sync: &Sync,
    only_conflicts: bool,
    limit: u32,
) -> anyhow::Result<Vec<SyncChangeInfo>> {
    const CHANGES: &str = "
        SELECT jsonb_build_object('sync_id', sync_id, 'source_session_id', source_session_id, 'target_session_id', target_session_id,
            'position', position, 'context_key', context_key, 'agent_id', agent_id, 'memory_tier', memory_tier, 'node_id', node_id,
            'effect', effect, 'reason', reason, 'conflicts', conflicts, 'disputed', disputed, 'sensitive', is_sensitive,
            'changed_at', changed_at, 'undone_at', undone_at)::text AS found
        FROM sync_changes
        WHERE user_id = $1 AND sync_id = $2 AND (NOT $3 OR effect = 'failed' OR conflicts <> '[]' OR disputed <> '[]')
        ORDER BY position DESC LIMIT $4";
    let statement = diesel::sql_query(CHANGES)
        .bind::<Integer, _>(sync.user_id)
        .bind::<SqlUuid, _>(sync.info.sync_id)
        .bind::<Bool, _>(only_conflicts)
        .bind::<BigInt, _>(i64::from(limit) + 1);
    let rows: Vec<Row> = statement.load(connection).await.context("cannot read what the sync did")?;
    rows.iter().map(|row| parsed(&row.found)).collect()
}

/// What an undo restored and what stayed: the events of its request.
pub(super) async fn undone(
    connection: &mut Connection,
    sync: &Sync,
    request: Uuid,
) -> anyhow::Result<Vec<SyncUndone>> {
    const UNDONE: &str = "
        SELECT event_payload::text AS found FROM blackboard_events
        WHERE user_id = $1 AND session_id = $2 AND event_type = 'sync.undone' AND request_id = $3 ORDER BY event_sequence";
    let statement = diesel::sql_query(UNDONE)
        .bind::<Integer, _>(sync.user_id)
        .bind::<Text, _>(&sync.info.target_session_id)
        .bind::<SqlUuid, _>(request);
    let rows: Vec<Row> = statement.load(connection).await.context("cannot read what was undone")?;
    rows.iter().map(|row| parsed(&row.found)).collect()
}

/// What is said of what cannot be read.
pub(super) const UNREADABLE: &str =
    "is not readable; the role of memory-sync wrote it otherwise, or the database is newer than this program";

fn parsed<'a, T: Deserialize<'a>>(text: &'a str) -> anyhow::Result<T> {
    serde_json::from_str(text).with_context(|| format!("a row of a sync {UNREADABLE}"))
}
