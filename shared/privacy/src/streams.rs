//! The messages of a person in the streams of the broker: requests, events, and dead letters.
//!
//! They are deleted one by one, since the server overwrites what it deletes by its sequence number; what it purges by a subject, it leaves in its
//! files until their block is compacted.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::Duration;

use async_nats::HeaderValue;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use async_nats::jetstream::{self, ErrorCode, Message};
use contract::{UserId, WORKERS, header};
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use crate::error::{PrivacyError, Store};

/// Messages per fetch.
const BATCH: usize = 2_000;
/// The most messages that are looked for before they are deleted.
const MOST: usize = 2_000;
/// The same, of messages with their bodies.
const BATCH_WITH_BODIES: usize = 50;
/// The time limit of a fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30);
/// The stream of events.
const EVENTS: &str = "EVENTS";
/// The stream of dead letters.
const DEAD: &str = "DEAD";

/// What a stream had of a person.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Before the first deletion.
    pub before: u64,
    /// The last sequence number then. What comes later is a message that came late.
    pub until: u64,
}

fn away(problem: impl ToString) -> PrivacyError {
    PrivacyError::Away { store: Store::Broker, reason: problem.to_string() }
}

pub(crate) fn of_stream(stream: &str, problem: impl ToString) -> PrivacyError {
    away(format!("the stream {stream}: {}", problem.to_string()))
}

/// The streams that have messages of users.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    WORKERS.iter().filter_map(|worker| worker.stream).chain([EVENTS, DEAD])
}

/// Where messages of a user are in a stream: their subjects, and whether only those count whose header names a subject of the user.
pub(crate) fn filters(stream: &str, user: UserId) -> Vec<(String, bool)> {
    match stream {
        EVENTS => vec![(format!("memory.event.*.*.{user}"), false)],
        // A letter names no user if the subject of its message is no request's.
        DEAD => vec![(format!("memory.dead.*.{user}"), false), ("memory.dead.*.unknown".to_owned(), true)],
        _ => vec![(format!("memory.req.*.*.*.{user}"), false)],
    }
}

/// A stream. If it is missing, its messages are at another server or in another account, and count nowhere as none.
pub(crate) async fn open(jetstream: &jetstream::Context, name: &str) -> Result<Stream, PrivacyError> {
    jetstream.get_stream(name).await.map_err(|error| match error.kind() {
        GetStreamErrorKind::JetStream(problem) if problem.error_code() == ErrorCode::STREAM_NOT_FOUND => {
            PrivacyError::Refused(format!(
                "the stream {name} is not there; `memfleet nats apply` creates it, if nats.url names the right server and account"
            ))
        }
        GetStreamErrorKind::JetStream(_)
        | GetStreamErrorKind::EmptyName
        | GetStreamErrorKind::InvalidStreamName
        | GetStreamErrorKind::Request => of_stream(name, error),
    })
}

/// Calls `each` with the sequence number of each message of a user, until it says that it is enough.
async fn each_of(
    stream: &Stream,
    user: UserId,
    mut each: impl FnMut(u64) -> ControlFlow<()>,
) -> Result<(), PrivacyError> {
    let name = &stream.cached_info().config.name;
    for (subject, by_header) in filters(name, user) {
        let end = format!(".{user}");
        let flow = scan(stream, &subject, |sequence, of| {
            if !by_header || of.is_some_and(|of| of.ends_with(&end)) {
                return each(sequence);
            }
            ControlFlow::Continue(())
        });
        if flow.await?.is_break() {
            break;
        }
    }
    Ok(())
}

/// How many messages of a user are not after one of them.
async fn count_up_to(stream: &Stream, user: UserId, until: u64) -> Result<u64, PrivacyError> {
    let mut count = 0;
    each_of(stream, user, |sequence| {
        count += u64::from(sequence <= until);
        ControlFlow::Continue(())
    })
    .await?;
    Ok(count)
}

