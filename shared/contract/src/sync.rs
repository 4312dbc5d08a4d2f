use std::fmt;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::agent::MemoryTier;
use crate::context::{AccessLevel, ContextType};
use crate::facts::{Prerequisite, RequestFacts};
use crate::json::Json;
use crate::label::labels;
use crate::malformed::Malformed;
use crate::value::{List, Name, SessionId, Text};

/// The noun and the verb of the scope with which a sync also carries what is private. `sync:start` does not include it.
pub const SYNC_PRIVATE: (&str, &str) = ("sync", "private");

labels! {
    /// What a sync carries. The PostgreSQL enumeration `sync_type`.
    SyncType {
        /// The contexts and the memories of agents of the source, once.
        ContextTransfer = "context_transfer",
        /// References to the validated nodes of the knowledge graph that the source knows, once.
        KnowledgeShare = "knowledge_share",
        /// The contexts and the memories of agents of the source, again after each change, until one of the sessions ends.
        StateSync = "state_sync",
    }
}

labels! {
    /// How far a sync is. The PostgreSQL enumeration `sync_status`.
    SyncStatus {
        /// It is stored, and nothing has been carried yet.
        Pending = "pending",
        /// Some keys have been carried, and others follow; or it follows its source.
        InProgress = "in_progress",
        /// All has been carried that could be; or it has been stopped, or a session that it followed has ended.
        Completed = "completed",
        /// One of its sessions ended before all was carried.
        Failed = "failed",
    }
}

labels! {
    /// Why a sync carries no more.
    SyncEnd {
        /// All was carried.
        Carried = "carried",
        /// It was stopped.
        Stopped = "stopped",
        /// Its source ended.
        SourceEnded = "source-ended",
        /// Its target ended.
        TargetEnded = "target-ended",
        /// Its time was over.
        Expired = "expired",
        /// It was undone.
        Undone = "undone",
        /// The service that started it was disabled, or has no scope for it any more.
        NotAllowed = "not-allowed",
    }
}

labels! {
    /// What a sync did to a key of its target.
    SyncEffect {
        /// The target did not have it.
        Created = "created",
        /// The source knew all that the target knew.
        FastForward = "fast-forward",
        /// Both had written it.
        Merged = "merged",
        /// Its values cannot be merged; it stayed as it was in both sessions.
        Failed = "failed",
        /// The target refers to the node now.
        Referenced = "referenced",
    }
}

labels! {
    /// How concurrent writes of a key become one value.
    MergeRule {
        /// The sum of what each session added.
        Counter = "counter",
        /// A set of items.
        Set = "set",
        /// The latest write.
        Preference = "preference",
        /// Items that are identified by a member.
        List = "list",
        /// Blocks of text.
        Text = "text",
        /// Never merged: each session keeps its own.
        Fact = "fact",
        /// As `fact`, for agreed knowledge.
        Consensus = "consensus",
    }
}

labels! {
    /// How sessions came into conflict.
    ConflictCause {
        /// They wrote the same part, differently.
        Edited = "edited",
        /// One removed what another edited.
        Removed = "removed",
        /// They wrote values that have no parts in common, such as a string and an object.
        Shape = "shape",
        /// They gave the key different attributes.
        Attributes = "attributes",
    }
}

/// Which keys a sync carries. An empty list asks for everything; several lists must all be met.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SyncFilter {
    /// These keys, and those of `prefixes`. For a `knowledge_share`: the keys of nodes.
    pub keys: List<Name, 256>,
    /// Keys that begin with one of these, and those of `keys`.
    pub prefixes: List<Name, 64>,
    /// Contexts of these types. A memory of an agent has none, so it is left out.
    pub types: List<ContextType, 3>,
    /// Contexts of these access levels. A memory of an agent has a tier instead, so it is left out.
    pub access_levels: List<AccessLevel, 3>,
    /// Memories of agents in these tiers. A context has none, so it is left out.
    pub tiers: List<MemoryTier, 3>,
}

/// Carries the memory of one session into another of the same user. What both have written is merged key by key; what a rule decides
/// is on record. Expired keys never cross, private ones with the scope `sync:private` only.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SyncStart {
    /// The id of the sync, unique for the user.
    pub sync_id: Uuid,
    /// The session that is read. It must be open.
    pub source_session_id: SessionId,
    /// The session that is written. It must be open.
    pub target_session_id: SessionId,
    /// What is carried.
    pub sync_type: SyncType,
    /// Which keys. Absent: all.
    #[serde(default)]
    pub filter: SyncFilter,
    /// When a `state_sync` ends. Absent: when one of its sessions ends, or when it is stopped.
    #[serde(default, deserialize_with = "crate::time::read")]
    pub expires_at: Option<DateTime<Utc>>,
}

