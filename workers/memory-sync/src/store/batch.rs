//! What the steps of this worker share.

use runtime::Verdict;

use crate::Message;

/// A request of a batch.
#[derive(Debug)]
pub(crate) struct Item<'a, T> {
    /// Its place in the batch.
    pub(crate) index: usize,
    pub(crate) message: &'a Message,
    pub(crate) request: &'a T,
}

impl<T> Clone for Item<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Item<'_, T> {}

impl<T> Item<'_, T> {
    pub(crate) fn user(&self) -> i32 {
        self.message.user_id().get()
    }
}

/// The verdicts of a batch. What has none in the end lacks its prerequisite.
pub(crate) struct Verdicts(Vec<Option<Verdict>>);

impl Verdicts {
    pub(crate) fn new(count: usize) -> Self {
        Self(vec![None; count])
    }

    pub(crate) fn set(&mut self, index: usize, verdict: Verdict) {
        if let Some(place) = self.0.get_mut(index) {
            *place = Some(verdict);
        }
    }

    pub(crate) fn finish(self, batch: &[&Message]) -> Vec<Verdict> {
        let verdict = |(verdict, message): (Option<Verdict>, &&Message)| {
            verdict.unwrap_or_else(|| Verdict::missing_prerequisite(message))
        };
        self.0.into_iter().zip(batch).map(verdict).collect()
    }
}
