use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Limit, usual};
use crate::event::Event;
use crate::number::Bounded;
use crate::value::SessionId;

/// Asks for the events of a session after a number. Whoever goes on from the last number it was given misses none.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventList {
    /// The session or conversation. Absent: what belongs to the account and to no session.
    #[serde(default)]
    pub session_id: Option<SessionId>,
    /// Only events with a higher number.
    #[serde(default = "zero")]
    pub after: Bounded<0, { i64::MAX }>,
    /// The most events.
    #[serde(default = "usual")]
    pub limit: Limit,
}

fn zero() -> Bounded<0, { i64::MAX }> {
    Bounded::literal(0)
}

/// Events in the order of their numbers.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct EventPage {
    /// The events.
    pub events: Vec<Event>,
    /// The number to ask after next: that of the last event, or the one that was asked after.
    pub last: i64,
    /// Whether there are more.
    pub more: bool,
}
