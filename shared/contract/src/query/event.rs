use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Limit, QueryKind, QueryType, default_limit};
use crate::event::Event;
use crate::number::Bounded;
use crate::value::SessionId;

/// Lists the events of a session after a sequence number. A reader that continues from `last` of each page misses none.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventList {
    /// The session or conversation. Absent: the events of the account, which belong to no session.
    #[serde(default)]
    pub session_id: Option<SessionId>,
    /// Only events with a higher sequence number.
    #[serde(default = "zero")]
    pub after: Bounded<0, { i64::MAX }>,
    /// The maximum number of events.
    #[serde(default = "default_limit")]
    pub limit: Limit,
}

impl QueryType for EventList {
    type Answer = EventPage;

    const KIND: &'static QueryKind =
        &QueryKind::new::<Self>("event", "list", "The events of a session after a sequence number.");

    fn session_id(&self) -> Option<&str> {
        self.session_id.as_ref().map(SessionId::as_str)
    }
}

fn zero() -> Bounded<0, { i64::MAX }> {
    Bounded::literal(0)
}

/// A page of events, ordered by sequence number.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct EventPage {
    /// The events.
    pub events: Vec<Event>,
    /// The value of `after` for the next page: the sequence number of the last event, or `after` of this query if there
    /// is none.
    pub last: i64,
    /// Whether there are more events.
    pub more: bool,
}
