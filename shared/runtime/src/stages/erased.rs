//! Messages of users who are erased: nothing of them is stored, not even a dead letter. Those of users who are being erased wait until that
//! is certain, or cancelled.

use std::time::Duration;

use store::{Fault, FaultKind};
use tokio::time::Instant;

use crate::stages::authorize::Authorized;
use crate::stages::disposition::Disposition;
use crate::stages::parts::{self, Part};
use crate::stages::write::{Given, Writer};
use crate::worker::{ExternalWorker, Message, Source};

/// What the messages of a user who is being erased wait for, as operators read it.
const ERASURE: &str = "the erasure of the user is under way: `memfleet privacy list --open` shows it";

impl<W: ExternalWorker> Writer<W> {
    /// Splits a part by users if one of them is erased or is being erased. If it is of one user, acknowledges or parks it; what still comes of
    /// this user is written apart from the messages of others.
    pub(super) fn split_erased(&self, messages: &mut [Authorized<W::Item>], fault: &Fault) -> Given {
        let parts = parts::split_by_user(messages);
        let Some(first) = messages.first().filter(|_| parts.len() == 1) else {
            if self.stop.is_cancelled() {
                return Given::Dispositions(vec![Disposition::HAND_BACK; messages.len()]);
            }
            return Given::Parts(parts.into_iter().map(|part| Part { is_suspect: false, ..part }).collect());
        };
        let (user, now) = (first.message().user_id(), Instant::now());
        let disposition = if fault.kind == FaultKind::Fenced {
            let held_by = Some(ERASURE.to_owned());
            Disposition::Park(self.blocked.blocked(W::INFO.name, user, Duration::ZERO, held_by, now))
        } else {
            self.blocked.erased(user, now);
            tracing::info!(
                worker = W::INFO.name,
                messages = messages.len(),
                "messages of an erased user are not stored"
            );
            Disposition::of_fault(fault, None)
        };
        Given::Dispositions(vec![disposition; messages.len()])
    }
}

/// What becomes of a tick one of whose users is erased, or is being erased: its next delivery mints grants without this one. None for a
/// request, and for another fault.
pub(super) fn of_fault<I>(message: &Message<I>, fault: &Fault) -> Option<Disposition> {
    match message.source {
        Source::Tick(_) if matches!(fault.kind, FaultKind::Erased | FaultKind::Fenced) => {
            let again = Fault { kind: FaultKind::Transient, reason: fault.reason.clone() };
            Some(Disposition::of_fault(&again, None))
        }
        Source::Tick(_) | Source::Request(_) => None,
    }
}
