//! The users whose rows other transactions keep locked.
//!
//! A batch that waits for one user's rows would hold up all users. So the writer remembers whose rows are locked, sets
//! their messages aside, and tries one user's messages again with growing pauses.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use contract::UserId;
use serde::Serialize;
use tokio::time::Instant;

use crate::delivery::retry;

/// The blocked users of one worker in this process. Clones share the same state.
#[derive(Clone, Debug, Default)]
pub(crate) struct BlockedUsers {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    users: BTreeMap<UserId, Blocked>,
    /// A locked table, which blocks all users.
    table: Option<Blocked>,
    /// When to stop sparing the messages of users who are no longer blocked, see [`BlockedUsers::spares`].
    spared: BTreeMap<UserId, Instant>,
    /// Users whom the database refuses, and until when their messages are written apart.
    apart: BTreeMap<UserId, Instant>,
}

#[derive(Clone, Debug)]
struct Blocked {
    since: DateTime<Utc>,
    tries: u32,
    next_try: Instant,
    held_by: String,
}

/// Whether the messages of a user may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nothing is known against it.
    Free,
    /// The user was blocked, and it is time for another try, or the database refuses the user: apart from the messages of other users.
    Due,
    /// The user was blocked a moment ago. The next try is due after this time.
    Waiting(Duration),
}

/// A user whose rows are locked, for the readiness report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BlockedReport {
    /// The user. `None` if a whole table is locked, which blocks all users.
    pub user_id: Option<i32>,
    /// Since when, as in RFC 3339.
    pub since: String,
    /// The transactions that hold the lock, as far as they could be seen.
    pub held_by: String,
}

/// The maximum number of users that are remembered. Further ones are found again by each of their batches.
const MAX_USERS: usize = 10_000;
/// The maximum number of users in a report and of users whose changes are logged one by one.
const MAX_REPORTED: usize = 20;
/// The pauses between two tries of a user: the first and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A pause is at least this many times as long as the try before it, so that blocked users take little of the worker's
/// time.
const PAUSE_PER_TRY: u32 = 4;
/// A user of whom no message came for this long after the pause is no longer reported; another replica may have written
/// them.
const REPORTED_FOR: Duration = Duration::from_secs(300);
/// Messages of a user whom the database refuses are written apart for this long after the last one.
const APART_FOR: Duration = Duration::from_secs(30);
/// A user is forgotten when all messages that were set aside have been delivered again.
const FORGET_AFTER: Duration = retry::LONGEST_PARKED.saturating_add(REPORTED_FOR);

