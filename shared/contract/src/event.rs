use std::fmt;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use crate::request::EventType;
use crate::subject::UserId;
use crate::value::Json;

macro_rules! labels {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $label:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
        pub enum $name {
            $($(#[$doc])* #[serde(rename = $label)] $variant,)+
        }

        impl $name {
            /// Every value, in the order of the PostgreSQL enumeration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The label, in JSON and in PostgreSQL.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }

            /// The value of a label.
            pub fn from_label(label: &str) -> Option<Self> {
                match label { $($label => Some(Self::$variant),)+ _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(crate) use labels;

labels! {
    /// What an event means between agents: the communicative acts of FIPA SC00037J. The PostgreSQL type
    /// `performative`.
    Performative {
        /// Accepts a proposal.
        AcceptProposal = "accept-proposal",
        /// Agrees to do something.
        Agree = "agree",
        /// No longer wants something done.
        Cancel = "cancel",
        /// Calls for proposals.
        CallForProposal = "cfp",
        /// Confirms what was uncertain.
        Confirm = "confirm",
        /// Denies what was believed.
        Disconfirm = "disconfirm",
        /// Tried and failed.
        Failure = "failure",
        /// States a fact.
        Inform = "inform",
        /// Tells whether something holds.
        InformIf = "inform-if",
        /// Tells what something is.
        InformRef = "inform-ref",
        /// Did not understand.
        NotUnderstood = "not-understood",
        /// Passes on to others.
        Propagate = "propagate",
        /// Proposes something.
        Propose = "propose",
        /// Asks to pass on.
        Proxy = "proxy",
        /// Asks whether something holds.
        QueryIf = "query-if",
        /// Asks what something is.
        QueryRef = "query-ref",
        /// Refuses to do something.
        Refuse = "refuse",
        /// Rejects a proposal.
        RejectProposal = "reject-proposal",
        /// Asks for something to be done.
        Request = "request",
        /// Asks for something to be done once a condition holds.
        RequestWhen = "request-when",
        /// Asks for something to be done each time a condition holds.
        RequestWhenever = "request-whenever",
        /// Wants to be told of changes.
        Subscribe = "subscribe",
    }
}

/// What has happened, published on `memory.event.<noun>.<verb>.<user_id>` after the transaction that made it
/// happen has committed. Delivered at least once: `event_id` tells repeats apart.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// The row of `blackboard_events`.
    pub event_id: Uuid,
    /// Grows strictly within a session, with gaps.
    pub event_sequence: i64,
    /// What happened.
    pub event_type: EventType,
    /// What it means between agents.
    pub performative: Performative,
    /// The agent or service that made it happen.
    pub source_agent_id: String,
    /// The agent it is meant for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_agent_id: Option<String>,
    /// Whose memory changed.
    pub user_id: UserId,
    /// The session, or `@account` outside of sessions.
    pub session_id: String,
    /// The event that caused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_event_id: Option<Uuid>,
    /// A Lamport clock: later than that of every event before it in its session, and than that of its parent.
    pub logical_timestamp: i64,
    /// When the transaction began.
    pub created_at: DateTime<Utc>,
    /// The request, without secrets.
    pub payload: Json,
}

impl Event {
    /// The session id of events that belong to no session. No request can name it.
    pub const ACCOUNT_SESSION: &'static str = "@account";
}
