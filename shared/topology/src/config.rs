//! Configurations of streams and consumers, with the names and in the order of the JSON files under `nats/`.

use std::time::Duration;

use serde::{Serialize, Serializer};

pub(crate) const HOUR: Duration = Duration::from_secs(3_600);
pub(crate) const DAY: Duration = Duration::from_secs(86_400);
/// How long the server recognizes a message that is published again.
const DUPLICATES: Duration = Duration::from_secs(600);
/// No limit, in the JetStream API.
pub(crate) const UNLIMITED: i64 = -1;

/// The configuration of a stream.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct StreamConfig {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) subjects: Vec<String>,
    pub(crate) retention: &'static str,
    pub(crate) storage: &'static str,
    pub(crate) discard: Discard,
    #[serde(serialize_with = "nanoseconds")]
    pub(crate) max_age: Duration,
    pub(crate) max_bytes: u64,
    pub(crate) max_msg_size: i64,
    pub(crate) max_msgs: i64,
    pub(crate) max_msgs_per_subject: i64,
    #[serde(serialize_with = "nanoseconds")]
    pub(crate) duplicate_window: Duration,
    pub(crate) num_replicas: usize,
    pub(crate) deny_delete: bool,
    pub(crate) deny_purge: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) allow_msg_schedules: bool,
}

/// The discard policy of a full stream.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Discard {
    /// Reject new messages. For messages that are stored nowhere else.
    New,
    /// Delete the oldest messages. For copies, which must not block a worker.
    Old,
}

impl StreamConfig {
    pub(crate) fn new(name: &str, description: &str, subjects: Vec<String>, max_bytes: u64) -> Self {
        Self {
            name: name.to_owned(),
            description: description.to_owned(),
            subjects,
            retention: "limits",
            storage: "file",
            discard: Discard::New,
            max_age: 7 * DAY,
            max_bytes,
            max_msg_size: UNLIMITED,
            max_msgs: UNLIMITED,
            max_msgs_per_subject: UNLIMITED,
            duplicate_window: DUPLICATES,
            num_replicas: 1,
            deny_delete: false,
            deny_purge: false,
            allow_msg_schedules: false,
        }
    }
}

/// A durable consumer and its stream.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct DurableConsumer {
    pub(crate) stream_name: String,
    pub(crate) config: ConsumerConfig,
}

/// The configuration of a durable consumer.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ConsumerConfig {
    pub(crate) durable_name: String,
    description: String,
    deliver_policy: &'static str,
    ack_policy: &'static str,
    replay_policy: &'static str,
    #[serde(serialize_with = "nanoseconds")]
    ack_wait: Duration,
    #[serde(flatten)]
    filter: Filter,
    #[serde(flatten)]
    limits: ConsumerLimits,
    max_waiting: i64,
}

impl DurableConsumer {
    pub(crate) fn new(
        stream: &str,
        name: String,
        description: String,
        subjects: Vec<String>,
        limits: ConsumerLimits,
    ) -> Self {
        let config = ConsumerConfig {
            durable_name: name,
            description,
            deliver_policy: "all",
            ack_policy: "explicit",
            replay_policy: "instant",
            ack_wait: Duration::from_secs(30),
            filter: Filter::of(subjects),
            limits,
            max_waiting: 512,
        };
        Self { stream_name: stream.to_owned(), config }
    }
}

/// How often a message is delivered, and how many may be in flight over all replicas.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct ConsumerLimits {
    pub(crate) max_deliver: i64,
    pub(crate) max_ack_pending: i64,
}

/// The subjects of its stream that a consumer receives; all if both fields are empty. The server accepts only one of
/// the two.
#[derive(Clone, Debug, Serialize)]
struct Filter {
    #[serde(skip_serializing_if = "Option::is_none")]
    filter_subject: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    filter_subjects: Vec<String>,
}

impl Filter {
    fn of(mut subjects: Vec<String>) -> Self {
        let filter_subject = if subjects.len() == 1 { subjects.pop() } else { None };
        Self { filter_subject, filter_subjects: subjects }
    }
}

/// Durations of the JetStream API are nanoseconds.
fn nanoseconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    match u64::try_from(duration.as_nanos()) {
        Ok(nanoseconds) => serializer.serialize_u64(nanoseconds),
        Err(error) => Err(serde::ser::Error::custom(error)),
    }
}

fn is_false(flag: &bool) -> bool {
    !flag
}
