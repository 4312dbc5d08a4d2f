//! The status of the broker's streams and consumers.

use std::time::Duration;

use anyhow::Context;
use async_nats::jetstream::{self, consumer, stream};
use chrono::{DateTime, SecondsFormat, Utc};
use cli::table::{Align, Table, grouped};
use cli::{out, outln};
use config::Settings;
use futures::{StreamExt, TryStreamExt};
use runtime::broker;
use serde::Serialize;
use tokio::time::timeout;

use crate::command::dead::time_of;

/// Maximum number of streams, and of consumers per stream.
const MAX_LISTED: usize = 256;
/// Time limit of all requests to the broker together.
const DEADLINE: Duration = Duration::from_secs(15);

#[derive(Debug, Serialize)]
pub(super) struct BrokerStatus {
    pub(super) version: String,
    /// `None` if the stream DEAD does not exist.
    dead_letters: Option<u64>,
    streams: Vec<StreamStatus>,
    consumers: Vec<ConsumerStatus>,
    /// Streams, consumers and schedules that the workers need and the broker lacks.
    pub(super) missing: Vec<String>,
    /// Jobs that an operator has paused.
    paused: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct StreamStatus {
    name: String,
    messages: u64,
    bytes: u64,
    /// `None` if the stream is empty.
    first_at: Option<DateTime<Utc>>,
    last_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Serialize)]
struct ConsumerStatus {
    stream: String,
    name: String,
    /// Messages not delivered yet: the lag.
    pending: u64,
    /// Messages delivered and not acknowledged yet.
    in_flight: u64,
    redelivered: u64,
    /// Waiting pull requests; 0 means that no worker is running.
    waiting: u64,
    /// Age of the oldest unacknowledged message.
    oldest_age_s: Option<i64>,
}

pub(super) async fn read(settings: &Settings) -> anyhow::Result<BrokerStatus> {
    let status = timeout(DEADLINE, read_all(settings)).await;
    status.with_context(|| format!("NATS did not answer within {} s", DEADLINE.as_secs()))?
}

async fn read_all(settings: &Settings) -> anyhow::Result<BrokerStatus> {
    let client = broker::connect_operator(&settings.nats, "status").await?;
    let version = client.server_info().version;
    let jetstream = jetstream::new(client);
    let infos: Vec<stream::Info> =
        jetstream.streams().take(MAX_LISTED).try_collect().await.context("cannot list the streams")?;
    let missing = topology::missing(&jetstream, contract::WORKERS).await?;
    let schedules = topology::schedules(&jetstream).await?;
    let mut status = BrokerStatus {
        version,
        dead_letters: None,
        streams: Vec::new(),
        consumers: Vec::new(),
        missing: missing.iter().map(ToString::to_string).collect(),
        paused: schedules.iter().filter(|schedule| schedule.is_paused).map(|schedule| schedule.job).collect(),
    };
    for info in infos {
        let stream = jetstream.get_stream_no_info(&info.config.name).await?;
        let consumers: Vec<consumer::Info> =
            stream.consumers().take(MAX_LISTED).try_collect().await.context("cannot list the consumers")?;
        for info in consumers {
            let oldest = oldest(&stream, &info).await;
            status.consumers.push(ConsumerStatus::new(&info, oldest));
        }
        if info.config.name == "DEAD" {
            status.dead_letters = Some(info.state.messages);
        }
        status.streams.push(StreamStatus::new(&info));
    }
    status.streams.sort_by(|a, b| a.name.cmp(&b.name));
    status.consumers.sort_by(|a, b| (&a.stream, &a.name).cmp(&(&b.stream, &b.name)));
    Ok(status)
}

/// When the oldest unacknowledged message was stored; `None` if there is none.
async fn oldest<T>(stream: &stream::Stream<T>, info: &consumer::Info) -> Option<DateTime<Utc>> {
    if info.num_pending == 0 && info.num_ack_pending == 0 {
        return None;
    }
    let single = [info.config.filter_subject.as_str()];
    let several = info.config.filter_subjects.iter().map(String::as_str);
    let mut filters: Vec<&str> =
        single.into_iter().filter(|subject| !subject.is_empty()).chain(several).collect();
    if filters.is_empty() {
        filters.push(">");
    }
    let next = info.ack_floor.stream_sequence + 1;
    let mut oldest: Option<DateTime<Utc>> = None;
    for filter in filters {
        let found = stream.raw_message_builder().sequence(next).next_by_subject(filter).send().await;
        let stored = found.ok().and_then(|message| time_of(message.time.unix_timestamp_nanos()));
        oldest = oldest.into_iter().chain(stored).min();
    }
    oldest
}

impl StreamStatus {
    fn new(info: &stream::Info) -> Self {
        let time = |nanoseconds| if info.state.messages == 0 { None } else { time_of(nanoseconds) };
        Self {
            name: info.config.name.clone(),
            messages: info.state.messages,
            bytes: info.state.bytes,
            first_at: time(info.state.first_timestamp.unix_timestamp_nanos()),
            last_at: time(info.state.last_timestamp.unix_timestamp_nanos()),
        }
    }
}

impl ConsumerStatus {
    fn new(info: &consumer::Info, oldest: Option<DateTime<Utc>>) -> Self {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        Self {
            stream: info.stream_name.clone(),
            name: info.name.clone(),
            pending: info.num_pending,
            in_flight: count(info.num_ack_pending),
            redelivered: count(info.num_redelivered),
            waiting: count(info.num_waiting),
            oldest_age_s: oldest.map(|oldest| (Utc::now() - oldest).num_seconds().max(0)),
        }
    }
}

impl BrokerStatus {
    pub(super) fn show(&self) {
        if let Some(count) = self.dead_letters {
            outln!("            {} dead letters", grouped(count));
        }
        for missing in &self.missing {
            outln!("            missing: {missing}");
        }
        for job in &self.paused {
            outln!("            paused: {job}; `memfleet schedule resume {job}` lets it run again");
        }
        let mut streams = Table::new([
            ("stream", Align::Left),
            ("messages", Align::Right),
            ("bytes", Align::Right),
            ("first", Align::Left),
            ("last", Align::Left),
        ]);
        let time = |time: Option<DateTime<Utc>>| {
            time.map_or_else(String::new, |time| time.to_rfc3339_opts(SecondsFormat::Secs, true))
        };
        for stream in &self.streams {
            let StreamStatus { name, messages, bytes, first_at, last_at } = stream;
            streams.row([name.clone(), grouped(*messages), grouped(*bytes), time(*first_at), time(*last_at)]);
        }
        out!("\n{streams}");
        if self.consumers.is_empty() {
            return;
        }
        let mut consumers = Table::new([
            ("consumer", Align::Left),
            ("pending", Align::Right),
            ("in flight", Align::Right),
            ("redelivered", Align::Right),
            ("pulls waiting", Align::Right),
            ("oldest", Align::Right),
        ]);
        for consumer in &self.consumers {
            consumers.row([
                format!("{}/{}", consumer.stream, consumer.name),
                grouped(consumer.pending),
                grouped(consumer.in_flight),
                grouped(consumer.redelivered),
                grouped(consumer.waiting),
                consumer.oldest_age_s.map_or_else(String::new, |age| format!("{age} s")),
            ]);
        }
        out!("\n{consumers}");
    }
}
