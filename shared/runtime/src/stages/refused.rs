//! Messages of users whom the database refuses. Of an erased user nothing is stored, not even a dead letter; messages of one who is being
//! erased wait until that is certain, or cancelled. While the processing of a user's data is restricted, messages wait or become dead letters,
//! as the restriction says.

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
/// The same of a user whose data are restricted.
const RESTRICTION: &str =
    "the processing of the user's data is restricted: `memfleet privacy list --restricted` shows since when";

impl<W: ExternalWorker> Writer<W> {
    /// Splits a part by users if the database refuses one of them. If it is of one user, settles or parks its messages; what still comes of
    /// this user is written apart from the messages of others.
    pub(super) fn split_refused(&self, messages: &mut [Authorized<W::Item>], fault: &Fault) -> Given {
        let parts = parts::split_by_user(messages);
        let Some(first) = messages.first().filter(|_| parts.len() == 1) else {
            if self.stop.is_cancelled() {
                return Given::Dispositions(vec![Disposition::HAND_BACK; messages.len()]);
            }
            return Given::Parts(parts.into_iter().map(|part| Part { is_suspect: false, ..part }).collect());
        };
        let (user, now) = (first.message().user_id(), Instant::now());
        let disposition = match held_by(fault.kind) {
            Some(held_by) => Disposition::Park(self.blocked.blocked(
                W::INFO.name,
                user,
                Duration::ZERO,
                Some(held_by.to_owned()),
                now,
            )),
            None => {
                self.blocked.refused(user, now);
                tracing::info!(
                    worker = W::INFO.name,
                    messages = messages.len(),
                    reason = %fault,
                    "messages of a user are not stored"
                );
                Disposition::of_fault(fault, None)
            }
        };
        Given::Dispositions(vec![disposition; messages.len()])
    }
}

/// What messages wait for that fail with this fault, if they wait for the end of an erasure or of a restriction.
fn held_by(kind: FaultKind) -> Option<&'static str> {
    match kind {
        FaultKind::Fenced => Some(ERASURE),
        FaultKind::Restricted { waits: true } => Some(RESTRICTION),
        FaultKind::Restricted { waits: false }
        | FaultKind::Erased
        | FaultKind::Transient
        | FaultKind::Blocked
        | FaultKind::Unavailable
        | FaultKind::ConnectionLost
        | FaultKind::MissingPrerequisite
        | FaultKind::Permanent
        | FaultKind::Denied => None,
    }
}

/// What becomes of a tick one of whose users the database refuses: its next delivery mints grants without this one. None for a request, and
/// for another fault.
pub(super) fn of_fault<I>(message: &Message<I>, fault: &Fault) -> Option<Disposition> {
    match message.source {
        Source::Tick(_) if fault.kind.refuses_user() => {
            let again = Fault { kind: FaultKind::Transient, reason: fault.reason.clone() };
            Some(Disposition::of_fault(&again, None))
        }
        Source::Tick(_) | Source::Request(_) => None,
    }
}
