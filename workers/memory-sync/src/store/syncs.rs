//! The rows of `cross_service_memory_sync`, and the sessions that they name.

use std::collections::{BTreeSet, HashMap};
use std::sync::LazyLock;

use ::store::unnest::{UnnestRow, with_rows};
use ::store::{Connection, Fault, FaultKind};
use chrono::{DateTime, Utc};
use contract::{SyncEnd, SyncStatus, SyncType, UserId};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use serde::Serialize;
use sync::Rules;
use uuid::Uuid;

use super::run::{Round, Run, State};
use super::{carry, json};

::store::unnest_row! {
    struct SessionRow<'a> {
        user_id: i32,
        session_id: &'a str,
    }
}

static SESSIONS: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (SessionRow::arrays(1), SessionRow::names());
    format!(
        "SELECT s.user_id, s.session_id::text AS session_id, s.is_active, coalesce(c.logical_time, 0) AS clock,
            clock_timestamp() AS now
        FROM unnest({arrays}) AS i ({names})
        JOIN chat_mode_sessions s ON s.user_id = i.user_id AND s.session_id = i.session_id
        LEFT JOIN session_clocks c ON c.user_id = i.user_id AND c.session_id = i.session_id"
    )
});

/// A session.
#[derive(Clone, Debug, QueryableByName)]
pub(crate) struct SessionState {
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = Text)]
    session_id: String,
    #[diesel(sql_type = Bool)]
    pub(crate) is_active: bool,
    /// Its logical time. It is read before the keys, so that whatever is written later makes it grow.
    #[diesel(sql_type = BigInt)]
    pub(crate) clock: i64,
    #[diesel(sql_type = Timestamptz)]
    pub(crate) now: DateTime<Utc>,
}

/// Sessions of users.
pub(crate) type Sessions = HashMap<(i32, String), SessionState>;

/// Reads these sessions. One that does not exist is missing.
pub(crate) async fn sessions(
    connection: &mut Connection,
    wanted: &BTreeSet<(i32, &str)>,
) -> Result<Sessions, Fault> {
    let rows = wanted.iter().map(|(user_id, session_id)| SessionRow { user_id: *user_id, session_id });
    let found: Vec<SessionState> = with_rows(&SESSIONS, rows.collect()).load(connection).await?;
    Ok(found.into_iter().map(|state| ((state.user_id, state.session_id.clone()), state)).collect())
}

/// Keeps other syncs of these sessions waiting until the transaction ends.
pub(crate) async fn lock_sessions(
    connection: &mut Connection,
    sessions: &BTreeSet<(i32, &str)>,
) -> Result<(), Fault> {
    const LOCK: &str = "SELECT sec.lock_synced_sessions($1, $2)";
    if sessions.is_empty() {
        return Ok(());
    }
    let query = diesel::sql_query(LOCK)
        .bind::<Array<Integer>, _>(sessions.iter().map(|(user_id, _)| *user_id).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(sessions.iter().map(|(_, session_id)| *session_id).collect::<Vec<_>>());
    ::store::prepared(query).execute(connection).await?;
    Ok(())
}

/// A stored sync.
#[derive(Clone, Debug, QueryableByName)]
pub(crate) struct SyncRow {
    #[diesel(sql_type = Integer)]
    pub(crate) user_id: i32,
    #[diesel(sql_type = SqlUuid)]
    pub(crate) id: Uuid,
    #[diesel(sql_type = Text)]
    source_session_id: String,
    #[diesel(sql_type = Text)]
    target_session_id: String,
    #[diesel(sql_type = Text)]
    sync_type: String,
    #[diesel(sql_type = Text)]
    sync_status: String,
    #[diesel(sql_type = Nullable<Text>)]
    end_reason: Option<String>,
    #[diesel(sql_type = Text)]
    filter: String,
    #[diesel(sql_type = Bool)]
    crosses_private: bool,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub(crate) expires_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = BigInt)]
    rounds: i64,
    #[diesel(sql_type = Text)]
    data_transferred: String,
    #[diesel(sql_type = Bool)]
    pub(crate) has_more: bool,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    resume_after: Option<Uuid>,
    #[diesel(sql_type = Nullable<BigInt>)]
    pass_clock: Option<i64>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub(crate) request_id: Option<Uuid>,
    /// Whether its service is not disabled and still has the scopes.
    #[diesel(sql_type = Bool)]
    pub(crate) is_allowed: bool,
    #[diesel(sql_type = Timestamptz)]
    now: DateTime<Utc>,
}

