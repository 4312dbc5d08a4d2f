//! A run: removes what is due of some users.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

use ::store::job_runs::Counts;
use ::store::{Connection, Fault};
use chrono::{DateTime, Utc};
use contract::{Event, EventType, Performative, RetentionSwept, SweptKey, UserId, limit};
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

/// How many due rows of a kind the grants are minted by (`sec.due_users`): if there are as many, rows of other users and kinds may be due.
const MINTED_BY: i64 = ROWS as i64;
/// The most bytes of the keys of an event, half of what the payload of one may have: jsonb adds blanks.
const KEY_BYTES: usize = limit::EVENT_PAYLOAD_BYTES / 2;

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
    /// One for each session from which something was removed; more if its keys are too long for one.
    pub events: Vec<EventDraft>,
    /// The archives that have removed rows.
    pub archives: Vec<Uuid>,
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

/// What is told of a session.
#[derive(Default)]
struct Told {
    full: Vec<RetentionSwept>,
    last: RetentionSwept,
    bytes: usize,
}

impl Told {
    /// The event that has room for so many bytes more.
    fn with_room(&mut self, bytes: usize) -> &mut RetentionSwept {
        self.bytes += bytes;
        if self.bytes > KEY_BYTES {
            self.full.push(std::mem::take(&mut self.last));
            self.bytes = bytes;
        }
        &mut self.last
    }
}

/// The bytes of a key in an event.
fn size(key: &SweptKey) -> usize {
    const BLANKS: usize = 16;
    serde_json::to_string(key).map_or(0, |text| text.len()) + BLANKS
}

/// The events and counts of a run.
struct Tally {
    most: i32,
    counts: BTreeMap<(&'static str, Effect, Option<Uuid>), u64>,
    events: BTreeMap<(i32, String), Told>,
    archives: Vec<Uuid>,
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
        let changed = rows.iter().filter(|row| row.user_id.is_some()).count();
        // Of syncs that have changed much, a run takes few.
        let leaves = table == "cross_service_memory_sync" && found.unsigned_abs() > changed as u64;
        self.has_more |= found >= MINTED_BY || leaves;
        for row in rows {
            let Some((user, session)) = session_of(&row) else { continue };
            *self.counts.entry((table, effect, row.policy_id)).or_default() += 1;
            // The inbox holds ids of deliveries and nothing of a user.
            if table == "inbox" {
                continue;
            }
            let told = self.events.entry((user, session)).or_default();
            match (row.context_key, effect) {
                (Some(context_key), effect) => {
                    let key = SweptKey { context_key, agent_id: row.agent_id, memory_tier: row.memory_tier };
                    let swept = told.with_room(size(&key));
                    match effect {
                        Effect::Expired => swept.expired.push(key),
                        Effect::Deleted | Effect::Anonymised | Effect::Archived => swept.removed.push(key),
                    }
                }
                (None, Effect::Anonymised) => {
                    *told.last.anonymised.entry(table.to_owned()).or_default() += 1;
                }
                (None, Effect::Deleted | Effect::Expired | Effect::Archived) => {
                    *told.last.deleted.entry(table.to_owned()).or_default() += 1;
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
        self.archives.extend((!gone.is_empty()).then_some(archived.written.manifest.id));
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
            let told = self.events.entry(session).or_default();
            told.last.archived.insert(table.to_owned(), archived.written.manifest.id);
        }
    }

    fn finish(self) -> Result<Swept, Fault> {
        let line =
            |((table, effect, policy), rows)| Line { table: Cow::Borrowed(table), effect, policy, rows };
        let mut events = Vec::with_capacity(self.events.len());
        for ((user, session), Told { full, last, .. }) in self.events {
            for swept in full.iter().chain([&last]) {
                events.push(event(user, session.clone(), swept)?);
            }
        }
        Ok(Swept {
            lines: self.counts.into_iter().map(line).collect(),
            examined: self.examined,
            has_more: self.has_more,
            events,
            archives: self.archives,
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
    let mut tally = Tally {
        most,
        counts: BTreeMap::new(),
        events: BTreeMap::new(),
        archives: Vec::new(),
        examined: 0,
        has_more: false,
    };
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn tally() -> Tally {
        Tally {
            most: ROWS,
            counts: BTreeMap::new(),
            events: BTreeMap::new(),
            archives: Vec::new(),
            examined: 0,
            has_more: false,
        }
    }

    fn removed(found: i64, context_key: String) -> Changed {
        Changed {
            found,
            user_id: Some(1),
            session_id: Some("s".to_owned()),
            context_key: Some(context_key),
            agent_id: Some("\u{1}".repeat(limit::KEY_CHARS)),
            memory_tier: Some("shared".to_owned()),
            policy_id: None,
        }
    }

    #[test]
    fn keys_with_the_longest_names_fit_their_events() {
        let mut tally = tally();
        let rows =
            (0..2_000).map(|n| removed(2_000, format!("{n:04}{}", "\u{1}".repeat(limit::KEY_CHARS - 4))));
        tally.add("agent_context_states", Effect::Deleted, rows.collect());
        let events = tally.finish().unwrap().events;
        let payloads: Vec<&str> = events.iter().filter_map(|event| event.payload.as_deref()).collect();
        assert!(payloads.iter().all(|payload| payload.len() < limit::EVENT_PAYLOAD_BYTES * 3 / 4));
        let keys: usize = payloads
            .iter()
            .map(|payload| serde_json::from_str::<RetentionSwept>(payload).unwrap().removed.len())
            .sum();
        assert_eq!(keys, 2_000);
    }

    #[test]
    fn as_many_rows_as_the_grants_are_minted_by_may_hide_those_of_others() {
        for (found, has_more) in [(1_999, false), (2_000, true)] {
            let mut tally = tally();
            tally.add("agent_context_states", Effect::Deleted, vec![removed(found, "k".to_owned())]);
            assert_eq!(tally.has_more, has_more, "{found} rows");
        }
    }
}
