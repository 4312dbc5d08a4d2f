//! The throughput of the database alone: a worker's own statements, batch after batch on one connection, without any
//! other load.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use chrono::Utc;
use config::Settings;
use contract::{Redacted, RequestSubject};
use diesel_async::{AsyncConnection, SimpleAsyncConnection};
use keys::DataKeys;
use runtime::{EventDraft, ExternalWorker, Message, Source, Verdict, WorkItem};
use store::blackboard::{self, NewEvent};
use store::clock::{self, Session};
use store::inbox::{self, Entry};
use store::security;
use store::{Connection, Fault};
use trust::worker_role;
use uuid::Uuid;

use super::bulk::Prepared;
use super::grants::Grants;

/// Measures rows per second.
pub(super) async fn measure<W: ExternalWorker>(
    worker: &W,
    settings: &Settings,
    messages: Vec<Prepared>,
) -> anyhow::Result<f64> {
    let count = messages.len() as f64;
    let batches = messages.chunks(settings.worker.batch_size).map(<[Prepared]>::to_vec).collect();
    // Includes preparing the statements, which the worker does before its measured run.
    let seconds: f64 = seconds(worker, settings, batches).await?.iter().sum();
    Ok(count / seconds)
}

/// The seconds that each batch takes, written one after the other: from the first statement of its transaction to the commit.
pub(super) async fn seconds<W: ExternalWorker>(
    worker: &W,
    settings: &Settings,
    batches: Vec<Vec<Prepared>>,
) -> anyhow::Result<Vec<f64>> {
    let mut sequence = 0..;
    let mut decoded: Vec<Vec<Message<W::Item>>> = Vec::with_capacity(batches.len());
    for batch in batches {
        let messages = batch.into_iter().zip(&mut sequence);
        let messages = messages.map(|(prepared, sequence)| decode(sequence, prepared));
        decoded.push(messages.collect::<anyhow::Result<_>>()?);
    }
    let grants_of = Grants::open(&settings.trust, W::INFO.name)?;
    let mut connection = store::connect(&settings.postgres.url_of(&worker_role(W::INFO.name))).await?;
    let mut seconds = Vec::with_capacity(decoded.len());
    for batch in &decoded {
        let batch: Vec<&Message<W::Item>> = batch.iter().collect();
        let prepared = worker.prepare(&batch, &[]).await.context("cannot prepare a batch")?;
        let started = Instant::now();
        write(worker, &mut connection, &grants_of, &batch, &prepared)
            .await
            .context("the database rejected a batch")?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    mark_events_published(settings).await?;
    Ok(seconds)
}

/// Marks the events written here as published. Otherwise the worker that is measured next would publish them.
async fn mark_events_published(settings: &Settings) -> anyhow::Result<()> {
    const MARK: &str =
        "UPDATE session_clocks SET published_sequence = (SELECT last_value FROM blackboard_event_sequence)";
    let mut owner = store::connect(&settings.postgres.url).await?;
    owner.batch_execute(MARK).await.context("cannot mark the events as published")
}

fn decode<I: WorkItem>(sequence: u64, prepared: Prepared) -> anyhow::Result<Message<I>> {
    let subject: RequestSubject = prepared.subject.parse()?;
    let Redacted { request, secrets } = I::from_request(&subject, &prepared.body)?;
    Ok(Message {
        request,
        secrets,
        source: Source::Request(subject),
        request_id: prepared.id,
        parent_event_id: None,
        is_widened: false,
        stored_at: Utc::now(),
        sequence,
        event_id: Uuid::now_v7(),
        body: prepared.body,
    })
}

async fn write<W: ExternalWorker>(
    worker: &W,
    connection: &mut Connection,
    grants_of: &Grants,
    batch: &[&Message<W::Item>],
    prepared: &W::Prepared,
) -> Result<(), Fault> {
    let grant = |message: &&Message<W::Item>| match &message.source {
        Source::Request(subject) => Some(grants_of.of(subject)),
        Source::Tick(_) => None,
    };
    let grants: BTreeSet<Arc<str>> = batch.iter().filter_map(grant).collect();
    let grants: Vec<&str> = grants.iter().map(|grant| &**grant).collect();
    let entries: Vec<Entry> = batch
        .iter()
        .map(|message| Entry {
            user_id: message.user_id().get(),
            message_id: message.request_id,
            event_id: message.event_id,
            event_count: 1,
        })
        .collect();
    connection
        .transaction(async |connection| {
            security::open_context_of_batch(connection, &grants, batch.len()).await?;
            inbox::take(connection, W::INFO.name, &entries).await?;
            let verdicts = worker.write(connection, batch, &DataKeys::new(), prepared).await?.verdicts;
            let mut events: Vec<NewEvent<'_>> = batch
                .iter()
                .zip(&verdicts)
                .flat_map(|(message, verdict)| {
                    let drafts = match verdict {
                        Verdict::Applied(drafts) => drafts.as_slice(),
                        Verdict::Unchanged(_) | Verdict::Retry(..) | Verdict::Rejected(_) => &[],
                    };
                    inbox::event_ids(message.event_id, drafts.len())
                        .zip(drafts)
                        .map(|(id, draft)| event(id, message, draft))
                })
                .collect();
            let mut sessions: BTreeMap<_, i64> = BTreeMap::new();
            for event in &events {
                *sessions.entry((event.user_id, event.session_id)).or_default() += 1;
            }
            // Treats all events as published.
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
            let mut clocks = clock::take(connection, W::INFO, &sessions).await?;
            for event in &mut events {
                event.logical_timestamp = clocks.next(event.user_id, event.session_id);
            }
            blackboard::append(connection, &events).await?;
            Ok(())
        })
        .await
}

fn event<'a, I>(id: Uuid, message: &'a Message<I>, draft: &'a EventDraft) -> NewEvent<'a> {
    NewEvent {
        id,
        request_id: message.request_id,
        event_type: draft.event_type,
        performative: draft.performative,
        source_agent_id: message.publisher(),
        target_agent_id: draft.target_agent_id.as_deref(),
        user_id: message.user_id(),
        session_id: &draft.session_id,
        payload: match &draft.payload {
            Some(json) => json,
            None => std::str::from_utf8(&message.body).unwrap_or("{}"),
        },
        cause: None,
        logical_timestamp: 0,
    }
}
