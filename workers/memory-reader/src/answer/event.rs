//! The events of a session after a number.

use contract::{Event, EventList, EventPage, SessionId, UserId};
use store::{Connection, Fault, blackboard};

use super::{Answer, one_more};
use crate::page;

pub(crate) const TABLE: &str = "blackboard_events";

pub(crate) async fn list(
    connection: &mut Connection,
    user: UserId,
    list: &EventList,
) -> Result<Answer, Fault> {
    let session_id = list.session_id.as_ref().map_or(Event::ACCOUNT_SESSION, SessionId::as_str);
    let (after, limit) = (list.after.get(), list.limit.get());
    let (mut events, found) =
        blackboard::after(connection, user, session_id, after, one_more(limit), page::PAGE_BYTES).await?;
    events.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let more = usize::try_from(found).unwrap_or(usize::MAX) > events.len();
    let last = events.last().map_or(after, |event| event.event_sequence);
    Ok(Answer::Events(EventPage { events, last, more }))
}