/// The sequence numbers of some messages of a user that are not after one of them: all, if there are fewer than [`MOST`].
async fn some_up_to(stream: &Stream, user: UserId, until: u64) -> Result<BTreeSet<u64>, PrivacyError> {
    let mut found = BTreeSet::new();
    each_of(stream, user, |sequence| {
        if sequence <= until {
            found.insert(sequence);
        }
        if found.len() < MOST { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })
    .await?;
    Ok(found)
}

/// How many messages with a subject the leader of the stream has.
async fn known(stream: &Stream, subject: &str) -> Result<u64, PrivacyError> {
    let name = &stream.cached_info().config.name;
    let mut subjects = stream.info_with_subjects(subject).await.map_err(|error| of_stream(name, error))?;
    let mut known: u64 = 0;
    while let Some(subject) = subjects.next().await {
        let (_, count) = subject.map_err(|error| of_stream(name, error))?;
        known = known.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
    }
    Ok(known)
}

/// Calls `each` with the sequence number and the header [`header::DEAD_SUBJECT`] of each message with a subject, until it says that it is
/// enough.
///
/// They are read through a consumer. In a cluster, it may be on a server that does not have the latest messages yet, and nothing tells the end
/// of what that server has from the end of the stream. So the leader says how many there are.
async fn scan(
    stream: &Stream,
    subject: &str,
    mut each: impl FnMut(u64, Option<&str>) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, PrivacyError> {
    let of_header = |sequence: u64, message: Message| {
        let of = message.headers.as_ref().and_then(|all| all.get(header::DEAD_SUBJECT));
        Ok(each(sequence, of.map(HeaderValue::as_str)))
    };
    scan_messages(stream, subject, Read::Headers, of_header).await
}

/// What is read of each message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// Its headers.
    Headers,
    /// Its headers and its body.
    Bodies,
}

impl Read {
    /// Messages per fetch. A body has at most a MiB or what the server is configured for.
    fn batch(self) -> usize {
        match self {
            Self::Headers => BATCH,
            Self::Bodies => BATCH_WITH_BODIES,
        }
    }
}

/// As [`scan`], with the whole message.
pub(crate) async fn scan_messages(
    stream: &Stream,
    subject: &str,
    what: Read,
    mut each: impl FnMut(u64, Message) -> Result<ControlFlow<()>, PrivacyError>,
) -> Result<ControlFlow<()>, PrivacyError> {
    let stream_name = &stream.cached_info().config.name;
    let failed = |problem: String| of_stream(stream_name, problem);
    let known = known(stream, subject).await?;
    if known == 0 {
        return Ok(ControlFlow::Continue(()));
    }
    // Asked for after those were counted, which are all up to here. What comes later is left out: there may be no end of it.
    let last = stream.get_info().await.map_err(|error| failed(error.to_string()))?.state.last_sequence;
    let config = pull::Config {
        ack_policy: AckPolicy::None,
        filter_subject: subject.to_owned(),
        headers_only: what == Read::Headers,
        memory_storage: true,
        inactive_threshold: FETCH_TIMEOUT * 4,
        ..Default::default()
    };
    let consumer = stream.create_consumer(config).await.map_err(|error| failed(error.to_string()))?;
    let name = consumer.cached_info().name.clone();
    let read = read(&consumer, last, what.batch(), &failed, &mut each).await;
    // If this fails, the server deletes the consumer once it is inactive.
    if let Err(error) = stream.delete_consumer(&name).await {
        tracing::debug!(%error, "cannot delete a temporary consumer; it will expire");
    }
    let Some(seen) = read? else { return Ok(ControlFlow::Break(())) };
    if seen < known {
        let behind = format!(
            "a replica of the stream {stream_name} is behind, or messages went meanwhile: {seen} of {known} were read"
        );
        return Err(away(behind));
    }
    Ok(ControlFlow::Continue(()))
}

/// Reads the messages of a consumer up to a sequence number. Returns how many there are; none if `each` had enough before.
async fn read(
    consumer: &PullConsumer,
    last: u64,
    batch: usize,
    failed: &impl Fn(String) -> PrivacyError,
    each: &mut impl FnMut(u64, Message) -> Result<ControlFlow<()>, PrivacyError>,
) -> Result<Option<u64>, PrivacyError> {
    let mut seen = 0;
    let slow = || failed(format!("no messages received for {} s", FETCH_TIMEOUT.as_secs()));
    loop {
        let fetch = async {
            let batch =
                consumer.fetch().max_messages(batch).messages().await.map_err(|error| error.to_string())?;
            batch.try_collect::<Vec<_>>().await.map_err(|error| error.to_string())
        };
        let fetched =
            tokio::time::timeout(FETCH_TIMEOUT, fetch).await.map_err(|_| slow())?.map_err(failed)?;
        if fetched.is_empty() {
            return Ok(Some(seen));
        }
        for message in fetched {
            let sequence = message.info().map_err(|error| failed(error.to_string()))?.stream_sequence;
            if sequence > last {
                return Ok(Some(seen));
            }
            seen += 1;
            if each(sequence, message)?.is_break() {
                return Ok(None);
            }
        }
    }
}

/// Counts the messages of a user in each stream.
///
/// # Errors
/// [`PrivacyError::Refused`] if a stream is missing.
pub(crate) async fn count(
    jetstream: &jetstream::Context,
    user: UserId,
) -> Result<BTreeMap<String, Counted>, PrivacyError> {
    let mut counted = BTreeMap::new();
    for name in names() {
        let stream = open(jetstream, name).await?;
        let until = stream.cached_info().state.last_sequence;
        let before = count_up_to(&stream, user, until).await?;
        counted.insert(name.to_owned(), Counted { before, until });
    }
    Ok(counted)
}

/// Deletes the messages of a user from the streams that were counted, also those that came since.
///
/// # Errors
/// [`PrivacyError::Left`] if some of those that were counted are still there, [`PrivacyError::Refused`] if a stream is missing.
pub(crate) async fn delete(
    jetstream: &jetstream::Context,
    user: UserId,
    counted: &BTreeMap<String, Counted>,
    parallel: usize,
) -> Result<(), PrivacyError> {
    for (name, counted) in counted {
        let stream = open(jetstream, name).await?;
        // What comes later is left to the next look: there may be no end of it.
        let last = stream.cached_info().state.last_sequence;
        loop {
            let some = some_up_to(&stream, user, last).await?;
            let is_last = some.len() < MOST;
            delete_all(&stream, some, parallel).await?;
            if is_last {
                break;
            }
        }
        let left = count_up_to(&stream, user, counted.until).await?;
        if left > 0 {
            let (table, before) = (format!("the stream {name}"), counted.before);
            return Err(PrivacyError::Left { table, before, deleted: before.saturating_sub(left), left });
        }
    }
    Ok(())
}

async fn delete_all(stream: &Stream, sequences: BTreeSet<u64>, parallel: usize) -> Result<(), PrivacyError> {
    let deletions = sequences.into_iter().map(|sequence| delete_one(stream, sequence));
    futures::stream::iter(deletions).buffer_unordered(parallel.max(1)).try_collect().await
}

async fn delete_one(stream: &Stream, sequence: u64) -> Result<(), PrivacyError> {
    let Err(error) = stream.delete_message(sequence).await else { return Ok(()) };
    match stream.get_raw_message(sequence).await {
        // The server has no specific error code for a missing message.
        Err(gone) if gone.kind() == RawMessageErrorKind::NoMessageFound => Ok(()),
        Ok(_) | Err(_) => {
            let name = &stream.cached_info().config.name;
            Err(of_stream(name, format!("cannot delete the message {sequence}: {error}")))
        }
    }
}

/// Where messages of a user are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// All with this subject.
    Subject(String),
    /// The one with this sequence number.
    Sequence(u64),
}

