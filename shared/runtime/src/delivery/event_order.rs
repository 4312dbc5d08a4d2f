//! The order in which the events of a session are published when several workers append to it (docs/adr/0043).
//!
//! A worker publishes events of its own types only. Its events that come after one of another worker wait until that one
//! is published.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use contract::UserId;
use store::blackboard::StoredEvent;
use store::clock::Earlier;
use store::unpublished::{self, EventKey};
use store::{Fault, Pool};
use tokio::time::Instant;
use uuid::Uuid;

/// A session of a user.
type Session<'a> = (UserId, &'a str);

/// The sessions some of whose events have to wait, each with the sequence number after which they do: that of the first
/// unpublished event of another worker, or of the last one that was looked at.
pub(crate) fn blocked(earlier: &[Earlier]) -> HashMap<Session<'_>, i64> {
    let mut first: HashMap<Session<'_>, i64> = HashMap::new();
    for event in
        earlier.iter().filter(|earlier| !earlier.is_own || earlier.is_cut).map(|one| &one.stored.event)
    {
        let sequence = first.entry((event.user_id, &event.session_id)).or_insert(event.event_sequence);
        *sequence = event.event_sequence.min(*sequence);
    }
    first
}

/// The events of a batch, sorted by whether they can be published.
#[derive(Debug, Default)]
pub(crate) struct Order<'a> {
    /// Those that no event of another worker precedes in their session, by sequence number.
    pub(crate) ready: BTreeMap<i64, &'a StoredEvent>,
    /// The others.
    pub(crate) held: HashSet<Uuid>,
}

impl<'a> Order<'a> {
    /// Sorts events of this worker.
    pub(crate) fn of(earlier: &'a [Earlier], own: impl Iterator<Item = &'a StoredEvent>) -> Self {
        let blocked = blocked(earlier);
        let mut order = Self::default();
        let of_earlier = earlier.iter().filter(|earlier| earlier.is_own).map(|earlier| &earlier.stored);
        for stored in of_earlier.chain(own) {
            let event = &stored.event;
            match blocked.get(&(event.user_id, event.session_id.as_str())) {
                Some(first) if event.event_sequence > *first => {
                    order.held.insert(event.event_id);
                }
                Some(_) | None => {
                    order.ready.insert(event.event_sequence, stored);
                }
            }
        }
        order
    }
}

/// Notes in the database that events of this worker are published.
pub(crate) async fn note_published(pool: &Pool, events: &[EventKey]) -> Result<(), Fault> {
    let mut connection = store::acquire(pool).await?;
    let noted = unpublished::note_published(&mut connection, events).await;
    store::discard_if_unusable(connection, &noted);
    noted
}

/// How long a batch waits for events of another worker: it usually publishes them within milliseconds.
pub(crate) const WAIT: Duration = Duration::from_millis(50);
/// How often it looks meanwhile.
const LOOK: Duration = Duration::from_millis(5);
/// How long no batch waits for a worker for which one has waited in vain.
const IMPATIENT: Duration = Duration::from_secs(1);
/// How often it is logged that messages wait for a worker.
const LOG: Duration = Duration::from_secs(30);

/// The other workers for whose events this one waits.
pub(crate) struct OtherWorkers {
    worker: &'static str,
    pool: Pool,
    /// By the name of another worker.
    waited: HashMap<&'static str, Waited>,
}

#[derive(Clone, Copy, Debug)]
struct Waited {
    in_vain: Instant,
    logged: Option<Instant>,
    /// The messages that were held since then.
    messages: usize,
}

impl OtherWorkers {
    pub(crate) fn new(worker: &'static str, pool: Pool) -> Self {
        Self { worker, pool, waited: HashMap::new() }
    }

