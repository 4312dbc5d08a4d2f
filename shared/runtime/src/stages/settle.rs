//! Stage five: publishes events, sends outcomes, then acknowledges; or naks with a delay; or dead-letters.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::AckKind;
use chrono::{DateTime, Utc};
use config::WorkerSettings;
use contract::{
    DeadLetterClass, Outcome, OutcomeStatus, RequestSubject, WorkerInfo, header, limit, printable_within,
};
use store::Pool;
use store::blackboard::StoredEvent;
use store::clock::Earlier;
use store::unpublished::EventKey;
use tokio::time::Instant;
use uuid::Uuid;

use crate::delivery::accounts::{Accounts, WaitsFor};
use crate::delivery::dead_letter::{DeadLetter, DeadLetterReason, FailedMessage};
use crate::delivery::event_order::{self, Order, OtherWorkers};
use crate::delivery::event_publisher::EventPublisher;
use crate::delivery::retry;
use crate::delivery::share::Share;
use crate::delivery::watermarks::Watermarks;
use crate::process::crash::{self, Point};
use crate::process::readiness::{Dependency, Readiness};
use crate::process::stats::Stats;
use crate::reason::Reason;
use crate::stages::decode;
use crate::stages::disposition::{Commit, Disposition, Effect};
use crate::stages::pull::Delivery;
use crate::stages::write::{Settlements, ToSettle};

/// Settles the messages of one lane of a worker.
pub(crate) struct Settler {
    pub(crate) worker: &'static str,
    pub(crate) client: Client,
    pub(crate) event_publisher: EventPublisher,
    pub(crate) settings: WorkerSettings,
    pub(crate) watermarks: Arc<Watermarks>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) accounts: Arc<Accounts>,
    pub(crate) dead_letter_ids: Uuid,
    pub(crate) readiness: Readiness,
    pub(crate) other_workers: OtherWorkers,
    pub(crate) pool: Pool,
    /// The last delivery of a message (the consumer's `max_deliver`). `None` if deliveries are not limited.
    pub(crate) last_delivery: Option<i64>,
}

