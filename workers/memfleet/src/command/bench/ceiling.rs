//! What the database alone can do: a worker's own statements, batch after batch on one connection, with nothing else going
//! on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use chrono::Utc;
use config::Settings;
use contract::RequestSubject;
use diesel_async::{AsyncConnection, SimpleAsyncConnection};
use keys::DataKeys;
use runtime::{Effect, Message, Payload, Verdict, Worker};
use store::blackboard::{self, NewEvent};
use store::clock::{self, Session};
use store::inbox::{self, Entry};
use store::security;
use store::{Connection, Fault};
use trust::worker_role;
use uuid::Uuid;

use super::corpus::Prepared;
use super::grants::Grants;

/// Rows a second.
pub(super) async fn measure<W: Worker>(
    worker: &W,
    settings: &Settings,
    messages: Vec<Prepared>,
) -> anyhow::Result<f64> {
    let decoded: Vec<Message<W::Request>> = messages
        .into_iter()
        .enumerate()
        .map(|(sequence, prepared)| decode(worker, sequence, prepared))
        .collect::<anyhow::Result<_>>()?;
    let batches: Vec<Vec<&Message<W::Request>>> =
        decoded.chunks(settings.worker.batch_size).map(|batch| batch.iter().collect()).collect();
    let grants_of = Grants::open(&settings.trust, W::NAME)?;
    let mut connection = store::connect(&settings.postgres.url_of(&worker_role(W::NAME))).await?;
    // The first statement of a connection is prepared; the worker has done that before its run, too.
    let started = Instant::now();
    for batch in &batches {
        write(worker, &mut connection, &grants_of, batch).await.context("the database refuses a batch")?;
    }
    let rows_per_second = decoded.len() as f64 / started.elapsed().as_secs_f64();
    tell_nobody(settings).await?;
    Ok(rows_per_second)
}

/// The events of the ceiling were never published, and the worker that is measured next must not take it upon itself.
async fn tell_nobody(settings: &Settings) -> anyhow::Result<()> {
    const MARK: &str =
        "UPDATE session_clocks SET published_sequence = (SELECT last_value FROM blackboard_event_sequence)";
    let mut owner = store::connect(&settings.postgres.url).await?;
    owner.batch_execute(MARK).await.context("the events of the ceiling cannot be marked as published")
}

fn decode<W: Worker>(worker: &W, sequence: usize, prepared: Prepared) -> anyhow::Result<Message<W::Request>> {
    let subject: RequestSubject = prepared.subject.parse()?;
    Ok(Message {
        request: worker.decode(&subject, &prepared.body)?,
        subject,
        request_id: prepared.id,
        parent_event_id: None,
        stored_at: Utc::now(),
        sequence: sequence as u64,
        event_id: Uuid::now_v7(),
        body: prepared.body,
    })
}

async fn write<W: Worker>(
    worker: &W,
    connection: &mut Connection,
    grants_of: &Grants,
    batch: &[&Message<W::Request>],
) -> Result<(), Fault> {
    let grants: BTreeSet<Arc<str>> = batch.iter().map(|message| grants_of.of(&message.subject)).collect();
    let grants: Vec<&str> = grants.iter().map(|grant| &**grant).collect();
    let entries: Vec<Entry> = batch
        .iter()
        .map(|message| Entry {
            user_id: message.subject.user_id.get(),
            message_id: message.request_id,
            event_id: message.event_id,
        })
        .collect();
    connection
        .transaction(async |connection| {
            security::open_context(connection, &grants).await?;
            inbox::take(connection, W::NAME, &entries).await?;
            let verdicts = worker.write(connection, batch, &DataKeys::new(), &W::Prepared::default()).await?;
            let mut events: Vec<NewEvent<'_>> = batch
                .iter()
                .zip(&verdicts)
                .filter_map(|(message, verdict)| match verdict {
                    Verdict::Applied(effect) => Some(event(message, effect)),
                    Verdict::Unchanged(_) | Verdict::MissingPrerequisite(_) | Verdict::Refused(_) => None,
                })
                .collect();
            let mut sessions: BTreeMap<_, i64> = BTreeMap::new();
            for event in &events {
                *sessions.entry((event.user_id, event.session_id)).or_default() += 1;
            }
            // Everything that is there is as good as published.
            let (causes, published, enqueued) = (0, 0, i64::MAX);
            let session = |((user_id, session_id), events)| Session {
                user_id,
                session_id,
                events,
                causes,
                published,
                enqueued,
            };
            let sessions: Vec<Session<'_>> = sessions.into_iter().map(session).collect();
            let mut clocks = clock::take(connection, &sessions).await?;
            for event in &mut events {
                event.logical_timestamp = clocks.next(event.user_id, event.session_id);
            }
            blackboard::append(connection, &events).await?;
            Ok(())
        })
        .await
}

fn event<'a, R>(message: &'a Message<R>, effect: &'a Effect) -> NewEvent<'a> {
    NewEvent {
        id: message.event_id,
        request_id: message.request_id,
        event_type: effect.event_type,
        performative: effect.performative,
        source_agent_id: message.subject.service.as_str(),
        target_agent_id: effect.target_agent_id.as_deref(),
        user_id: message.subject.user_id,
        session_id: &effect.session_id,
        payload: match &effect.payload {
            Payload::Body => std::str::from_utf8(&message.body).unwrap_or("{}"),
            Payload::Redacted(json) => json,
        },
        cause: None,
        logical_timestamp: 0,
    }
}
