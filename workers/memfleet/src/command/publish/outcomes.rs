//! What workers answer.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::Context;
use async_nats::{Client, Subscriber};
use contract::{Outcome, OutcomeStatus};
use futures::StreamExt;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::outln;
use crate::table::grouped;

/// The most reasons that are printed.
const REASONS: usize = 5;

/// Listens for outcomes while requests are being published.
pub(super) struct Outcomes {
    subject: String,
    tally: watch::Receiver<Tally>,
    listener: JoinHandle<()>,
}

#[derive(Clone, Debug, Default)]
struct Tally {
    applied: u64,
    unchanged: u64,
    dead: u64,
    reasons: Vec<String>,
}

impl Tally {
    fn answered(&self) -> u64 {
        self.applied + self.unchanged + self.dead
    }

    fn count(&mut self, outcome: &Outcome) {
        match outcome.status {
            OutcomeStatus::Applied => self.applied += 1,
            OutcomeStatus::Unchanged => self.unchanged += 1,
            OutcomeStatus::Dead => {
                self.dead += 1;
                if self.reasons.len() < REASONS {
                    let id = outcome.request_id.map_or_else(String::new, |id| format!("{id}: "));
                    let reason = outcome.reason.as_deref().unwrap_or("no reason given");
                    self.reasons.push(format!("dead: {id}{reason}"));
                }
            }
        }
    }
}

impl Outcomes {
    /// Starts to listen in the inbox of a service, which the connection has for its own.
    pub(super) async fn listen(client: &Client, service: &str) -> anyhow::Result<Self> {
        let subject = client.new_inbox();
        let subscriber = client
            .subscribe(subject.clone())
            .await
            .with_context(|| format!("the inbox of {service} cannot be listened to"))?;
        // The server must know of it before the first request is answered.
        client.flush().await.context("the broker does not answer")?;
        let (sender, tally) = watch::channel(Tally::default());
        Ok(Self { subject, tally, listener: tokio::spawn(count(subscriber, sender)) })
    }

    /// Where answers are to be sent.
    pub(super) fn subject(&self) -> &str {
        &self.subject
    }

    /// Waits until so many requests are answered, and says how they ended.
    pub(super) async fn wait(mut self, expected: u64, deadline: Duration) -> anyhow::Result<()> {
        let all = self.tally.wait_for(|tally| tally.answered() >= expected);
        let in_time = matches!(tokio::time::timeout(deadline, all).await, Ok(Ok(_)));
        self.listener.abort();
        let tally = self.tally.borrow().clone();
        let missing = expected.saturating_sub(tally.answered());
        outln!(
            "applied {}, unchanged {}, dead {}, without an outcome {}",
            grouped(tally.applied),
            grouped(tally.unchanged),
            grouped(tally.dead),
            grouped(missing)
        );
        for reason in &tally.reasons {
            outln!("{reason}");
        }
        anyhow::ensure!(
            in_time || missing == 0,
            "{} without an outcome after {} s; is the worker running? `memfleet status` shows its lag",
            grouped(missing),
            deadline.as_secs()
        );
        anyhow::ensure!(
            tally.dead == 0,
            "{} became dead letters; see `memfleet dead list`",
            grouped(tally.dead)
        );
        Ok(())
    }
}

async fn count(mut subscriber: Subscriber, tally: watch::Sender<Tally>) {
    // A request that is delivered again is answered again.
    let mut known: HashSet<Uuid> = HashSet::new();
    while let Some(message) = subscriber.next().await {
        match serde_json::from_slice::<Outcome>(&message.payload) {
            Ok(outcome) => {
                if outcome.request_id.is_none_or(|id| known.insert(id)) {
                    tally.send_modify(|tally| tally.count(&outcome));
                }
            }
            Err(error) => tracing::warn!(%error, "an outcome cannot be read"),
        }
    }
}
