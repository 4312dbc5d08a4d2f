//! The publisher against a real server.

use std::time::Duration;

use async_nats::jetstream::stream::Config;
use bytes::Bytes;
use client::{Publisher, PublisherOptions};
use config::NatsSettings;
use runtime::broker;
use stack::{Nats, NatsOptions, Programs};
use uuid::Uuid;

async fn server(folder: &tempfile::TempDir) -> (Nats, async_nats::Client) {
    let nats = Nats::start(&Programs::find().unwrap(), folder.path(), NatsOptions::default()).await.unwrap();
    let settings = NatsSettings { url: nats.url().to_owned(), ..NatsSettings::default() };
    let client = broker::connect(&settings, "test").await.unwrap();
    (nats, client)
}

fn options() -> PublisherOptions {
    PublisherOptions {
        window: 8,
        attempts: 4,
        first_delay: Duration::from_millis(20),
        ..PublisherOptions::default()
    }
}

fn stream(max_messages: i64) -> Config {
    Config { name: "S".to_owned(), subjects: vec!["s.>".to_owned()], max_messages, ..Config::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_keep_their_order_and_repeats_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (nats, client) = server(&folder).await;
    let jetstream = async_nats::jetstream::new(client.clone());
    let stored = jetstream.create_stream(stream(-1)).await.unwrap();

    let mut publisher = Publisher::new(client, options());
    for number in 0..500_u32 {
        publisher
            .send("s.a".to_owned(), Uuid::from_u128(number.into()), number.to_string().into(), None)
            .await;
    }
    for number in 0..10_u32 {
        publisher
            .send("s.a".to_owned(), Uuid::from_u128(number.into()), Bytes::from_static(b"again"), None)
            .await;
    }
    let published = publisher.finish().await;
    assert_eq!((published.stored, published.duplicate, published.refused), (500, 10, 0), "{published:?}");
    for number in 0..500_u32 {
        let message = stored.get_raw_message(u64::from(number) + 1).await.unwrap();
        assert_eq!(message.payload, number.to_string().as_bytes());
    }
    nats.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_refuses_is_tried_again_and_then_reported() {
    let folder = tempfile::tempdir().unwrap();
    let (nats, client) = server(&folder).await;
    let mut publisher = Publisher::new(client.clone(), options());
    for number in 0..20 {
        publisher.send("s.a".to_owned(), Uuid::from_u128(number), Bytes::new(), None).await;
    }
    let published = publisher.finish().await;
    assert_eq!((published.stored, published.refused, published.reasons.len()), (0, 20, 5));
    let reason = &published.reasons[0];
    assert!(reason.starts_with("s.a (id 00000000-0000-"), "{reason}");
    assert!(reason.contains("4 attempts") && reason.contains("`memfleet nats apply`"), "{reason}");

    // A stream that comes into being between two attempts gets what was refused before.
    let mut publisher = Publisher::new(client.clone(), PublisherOptions { attempts: 12, ..options() });
    publisher.send("s.a".to_owned(), Uuid::from_u128(1), Bytes::new(), None).await;
    let jetstream = async_nats::jetstream::new(client);
    let (published, stream) = tokio::join!(publisher.finish(), jetstream.create_stream(stream(-1)));
    stream.unwrap();
    assert_eq!((published.stored, published.refused), (1, 0), "{published:?}");
    nats.stop().await.unwrap();
}
