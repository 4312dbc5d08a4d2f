//! A run: removes what is due of some users.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

use ::store::job_runs::Counts;
use ::store::{Connection, Fault};
use chrono::{DateTime, Utc};
use contract::{Event, EventType, Performative, RetentionSwept, SweptKey, UserId};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use runtime::EventDraft;
use serde::Serialize;
use uuid::Uuid;

use super::archive::{self, Archived};
use super::removal::Gone;
use super::steps::{DELETE_SESSIONS, LOCK_SESSIONS, STEPS};

/// The most rows of a run: few enough that locks are held for a moment, and its events are within their limit.
pub const ROWS: i32 = 2_000;

/// What becomes of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// Its own time is over: its value goes.
    Expired,
    /// It is deleted; of a memory, an empty row stays as a tombstone.
    Deleted,
    /// Its texts go.
    Anonymised,
    /// It is deleted, and in an archive.
    Archived,
}

/// How many rows of a table a policy changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Line {
    /// The table, as policies name it.
    pub table: Cow<'static, str>,
    /// What became of them.
    pub effect: Effect,
    /// The policy; `None` for rows that expire by themselves.
    pub policy: Option<Uuid>,
    /// How many.
    pub rows: u64,
}

/// What a run did.
#[derive(Debug, Default)]
pub struct Swept {
    /// By table, effect and policy.
    pub lines: Vec<Line>,
    /// How many rows were due, as far as the run looked.
    pub examined: u64,
    /// Whether there may be more of these users.
    pub has_more: bool,
    /// One for each session from which something was removed.
    pub events: Vec<EventDraft>,
    /// What could not be done, while the rest was.
    pub failure: Option<String>,
}

impl Swept {
    /// How many rows it changed.
    pub fn changed(&self) -> u64 {
        self.lines.iter().map(|line| line.rows).sum()
    }

    /// The same, for the row of the run.
    pub(crate) fn counts(&self) -> Counts {
        let details = serde_json::json!({ "lines": self.lines, "has_more": self.has_more });
        Counts {
            examined: self.examined,
            changed: self.changed(),
            skipped: self.examined.saturating_sub(self.changed()),
            details: Some(details.to_string()),
            failure: self.failure.clone(),
        }
    }
}

#[derive(QueryableByName)]
struct Changed {
    #[diesel(sql_type = BigInt)]
    found: i64,
    #[diesel(sql_type = Nullable<Integer>)]
    user_id: Option<i32>,
    #[diesel(sql_type = Nullable<Text>)]
    session_id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    context_key: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    agent_id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    memory_tier: Option<String>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    policy_id: Option<Uuid>,
}

/// The events and counts of a run.
struct Tally {
    most: i32,
    counts: BTreeMap<(&'static str, Effect, Option<Uuid>), u64>,
    events: BTreeMap<(i32, String), RetentionSwept>,
    examined: u64,
    has_more: bool,
}

impl Tally {
    /// How many rows the run may still take. What is left of the users is taken by the next one.
    fn rest(&mut self) -> Option<i32> {
        let taken = i32::try_from(self.examined).unwrap_or(i32::MAX);
        let rest = self.most.saturating_sub(taken);
        self.has_more |= rest <= 0;
        (rest > 0).then_some(rest)
    }

    fn add(&mut self, table: &'static str, effect: Effect, rows: Vec<Changed>) {
        let found = rows.as_slice().first().map_or(0, |row| row.found);
        self.examined += found.unsigned_abs();
        for row in rows {
            let Some((user, session)) = session_of(&row) else { continue };
            *self.counts.entry((table, effect, row.policy_id)).or_default() += 1;
            // The inbox holds ids of deliveries and nothing of a user.
            if table == "inbox" {
                continue;
            }
            let swept = self.events.entry((user, session)).or_default();
            match (row.context_key, effect) {
                (Some(context_key), effect) => {
                    let key = SweptKey { context_key, agent_id: row.agent_id, memory_tier: row.memory_tier };
                    match effect {
                        Effect::Expired => swept.expired.push(key),
                        Effect::Deleted | Effect::Anonymised | Effect::Archived => swept.removed.push(key),
                    }
                }
                (None, Effect::Anonymised) => *swept.anonymised.entry(table.to_owned()).or_default() += 1,
                (None, Effect::Deleted | Effect::Expired | Effect::Archived) => {
                    *swept.deleted.entry(table.to_owned()).or_default() += 1;
                }
            }
        }
    }

    /// Rows that are in an archive now, and no longer in the database.
    fn add_archived(&mut self, archived: &Archived, gone: Vec<Gone>) {
        let table = archived.table.name;
        let policies: HashMap<(i32, Uuid), Uuid> =
            archived.rows.iter().map(|row| ((row.user_id, row.id), row.policy_id)).collect();
        // Rows that have changed are read again by the next run that comes to their user.
        self.has_more |= archived.has_more && !gone.is_empty();
        let found = i64::try_from(archived.rows.len()).unwrap_or(i64::MAX);
        let changed: Vec<Changed> = gone
            .into_iter()
            .map(|row| Changed {
                found,
                user_id: Some(row.user_id),
                session_id: row.session_id,
                context_key: row.context_key,
                agent_id: row.agent_id,
                memory_tier: row.memory_tier,
                policy_id: policies.get(&(row.user_id, row.id)).copied(),
            })
            .collect();
        let sessions: HashSet<(i32, String)> = changed.iter().filter_map(session_of).collect();
        self.add(table, Effect::Archived, changed);
        for session in sessions {
            let swept = self.events.entry(session).or_default();
            swept.archived.insert(table.to_owned(), archived.written.manifest.id);
        }
    }