impl Settler {
    pub(crate) async fn settle<I>(&mut self, item: ToSettle<I>) {
        self.accounts.next_batch();
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
            Disposition::Retry { reason, class, awaits } => {
                self.retry(delivery, reason, class, awaits).await;
            }
            Disposition::RetryNotBefore { time, deadline, reason } => {
                self.retry_not_before(delivery, time, deadline, reason).await;
            }
            Disposition::Redeliver(delay) => {
                let delay = (!delay.is_zero()).then_some(delay);
                if delay.is_some() {
                    self.stats.delayed();
                }
                acknowledge(&delivery, AckKind::Nak(delay)).await;
            }
            Disposition::Park(at_least) => self.park(delivery, at_least, true).await,
            Disposition::SetAside(at_least) => self.park(delivery, at_least, false).await,
            Disposition::DeadLetter { reason, class } => {
                let tries = self.accounts.forget(&delivery).saturating_add(1);
                self.dead_letter(delivery, DeadLetterReason { class, reason, tries }).await;
            }
        }
        None
    }

    /// Publishes the events of committed messages in order, waits until the broker has stored them, and acknowledges
    /// the messages. Events after one of another worker wait for it, those of other sessions do not.
    async fn finish(&mut self, mut committed: Vec<(Delivery, Commit)>, mut earlier: Vec<Earlier>) {
        let mut deadline = None;
        loop {
            let own = committed.iter().flat_map(|(_, commit)| &commit.events);
            let Order { ready, held } = Order::of(&earlier, own);
            if !self.publish(&ready.values().copied().collect::<Vec<_>>()).await {
                return;
            }
            if held.is_empty() {
                return self.acknowledge_committed(committed).await;
            }
            let published: HashSet<Uuid> = ready.values().map(|stored| stored.event.event_id).collect();
            let is_held = |(_, commit): &(Delivery, Commit)| {
                commit.events.iter().any(|stored| held.contains(&stored.event.event_id))
            };
            let (waiting, done) = committed.into_iter().partition(is_held);
            self.acknowledge_committed(done).await;
            committed = waiting;
            earlier.retain(|earlier| earlier.is_cut || !published.contains(&earlier.stored.event.event_id));
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + event_order::WAIT);
            if committed.is_empty() || !self.other_workers.wait(&mut earlier, deadline).await {
                return self.hold(committed, &earlier).await;
            }
        }
    }

    /// Publishes events, and notes that they are. False if that failed: their messages are redelivered.
    async fn publish(&self, events: &[&StoredEvent]) -> bool {
        if events.is_empty() {
            return true;
        }
        if self.event_publisher.publish_all(events).await.is_err() {
            return false;
        }
        crash::reach(Point::EventsPublished);
        let keys: Vec<EventKey> = events.iter().map(|stored| stored.key()).collect();
        let mut tries = 0;
        // Other workers wait for what is not noted, so its messages are acknowledged only afterwards.
        while let Err(fault) = event_order::note_published(&self.pool, &keys).await {
            tries += 1;
            tracing::warn!(worker = self.worker, %fault, tries, "cannot note that events are published, retrying");
            let most =
                if self.event_publisher.stop.is_cancelled() { NOTE_TRIES_WHEN_STOPPING } else { NOTE_TRIES };
            if tries >= most {
                return false;
            }
            tokio::time::sleep(retry::delay(tries, FIRST_NOTE_DELAY, LONGEST_NOTE_DELAY)).await;
        }
        self.watermarks.published(events.iter().map(|stored| &stored.event));
        for job in contract::woken_by(events.iter().map(|stored| stored.event.event_type)) {
            // A hint that is lost is made up for by the job's schedule.
            let sent = self.client.publish(contract::wake_subject(job), "".into()).await;
            tracing::trace!(worker = self.worker, job, sent = sent.is_ok(), "hint");
        }
        true
    }

    async fn acknowledge_committed(&mut self, committed: Vec<(Delivery, Commit)>) {
        for (delivery, Commit { effect, events, reason }) in committed {
            self.accounts.forget(&delivery);
            let status = match effect {
                Effect::Applied => OutcomeStatus::Applied,
                Effect::Repeated if !events.is_empty() => OutcomeStatus::Applied,
                Effect::Unchanged | Effect::Repeated => OutcomeStatus::Unchanged,
            };
            let event_id = events.as_slice().first().map(|stored| stored.event.event_id);
            self.send_outcome(&delivery, status, event_id, reason.map(Cow::into_owned)).await;
            acknowledge(&delivery, AckKind::Ack).await;
            crash::reach(Point::Acknowledging);
        }
    }

    /// Naks committed messages whose events wait for those of another worker, for delays that grow with their deliveries.
    /// They spend no try, and none is dead-lettered: after the last delivery, its events are published all the same, as are those
    /// of further messages when too many of their service wait.
    async fn hold(&mut self, committed: Vec<(Delivery, Commit)>, earlier: &[Earlier]) {
        if committed.is_empty() {
            return;
        }
        self.other_workers.held(earlier, committed.len());
        let mut beyond = Vec::new();
        for (delivery, commit) in committed {
            let delay = retry::parked_delay(delivery.deliveries);
            if !self.accounts.may_wait(&delivery, WaitsFor::Others, delay) {
                beyond.push((delivery, commit));
                continue;
            }
            tracing::debug!(worker = self.worker, sequence = delivery.sequence, ?delay, "its events wait");
            self.stats.delayed();
            acknowledge(&delivery, AckKind::Nak(Some(delay))).await;
        }
        let events: Vec<&StoredEvent> = beyond.iter().flat_map(|(_, commit)| &commit.events).collect();
        if self.publish(&events).await {
            self.acknowledge_committed(beyond).await;
        }
    }

    /// Spends a try of the retry budget: the message is redelivered later, or dead-lettered when the budget is spent.
    /// While the worker that it awaits is behind, it is set aside instead.
    async fn retry(
        &mut self,
        delivery: Delivery,
        reason: Reason,
        class: DeadLetterClass,
        awaits: Option<&'static WorkerInfo>,
    ) {
        if let Some(worker) = awaits.filter(|_| !self.is_last(&delivery))
            && self.accounts.is_behind(worker, &delivery).await
        {
            self.park(delivery, Duration::ZERO, true).await;
            return;
        }
        let tries = self.accounts.spend(&delivery);
        let delay =
            retry::delay(tries, self.settings.retry_first_delay(), self.settings.retry_longest_delay());
        let is_spent = tries >= self.settings.retry_attempts || self.is_last(&delivery);
        let is_over = !is_spent
            && class == DeadLetterClass::MissingPrerequisite
            && !self.accounts.may_wait(&delivery, WaitsFor::Retry, delay);
        if is_spent || is_over {
            self.accounts.forget(&delivery);
            let reason = if is_over { too_many_wait(&reason) } else { reason };
            self.dead_letter(delivery, DeadLetterReason { class, reason, tries }).await;
            return;
        }
        tracing::debug!(worker = self.worker, sequence = delivery.sequence, tries, ?delay, %reason, "retried later");
        self.stats.retried();
        acknowledge(&delivery, AckKind::Nak(Some(delay))).await;
    }

    /// Naks a message for a delay that grows with its deliveries. It spends no try. If it waits for others, it is dead-lettered
    /// when too many of its service do: the broker would deliver nothing to this consumer any more.
    async fn park(&mut self, delivery: Delivery, at_least: Duration, waits_for_others: bool) {
        let delay = retry::parked_delay(delivery.deliveries).max(at_least);
        let is_last = self.is_last(&delivery);
        if is_last || waits_for_others && !self.accounts.may_wait(&delivery, WaitsFor::Others, delay) {
            let tries = self.accounts.forget(&delivery).saturating_add(1);
            let class = DeadLetterClass::Exhausted;
            let reason = Reason::new(if is_last {
                "the rows that it needs stayed locked, others were prepared before it, or its user was restricted or being erased, until its last delivery"
            } else {
                "too many messages of its service wait for other workers or for locked rows"
            });
            self.dead_letter(delivery, DeadLetterReason { class, reason, tries }).await;
            return;
        }
        tracing::debug!(worker = self.worker, sequence = delivery.sequence, ?delay, "set aside");
        self.stats.delayed();
        acknowledge(&delivery, AckKind::Nak(Some(delay))).await;
    }

    /// Naks a message until `time`, or dead-letters it when `deadline` has passed.
    async fn retry_not_before(
        &mut self,
        delivery: Delivery,
        time: DateTime<Utc>,
        deadline: DateTime<Utc>,
        reason: Reason,
    ) {
        let now = Utc::now();
        let delay = (time.min(deadline) - now).to_std().unwrap_or_default().max(MIN_DELAY);
        let is_over = !self.accounts.may_wait(&delivery, WaitsFor::Retry, delay);
        if now >= deadline || self.is_last(&delivery) || is_over {
            let reason = if is_over { too_many_wait(&reason) } else { reason };
            let tries = self.accounts.forget(&delivery).saturating_add(1);
            let class = DeadLetterClass::MissingPrerequisite;
            self.dead_letter(delivery, DeadLetterReason { class, reason, tries }).await;
            return;
        }
        tracing::debug!(worker = self.worker, sequence = delivery.sequence, ?delay, %reason, "retried later");
        self.stats.delayed();
        acknowledge(&delivery, AckKind::Nak(Some(delay))).await;
    }

    /// Whether the broker will not deliver the message again. Replicas count tries separately, so the broker's limit
    /// may be reached before any replica's retry budget is spent.
    fn is_last(&self, delivery: &Delivery) -> bool {
        self.last_delivery.is_some_and(|last| delivery.deliveries >= last)
    }

    /// Publishes the dead letter of a message and, once it is stored, terminates the message in the consumer. A message
    /// beyond the share of its service is listed in a summary later.
    async fn dead_letter(&mut self, delivery: Delivery, cause: DeadLetterReason) {
        let message = &delivery.message;
        let share = self.accounts.take_share(&delivery, cause.class);
        let failed = FailedMessage {
            worker: self.worker,
            id_namespace: self.dead_letter_ids,
            stream: delivery.stream,
            sequence: delivery.sequence,
            subject: &message.subject,
            headers: message.headers.as_ref(),
            body: &message.payload,
        };
        let max_payload = self.client.server_info().max_payload;
        let letter = match share {
            Share::Complete => DeadLetter::new(&failed, &cause, max_payload),
            Share::WithoutBody => DeadLetter::without_body(&failed, &cause, max_payload),
            Share::Summary => {
                self.accounts.summarize(delivery, cause);
                return self.publish_summaries(false).await;
            }
        };
        let is_stored = self.publish_dead_letter(&letter).await;
        self.dead_lettered(&delivery, cause, is_stored).await;
    }

    /// Publishes the summaries that are due: all of them at the end.
    pub(crate) async fn publish_summaries(&mut self, is_end: bool) {
        for summary in self.accounts.summaries_due(is_end) {
            let is_stored =
                self.publish_dead_letter(&summary.dead_letter(self.worker, self.dead_letter_ids)).await;
            for (delivery, cause) in summary.messages {
                self.dead_lettered(&delivery, cause, is_stored).await;
            }
        }
    }

    /// Whether the broker has stored a dead letter. If the stream has no room for it, the other messages go on.
    async fn publish_dead_letter(&self, letter: &DeadLetter) -> bool {
        if !self.accounts.may_dead_letter() {
            return false;
        }
        let DeadLetter { subject, headers, body } = letter;
        let stored = self.event_publisher.publish_dead_letter(subject, headers, body).await;
        let is_stored = stored.is_ok();
        self.accounts.note_dead_letter(is_stored);
        self.readiness.note(Dependency::DeadLetterStream, stored);
        crash::reach(Point::DeadLettered);
        is_stored
    }

    /// Terminates a message whose dead letter is stored; otherwise it is redelivered, later each time.
    async fn dead_lettered(&self, delivery: &Delivery, cause: DeadLetterReason, is_stored: bool) {
        if !is_stored {
            let deliveries = u32::try_from(delivery.deliveries).unwrap_or(u32::MAX);
            let delay = retry::delay(deliveries, FIRST_DEAD_DELAY, LONGEST_DEAD_DELAY);
            self.stats.delayed();
            acknowledge(delivery, AckKind::Nak(Some(delay))).await;
            return;
        }
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
        let request_id = decode::request_id(headers).ok().flatten();
        // A reason may quote the publisher's own text, and is printed by programs that expect one line.
        let reason = reason.map(|reason| printable_within(&reason, limit::REASON_CHARS));
        let outcome = Outcome { request_id, status, event_id, reason };
        let Ok(body) = serde_json::to_vec(&outcome) else { return };
        if let Err(error) = self.client.publish(reply_to.as_str().to_owned(), body.into()).await {
            tracing::debug!(worker = self.worker, %error, "cannot send the outcome");
        }
    }
}

