//! Whose fault it is: a text that an embedder fails on keeps no other one waiting, and a vector store or an embedder that
//! is away or misconfigured makes no dead letters.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use config::EmbedderKind;
use qdrant_client::qdrant::{CreateCollectionBuilder, Distance, VectorParamsBuilder};
use runtime::readiness::MissingReport;
use runtime::{Dependency, Readiness};
use serde_json::{Value, json};
use testkit::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;
use vector_indexer::VectorIndexer;
use vector_indexer::collection;

use crate::support::memories::{Memories, index, memory};
use crate::support::reader::Reader;

/// A text with this word is one that the embedder fails on. It must stand in no dead letter.
const POISON: &str = "poisonous";

/// How the embedder fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Failure {
    Answer(&'static str, &'static str),
    Closes,
    Hangs,
    /// It closes the connection, and those that follow, as many.
    Dies(usize),
}

/// An embedder that fails on some texts, or on all while `is_down`.
#[derive(Clone)]
struct Embedder {
    url: String,
    is_down: Arc<AtomicBool>,
    failures: Arc<Vec<Failure>>,
    /// The index of the failure.
    failure: Arc<AtomicUsize>,
    dead: Arc<AtomicUsize>,
}

impl Embedder {
    async fn start(failures: &[Failure]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let embedder = Self {
            url: format!("http://{}/v1", listener.local_addr().unwrap()),
            is_down: Arc::default(),
            failures: Arc::new(failures.to_vec()),
            failure: Arc::default(),
            dead: Arc::default(),
        };
        let serving = embedder.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let embedder = serving.clone();
                tokio::spawn(async move { embedder.serve(stream).await });
            }
        });
        embedder
    }

    async fn serve(&self, mut stream: TcpStream) {
        let Some(body) = body_of_request(&mut stream).await else { return };
        let inputs: Vec<String> = serde_json::from_value(body["input"].clone()).unwrap();
        if self.dead.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return;
        }
        let is_poisoned = inputs.iter().any(|text| text.contains(POISON));
        let (status, body) = match self.failures.get(self.failure.load(Ordering::SeqCst)) {
            _ if self.is_down.load(Ordering::SeqCst) => ("500 Down", String::new()),
            Some(failure) if is_poisoned => match *failure {
                Failure::Answer(status, body) => (status, body.to_owned()),
                Failure::Closes => return,
                Failure::Hangs => return drop(stream.read(&mut [0]).await),
                Failure::Dies(others) => return self.dead.store(others, Ordering::SeqCst),
            },
            Some(_) | None => {
                let numbers = |text: &String| vec![text.len(), 1, 2, 3];
                let item = |(at, text)| json!({ "index": at, "embedding": numbers(text) });
                let data: Vec<Value> = inputs.iter().enumerate().map(item).collect();
                ("200 OK", json!({ "data": data }).to_string())
            }
        };
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close", body.len());
        let _ = stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await;
    }

    /// Whose failures are quick.
    async fn memories(&self) -> Memories {
        let url = self.url.clone();
        let memories = Memories::with(|settings| {
            settings.embedder.kind = EmbedderKind::Http;
            settings.embedder.url = Some(url);
            settings.embedder.model = Some("lengths".to_owned());
            settings.embedder.dimension = Some(4);
            settings.embedder.retries = 0;
            settings.embedder.timeout_ms = 500;
        });
        memories.await.with_users(&[1, 2]).await
    }
}

async fn body_of_request(stream: &mut TcpStream) -> Option<Value> {
    let mut received = Vec::new();
    loop {
        let mut part = vec![0; 65_536];
        let count = stream.read(&mut part).await.ok().filter(|count| *count > 0)?;
        received.extend_from_slice(&part[..count]);
        let text = String::from_utf8_lossy(&received);
        if let Some((_, body)) = text.split_once("\r\n\r\n")
            && let Ok(body) = serde_json::from_str(body)
        {
            return Some(body);
        }
    }
}

fn said(id: Uuid, text: &str) -> Value {
    json!({ "memory_id": id, "vector_type": "context", "content_text": text })
}

