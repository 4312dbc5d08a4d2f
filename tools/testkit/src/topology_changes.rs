use std::time::Duration;

use serde_json::Value;
use topology::Topology;

/// Shortens the duplicate window of a stream, so that repeated messages reach the inbox.
pub fn set_duplicate_window(topology: &mut Topology, stream: &str, window: Duration) {
    for stream in topology.streams.iter_mut().filter(|known| known.name == stream) {
        stream.config.insert("duplicate_window".to_owned(), nanoseconds(window));
    }
}

/// Changes when a consumer delivers an unacknowledged message again, and how often at most.
pub fn set_redelivery(topology: &mut Topology, consumer: &str, ack_wait: Duration, max_deliver: i64) {
    for consumer in topology.consumers.iter_mut().filter(|known| known.name == consumer) {
        consumer.config.insert("ack_wait".to_owned(), nanoseconds(ack_wait));
        consumer.config.insert("max_deliver".to_owned(), max_deliver.into());
    }
}

fn nanoseconds(duration: Duration) -> Value {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).into()
}