    fn finish(self) -> Result<Swept, Fault> {
        let line =
            |((table, effect, policy), rows)| Line { table: Cow::Borrowed(table), effect, policy, rows };
        let mut events = Vec::with_capacity(self.events.len());
        for ((user, session), swept) in self.events {
            events.push(event(user, session, &swept)?);
        }
        Ok(Swept {
            lines: self.counts.into_iter().map(line).collect(),
            examined: self.examined,
            has_more: self.has_more,
            events,
            failure: None,
        })
    }
}

/// The session of a row whose event tells of it.
fn session_of(row: &Changed) -> Option<(i32, String)> {
    let session = row.session_id.clone().unwrap_or_else(|| Event::ACCOUNT_SESSION.to_owned());
    Some((row.user_id?, session))
}

fn event(user: i32, session: String, swept: &RetentionSwept) -> Result<EventDraft, Fault> {
    let permanent = |reason: String| Fault { kind: ::store::FaultKind::Permanent, reason };
    Ok(EventDraft {
        user_id: UserId::new(user).map_err(|error| permanent(error.to_string()))?,
        event_type: EventType::RetentionSwept,
        performative: Performative::Inform,
        source_agent_id: None,
        target_agent_id: None,
        session_id: Cow::Owned(session),
        payload: Some(serde_json::to_string(swept).map_err(|error| permanent(error.to_string()))?),
    })
}

/// Removes what is due of these users at a time, at most `most` rows. Row-level security must show the rows of these users,
/// or of all. Events of users are removed as of the present, whatever the time is.
///
/// # Errors
/// A [`Fault`] of the database. The caller must roll the transaction back.
pub async fn sweep(
    connection: &mut Connection,
    at: DateTime<Utc>,
    users: &[i32],
    most: i32,
    request_id: Uuid,
) -> Result<Swept, Fault> {
    sweep_with(connection, at, users, most, request_id, &[]).await
}

/// The same, and removes what these archives have.
pub(crate) async fn sweep_with(
    connection: &mut Connection,
    at: DateTime<Utc>,
    users: &[i32],
    most: i32,
    request_id: Uuid,
    archives: &[&Archived],
) -> Result<Swept, Fault> {
    #[derive(QueryableByName)]
    struct Locked {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
    }
    const FORGET_CLOCKS: &str = "SELECT sec.forget_clocks($1)";
    let mut tally =
        Tally { most, counts: BTreeMap::new(), events: BTreeMap::new(), examined: 0, has_more: false };
    for archived in archives {
        let gone = archive::remove(connection, archived, request_id).await?;
        tally.add_archived(archived, gone);
    }
    for step in STEPS {
        let Some(rest) = tally.rest() else { return tally.finish() };
        let query = diesel::sql_query(step.sql)
            .bind::<Array<Integer>, _>(users)
            .bind::<Timestamptz, _>(at)
            .bind::<Integer, _>(rest)
            .bind::<SqlUuid, _>(request_id);
        let rows: Vec<Changed> = ::store::prepared(query).load(connection).await?;
        let rows = match step.table {
            "blackboard_events" => rows.into_iter().map(of_account).collect(),
            _ => rows,
        };
        tally.add(step.table, step.effect, rows);
    }
    let Some(rest) = tally.rest() else { return tally.finish() };
    let query = diesel::sql_query(LOCK_SESSIONS)
        .bind::<Array<Integer>, _>(users)
        .bind::<Timestamptz, _>(at)
        .bind::<Integer, _>(rest);
    let locked: Vec<Locked> = ::store::prepared(query).load(connection).await?;
    let query = diesel::sql_query(DELETE_SESSIONS)
        .bind::<Array<Integer>, _>(users)
        .bind::<Timestamptz, _>(at)
        .bind::<Integer, _>(rest)
        .bind::<SqlUuid, _>(request_id)
        .bind::<Array<SqlUuid>, _>(locked.into_iter().map(|row| row.id).collect::<Vec<_>>());
    let rows: Vec<Changed> = ::store::prepared(query).load(connection).await?;
    tally.add("chat_mode_sessions", Effect::Deleted, rows);
    let rest = tally.rest().unwrap_or(1);
    ::store::prepared(diesel::sql_query(FORGET_CLOCKS).bind::<Integer, _>(rest)).execute(connection).await?;
    tally.finish()
}

/// That events were removed is told once for a user, and not by an event in each of their sessions.
fn of_account(row: Changed) -> Changed {
    Changed { session_id: None, ..row }
}
