//! `event.list`: the events of a session after a sequence number.

use contract::{Event, EventList, EventPage, EventType, Malformed, SessionId, UserId};
use store::security::PlanCacheMode;
use store::{Connection, Fault, blackboard};

use crate::page;
use crate::query_context::QueryContext;
use crate::query_failure::QueryFailure;
use crate::validated_query::{Answered, ValidatedQuery};

const TABLE: &str = "blackboard_events";

#[derive(Debug)]
pub(crate) struct List(EventList);

impl ValidatedQuery for List {
    type Query = EventList;

    fn validate(query: EventList) -> Result<Self, Malformed> {
        Ok(Self(query))
    }

    async fn answer(self, context: &mut QueryContext<'_>) -> Result<Answered<EventPage>, QueryFailure> {
        let (user, is_for_one_session) = (context.user, context.is_for_one_session());
        let page = context.read(PlanCacheMode::Auto, async |connection| {
            self.page(connection, user, is_for_one_session).await
        });
        Ok(page.await?)
    }
}

impl List {
    async fn page(
        &self,
        connection: &mut Connection,
        user: UserId,
        is_for_one_session: bool,
    ) -> Result<Answered<EventPage>, Fault> {
        let Self(query) = self;
        let session_id = query.session_id.as_ref().map_or(Event::ACCOUNT_SESSION, SessionId::as_str);
        let (after, limit) = (query.after.get(), query.limit.get());
        let (mut events, found) =
            blackboard::after(connection, user, session_id, after, page::one_more(limit), page::PAGE_BYTES)
                .await?;
        events.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        let more = usize::try_from(found).unwrap_or(usize::MAX) > events.len();
        let last = events.last().map_or(after, |event| event.event_sequence);
        events.retain(|event| !is_for_one_session || !is_of_conversation(event.event_type));
        let read = events.len();
        Ok(Answered::new(EventPage { events, last, more }, TABLE, read))
    }
}

/// Whether events of this type are of a conversation. They are filed under its id, which may be that of a session: a token for that
/// session is none for the conversation.
fn is_of_conversation(event_type: EventType) -> bool {
    matches!(event_type, EventType::ConversationStored | EventType::MessageAdded | EventType::FeedbackStored)
}