/// Stops a sync that is not completed. What it has carried stays.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SyncStop {
    /// The sync.
    pub sync_id: Uuid,
    /// Why.
    #[serde(default)]
    pub reason: Option<Text<1, 2048>>,
}

/// Takes back what a sync wrote into its target, key by key, where nothing newer depends on it. What stays is named in the event. A
/// sync that still runs is stopped.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SyncUndo {
    /// The sync.
    pub sync_id: Uuid,
    /// Why.
    #[serde(default)]
    pub reason: Option<Text<1, 2048>>,
}

impl RequestFacts for SyncStart {
    // No session: a token for one session may not reach another, so it starts no sync.

    fn event_session(&self) -> &str {
        self.source_session_id.as_str()
    }

    fn prerequisite(&self) -> Prerequisite<'_> {
        Prerequisite::Session(&self.target_session_id)
    }

    fn check(&self) -> Result<(), Malformed> {
        if self.source_session_id == self.target_session_id {
            return Err(Malformed::new("target_session_id", "is the source; a sync is between two sessions"));
        }
        if self.expires_at.is_some() && self.sync_type != SyncType::StateSync {
            return Err(Malformed::new(
                "expires_at",
                "is for a state_sync only; other syncs end by themselves",
            ));
        }
        let SyncFilter { types, access_levels, tiers, .. } = &self.filter;
        let of_contexts = [
            ("filter.types", types.as_slice().is_empty()),
            ("filter.access_levels", access_levels.as_slice().is_empty()),
            ("filter.tiers", tiers.as_slice().is_empty()),
        ];
        match of_contexts.iter().find(|(_, is_empty)| !is_empty) {
            Some((field, _)) if self.sync_type == SyncType::KnowledgeShare => Err(Malformed::new(
                *field,
                "does not apply to nodes; a knowledge_share has keys and prefixes only",
            )),
            Some(_) | None => Ok(()),
        }
    }

    fn unchanged_reason(&self) -> &'static str {
        "a sync with this sync_id exists already"
    }

    fn widening_scope(&self) -> Option<(&'static str, &'static str)> {
        Some(SYNC_PRIVATE)
    }
}

impl RequestFacts for SyncStop {
    fn prerequisite(&self) -> Prerequisite<'_> {
        Prerequisite::Sync(self.sync_id)
    }

    fn unchanged_reason(&self) -> &'static str {
        "the sync has ended already"
    }
}

impl RequestFacts for SyncUndo {
    fn prerequisite(&self) -> Prerequisite<'_> {
        Prerequisite::Sync(self.sync_id)
    }

    fn unchanged_reason(&self) -> &'static str {
        "nothing of the sync is left that can be taken back"
    }
}

/// How many keys a sync has carried so far. The column `cross_service_memory_sync.data_transferred`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SyncCounts {
    /// Keys that the target did not have.
    pub created: u64,
    /// Keys of which the source knew all that the target knew.
    pub fast_forwarded: u64,
    /// Keys that both had written.
    pub merged: u64,
    /// Keys of the last round that the target knew already.
    pub unchanged: u64,
    /// Keys of the last round that cannot be merged.
    pub failed: u64,
    /// Keys of the last round that are private, and stayed.
    pub private: u64,
    /// Keys of the last round that have expired, and stayed.
    pub expired: u64,
    /// Keys of the last round that were removed before they ever crossed.
    pub removed: u64,
    /// Keys of the last round that stayed because they are stored encrypted, and only a request under a token may decrypt them.
    pub encrypted: u64,
    /// Keys that the next round goes on with.
    pub left: u64,
    /// What rules decided, and what lost by it.
    pub conflicts: u64,
    /// Facts that sessions state differently, raised as disputed nodes.
    pub disputes: u64,
    /// Nodes that the target got a reference to.
    pub references: u64,
    /// Nodes of the last round that are not validated, or superseded.
    pub withheld: u64,
}

/// A key of a target that was written, as it is stored now. Part of the payloads of `sync.carried` and `sync.undone`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SyncedKey {
    /// The key.
    pub context_key: String,
    /// The agent, of a memory of an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    /// The tier, of a memory of an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_tier: Option<MemoryTier>,
    /// What was done. Absent: it was restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<SyncEffect>,
    /// The value, or a marker if it is stored encrypted only. Absent: it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::json::present")]
    pub context_value: Option<Json>,
    /// The version, which a sync does not change. Absent: there is no such key any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<i64>,
    /// The kind of a context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_type: Option<ContextType>,
    /// Where a context may be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_level: Option<AccessLevel>,
    /// The priority of a context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// When it expires.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::time::read")]
    pub expires_at: Option<DateTime<Utc>>,
    /// Whether a context is kept when the retention period of the session ends.
    #[serde(default)]
    pub is_persistent: bool,
    /// Whether a memory of an agent may be promoted to a wider tier.
    #[serde(default)]
    pub is_shareable: bool,
    /// Whether the value is stored encrypted only.
    #[serde(default)]
    pub sensitive: bool,
}

