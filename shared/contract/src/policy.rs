use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::facts::RequestFacts;
use crate::label::labels;
use crate::malformed::Malformed;
use crate::number::Bounded;
use crate::session::ChatMode;
use crate::value::Text;

labels! {
    /// What a retention policy is about: a table, or the tombstones of all tables.
    RetainedTable {
        /// Contexts, from the end of their session. Persistent ones stay.
        Contexts = "simple_chat_context",
        /// Memories of agents, from the end of their session.
        AgentContexts = "agent_context_states",
        /// Sessions with their summaries, from their end. One that other rows refer to stays until they are gone.
        Sessions = "chat_mode_sessions",
        /// Routing decisions, from when they were logged.
        Decisions = "router_decision_log",
        /// Memories that searches find, from when they were last indexed. Those of validated nodes stay.
        Memories = "unified_memory_vectors",
        /// Syncs with what they changed, from their end. An older sync cannot be undone.
        Syncs = "cross_service_memory_sync",
        /// Events, from when they were appended.
        Events = "blackboard_events",
        /// The empty rows of removed contexts, memories of agents and memories, from the removal.
        Tombstones = "tombstones",
        /// The message ids by which repeated requests are recognized, from when they were received.
        Inbox = "inbox",
    }
}

labels! {
    /// What becomes of rows whose retention is over. The PostgreSQL enumeration `retention_action`.
    RetentionAction {
        /// They are deleted.
        Delete = "delete",
        /// They are written into an archive, then deleted. Not possible for memories, syncs, tombstones and the inbox.
        Archive = "archive",
        /// Texts are removed; numbers stay, for statistics.
        Anonymise = "anonymise",
    }
}

labels! {
    /// The access level of a context, or the tier of a memory of an agent.
    AccessTier {
        /// Of the session or of the agent itself.
        Private = "private",
        /// Of all sessions of the user, or of the agents that work together.
        Shared = "shared",
        /// Of everybody that the user shares with. Of contexts only.
        Public = "public",
        /// Agreed knowledge. Of memories of agents only.
        Consensus = "consensus",
    }
}

/// How long a stream keeps requests, in days. What recognizes a repeated or late request is kept for longer.
pub const STREAM_DAYS: i64 = 7;

/// A retention period in days.
pub type KeepDays = Bounded<1, 36_500>;

impl RetainedTable {
    /// Whether its rows belong to sessions, so that a policy can name a chat mode.
    pub fn has_chat_mode(self) -> bool {
        match self {
            Self::Contexts
            | Self::AgentContexts
            | Self::Sessions
            | Self::Decisions
            | Self::Memories
            | Self::Syncs => true,
            Self::Events | Self::Tombstones | Self::Inbox => false,
        }
    }

    /// The access tiers of its rows.
    pub fn tiers(self) -> &'static [AccessTier] {
        match self {
            Self::Contexts => &[AccessTier::Private, AccessTier::Shared, AccessTier::Public],
            Self::AgentContexts => &[AccessTier::Private, AccessTier::Shared, AccessTier::Consensus],
            Self::Sessions
            | Self::Decisions
            | Self::Memories
            | Self::Syncs
            | Self::Events
            | Self::Tombstones
            | Self::Inbox => &[],
        }
    }

    /// Whether its rows can be archived. Memories are in the vector store, too, and an old sync is of no use without the rows that it wrote.
    pub fn is_archivable(self) -> bool {
        match self {
            Self::Contexts | Self::AgentContexts | Self::Sessions | Self::Decisions | Self::Events => true,
            Self::Memories | Self::Syncs | Self::Tombstones | Self::Inbox => false,
        }
    }

    /// The shortest retention of its rows in days.
    pub fn least_days(self) -> i64 {
        match self {
            Self::Events | Self::Tombstones | Self::Inbox => STREAM_DAYS + 1,
            Self::Contexts
            | Self::AgentContexts
            | Self::Sessions
            | Self::Decisions
            | Self::Memories
            | Self::Syncs => 1,
        }
    }
}

/// Sets how long rows of a table are kept: those of the user, or, as user 0, those of all users who have no policy of
/// their own that applies. The most specific policy decides: the user's before the platform's, then one with a chat mode,
/// then one with an access tier. A legal hold comes before all policies.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyPut {
    /// The table.
    pub table: RetainedTable,
    /// Only rows of sessions in this chat mode. Absent: all rows.
    #[serde(default)]
    pub chat_mode: Option<ChatMode>,
    /// Only rows of this access tier. Absent: all rows.
    #[serde(default)]
    pub access_tier: Option<AccessTier>,
    /// How many days rows are kept.
    pub keep_days: KeepDays,
    /// What becomes of them then.
    pub action: RetentionAction,
}

/// Removes a retention policy. Rows are then kept as the next less specific policy says.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyRemove {
    /// The table of the policy.
    pub table: RetainedTable,
    /// The chat mode of the policy.
    #[serde(default)]
    pub chat_mode: Option<ChatMode>,
    /// The access tier of the policy.
    #[serde(default)]
    pub access_tier: Option<AccessTier>,
}

/// Places a legal hold, or releases it. Nothing that it covers is removed or anonymised, also not when it expires. A
/// hold of user 0 covers all users.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyHold {
    /// The id of the hold, with which it is changed and released.
    pub hold_id: Uuid,
    /// Only rows of this table. Absent: of all tables.
    #[serde(default)]
    pub table: Option<RetainedTable>,
    /// Only rows of sessions in this chat mode.
    #[serde(default)]
    pub chat_mode: Option<ChatMode>,
    /// Only rows of this access tier.
    #[serde(default)]
    pub access_tier: Option<AccessTier>,
    /// Why it is placed or released, such as the number of a case.
    pub reason: Text<1, 2048>,
    /// Whether the hold is released.
    #[serde(default)]
    pub released: bool,
}

