use std::time::Duration;

use serde_json::Value;
use topology::Topology;

/// Makes the broker forget message ids of a stream soon, so that repeats reach the inbox.
pub fn forget_duplicates_after(topology: &mut Topology, stream: &str, window: Duration) {
    for stream in topology.streams.iter_mut().filter(|known| known.name == stream) {
        stream.config.insert("duplicate_window".to_owned(), nanoseconds(window));
    }
}

/// Changes after how long a message counts as not settled, and how often it is delivered at most.
pub fn deliver_again_after(topology: &mut Topology, consumer: &str, ack_wait: Duration, max_deliver: i64) {
    for consumer in topology.consumers.iter_mut().filter(|known| known.name == consumer) {
        consumer.config.insert("ack_wait".to_owned(), nanoseconds(ack_wait));
        consumer.config.insert("max_deliver".to_owned(), max_deliver.into());
    }
}

fn nanoseconds(duration: Duration) -> Value {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).into()
}
