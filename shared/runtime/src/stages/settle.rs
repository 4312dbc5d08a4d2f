//! Stage five: follow-ups, answers, then the acknowledgement; or a delay; or a dead letter.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::AckKind;
use config::WorkerSettings;
use contract::{DeadLetterClass, Event, Outcome, OutcomeStatus, RequestSubject, header};
use uuid::Uuid;

use crate::delivery::dead_letter::{DeadLetter, DeadLetterReason, FailedMessage};
use crate::delivery::event_publisher::{EventPublisher, consequences, publication};
use crate::delivery::retry::{self, Budget};
use crate::delivery::watermarks::Watermarks;
use crate::process::crash::{self, Point};
use crate::process::stats::Stats;
use crate::stages::decode;
use crate::stages::pull::Delivery;
use crate::stages::write::{Decision, Settlement, Settlements};
use crate::worker::Worker;

/// What comes out of the stages before: written batches, and messages that never got that far.
pub(crate) enum ToSettle<R> {
    Written(Settlements<R>),
    Rejected(Box<Delivery>, DeadLetterClass, String),
    /// It comes again after this, and has spent no try.
    NotNow(Box<Delivery>, Duration),
}

/// Settles messages of one worker.
pub(crate) struct Settler<W> {
    pub(crate) worker: Arc<W>,
    pub(crate) client: Client,
    pub(crate) event_publisher: EventPublisher,
    pub(crate) settings: WorkerSettings,
    pub(crate) watermarks: Arc<Watermarks>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) budget: Budget,
    /// The delivery after which the broker sends a message to nobody again (`max_deliver`), if there is one.
    pub(crate) last_delivery: Option<i64>,
}

impl<W: Worker> Settler<W> {
    pub(crate) async fn settle(&mut self, item: ToSettle<W::Request>) {
        match item {
            ToSettle::Rejected(delivery, class, reason) => {
                self.dead_letter(&delivery, DeadLetterReason { class, reason, tries: 1 }).await;
            }
            ToSettle::NotNow(delivery, delay) => {
                self.stats.delayed();
                acknowledge(&delivery, AckKind::Nak(Some(delay))).await;
            }
            ToSettle::Written(Settlements { settlements, earlier }) => {
                let committed = self.split_off_failures(settlements).await;
                self.finish(committed, earlier).await;
            }
        }
    }

    /// Deals with what was not committed and gives back what was.
    async fn split_off_failures(
        &mut self,
        settlements: Vec<Settlement<W::Request>>,
    ) -> Vec<(Delivery, Option<Event>, Option<&'static str>)> {
        let mut committed = Vec::with_capacity(settlements.len());
        for Settlement { message, decision } in settlements {
            let delivery = message.into_delivery();
            match decision {
                Decision::Committed(commit) => committed.push((delivery, commit.event, commit.reason)),
                Decision::Later { reason, class } => self.put_off(&delivery, reason, class).await,
                Decision::Never { reason, class } => {
                    let tries = self.budget.forget(delivery.sequence).saturating_add(1);
                    self.dead_letter(&delivery, DeadLetterReason { class, reason, tries }).await;
                }
                Decision::HandBack => acknowledge(&delivery, AckKind::Nak(None)).await,
            }
        }
        committed
    }

