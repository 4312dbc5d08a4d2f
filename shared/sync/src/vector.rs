//! Which writes of a key a session has seen.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The id of a session.
pub type Session = Arc<str>;

/// One write: the session, the number of its writes of this key so far, and its time on the hybrid logical clock.
///
/// Writes are ordered by time. Equal times are ordered by session, so that every session chooses the same winner.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "(u64, Session, u64)", into = "(u64, Session, u64)")]
pub struct Stamp {
    /// The time, as [`uhlc::NTP64`].
    pub time: u64,
    /// The session.
    pub session: Session,
    /// The number of its writes of this key, this one included.
    pub count: u64,
}

impl From<(u64, Session, u64)> for Stamp {
    fn from((time, session, count): (u64, Session, u64)) -> Self {
        Self { time, session, count }
    }
}

impl From<Stamp> for (u64, Session, u64) {
    fn from(stamp: Stamp) -> Self {
        (stamp.time, stamp.session, stamp.count)
    }
}

/// How two vectors relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// Both have seen the same writes.
    Equal,
    /// The other one has seen more.
    Dominated,
    /// This one has seen more.
    Dominating,
    /// Each has seen a write that the other has not.
    Concurrent,
}

/// A version vector: for each session that wrote the key, how many of its writes have been seen. They are always the first ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Vector(BTreeMap<Session, u64>);

impl Vector {
    /// The number of writes of a session that have been seen.
    pub fn get(&self, session: &str) -> u64 {
        self.0.get(session).copied().unwrap_or(0)
    }

    /// Sees the first `count` writes of a session. A vector never forgets.
    pub fn raise(&mut self, session: &Session, count: u64) {
        let entry = self.0.entry(session.clone()).or_insert(0);
        *entry = (*entry).max(count);
    }

    /// Whether a write has been seen.
    pub fn has(&self, session: &str, count: u64) -> bool {
        self.get(session) >= count
    }

    /// Sees what the other has seen.
    pub fn join(&mut self, other: &Self) {
        other.0.iter().for_each(|(session, count)| self.raise(session, *count));
    }

    /// Whether everything that the other has seen has been seen.
    pub fn covers(&self, other: &Self) -> bool {
        other.0.iter().all(|(session, count)| self.has(session, *count))
    }

    /// Whether there is a write that both have seen.
    pub fn meets(&self, other: &Self) -> bool {
        other.0.iter().any(|(session, count)| (*count).min(self.get(session)) > 0)
    }

    /// How this vector relates to another.
    pub fn relation(&self, other: &Self) -> Relation {
        match (self.covers(other), other.covers(self)) {
            (true, true) => Relation::Equal,
            (true, false) => Relation::Dominating,
            (false, true) => Relation::Dominated,
            (false, false) => Relation::Concurrent,
        }
    }

    /// The number of sessions.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing has been seen.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The sessions and how many of their writes have been seen.
    pub fn iter(&self) -> impl Iterator<Item = (&Session, u64)> {
        self.0.iter().map(|(session, count)| (session, *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(entries: &[(&str, u64)]) -> Vector {
        let mut vector = Vector::default();
        entries.iter().for_each(|(session, count)| vector.raise(&(*session).into(), *count));
        vector
    }

    #[test]
    fn vectors_are_equal_dominated_or_concurrent() {
        let (a, b) = (vector(&[("a", 2)]), vector(&[("a", 2), ("b", 1)]));
        assert_eq!(a.relation(&a), Relation::Equal);
        assert_eq!(a.relation(&b), Relation::Dominated);
        assert_eq!(b.relation(&a), Relation::Dominating);
        assert_eq!(b.relation(&vector(&[("a", 3)])), Relation::Concurrent);
        assert_eq!(Vector::default().relation(&a), Relation::Dominated);
    }

    #[test]
    fn the_join_covers_both_and_nothing_else() {
        let (a, b) = (vector(&[("a", 3), ("b", 1)]), vector(&[("b", 2), ("c", 1)]));
        let mut joined = a.clone();
        joined.join(&b);
        assert!(joined.covers(&a) && joined.covers(&b));
        assert_eq!(joined, vector(&[("a", 3), ("b", 2), ("c", 1)]));
        assert!(a.meets(&b) && !a.meets(&vector(&[("c", 1)])));
    }

    #[test]
    fn a_vector_never_goes_back() {
        let mut a = vector(&[("a", 3)]);
        a.raise(&"a".into(), 1);
        assert_eq!(a.get("a"), 3);
    }
}
