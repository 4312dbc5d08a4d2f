//! The events of syncs.

use std::borrow::Cow;

use contract::{
    EventType, Performative, SyncCarried, SyncDisputed, SyncEnd, SyncEnded, SyncUndone, SyncedKey,
};
use runtime::EventDraft;
use serde::Serialize;
use uuid::Uuid;

use super::convert::named;
use super::dispute::Raised;
use super::json;
use super::run::{Round, Run};

/// An event lists keys until they have this many bytes together.
const KEY_BYTES: usize = 512 * 1024;

fn event(run: &Run, session: &str, event_type: EventType, payload: &impl Serialize) -> EventDraft {
    EventDraft {
        user_id: run.user,
        event_type,
        performative: Performative::Inform,
        source_agent_id: None,
        target_agent_id: None,
        session_id: Cow::Owned(session.to_owned()),
        payload: Some(json(payload)),
    }
}

/// Splits keys so that each part fits one event.
fn portions(keys: Vec<SyncedKey>) -> Vec<Vec<SyncedKey>> {
    let mut portions: Vec<Vec<SyncedKey>> = Vec::new();
    let mut bytes = KEY_BYTES;
    for key in keys {
        let value = key.context_value.as_ref().map_or(0, |value| value.as_str().len());
        // A name may be written with escapes, six bytes for each of its characters.
        let size = 512 + json(&key.context_key).len() + value;
        bytes += size;
        if bytes > KEY_BYTES {
            portions.push(Vec::new());
            bytes = size;
        }
        if let Some(portion) = portions.last_mut() {
            portion.push(key);
        }
    }
    portions
}

/// What a round wrote into its target.
pub(crate) fn carried(run: &Run, keys: Vec<SyncedKey>) -> Vec<EventDraft> {
    portions(keys).into_iter().map(|keys| carried_once(run, keys, Vec::new())).collect()
}

/// Nodes that the target refers to now.
pub(crate) fn referenced(run: &Run, nodes: Vec<Uuid>) -> EventDraft {
    carried_once(run, Vec::new(), nodes)
}

fn carried_once(run: &Run, keys: Vec<SyncedKey>, nodes: Vec<Uuid>) -> EventDraft {
    let payload = SyncCarried {
        sync_id: run.id,
        source_session_id: run.source.to_string(),
        target_session_id: run.target.to_string(),
        keys,
        nodes,
    };
    event(run, &run.target, EventType::SyncCarried, &payload)
}

/// A fact that sessions state differently.
pub(crate) fn disputed(run: &Run, raised: &Raised) -> EventDraft {
    let (context_key, agent_id, memory_tier) = named(&raised.key);
    let sessions = raised.values.iter().map(|value| value.session_id.clone()).collect();
    let payload = SyncDisputed {
        sync_id: run.id,
        node_id: raised.node_id,
        context_key,
        agent_id,
        memory_tier,
        sessions,
    };
    event(run, &run.target, EventType::SyncDisputed, &payload)
}

/// The end of a sync, in both of its sessions.
pub(crate) fn ended(
    run: &Run,
    event_type: EventType,
    end_reason: SyncEnd,
    round: Option<&Round>,
    reason: Option<&str>,
) -> [EventDraft; 2] {
    let payload = SyncEnded {
        sync_id: run.id,
        source_session_id: run.source.to_string(),
        target_session_id: run.target.to_string(),
        sync_type: run.sync_type,
        end_reason,
        transferred: run.counts,
        failures: round.map(|round| round.failures.clone()).unwrap_or_default(),
        reason: reason.map(str::to_owned),
    };
    [&run.source, &run.target].map(|session| event(run, session, event_type, &payload))
}

/// What was taken back.
pub(crate) fn undone(run: &Run, mut undone: SyncUndone) -> Vec<EventDraft> {
    let restored = std::mem::take(&mut undone.restored);
    let mut portions = portions(restored);
    if portions.is_empty() {
        portions.push(Vec::new());
    }
    let mut events = Vec::with_capacity(portions.len());
    for restored in portions {
        let payload = SyncUndone { restored, ..undone.clone() };
        events.push(event(run, &run.target, EventType::SyncUndone, &payload));
        // The first one names what stays.
        undone.nodes.clear();
        undone.dependents.clear();
    }
    events
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use sync::Key;

    use super::*;
    use crate::store::convert;

    #[test]
    fn keys_with_the_longest_names_fit_their_events() {
        let key = |at: usize| Key::Context(format!("{at:04}{}", "\u{1}".repeat(252)));
        let keys = (0..3_000).map(|at| convert::synced(&key(at), None, None).unwrap()).collect();
        let portions = portions(keys);
        assert_eq!(portions.iter().map(Vec::len).sum::<usize>(), 3_000);
        let longest = portions.iter().map(|keys| json(keys).len()).max().unwrap();
        assert!(longest < contract::limit::EVENT_PAYLOAD_BYTES / 2, "{longest}");
    }
}
