use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Cursor, Limit, QueryKind, QueryType, default_limit};
use crate::agent::MemoryTier;
use crate::sync::{
    SyncCandidate, SyncConflict, SyncCounts, SyncEffect, SyncEnd, SyncFilter, SyncStatus, SyncType,
};
use crate::value::{Name, SessionId};

/// Lists syncs, the latest first.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SyncStatusRead {
    /// Only this sync.
    #[serde(default)]
    pub sync_id: Option<Uuid>,
    /// Only syncs from or into this session.
    #[serde(default)]
    pub session_id: Option<SessionId>,
    /// Only syncs of this type.
    #[serde(default)]
    pub sync_type: Option<SyncType>,
    /// Only syncs that are as far as this.
    #[serde(default)]
    pub sync_status: Option<SyncStatus>,
    /// The start of the page: `next_cursor` of the previous page.
    #[serde(default)]
    pub cursor: Option<Cursor>,
    /// The maximum number of syncs.
    #[serde(default = "default_limit")]
    pub limit: Limit,
}

impl QueryType for SyncStatusRead {
    type Answer = SyncPage;

    const KIND: &'static QueryKind = &QueryKind::new::<Self>(
        "sync",
        "status",
        "Syncs between sessions by session, type and state, the latest first.",
    );

    // Two sessions, so a token for one of them reads none.
    fn session_id(&self) -> Option<&str> {
        None
    }
}

/// A sync.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SyncInfo {
    /// Its id.
    pub sync_id: Uuid,
    /// The session that is read.
    pub source_session_id: String,
    /// The session that is written.
    pub target_session_id: String,
    /// What is carried.
    pub sync_type: SyncType,
    /// How far it is.
    pub sync_status: SyncStatus,
    /// Why it carries no more. Absent: it still does.
    pub end_reason: Option<SyncEnd>,
    /// Which keys.
    pub filter: SyncFilter,
    /// Whether it carries what is private.
    pub crosses_private: bool,
    /// The service that started it.
    pub service: String,
    /// When it ends. Absent: not at a time.
    pub expires_at: Option<DateTime<Utc>>,
    /// How often it has written.
    pub rounds: i64,
    /// How much it has carried.
    pub transferred: SyncCounts,
    /// When it was started.
    pub created_at: DateTime<Utc>,
    /// When it last carried something, or changed its state.
    pub updated_at: DateTime<Utc>,
    /// When it completed or failed.
    pub completed_at: Option<DateTime<Utc>>,
    /// When it was undone.
    pub undone_at: Option<DateTime<Utc>>,
}

/// A page of syncs.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SyncPage {
    /// The syncs.
    pub syncs: Vec<SyncInfo>,
    /// The cursor of the next page; absent on the last one.
    pub next_cursor: Option<String>,
}

/// Lists what syncs did to keys, and what was lost, the latest first.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SyncHistory {
    /// Only this sync.
    #[serde(default)]
    pub sync_id: Option<Uuid>,
    /// Only syncs into this session.
    #[serde(default)]
    pub session_id: Option<SessionId>,
    /// Only this key.
    #[serde(default)]
    pub context_key: Option<Name>,
    /// Whether only keys are listed in which rules decided something, which are disputed, or which cannot be merged.
    #[serde(default)]
    pub only_conflicts: bool,
    /// Whether encrypted values are decrypted; otherwise a marker takes their place.
    #[serde(default)]
    pub reveal: bool,
    /// The start of the page: `next_cursor` of the previous page.
    #[serde(default)]
    pub cursor: Option<Cursor>,
    /// The maximum number of keys.
    #[serde(default = "default_limit")]
    pub limit: Limit,
}

impl QueryType for SyncHistory {
    type Answer = SyncHistoryPage;

    const KIND: &'static QueryKind = &QueryKind::new::<Self>(
        "sync",
        "history",
        "What syncs did to keys: conflicts, the rule that decided, and what was lost, the latest first.",
    );

    // Two sessions, so a token for one of them reads none.
    fn session_id(&self) -> Option<&str> {
        None
    }
}

/// What a round of a sync did to a key.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SyncChangeInfo {
    /// The sync.
    pub sync_id: Uuid,
    /// Its source.
    pub source_session_id: String,
    /// Its target.
    pub target_session_id: String,
    /// Orders the changes of all syncs of a user.
    pub position: i64,
    /// The key; of a `knowledge_share`, that of the node.
    pub context_key: String,
    /// The agent, of a memory of an agent.
    pub agent_id: Option<String>,
    /// The tier, of a memory of an agent.
    pub memory_tier: Option<MemoryTier>,
    /// The node: the one that the target refers to now, or the disputed one that was raised.
    pub node_id: Option<Uuid>,
    /// What was done.
    pub effect: SyncEffect,
    /// Why the key cannot be merged.
    pub reason: Option<String>,
    /// What rules decided, and what lost.
    pub conflicts: Vec<SyncConflict>,
    /// What sessions state differently, in the order of time, if it is a fact.
    pub disputed: Vec<SyncCandidate>,
    /// Whether its values are stored encrypted only.
    pub sensitive: bool,
    /// When it was done.
    pub changed_at: DateTime<Utc>,
    /// When it was taken back.
    pub undone_at: Option<DateTime<Utc>>,
}

/// A page of what syncs did.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SyncHistoryPage {
    /// What was done.
    pub changes: Vec<SyncChangeInfo>,
    /// The cursor of the next page; absent on the last one.
    pub next_cursor: Option<String>,
}