/// The columns of a [`SyncRow`] of the alias `s`.
const COLUMNS: &str = "s.user_id, s.id, s.source_session_id::text AS source_session_id, s.target_session_id::text AS target_session_id,
    s.sync_type::text AS sync_type, s.sync_status::text AS sync_status, s.end_reason::text AS end_reason, s.filter::text AS filter, s.crosses_private, s.expires_at,
    s.rounds, s.data_transferred::text AS data_transferred, s.has_more, s.resume_after, s.pass_clock, s.request_id,
    sec.may_sync(s.service, s.crosses_private) AS is_allowed, clock_timestamp() AS now";

::store::unnest_row! {
    struct IdRow {
        user_id: i32,
        id: Uuid,
    }
}

static LOCK: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (IdRow::arrays(1), IdRow::names());
    format!(
        "SELECT {COLUMNS} FROM unnest({arrays}) AS i ({names})
        JOIN cross_service_memory_sync s ON s.user_id = i.user_id AND s.id = i.id
        ORDER BY s.user_id, s.id FOR NO KEY UPDATE OF s"
    )
});

/// Row-level security shows the syncs of the users alone that the tick acts for. One that another replica carries is left to it. Each
/// user's oldest come first, then each one's second: nobody's many syncs keep another one's from the tick.
static DUE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH due AS MATERIALIZED (
            SELECT s.user_id, s.id, coalesce(s.carried_at, s.created_at) AS since,
                row_number() OVER (PARTITION BY s.user_id ORDER BY coalesce(s.carried_at, s.created_at), s.id) AS place
            FROM cross_service_memory_sync s
            JOIN chat_mode_sessions a ON a.user_id = s.user_id AND a.session_id = s.source_session_id
            JOIN chat_mode_sessions b ON b.user_id = s.user_id AND b.session_id = s.target_session_id
            LEFT JOIN session_clocks c ON c.user_id = s.user_id AND c.session_id = s.source_session_id
            WHERE s.sync_status = 'in_progress'
                AND (s.has_more OR s.source_clock IS NULL OR c.logical_time > s.source_clock OR s.expires_at <= now()
                    OR NOT a.is_active OR NOT b.is_active OR NOT sec.may_sync(s.service, s.crosses_private)))
        SELECT {COLUMNS} FROM due d JOIN cross_service_memory_sync s ON s.user_id = d.user_id AND s.id = d.id
        WHERE s.sync_status = 'in_progress'
        ORDER BY d.place, d.since, s.id LIMIT $1 FOR NO KEY UPDATE OF s SKIP LOCKED"
    )
});

/// Locks syncs by their ids, in the order of their keys.
pub(crate) async fn lock(
    connection: &mut Connection,
    ids: &BTreeSet<(i32, Uuid)>,
) -> Result<HashMap<(i32, Uuid), SyncRow>, Fault> {
    let rows = ids.iter().map(|(user_id, id)| IdRow { user_id: *user_id, id: *id }).collect();
    let found: Vec<SyncRow> = with_rows(&LOCK, rows).load(connection).await?;
    Ok(found.into_iter().map(|row| ((row.user_id, row.id), row)).collect())
}

/// Locks running syncs that have something to do.
pub(crate) async fn due(connection: &mut Connection, most: i32) -> Result<Vec<SyncRow>, Fault> {
    let query = diesel::sql_query(DUE.as_str()).bind::<Integer, _>(most);
    Ok(::store::prepared(query).load(connection).await?)
}

impl SyncRow {
    pub(crate) fn is_running(&self) -> bool {
        [SyncStatus::Pending, SyncStatus::InProgress].iter().any(|status| status.as_str() == self.sync_status)
    }

    pub(crate) fn is_pending(&self) -> bool {
        self.sync_status == SyncStatus::Pending.as_str()
    }

    /// How far it is.
    pub(crate) fn state(&self) -> State {
        State {
            status: SyncStatus::from_label(&self.sync_status).unwrap_or(SyncStatus::InProgress),
            end: self.end_reason.as_deref().and_then(SyncEnd::from_label),
        }
    }

    pub(crate) fn sessions(&self) -> [(i32, &str); 2] {
        [(self.user_id, self.source_session_id.as_str()), (self.user_id, self.target_session_id.as_str())]
    }