    /// Publishes what the effects cause, in the order of the events, waits until the broker has it, and acknowledges.
    async fn finish(
        &mut self,
        committed: Vec<(Delivery, Option<Event>, Option<&'static str>)>,
        earlier: Vec<Event>,
    ) {
        let own: BTreeMap<i64, &Event> = committed
            .iter()
            .filter_map(|(_, event, _)| event.as_ref())
            .map(|event| (event.event_sequence, event))
            .collect();
        let mut events: BTreeMap<i64, (&Event, bool)> =
            earlier.iter().map(|event| (event.event_sequence, (event, false))).collect();
        events.extend(own.into_iter().map(|(sequence, event)| (sequence, (event, true))));
        // What another one has appended has its own follow-ups there.
        let publish = events.values().flat_map(|(event, is_own)| match is_own {
            true => consequences(&*self.worker, event),
            false => vec![publication(event)],
        });
        if self.event_publisher.publish_all(publish.collect()).await.is_err() {
            return;
        }
        self.watermarks.published(events.values().map(|(event, _)| *event));
        crash::reach(Point::FollowedUp);
        for (delivery, event, reason) in committed {
            self.budget.forget(delivery.sequence);
            let status = if event.is_some() { OutcomeStatus::Applied } else { OutcomeStatus::Unchanged };
            let event_id = event.map(|event| event.event_id);
            self.answer(&delivery, status, event_id, reason.map(str::to_owned)).await;
            acknowledge(&delivery, AckKind::Ack).await;
            crash::reach(Point::Acknowledging);
        }
    }

    /// Spends a try: the message comes again later, or is given up.
    async fn put_off(&mut self, delivery: &Delivery, reason: String, class: DeadLetterClass) {
        let tries = self.budget.spend(delivery.sequence);
        // Replicas count for themselves, so together they may come to the broker's bound before any of them to its own.
        let last = self.last_delivery.is_some_and(|last| delivery.deliveries >= last);
        if tries >= self.settings.retry_attempts || last {
            self.budget.forget(delivery.sequence);
            self.dead_letter(delivery, DeadLetterReason { class, reason, tries }).await;
            return;
        }
        let delay =
            retry::delay(tries, self.settings.retry_first_delay(), self.settings.retry_longest_delay());
        tracing::debug!(worker = W::NAME, sequence = delivery.sequence, tries, ?delay, %reason, "put off");
        self.stats.retried();
        acknowledge(delivery, AckKind::Nak(Some(delay))).await;
    }

    /// Publishes the dead letter, and only then takes the message out of the consumer.
    async fn dead_letter(&mut self, delivery: &Delivery, cause: DeadLetterReason) {
        let message = &delivery.message;
        let failed = FailedMessage {
            worker: W::NAME,
            stream: W::STREAM,
            sequence: delivery.sequence,
            subject: &message.subject,
            headers: message.headers.as_ref(),
            body: &message.payload,
        };
        let letter = DeadLetter::new(&failed, &cause, self.client.server_info().max_payload);
        if self
            .event_publisher
            .publish_until_taken(&letter.subject, &letter.headers, &letter.body)
            .await
            .is_err()
        {
            return;
        }
        crash::reach(Point::DeadLettered);
        tracing::warn!(worker = W::NAME, sequence = delivery.sequence, class = %cause.class,
            reason = %cause.reason, tries = cause.tries, "dead letter");
        self.stats.died(cause.class);
        self.answer(delivery, OutcomeStatus::Dead, None, Some(told(&cause))).await;
        acknowledge(delivery, AckKind::Term).await;
    }

    /// Sends the outcome to the publisher's own inbox, if it named one. Nobody waits for it to arrive.
    async fn answer(
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
            tracing::warn!(worker = W::NAME, service = %subject.service, "the answer's subject is not in the service's inbox");
            return;
        }
        let request_id = decode::id(headers, header::MESSAGE_ID).ok().flatten();
        let outcome = Outcome { request_id, status, event_id, reason };
        let Ok(body) = serde_json::to_vec(&outcome) else { return };
        if let Err(error) = self.client.publish(reply_to.as_str().to_owned(), body.into()).await {
            tracing::debug!(worker = W::NAME, %error, "the outcome was not sent");
        }
    }
}

/// What the publisher is told. Why something was denied is nobody's business but the operator's.
fn told(cause: &DeadLetterReason) -> String {
    if cause.class == DeadLetterClass::Denied { cause.class.to_string() } else { cause.reason.clone() }
}

/// An acknowledgement that does not reach the broker costs a redelivery, which the inbox bears.
async fn acknowledge(delivery: &Delivery, kind: AckKind) {
    if let Err(error) = delivery.message.ack_with(kind).await {
        tracing::debug!(sequence = delivery.sequence, %error, "not acknowledged");
    }
}
