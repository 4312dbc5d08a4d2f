//! What a recovery would do.

use anyhow::bail;
use chrono::{DateTime, SecondsFormat, Utc};
use cli::table::{Align, Table, grouped};
use cli::{out, outln};
use serde::Serialize;

use super::events::Vanished;
use super::requests::Requests;

#[derive(Debug, Serialize)]
pub(super) struct Plan {
    pub(super) requests: Vec<Requests>,
    pub(super) vanished: Vanished,
}

impl Plan {
    /// Fails if the inbox may have forgotten requests that `--since` includes.
    pub(super) fn ensure_remembered(&self, since: DateTime<Utc>) -> anyhow::Result<()> {
        let Some(one) = self.requests.iter().find(|one| one.counts.forgotten > 0) else { return Ok(()) };
        bail!(
            "--since {} is earlier than what the inbox of {} remembers: {} requests from then may have taken effect and \
             would do so again; name a later time, or use --after-restore, which leaves them out",
            time(since),
            one.worker,
            grouped(one.counts.forgotten)
        );
    }

    pub(super) fn show(&self) {
        let mut table = Table::new([
            ("worker", Align::Left),
            ("stream", Align::Left),
            ("requests", Align::Right),
            ("in the database", Align::Right),
            ("dead letters", Align::Right),
            ("missing", Align::Right),
            ("oldest missing", Align::Left),
        ]);
        for one in &self.requests {
            table.row([
                one.worker.to_owned(),
                one.stream.to_owned(),
                grouped(one.counts.considered),
                grouped(one.counts.in_database),
                grouped(one.counts.dead_letters),
                grouped(one.counts.missing),
                one.counts.oldest_missing.map_or_else(String::new, |place| time(place.stored_at)),
            ]);
        }
        out!("{table}\n");
        let mut is_complete = true;
        for one in &self.requests {
            if let Some(sequence) = one.reset_to() {
                is_complete = false;
                outln!(
                    "--yes resets the consumer {} to message {sequence} of {}; events of requests from there on that the \
                     database has are published again",
                    one.worker,
                    one.stream
                );
            }
            if one.counts.forgotten > 0 {
                outln!(
                    "{} requests of {} are older than everything in its inbox, which may have forgotten that they took \
                     effect; they are not delivered again",
                    grouped(one.counts.forgotten),
                    one.worker
                );
            }
        }
        if is_complete {
            outln!("no request is missing; no consumer is reset");
        }
        self.vanished.show();
    }
}

pub(super) fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}