    /// The sync as it goes on, for this message.
    pub(crate) fn run(&self, request_id: Uuid, may_decrypt: bool) -> Result<Run, Fault> {
        let unreadable = |what: &str| Fault {
            kind: FaultKind::Permanent,
            reason: format!("{what} of sync {} cannot be read", self.id),
        };
        Ok(Run {
            user: UserId::new(self.user_id).map_err(|_| unreadable("the user"))?,
            id: self.id,
            source: self.source_session_id.as_str().into(),
            target: self.target_session_id.as_str().into(),
            sync_type: SyncType::from_label(&self.sync_type).ok_or_else(|| unreadable("the type"))?,
            filter: serde_json::from_str(&self.filter).map_err(|_| unreadable("the filter"))?,
            crosses_private: self.crosses_private,
            resume_after: self.resume_after,
            pass_clock: self.pass_clock.unwrap_or(0),
            counts: serde_json::from_str(&self.data_transferred).map_err(|_| unreadable("the counts"))?,
            rounds: self.rounds,
            may_decrypt,
            request_id,
            now: self.now,
        })
    }
}

::store::unnest_row! {
    struct NewRow<'a> {
        id: Uuid,
        user_id: i32,
        source: &'a str,
        target: &'a str,
        sync_type: &'a str,
        filter: String,
        crosses_private: bool,
        service: &'a str,
        expires_at: Option<DateTime<Utc>>,
        stored_at: DateTime<Utc>,
        request_id: Uuid,
    }
}

/// A sync of another request with the same id is another sync's.
static ADD: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (NewRow::arrays(1), NewRow::names());
    format!(
        "WITH written AS (
        INSERT INTO cross_service_memory_sync (id, user_id, source_session_id, target_session_id, sync_type, data_transferred, filter,
            crosses_private, service, expires_at, created_at, updated_at, request_id)
        SELECT id, user_id, source, target, sync_type::sync_type, '{{}}', filter::jsonb, crosses_private, service, expires_at,
            stored_at, stored_at, request_id
        FROM unnest({arrays}) AS i ({names}) ORDER BY user_id, id
        ON CONFLICT (user_id, id) DO NOTHING RETURNING 1
    ) SELECT count(*)::integer AS written FROM written"
    )
});

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = Integer)]
    written: i32,
}

/// How many live syncs each of these users has. One that waits for its data keys is counted when they are there.
pub(crate) async fn live(
    connection: &mut Connection,
    users: &BTreeSet<i32>,
) -> Result<HashMap<i32, i64>, Fault> {
    const LIVE: &str = "SELECT user_id, count(*) AS live FROM cross_service_memory_sync
        WHERE user_id = ANY ($1) AND sync_status = 'in_progress' AND sync_type = 'state_sync' GROUP BY user_id";
    if users.is_empty() {
        return Ok(HashMap::new());
    }
    let query = diesel::sql_query(LIVE).bind::<Array<Integer>, _>(users.iter().copied().collect::<Vec<_>>());
    let rows: Vec<Live> = ::store::prepared(query).load(connection).await?;
    Ok(rows.into_iter().map(|row| (row.user_id, row.live)).collect())
}

#[derive(QueryableByName)]
struct Live {
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = BigInt)]
    live: i64,
}

/// A sync to add.
pub(crate) struct New<'a> {
    pub(crate) run: &'a Run,
    pub(crate) service: &'a str,
    pub(crate) expires_at: Option<DateTime<Utc>>,
    pub(crate) stored_at: DateTime<Utc>,
}

/// Adds syncs, as pending.
pub(crate) async fn add(connection: &mut Connection, new: &[New<'_>]) -> Result<(), Fault> {
    if new.is_empty() {
        return Ok(());
    }
    let rows = new.iter().map(|one| NewRow {
        id: one.run.id,
        user_id: one.run.user.get(),
        source: &one.run.source,
        target: &one.run.target,
        sync_type: one.run.sync_type.as_str(),
        filter: json(&one.run.filter),
        crosses_private: one.run.crosses_private,
        service: one.service,
        expires_at: one.expires_at,
        stored_at: one.stored_at,
        request_id: one.run.request_id,
    });
    let count: Count = with_rows(&ADD, rows.collect()).get_result(connection).await?;
    if usize::try_from(count.written).is_ok_and(|written| written == new.len()) {
        Ok(())
    } else {
        Err(carry::gone())
    }
}

static FAIL: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (IdRow::arrays(1), IdRow::names());
    format!(
        "UPDATE cross_service_memory_sync s SET sync_status = 'failed', has_more = false, data_transferred = '{{}}',
            carried_at = clock_timestamp(), updated_at = clock_timestamp(), completed_at = greatest(clock_timestamp(), s.created_at)
        FROM unnest({arrays}) AS i ({names}) WHERE s.user_id = i.user_id AND s.id = i.id"
    )
});

