//! Events that were published and are not in the database: their effects have vanished.

use std::collections::{HashSet, VecDeque};

use anyhow::Context;
use async_nats::jetstream;
use async_nats::jetstream::stream::RawMessageErrorKind;
use chrono::{DateTime, Utc};
use cli::outln;
use cli::table::grouped;
use contract::{Event, EventType, UserId};
use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use store::{Connection, recovery};
use uuid::Uuid;

use super::scan::{From, scan};

const STREAM: &str = "EVENTS";
/// The maximum number of vanished events that are listed: the newest ones.
const MAX_LISTED: usize = 10_000;
/// Events that are read, and compared with the database, at a time.
const AT_ONCE: usize = 500;
/// Concurrent requests to the broker.
const CONCURRENT: usize = 32;

/// The vanished events.
#[derive(Debug, Serialize)]
pub(super) struct Vanished {
    /// Their number.
    pub(super) count: u64,
    /// The newest 10,000 of them, oldest first.
    events: Vec<VanishedEvent>,
    #[serde(skip)]
    read: Vec<Event>,
}

#[derive(Debug, Serialize)]
struct VanishedEvent {
    event_id: Uuid,
    event_type: EventType,
    user_id: UserId,
    session_id: String,
    event_sequence: i64,
    created_at: DateTime<Utc>,
    /// The event that its request has caused instead. `None` if there is none, as before the recovery.
    replaced_by: Option<Uuid>,
    /// The request. Known once the event is replaced: only the row that vanished named it.
    request_id: Option<Uuid>,
}

impl VanishedEvent {
    fn new(event: &Event) -> Self {
        Self {
            event_id: event.event_id,
            event_type: event.event_type,
            user_id: event.user_id,
            session_id: event.session_id.clone(),
            event_sequence: event.event_sequence,
            created_at: event.created_at,
            replaced_by: None,
            request_id: None,
        }
    }
}

impl Vanished {
    /// Compares the published events that the broker stored at `since` or later with the database.
    pub(super) async fn find(
        jetstream: &jetstream::Context,
        connection: &mut Connection,
        since: Option<DateTime<Utc>>,
    ) -> anyhow::Result<Self> {
        let (mut seen, mut newest) = (HashSet::new(), VecDeque::new());
        let handle = jetstream.get_stream(STREAM).await;
        let handle = handle.with_context(|| format!("cannot open the stream {STREAM}"))?;
        let until = handle.cached_info().state.last_sequence;
        scan(jetstream, STREAM, since.map_or(From::Start, From::Time), until, async |batch| {
            let ids: Vec<Uuid> = batch.iter().filter_map(|stored| stored.id).collect();
            let known = recovery::events(connection, &ids).await.context("cannot read the events")?;
            for stored in batch {
                let Some(id) = stored.id.filter(|id| !known.contains(id)) else { continue };
                if seen.insert(id) {
                    newest.push_back(stored.sequence);
                    if newest.len() > MAX_LISTED {
                        newest.pop_front();
                    }
                }
            }
            Ok(())
        })
        .await?;
        let read = stream::iter(newest)
            .map(|sequence| {
                let handle = handle.clone();
                async move {
                    match handle.get_raw_message(sequence).await {
                        // An event of a newer program is counted, and not listed.
                        Ok(message) => Ok(serde_json::from_slice(&message.payload).ok()),
                        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
                        Err(error) => Err(error).with_context(|| format!("cannot read event {sequence}")),
                    }
                }
            })
            .buffered(CONCURRENT);
        let read: Vec<Option<Event>> = read.try_collect().await?;
        let read: Vec<Event> = read.into_iter().flatten().collect();
        let count = u64::try_from(seen.len()).unwrap_or(u64::MAX);
        Ok(Self { count, events: read.iter().map(VanishedEvent::new).collect(), read })
    }

    /// Looks for the events that replace them.
    pub(super) async fn find_replacements(&mut self, connection: &mut Connection) -> anyhow::Result<()> {
        for (listed, read) in self.events.chunks_mut(AT_ONCE).zip(self.read.chunks(AT_ONCE)) {
            let found = recovery::replacements(connection, read).await.context("cannot read the events")?;
            for (one, replacement) in listed.iter_mut().zip(found) {
                one.replaced_by = replacement.map(|replacement| replacement.event_id);
                one.request_id = replacement.and_then(|replacement| replacement.request_id);
            }
        }
        Ok(())
    }

    /// The greatest number of a vanished event.
    pub(super) fn last_number(&self) -> Option<i64> {
        self.read.iter().map(|event| event.event_sequence).max()
    }

    pub(super) fn show(&self) {
        let replaced = self.events.iter().filter(|event| event.replaced_by.is_some()).count();
        let replaced = u64::try_from(replaced).unwrap_or(u64::MAX);
        match self.count {
            0 => outln!("every published event is in the database"),
            count => outln!(
                "{} published events are not in the database: subscribers have received them, and their effects have \
                 vanished; {} of them are replaced by another event (--json lists both)",
                grouped(count),
                grouped(replaced)
            ),
        }
    }
}
