//! `memfleet publish`

mod input;
mod send;
mod tally;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use async_nats::Client;
use clap::Args;
use cli::errln;
use cli::message_ids;
use cli::output::printable;
use cli::tokens::Tokens;
use client::PayloadKeys;
use config::Settings;
use contract::{REQUEST_ROOT, REQUESTS, Request, RequestSubject, SubjectError};
use input::{Input, Item};
use runtime::broker;
use send::Sender;
use tally::Tally;
use uuid::Uuid;

/// Publishes requests and waits until JetStream has stored them.
///
/// Each line of FILE is the JSON body of one request. A body that the worker will reject is published anyway, with a
/// warning that names the field; the worker dead-letters it. Prints the counts at the end; the exit status is 1 if any
/// request was rejected before it was stored.
#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
#[command(after_help = EXAMPLES)]
pub struct PublishArgs {
    /// The subject: memory.req.<service>.<noun>.<verb>.<user_id>. Omit with --requests.
    #[arg(value_name = "SUBJECT", required_unless_present = "requests", conflicts_with = "requests")]
    subject: Option<String>,
    /// The file with one body per line; `-` reads standard input.
    #[arg(value_name = "FILE|-", required = true)]
    file: PathBuf,
    /// Publish the whole file as one body, byte for byte.
    #[arg(long, conflicts_with = "requests")]
    whole: bool,
    /// Each line is {"subject": …, "id": …, "body": …}; the id is optional.
    #[arg(long)]
    requests: bool,
    /// The request id, for a single request. Default: a new UUIDv7 for each.
    #[arg(long, value_name = "UUID", conflicts_with = "requests")]
    id: Option<Uuid>,
    /// Do not publish requests that the worker would reject.
    #[arg(long)]
    strict: bool,
    /// Wait until a worker has committed or dead-lettered every request, and print the outcomes. The exit status is 1
    /// if any was dead-lettered or has no outcome yet. All requests must be of one service.
    #[arg(long)]
    wait: bool,
    /// The service token of all requests. Default: a new one for each service and user, signed with
    /// trust.token_key_file and trust.grant_key_file if they are set.
    #[arg(long, env = "MEMFLEET_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    /// Publish bodies unencrypted. Default: encrypt bodies of services with a key in trust.payload_ring_file.
    #[arg(long)]
    plain: bool,
    /// With --wait: seconds to wait for outcomes after the last request is stored, 1 to 3600.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
}

const EXAMPLES: &str = "\
Examples:
  echo '{\"session_id\": \"s1\", \"chat_mode\": \"simple\"}' |
      memfleet publish --wait memory.req.simple-chat.session.open.42 -
  memfleet publish --whole memory.req.simple-chat.context.put.42 broken.json
  memfleet publish --requests --strict requests.jsonl";

/// Runs `memfleet publish`.
///
/// # Errors
/// If the input cannot be read, the broker is unreachable, a request is rejected, or with `--wait` one is dead-lettered
/// or has no outcome in time.
pub async fn execute(args: PublishArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut input = Input::open(&args).await?;
    // The first request determines the service, and with it the inbox that NATS permits this connection to subscribe
    // to.
    let mut next = input.next().await?;
    let service = next.as_ref().and_then(Item::service).unwrap_or_else(|| "publish".to_owned());
    let client = broker::connect(&settings.nats, &service).await?;
    let outcomes = if args.wait { Some(Tally::start(&client, &service).await?) } else { None };
    let tokens = Tokens::open(settings, args.token.clone()).await?;
    if tokens.is_none() {
        errln!("no service token: workers will reject every request; see --token");
    }
    let ring = settings.trust.payload_ring_file.as_deref().map(Path::new).filter(|_| !args.plain);
    let payload_keys = PayloadKeys::read(ring)?;
    let mut sender = Sender::new(
        client,
        tokens,
        payload_keys,
        message_ids::of(&settings.nats, &service).await?,
        outcomes.as_ref().map(|outcomes| outcomes.subject().to_owned()),
    );
    let mut warnings = Warnings::default();
    while let Some(item) = next {
        publish_item(&args, &service, item, &mut sender, &mut warnings).await?;
        next = input.next().await?;
    }
    let client = sender.client();
    let report = sender.finish().await?;
    warnings.print_omitted();
    report.show();
    let ended = match outcomes {
        Some(outcomes) => outcomes.wait(report.stored, Duration::from_secs(args.timeout)).await,
        None => Ok(()),
    };
    flush(&client).await;
    report.result().and(ended)
}

async fn publish_item(
    args: &PublishArgs,
    service: &str,
    item: Item,
    sender: &mut Sender,
    warnings: &mut Warnings,
) -> anyhow::Result<()> {
    let line = item.line;
    let request = match item.request {
        Ok(request) => request,
        Err(problem) => {
            sender.refuse(line, problem);
            return Ok(());
        }
    };
    let subject = request.subject.parse::<RequestSubject>();
    if let Err(problem) = check(&subject, &request.body) {
        if args.strict {
            sender.refuse(line, problem);
            return Ok(());
        }
        warnings.warn(line, &problem, has_stream(&request.subject));
    }
    if let (true, Some(problem)) = (args.wait, unanswerable(&subject, service)) {
        sender.refuse(line, problem);
        return Ok(());
    }
    sender.send(line, request).await
}

/// Why no outcome of a request can reach the inbox that this command subscribes to, if so.
fn unanswerable(subject: &Result<RequestSubject, SubjectError>, service: &str) -> Option<String> {
    match subject {
        Ok(subject) if subject.service.as_str() == service => None,
        Ok(_) => {
            Some(format!("--wait requires all requests to be of one service; the first is of {service}"))
        }
        Err(error) => Some(format!("subject: {error}; no worker processes such a request, omit --wait")),
    }
}

/// Validates a request as the worker does.
fn check(subject: &Result<RequestSubject, SubjectError>, body: &[u8]) -> Result<(), String> {
    let subject = subject.as_ref().map_err(|error| format!("subject: {error}"))?;
    Request::decode(subject, body).map(drop).map_err(|malformed| malformed.to_string())
}

/// Whether one of the shipped streams captures a subject.
fn has_stream(subject: &str) -> bool {
    let rest = subject.strip_prefix(REQUEST_ROOT).and_then(|rest| rest.strip_prefix('.'));
    let noun = rest.and_then(|rest| rest.split('.').nth(1));
    REQUESTS.iter().any(|kind| Some(kind.noun) == noun)
}

/// Flushes buffered messages, which would be lost at exit.
async fn flush(client: &Client) {
    if let Err(error) = client.flush().await.context("cannot flush the connection") {
        tracing::debug!("{error:#}");
    }
}

/// Prints warnings on standard error, up to [`WARNINGS_SHOWN`].
#[derive(Default)]
struct Warnings {
    count: u64,
}

const WARNINGS_SHOWN: u64 = 20;

impl Warnings {
    fn warn(&mut self, line: u64, problem: &str, has_stream: bool) {
        self.count += 1;
        if self.count <= WARNINGS_SHOWN {
            let consequence = if has_stream { "; the worker will dead-letter it" } else { "" };
            errln!("line {line}: {}{consequence}", printable(problem));
        }
    }

    fn print_omitted(&self) {
        if self.count > WARNINGS_SHOWN {
            errln!("and {} more invalid requests", self.count - WARNINGS_SHOWN);
        }
    }
}