/// Ends syncs of whose rows not even a [`Run`] can be made.
pub(crate) async fn fail(connection: &mut Connection, ids: Vec<(i32, Uuid)>) -> Result<(), Fault> {
    if ids.is_empty() {
        return Ok(());
    }
    let rows = ids.into_iter().map(|(user_id, id)| IdRow { user_id, id }).collect();
    with_rows(&FAIL, rows).execute(connection).await?;
    Ok(())
}

::store::unnest_row! {
    struct ProgressRow {
        id: Uuid,
        user_id: i32,
        sync_status: &'static str,
        end_reason: Option<&'static str>,
        data_transferred: String,
        conflict_resolution: Option<String>,
        rounds: i64,
        has_more: bool,
        resume_after: Option<Uuid>,
        pass_clock: i64,
        has_read: bool,
        now: DateTime<Utc>,
        undone: bool,
    }
}

static ADVANCE: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (ProgressRow::arrays(1), ProgressRow::names());
    format!(
        "UPDATE cross_service_memory_sync s SET sync_status = i.sync_status::sync_status, end_reason = i.end_reason,
            data_transferred = i.data_transferred::jsonb,
            conflict_resolution = coalesce(i.conflict_resolution::jsonb, s.conflict_resolution), rounds = i.rounds,
            has_more = i.has_more, resume_after = i.resume_after, pass_clock = i.pass_clock,
            source_clock = CASE WHEN i.has_read AND NOT i.has_more THEN i.pass_clock ELSE s.source_clock END,
            carried_at = CASE WHEN i.has_read THEN i.now ELSE s.carried_at END,
            updated_at = CASE WHEN i.rounds > s.rounds OR i.sync_status::sync_status <> s.sync_status OR i.undone THEN i.now
                ELSE s.updated_at END,
            completed_at = CASE WHEN i.end_reason IS NOT NULL THEN coalesce(s.completed_at, greatest(i.now, s.created_at)) END,
            undone_at = CASE WHEN i.undone THEN i.now ELSE s.undone_at END
        FROM unnest({arrays}) AS i ({names}) WHERE s.user_id = i.user_id AND s.id = i.id"
    )
});

/// How a sync goes on.
pub(crate) struct Progress<'a> {
    pub(crate) run: &'a Run,
    pub(crate) state: State,
    /// What the round did, if there was one.
    pub(crate) round: Option<&'a Round>,
    pub(crate) is_undone: bool,
}

#[derive(Serialize)]
struct Resolution<'a> {
    rules: &'a sync::RulesId,
    conflicts: Vec<Resolved<'a>>,
    /// How many more there are, in `sync_changes`.
    omitted: u64,
}

#[derive(Serialize)]
struct Resolved<'a> {
    context_key: &'a str,
    #[serde(flatten)]
    conflict: &'a contract::SyncConflict,
}

fn resolution(rules: &Rules, run: &Run, round: &Round) -> Option<String> {
    let conflicts: Vec<Resolved<'_>> =
        round.conflicts.iter().map(|(context_key, conflict)| Resolved { context_key, conflict }).collect();
    let shown = u64::try_from(conflicts.len()).unwrap_or(u64::MAX);
    let omitted = run.counts.conflicts.saturating_sub(shown);
    (shown > 0).then(|| json(&Resolution { rules: &rules.id, conflicts, omitted }))
}

/// Stores how syncs go on.
pub(crate) async fn advance(
    connection: &mut Connection,
    rules: &Rules,
    progress: &[Progress<'_>],
) -> Result<(), Fault> {
    if progress.is_empty() {
        return Ok(());
    }
    let row = |progress: &Progress<'_>| {
        let Progress { run, state, round, is_undone } = progress;
        ProgressRow {
            id: run.id,
            user_id: run.user.get(),
            sync_status: state.status.as_str(),
            end_reason: state.end.map(SyncEnd::as_str),
            data_transferred: json(&run.counts),
            conflict_resolution: round.and_then(|round| resolution(rules, run, round)),
            rounds: run.rounds + i64::from(round.is_some_and(|round| round.has_written)),
            has_more: state.end.is_none() && round.is_some_and(|round| round.has_more),
            resume_after: run.resume_after.filter(|_| state.end.is_none()),
            pass_clock: run.pass_clock,
            has_read: round.is_some(),
            now: run.now,
            undone: *is_undone,
        }
    };
    with_rows(&ADVANCE, progress.iter().map(row).collect()).execute(connection).await?;
    Ok(())
}