fn fine(text: &str) -> Value {
    said(Uuid::now_v7(), text)
}

/// The missing dependency of this kind.
fn missing(readiness: &Readiness, dependency: Dependency) -> Option<MissingReport> {
    readiness.report().missing.into_iter().find(|one| one.dependency == dependency)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_the_embedder_fails_on_becomes_a_dead_letter_and_no_other() {
    const FAILURES: [(Failure, &str); 8] = [
        (Failure::Answer("500 Internal Server Error", ""), "the server responds with status 500"),
        (Failure::Answer("424 Failed Dependency", ""), "the server responds with status 424"),
        (Failure::Answer("200 OK", "<html>Oops, poisonous</html>"), "is not a list of embeddings"),
        (Failure::Answer("200 OK", r#"{"data":[{"index":0,"embedding":[NaN,1,1,1]}]}"#), "not a list"),
        (Failure::Answer("200 OK", r#"{"data":[]}"#), "the server returned 0 vectors"),
        (Failure::Closes, "failed"),
        (Failure::Hangs, "timeout"),
        // The server is away for longer than a harmless text takes.
        (Failure::Dies(2), "failed"),
    ];
    let embedder = Embedder::start(&FAILURES.map(|(failure, _)| failure)).await;
    let memories = embedder.memories().await;
    let worker = memories.fixture.run(memories.indexer().await);
    for (at, (failure, answered)) in FAILURES.into_iter().enumerate() {
        embedder.failure.store(at, Ordering::SeqCst);
        let poisoned = Uuid::now_v7();
        let of_both =
            vec![fine(&format!("fine {at}")), said(poisoned, POISON), fine(&format!("also fine {at}"))];
        memories
            .fixture
            .publish([
                index(1, vec![fine(&format!("before {at}"))]),
                index(1, of_both),
                index(1, vec![fine(&format!("beside {at}"))]),
                index(2, vec![fine(&format!("beside {at}"))]),
            ])
            .await;
        memories.fixture.drained::<VectorIndexer>().await;
        let letters = memories.fixture.dead_letters().await;
        assert_eq!(letters.len(), at + 1, "{failure:?}: {letters:?}");
        let letter = letters.last().unwrap();
        let start = match failure {
            Failure::Dies(_) => {
                "permanent: memories: the embedder responded until it got these texts".to_owned()
            }
            Failure::Answer(..) | Failure::Closes | Failure::Hangs => {
                format!(
                    "permanent: memories[1]: the embedder cannot embed the text of the memory {poisoned}: "
                )
            }
        };
        assert!(letter.starts_with(&start) && letter.contains(answered), "{failure:?}: {letter}");
        assert!(!letter.contains(POISON), "{letter}");
        let expected = 3 * (i64::try_from(at).unwrap() + 1);
        assert_eq!(memories.rows().await, expected, "{failure:?}: the others take effect");
        assert_eq!(i64::try_from(memories.points().await).unwrap(), expected, "{failure:?}");
    }
    eventually("vector-indexer is ready", async || worker.readiness.report().ready.then_some(())).await;
    worker.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_embedder_fails_on_every_text_all_wait() {
    let embedder = Embedder::start(&[Failure::Answer("500 Poisoned", "")]).await;
    let memories = embedder.memories().await;
    let worker = memories.fixture.run(memories.indexer().await);
    embedder.is_down.store(true, Ordering::SeqCst);
    memories
        .fixture
        .publish((0..20).map(|n| index(1, vec![fine(&format!("{n} {}", if n == 7 { POISON } else { "" }))])))
        .await;
    let told =
        eventually("it says what is away", async || missing(&worker.readiness, Dependency::Embedder)).await;
    assert!(told.problem.contains("status 500"), "{told:?}");
    assert_eq!(memories.fixture.dead_letters().await, Vec::<String>::new());
    embedder.is_down.store(false, Ordering::SeqCst);
    memories.fixture.drained::<VectorIndexer>().await;
    assert_eq!(memories.fixture.dead_letters().await.len(), 1);
    assert_eq!(memories.rows().await, 19);
    eventually("vector-indexer is ready", async || worker.readiness.report().ready.then_some(())).await;
    worker.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_next_model_fails_on_is_left_out_there() {
    let failures = [Failure::Answer("500 Poisoned", ""), Failure::Dies(2)];
    let (embedder, next) = (Embedder::start(&[]).await, Embedder::start(&failures).await);
    let mut memories = embedder.memories().await;
    let settings = &mut memories.fixture.settings;
    settings.next_embedder = settings.embedder.clone();
    settings.next_embedder.url = Some(next.url.clone());
    settings.next_embedder.model = Some("next".to_owned());
    let filling = "unified_memory__next__4__int8";
    let spec = vectors::CollectionSpec {
        model: "next".to_owned(),
        dimension: 4,
        quantization: config::Quantization::Int8,
    };
    memories.vectors().create_collection(filling, &spec).await.unwrap();
    let mut connection = memories.fixture.connection().await;
    let deployment = store::vector::deployment(&mut connection).await.unwrap();
    let record = collection::record(vectors::ALIAS, deployment, &spec, "filling").unwrap();
    store::vector::put_collection(&mut connection, vectors::ALIAS, &record).await.unwrap();
    for (at, points) in [(0, 2), (1, 4)] {
        next.failure.store(at, Ordering::SeqCst);
        memories
            .process([
                index(1, vec![fine(&format!("{at} {POISON}"))]),
                index(1, vec![fine(&format!("{at} fine")), fine(&format!("{at} also fine"))]),
            ])
            .await;
        assert_eq!(memories.fixture.dead_letters().await, Vec::<String>::new());
        assert_eq!((memories.points().await, memories.points_in(filling).await), (3 * (at + 1), points));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_for_a_text_that_the_embedder_fails_on_fails_alone() {
    let embedder = Embedder::start(&[Failure::Answer("500 Poisoned", ""), Failure::Hangs]).await;
    let memories = embedder.memories().await;
    memories.process([index(1, vec![fine("A ferry")])]).await;
    let reader = Reader::start(&memories.fixture).await;
    for at in 0..2 {
        embedder.failure.store(at, Ordering::SeqCst);
        let search = |text: &str| json!({ "text": text, "mode": "vector" });
        let (poisoned, fine) = tokio::join!(
            reader.ask("search.similar", 1, search(POISON)),
            reader.ask("search.similar", 1, search("A ferry")),
        );
        let (code, told) = poisoned.unwrap_err();
        assert_eq!(code, "400", "{told}");
        assert_eq!(fine.unwrap()["hits"].as_array().unwrap().len(), 1);
    }
    reader.end().await;
}

/// A proxy in front of the vector store: it passes connections on, or answers every call itself over HTTP/2.
struct Proxy {
    url: String,
    answer: Arc<AtomicU8>,
}

/// What the proxy answers.
mod proxy_answer {
    pub const PASSED_ON: u8 = 0;
    pub const STATUS_404: u8 = 1;
    pub const FAILED_PRECONDITION: u8 = 2;
}

impl Proxy {
    async fn before(url: &str) -> Self {
        let target = url.strip_prefix("http://").unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answer = Arc::new(AtomicU8::new(proxy_answer::PASSED_ON));
        let current = Arc::clone(&answer);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve_as_proxy(stream, target.clone(), Arc::clone(&current)));
            }
        });
        Self { url, answer }
    }
}

/// Serves a connection until the answer changes.
async fn serve_as_proxy(mut stream: TcpStream, target: String, current: Arc<AtomicU8>) {
    let answer = current.load(Ordering::SeqCst);
    let changed = async {
        while current.load(Ordering::SeqCst) == answer {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let serve = async {
        if answer == proxy_answer::PASSED_ON {
            let mut target = TcpStream::connect(target).await?;
            tokio::io::copy_bidirectional(&mut stream, &mut target).await.map(drop)
        } else {
            answer_all(&mut stream, answer).await
        }
    };
    tokio::select! { () = changed => {}, served = serve => drop(served) }
}

/// The types of HTTP/2 frames that matter here.
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;

/// Answers every request of an HTTP/2 connection with the same head.
async fn answer_all(stream: &mut TcpStream, answer: u8) -> std::io::Result<()> {
    let field = |name: &str, value: &str| {
        let length = |text: &str| u8::try_from(text.len()).unwrap();
        [&[0, length(name)][..], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
    };
    let head = match answer {
        // `:status: 404` of the static table.
        proxy_answer::STATUS_404 => vec![0x8d],
        _ => [
            vec![0x88],
            field("content-type", "application/grpc"),
            field("grpc-status", "9"),
            field("grpc-message", "no target shard found"),
        ]
        .concat(),
    };
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await?;
    let frame = |kind: u8, flags: u8, id: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &id.to_be_bytes(), payload].concat()
    };
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    loop {
        let mut header = [0; 9];
        stream.read_exact(&mut header).await?;
        let [a, b, c, kind, flags, id @ ..] = header;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        stream.read_exact(&mut payload).await?;
        let is_acknowledgement = flags & 1 == 1;
        let reply = match kind {
            SETTINGS if !is_acknowledgement => frame(SETTINGS, 1, 0, &[]),
            PING if !is_acknowledgement => frame(PING, 1, 0, &payload),
            // The end of the headers and of the stream.
            HEADERS => frame(HEADERS, 5, u32::from_be_bytes(id), &head),
            _ => continue,
        };
        stream.write_all(&reply).await?;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_answers_for_the_vector_store_makes_no_dead_letters() {
    let mut memories = Memories::new().await.with_users(&[1]).await;
    let proxy = Proxy::before(&memories.qdrant.url()).await;
    memories.fixture.settings.vectors.url = Some(proxy.url.clone());
    let worker = memories.fixture.run(memories.indexer().await);
    let mut rows = 0;
    for (answer, told) in [
        (proxy_answer::STATUS_404, "vectors.url must be the gRPC address of Qdrant"),
        (proxy_answer::FAILED_PRECONDITION, "no target shard found"),
    ] {
        proxy.answer.store(answer, Ordering::SeqCst);
        memories.fixture.publish((0..5).map(|n| index(1, vec![memory(Uuid::now_v7(), "text", n)]))).await;
        let missing =
            eventually("it says what is wrong", async || missing(&worker.readiness, Dependency::Qdrant))
                .await;
        assert!(missing.problem.contains(told), "{missing:?}");
        assert_eq!(memories.fixture.dead_letters().await, Vec::<String>::new());
        proxy.answer.store(proxy_answer::PASSED_ON, Ordering::SeqCst);
        memories.fixture.drained::<VectorIndexer>().await;
        rows += 5;
        assert_eq!(memories.rows().await, rows);
        eventually("vector-indexer is ready", async || worker.readiness.report().ready.then_some(())).await;
    }
    worker.stop().await.unwrap();
    assert_eq!(memories.fixture.dead_letters().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vector_store_that_accepts_no_points_makes_no_dead_letters() {
    let memories = Memories::new().await.with_users(&[1]).await;
    let name = &memories.collection.collection_name;
    let client = memories.client();
    let create = async |dimension: u64| {
        client.delete_collection(name).await.unwrap();
        let vectors = VectorParamsBuilder::new(dimension, Distance::Cosine);
        client.create_collection(CreateCollectionBuilder::new(name).vectors_config(vectors)).await.unwrap();
    };
    let worker = memories.fixture.run(memories.indexer().await);
    create(16).await;
    memories.fixture.publish((0..5).map(|n| index(1, vec![memory(Uuid::now_v7(), "text", n)]))).await;
    eventually("it says what is wrong", async || {
        missing(&worker.readiness, Dependency::Qdrant)
            .filter(|missing| missing.problem.starts_with("the vector store rejected the call"))
    })
    .await;
    assert_eq!(memories.fixture.dead_letters().await, Vec::<String>::new());
    create(8).await;
    memories.fixture.drained::<VectorIndexer>().await;
    worker.stop().await.unwrap();
    assert_eq!(memories.fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!((memories.rows().await, memories.points().await), (5, 5));
}
