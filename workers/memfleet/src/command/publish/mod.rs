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
/// Each line of FILE is the body of one request, in JSON. A body that the worker will reject is published all the
/// same, with a warning that names the field: it is dead-lettered. At the end the counts are printed, and the
/// exit status is 1 if the broker refused any.
#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
#[command(after_help = EXAMPLES)]
pub struct PublishArgs {
    /// Where to publish: memory.req.<service>.<noun>.<verb>.<user_id>. Left out with --requests.
    #[arg(value_name = "SUBJECT", required_unless_present = "requests", conflicts_with = "requests")]
    subject: Option<String>,
    /// The bodies, one a line; `-` is standard input.
    #[arg(value_name = "FILE|-", required = true)]
    file: PathBuf,
    /// Publish the whole file as one body, byte for byte.
    #[arg(long, conflicts_with = "requests")]
    whole: bool,
    /// Each line is {"subject": …, "id": …, "body": …}; the id may be left out.
    #[arg(long)]
    requests: bool,
    /// The request id of a single request; by default each gets a fresh one (UUIDv7).
    #[arg(long, value_name = "UUID", conflicts_with = "requests")]
    id: Option<Uuid>,
    /// Do not publish what the worker would reject, instead of warning.
    #[arg(long)]
    strict: bool,
    /// Also wait until a worker has committed or dead-lettered every request, and print the outcomes. The exit status
    /// is 1 if any was dead-lettered or has no outcome yet. All requests must be of one service.
    #[arg(long)]
    wait: bool,
    /// The service token of every request; by default one is issued for each service and user, if the configuration names
    /// the keys (trust.token_key_file, trust.grant_key_file).
    #[arg(long, env = "MEMFLEET_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    /// Publish bodies as they are. By default those of a service with a key in trust.payload_ring_file travel encrypted.
    #[arg(long)]
    plain: bool,
    /// How long to wait for outcomes after the last request is stored, in seconds, 1 to 3600.
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
/// If the input cannot be read, the broker cannot be reached or refuses a request, or with `--wait` one is dead.
pub async fn execute(args: PublishArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut input = Input::open(&args).await?;
    // The first request says which service this is, and so whose inbox the broker lets us use.
    let mut next = input.next().await?;
    let service = next.as_ref().and_then(Item::service).unwrap_or_else(|| "publish".to_owned());
    let client = broker::connect(&settings.nats, &service).await?;
    let outcomes = if args.wait { Some(Tally::start(&client, &service).await?) } else { None };
    let tokens = Tokens::open(settings, args.token.clone()).await?;
    if tokens.is_none() {
        errln!("no service token: the workers will refuse every request; see --token");
    }
    let ring = settings.trust.payload_ring_file.as_deref().map(Path::new).filter(|_| !args.plain);
    let payload_keys = PayloadKeys::read(ring)?;
    let mut sender = Sender::new(
        client,
        tokens,
        payload_keys,
        outcomes.as_ref().map(|outcomes| outcomes.subject().to_owned()),
    );
    let mut warnings = Warnings::default();
    while let Some(item) = next {
        take(&args, &service, item, &mut sender, &mut warnings).await?;
        next = input.next().await?;
    }
    let client = sender.client();
    let report = sender.finish().await?;
    warnings.say_rest();
    report.show();
    let ended = match outcomes {
        Some(outcomes) => outcomes.wait(report.stored, Duration::from_secs(args.timeout)).await,
        None => Ok(()),
    };
    flush(&client).await;
    report.result().and(ended)
}

async fn take(
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
    let named = request.subject.parse::<RequestSubject>();
    if let Err(problem) = check(&named, &request.body) {
        if args.strict {
            sender.refuse(line, problem);
            return Ok(());
        }
        warnings.warn(line, &problem, is_taken(&request.subject));
    }
    if let (true, Some(problem)) = (args.wait, unanswerable(&named, service)) {
        sender.refuse(line, problem);
        return Ok(());
    }
    sender.send(line, request).await
}

/// Why no outcome of a request can reach the inbox that is listened to.
fn unanswerable(subject: &Result<RequestSubject, SubjectError>, service: &str) -> Option<String> {
    match subject {
        Ok(subject) if subject.service.as_str() == service => None,
        Ok(_) => Some(format!("--wait takes requests of one service, and {service} came first")),
        Err(error) => Some(format!("subject: {error}; no worker answers such a request, leave out --wait")),
    }
}

/// Says what the worker will say.
fn check(subject: &Result<RequestSubject, SubjectError>, body: &[u8]) -> Result<(), String> {
    let subject = subject.as_ref().map_err(|error| format!("subject: {error}"))?;
    Request::decode(subject, body).map(drop).map_err(|malformed| malformed.to_string())
}

/// Whether a stream takes a subject, if the broker has the streams of the files.
fn is_taken(subject: &str) -> bool {
    let rest = subject.strip_prefix(REQUEST_ROOT).and_then(|rest| rest.strip_prefix('.'));
    let noun = rest.and_then(|rest| rest.split('.').nth(1));
    REQUESTS.iter().any(|kind| Some(kind.noun) == noun)
}

/// What was published without an answer would be lost at exit.
async fn flush(client: &Client) {
    if let Err(error) = client.flush().await.context("the connection did not end in order") {
        tracing::debug!("{error:#}");
    }
}

/// Warnings on standard error, and not more of them than anybody reads.
#[derive(Default)]
struct Warnings {
    count: u64,
}

const WARNINGS_SHOWN: u64 = 20;

impl Warnings {
    fn warn(&mut self, line: u64, problem: &str, taken: bool) {
        self.count += 1;
        if self.count <= WARNINGS_SHOWN {
            let fate = if taken { "; the worker will make it a dead letter" } else { "" };
            errln!("line {line}: {problem}{fate}");
        }
    }

    fn say_rest(&self) {
        if self.count > WARNINGS_SHOWN {
            errln!("and {} more with something wrong", self.count - WARNINGS_SHOWN);
        }
    }
}
