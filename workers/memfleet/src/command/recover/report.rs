//! What a recovery has done.

use anyhow::ensure;
use cli::outln;
use cli::table::grouped;
use serde::Serialize;

use super::events::Vanished;
use super::requests::{Requests, Unfinished};

#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) workers: Vec<WorkerReport>,
    pub(super) vanished: Vanished,
}

#[derive(Debug, Serialize)]
pub(super) struct WorkerReport {
    worker: &'static str,
    stream: &'static str,
    /// From which message the consumer has delivered again. `None` if nothing was missing.
    reset_to: Option<u64>,
    missing_before: u64,
    /// In the inbox again.
    applied_again: u64,
    /// Dead-lettered instead.
    dead_lettered: u64,
    still_missing: u64,
    /// What the worker had not processed when the time to wait was over.
    unfinished: Unfinished,
}

impl WorkerReport {
    pub(super) fn new(before: &Requests, after: &Requests, unfinished: Unfinished) -> Self {
        let still_missing = after.counts.missing;
        let settled = before.counts.missing.saturating_sub(still_missing);
        // The second comparison begins with the oldest missing request.
        let dead_lettered = match before.reset_to() {
            Some(_) => after.counts.dead_letters.saturating_sub(before.counts.dead_letters_after),
            None => 0,
        };
        Self {
            worker: before.worker,
            stream: before.stream,
            reset_to: before.reset_to(),
            missing_before: before.counts.missing,
            applied_again: settled.saturating_sub(dead_lettered),
            dead_lettered,
            still_missing,
            unfinished,
        }
    }
}

impl Report {
    pub(super) fn show(&self) {
        for one in &self.workers {
            if one.reset_to.is_some() {
                outln!(
                    "{}: of {} missing requests {} were applied, {} dead-lettered, {} are still missing",
                    one.worker,
                    grouped(one.missing_before),
                    grouped(one.applied_again),
                    grouped(one.dead_lettered),
                    grouped(one.still_missing)
                );
            }
        }
        self.vanished.show();
        outln!(
            "Tell subscribers which events vanished if they keep what events said. If vector-indexer works, compare the \
             vector store too: `memfleet vectors reconcile --repair`"
        );
    }

    /// Fails if requests are still missing.
    pub(super) fn ensure_complete(&self) -> anyhow::Result<()> {
        let missing: Vec<String> = self
            .workers
            .iter()
            .filter(|one| one.still_missing > 0)
            .map(|one| format!("{} of {}", grouped(one.still_missing), one.worker))
            .collect();
        ensure!(
            missing.is_empty(),
            "requests are still missing: {}; check that the workers run (`memfleet status`), then run the command again",
            missing.join(", ")
        );
        Ok(())
    }
}
