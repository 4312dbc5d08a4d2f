//! Counts the outcomes of published requests.

use std::collections::HashSet;
use std::time::Duration;

use cli::outln;
use cli::output::printable;
use cli::table::grouped;
use client::Outcomes;
use contract::{Outcome, OutcomeStatus};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

/// Maximum number of printed reasons.
const REASONS: usize = 5;

/// Receives and counts outcomes in the background while requests are published.
pub(super) struct Tally {
    subject: String,
    counts: watch::Receiver<Counts>,
    listener: JoinHandle<()>,
}

#[derive(Clone, Debug, Default)]
struct Counts {
    applied: u64,
    unchanged: u64,
    dead: u64,
    reasons: Vec<String>,
}

impl Counts {
    fn all(&self) -> u64 {
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

impl Tally {
    /// Subscribes to the outcomes of a service, which must be the service that the connection authenticated as.
    pub(super) async fn start(connection: &async_nats::Client, service: &str) -> anyhow::Result<Self> {
        let outcomes = Outcomes::subscribe(connection, &service.parse()?).await?;
        let subject = outcomes.subject().to_owned();
        let (sender, counts) = watch::channel(Counts::default());
        Ok(Self { subject, counts, listener: tokio::spawn(count(outcomes, sender)) })
    }

    /// The reply subject for outcomes.
    pub(super) fn subject(&self) -> &str {
        &self.subject
    }

    /// Waits until the expected number of outcomes has arrived or the deadline has passed, and prints the counts.
    pub(super) async fn wait(mut self, expected: u64, deadline: Duration) -> anyhow::Result<()> {
        let all = self.counts.wait_for(|counts| counts.all() >= expected);
        let in_time = matches!(tokio::time::timeout(deadline, all).await, Ok(Ok(_)));
        self.listener.abort();
        let counts = self.counts.borrow().clone();
        let missing = expected.saturating_sub(counts.all());
        outln!(
            "applied {}, unchanged {}, dead {}, no outcome yet (timed out) {}",
            grouped(counts.applied),
            grouped(counts.unchanged),
            grouped(counts.dead),
            grouped(missing)
        );
        for reason in &counts.reasons {
            outln!("{}", printable(reason));
        }
        anyhow::ensure!(
            in_time || missing == 0,
            "{} have no outcome after {} s; is the worker running? `memfleet status` shows its lag",
            grouped(missing),
            deadline.as_secs()
        );
        anyhow::ensure!(
            counts.dead == 0,
            "{} were dead-lettered; see `memfleet dead list`",
            grouped(counts.dead)
        );
        Ok(())
    }
}

async fn count(mut outcomes: Outcomes, counts: watch::Sender<Counts>) {
    // A redelivered request sends its outcome again.
    let mut known: HashSet<Uuid> = HashSet::new();
    while let Some(outcome) = outcomes.next().await {
        if outcome.request_id.is_none_or(|id| known.insert(id)) {
            counts.send_modify(|counts| counts.count(&outcome));
        }
    }
}