/// How often it is tried to note that events are published. Their messages are redelivered after that.
const NOTE_TRIES: u32 = 20;
const NOTE_TRIES_WHEN_STOPPING: u32 = 3;
const FIRST_NOTE_DELAY: Duration = Duration::from_millis(20);
const LONGEST_NOTE_DELAY: Duration = Duration::from_secs(1);
/// Delay before a message is redelivered whose dead letter could not be stored.
const FIRST_DEAD_DELAY: Duration = Duration::from_secs(1);
/// The longest such delay. A message reaches the consumer's `max_deliver` after hours.
const LONGEST_DEAD_DELAY: Duration = Duration::from_secs(600);
/// Minimum delay of a message that is retried at a given time.
const MIN_DELAY: Duration = Duration::from_millis(10);

/// The reason of a message that is not retried because its service has too many that are.
fn too_many_wait(reason: &Reason) -> Reason {
    const WHY: &str = "not retried, because too many messages of its service wait for a retry";
    Reason::new(format!("{}; {WHY}", reason.for_publisher())).for_operators(format!("{reason}; {WHY}"))
}

/// The reason sent to the publisher. Why a message was denied is disclosed to the operator only.
fn reason_for_publisher(cause: &DeadLetterReason) -> String {
    let denied = cause.class == DeadLetterClass::Denied;
    if denied { cause.class.to_string() } else { cause.reason.for_publisher().to_owned() }
}

/// Acknowledges a message. If that fails, the message is redelivered and deduplicated by the inbox.
async fn acknowledge(delivery: &Delivery, kind: AckKind) {
    if let Err(error) = delivery.message.ack_with(kind).await {
        tracing::debug!(sequence = delivery.sequence, %error, "cannot acknowledge");
    }
}
