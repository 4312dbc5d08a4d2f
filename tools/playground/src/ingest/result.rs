//! What was sent and what was stored.

use std::collections::BTreeMap;
use std::time::Duration;

use cli::table::{Align, Table, grouped};
use client::Published;
use contract::REQUESTS;
use runtime::StatsReport;
use serde::Serialize;

use super::rows::{Contents, TABLES, table_of};
use super::{Counts, Ready};

/// What was sent.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Sent {
    /// Dialogues read.
    pub dialogues: u64,
    /// Their turns.
    pub turns: u64,
    /// Their users.
    pub users: u64,
    /// Requests by kind.
    pub messages: Counts,
    /// Rows that they add to an empty database, by table.
    #[serde(skip)]
    pub expected_rows: BTreeMap<&'static str, u64>,
    /// How JetStream acknowledged them.
    #[serde(flatten)]
    pub published: Published,
}

impl Sent {
    pub(super) fn count(&mut self, dialogue: &Ready) {
        let size = |size: usize| u64::try_from(size).unwrap_or(u64::MAX);
        self.dialogues += 1;
        self.turns += size(dialogue.turns);
        self.users = size(dialogue.users);
        for request in &dialogue.requests {
            *self.messages.entry(request.kind.name()).or_insert(0) += 1;
            if let Some(table) = table_of(request.kind.noun).filter(|_| request.adds_row) {
                *self.expected_rows.entry(table).or_insert(0) += 1;
            }
        }
    }
}

/// Time from publish to commit, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Delay {
    /// The median.
    pub p50: f64,
    /// The 99th percentile.
    pub p99: f64,
}

/// The texts that were embedded, after everything else was committed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Embedding {
    /// Number of texts.
    pub texts: u64,
    /// Time from the first publish until the last text is searchable.
    pub seconds: f64,
    /// Texts per second.
    pub texts_per_second: f64,
}

impl Embedding {
    pub(super) fn new(texts: u64, time: Duration) -> Self {
        let seconds = time.as_secs_f64();
        Self { texts, seconds: rounded(seconds), texts_per_second: per_second(texts, seconds) }
    }
}

/// What was stored.
#[derive(Clone, Debug, Serialize)]
pub struct Stored {
    /// Rows by table.
    pub rows: BTreeMap<&'static str, u64>,
    /// Events on the blackboard.
    pub events: u64,
    /// Dead letters added during the run.
    pub dead_letters: u64,
    /// Messages that took effect, as the workers of this process count them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub applied: Option<u64>,
    /// Time from the first publish to the last commit, without the texts to embed.
    pub seconds: f64,
    /// Messages per second.
    pub messages_per_second: f64,
    /// The embedded texts, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding: Option<Embedding>,
    /// Known only if the workers run in this process.
    pub publish_to_commit_ms: Option<Delay>,
}

impl Stored {
    pub(super) fn new(
        contents: Contents,
        dead_letters: u64,
        reports: &[StatsReport],
        seconds: f64,
        written: &Published,
        embedding: Option<Embedding>,
    ) -> Self {
        let delay = |report: &StatsReport| Delay {
            p50: rounded(report.publish_to_commit_ms_p50),
            p99: rounded(report.publish_to_commit_ms_p99),
        };
        Self {
            rows: contents.rows,
            events: contents.events,
            dead_letters,
            applied: (!reports.is_empty()).then(|| reports.iter().map(|report| report.applied).sum()),
            seconds: rounded(seconds),
            messages_per_second: per_second(written.stored + written.duplicate, seconds),
            embedding,
            // context-writer's delay only: decisions may be retried until their session, on another stream, is stored.
            publish_to_commit_ms: reports.first().map(delay),
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "nobody publishes 2^53 messages")]
fn per_second(count: u64, seconds: f64) -> f64 {
    (count as f64 / seconds.max(f64::EPSILON)).round()
}

fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

/// What was sent and, if the command waited, what was stored.
#[derive(Clone, Debug, Serialize)]
pub struct Ingested {
    /// What was sent.
    #[serde(flatten)]
    pub sent: Sent,
    /// What was stored.
    #[serde(flatten)]
    pub stored: Option<Stored>,
}

impl Ingested {
    /// Differences between what was sent and the contents of initially empty servers, one sentence each.
    pub fn missing(&self) -> Vec<String> {
        let Some(stored) = &self.stored else { return Vec::new() };
        let mut problems = self.dead_letters();
        for (table, _) in TABLES {
            let of = |rows: &BTreeMap<&'static str, u64>| rows.get(table).copied().unwrap_or(0);
            let (expected, found) = (of(&self.sent.expected_rows), of(&stored.rows));
            if expected != found {
                problems.push(format!("{table} has {found} rows, expected {expected}"));
            }
        }
        let applied = stored.applied.unwrap_or(stored.events);
        // A message that closes a task causes several.
        if stored.events < applied {
            problems.push(format!("{applied} messages took effect, but there are {} events", stored.events));
        }
        problems
    }