/// A key that was not synced, or not restored, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SyncProblem {
    /// The key.
    pub context_key: String,
    /// The agent, of a memory of an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    /// The tier, of a memory of an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_tier: Option<MemoryTier>,
    /// Why, and what to do.
    pub reason: String,
}

/// The payload of `sync.carried`, in the session of the target: what a round of a sync wrote. A large round causes several.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SyncCarried {
    /// The sync.
    pub sync_id: Uuid,
    /// Its source.
    pub source_session_id: String,
    /// Its target.
    pub target_session_id: String,
    /// The keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<SyncedKey>,
    /// Nodes that the target got a reference to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<Uuid>,
}

/// The payload of `sync.completed`, `sync.failed` and `sync.stopped`, in the sessions of the source and of the target.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SyncEnded {
    /// The sync.
    pub sync_id: Uuid,
    /// Its source.
    pub source_session_id: String,
    /// Its target.
    pub target_session_id: String,
    /// What it carried.
    pub sync_type: SyncType,
    /// Why it carries no more.
    pub end_reason: SyncEnd,
    /// How much it has carried.
    pub transferred: SyncCounts,
    /// Keys of the last round that cannot be merged, a hundred at most; `transferred` has their number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<SyncProblem>,
    /// Why it was stopped, as the request says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The payload of `sync.undone`, in the session of the target.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SyncUndone {
    /// The sync.
    pub sync_id: Uuid,
    /// Its source.
    pub source_session_id: String,
    /// Its target.
    pub target_session_id: String,
    /// Keys that are as they were before the sync. A large undo causes several events.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restored: Vec<SyncedKey>,
    /// Nodes that the target does not refer to any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<Uuid>,
    /// Keys that stay, and what depends on them, a hundred at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dependents: Vec<SyncProblem>,
    /// How many keys stay.
    pub staying: u64,
    /// Why it was undone, as the request says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The payload of `sync.disputed`, in the session of the target: sessions state a fact differently. Both values stay.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SyncDisputed {
    /// The sync.
    pub sync_id: Uuid,
    /// The disputed node that was raised.
    pub node_id: Uuid,
    /// The key.
    pub context_key: String,
    /// The agent, of a memory of an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    /// The tier, of a memory of an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_tier: Option<MemoryTier>,
    /// The sessions that state a value of their own.
    pub sessions: Vec<String>,
}

/// A value that was written concurrently.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SyncCandidate {
    /// The session that wrote it.
    pub session_id: String,
    /// The number of its writes of the key until then.
    pub write: u64,
    /// When, on the hybrid logical clock.
    pub written_at: DateTime<Utc>,
    /// The value, as JSON; absent: removed. A marker takes the place of what is stored encrypted only.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::json::present")]
    pub value: Option<Json>,
}

/// What a rule decided about one part of a value, and what lost. Stored in `sync_changes.conflicts`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SyncConflict {
    /// The part of the value; empty: all of it.
    pub path: String,
    /// How it came about.
    pub cause: ConflictCause,
    /// The rule that decided.
    pub rule: MergeRule,
    /// The value of the common ancestor; absent: there was none, or it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::json::present")]
    pub base: Option<Json>,
    /// The value in the target before; absent: it had none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::json::present")]
    pub ours: Option<Json>,
    /// The value in the source; absent: it had none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::json::present")]
    pub theirs: Option<Json>,
    /// The value in the target after; absent: removed.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::json::present")]
    pub kept: Option<Json>,
    /// What is not visible any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<SyncCandidate>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn null_is_a_value_and_a_removal_is_none() {
        for (value, expected) in [(r#","value":null"#, Some("null")), ("", None)] {
            let text =
                format!(r#"{{"session_id":"a","write":1,"written_at":"2026-01-01T00:00:00Z"{value}}}"#);
            let candidate: SyncCandidate = serde_json::from_str(&text).unwrap();
            assert_eq!(candidate.value.as_ref().map(Json::as_str), expected);
            assert_eq!(serde_json::to_string(&candidate).unwrap(), text);
        }
    }
}
