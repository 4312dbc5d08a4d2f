//! `sync.start`: a sync is added, and its first round carried in the same transaction.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use ::store::{Connection, Fault};
use chrono::Utc;
use contract::{EventType, Prerequisite, SessionId, SyncStart, SyncType};
use diesel::sql_types::{Array, Integer, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use keys::OpenKeys;
use runtime::{EventDraft, Reason, Retry, Verdict};
use sync::Rules;

use super::batch::{Item, Verdicts};
use super::run::{Run, State};
use super::syncs::{self, New, Progress, Sessions};
use super::work::Work;
use super::{carry, events};
use crate::Message;
use crate::prepare::WantedKeys;

/// How long a sync waits for data keys: until its message has been delivered once more.
const KEYS_WITHIN: chrono::TimeDelta = chrono::TimeDelta::days(1);

/// Starts syncs.
pub(crate) async fn start(
    connection: &mut Connection,
    rules: &Arc<Rules>,
    items: &[Item<'_, SyncStart>],
    keys: &OpenKeys,
    wanted: &WantedKeys,
    verdicts: &mut Verdicts,
    work: &mut Work,
) -> Result<(), Fault> {
    if items.is_empty() {
        return Ok(());
    }
    let named = items.iter().flat_map(|item| {
        let SyncStart { source_session_id, target_session_id, .. } = item.request;
        [(item.user(), source_session_id.as_str()), (item.user(), target_session_id.as_str())]
    });
    let sessions = syncs::sessions(connection, &named.collect()).await?;
    let ids: BTreeSet<_> = items.iter().map(|item| (item.user(), item.request.sync_id)).collect();
    let known = syncs::lock(connection, &ids).await?;
    let starting = items.iter().filter(|item| is_live(item)).map(Item::user);
    let mut live = syncs::live(connection, &starting.collect()).await?;
    let (mut runs, mut added, mut accepted, mut taken) = (Vec::new(), Vec::new(), Vec::new(), HashSet::new());
    for item in items {
        let id = (item.user(), item.request.sync_id);
        let stored = known.get(&id);
        // One that waits for its data keys is this request's own.
        let is_own =
            stored.is_some_and(|row| row.is_pending() && row.request_id == Some(item.message.request_id));
        if (stored.is_some() && !is_own) || !taken.insert(id) {
            verdicts.set(item.index, Verdict::unchanged(item.message));
            continue;
        }
        match run(item, &sessions) {
            Ok(_) if is_live(item) && !takes_place(&mut live, item.user()) => {
                verdicts.set(item.index, Verdict::Rejected(too_many().into()));
            }
            Ok(run) => {
                runs.push(run);
                added.push(!is_own);
                accepted.push(*item);
            }
            Err(verdict) => verdicts.set(item.index, verdict),
        }
    }
    note_unknown_sessions(connection, items, &sessions).await?;
    let new = runs.iter().zip(&accepted).zip(&added).filter(|(_, added)| **added);
    let new: Vec<New<'_>> = new
        .map(|((run, item), _)| New {
            run,
            service: item.message.publisher(),
            expires_at: item.request.expires_at,
            stored_at: item.message.stored_at,
        })
        .collect();
    syncs::add(connection, &new).await?;
    let rounds = carry::round(connection, rules, &mut runs, keys, work).await?;
    let mut progress = Vec::with_capacity(runs.len());
    for ((run, round), item) in runs.iter().zip(&rounds).zip(&accepted) {
        if !round.wanted.is_empty() {
            wanted.note(round.wanted.iter().copied());
            verdicts.set(item.index, waits_for_keys(item.message));
            continue;
        }
        let state = State::after(run, round.has_more);
        let mut drafts: Vec<EventDraft> = EventDraft::of_request(item.message).into_iter().collect();
        drafts.extend(round.events.iter().cloned());
        if let Some(end) = state.end {
            drafts.extend(events::ended(run, EventType::SyncCompleted, end, Some(round), None));
        }
        verdicts.set(item.index, Verdict::Applied(drafts));
        progress.push(Progress { run, state, round: Some(round), is_undone: false });
    }
    syncs::advance(connection, rules, &progress).await
}

fn is_live(item: &Item<'_, SyncStart>) -> bool {
    item.request.sync_type == SyncType::StateSync
}

/// The most live syncs of a user. Requests that are processed at the same time may exceed it by as many as they are.
const LIVE: i64 = 100;

/// Whether a user may have another live sync, which then counts.
fn takes_place(live: &mut HashMap<i32, i64>, user: i32) -> bool {
    let live = live.entry(user).or_default();
    let is_free = *live < LIVE;
    *live += i64::from(is_free);
    is_free
}

fn too_many() -> String {
    format!(
        "sync_type: the user has {LIVE} live syncs (state_sync), and no more are allowed; stop one with sync.stop"
    )
}

/// Its message is delivered again at once: the keys are opened before its next transaction.
pub(crate) fn waits_for_keys(message: &Message) -> Verdict {
    let retry = Retry::NotBefore { time: message.stored_at, deadline: message.stored_at + KEYS_WITHIN };
    Verdict::Retry(retry, Reason::new("the data keys of the user are being opened"))
}

/// How long a session may be missing because it is not stored yet.
const MISSING_SINCE: chrono::TimeDelta = chrono::TimeDelta::seconds(2);

/// Records requests that name a session which their user does not have: it may be another user's.
async fn note_unknown_sessions(
    connection: &mut Connection,
    items: &[Item<'_, SyncStart>],
    sessions: &Sessions,
) -> Result<(), Fault> {
    const NOTE: &str = "SELECT audit.note_foreign_session(i.user_id, i.session_id, i.service, i.request_id)
        FROM unnest($1::integer[], $2::text[], $3::text[], $4::uuid[]) AS i (user_id, session_id, service, request_id)";
    let is_late = |item: &&Item<'_, SyncStart>| Utc::now() - item.message.stored_at > MISSING_SINCE;
    let missing: Vec<_> = items
        .iter()
        .filter(is_late)
        .flat_map(|item| {
            let SyncStart { source_session_id, target_session_id, .. } = item.request;
            [source_session_id, target_session_id].map(|session| (item, session.as_str()))
        })
        .filter(|(item, session)| !sessions.contains_key(&(item.user(), (*session).to_owned())))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let query = diesel::sql_query(NOTE)
        .bind::<Array<Integer>, _>(missing.iter().map(|(item, _)| item.user()).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(missing.iter().map(|(_, session)| *session).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(missing.iter().map(|(item, _)| item.message.publisher()).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(
            missing.iter().map(|(item, _)| item.message.request_id).collect::<Vec<_>>(),
        );
    ::store::prepared(query).execute(connection).await?;
    Ok(())
}

fn run(item: &Item<'_, SyncStart>, sessions: &Sessions) -> Result<Run, Verdict> {
    let SyncStart { sync_id, source_session_id, target_session_id, sync_type, filter, .. } = item.request;
    let mut states = [("source_session_id", source_session_id), ("target_session_id", target_session_id)]
        .map(|(field, session)| state(item, sessions, field, session))
        .into_iter();
    let (Some(source), Some(target)) = (states.next(), states.next()) else {
        return Err(Verdict::missing_prerequisite(item.message));
    };
    let (source, _) = (source?, target?);
    let mut run = Run {
        user: item.message.user_id(),
        id: *sync_id,
        source: source_session_id.as_str().into(),
        target: target_session_id.as_str().into(),
        sync_type: *sync_type,
        filter: filter.clone(),
        crosses_private: item.message.is_widened,
        resume_after: None,
        pass_clock: 0,
        counts: contract::SyncCounts::default(),
        rounds: 0,
        may_decrypt: true,
        request_id: item.message.request_id,
        now: source.now,
    };
    run.begin_pass(source.clock);
    Ok(run)
}

fn state<'s>(
    item: &Item<'_, SyncStart>,
    sessions: &'s Sessions,
    field: &str,
    session: &SessionId,
) -> Result<&'s syncs::SessionState, Verdict> {
    let Some(state) = sessions.get(&(item.user(), session.as_str().to_owned())) else {
        let missing = Prerequisite::Session(session).missing(item.message.user_id());
        let reason = missing.replacen("session_id", field, 1);
        return Err(Verdict::Retry(Retry::Prerequisite, reason.into()));
    };
    if !state.is_active {
        let reason = format!("{field}: session {session} has ended; a sync is between two open sessions");
        return Err(Verdict::Rejected(reason.into()));
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_a_bounded_number_of_live_syncs_and_others_have_theirs() {
        let mut live = HashMap::from([(1, LIVE - 1)]);
        assert_eq!([1, 1, 1].map(|user| takes_place(&mut live, user)), [true, false, false]);
        assert!(takes_place(&mut live, 2), "another user's");
        assert_eq!(live, HashMap::from([(1, LIVE), (2, 1)]));
    }
}
