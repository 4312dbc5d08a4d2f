//! Publishes requests to JetStream, with a limited number awaiting acknowledgement.

use std::io::IsTerminal;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::{ContextBuilder, PublishError, PublishErrorKind};
use async_nats::jetstream::publish::PublishAck;
use async_nats::{Client, HeaderMap};
use cli::output::printable;
use cli::table::grouped;
use cli::tokens::Tokens;
use cli::{errln, outln};
use client::{MessageIds, Payload, PayloadKeys};
use contract::header;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::input::ToPublish;

/// Maximum number of requests awaiting acknowledgement.
const IN_FLIGHT: usize = 256;
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(10);
/// Maximum number of printed reasons.
const REASONS: usize = 5;
/// Number of consecutive requests without acknowledgement after which publishing stops.
const SILENCE: u64 = 256;
const PROGRESS_EVERY: Duration = Duration::from_secs(2);

type Acknowledged = BoxFuture<'static, (u64, Result<PublishAck, PublishError>)>;

/// Counts of the requests.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Newly stored requests.
    pub(super) stored: u64,
    duplicates: u64,
    refused: u64,
    reasons: Vec<String>,
}

impl Report {
    pub(super) fn show(&self) {
        outln!(
            "published {}, duplicates {}, refused {}",
            grouped(self.stored),
            grouped(self.duplicates),
            grouped(self.refused)
        );
        for reason in &self.reasons {
            outln!("{}", printable(reason));
        }
    }

    pub(super) fn result(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.refused == 0, "{} refused", grouped(self.refused));
        Ok(())
    }

    fn refuse(&mut self, line: u64, reason: &str) {
        self.refused += 1;
        if self.reasons.len() < REASONS {
            self.reasons.push(format!("line {line}: {reason}"));
        }
    }
}

/// Publishes requests and counts the acknowledgements.
pub(super) struct Sender {
    jetstream: Context,
    tokens: Tokens,
    payload_keys: PayloadKeys,
    message_ids: MessageIds,
    reply_to: Option<String>,
    in_flight: FuturesUnordered<Acknowledged>,
    report: Report,
    silent: u64,
    progress: Progress,
}

impl Sender {
    pub(super) fn new(
        client: Client,
        tokens: Tokens,
        payload_keys: PayloadKeys,
        message_ids: MessageIds,
        reply_to: Option<String>,
    ) -> Self {
        let jetstream =
            ContextBuilder::new().timeout(ACKNOWLEDGED_WITHIN).max_ack_inflight(IN_FLIGHT * 2).build(client);
        Self {
            jetstream,
            tokens,
            payload_keys,
            message_ids,
            reply_to,
            in_flight: FuturesUnordered::new(),
            report: Report::default(),
            silent: 0,
            progress: Progress::new(),
        }
    }

    pub(super) fn client(&self) -> Client {
        self.jetstream.client()
    }

    /// Counts a line that cannot be published.
    pub(super) fn refuse(&mut self, line: u64, problem: String) {
        self.report.refuse(line, &problem);
    }

    /// Publishes a request, waiting first if too many await acknowledgement.
    pub(super) async fn send(&mut self, line: u64, request: ToPublish) -> anyhow::Result<()> {
        while self.in_flight.len() >= IN_FLIGHT {
            self.settle_next().await?;
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::REQUEST_ID, request.id.to_string());
        headers.insert(header::MESSAGE_ID, self.message_ids.of(request.id).to_string());
        if let Some(reply_to) = &self.reply_to {
            headers.insert(header::REPLY_TO, reply_to.as_str());
        }
        match self.tokens.of(&request.subject).await {
            Ok(Some(token)) => headers.insert(header::AUTHORIZATION, header::bearer(&token)),
            Ok(None) => {}
            Err(error) => {
                self.refuse(line, format!("{error:#}"));
                return Ok(());
            }
        }
        let body = match self.payload_keys.encrypt(&request.subject, request.body) {
            Ok(Payload { key_id, body }) => {
                if let Some(key_id) = key_id {
                    headers.insert(header::ENCRYPTION, key_id);
                }
                body
            }
            Err(error) => {
                self.refuse(line, error.to_string());
                return Ok(());
            }
        };
        match self.jetstream.publish_with_headers(request.subject, headers, body).await {
            Ok(acknowledgement) => {
                self.in_flight.push(Box::pin(async move { (line, acknowledgement.await) }));
            }
            Err(error) => self.count(line, Err(error))?,
        }
        Ok(())
    }

    /// Waits until every outstanding acknowledgement has arrived or timed out.
    pub(super) async fn finish(mut self) -> anyhow::Result<Report> {
        while !self.in_flight.is_empty() {
            self.settle_next().await?;
        }
        self.progress.end();
        Ok(self.report)
    }

    async fn settle_next(&mut self) -> anyhow::Result<()> {
        match self.in_flight.next().await {
            Some((line, result)) => self.count(line, result),
            None => Ok(()),
        }
    }

    fn count(&mut self, line: u64, result: Result<PublishAck, PublishError>) -> anyhow::Result<()> {
        match result {
            Ok(ack) => {
                self.silent = 0;
                if ack.duplicate { self.report.duplicates += 1 } else { self.report.stored += 1 }
            }
            Err(error) => {
                let is_silence =
                    matches!(error.kind(), PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe);
                self.silent = if is_silence { self.silent + 1 } else { 0 };
                self.report.refuse(line, &reason(&error));
            }
        }
        self.progress.show(&self.report);
        if self.silent >= SILENCE {
            self.progress.end();
            self.report.show();
            anyhow::bail!(
                "the broker acknowledged none of the last {SILENCE} requests; stopped at line {line}"
            );
        }
        Ok(())
    }
}

fn reason(error: &PublishError) -> String {
    match error.kind() {
        PublishErrorKind::StreamNotFound => {
            "no stream captures this subject; is it correct, and has `memfleet nats apply` been run?"
                .to_owned()
        }
        PublishErrorKind::TimedOut => format!(
            "not acknowledged within {} s; the broker is overloaded, or these credentials may not publish there",
            ACKNOWLEDGED_WITHIN.as_secs()
        ),
        PublishErrorKind::WrongLastMessageId
        | PublishErrorKind::WrongLastSequence
        | PublishErrorKind::BrokenPipe
        | PublishErrorKind::MaxAckPending
        | PublishErrorKind::MaxPayloadExceeded
        | PublishErrorKind::Other => error.to_string(),
    }
}

/// Progress on standard error: a spinner on a terminal, otherwise a line every [`PROGRESS_EVERY`].
struct Progress {
    bar: ProgressBar,
    is_terminal: bool,
    shown_at: Instant,
}

impl Progress {
    fn new() -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let target = if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        Self { bar, is_terminal, shown_at: Instant::now() }
    }

    fn show(&mut self, report: &Report) {
        let done = report.stored + report.duplicates + report.refused;
        if self.is_terminal {
            self.bar.set_message(format!(
                "{} published, {} refused",
                grouped(done - report.refused),
                grouped(report.refused)
            ));
            self.bar.tick();
        } else if self.shown_at.elapsed() >= PROGRESS_EVERY {
            self.shown_at = Instant::now();
            errln!("{} published, {} refused", grouped(done - report.refused), grouped(report.refused));
        }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}
