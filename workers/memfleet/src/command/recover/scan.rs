//! Reads the headers of a stream's messages.

use std::time::{Duration, SystemTime};

use anyhow::Context;
use async_nats::HeaderValue;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, stream};
use chrono::{DateTime, Utc};
use contract::header;
use futures::TryStreamExt;
use uuid::Uuid;

use crate::command::dead::time_of;

/// The headers of a message, as far as a recovery needs them.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) sequence: u64,
    pub(super) stored_at: DateTime<Utc>,
    pub(super) subject: String,
    /// The request id, if it is a UUID.
    pub(super) id: Option<Uuid>,
    /// Of a dead letter: the stream and sequence number of its message.
    pub(super) dead_source: Option<String>,
    /// Whether it is a dead letter that lists many messages.
    pub(super) is_list: bool,
}

/// Where a scan begins.
#[derive(Clone, Copy, Debug)]
pub(super) enum From {
    Start,
    Time(DateTime<Utc>),
    Sequence(u64),
}

/// Messages per fetch.
const BATCH: usize = 2_000;
/// Time limit of a fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30);

/// Calls `each` with the messages of a stream up to a sequence number, in batches, oldest first.
pub(super) async fn scan(
    jetstream: &jetstream::Context,
    stream: &str,
    from: From,
    until: u64,
    mut each: impl AsyncFnMut(Vec<Stored>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let failed = || format!("cannot read the stream {stream}");
    let handle = jetstream.get_stream(stream).await.with_context(failed)?;
    let state = &handle.cached_info().state;
    if state.messages == 0 || until < state.first_sequence {
        return Ok(());
    }
    let deliver_policy = match from {
        From::Start => DeliverPolicy::All,
        From::Time(time) => DeliverPolicy::ByStartTime { start_time: SystemTime::from(time).into() },
        From::Sequence(sequence) => DeliverPolicy::ByStartSequence { start_sequence: sequence.max(1) },
    };
    let config = pull::Config {
        deliver_policy,
        ack_policy: AckPolicy::None,
        headers_only: true,
        memory_storage: true,
        inactive_threshold: FETCH_TIMEOUT * 4,
        ..Default::default()
    };
    let consumer = handle.create_consumer(config).await.with_context(failed)?;
    let name = consumer.cached_info().name.clone();
    let read = read_all(&consumer, until, &mut each).await.with_context(failed);
    // If this fails, the server deletes the consumer once it is inactive.
    if let Err(error) = delete(&handle, &name).await {
        tracing::debug!(%error, stream, "cannot delete a temporary consumer; it will expire");
    }
    read
}

async fn delete(stream: &stream::Stream, name: &str) -> anyhow::Result<()> {
    stream.delete_consumer(name).await?;
    Ok(())
}

async fn read_all(
    consumer: &PullConsumer,
    until: u64,
    each: &mut impl AsyncFnMut(Vec<Stored>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut last = 0;
    loop {
        let fetched = tokio::time::timeout(FETCH_TIMEOUT, fetch(consumer)).await;
        let mut batch = fetched.with_context(|| {
            format!("no message after {last} received for {} s", FETCH_TIMEOUT.as_secs())
        })??;
        let is_end = batch.is_empty() || batch.iter().any(|message| message.sequence >= until);
        batch.retain(|message| message.sequence <= until);
        last = batch.last().map_or(last, |message| message.sequence);
        if !batch.is_empty() {
            each(batch).await?;
        }
        if is_end {
            return Ok(());
        }
    }
}

async fn fetch(consumer: &PullConsumer) -> anyhow::Result<Vec<Stored>> {
    let batch = consumer.fetch().max_messages(BATCH).messages().await?;
    let messages: Vec<_> = batch.map_err(anyhow::Error::from_boxed).try_collect().await?;
    messages.iter().map(stored).collect()
}

fn stored(message: &jetstream::Message) -> anyhow::Result<Stored> {
    let info = message.info().map_err(anyhow::Error::from_boxed)?;
    let header = |name: &str| message.headers.as_ref()?.get(name).map(HeaderValue::as_str);
    Ok(Stored {
        sequence: info.stream_sequence,
        stored_at: time_of(info.published.unix_timestamp_nanos()).context("a message without a time")?,
        subject: message.subject.to_string(),
        id: header::request_id(header).and_then(|(_, id)| id.parse().ok()),
        dead_source: header(header::DEAD_SOURCE).map(str::to_owned),
        is_list: header(header::DEAD_COUNT).is_some(),
    })
}
