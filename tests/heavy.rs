//! Requests that take long to prepare, and who waits for them.

use std::sync::Arc;

use config::EmbedderKind;
use serde_json::{Value, json};
use testkit::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use uuid::Uuid;

use crate::support::memories::{Memories, index, remove};

const DIMENSION: usize = 8;
/// A word of the texts that the embedder keeps until it is let go.
const SLOW: &str = "treacle";

/// A server with OpenAI's API that answers requests with slow texts when it may.
struct SlowEmbedder {
    url: String,
    /// How many requests wait.
    waiting: watch::Receiver<usize>,
    may_answer: watch::Sender<bool>,
}

impl SlowEmbedder {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let ((count, waiting), (may_answer, may)) = (watch::channel(0), watch::channel(false));
        let count = Arc::new(count);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, Arc::clone(&count), may.clone()));
            }
        });
        Self { url, waiting, may_answer }
    }

    /// Memories of two users, with their texts embedded by this server.
    async fn memories(&self) -> Memories {
        let memories = Memories::with(|settings| {
            settings.embedder.kind = EmbedderKind::Http;
            settings.embedder.url = Some(self.url.clone());
            settings.embedder.model = Some("slow".to_owned());
            settings.embedder.dimension = Some(DIMENSION);
        });
        memories.await.with_users(&[1, 2]).await
    }
}

async fn answer(
    mut stream: TcpStream,
    waiting: Arc<watch::Sender<usize>>,
    mut may: watch::Receiver<bool>,
) -> Option<()> {
    let mut received = Vec::new();
    let body = loop {
        let mut part = vec![0; 65_536];
        let count = stream.read(&mut part).await.ok().filter(|count| *count > 0)?;
        received.extend_from_slice(&part[..count]);
        let text = String::from_utf8_lossy(&received).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length: Option<usize> =
            head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length? {
            break body.to_owned();
        }
    };
    if body.contains(SLOW) {
        waiting.send_modify(|waiting| *waiting += 1);
        may.wait_for(|may| *may).await.ok()?;
    }
    let asked: Value = serde_json::from_str(&body).ok()?;
    let vector = vec![0.5; DIMENSION];
    let inputs = asked["input"].as_array()?;
    let data: Vec<Value> =
        (0..inputs.len()).map(|place| json!({ "index": place, "embedding": vector })).collect();
    let body = json!({ "data": data, "model": asked["model"] }).to_string();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await.ok()
}