impl BlockedUsers {
    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        // The state is valid even if a panic poisoned the lock.
        work(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether nobody's messages are written apart.
    pub(crate) fn is_empty(&self) -> bool {
        self.with(|inner| inner.users.is_empty() && inner.apart.is_empty())
    }

    /// Whether messages of this user may be written.
    pub(crate) fn standing(&self, user: UserId, now: Instant) -> Standing {
        self.with(|inner| match inner.users.get(&user) {
            None if inner.apart.get(&user).is_some_and(|until| *until > now) => Standing::Due,
            None => Standing::Free,
            Some(blocked) => match blocked.next_try.saturating_duration_since(now) {
                Duration::ZERO => Standing::Due,
                pause => Standing::Waiting(pause),
            },
        })
    }

    /// Records a try that failed because the user's rows are locked, and how long it took. Returns the pause until the
    /// next one. Changes are logged.
    pub(crate) fn blocked(
        &self,
        worker: &'static str,
        user: UserId,
        took: Duration,
        held_by: Option<String>,
        now: Instant,
    ) -> Duration {
        self.with(|inner| {
            if inner.users.len() >= MAX_USERS {
                inner.forget_old(now);
            }
            let known = inner.users.get(&user);
            let tries = known.map_or(0, |known| known.tries).saturating_add(1);
            let pause = retry::delay(tries, FIRST_PAUSE, LONGEST_PAUSE).max(took * PAUSE_PER_TRY);
            let held_before = known.map(|known| known.held_by.clone());
            let unknown = || "no transaction that could be seen; its statements may be slow".to_owned();
            let held_by = held_by.or_else(|| held_before.clone()).unwrap_or_else(unknown);
            let is_logged = known.is_some() || inner.users.len() < MAX_REPORTED;
            if is_logged && held_before.as_ref() != Some(&held_by) {
                tracing::warn!(worker, %user, %held_by, "rows of a user are locked; the user's messages wait apart");
            }
            let since = known.map_or_else(Utc::now, |known| known.since);
            if inner.users.len() < MAX_USERS || held_before.is_some() {
                inner.users.insert(user, Blocked { since, tries, next_try: now + pause, held_by });
            }
            pause
        })
    }

    /// Records that the database refuses this user: a batch with the user's messages would be refused as a whole. None of them waits any more.
    pub(crate) fn refused(&self, user: UserId, now: Instant) {
        self.with(|inner| {
            inner.users.remove(&user);
            inner.apart.retain(|_, until| *until > now);
            if inner.apart.len() < MAX_USERS {
                inner.apart.insert(user, now + APART_FOR);
            }
        });
    }

    /// Records that messages of this user were written.
    pub(crate) fn written(&self, worker: &'static str, user: UserId) {
        self.with(|inner| {
            let Some(blocked) = inner.users.remove(&user) else { return };
            let lasted = Utc::now() - blocked.since;
            let linger = lasted.to_std().unwrap_or_default().min(retry::LONGEST_PARKED);
            if inner.spared.len() >= MAX_USERS {
                inner.forget_old(Instant::now());
            }
            if inner.spared.len() < MAX_USERS {
                inner.spared.insert(user, Instant::now() + linger);
            }
            if inner.users.len() < MAX_REPORTED {
                tracing::info!(worker, %user, seconds = lasted.num_seconds(), "rows of a user are free again");
            }
        });
    }

    /// Whether earlier messages of this user may still wait for their redelivery, because the user is or was blocked. A
    /// message that needs one of them has to wait for it.
    pub(crate) fn spares(&self, user: UserId, now: Instant) -> bool {
        self.with(|inner| {
            inner.users.contains_key(&user) || inner.spared.get(&user).is_some_and(|until| *until > now)
        })
    }

    /// Records whether a table is locked, and by whom. Changes are logged.
    pub(crate) fn table(&self, worker: &'static str, found: Option<(&str, String)>) {
        self.with(|inner| match (found, inner.table.take()) {
            (None, None) => {}
            (None, Some(_)) => tracing::info!(worker, "the table is free again"),
            (Some((table, holder)), before) => {
                let held_by = format!("table {table}: {holder}");
                if before.as_ref().map(|before| before.held_by.as_str()) != Some(held_by.as_str()) {
                    tracing::warn!(worker, table, held_by = %holder, "a table is locked; all messages wait");
                }
                let since = before.map_or_else(Utc::now, |before| before.since);
                inner.table = Some(Blocked { since, tries: 0, next_try: Instant::now(), held_by });
            }
        });
    }

    /// Whether a table is locked, and who is blocked: at most 20.
    pub(crate) fn report(&self, now: Instant) -> (bool, Vec<BlockedReport>) {
        self.with(|inner| {
            inner.forget_old(now);
            let table = inner.table.iter().map(|table| (None, table));
            let is_recent = |(_, blocked): &(&UserId, &Blocked)| blocked.next_try + REPORTED_FOR > now;
            let users = inner.users.iter().filter(is_recent);
            let users = users.map(|(user, blocked)| (Some(user.get()), blocked));
            let reports = table.chain(users).take(MAX_REPORTED).map(|(user_id, blocked)| BlockedReport {
                user_id,
                since: blocked.since.to_rfc3339_opts(SecondsFormat::Millis, true),
                held_by: blocked.held_by.clone(),
            });
            (inner.table.is_some(), reports.collect())
        })
    }
}

impl Inner {
    fn forget_old(&mut self, now: Instant) {
        self.users.retain(|_, blocked| blocked.next_try + FORGET_AFTER > now);
        self.spared.retain(|_, until| *until > now);
        self.apart.retain(|_, until| *until > now);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn user(id: usize) -> UserId {
        UserId::new(i32::try_from(id).unwrap()).unwrap()
    }

    #[test]
    fn a_blocked_user_is_tried_again_with_growing_pauses_and_then_forgotten() {
        let (blocked, mut now) = (BlockedUsers::default(), Instant::now());
        assert!(blocked.is_empty() && blocked.standing(user(1), now) == Standing::Free);
        let mut longest = Duration::ZERO;
        for _ in 0..12 {
            let pause = blocked.blocked("w", user(1), Duration::ZERO, None, now);
            assert_eq!(blocked.standing(user(1), now), Standing::Waiting(pause));
            now += pause;
            assert_eq!(blocked.standing(user(1), now), Standing::Due);
            longest = longest.max(pause);
        }
        assert!(longest > LONGEST_PAUSE / 2 && longest <= LONGEST_PAUSE, "{longest:?}");
        // A slow try is followed by a long pause.
        let pause = blocked.blocked("w", user(1), Duration::from_secs(30), None, now);
        assert_eq!(pause, Duration::from_secs(120));
        assert_eq!(blocked.report(now + pause + REPORTED_FOR).1, []);
        assert_eq!(blocked.standing(user(1), now + pause + REPORTED_FOR), Standing::Due);
        now += pause + FORGET_AFTER;
        assert_eq!(blocked.report(now).1, []);
        assert_eq!(blocked.standing(user(1), now), Standing::Free);
    }

    #[test]
    fn messages_of_a_refused_user_are_written_apart_for_some_time() {
        let (blocked, now) = (BlockedUsers::default(), Instant::now());
        blocked.blocked("w", user(1), Duration::ZERO, Some("the erasure of the user".to_owned()), now);
        blocked.refused(user(1), now);
        assert!(!blocked.is_empty());
        assert_eq!(blocked.standing(user(1), now), Standing::Due);
        assert_eq!(blocked.standing(user(2), now), Standing::Free);
        assert_eq!(blocked.standing(user(1), now + APART_FOR), Standing::Free);
        assert_eq!(blocked.report(now + APART_FOR), (false, Vec::new()), "nobody's rows are locked");
        assert!(blocked.is_empty());
    }

    #[test]
    fn the_report_names_users_tables_and_holders() {
        let (blocked, now) = (BlockedUsers::default(), Instant::now());
        blocked.blocked("w", user(1), Duration::ZERO, Some("process 7".to_owned()), now);
        // A try that sees no holder keeps the one that was seen before.
        blocked.blocked("w", user(1), Duration::ZERO, None, now);
        let (table, reports) = blocked.report(now);
        assert!(!table);
        assert_eq!((reports[0].user_id, reports[0].held_by.as_str()), (Some(1), "process 7"));
        blocked.table("w", Some(("users", "process 8".to_owned())));
        let (table, reports) = blocked.report(now);
        assert!(table && reports.len() == 2);
        assert_eq!((reports[0].user_id, reports[0].held_by.as_str()), (None, "table users: process 8"));
        blocked.table("w", None);
        blocked.written("w", user(1));
        assert_eq!(blocked.report(now), (false, Vec::new()));
    }

    /// Counts what is logged.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<usize>>);

    impl tracing::Subscriber for Lines {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }

        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

        fn event(&self, _: &tracing::Event<'_>) {
            *self.0.lock().unwrap() += 1;
        }

        fn enter(&self, _: &tracing::span::Id) {}

        fn exit(&self, _: &tracing::span::Id) {}
    }

