//! Heavy messages: what is prepared for them takes so long that other messages must not wait for it.
//!
//! They are prepared one by one beside the batches, and then written by the one write stage, as batches of their own.
//! Later messages of the same user follow them, so that the order of each user's messages is kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use contract::UserId;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::stages::authorize::Authorized;
use crate::stages::disposition::Disposition;
use crate::stages::write::{ToSettle, ToWrite, Writer};
use crate::worker::{ExternalWorker, Source};

/// Maximum number of messages that wait to be prepared apart. Further ones are set aside.
const MAX_WAITING: usize = 32;

/// The way of heavy messages into [`prepare_stage`]. Clones share the same way.
pub(crate) struct HeavyMessages<I> {
    max_bytes: usize,
    to_prepare: mpsc::Sender<Authorized<I>>,
    users: Users,
}

impl<I> Clone for HeavyMessages<I> {
    fn clone(&self) -> Self {
        let Self { max_bytes, to_prepare, users } = self;
        Self { max_bytes: *max_bytes, to_prepare: to_prepare.clone(), users: users.clone() }
    }
}

/// The number of messages of each user that are on their way.
#[derive(Clone, Default)]
pub(crate) struct Users(Arc<Mutex<HashMap<UserId, usize>>>);

impl Users {
    fn with<T>(&self, work: impl FnOnce(&mut HashMap<UserId, usize>) -> T) -> T {
        // The counts are valid even if a panic poisoned the lock.
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn contain(&self, user: UserId) -> bool {
        self.with(|users| users.contains_key(&user))
    }

    fn enter(&self, user: UserId) {
        self.with(|users| *users.entry(user).or_insert(0) += 1);
    }

    fn leave(&self, user: UserId) {
        self.with(|users| {
            if let Some(count) = users.get_mut(&user) {
                *count -= 1;
                if *count == 0 {
                    users.remove(&user);
                }
            }
        });
    }
}

impl<I> HeavyMessages<I> {
    /// The way in, and what [`prepare_stage`] needs. A body of more than `max_bytes` is heavy.
    pub(crate) fn new(max_bytes: usize) -> (Self, mpsc::Receiver<Authorized<I>>, Users) {
        let (to_prepare, to_be_prepared) = mpsc::channel(MAX_WAITING);
        let users = Users::default();
        (Self { max_bytes, to_prepare, users: users.clone() }, to_be_prepared, users)
    }

    /// Takes the heavy messages out of a batch, and those that follow them. Returns those for which there is no room.
    pub(crate) fn take(&self, batch: &mut Vec<Authorized<I>>) -> Vec<Authorized<I>> {
        let follows = |message: &mut Authorized<I>| {
            let message = message.message();
            let is_request = matches!(message.source, Source::Request(_));
            let is_taken =
                is_request && (message.body.len() > self.max_bytes || self.users.contain(message.user_id()));
            if is_taken {
                self.users.enter(message.user_id());
            }
            is_taken
        };
        let mut refused = Vec::new();
        for message in batch.extract_if(.., follows) {
            let user = message.message().user_id();
            if let Err(TrySendError::Full(message) | TrySendError::Closed(message)) =
                self.to_prepare.try_send(message)
            {
                self.users.leave(user);
                refused.push(message);
            }
        }
        refused
    }
}

/// Prepares heavy messages one by one and passes them to the write stage.
pub(crate) async fn prepare_stage<W: ExternalWorker>(
    writer: Arc<Writer<W>>,
    mut heavy: mpsc::Receiver<Authorized<W::Item>>,
    users: Users,
    to_write: mpsc::Sender<ToWrite<W>>,
    to_settle: mpsc::Sender<ToSettle<W::Item>>,
) {
    while let Some(message) = heavy.recv().await {
        let user = message.message().user_id();
        let batch = vec![message];
        let is_sent = match writer.prepare(&batch, None).await {
            Some(prepared) => {
                let prepared = ToWrite { authorized: batch, denied: Vec::new(), prepared: Some(prepared) };
                to_write.send(prepared).await.is_ok()
            }
            // Stopped: another replica takes it.
            None => {
                let mut is_sent = true;
                for message in batch {
                    let single = ToSettle::Single(Box::new(message.into_delivery()), Disposition::HAND_BACK);
                    is_sent &= to_settle.send(single).await.is_ok();
                }
                is_sent
            }
        };
        // The user's next messages come after it through the same channel.
        users.leave(user);
        if !is_sent {
            return;
        }
    }
}

/// The lengths of the parts of a batch whose bodies are prepared together: at most `max_bytes`, or one message.
pub(crate) fn portions(sizes: impl Iterator<Item = usize>, max_bytes: usize) -> Vec<usize> {
    let (mut lengths, mut bytes) = (Vec::new(), 0_usize);
    for size in sizes {
        match lengths.last_mut() {
            Some(length) if bytes.saturating_add(size) <= max_bytes => {
                *length += 1;
                bytes = bytes.saturating_add(size);
            }
            Some(_) | None => {
                lengths.push(1);
                bytes = size;
            }
        }
    }
    lengths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_prepared_in_portions_of_limited_size() {
        let portions = |sizes: &[usize], max| portions(sizes.iter().copied(), max);
        assert!(portions(&[], 10).is_empty());
        assert_eq!(portions(&[4, 6, 1, 9, 10, 11, 2], 10), [2, 2, 1, 1, 1]);
        assert_eq!(portions(&[usize::MAX, 1], usize::MAX - 1), [1, 1]);
        assert_eq!(portions(&[7; 100], usize::MAX), [100]);
    }
}
