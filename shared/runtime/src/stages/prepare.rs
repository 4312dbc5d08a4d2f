//! What is done for a batch outside its transactions: minting job grants, and the worker's other servers.

use store::FaultKind;

use crate::stages::attempt::grants_of;
use crate::stages::authorize::Authorized;
use crate::stages::disposition::Disposition;
use crate::stages::parts::{Part, Search};
use crate::stages::tick_grants::TickGrants;
use crate::stages::transact::Findings;
use crate::stages::write::{MAX_LOST_CONNECTIONS, Progress, Writer};
use crate::worker::{Ended, ExternalWorker, Message, Source};

impl<W: ExternalWorker> Writer<W> {
    /// Mints the job grants if the batch is a tick, and prepares the batch. If that fails, returns
    /// the disposition of all its messages. `parts`: those in which it will be written, the next one last.
    pub(crate) async fn begin(
        &self,
        batch: &[Authorized<W::Item>],
        parts: &[Part],
    ) -> Result<Progress<W>, Disposition> {
        let mut grants = None;
        for message in batch.iter().map(Authorized::message) {
            if let Source::Tick(tick) = &message.source {
                grants = Some(self.mint(message, tick.job.as_str()).await?);
            }
        }
        let due = grants.as_ref().map(TickGrants::due);
        let prepared = self.prepare(batch, parts, due).await.ok_or(Disposition::HAND_BACK)?;
        let (findings, search) = (Findings::new(), Search::default());
        Ok(Progress { grants, prepared, findings, lock_wait: None, is_blocked_in_key_store: false, search })
    }

    /// Mints the job grants of a tick. Retries while the database is unavailable.
    async fn mint(&self, tick: &Message<W::Item>, job: &str) -> Result<TickGrants, Disposition> {
        let mut tries = 0;
        loop {
            let fault = match TickGrants::mint(&self.pool, job, tick.request_id).await {
                Ok(grants) => return Ok(grants),
                Err(fault) => fault,
            };
            if !fault.kind.is_outage() {
                return Err(self.failed(tick, &fault).await);
            }
            tracing::warn!(worker = W::INFO.name, %fault, job, "dependency unavailable, tick on hold");
            if !self.pause(&mut tries).await {
                return Err(Disposition::HAND_BACK);
            }
        }
    }

    /// Prepares the batch at external dependencies, in the same parts as it is written: a user whom the database is known to refuse has
    /// one of these. `None` if the worker is stopped before this is done.
    pub(crate) async fn prepare(
        &self,
        batch: &[Authorized<W::Item>],
        parts: &[Part],
        due: Option<Vec<&str>>,
    ) -> Option<W::Prepared> {
        let mut prepared = W::Prepared::default();
        // The ranges of the parts still to be prepared, the next one last.
        let mut parts = ranges(parts);
        // How often the part in work has lost a connection.
        let (mut tries, mut connections_lost) = (0, 0);
        while let Some((start, end)) = parts.pop() {
            let messages: Vec<&Message<W::Item>> =
                batch[start..end].iter().map(Authorized::message).collect();
            let grants = due.clone().unwrap_or_else(|| grants_of(&batch[start..end]));
            let part = tokio::select! {
                // Safe to cancel: a redelivered message is prepared again.
                () = self.stop.cancelled() => return None,
                part = self.worker.prepare(&messages, &grants) => part,
            };
            let fault = match part {
                Ok(part) => {
                    prepared = self.worker.join(prepared, part);
                    (tries, connections_lost) = (0, 0);
                    continue;
                }
                Err(fault) => fault,
            };
            connections_lost += u32::from(fault.kind == FaultKind::ConnectionLost);
            match fault.kind {
                FaultKind::Unavailable | FaultKind::ConnectionLost
                    if connections_lost < MAX_LOST_CONNECTIONS =>
                {
                    tracing::warn!(
                        worker = W::INFO.name,
                        %fault,
                        messages = end - start,
                        "dependency unavailable, batch on hold"
                    );
                    if !self.pause(&mut tries).await {
                        return None;
                    }
                    parts.push((start, end));
                }
                // As in `persist`, a message may be what breaks the connection.
                FaultKind::Unavailable
                | FaultKind::ConnectionLost
                | FaultKind::Transient
                | FaultKind::Blocked
                | FaultKind::MissingPrerequisite
                | FaultKind::Permanent
                | FaultKind::Denied
                | FaultKind::Erased
                | FaultKind::Fenced
                | FaultKind::Restricted { .. } => {
                    (tries, connections_lost) = (0, 0);
                    let middle = start + (end - start) / 2;
                    if end - start > 1 && !(fault.kind.refuses_user() && are_of_one_user(&messages)) {
                        parts.extend([(middle, end), (start, middle)]);
                    } else {
                        // The transaction will fail for the same reason and report it in more detail.
                        tracing::debug!(worker = W::INFO.name, %fault, "cannot prepare a message");
                    }
                }
            }
        }
        Some(prepared)
    }

    /// Calls the worker's `clean_up` for the messages that are settled for good. Retries while a dependency is
    /// unavailable; if the worker is stopped meanwhile, the messages are redelivered.
    pub(crate) async fn clean_up(
        &self,
        batch: &[Authorized<W::Item>],
        decided: &mut [Disposition],
        progress: &Progress<W>,
    ) {
        let findings = |message: &Message<W::Item>| progress.findings.get(&message.event_id);
        let ended: Vec<Ended<'_, W::Item, W::Finding>> = batch
            .iter()
            .map(Authorized::message)
            .zip(decided.iter())
            .filter(|(_, disposition)| disposition.ends())
            .map(|(message, disposition)| Ended {
                message,
                committed: disposition.commit().is_some(),
                findings: findings(message).map_or(&[], Vec::as_slice),
            })
            .collect();
        let mut tries = 0;
        while let Err(fault) = self.worker.clean_up(&ended, &progress.prepared).await {
            tracing::warn!(worker = W::INFO.name, %fault, messages = ended.len(), "cannot clean up");
            if !fault.kind.is_outage() {
                return;
            }
            if !self.pause(&mut tries).await {
                decided.fill_with(|| Disposition::HAND_BACK);
                return;
            }
        }
    }
}

/// The ranges of the parts of a batch, the next one last, as are the parts.
fn ranges(parts: &[Part]) -> Vec<(usize, usize)> {
    let mut start = 0;
    let ranges = parts.iter().rev().map(|part| {
        let range = (start, start + part.length);
        start = range.1;
        range
    });
    let mut ranges: Vec<(usize, usize)> = ranges.filter(|(start, end)| start < end).collect();
    ranges.reverse();
    ranges
}

/// Whether no part of these messages could be prepared if the database refuses one of their users.
fn are_of_one_user<I>(messages: &[&Message<I>]) -> bool {
    messages.windows(2).all(|pair| pair[0].user_id() == pair[1].user_id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_prepared_in_the_parts_in_which_it_is_written() {
        let part = |length| Part { length, is_suspect: false };
        assert_eq!(ranges(&[part(3), part(2), part(5)]), [(7, 10), (5, 7), (0, 5)], "the next one last");
        assert_eq!(ranges(&[part(0)]), []);
        assert_eq!(ranges(&[]), []);
    }
}
