//! What becomes of a message. Every stage says it in these terms, and `settle` carries it out.

use std::borrow::Cow;
use std::time::Duration;

use chrono::{DateTime, Utc};
use contract::{DeadLetterClass, Event};
use store::{Fault, FaultKind};

/// What is to be done with a message.
#[derive(Clone, Debug)]
pub(crate) enum Disposition {
    /// Its transaction has committed: its events are published, then it is acknowledged.
    Committed(Commit),
    /// It is tried again, with growing delay and within the retry budget; then it is dead-lettered under this class.
    Retry { class: DeadLetterClass, reason: String },
    /// It is tried again after a time and spends no try; after the deadline it is dead-lettered.
    RetryNotBefore { time: DateTime<Utc>, deadline: DateTime<Utc>, reason: String },
    /// It is delivered again after a delay and spends no try: nothing is known against it.
    Redeliver(Duration),
    /// It can never take effect.
    DeadLetter { class: DeadLetterClass, reason: String },
}

/// What a committed transaction did for a message.
#[derive(Clone, Debug)]
pub(crate) struct Commit {
    pub(crate) effect: Effect,
    /// The events that it caused, in order, now or when it was first delivered.
    pub(crate) events: Vec<Event>,
    /// Why it caused none.
    pub(crate) reason: Option<Cow<'static, str>>,
}

/// How a message took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// In this transaction.
    Applied,
    /// In this transaction, which it left everything as it was.
    Unchanged,
    /// In an earlier transaction, or as another copy in this one.
    Repeated,
}

impl Disposition {
    /// The worker stops, or a server that is needed is unreachable: another replica takes the message.
    pub(crate) const HAND_BACK: Self = Self::Redeliver(Duration::ZERO);

    pub(crate) fn unchanged(reason: Cow<'static, str>) -> Self {
        Self::Committed(Commit { effect: Effect::Unchanged, events: Vec::new(), reason: Some(reason) })
    }

    /// What an earlier transaction did, whose events these are.
    pub(crate) fn repeated(events: Vec<Event>) -> Self {
        let reason = events.is_empty().then_some(Cow::Borrowed("a message with this id was taken before"));
        Self::Committed(Commit { effect: Effect::Repeated, events, reason })
    }

    /// What is true of a further copy of the same message in the same batch: the acknowledgement of either copy is one of both.
    pub(crate) fn of_a_copy(&self) -> Self {
        match self {
            Self::Committed(commit) => Self::repeated(commit.events.clone()),
            Self::Retry { .. }
            | Self::RetryNotBefore { .. }
            | Self::Redeliver(_)
            | Self::DeadLetter { .. } => self.clone(),
        }
    }

    /// What becomes of a message that fails by itself.
    pub(crate) fn of_fault(fault: &Fault) -> Self {
        let reason = fault.reason.clone();
        match fault.kind {
            FaultKind::Unavailable | FaultKind::ConnectionLost => Self::HAND_BACK,
            FaultKind::Transient => Self::Retry { reason, class: DeadLetterClass::Exhausted },
            FaultKind::MissingPrerequisite => {
                Self::Retry { reason, class: DeadLetterClass::MissingPrerequisite }
            }
            FaultKind::Permanent => Self::DeadLetter { reason, class: DeadLetterClass::Permanent },
            FaultKind::Denied => Self::DeadLetter { reason, class: DeadLetterClass::Denied },
        }
    }

    /// The committed part, if the transaction did anything that stays.
    pub(crate) fn commit(&self) -> Option<&Commit> {
        match self {
            Self::Committed(commit) => Some(commit),
            Self::Retry { .. }
            | Self::RetryNotBefore { .. }
            | Self::Redeliver(_)
            | Self::DeadLetter { .. } => None,
        }
    }

    /// Whether the message ends with this: acknowledged, or dead-lettered.
    pub(crate) fn ends(&self) -> bool {
        match self {
            Self::Committed(_) | Self::DeadLetter { .. } => true,
            Self::Retry { .. } | Self::RetryNotBefore { .. } | Self::Redeliver(_) => false,
        }
    }
}
