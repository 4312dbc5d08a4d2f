//! Stage five: publishes events, sends outcomes, then acknowledges; or naks with a delay; or dead-letters.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::AckKind;
use chrono::{DateTime, Utc};
use config::WorkerSettings;
use contract::{
    DeadLetterClass, Event, Outcome, OutcomeStatus, RequestSubject, header, limit, printable_within,
};
use uuid::Uuid;

use crate::delivery::dead_letter::{DeadLetter, DeadLetterReason, FailedMessage};
use crate::delivery::event_publisher::EventPublisher;
use crate::delivery::retry::{self, Budget};
use crate::delivery::watermarks::Watermarks;
use crate::process::crash::{self, Point};
use crate::process::stats::Stats;
use crate::stages::decode;
use crate::stages::disposition::{Commit, Disposition, Effect};
use crate::stages::pull::Delivery;
use crate::stages::write::{Settlements, ToSettle};

/// Settles the messages of one worker.
pub(crate) struct Settler {
    pub(crate) worker: &'static str,
    pub(crate) client: Client,
    pub(crate) event_publisher: EventPublisher,
    pub(crate) settings: WorkerSettings,
    pub(crate) watermarks: Arc<Watermarks>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) budget: Budget,
    /// The last delivery of a message (the consumer's `max_deliver`). `None` if deliveries are not limited.
    pub(crate) last_delivery: Option<i64>,
}

impl Settler {
    pub(crate) async fn settle<I>(&mut self, item: ToSettle<I>) {
        let (items, earlier) = match item {
            ToSettle::Single(delivery, disposition) => (vec![(*delivery, disposition)], Vec::new()),
            ToSettle::Batch(Settlements { settlements, earlier }) => {
                let parts = settlements.into_iter().map(|settlement| {
                    let (message, disposition) = settlement.into_parts();
                    (message.into_delivery(), disposition)
                });
                (parts.collect(), earlier)
            }
        };
        let mut committed = Vec::with_capacity(items.len());
        for (delivery, disposition) in items {
            committed.extend(self.settle_one(delivery, disposition).await);
        }
        self.finish(committed, earlier).await;
    }

    /// Settles a message that was not committed. A committed one is returned, for [`finish`](Self::finish).
    async fn settle_one(
        &mut self,
        delivery: Delivery,
        disposition: Disposition,
    ) -> Option<(Delivery, Commit)> {
        match disposition {
            Disposition::Committed(commit) => return Some((delivery, commit)),
            Disposition::Retry { reason, class } => self.retry(&delivery, reason, class).await,
            Disposition::RetryNotBefore { time, deadline, reason } => {
                self.retry_not_before(&delivery, time, deadline, reason).await;
            }
            Disposition::Redeliver(delay) => {
                let delay = (!delay.is_zero()).then_some(delay);
                if delay.is_some() {
                    self.stats.delayed();
                }
                acknowledge(&delivery, AckKind::Nak(delay)).await;
            }
            Disposition::DeadLetter { reason, class } => {
                let tries = self.budget.forget(&delivery.key()).saturating_add(1);
                self.dead_letter(&delivery, DeadLetterReason { class, reason, tries }).await;
            }
        }
        None
    }

    /// Publishes the events of committed messages in order, waits until the broker has stored them, and acknowledges
    /// the messages.
    async fn finish(&mut self, committed: Vec<(Delivery, Commit)>, earlier: Vec<Event>) {
        let own = committed.iter().flat_map(|(_, commit)| &commit.events);
        let events: BTreeMap<i64, &Event> =
            earlier.iter().chain(own).map(|event| (event.event_sequence, event)).collect();
        if !events.is_empty() {
            if self.event_publisher.publish_all(events.values().copied()).await.is_err() {
                return;
            }
            self.watermarks.published(events.values().copied());
            crash::reach(Point::EventsPublished);
        }
        for (delivery, Commit { effect, events, reason }) in committed {
            self.budget.forget(&delivery.key());
            let status = match effect {
                Effect::Applied => OutcomeStatus::Applied,
                Effect::Repeated if !events.is_empty() => OutcomeStatus::Applied,
                Effect::Unchanged | Effect::Repeated => OutcomeStatus::Unchanged,
            };
            let event_id = events.as_slice().first().map(|event| event.event_id);
            self.send_outcome(&delivery, status, event_id, reason.map(Cow::into_owned)).await;
            acknowledge(&delivery, AckKind::Ack).await;
            crash::reach(Point::Acknowledging);
        }
    }