    /// Waits until a deadline for events of other workers to be published, and removes those that are. False if there is
    /// none. It looks only once if a batch has just waited for one of the workers in vain.
    pub(crate) async fn wait(&mut self, earlier: &mut Vec<Earlier>, deadline: Instant) -> bool {
        let is_hopeless = earlier.iter().any(|earlier| {
            let awaited = self.waited.get(earlier.stored.event.event_type.worker().name);
            earlier.is_cut
                || (!earlier.is_own && awaited.is_some_and(|waited| waited.in_vain.elapsed() < IMPATIENT))
        });
        loop {
            let before = earlier.len();
            match self.unpublished(earlier).await {
                Ok(still) => earlier.retain(|earlier| {
                    earlier.is_own || earlier.is_cut || still.contains(&earlier.stored.event.event_id)
                }),
                Err(fault) => {
                    tracing::warn!(worker = self.worker, %fault, "cannot see which events others have published");
                    return false;
                }
            }
            if earlier.len() < before {
                return true;
            }
            if is_hopeless || Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn unpublished(&self, earlier: &[Earlier]) -> Result<HashSet<Uuid>, Fault> {
        let foreign = earlier.iter().filter(|earlier| !earlier.is_own);
        let keys: Vec<EventKey> = foreign.map(|earlier| earlier.stored.key()).collect();
        let mut connection = store::acquire(&self.pool).await?;
        let found = unpublished::still_unpublished(&mut connection, &keys).await;
        store::discard_if_unusable(connection, &found);
        found
    }

    /// Notes, and logs from time to time, that messages wait for the workers of these events.
    pub(crate) fn held(&mut self, earlier: &[Earlier], messages: usize) {
        let now = Instant::now();
        let foreign = earlier.iter().filter(|earlier| !earlier.is_own);
        let awaited: BTreeMap<&'static str, &Earlier> =
            foreign.map(|earlier| (earlier.stored.event.event_type.worker().name, earlier)).collect();
        for (name, first) in awaited {
            let waited =
                self.waited.entry(name).or_insert(Waited { in_vain: now, logged: None, messages: 0 });
            waited.in_vain = now;
            waited.messages = waited.messages.saturating_add(messages);
            if waited.logged.is_none_or(|logged| logged.elapsed() >= LOG) {
                tracing::warn!(
                    worker = self.worker,
                    awaited = name,
                    messages = waited.messages,
                    event_id = %first.stored.event.event_id,
                    since = %first.stored.event.created_at,
                    "events wait until another worker has published earlier ones of their sessions; is it running?"
                );
                (waited.logged, waited.messages) = (Some(now), 0);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn event(user: i32, session_id: &str, event_type: &str, event_sequence: i64) -> StoredEvent {
        let event = serde_json::from_value(serde_json::json!({
            "event_id": Uuid::from_u128(event_sequence.unsigned_abs().into()), "event_sequence": event_sequence,
            "event_type": event_type, "performative": "inform", "source_agent_id": "a", "user_id": user,
            "session_id": session_id, "logical_timestamp": 1, "created_at": "2026-11-01T00:00:00Z", "payload": {}
        }));
        StoredEvent { event: event.unwrap(), transaction_id: 1 }
    }

    fn earlier(stored: StoredEvent) -> Earlier {
        let is_own = stored.event.event_type.worker().name == "context-writer";
        Earlier { stored, is_own, is_cut: false }
    }

    #[test]
    fn what_comes_after_an_event_of_another_worker_in_its_session_is_held() {
        let before = [
            earlier(event(1, "s", "context.stored", 1)),
            earlier(event(1, "s", "decision.logged", 3)),
            earlier(event(1, "s", "context.stored", 4)),
            earlier(event(1, "s", "decision.logged", 6)),
        ];
        let own = [
            event(1, "s", "context.stored", 2),
            event(1, "s", "context.stored", 5),
            event(1, "t", "context.stored", 7),
            event(2, "s", "context.stored", 8),
        ];
        let order = Order::of(&before, own.iter());
        assert_eq!(order.ready.keys().copied().collect::<Vec<_>>(), [1, 2, 7, 8]);
        let held: HashSet<Uuid> = [4, 5].map(Uuid::from_u128).into();
        assert_eq!(order.held, held);
        assert!(Order::of(&before[..1], own.iter()).held.is_empty());
        // What comes after those that were looked at is not known.
        let cut = [Earlier { is_cut: true, ..before[0].clone() }];
        let order = Order::of(&cut, own.iter());
        assert_eq!(order.ready.keys().copied().collect::<Vec<_>>(), [1, 7, 8]);
    }
}
