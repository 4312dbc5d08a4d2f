//! Stage two: decodes bytes into a typed request, or dead-letters the message with a reason that names the field.

use std::path::Path;
use std::str::FromStr;

use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use contract::{Malformed, Redacted, RequestSubject, SubjectError, Tick, TickSubject, header, wake_subject};
use trust::{AssociatedData, RingFile};
use uuid::Uuid;

use crate::stages::pull::Delivery;
use crate::worker::{Message, Source, WorkItem};

/// A decoded message and its delivery.
#[derive(Debug)]
pub struct Decoded<R> {
    pub(crate) message: Message<R>,
    pub(crate) delivery: Delivery,
}

/// Decrypts encrypted bodies.
#[derive(Debug)]
pub(crate) struct Bodies {
    ring: Option<RingFile>,
}

impl Bodies {
    /// Uses the payload keys in `ring_file`, if it is set.
    pub(crate) fn new(ring_file: Option<&str>) -> Self {
        Self { ring: ring_file.map(|file| RingFile::new(Path::new(file))) }
    }

    /// Checks, at startup, that the key file can be read.
    pub(crate) fn check(&self) -> Result<(), String> {
        let read = self.ring.as_ref().map_or(Ok(()), |ring| ring.ring().map(drop));
        read.map_err(|error| error.to_string())
    }

    /// Returns the body of a request, decrypted if the encryption header is present.
    pub(crate) fn open(
        &self,
        headers: Option<&HeaderMap>,
        subject: &str,
        parsed: &RequestSubject,
        body: &Bytes,
    ) -> Result<Bytes, Malformed> {
        let Some(id) = headers.and_then(|headers| headers.get(header::ENCRYPTION)) else {
            return Ok(body.clone());
        };
        let wrong = |problem: String| Malformed::new(header::ENCRYPTION, problem);
        let (name, version) = trust::parse_key_id(id.as_str())
            .ok_or_else(|| wrong("is not a key id; expected <service>.<version>".to_owned()))?;
        // Keys are per service, so that no service can read the bodies of another.
        if name != parsed.service.as_str() {
            return Err(wrong(format!("is not a key of service {}", parsed.service)));
        }
        let ring = self.ring.as_ref().ok_or_else(|| {
            wrong("this worker has no payload keys: trust.payload_ring_file is not set".to_owned())
        })?;
        // The error names a file of this machine, which the publisher must not learn.
        let ring = ring.ring().map_err(|error| {
            tracing::error!(%error, "cannot read the payload keys");
            wrong("this worker cannot read its payload keys".to_owned())
        })?;
        let key = ring
            .get(name, version)
            .ok_or_else(|| wrong(format!("this worker has no key {name}.{version}")))?;
        let plain = key
            .open(body, AssociatedData::Payload { subject })
            .map_err(|error| Malformed::new("body", error.to_string()))?;
        Ok(Bytes::copy_from_slice(&plain))
    }
}

/// Decodes a message.
///
/// # Errors
/// The delivery, and what is malformed in it.
pub(crate) fn decode<I: WorkItem>(
    bodies: &Bodies,
    delivery: Delivery,
) -> Result<Decoded<I>, Box<(Delivery, Malformed)>> {
    let decoded = if let Some(problem) = broker::unreadable(delivery.message.headers.as_ref()) {
        Err(Malformed::new("headers", problem))
    } else if contract::has_ticks(delivery.stream) {
        decode_tick(&delivery)
    } else {
        decode_request(bodies, &delivery)
    };
    match decoded {
        Ok(message) => Ok(Decoded { message, delivery }),
        Err(malformed) => Err(Box::new((delivery, malformed))),
    }
}

fn decode_request<I: WorkItem>(bodies: &Bodies, delivery: &Delivery) -> Result<Message<I>, Malformed> {
    let message = &delivery.message;
    let subject: RequestSubject = parse_subject(message.subject.as_str())?;
    let headers = message.headers.as_ref();
    check_contract(headers)?;
    let request_id = request_id(headers)?.ok_or_else(|| {
        Malformed::new(header::REQUEST_ID, "is missing; give every request a UUID of its own")
    })?;
    let body = bodies.open(headers, message.subject.as_str(), &subject, &message.payload)?;
    let parent_event_id = id(headers, header::PARENT_EVENT)?;
    let Redacted { request, secrets } = I::from_request(&subject, &body)?;
    Ok(Message {
        parent_event_id,
        request,
        secrets,
        is_widened: false,
        body,
        stored_at: delivery.stored_at,
        sequence: delivery.sequence,
        event_id: Uuid::now_v7(),
        source: Source::Request(subject),
        request_id,
    })
}

/// Decodes a tick, which has no body.
fn decode_tick<I: WorkItem>(delivery: &Delivery) -> Result<Message<I>, Malformed> {
    let headers = delivery.message.headers.as_ref();
    let (tick, request_id) = tick(delivery.message.subject.as_str(), headers, delivery.stored_at)?;
    Ok(Message {
        parent_event_id: None,
        request: I::from_tick(&tick)?,
        secrets: Vec::new(),
        is_widened: false,
        body: Bytes::new(),
        stored_at: delivery.stored_at,
        sequence: delivery.sequence,
        event_id: Uuid::now_v7(),
        request_id,
        source: Source::Tick(tick),
    })
}

