//! What the database alone can do: the worker's own statements, batch after batch on one connection, with nothing
//! else going on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use chrono::Utc;
use context_writer::ContextWriter;
use context_writer::message::Parted;
use context_writer::store::Done;
use contract::{EventType, Performative, Request, RequestSubject};
use diesel_async::AsyncConnection;
use keys::DataKeys;
use runtime::{Message, Settings, Worker};
use store::blackboard::{self, NewEvent};
use store::inbox::{self, Entry};
use store::security;
use store::{Connection, Fault};
use trust::role_of;
use uuid::Uuid;

use super::corpus::Prepared;
use super::grants::Grants;

/// Rows a second.
pub(super) async fn measure(settings: &Settings, messages: Vec<Prepared>) -> anyhow::Result<f64> {
    let decoded: Vec<Message<Parted>> =
        messages.into_iter().enumerate().map(decode).collect::<anyhow::Result<_>>()?;
    let batches: Vec<Vec<&Message<Parted>>> =
        decoded.chunks(settings.worker.batch_size).map(|batch| batch.iter().collect()).collect();
    let grants_of = Grants::open(&settings.trust)?;
    let mut connection = store::connect(&settings.postgres.url_of(&role_of(ContextWriter::NAME))).await?;
    // The first statement of a connection is prepared; the worker has done that before its run, too.
    let started = Instant::now();
    for batch in &batches {
        write(&mut connection, &grants_of, batch).await.context("the database refuses a batch")?;
    }
    Ok(decoded.len() as f64 / started.elapsed().as_secs_f64())
}

fn decode((sequence, prepared): (usize, Prepared)) -> anyhow::Result<Message<Parted>> {
    let subject: RequestSubject = prepared.subject.parse()?;
    Ok(Message {
        request: Request::decode(&subject, &prepared.body)?.into(),
        subject,
        request_id: prepared.id,
        parent_event_id: None,
        stored_at: Utc::now(),
        sequence: sequence as u64,
        body: prepared.body,
    })
}

async fn write(
    connection: &mut Connection,
    grants_of: &Grants,
    batch: &[&Message<Parted>],
) -> Result<(), Fault> {
    let grants: BTreeSet<Arc<str>> = batch.iter().map(|message| grants_of.of(&message.subject)).collect();
    let grants: Vec<&str> = grants.iter().map(|grant| &**grant).collect();
    let entries: Vec<Entry> = batch
        .iter()
        .map(|message| Entry {
            user_id: message.subject.user_id.get(),
            message_id: message.request_id,
            event_id: Uuid::now_v7(),
        })
        .collect();
    connection
        .transaction(async |connection| {
            security::open_context(connection, &grants).await?;
            inbox::take(connection, ContextWriter::NAME, &entries).await?;
            let done = context_writer::store::write(connection, batch, &DataKeys::new()).await?;
            let events: Vec<NewEvent<'_>> = batch
                .iter()
                .zip(&entries)
                .zip(done)
                .filter(|(_, done)| matches!(done, Done::Applied(_)))
                .map(|((message, entry), _)| NewEvent {
                    id: entry.event_id,
                    request_id: message.request_id,
                    event_type: EventType::ContextStored,
                    performative: Performative::Inform,
                    source_agent_id: message.subject.service.as_str(),
                    user_id: message.subject.user_id,
                    session_id: "bench-0",
                    payload: std::str::from_utf8(&message.body).unwrap_or("{}"),
                    cause: None,
                })
                .collect();
            blackboard::append(connection, &events).await?;
            Ok(())
        })
        .await
}
