//! The disposition of a message. Any stage may decide it; `settle` executes it.

use std::borrow::Cow;
use std::time::Duration;

use chrono::{DateTime, Utc};
use contract::{DeadLetterClass, WorkerInfo};
use store::blackboard::StoredEvent;
use store::{Fault, FaultKind};

use crate::reason::Reason;

/// How a message is to be settled.
#[derive(Clone, Debug)]
pub(crate) enum Disposition {
    /// Its transaction has committed: its events are published, then it is acknowledged.
    Committed(Commit),
    /// It is retried with growing delays within the retry budget, then dead-lettered with this class. It spends no try
    /// while the worker that it awaits is behind.
    Retry { class: DeadLetterClass, reason: Reason, awaits: Option<&'static WorkerInfo> },
    /// It is retried at a given time and spends no try. After the deadline it is dead-lettered.
    RetryNotBefore { time: DateTime<Utc>, deadline: DateTime<Utc>, reason: Reason },
    /// It is redelivered after a delay and spends no try, because the message itself is not known to be faulty.
    Redeliver(Duration),
    /// It waits for something that may take hours, such as a lock that another transaction holds. It spends no try and
    /// is redelivered with delays that grow with its deliveries, the next one after at least this time.
    Park(Duration),
    /// As [`Park`](Self::Park), because there is no room for it yet: what is heavy is processed one by one.
    SetAside(Duration),
    /// It can never be processed and is dead-lettered.
    DeadLetter { class: DeadLetterClass, reason: Reason },
}

/// The result of a committed transaction for a message.
#[derive(Clone, Debug)]
pub(crate) struct Commit {
    pub(crate) effect: Effect,
    /// The events that the message caused, in order, on this delivery or an earlier one.
    pub(crate) events: Vec<StoredEvent>,
    /// Why it caused no events.
    pub(crate) reason: Option<Cow<'static, str>>,
}

/// How a message took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// In this transaction.
    Applied,
    /// In this transaction, without changing anything.
    Unchanged,
    /// In an earlier transaction, or as another copy in this one.
    Repeated,
}

/// What a publisher is told of a message whose user is erased.
pub(crate) const ERASED: &str = "the user was erased";
/// What a publisher is told of a message that is refused while the user's data are restricted.
const RESTRICTED: &str = "the processing of the user's data is restricted";

impl Disposition {
    /// Redelivers the message at once, to another replica: the worker is stopping or a dependency is unavailable.
    pub(crate) const HAND_BACK: Self = Self::Redeliver(Duration::ZERO);

    pub(crate) fn unchanged(reason: Cow<'static, str>) -> Self {
        Self::Committed(Commit { effect: Effect::Unchanged, events: Vec::new(), reason: Some(reason) })
    }

    /// The disposition of a message that an earlier transaction processed, causing these events.
    pub(crate) fn repeated(events: Vec<StoredEvent>) -> Self {
        let reason =
            events.is_empty().then_some(Cow::Borrowed("a message with this id was already processed"));
        Self::Committed(Commit { effect: Effect::Repeated, events, reason })
    }

    /// The disposition of a duplicate of this message in the same batch. Both copies are settled alike.
    pub(crate) fn of_duplicate(&self) -> Self {
        match self {
            Self::Committed(commit) => Self::repeated(commit.events.clone()),
            Self::Retry { .. }
            | Self::RetryNotBefore { .. }
            | Self::Redeliver(_)
            | Self::Park(_)
            | Self::SetAside(_)
            | Self::DeadLetter { .. } => self.clone(),
        }
    }

    /// The disposition of a message that failed on its own. Operators read the message of the database, its publisher a
    /// general sentence. `awaits`: the worker that writes its prerequisite.
    pub(crate) fn of_fault(fault: &Fault, awaits: Option<&'static WorkerInfo>) -> Self {
        let reason = |sentence: &'static str| Reason::new(sentence).for_operators(fault.reason.as_str());
        match fault.kind {
            FaultKind::Unavailable | FaultKind::ConnectionLost => Self::HAND_BACK,
            FaultKind::Blocked | FaultKind::Fenced | FaultKind::Restricted { waits: true } => {
                Self::Park(Duration::ZERO)
            }
            FaultKind::Transient => Self::Retry {
                class: DeadLetterClass::Exhausted,
                reason: reason("the database repeatedly failed to store it"),
                awaits: None,
            },
            FaultKind::MissingPrerequisite => Self::Retry {
                class: DeadLetterClass::MissingPrerequisite,
                reason: reason("a record that it refers to does not exist"),
                awaits,
            },
            FaultKind::Permanent => Self::DeadLetter {
                class: DeadLetterClass::Permanent,
                reason: reason(
                    "the database cannot store it; the operator finds the cause in its dead letter",
                ),
            },
            FaultKind::Denied => Self::DeadLetter {
                class: DeadLetterClass::Denied,
                reason: reason("the database does not allow it"),
            },
            // It may succeed after the lift, and takes nothing from the share of what never does.
            FaultKind::Restricted { waits: false } => Self::DeadLetter {
                class: DeadLetterClass::MissingPrerequisite,
                reason: Reason::new(RESTRICTED)
                    .for_operators(format!("{RESTRICTED}; replay it after `memfleet privacy lift`")),
            },
            // No dead letter, which would store the body again.
            FaultKind::Erased => Self::unchanged(Cow::Borrowed(ERASED)),
        }
    }

    /// The result of the transaction, if the message was committed.
    pub(crate) fn commit(&self) -> Option<&Commit> {
        match self {
            Self::Committed(commit) => Some(commit),
            Self::Retry { .. }
            | Self::RetryNotBefore { .. }
            | Self::Redeliver(_)
            | Self::Park(_)
            | Self::SetAside(_)
            | Self::DeadLetter { .. } => None,
        }
    }

    /// Why the message failed, if it did.
    pub(crate) fn failure(&self) -> Option<&Reason> {
        match self {
            Self::Retry { reason, .. } | Self::DeadLetter { reason, .. } => Some(reason),
            Self::Committed(_)
            | Self::RetryNotBefore { .. }
            | Self::Redeliver(_)
            | Self::Park(_)
            | Self::SetAside(_) => None,
        }
    }

    /// Whether this settles the message for good: acknowledged or dead-lettered.
    pub(crate) fn ends(&self) -> bool {
        match self {
            Self::Committed(_) | Self::DeadLetter { .. } => true,
            Self::Retry { .. }
            | Self::RetryNotBefore { .. }
            | Self::Redeliver(_)
            | Self::Park(_)
            | Self::SetAside(_) => false,
        }
    }
}