fn check_rows(
    table: RetainedTable,
    chat_mode: Option<ChatMode>,
    access_tier: Option<AccessTier>,
) -> Result<(), Malformed> {
    if chat_mode.is_some() && !table.has_chat_mode() {
        return Err(Malformed::new("chat_mode", format!("rows of {table} belong to no chat mode; omit it")));
    }
    let Some(tier) = access_tier else { return Ok(()) };
    if table.tiers().contains(&tier) {
        return Ok(());
    }
    let known: Vec<&str> = table.tiers().iter().map(|tier| tier.as_str()).collect();
    let problem = match known.as_slice() {
        [] => format!("rows of {table} have no access tier; omit it"),
        known => format!("no row of {table} is {tier}; expected one of {}", known.join(", ")),
    };
    Err(Malformed::new("access_tier", problem))
}

impl RequestFacts for PolicyPut {
    fn check(&self) -> Result<(), Malformed> {
        check_rows(self.table, self.chat_mode, self.access_tier)?;
        let least = self.table.least_days();
        if self.keep_days.get() < least {
            let problem = format!(
                "{} is too short for {}: streams keep requests for {STREAM_DAYS} days, and what recognizes a late one is kept \
                 for {least} days at least",
                self.keep_days.get(),
                self.table
            );
            return Err(Malformed::new("keep_days", problem));
        }
        match self.action {
            RetentionAction::Delete => Ok(()),
            RetentionAction::Archive if self.table.is_archivable() => Ok(()),
            RetentionAction::Archive => Err(Malformed::new(
                "action",
                format!("rows of {} cannot be archived; use delete", self.table),
            )),
            RetentionAction::Anonymise if self.table == RetainedTable::Decisions => Ok(()),
            RetentionAction::Anonymise => Err(Malformed::new(
                "action",
                format!(
                    "rows of {} cannot be anonymised, only those of router_decision_log; use delete",
                    self.table
                ),
            )),
        }
    }

    fn unchanged_reason(&self) -> &'static str {
        "a later request has set or removed this policy"
    }
}

impl RequestFacts for PolicyRemove {
    fn check(&self) -> Result<(), Malformed> {
        check_rows(self.table, self.chat_mode, self.access_tier)
    }

    fn unchanged_reason(&self) -> &'static str {
        "a later request has set or removed this policy"
    }
}

impl RequestFacts for PolicyHold {
    fn check(&self) -> Result<(), Malformed> {
        if let Some(table) = self.table {
            check_rows(table, self.chat_mode, self.access_tier)?;
        }
        Ok(())
    }

    fn unchanged_reason(&self) -> &'static str {
        "a later request has changed this hold"
    }
}

/// A key that was removed from a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SweptKey {
    /// The key.
    pub context_key: String,
    /// The agent, of a memory of an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    /// The tier, of a memory of an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_tier: Option<String>,
}

/// The payload of `retention.swept`: what was removed from a session, or, in the session `@account`, from no session.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct RetentionSwept {
    /// Keys whose time was over. Their rows stay without a value, so that an older put does not restore them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expired: Vec<SweptKey>,
    /// Keys whose rows are gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<SweptKey>,
    /// How many rows were deleted, by table.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub deleted: std::collections::BTreeMap<String, u64>,
    /// The archives that removed rows are in, by table.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub archived: std::collections::BTreeMap<String, Uuid>,
    /// How many rows were anonymised, by table.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub anonymised: std::collections::BTreeMap<String, u64>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn refused(body: &str) -> String {
        match serde_json::from_str::<PolicyPut>(body) {
            Ok(put) => put.check().unwrap_err().to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_policy_that_cannot_be_kept_is_refused_with_the_reason() {
        for (body, reason) in [
            (r#"{"table":"inbox","keep_days":7,"action":"delete"}"#, "keep_days: 7 is too short for inbox"),
            (r#"{"table":"blackboard_events","keep_days":1,"action":"delete"}"#, "is too short"),
            (
                r#"{"table":"router_decision_log","keep_days":0,"action":"delete"}"#,
                "0 is not between 1 and 36500",
            ),
            (
                r#"{"table":"unified_memory_vectors","keep_days":30,"action":"archive"}"#,
                "rows of unified_memory_vectors cannot be archived; use delete",
            ),
            (r#"{"table":"chat_mode_sessions","keep_days":30,"action":"anonymise"}"#, "cannot be anonymised"),
            (
                r#"{"table":"simple_chat_context","access_tier":"consensus","keep_days":30,"action":"delete"}"#,
                "no row of simple_chat_context is consensus; expected one of private, shared, public",
            ),
            (
                r#"{"table":"tombstones","chat_mode":"simple","keep_days":30,"action":"delete"}"#,
                "rows of tombstones belong to no chat mode",
            ),
            (r#"{"table":"users","keep_days":30,"action":"delete"}"#, "unknown variant `users`"),
        ] {
            let said = refused(body);
            assert!(said.contains(reason), "{body}: {said}");
        }
    }

    #[test]
    fn placing_and_releasing_a_hold_need_a_reason() {
        let hold = |body: &str| serde_json::from_str::<PolicyHold>(body).map_err(|error| error.to_string());
        let id = r#""hold_id":"0193c0de-0000-7000-8000-000000000001""#;
        for released in ["", ",\"released\":true"] {
            assert!(hold(&format!("{{{id}{released}}}")).unwrap_err().contains("missing field `reason`"));
            assert!(hold(&format!("{{{id}{released},\"reason\":\"case 7\"}}")).unwrap().check().is_ok());
        }
    }
}