/// The user whom the last token of a subject names, whatever its form.
fn user_of(subject: &str) -> Option<UserId> {
    subject.rsplit('.').next().and_then(|token| token.parse().ok())
}

/// The users of whom a stream has messages, and where.
pub(crate) async fn users(
    jetstream: &jetstream::Context,
    name: &str,
) -> Result<BTreeMap<UserId, Vec<Place>>, PrivacyError> {
    let mut users: BTreeMap<UserId, Vec<Place>> = BTreeMap::new();
    let stream = open(jetstream, name).await?;
    let mut subjects = stream.info_with_subjects(">").await.map_err(|error| of_stream(name, error))?;
    while let Some(subject) = subjects.next().await {
        let (subject, _) = subject.map_err(|error| of_stream(name, error))?;
        if let Some(user) = user_of(&subject) {
            users.entry(user).or_default().push(Place::Subject(subject));
        }
    }
    for (subject, _) in filters(name, UserId::PLATFORM).into_iter().filter(|(_, by_header)| *by_header) {
        // It never has enough.
        let _ = scan(&stream, &subject, |sequence, of| {
            if let Some(user) = of.and_then(user_of) {
                users.entry(user).or_default().push(Place::Sequence(sequence));
            }
            ControlFlow::Continue(())
        })
        .await?;
    }
    Ok(users)
}

/// Deletes messages at these places, at most `most` of them. Returns their number.
pub(crate) async fn delete_at(
    jetstream: &jetstream::Context,
    name: &str,
    places: &[Place],
    most: usize,
    parallel: usize,
) -> Result<usize, PrivacyError> {
    let stream = open(jetstream, name).await?;
    let mut found = BTreeSet::new();
    for place in places {
        if found.len() >= most {
            break;
        }
        match place {
            Place::Sequence(sequence) => {
                found.insert(*sequence);
            }
            Place::Subject(subject) => {
                let take = |sequence: u64, _: Option<&str>| {
                    found.insert(sequence);
                    if found.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                };
                // Whether or not that was all: what is left is found the next time.
                let _ = scan(&stream, subject, take).await?;
            }
        }
    }
    let count = found.len();
    delete_all(&stream, found, parallel).await?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subjects_of_a_user_are_those_of_no_other() {
        let user = UserId::new(42).unwrap_or(UserId::PLATFORM);
        for name in names() {
            for (subject, by_header) in filters(name, user) {
                assert!(by_header || subject.ends_with(".42"), "{name}: {subject}");
                assert!(!subject.contains('>'), "{name}: {subject}");
            }
        }
        assert_eq!(filters("CONTEXT", user), [("memory.req.*.*.*.42".to_owned(), false)]);
    }
}
