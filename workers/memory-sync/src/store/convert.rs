//! From the types of `shared/sync` to those of the contract.

use ::store::{Fault, FaultKind};
use chrono::{DateTime, Utc};
use contract::{ConflictCause, MergeRule, SyncCandidate, SyncConflict, SyncEffect, SyncProblem, SyncedKey};
use sync::{Candidate, Cause, Cell, Conflict, Effect, Json, Key, Merging};

use super::rows::agent_of;

/// What cannot fail: the values come from JSON.
pub(crate) fn unwritable(error: &dyn std::fmt::Display) -> Fault {
    Fault { kind: FaultKind::Permanent, reason: format!("what a sync keeps cannot be written: {error}") }
}

fn json(value: &Json) -> Result<contract::Json, Fault> {
    contract::Json::recorded(value.to_string()).map_err(|error| unwritable(&error))
}

fn optional(value: Option<&Json>) -> Result<Option<contract::Json>, Fault> {
    value.map(json).transpose()
}

pub(crate) fn effect(effect: Effect) -> SyncEffect {
    match effect {
        Effect::Created => SyncEffect::Created,
        Effect::FastForward => SyncEffect::FastForward,
        Effect::Merged => SyncEffect::Merged,
    }
}

fn rule(rule: Merging) -> MergeRule {
    match rule {
        Merging::Counter => MergeRule::Counter,
        Merging::Set => MergeRule::Set,
        Merging::Preference => MergeRule::Preference,
        Merging::List => MergeRule::List,
        Merging::Text => MergeRule::Text,
        Merging::Fact => MergeRule::Fact,
        Merging::Consensus => MergeRule::Consensus,
    }
}

fn cause(cause: Cause) -> ConflictCause {
    match cause {
        Cause::Edited => ConflictCause::Edited,
        Cause::Removed => ConflictCause::Removed,
        Cause::Shape => ConflictCause::Shape,
        Cause::Attributes => ConflictCause::Attributes,
    }
}

/// A time of the hybrid logical clock: seconds since 1970 and their 2^32 parts.
fn time(time: u64) -> DateTime<Utc> {
    let (seconds, parts) = (time >> 32, time & 0xffff_ffff);
    let micros = (parts * 1_000_000) >> 32;
    let micros = i64::try_from(seconds * 1_000_000 + micros).unwrap_or(0);
    DateTime::from_timestamp_micros(micros).unwrap_or_default()
}

pub(crate) fn candidate(candidate: &Candidate) -> Result<SyncCandidate, Fault> {
    Ok(SyncCandidate {
        session_id: candidate.stamp.session.to_string(),
        write: candidate.stamp.count,
        written_at: time(candidate.stamp.time),
        value: optional(candidate.value.as_ref())?,
    })
}

pub(crate) fn conflict(conflict: &Conflict) -> Result<SyncConflict, Fault> {
    Ok(SyncConflict {
        path: conflict.path.iter().map(ToString::to_string).collect(),
        cause: cause(conflict.cause),
        rule: rule(conflict.rule),
        base: optional(conflict.base.as_ref())?,
        ours: optional(conflict.ours.as_ref())?,
        theirs: optional(conflict.theirs.as_ref())?,
        kept: optional(conflict.kept.as_ref())?,
        lost: conflict.lost.iter().map(candidate).collect::<Result<_, _>>()?,
    })
}

/// Whether the record of a conflict has parts of a value, and not only attributes.
pub(crate) fn holds_values(conflict: &Conflict) -> bool {
    let Conflict { cause, base, ours, theirs, kept, lost, .. } = conflict;
    let values = [base, ours, theirs, kept].into_iter().chain(lost.iter().map(|candidate| &candidate.value));
    match cause {
        Cause::Edited | Cause::Removed | Cause::Shape => values.into_iter().any(Option::is_some),
        Cause::Attributes => false,
    }
}

pub(crate) fn problem(key: &Key, reason: String) -> SyncProblem {
    let (context_key, agent_id, memory_tier) = named(key);
    SyncProblem { context_key, agent_id, memory_tier, reason }
}

/// A key by its name, its agent and its tier.
pub(crate) fn named(key: &Key) -> (String, Option<String>, Option<contract::MemoryTier>) {
    let tier = match key {
        Key::Context(_) => None,
        Key::Agent { tier, .. } => Some(*tier),
    };
    (key.name().to_owned(), agent_of(key).0.map(str::to_owned), tier)
}

/// A key as it is stored now, with its version; without a cell: there is no such key any more.
pub(crate) fn synced(
    key: &Key,
    stored: Option<(&Cell, i64)>,
    effect_of: Option<Effect>,
) -> Result<SyncedKey, Fault> {
    let (context_key, agent_id, memory_tier) = named(key);
    let is_context = memory_tier.is_none();
    let mut synced = SyncedKey {
        context_key,
        agent_id,
        memory_tier,
        effect: effect_of.map(effect),
        context_value: None,
        version: stored.map(|(_, version)| version),
        context_type: None,
        access_level: None,
        priority: None,
        expires_at: None,
        is_persistent: false,
        is_shareable: false,
        sensitive: false,
    };
    let Some((cell, _)) = stored else { return Ok(synced) };
    let attributes = &cell.attributes;
    synced.sensitive = attributes.sensitive;
    synced.context_value = match &cell.value {
        Some(_) if synced.sensitive => optional(Some(&Json::Text(contract::ENCRYPTED.to_owned())))?,
        value => optional(value.as_ref())?,
    };
    synced.context_type = attributes.context_type;
    synced.access_level = is_context.then_some(attributes.access_level);
    synced.priority = is_context.then_some(attributes.priority);
    synced.expires_at = attributes.expires_at;
    synced.is_persistent = attributes.is_persistent;
    synced.is_shareable = attributes.is_shareable;
    Ok(synced)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_the_logical_clock_are_those_of_their_writes() {
        let at: DateTime<Utc> = "2026-11-29T12:34:56.789Z".parse().unwrap_or_default();
        let difference = at - time(sync::moment(at));
        assert!(
            difference.num_microseconds().is_some_and(|micros| (0..=1).contains(&micros)),
            "{difference}"
        );
    }
}
