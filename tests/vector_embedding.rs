//! Texts that become vectors on their way: none twice, none lost, and over to another model.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use config::EmbedderKind;
use serde_json::{Value, json};
use testkit::{DEADLINE, request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;
use vector_indexer::VectorIndexer;

use crate::support::memories::{Memories, index, remove};
use crate::support::program::{Ended, memfleet, output_within};

/// A server with OpenAI's API, whose vectors follow from the letters of a text.
pub(crate) struct Server {
    pub(crate) url: String,
    /// How many texts it was given.
    texts: Arc<AtomicUsize>,
    /// How many requests it refuses from now on, as one that is busy does.
    pub(crate) busy: Arc<AtomicUsize>,
}

impl Server {
    pub(crate) async fn start(dimension: usize) -> Self {
        Self::refusing(dimension, None).await
    }

    /// One that refuses texts with this word.
    pub(crate) async fn refusing(dimension: usize, unfit: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let (texts, busy) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (counted, refused) = (Arc::clone(&texts), Arc::clone(&busy));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let model = Model { dimension, unfit };
                tokio::spawn(serve(stream, model, Arc::clone(&counted), Arc::clone(&refused)));
            }
        });
        Self { url, texts, busy }
    }
}

#[derive(Clone, Copy)]
struct Model {
    dimension: usize,
    unfit: Option<&'static str>,
}

async fn serve(mut stream: TcpStream, model: Model, texts: Arc<AtomicUsize>, busy: Arc<AtomicUsize>) {
    let mut received = Vec::new();
    let body = loop {
        let mut part = vec![0; 65_536];
        let count = stream.read(&mut part).await.unwrap_or(0);
        if count == 0 {
            return;
        }
        received.extend_from_slice(&part[..count]);
        let text = String::from_utf8_lossy(&received).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length =
            head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length.unwrap_or(0) {
            break body.to_owned();
        }
    };
    let is_busy = busy.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
    let answer = if is_busy {
        "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned()
    } else if model.unfit.is_some_and(|word| body.contains(word)) {
        "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned()
    } else {
        let asked: Value = serde_json::from_str(&body).unwrap();
        let inputs = asked["input"].as_array().unwrap();
        texts.fetch_add(inputs.len(), Ordering::SeqCst);
        let data: Vec<Value> = inputs
            .iter()
            .enumerate()
            .map(|(place, text)| json!({ "index": place, "embedding": letters(text.as_str().unwrap(), model.dimension) }))
            .collect();
        let body = json!({ "data": data, "model": asked["model"] }).to_string();
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
    };
    let _ = stream.write_all(answer.as_bytes()).await;
}

fn letters(text: &str, dimension: usize) -> Vec<f64> {
    let mut counts = vec![0.1; dimension];
    text.bytes().for_each(|byte| counts[usize::from(byte) % dimension] += 1.0);
    counts
}

async fn embedding_by(server: &Server, dimension: usize) -> Memories {
    let url = server.url.clone();
    let memories = Memories::with(|settings| {
        settings.embedder.kind = EmbedderKind::Http;
        settings.embedder.url = Some(url);
        settings.embedder.model = Some("letters".to_owned());
        settings.embedder.dimension = Some(dimension);
    });
    memories.await.with_users(&[1, 2]).await
}

