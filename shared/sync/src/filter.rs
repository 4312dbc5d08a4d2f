//! Which keys a sync carries, and which may leave their session at all.

use chrono::{DateTime, Utc};
use contract::{AccessLevel, ContextType, MemoryTier};
use serde::{Deserialize, Serialize};

use crate::cell::Cell;
use crate::key::Key;

/// What a request asks for. An empty list asks for everything; several lists must all be met.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// These keys, and those of `prefixes`.
    pub keys: Vec<String>,
    /// Keys that begin with one of these, and those of `keys`.
    pub prefixes: Vec<String>,
    /// Contexts of these types. A memory of an agent has none, so it is left out.
    pub types: Vec<ContextType>,
    /// Contexts of these access levels. A memory of an agent has a tier instead, so it is left out.
    pub access_levels: Vec<AccessLevel>,
    /// Memories of agents in these tiers. A context has none, so it is left out.
    pub tiers: Vec<MemoryTier>,
}

impl Filter {
    /// Whether the request asks for a key.
    pub fn matches(&self, key: &Key, cell: &Cell) -> bool {
        let attributes = &cell.attributes;
        let named = self.keys.is_empty() && self.prefixes.is_empty()
            || self.keys.iter().any(|name| name == key.name())
            || self.prefixes.iter().any(|prefix| key.name().starts_with(prefix.as_str()));
        let (typed, levelled, tiered) = match key {
            Key::Context(_) => (
                self.types.is_empty() || attributes.context_type.is_some_and(|of| self.types.contains(&of)),
                self.access_levels.is_empty() || self.access_levels.contains(&attributes.access_level),
                self.tiers.is_empty(),
            ),
            Key::Agent { tier, .. } => (
                self.types.is_empty(),
                self.access_levels.is_empty(),
                self.tiers.is_empty() || self.tiers.contains(tier),
            ),
        };
        named && typed && levelled && tiered
    }
}

/// What the token of a request allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// The scope `sync:private`: what is private may leave its session.
    pub private: bool,
}

/// Why a key stays in its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stays {
    /// It is private, and the token has no scope `sync:private`.
    Private,
    /// It has expired.
    Expired,
    /// It was removed before any sync carried it, so no other session has it from this one.
    Removed,
}

/// Whether a key may leave its session.
///
/// # Errors
/// Why not.
pub fn crosses(key: &Key, cell: &Cell, scope: Scope, now: DateTime<Utc>) -> Result<(), Stays> {
    let private = match key {
        Key::Context(_) => cell.attributes.access_level == AccessLevel::Private,
        Key::Agent { tier, .. } => *tier == MemoryTier::Private,
    };
    if private && !scope.private {
        Err(Stays::Private)
    } else if cell.value.is_some() && cell.attributes.expires_at.is_some_and(|at| at <= now) {
        Err(Stays::Expired)
    } else if cell.value.is_none() && cell.state.is_none() {
        Err(Stays::Removed)
    } else {
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::{Attributes, Json, KeyState};

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_000, 0).unwrap()
    }

    fn cell(access_level: AccessLevel) -> Cell {
        Cell::new(Json::Null, Attributes { access_level, ..Attributes::default() }, now())
    }

    fn agent(tier: MemoryTier) -> Key {
        Key::Agent { agent: "a".into(), tier, name: "hotel.area".into() }
    }

    #[test]
    fn private_needs_the_scope_and_the_rest_crosses() {
        let (key, scope) = (Key::Context("k".into()), Scope { private: true });
        let without = |level| crosses(&key, &cell(level), Scope::default(), now());
        assert_eq!(without(AccessLevel::Private), Err(Stays::Private));
        assert_eq!(without(AccessLevel::Shared), Ok(()));
        assert_eq!(without(AccessLevel::Public), Ok(()));
        assert_eq!(crosses(&key, &cell(AccessLevel::Private), scope, now()), Ok(()));
        let tier = |tier, scope| crosses(&agent(tier), &cell(AccessLevel::Private), scope, now());
        assert_eq!(tier(MemoryTier::Private, Scope::default()), Err(Stays::Private));
        assert_eq!(tier(MemoryTier::Private, scope), Ok(()));
        assert_eq!(tier(MemoryTier::Shared, Scope::default()), Ok(()));
        assert_eq!(tier(MemoryTier::Consensus, Scope::default()), Ok(()));
    }

    #[test]
    fn what_has_expired_never_crosses() {
        let key = Key::Context("k".into());
        let mut cell = cell(AccessLevel::Shared);
        for (at, expected) in [(999, Err(Stays::Expired)), (1_000, Err(Stays::Expired)), (1_001, Ok(()))] {
            cell.attributes.expires_at = DateTime::from_timestamp(at, 0);
            assert_eq!(crosses(&key, &cell, Scope { private: true }, now()), expected);
        }
        // What is removed does not expire: its removal crosses.
        cell.attributes.expires_at = DateTime::from_timestamp(999, 0);
        (cell.value, cell.state) = (None, Some(KeyState::default()));
        assert_eq!(crosses(&key, &cell, Scope::default(), now()), Ok(()));
    }

    #[test]
    fn a_removal_crosses_where_the_key_has_crossed() {
        let key = Key::Context("k".into());
        let mut cell = cell(AccessLevel::Shared);
        cell.write(None, cell.attributes.clone(), now());
        assert_eq!(crosses(&key, &cell, Scope::default(), now()), Err(Stays::Removed));
        cell.state = Some(KeyState::default());
        assert_eq!(crosses(&key, &cell, Scope::default(), now()), Ok(()));
    }

    #[test]
    fn a_filter_asks_for_all_of_its_lists() {
        let context = Key::Context("hotel.area".into());
        let cell = cell(AccessLevel::Shared);
        let filter = |change: fn(&mut Filter)| {
            let mut filter = Filter::default();
            change(&mut filter);
            (filter.matches(&context, &cell), filter.matches(&agent(MemoryTier::Shared), &cell))
        };
        assert_eq!(filter(|_| ()), (true, true));
        assert_eq!(filter(|f| f.keys.push("hotel.area".into())), (true, true));
        assert_eq!(filter(|f| f.keys.push("hotel".into())), (false, false));
        assert_eq!(filter(|f| f.prefixes.push("hotel.".into())), (true, true));
        assert_eq!(filter(|f| f.types.push(ContextType::Conversation)), (true, false));
        assert_eq!(filter(|f| f.types.push(ContextType::State)), (false, false));
        assert_eq!(filter(|f| f.access_levels.push(AccessLevel::Shared)), (true, false));
        assert_eq!(filter(|f| f.access_levels.push(AccessLevel::Public)), (false, false));
        assert_eq!(filter(|f| f.tiers.push(MemoryTier::Shared)), (false, true));
        assert_eq!(filter(|f| f.tiers.push(MemoryTier::Private)), (false, false));
        assert_eq!(
            filter(|f| {
                f.prefixes.push("hotel.".into());
                f.types.push(ContextType::State);
            }),
            (false, false)
        );
        assert_eq!(
            filter(|f| {
                f.prefixes.push("train.".into());
                f.keys.push("hotel.area".into());
            }),
            (true, true)
        );
    }
}
