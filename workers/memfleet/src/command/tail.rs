//! `memfleet tail`

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use async_nats::jetstream;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use clap::Args;
use cli::outln;
use cli::output::{out_json, printable};
use cli::signal::interrupted;
use config::Settings;
use contract::Event;
use futures::StreamExt;
use runtime::broker;
use uuid::Uuid;

/// Prints a user's events as they happen, until Ctrl-C.
///
/// Each line shows sequence number, time, event type, session, source agent and the start of the payload. Events are
/// delivered at least once; duplicates are not printed.
#[derive(Debug, Args)]
pub struct TailArgs {
    /// The user whose events are printed.
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..))]
    user: i32,
    /// Print only events of this session or conversation.
    #[arg(long)]
    session: Option<String>,
    /// Start with the events of the last SECONDS, as far as the stream EVENTS retains them. Default: new events only.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=604_800))]
    since: Option<u64>,
    /// Exit after printing this many events.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Print each event as one JSON object.
    #[arg(long)]
    json: bool,
}

/// The stream of events.
const STREAM: &str = "EVENTS";
/// Number of event ids kept to detect duplicates.
const REMEMBERED: usize = 10_000;
/// Characters of a payload that a line shows.
const SHOWN: usize = 100;

/// Runs `memfleet tail`.
///
/// # Errors
/// If the broker is unreachable or has no stream of events.
pub async fn execute(args: TailArgs, settings: &Settings) -> anyhow::Result<()> {
    tokio::select! {
        followed = follow(&args, settings) => followed,
        stopped = interrupted() => stopped,
    }
}

async fn follow(args: &TailArgs, settings: &Settings) -> anyhow::Result<()> {
    let client = broker::connect_operator(&settings.nats, "tail").await?;
    let stream = jetstream::new(client).get_stream_no_info(STREAM).await;
    let stream = stream.with_context(|| format!("cannot read the stream {STREAM}"))?;
    let start = args.since.map(|seconds| SystemTime::now() - Duration::from_secs(seconds));
    let deliver_policy = match start {
        Some(start) => DeliverPolicy::ByStartTime { start_time: start.into() },
        None => DeliverPolicy::New,
    };
    let config = OrderedConfig {
        filter_subject: format!("memory.event.*.*.{}", args.user),
        deliver_policy,
        ..OrderedConfig::default()
    };
    let consumer = stream.create_consumer(config).await;
    let consumer = consumer
        .with_context(|| format!("cannot read the stream {STREAM}; `memfleet nats apply` creates it"))?;
    let mut messages = consumer.messages().await.context("cannot subscribe to the events")?;
    if args.count.is_none() {
        cli::errln!("printing events of user {} until Ctrl-C", args.user);
    }
    let (mut seen, mut printed) = (Seen::default(), 0);
    while args.count.is_none_or(|count| printed < count) {
        let Some(message) = messages.next().await else { bail!("the broker closed the subscription") };
        let message = message.context("cannot read further events")?;
        let event: Event = serde_json::from_slice(&message.payload).context("cannot decode an event")?;
        let wanted = args.session.as_ref().is_none_or(|session| *session == event.session_id);
        if wanted && seen.is_new(event.event_id) {
            printed += 1;
            if args.json {
                out_json(serde_json::to_string(&event)?);
            } else {
                outln!("{}", line(&event));
            }
        }
    }
    Ok(())
}

fn line(event: &Event) -> String {
    let payload = event.payload.as_str();
    let beginning: String = payload.chars().take(SHOWN).collect();
    let more = if beginning.len() < payload.len() { "…" } else { "" };
    let shown = printable(&beginning);
    let target = event.target_agent_id.as_deref().map(printable);
    let target = target.map_or(String::new(), |target| format!(" → {target}"));
    format!(
        "{:>8}  {}  {:<22}  {}  {}{target}  {shown}{more}",
        event.event_sequence,
        event.created_at.format("%Y-%m-%dT%H:%M:%S%.3fZ"),
        event.event_type.as_str(),
        printable(&event.session_id),
        printable(&event.source_agent_id)
    )
}

/// The ids of the latest events.
#[derive(Default)]
struct Seen {
    ids: HashSet<Uuid>,
    order: VecDeque<Uuid>,
}

impl Seen {
    fn is_new(&mut self, id: Uuid) -> bool {
        if !self.ids.insert(id) {
            return false;
        }
        self.order.push_back(id);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}
