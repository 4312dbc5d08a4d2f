//! The parts in which a batch is written. Rows that other transactions have locked are found by writing the messages of
//! few users at once.

use std::time::Duration;

use tokio::time::Instant;

use crate::process::blocked::{BlockedUsers, Standing};
use crate::stages::authorize::Authorized;
use crate::stages::disposition::Disposition;
use crate::worker::Source;

/// A part of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The number of its messages.
    pub(crate) length: usize,
    /// Whether rows of its users may be locked. Its transaction waits for locks only briefly.
    pub(crate) is_suspect: bool,
}

/// How many parts a part is split into when a lock stops it. Three splits isolate a user in the largest batch.
const SPLIT_BY_USER: usize = 16;
/// Time that one batch may spend on transactions that fail because of locks, after it has found a blocked user.
const SEARCH_TIME: Duration = Duration::from_secs(1);

/// The search of a batch for the users whose rows are locked.
#[derive(Debug, Default)]
pub(crate) struct Search {
    spent: Duration,
    has_found: bool,
}

impl Search {
    /// Records a failed transaction, and whether it was of one user.
    pub(crate) fn failed(&mut self, took: Duration, has_found: bool) {
        self.spent += took;
        self.has_found |= has_found;
    }

    /// Whether the batch has searched for long enough. What is still suspect is then set aside untried, so that many
    /// locked rows do not stop the worker.
    pub(crate) fn is_over(&self) -> bool {
        self.has_found && self.spent >= SEARCH_TIME
    }
}

/// Sorts a batch: first the messages of blocked users that have to wait, then those of which nothing is known, then
/// those of blocked users that are due, by user. Returns the dispositions of the first, and the parts of the others, the
/// next one last.
pub(crate) fn set_aside<I>(
    batch: &mut [Authorized<I>],
    blocked: &BlockedUsers,
) -> (Vec<Disposition>, Vec<Part>) {
    let all = Part { length: batch.len(), is_suspect: false };
    if blocked.is_empty() {
        return (Vec::new(), vec![all]);
    }
    let now = Instant::now();
    let standing = |message: &Authorized<I>| match message.message().source {
        Source::Request(_) => blocked.standing(message.message().user_id(), now),
        Source::Tick(_) => Standing::Free,
    };
    batch.sort_by_cached_key(|message| match standing(message) {
        Standing::Waiting(_) => (0, None),
        Standing::Free => (1, None),
        Standing::Due => (2, Some(message.message().user_id())),
    });
    let waiting: Vec<Disposition> = batch
        .iter()
        .map_while(|message| match standing(message) {
            Standing::Waiting(pause) => Some(Disposition::Park(pause)),
            Standing::Free | Standing::Due => None,
        })
        .collect();
    let rest = batch.get(waiting.len()..).unwrap_or_default();
    let free = rest.iter().take_while(|message| standing(message) == Standing::Free).count();
    let due = rest.get(free..).unwrap_or_default();
    let of_user = due.chunk_by(|one, other| one.message().user_id() == other.message().user_id());
    let due: Vec<usize> = of_user.map(<[_]>::len).collect();
    (waiting, in_order(free, &due))
}

/// The parts of messages that are sorted: first those of which nothing is known, then those of each due user. The next one last.
fn in_order(free: usize, due: &[usize]) -> Vec<Part> {
    let due = due.iter().rev().map(|&length| Part { length, is_suspect: true });
    let free = (free > 0).then_some(Part { length: free, is_suspect: false });
    due.chain(free).collect()
}

/// Sorts messages by user and splits them into suspect parts of whole users, the next one last. A single part if they
/// are of one user.
pub(crate) fn split_by_user<I>(messages: &mut [Authorized<I>]) -> Vec<Part> {
    // The sort is stable, which keeps the order of each user's messages.
    messages.sort_by_key(|message| message.message().user_id());
    let of_user = messages.chunk_by(|one, other| one.message().user_id() == other.message().user_id());
    let lengths: Vec<usize> = of_user.map(<[_]>::len).collect();
    group(&lengths)
}

fn group(lengths: &[usize]) -> Vec<Part> {
    let users = lengths.len().div_ceil(SPLIT_BY_USER).max(1);
    let parts = lengths.chunks(users).map(|lengths| Part { length: lengths.iter().sum(), is_suspect: true });
    parts.rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_split_into_at_most_sixteen_of_whole_users() {
        let lengths = |lengths: &[usize]| group(lengths).iter().map(|part| part.length).collect::<Vec<_>>();
        assert_eq!(lengths(&[7]), [7]);
        assert_eq!(lengths(&[1, 2, 3]), [3, 2, 1], "the next one last");
        assert_eq!(lengths(&[1; 500]).len(), 16);
        assert_eq!(lengths(&[2; 33]), [[6; 11].as_slice()].concat());
        // Three splits isolate one user of the largest batch.
        assert!(1_000_usize.div_ceil(16).div_ceil(16).div_ceil(16) == 1);
    }

    #[test]
    fn parts_of_due_users_are_taken_in_the_order_of_their_messages() {
        let taken = |free, due: &[usize]| {
            let mut parts = in_order(free, due);
            let mut taken = Vec::new();
            while let Some(Part { length, is_suspect }) = parts.pop() {
                taken.push((length, is_suspect));
            }
            taken
        };
        assert_eq!(taken(5, &[1, 2, 3]), [(5, false), (1, true), (2, true), (3, true)]);
        assert_eq!(taken(0, &[2, 1]), [(2, true), (1, true)]);
        assert_eq!(taken(4, &[]), [(4, false)]);
        assert_eq!(taken(0, &[]), []);
    }

    #[test]
    fn a_search_ends_when_it_has_found_a_user_and_taken_its_time() {
        let mut search = Search::default();
        search.failed(Duration::from_secs(30), false);
        assert!(!search.is_over(), "nobody is found yet");
        search.failed(Duration::ZERO, true);
        assert!(search.is_over());
    }
}
