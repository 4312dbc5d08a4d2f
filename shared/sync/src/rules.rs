//! Which rule merges a key, and all limits: one file, with a version and a hash.

use std::collections::BTreeMap;

use contract::{ContextType, MemoryTier};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::key::{Attributes, Key};

const CURRENT: &str = include_str!("../rules.toml");

/// Why a rule file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// The text is no rule file.
    #[error("the rule file cannot be read: {0}")]
    Syntax(#[from] toml::de::Error),
    /// A limit is outside of its range.
    #[error("the rule file has {name} = {value}; it must be from {least} to {most}")]
    Range {
        /// The name of the limit.
        name: &'static str,
        /// Its value.
        value: usize,
        /// The least value that it may have.
        least: usize,
        /// The greatest one.
        most: usize,
    },
    /// A rule of lists without the member that identifies an item, or another rule with one.
    #[error(
        "the rule {rule}: `id` names the member that identifies an item; lists need it, other rules have none"
    )]
    Id {
        /// Where the rule is.
        rule: String,
    },
    /// Two rules have the same prefix.
    #[error("the rule file has the prefix {prefix:?} twice")]
    Twice {
        /// The prefix.
        prefix: String,
    },
}

/// Which rules something was merged under.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RulesId {
    /// The version.
    pub version: u32,
    /// The SHA-256 of the rule file, in hexadecimal.
    pub sha256: String,
}

/// How concurrent writes of the same path become one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Merging {
    /// An integer is the sum of what each session added to it.
    Counter,
    /// An array is a set. An item is removed if its removal knew of everybody who added it.
    Set,
    /// The last write on the hybrid logical clock.
    Preference,
    /// An array of objects that are identified by a member. Items merge like members of an object.
    List,
    /// Strings merge by blocks of their longest common subsequence. Of blocks that both changed, both stay.
    Text,
    /// Never merged: each session keeps its own, and the dispute is reported.
    Fact,
    /// As [`Merging::Fact`], for agreed knowledge.
    Consensus,
}

impl Merging {
    /// Whether the value is one whole: who states a fact states all of it.
    pub(crate) fn is_atomic(self) -> bool {
        match self {
            Self::Fact | Self::Consensus => true,
            Self::Counter | Self::Set | Self::Preference | Self::List | Self::Text => false,
        }
    }

    /// Whether values of other types than the rule's cannot be merged.
    pub(crate) fn is_typed(self) -> bool {
        match self {
            Self::Counter | Self::Set | Self::List => true,
            Self::Preference | Self::Text | Self::Fact | Self::Consensus => false,
        }
    }
}

/// What becomes of a key that is removed in one session and edited in another, which did not know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deletion {
    /// It stays, as the edit left it.
    EditWins,
    /// It is removed.
    DeletionWins,
    /// The later of the two decides.
    Newest,
}

/// The rule of a key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// How values of the same path merge.
    pub merge: Merging,
    /// What becomes of a key that is removed and edited.
    pub deletion: Deletion,
    /// The member that identifies an item of a list.
    #[serde(default)]
    pub id: Option<String>,
}

/// Limits of a sync.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// The deepest nesting of a value.
    pub depth: usize,
    /// The largest value, in bytes.
    pub value_bytes: usize,
    /// The largest state of a key, in bytes.
    pub state_bytes: usize,
    /// Most sessions that ever wrote a key.
    pub sessions: usize,
    /// Most keys of one sync.
    pub keys: usize,
    /// Most cells of tables of longest common subsequences for one text.
    pub text_cells: usize,
    /// Most of them for all texts of a key.
    pub key_cells: usize,
    /// Most possible ancestors that a text keeps.
    pub text_bases: usize,
    /// Most conflicts of one key in one sync.
    pub conflicts: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClockRules {
    ahead_ms: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PrefixRule {
    prefix: String,
    merge: Merging,
    deletion: Deletion,
    #[serde(default)]
    id: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    limits: Limits,
    clock: ClockRules,
    fallback: Rule,
    #[serde(default)]
    types: BTreeMap<ContextTypeName, Rule>,
    #[serde(default)]
    tiers: BTreeMap<TierName, Rule>,
    #[serde(default)]
    prefix: Vec<PrefixRule>,
}

#[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "kebab-case")]
enum ContextTypeName {
    Conversation,
    Preference,
    State,
}

#[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "kebab-case")]
enum TierName {
    Private,
    Shared,
    Consensus,
}

/// The rules, and the hash of the file that they come from.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Version and hash.
    pub id: RulesId,
    /// Limits.
    pub limits: Limits,
    /// How far a write may be ahead of the time at which it is synced, in milliseconds.
    pub ahead_ms: u32,
    fallback: Rule,
    types: Vec<(ContextType, Rule)>,
    tiers: Vec<(MemoryTier, Rule)>,
    prefixes: BTreeMap<String, Rule>,
}

