//! Ticks of jobs, at once.

use std::time::Duration;

use chrono::{SecondsFormat, Utc};
use testkit::{Fixture, eventually};

/// Has the server publish a tick, which takes the place of the shipped schedule.
pub async fn publish_tick(fixture: &Fixture, job: &str) {
    let mut headers = async_nats::HeaderMap::new();
    let time = (Utc::now() + Duration::from_millis(100)).to_rfc3339_opts(SecondsFormat::Millis, true);
    headers.insert("Nats-Schedule", format!("@at {time}"));
    headers.insert("Nats-Schedule-Target", format!("memory.job.{job}"));
    let subject = format!("memory.schedule.{job}");
    let sent = fixture.jetstream.publish_with_headers(subject, headers, "".into()).await;
    sent.expect("a publish").await.expect("a stored schedule");
}

/// The same, and waits until a worker has acknowledged it.
pub async fn tick(fixture: &Fixture, worker: &str, job: &str) {
    let consumer = fixture.consumer("JOBS", &format!("{worker}-jobs")).await;
    let before = consumer.get_info().await.expect("a consumer").delivered.consumer_sequence;
    publish_tick(fixture, job).await;
    eventually("the tick is acknowledged", async || {
        let info = consumer.get_info().await.ok()?;
        (info.delivered.consumer_sequence > before && info.num_pending == 0 && info.num_ack_pending == 0)
            .then_some(())
    })
    .await;
}

/// Waits until a worker has acknowledged the ticks that events have caused so far.
pub async fn woken(fixture: &Fixture, worker: &str) {
    let consumer = fixture.consumer("WAKES", &format!("{worker}-wakes")).await;
    eventually("the ticks are acknowledged", async || {
        let info = consumer.get_info().await.ok()?;
        (info.num_pending == 0 && info.num_ack_pending == 0).then_some(())
    })
    .await;
}