fn said(id: Uuid, text: &str) -> Value {
    json!({ "memory_id": id, "vector_type": "context", "content_text": text })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_text_is_embedded_once_for_each_user() {
    let server = Server::start(16).await;
    let memories = embedding_by(&server, 16).await;
    let id = Uuid::now_v7;
    memories
        .process([
            index(1, vec![said(id(), "twice"), said(id(), "twice")]),
            index(1, vec![said(id(), "once")]),
        ])
        .await;
    assert_eq!(server.texts.load(Ordering::SeqCst), 2, "within a batch");
    memories.process([index(1, vec![said(id(), "once")])]).await;
    memories.process([index(1, vec![said(id(), "twice")])]).await;
    assert_eq!(server.texts.load(Ordering::SeqCst), 2, "and later");
    memories.process([index(2, vec![said(id(), "once")])]).await;
    assert_eq!(server.texts.load(Ordering::SeqCst), 3, "but not across users, who would learn of it");
    // What waits for its session is not embedded until that is there.
    let waits =
        request("vector.index", 1, json!({ "session_id": "later", "memories": [said(id(), "waits")] }));
    memories.process([waits]).await;
    assert_eq!(server.texts.load(Ordering::SeqCst), 3);
    assert_eq!((memories.rows().await, memories.points().await), (6, 6));
    assert_eq!(memories.fixture.dead_letters().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_text_has_a_point_for_each_piece() {
    let server = Server::start(16).await;
    let memories = embedding_by(&server, 16).await;
    let (long, short) = (Uuid::now_v7(), Uuid::now_v7());
    let text = "The harbour wall was built in the autumn of that year. ".repeat(200);
    let mut after = said(short, "Yes.");
    after["preceding_text"] = "Is it open?".into();
    memories.process([index(1, vec![said(long, &text), after])]).await;
    assert_eq!(memories.fixture.dead_letters().await, Vec::<String>::new());
    let counts =
        memories.fixture.lines("point_count FROM unified_memory_vectors ORDER BY length(content_text)").await;
    let counts: Vec<usize> = counts.iter().map(|count| count.parse().unwrap()).collect();
    assert!(counts[0] == 2 && counts[1] > 5, "{counts:?}");
    assert_eq!(memories.points().await, counts.iter().sum::<usize>());
    memories.process([remove(1, &[long, short])]).await;
    assert_eq!(memories.points().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_embedder_is_busy_nothing_is_lost() {
    let server = Server::start(16).await;
    let memories = embedding_by(&server, 16).await;
    server.busy.store(12, Ordering::SeqCst);
    let texts = (0..10).map(|n| index(1, vec![said(Uuid::now_v7(), &format!("text {n}"))]));
    memories.process(texts).await;
    assert_eq!(memories.fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!((memories.rows().await, memories.points().await), (10, 10));
}

/// With a model to go over to, of 24 numbers.
async fn embedding_by_then_by(server: &Server, other: &Server) -> Memories {
    let mut memories = embedding_by(server, 16).await;
    let settings = &mut memories.fixture.settings;
    settings.next_embedder = settings.embedder.clone();
    settings.next_embedder.url = Some(other.url.clone());
    settings.next_embedder.model = Some("more-letters".to_owned());
    settings.next_embedder.dimension = Some(24);
    memories
}

/// Whether `memfleet vectors` succeeds, and what it says.
async fn memfleet_vectors(memories: &Memories, arguments: &[&str]) -> (bool, String) {
    let command = memfleet(&memories.fixture, &[&["vectors"], arguments].concat());
    let ended: Ended = output_within(2 * DEADLINE, command).await.into();
    (ended.is_success(), ended.all())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_the_model_refuses_keeps_its_request_out_and_no_other() {
    let server = Server::refusing(16, Some("unfit")).await;
    let memories = embedding_by(&server, 16).await;
    let said = |text: &str| said(Uuid::now_v7(), text);
    memories
        .process([
            index(1, vec![said("fine"), said("unfit"), said("also fine")]),
            index(1, vec![said("fine as well")]),
            index(2, vec![said("fine")]),
        ])
        .await;
    assert_eq!(memories.fixture.dead_letters().await.len(), 1);
    assert_eq!((memories.rows().await, memories.points().await), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_next_model_refuses_is_left_out_if_that_is_wanted() {
    let (server, other) = (Server::start(16).await, Server::refusing(24, Some("unfit")).await);
    let memories = embedding_by_then_by(&server, &other).await;
    let (before, meanwhile) = (Uuid::now_v7(), Uuid::now_v7());
    memories.process([index(1, vec![said(before, "unfit"), said(Uuid::now_v7(), "fine")])]).await;
    let migrate = ["migrate", "--grace", "0", "--model", "more-letters"];
    let (fine, said_of_it) = memfleet_vectors(&memories, &migrate).await;
    assert!(!fine && said_of_it.contains("1 memories cannot be embedded"), "{said_of_it}");
    assert!(said_of_it.contains(&before.to_string()) && said_of_it.contains("--without 1"), "{said_of_it}");

    // Now it is written to both collections, and what one of them cannot have is no reason to refuse a request.
    let new = "unified_memory__more-letters__24__int8";
    memories
        .process([index(1, vec![said(meanwhile, "also unfit"), said(Uuid::now_v7(), "also fine")])])
        .await;
    assert_eq!(memories.fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(memories.points().await, 4);
    assert_eq!(memories.points_in(new).await, 2);
    let noted = format!("rows_returned::text FROM audit.data_access_log WHERE object_name = '{new}'");
    assert_eq!(memories.fixture.lines(&noted).await, ["1"], "what is stored is noted, and no more");

    let (fine, said_of_it) = memfleet_vectors(&memories, &[&migrate[..], &["--without", "1"]].concat()).await;
    assert!(!fine && said_of_it.contains("2 memories cannot be embedded"), "{said_of_it}");
    let (fine, said_of_it) = memfleet_vectors(&memories, &[&migrate[..], &["--without", "2"]].concat()).await;
    assert!(fine && said_of_it.contains("__more-letters__24__int8 is active"), "{said_of_it}");
    assert_eq!(memories.points_in(new).await, 2);
    let repair = ["reconcile", "--repair", "--grace", "0"];
    let (fine, said_of_it) = memfleet_vectors(&memories, &[&repair[..], &["--without", "2"]].concat()).await;
    assert!(fine, "{said_of_it}");
    let (fine, said_of_it) = memfleet_vectors(&memories, &repair).await;
    assert!(
        !fine && said_of_it.contains("2 memories without a point; 0 repaired, 2 not repairable"),
        "{said_of_it}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fleet_goes_over_to_another_model_and_back() {
    let (server, other) = (Server::start(16).await, Server::start(24).await);
    let memories = embedding_by_then_by(&server, &other).await;
    let before: Vec<Uuid> = (0..20).map(|_| Uuid::now_v7()).collect();
    memories.process(before.iter().map(|&id| index(1, vec![said(id, &format!("before {id}"))]))).await;

    let (fine, said_of_it) = memfleet_vectors(&memories, &["migrate", "--model", "nothing"]).await;
    assert!(!fine && said_of_it.contains("no embedder is configured for the model nothing"), "{said_of_it}");
    // While a worker goes on.
    let worker = memories.fixture.run(memories.indexer().await);
    let meanwhile: Vec<Uuid> = (0..20).map(|_| Uuid::now_v7()).collect();
    let publishing = async {
        for &id in &meanwhile {
            memories.fixture.publish([index(1, vec![said(id, &format!("meanwhile {id}"))])]).await;
        }
    };
    let ((fine, said_of_it), ()) = tokio::join!(
        memfleet_vectors(&memories, &["migrate", "--grace", "2", "--model", "more-letters"]),
        publishing
    );
    assert!(fine && said_of_it.contains("__more-letters__24__int8 is active"), "{said_of_it}");
    memories.fixture.drained::<VectorIndexer>().await;
    let new = "unified_memory__more-letters__24__int8";
    assert_eq!(memories.points_in(new).await, 40);
    let store = memories.vectors();
    assert_eq!(store.alias_target(::vectors::ALIAS).await.unwrap().as_deref(), Some(new));

    let after = Uuid::now_v7();
    memories.fixture.publish([index(1, vec![said(after, "after"), said(Uuid::now_v7(), "and after")])]).await;
    memories.fixture.drained::<VectorIndexer>().await;
    assert_eq!(memories.points_in(new).await, 42);
    let (fine, said_of_it) = memfleet_vectors(&memories, &["reconcile", "--grace", "0"]).await;
    assert!(
        fine && said_of_it.contains("42 points of 42 memories; 0 points without a memory, 0 memories"),
        "{said_of_it}"
    );
    memories.fixture.publish([remove(1, &[before[0], after])]).await;
    memories.fixture.drained::<VectorIndexer>().await;

    let (fine, said_of_it) =
        memfleet_vectors(&memories, &["migrate", "--grace", "2", "--model", "letters"]).await;
    assert!(fine, "{said_of_it}");
    let old = &memories.collection.collection_name;
    assert_eq!(memories.points_in(old).await, 40, "what came and went meanwhile came and went there too");
    let (fine, said_of_it) = memfleet_vectors(&memories, &["drop", old]).await;
    assert!(
        !fine && said_of_it.contains("is active; only a former collection or one being filled"),
        "{said_of_it}"
    );
    let (fine, said_of_it) = memfleet_vectors(&memories, &["drop", new]).await;
    let refusal = format!("this permanently deletes collection {new} with 40 points; add --yes to confirm");
    assert!(!fine && said_of_it.contains(&refusal), "{said_of_it}");
    let (fine, said_of_it) = memfleet_vectors(&memories, &["drop", "--yes", new]).await;
    assert!(fine, "{said_of_it}");
    worker.stop().await.unwrap();
    assert_eq!(memories.fixture.dead_letters().await, Vec::<String>::new());
}