impl Rules {
    /// The rules that this version of the program merges by.
    ///
    /// # Errors
    /// Never with the file that is compiled in; a test reads it.
    pub fn current() -> Result<Self, RulesError> {
        Self::parse(CURRENT)
    }

    /// Reads a rule file.
    ///
    /// # Errors
    /// If it is not one, or a limit is outside of its range.
    pub fn parse(text: &str) -> Result<Self, RulesError> {
        let file: File = toml::from_str(text)?;
        let sha256 = data_encoding::HEXLOWER.encode(&Sha256::digest(text.as_bytes()));
        let mut prefixes = BTreeMap::new();
        for PrefixRule { prefix, merge, deletion, id } in file.prefix {
            if prefixes.insert(prefix.clone(), Rule { merge, deletion, id }).is_some() {
                return Err(RulesError::Twice { prefix });
            }
        }
        let rules = Self {
            id: RulesId { version: file.version, sha256 },
            limits: file.limits,
            ahead_ms: file.clock.ahead_ms,
            fallback: file.fallback,
            types: file.types.into_iter().map(|(name, rule)| (name.into(), rule)).collect(),
            tiers: file.tiers.into_iter().map(|(name, rule)| (name.into(), rule)).collect(),
            prefixes,
        };
        rules.check()?;
        Ok(rules)
    }

    fn check(&self) -> Result<(), RulesError> {
        let l = &self.limits;
        for (name, value, least, most) in [
            ("limits.depth", l.depth, 1, 64),
            ("limits.value_bytes", l.value_bytes, 1, 16 << 20),
            ("limits.state_bytes", l.state_bytes, 1, 64 << 20),
            ("limits.sessions", l.sessions, 2, 4_096),
            ("limits.keys", l.keys, 1, 1_000_000),
            ("limits.text_cells", l.text_cells, 0, 10_000_000),
            ("limits.key_cells", l.key_cells, l.text_cells, 10_000_000),
            ("limits.text_bases", l.text_bases, 1, 64),
            ("limits.conflicts", l.conflicts, 1, 10_000),
            ("clock.ahead_ms", self.ahead_ms as usize, 0, 60_000),
        ] {
            if !(least..=most).contains(&value) {
                return Err(RulesError::Range { name, value, least, most });
            }
        }
        let typed = self.types.iter().map(|(name, rule)| (format!("types.{}", name.as_str()), rule));
        let tiers = self.tiers.iter().map(|(name, rule)| (format!("tiers.{}", name.as_str()), rule));
        let prefixes = self.prefixes.iter().map(|(prefix, rule)| (format!("prefix {prefix:?}"), rule));
        let fallback = std::iter::once(("fallback".to_owned(), &self.fallback));
        let mut all = fallback.chain(typed).chain(tiers).chain(prefixes);
        match all.find(|(_, rule)| (rule.merge == Merging::List) != rule.id.is_some()) {
            Some((rule, _)) => Err(RulesError::Id { rule }),
            None => Ok(()),
        }
    }