    /// Spends a try of the retry budget: the message is redelivered later, or dead-lettered when the budget is spent.
    async fn retry(&mut self, delivery: &Delivery, reason: String, class: DeadLetterClass) {
        let tries = self.budget.spend(delivery.key());
        if tries >= self.settings.retry_attempts || self.is_last(delivery) {
            self.budget.forget(&delivery.key());
            self.dead_letter(delivery, DeadLetterReason { class, reason, tries }).await;
            return;
        }
        let delay =
            retry::delay(tries, self.settings.retry_first_delay(), self.settings.retry_longest_delay());
        tracing::debug!(worker = self.worker, sequence = delivery.sequence, tries, ?delay, %reason, "retried later");
        self.stats.retried();
        acknowledge(delivery, AckKind::Nak(Some(delay))).await;
    }

    /// Naks a message until `time`, or dead-letters it when `deadline` has passed.
    async fn retry_not_before(
        &mut self,
        delivery: &Delivery,
        time: DateTime<Utc>,
        deadline: DateTime<Utc>,
        reason: String,
    ) {
        let now = Utc::now();
        if now >= deadline || self.is_last(delivery) {
            let tries = self.budget.forget(&delivery.key()).saturating_add(1);
            let class = DeadLetterClass::MissingPrerequisite;
            self.dead_letter(delivery, DeadLetterReason { class, reason, tries }).await;
            return;
        }
        let delay = (time.min(deadline) - now).to_std().unwrap_or_default().max(MIN_DELAY);
        tracing::debug!(worker = self.worker, sequence = delivery.sequence, ?delay, %reason, "retried later");
        self.stats.delayed();
        acknowledge(delivery, AckKind::Nak(Some(delay))).await;
    }

    /// Whether the broker will not deliver the message again. Replicas count tries separately, so the broker's limit
    /// may be reached before any replica's retry budget is spent.
    fn is_last(&self, delivery: &Delivery) -> bool {
        self.last_delivery.is_some_and(|last| delivery.deliveries >= last)
    }

    /// Publishes the dead letter and, once it is stored, terminates the message in the consumer.
    async fn dead_letter(&mut self, delivery: &Delivery, cause: DeadLetterReason) {
        let message = &delivery.message;
        let failed = FailedMessage {
            worker: self.worker,
            stream: delivery.stream,
            sequence: delivery.sequence,
            subject: &message.subject,
            headers: message.headers.as_ref(),
            body: &message.payload,
        };
        let letter = DeadLetter::new(&failed, &cause, self.client.server_info().max_payload);
        if self
            .event_publisher
            .publish_until_stored(&letter.subject, &letter.headers, &letter.body)
            .await
            .is_err()
        {
            return;
        }
        crash::reach(Point::DeadLettered);
        tracing::warn!(worker = self.worker, sequence = delivery.sequence, class = %cause.class,
            reason = %cause.reason, tries = cause.tries, "dead letter");
        self.stats.dead_lettered(cause.class);
        self.send_outcome(delivery, OutcomeStatus::Dead, None, Some(reason_for_publisher(&cause))).await;
        acknowledge(delivery, AckKind::Term).await;
    }

    /// Sends the outcome to the publisher's inbox, if the request names one. Its arrival is not confirmed.
    async fn send_outcome(
        &self,
        delivery: &Delivery,
        status: OutcomeStatus,
        event_id: Option<Uuid>,
        reason: Option<String>,
    ) {
        let headers = delivery.message.headers.as_ref();
        let Some(reply_to) = headers.and_then(|headers| headers.get(header::REPLY_TO)) else { return };
        let Ok(subject) = delivery.message.subject.parse::<RequestSubject>() else { return };
        if !subject.service.owns_inbox(reply_to.as_str()) {
            tracing::warn!(
                worker = self.worker,
                service = %subject.service,
                "no outcome sent: the reply subject is not in the service's inbox"
            );
            return;
        }
        let request_id = decode::id(headers, header::MESSAGE_ID).ok().flatten();
        // A reason may quote the publisher's own text, and is printed by programs that expect one line.
        let reason = reason.map(|reason| printable_within(&reason, limit::REASON_CHARS));
        let outcome = Outcome { request_id, status, event_id, reason };
        let Ok(body) = serde_json::to_vec(&outcome) else { return };
        if let Err(error) = self.client.publish(reply_to.as_str().to_owned(), body.into()).await {
            tracing::debug!(worker = self.worker, %error, "cannot send the outcome");
        }
    }
}

/// Minimum delay of a message that is retried at a given time.
const MIN_DELAY: Duration = Duration::from_millis(10);

/// The reason sent to the publisher. Why a message was denied is disclosed to the operator only.
fn reason_for_publisher(cause: &DeadLetterReason) -> String {
    if cause.class == DeadLetterClass::Denied { cause.class.to_string() } else { cause.reason.clone() }
}

/// Acknowledges a message. If that fails, the message is redelivered and deduplicated by the inbox.
async fn acknowledge(delivery: &Delivery, kind: AckKind) {
    if let Err(error) = delivery.message.ack_with(kind).await {
        tracing::debug!(sequence = delivery.sequence, %error, "cannot acknowledge");
    }
}