fn said(id: Uuid, text: &str) -> Value {
    json!({ "memory_id": id, "vector_type": "context", "content_text": text })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heavy_request_holds_up_nobody_else_and_keeps_its_place_among_its_users() {
    let embedder = SlowEmbedder::start().await;
    let memories = embedder.memories().await;
    let fixture = &memories.fixture;
    let worker = fixture.run(memories.indexer().await);

    let heavy: Vec<Uuid> = (0..20).map(|_| Uuid::now_v7()).collect();
    let text = |n: usize| format!("{n} {}", format!("{SLOW} ").repeat(10_000 / (SLOW.len() + 1)));
    let texts = heavy.iter().enumerate().map(|(n, &id)| said(id, &text(n)));
    fixture.publish([index(1, texts.collect())]).await;
    let mut waiting = embedder.waiting.clone();
    waiting.wait_for(|waiting| *waiting > 0).await.unwrap();
    // The user's next requests follow; those of others go on, in many batches.
    fixture.publish([remove(1, &heavy[..1]), index(1, vec![said(Uuid::now_v7(), "after it")])]).await;
    for n in 0..20 {
        fixture.publish([index(2, vec![said(Uuid::now_v7(), &format!("light {n}"))])]).await;
        eventually("the light one is written", async || {
            (fixture.count("unified_memory_vectors WHERE user_id = 2").await == n + 1).then_some(())
        })
        .await;
    }
    assert_eq!(fixture.count("unified_memory_vectors WHERE user_id = 1").await, 0);
    embedder.may_answer.send_replace(true);
    fixture.drained::<vector_indexer::VectorIndexer>().await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    let live = "unified_memory_vectors WHERE user_id = 1 AND removed_at IS NULL";
    assert_eq!(fixture.count(live).await, 20, "19 of the heavy request, and the one after it");
    assert_eq!(worker.stats.report().retried, 0, "in their order");
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn heavy_requests_for_which_there_is_no_room_come_again() {
    let embedder = SlowEmbedder::start().await;
    let memories = embedder.memories().await;
    let fixture = &memories.fixture;
    let worker = fixture.run(memories.indexer().await);
    let text = format!("{SLOW} ").repeat(2_500);
    let requests = (0..150).map(|n| index(1, vec![said(Uuid::now_v7(), &format!("{n} {text}"))]));
    fixture.publish(requests).await;
    eventually("some had no room", async || (worker.stats.report().delayed > 10).then_some(())).await;
    fixture.publish([index(2, vec![said(Uuid::now_v7(), "light")])]).await;
    eventually("the light one is written", async || {
        (fixture.count("unified_memory_vectors WHERE user_id = 2").await == 1).then_some(())
    })
    .await;
    embedder.may_answer.send_replace(true);
    fixture.drained::<vector_indexer::VectorIndexer>().await;
    assert_eq!(fixture.count("unified_memory_vectors WHERE user_id = 1").await, 150);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_heavy_requests_of_a_service_leave_room_for_those_of_others() {
    let embedder = SlowEmbedder::start().await;
    let memories = embedder.memories().await;
    let fixture = &memories.fixture;
    fixture.register("other", "*:*").await;
    memories.grant("other", true, true, true).await;
    let worker = fixture.run(memories.indexer().await);
    // More heavy requests than can be processed at once, of as many users.
    let slow = format!("{SLOW} ").repeat(2_500);
    let users: Vec<i32> = (10..16).collect();
    let opened = users.iter().flat_map(|&id| [testkit::user(id), testkit::session(id, "s")]);
    fixture.process(context_writer::ContextWriter, opened).await;
    fixture.publish(users.iter().map(|&user| index(user, vec![said(Uuid::now_v7(), &slow)]))).await;
    let mut waiting = embedder.waiting.clone();
    waiting.wait_for(|waiting| *waiting > 0).await.unwrap();
    let mut heavy = index(2, vec![said(Uuid::now_v7(), &"a quiet museum ".repeat(1_500))]);
    heavy.subject = heavy.subject.replacen(".test.", ".other.", 1);
    fixture.publish([heavy]).await;
    eventually("the other service's is written", async || {
        (fixture.count("unified_memory_vectors WHERE user_id = 2").await > 0).then_some(())
    })
    .await;
    assert_eq!(fixture.count("unified_memory_vectors WHERE user_id >= 10").await, 0);
    embedder.may_answer.send_replace(true);
    fixture.drained::<vector_indexer::VectorIndexer>().await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    worker.stop().await.expect("a clean end");
}

/// Each of them is small, but all of them together take long to prepare.
#[tokio::test(flavor = "multi_thread")]
async fn a_few_texts_of_a_service_hold_up_no_other() {
    let embedder = SlowEmbedder::start().await;
    let memories = embedder.memories().await;
    let fixture = &memories.fixture;
    fixture.register("other", "*:*").await;
    memories.grant("other", true, true, true).await;
    let mut settings = fixture.settings.clone();
    // They come in one batch.
    settings.worker.batch_wait_ms = 1_000;
    let worker = fixture.run_with(memories.indexer().await, settings);
    let light = |n: usize| {
        let mut light = index(2, vec![said(Uuid::now_v7(), &format!("light {n}"))]);
        light.subject = light.subject.replacen(".test.", ".other.", 1);
        light
    };
    let written = async |count| {
        eventually("the light ones are written", async || {
            (fixture.count("unified_memory_vectors WHERE user_id = 2").await == count).then_some(())
        })
        .await;
    };
    fixture.publish([light(0)]).await;
    written(1).await;
    let text = format!("{SLOW} ").repeat(1_500);
    fixture.publish((0..10).map(|n| index(1, vec![said(Uuid::now_v7(), &format!("{n} {text}"))]))).await;
    let mut waiting = embedder.waiting.clone();
    waiting.wait_for(|waiting| *waiting > 0).await.unwrap();
    fixture.publish([light(1)]).await;
    written(2).await;
    assert_eq!(fixture.count("unified_memory_vectors WHERE user_id = 1").await, 0);
    embedder.may_answer.send_replace(true);
    fixture.drained::<vector_indexer::VectorIndexer>().await;
    assert_eq!(fixture.count("unified_memory_vectors WHERE user_id = 1").await, 10);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    worker.stop().await.expect("a clean end");
}
