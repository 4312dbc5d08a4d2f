//! Messages beyond the share of their service in the stream of dead letters: one dead letter lists many of them. They
//! stay in their stream until it drops them for their age.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use contract::{
    DeadLetterClass, DeadLetterSubject, DeadLetterSummary, Service, header, limit, printable_within,
};
use tokio::time::Instant;
use uuid::Uuid;

use crate::delivery::dead_letter::{DeadLetter, DeadLetterReason};
use crate::stages::pull::Delivery;

/// A summary is published at the latest after this time.
const INTERVAL: Duration = Duration::from_secs(60);
/// Maximum number of messages in a summary. They are not acknowledged before it is published.
const MAX_MESSAGES: usize = 1_000;

/// The service, the class and the stream of the messages of a summary.
type Key = (Option<Service>, DeadLetterClass, &'static str);

/// The summaries to be published.
#[derive(Debug, Default)]
pub(crate) struct Summaries {
    open: HashMap<Key, Summary>,
}

/// Messages of one service that are listed in one dead letter.
#[derive(Debug)]
pub(crate) struct Summary {
    key: Key,
    since: Instant,
    pub(crate) messages: Vec<(Delivery, DeadLetterReason)>,
}

impl Summaries {
    /// Adds a message.
    pub(crate) fn add(&mut self, service: Option<Service>, mut delivery: Delivery, cause: DeadLetterReason) {
        // It has been processed; nobody waits until the summary is published.
        delivery.place = None;
        strip(&mut delivery.message.message);
        let key: Key = (service, cause.class, delivery.stream);
        let summary = self.open.entry(key.clone()).or_insert_with(|| Summary {
            key,
            since: Instant::now(),
            messages: Vec::new(),
        });
        summary.messages.push((delivery, cause));
    }

    /// Removes the summaries that are to be published: all of them at the end.
    pub(crate) fn take_due(&mut self, is_end: bool) -> Vec<Summary> {
        let is_due = |_: &Key, summary: &mut Summary| {
            is_end || summary.messages.len() >= MAX_MESSAGES || summary.since.elapsed() >= INTERVAL
        };
        self.open.extract_if(is_due).map(|(_, summary)| summary).collect()
    }
}

impl Summary {
    /// The dead letter that lists the messages.
    pub(crate) fn dead_letter(&self, worker: &str, id_namespace: Uuid) -> DeadLetter {
        let (service, class, stream) = &self.key;
        let mut sequences: Vec<u64> = self.messages.iter().map(|(delivery, _)| delivery.sequence).collect();
        sequences.sort_unstable();
        let (stream_name, ranges) = ((*stream).to_owned(), ranges(&sequences));
        let listed = DeadLetterSummary {
            service: service.as_ref().map(ToString::to_string),
            stream: stream_name,
            ranges,
        };
        let body = Bytes::from(serde_json::to_vec(&listed).unwrap_or_default());
        let (first, reason) = match self.messages.first() {
            Some((delivery, cause)) => (delivery.sequence, cause.reason.to_string()),
            None => (0, String::new()),
        };
        let from = service.as_ref().map_or_else(|| "no service".to_owned(), |name| format!("service {name}"));
        let count = self.messages.len();
        let id = Uuid::new_v5(&id_namespace, &[worker.as_bytes(), &body].concat());
        let mut headers = HeaderMap::new();
        headers.insert(header::MESSAGE_ID, id.to_string());
        headers.insert(header::DEAD_CLASS, class.as_str());
        let reason = format!(
            "{count} messages of {from}, beyond its share of dead letters; they are still in {stream}; the first: {reason}"
        );
        headers.insert(header::DEAD_REASON, printable_within(&reason, limit::REASON_CHARS));
        headers.insert(header::DEAD_SOURCE, format!("{stream}/{first}"));
        headers.insert(header::DEAD_TRIES, "1");
        headers.insert(header::DEAD_COUNT, count.to_string());
        let subject = DeadLetterSubject { worker, user_id: None }.to_string().into();
        DeadLetter { subject, headers, body }
    }
}

/// Keeps of a message what its outcome needs. The rest stays in its stream; here, a thousand of them wait for a minute.
fn strip(message: &mut async_nats::Message) {
    message.payload = Bytes::new();
    message.headers = message.headers.take().map(|all| {
        let mut needed = HeaderMap::new();
        for name in [header::REPLY_TO, header::REQUEST_ID, header::MESSAGE_ID] {
            if let Some(value) = all.get(name) {
                needed.insert(name, value.clone());
            }
        }
        needed
    });
}

/// The ranges of consecutive numbers in a sorted list, each as its first and last number.
fn ranges(sorted: &[u64]) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for &number in sorted {
        match ranges.last_mut() {
            Some((_, last)) if number <= last.saturating_add(1) => *last = number,
            Some(_) | None => ranges.push((number, number)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listed_message_takes_no_room() {
        let mut headers = HeaderMap::new();
        for name in [header::REPLY_TO, header::REQUEST_ID, header::MESSAGE_ID, header::AUTHORIZATION, "Other"]
        {
            headers.insert(name, "x".repeat(1_000));
        }
        let mut message = async_nats::Message {
            subject: "memory.req.test.context.put.1".into(),
            reply: None,
            payload: Bytes::from(vec![0; 1_000_000]),
            headers: Some(headers),
            status: None,
            description: None,
            length: 1_005_000,
        };
        strip(&mut message);
        let kept = message.headers.map(|headers| headers.iter().count());
        assert_eq!((message.payload.len(), kept), (0, Some(3)), "what its outcome needs");
    }

    #[test]
    fn consecutive_numbers_are_one_range() {
        assert_eq!(ranges(&[1, 2, 3, 7, 9, 9, 10]), [(1, 3), (7, 7), (9, 10)]);
        assert!(ranges(&[]).is_empty());
    }
}