/// Parses a tick. Returns it with its id in the inbox, which is derived from its headers.
pub(crate) fn tick(
    subject: &str,
    headers: Option<&HeaderMap>,
    stored_at: DateTime<Utc>,
) -> Result<(Tick, Uuid), Malformed> {
    let header = |name: &str| {
        let value = headers.and_then(|headers| headers.get(name));
        value
            .map(ToString::to_string)
            .ok_or_else(|| Malformed::new(name, "is missing; only a schedule publishes ticks"))
    };
    let (job, scheduler, next) = match parse_subject(subject)? {
        TickSubject::Scheduled(job) => (job, header(header::SCHEDULER)?, header(header::SCHEDULE_NEXT)?),
        TickSubject::Woken(job) => {
            // Instead of the time of the next tick of a schedule, its own id distinguishes it from others.
            let own = id(headers, header::WOKEN)?.ok_or_else(|| {
                Malformed::new(header::WOKEN, "is missing; only the worker of the job publishes such ticks")
            })?;
            let scheduler = wake_subject(job.as_str());
            (job, scheduler, own.to_string())
        }
    };
    let tick = Tick { job, scheduler, stored_at };
    let id = tick.message_id(&next);
    Ok((tick, id))
}

fn parse_subject<S: FromStr<Err = SubjectError>>(subject: &str) -> Result<S, Malformed> {
    subject.parse().map_err(|error| Malformed::new("subject", format!("{error}, got {subject}")))
}

fn check_contract(headers: Option<&HeaderMap>) -> Result<(), Malformed> {
    match headers.and_then(|headers| headers.get(header::CONTRACT)) {
        None => Ok(()),
        Some(version) if version.as_str() == header::CONTRACT_VERSION => Ok(()),
        Some(version) => {
            let shown: String = version.as_str().chars().take(20).collect();
            let problem = format!(
                "version {shown:?} is not supported; this worker supports {:?}",
                header::CONTRACT_VERSION
            );
            Err(Malformed::new(header::CONTRACT, problem))
        }
    }
}

/// Parses the request id.
pub(crate) fn request_id(headers: Option<&HeaderMap>) -> Result<Option<Uuid>, Malformed> {
    let value_of = |name: &str| headers?.get(name).map(HeaderValue::as_str);
    header::request_id(value_of).map_or(Ok(None), |(name, _)| id(headers, name))
}

/// Parses a header that holds a UUID.
pub(crate) fn id(headers: Option<&HeaderMap>, name: &str) -> Result<Option<Uuid>, Malformed> {
    match headers.and_then(|headers| headers.get(name)) {
        None => Ok(None),
        Some(value) => Uuid::try_parse(value.as_str())
            .map(Some)
            .map_err(|error| Malformed::new(name, format!("is not a UUID: {error}"))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn headers(entries: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in entries {
            headers.insert(*name, *value);
        }
        headers
    }

    #[test]
    fn a_tick_that_events_cause_is_known_by_its_own_id() {
        let read = |headers: &HeaderMap, stored_at: i64| {
            let stored_at = DateTime::from_timestamp_nanos(stored_at);
            tick("memory.woken.sync-carry", Some(headers), stored_at)
        };
        let woken = headers(&[(header::WOKEN, "0192f0c1-2b3c-7d4e-8f50-61728394a5b6")]);
        let (tick, id) = read(&woken, 1).unwrap();
        assert_eq!((tick.job.as_str(), tick.scheduler.as_str()), ("sync-carry", "memory.wake.sync-carry"));
        assert_eq!(id, read(&woken, 1).unwrap().1, "delivered again, it has one effect");
        let other = headers(&[(header::WOKEN, "0192f0c1-2b3c-7d4e-8f50-61728394a5b7")]);
        assert_ne!(id, read(&other, 1).unwrap().1);
        let of_schedule = headers(&[
            (header::SCHEDULER, "memory.schedule.sync-carry"),
            (header::SCHEDULE_NEXT, "2026-11-28T00:00:00Z"),
        ]);
        for malformed in [headers(&[(header::WOKEN, "x")]), of_schedule] {
            assert_eq!(read(&malformed, 1).unwrap_err().field, header::WOKEN);
        }
    }

    #[test]
    fn a_tick_among_the_schedules_is_one_of_a_schedule() {
        let read = |headers: &HeaderMap| {
            tick("memory.job.sync-carry", Some(headers), DateTime::from_timestamp_nanos(1))
        };
        let (scheduler, next) = ("memory.schedule.sync-carry", "2026-11-28T00:00:00Z");
        let of_schedule = headers(&[(header::SCHEDULER, scheduler), (header::SCHEDULE_NEXT, next)]);
        assert_eq!(read(&of_schedule).unwrap().0.scheduler, scheduler);
        let woken = headers(&[(header::WOKEN, "0192f0c1-2b3c-7d4e-8f50-61728394a5b6")]);
        assert_eq!(read(&woken).unwrap_err().field, header::SCHEDULER);
    }
}