    #[test]
    fn changes_are_logged_of_some_users() {
        let (blocked, lines, now) = (BlockedUsers::default(), Lines::default(), Instant::now());
        let logs = |id: usize, held_by: Option<&str>| {
            let before = *lines.0.lock().unwrap();
            blocked.blocked("w", user(id), Duration::ZERO, held_by.map(str::to_owned), now);
            *lines.0.lock().unwrap() - before
        };
        tracing::subscriber::with_default(lines.clone(), || {
            assert_eq!(
                [logs(1, Some("a")), logs(1, Some("a")), logs(1, None), logs(1, Some("b"))],
                [1, 0, 0, 1]
            );
            let all: usize = (2..=MAX_REPORTED + 5).map(|id| logs(id, None)).sum();
            assert_eq!(all, MAX_REPORTED - 1);
            assert_eq!(logs(2, Some("b")), 1, "another holder of one that is known");
        });
    }

    #[test]
    fn messages_of_a_user_are_spared_as_long_again_as_the_user_was_blocked() {
        let (blocked, now) = (BlockedUsers::default(), Instant::now());
        assert!(!blocked.spares(user(1), now));
        blocked.blocked("w", user(1), Duration::ZERO, None, now);
        assert!(blocked.spares(user(1), now));
        blocked.with(|inner| {
            inner.users.get_mut(&user(1)).unwrap().since -= chrono::TimeDelta::seconds(60);
        });
        blocked.written("w", user(1));
        assert!(blocked.spares(user(1), now + Duration::from_secs(59)));
        assert!(!blocked.spares(user(1), now + Duration::from_secs(70)));
    }

    #[test]
    fn the_number_of_remembered_users_is_limited() {
        let (blocked, now) = (BlockedUsers::default(), Instant::now());
        for id in 1..=MAX_USERS + 10 {
            blocked.blocked("w", user(id), Duration::ZERO, None, now);
        }
        assert_eq!(blocked.with(|inner| inner.users.len()), MAX_USERS);
        assert_eq!(blocked.report(now).1.len(), MAX_REPORTED);
    }
}