    /// The rule of a key: that of its longest prefix, else of its tier, else of its context type, else the fallback.
    pub fn rule(&self, key: &Key, attributes: &Attributes) -> &Rule {
        let (name, tier) = match key {
            Key::Context(name) => (name, None),
            Key::Agent { name, tier, .. } => (name, Some(*tier)),
        };
        let prefix = || {
            let prefixes = self.prefixes.iter().filter(|(prefix, _)| name.starts_with(prefix.as_str()));
            prefixes.max_by_key(|(prefix, _)| prefix.len()).map(|(_, rule)| rule)
        };
        let of_tier = || self.tiers.iter().find(|(of, _)| Some(*of) == tier).map(|(_, rule)| rule);
        let of_type =
            || self.types.iter().find(|(of, _)| Some(*of) == attributes.context_type).map(|(_, rule)| rule);
        prefix().or_else(of_tier).or_else(of_type).unwrap_or(&self.fallback)
    }
}

impl From<ContextTypeName> for ContextType {
    fn from(name: ContextTypeName) -> Self {
        match name {
            ContextTypeName::Conversation => Self::Conversation,
            ContextTypeName::Preference => Self::Preference,
            ContextTypeName::State => Self::State,
        }
    }
}

impl From<TierName> for MemoryTier {
    fn from(name: TierName) -> Self {
        match name {
            TierName::Private => Self::Private,
            TierName::Shared => Self::Shared,
            TierName::Consensus => Self::Consensus,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_rules_are_valid() {
        let rules = Rules::current().unwrap();
        assert_eq!(rules.id.version, 2);
        assert_eq!(rules.id.sha256.len(), 64);
        assert_eq!(rules.limits.depth, contract::limit::JSON_DEPTH);
        assert_eq!(rules.limits.value_bytes, contract::limit::BODY_BYTES);
    }

    #[test]
    fn the_longest_prefix_decides_then_the_tier_then_the_type() {
        let extra = "[[prefix]]\nprefix = \"count.set.\"\nmerge = \"set\"\ndeletion = \"newest\"\n";
        let rules = Rules::parse(&format!("{CURRENT}\n{extra}")).unwrap();
        let merge = |key: Key, context_type| {
            rules.rule(&key, &Attributes { context_type, ..Attributes::default() }).merge
        };
        let preference = Some(ContextType::Preference);
        assert_eq!(merge(Key::Context("count.x".into()), preference), Merging::Counter);
        assert_eq!(merge(Key::Context("count.set.x".into()), preference), Merging::Set);
        assert_eq!(merge(Key::Context("counts".into()), preference), Merging::Preference);
        let agent = |tier, name: &str| Key::Agent { agent: "a".into(), tier, name: name.into() };
        assert_eq!(merge(agent(MemoryTier::Consensus, "x"), None), Merging::Consensus);
        assert_eq!(merge(agent(MemoryTier::Consensus, "fact.x"), None), Merging::Fact);
        assert_eq!(merge(agent(MemoryTier::Shared, "x"), None), Merging::Preference);
    }

    #[test]
    fn a_file_that_makes_no_sense_is_refused() {
        let refused = |from: &str, to: &str| {
            let text = CURRENT.replacen(from, to, 1);
            assert_ne!(text, CURRENT, "{from}");
            Rules::parse(&text).unwrap_err()
        };
        assert!(matches!(refused("depth = 64", "depth = 65"), RulesError::Range { .. }));
        assert!(matches!(refused("sessions = 64", "sessions = 1"), RulesError::Range { .. }));
        // One text must not make its key fail: it is kept twice.
        assert!(matches!(refused("key_cells = 500000", "key_cells = 249999"), RulesError::Range { .. }));
        assert!(matches!(refused("ahead_ms = 500", "ahead_ms = 60001"), RulesError::Range { .. }));
        assert!(matches!(refused("id = \"id\"\n", ""), RulesError::Id { .. }));
        assert!(matches!(refused("prefix = \"set.\"", "prefix = \"count.\""), RulesError::Twice { .. }));
        assert!(matches!(refused("merge = \"set\"", "merge = \"bag\""), RulesError::Syntax(_)));
    }
}
