//! Decides when messages are the cause of a failure of a server.
//!
//! A text can stop an embedder, and points can make the vector store fail, each time they are tried. That looks like an
//! outage of the server and would keep every other message waiting for ever. If the server works before a batch and
//! fails on it several times in a row, the batch is therefore split, and finally its single message is the cause.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use ::store::{Fault, FaultKind};
use uuid::Uuid;

use crate::work::Work;

/// How often a server that works before fails on the same messages until they are split, or a single one is the cause.
const FAILURES: u32 = 3;

/// Why a batch cannot be prepared.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// A fault that is classified already.
    Fault(Fault),
    /// A server that worked just before fails on the batch, for this reason. One of the messages may be the cause.
    Suspected(String),
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// A fault that puts the batch on hold.
pub(crate) fn unavailable(reason: &str) -> Fault {
    Fault { kind: FaultKind::Unavailable, reason: reason.to_owned() }
}

impl Trouble {
    /// The fault, if nobody counts how often it happens.
    pub(crate) fn into_fault(self) -> Fault {
        match self {
            Self::Fault(fault) => fault,
            Self::Suspected(reason) => unavailable(&reason),
        }
    }
}

/// The maximum number of batches whose failures are counted. Messages of this process are prepared beside each other,
/// but never so many.
const MAX_COUNTED: usize = 1_000;

/// The failures on batches, by their first message and their number of messages. A restart forgets them, which causes
/// more tries.
#[derive(Debug, Default)]
pub(crate) struct Suspicion(Mutex<HashMap<(Uuid, usize), u32>>);

impl Suspicion {
    /// Counts a failure on a batch.
    ///
    /// # Errors
    /// `Unavailable`: the batch is to be tried again. `Transient`: it is to be split. Otherwise its single message is the
    /// cause.
    pub(crate) fn count(&self, batch: &[Work<'_>], reason: &str) -> Result<(), Fault> {
        // The id of an event belongs to one delivery of its message.
        let key = (batch.first().map_or(Uuid::nil(), |work| work.event_id), batch.len());
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= MAX_COUNTED {
            counts.clear();
        }
        let count = counts.entry(key).or_insert(0);
        *count += 1;
        if *count < FAILURES {
            return Err(unavailable(reason));
        }
        counts.remove(&key);
        if batch.len() > 1 {
            return Err(Fault { kind: FaultKind::Transient, reason: reason.to_owned() });
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_split_and_a_single_message_is_the_cause_at_the_third_failure() {
        let request = serde_json::from_value(serde_json::json!({ "memory_ids": [Uuid::nil()] })).unwrap();
        let request = contract::VectorRequest::VectorRemove(request);
        let work = |event: u128| Work {
            user: contract::UserId::new(1).unwrap(),
            publisher: "chat",
            request: &request,
            request_id: Uuid::nil(),
            event_id: Uuid::from_u128(event),
            stored_at: chrono::DateTime::UNIX_EPOCH,
            sequence: 1,
            is_of_node: false,
        };
        let (suspicion, both) = (Suspicion::default(), [work(1), work(2)]);
        let kind = |batch: &[Work<'_>]| suspicion.count(batch, "500").map_err(|fault| fault.kind);
        for _ in 0..2 {
            let tries = [kind(&both), kind(&both), kind(&both)];
            assert_eq!(
                tries,
                [Err(FaultKind::Unavailable), Err(FaultKind::Unavailable), Err(FaultKind::Transient)]
            );
        }
        // The message that the first half consists of has failures of its own.
        let tries = [kind(&both[..1]), kind(&both[..1]), kind(&both[1..]), kind(&both[..1])];
        assert_eq!(
            tries,
            [Err(FaultKind::Unavailable), Err(FaultKind::Unavailable), Err(FaultKind::Unavailable), Ok(())]
        );
    }

    #[test]
    fn the_number_of_counted_batches_is_limited() {
        let suspicion = Suspicion::default();
        let count = |batches: usize| {
            suspicion.0.lock().unwrap().extend((0..batches).map(|length| ((Uuid::max(), length), 1)));
            let _ = suspicion.count(&[], "500");
            suspicion.0.lock().unwrap().len()
        };
        assert_eq!((count(MAX_COUNTED - 1), count(MAX_COUNTED)), (MAX_COUNTED, 1));
    }
}