    /// A sentence about dead letters, if there are any.
    pub fn dead_letters(&self) -> Vec<String> {
        let dead = self.stored.as_ref().map_or(0, |stored| stored.dead_letters);
        if dead == 0 { Vec::new() } else { vec![format!("{dead} messages were dead-lettered")] }
    }

    /// The report as text tables.
    pub fn tables(&self) -> String {
        let Self { sent, stored } = self;
        let mut text = format!(
            "{} dialogues of {} users, {} turns\n\n{}",
            grouped(sent.dialogues),
            grouped(sent.users),
            grouped(sent.turns),
            self.messages()
        );
        if let Some(stored) = stored {
            text.push_str(&format!("\n{}\n{}", rows(stored), figures(sent, stored)));
        } else {
            let Published { stored, duplicate, .. } = &sent.published;
            let (stored, duplicate) = (grouped(*stored), grouped(*duplicate));
            text.push_str(&format!("\n  stored {stored}, duplicates {duplicate}\n"));
        }
        text
    }

    fn messages(&self) -> Table {
        let mut table = Table::new([("message", Align::Left), ("published", Align::Right)]);
        for kind in REQUESTS {
            if let Some(count) = self.sent.messages.get(&kind.name()) {
                table.row([kind.name(), grouped(*count)]);
            }
        }
        table.row(["total".to_owned(), grouped(self.sent.messages.values().sum())]);
        table
    }
}

fn rows(stored: &Stored) -> Table {
    let mut table = Table::new([("table", Align::Left), ("rows", Align::Right)]);
    for (name, _) in TABLES {
        if let Some(rows) = stored.rows.get(name).filter(|rows| **rows > 0) {
            table.row([name.to_owned(), grouped(*rows)]);
        }
    }
    table.row(["blackboard_events".to_owned(), grouped(stored.events)]);
    table
}

fn figures(sent: &Sent, stored: &Stored) -> Table {
    let mut table = Table::new([("result", Align::Left), ("", Align::Right)]);
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    row("events", grouped(stored.events));
    row("dead letters", grouped(stored.dead_letters));
    row("duplicates", grouped(sent.published.duplicate));
    row("time until committed", format!("{:.1} s", stored.seconds));
    row("throughput", format!("{:.0} messages/s", stored.messages_per_second));
    let delay = |of: fn(&Delay) -> f64| {
        stored.publish_to_commit_ms.as_ref().map_or("-".to_owned(), |delay| format!("{:.1} ms", of(delay)))
    };
    row("publish to commit, p50", delay(|delay| delay.p50));
    row("publish to commit, p99", delay(|delay| delay.p99));
    if let Some(Embedding { texts, seconds, texts_per_second }) = stored.embedding {
        row("texts embedded afterwards", grouped(texts));
        row("time until searchable", format!("{seconds:.1} s"));
        row("embedding throughput", format!("{texts_per_second:.0} texts/s"));
    }
    table
}
