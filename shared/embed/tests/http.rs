//! Embedding by a server, and everything that a server may do wrong.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod kit;

use std::time::{Duration, Instant};

use config::EmbedderSettings;
use embed::{EmbedError, Embedder, Refusal};
use kit::{ReceivedRequest, Reply, Server, vector};
use serde_json::{Value, json};

/// Occurs in texts and tokens, and must occur in no error and no log.
const CANARY: &str = "canary-7f3a";

async fn open(settings: &EmbedderSettings) -> Embedder {
    Embedder::open(settings).await.unwrap().unwrap()
}

fn texts(count: usize) -> Vec<String> {
    (0..count).map(|at| format!("{}{CANARY} {}", char::from(b'a' + at as u8), "-".repeat(at))).collect()
}

/// Embeds a few texts with a server that behaves like this.
async fn embed(
    retries: u32,
    does: impl Fn(usize, &ReceivedRequest) -> Reply + Send + Sync + 'static,
) -> (Result<Vec<Vec<f32>>, EmbedError>, Vec<ReceivedRequest>) {
    let server = Server::start(does);
    let settings = EmbedderSettings {
        retries,
        token: Some(CANARY.to_owned().into()),
        timeout_ms: 5_000,
        ..server.settings()
    };
    let made = open(&settings).await.embed(texts(3)).await;
    (made, server.asked())
}

fn assert_right(texts: &[String], vectors: &[Vec<f32>]) {
    assert_eq!(texts.len(), vectors.len());
    for (text, found) in texts.iter().zip(vectors) {
        let wanted = vector(text);
        let length = wanted.iter().map(|number| number * number).sum::<f32>().sqrt();
        for (number, wanted) in found.iter().zip(wanted) {
            assert!((number - wanted / length).abs() < 1e-6, "{found:?} for {text}");
        }
    }
}

#[tokio::test]
async fn vectors_come_in_the_order_of_the_texts_batch_by_batch() {
    let server = Server::start(|_, asked| Reply::vectors(asked));
    let token = Some(CANARY.to_owned().into());
    let embedder = open(&EmbedderSettings { batch: 4, token, ..server.settings() }).await;
    assert_eq!((embedder.model(), embedder.dimension()), ("some-model", 3));
    let texts = texts(10);
    assert_right(&texts, &embedder.embed(texts.clone()).await.unwrap());
    let asked = server.asked();
    assert_eq!(asked.iter().map(|one| one.texts().len()).collect::<Vec<_>>(), [4, 4, 2]);
    for one in asked {
        assert_eq!(one.path, "/v1/embeddings");
        assert_eq!(one.headers["authorization"], format!("Bearer {CANARY}"));
        assert_eq!(one.headers["content-type"], "application/json");
        assert_eq!(
            (&one.body["model"], &one.body["encoding_format"]),
            (&json!("some-model"), &json!("float"))
        );
    }
    assert!(embedder.embed(Vec::new()).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_fails_for_now_is_tried_again() {
    let (made, asked) = embed(3, |number, asked| match number {
        0 => Reply::status(503),
        1 => Reply::Closes(""),
        2 => Reply::Closes("HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{\"data\":"),
        _ => Reply::vectors(asked),
    })
    .await;
    assert_right(&texts(3), &made.unwrap());
    assert_eq!(asked.len(), 4);
}

#[tokio::test]
async fn what_goes_on_failing_is_unavailable_after_so_many_tries() {
    type Does = fn(&ReceivedRequest) -> Reply;
    let wrong: [Does; 9] = [
        |_| Reply::status(429),
        |_| Reply::status(500),
        |_| Reply::Closes(""),
        |_| Reply::Closes("nonsense\r\n\r\n"),
        |_| Reply::Floods,
        |asked| Reply::Says(200, "X-Nothing: 1", asked.body.to_string()),
        |asked| Reply::Says(500, "X-Nothing: 1", asked.headers["authorization"].clone()),
        |_| Reply::data(&[]),
        |_| Reply::data(&vec![json!({"index": 0, "embedding": [1, 2, 3]}); 3]),
    ];
    for (at, does) in wrong.into_iter().enumerate() {
        let (made, asked) = embed(1, move |_, asked| does(asked)).await;
        let error = made.unwrap_err();
        assert!(matches!(error, EmbedError::Unavailable(_)) && error.is_transient(), "{at}: {error}");
        assert!(!format!("{error} {error:?}").contains(CANARY), "{at}: {error}");
        // A server that fails is also given a harmless text; one that is busy is not.
        assert_eq!(asked.len(), if at == 0 { 2 } else { 3 }, "{at}: {error}");
    }
}

#[tokio::test]
async fn a_server_that_is_slow_or_not_there_is_unavailable() {
    let server = Server::start(|_, _| Reply::Hangs);
    let embedder = open(&EmbedderSettings { timeout_ms: 100, retries: 1, ..server.settings() }).await;
    let error = embedder.embed(texts(1)).await.unwrap_err();
    assert!(matches!(error, EmbedError::Unavailable(_)), "{error}");
    assert_eq!(server.asked().len(), 2);

    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = Some(format!("http://{free}/v1"));
    let embedder = open(&EmbedderSettings { url, retries: 0, ..server.settings() }).await;
    let error = embedder.embed(texts(1)).await.unwrap_err();
    assert!(matches!(error, EmbedError::Unavailable(_)), "{error}");
}

#[tokio::test]
async fn a_server_is_left_alone_for_as_long_as_it_wants() {
    let began = Instant::now();
    let (made, asked) = embed(1, |number, asked| match number {
        0 => Reply::Says(429, "Retry-After: 1", String::new()),
        _ => Reply::vectors(asked),
    })
    .await;
    assert_right(&texts(3), &made.unwrap());
    assert_eq!(asked.len(), 2);
    assert!(began.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn what_an_operator_must_mend_is_not_tried_again() {
    for (status, told) in [(401, "token"), (403, "token"), (404, "model"), (302, "url"), (405, "url")] {
        let (made, asked) = embed(3, move |_, asked| {
            Reply::Says(status, "Location: http://127.0.0.1:1/", asked.headers["authorization"].clone())
        })
        .await;
        let error = made.unwrap_err();
        assert!(matches!(error, EmbedError::Misconfigured(_)) && error.is_transient(), "{error}");
        assert!(error.to_string().contains(told) && !error.to_string().contains(CANARY), "{error}");
        assert_eq!(asked.len(), 2, "the texts, and a harmless one");
    }
    let four = json!([1, 2, 3, 4]);
    let (made, _) = embed(3, move |_, _| {
        Reply::data(&(0..3).map(|index| json!({"index": index, "embedding": four})).collect::<Vec<Value>>())
    })
    .await;
    let told =
        "the embedder is misconfigured: the server's vectors have 4 dimensions, but embedder.dimension is 3";
    assert_eq!(made.unwrap_err().to_string(), told);
}

/// A server that rejects texts with an exclamation mark, with this status.
fn picky(status: u16) -> Server {
    Server::start(move |_, asked| {
        if !asked.texts().iter().any(|text| text.ends_with('!')) {
            return Reply::vectors(asked);
        }
        if status != 200 {
            return Reply::Says(status, "X-Nothing: 1", asked.body.to_string());
        }
        let vector = |text: &String| if text.ends_with('!') { json!([1, null, 2]) } else { json!([1, 2, 3]) };
        let texts = asked.texts();
        let item = |(index, text)| json!({"index": index, "embedding": vector(text)});
        Reply::data(&texts.iter().enumerate().map(item).collect::<Vec<Value>>())
    })
}

#[tokio::test]
async fn the_texts_that_are_refused_are_found() {
    for status in [400, 413, 422, 200] {
        let server = picky(status);
        let embedder = open(&EmbedderSettings { batch: 8, ..server.settings() }).await;
        let mut texts = texts(20);
        for at in [3, 10, 19] {
            texts[at].push('!');
        }
        let error = embedder.embed(texts.clone()).await.unwrap_err();
        assert!(!error.is_transient() && !format!("{error} {error:?}").contains(CANARY), "{error}");
        let EmbedError::Refused(Refusal { texts: found, .. }) = error else { panic!("{error}") };
        assert_eq!(found, [3, 10, 19]);
        assert!(server.asked().len() <= 3 + 3 * 6, "{} requests", server.asked().len());
        for at in [19, 10, 3] {
            texts.remove(at);
        }
        assert_right(&texts, &embedder.embed(texts.clone()).await.unwrap());
        // Alone it has nobody beside it that is taken.
        let error = embedder.embed(vec!["a!".to_owned()]).await.unwrap_err();
        assert!(matches!(error, EmbedError::Refused(refusal) if refusal.texts == [0]));
    }
}

#[tokio::test]
async fn a_server_that_refuses_everything_loses_no_text() {
    let server = Server::start(|_, _| Reply::status(400));
    let embedder = open(&EmbedderSettings { batch: 256, ..server.settings() }).await;
    let error = embedder.embed(vec!["text".to_owned(); 2_000]).await.unwrap_err();
    assert!(matches!(error, EmbedError::Misconfigured(_)), "{error}");
    assert!(server.asked().len() <= 80, "{} requests", server.asked().len());
}

#[tokio::test]
async fn requests_keep_to_their_rate() {
    let server = Server::start(|_, asked| Reply::vectors(asked));
    let settings = EmbedderSettings { batch: 1, requests_per_second: Some(20), ..server.settings() };
    let (embedder, began) = (open(&settings).await, Instant::now());
    embedder.embed(texts(6)).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(5 * 50));
    assert_eq!(server.asked().len(), 6);
}

#[tokio::test]
async fn texts_are_cut_by_a_guess_at_their_tokens() {
    let server = Server::start(|_, asked| Reply::vectors(asked));
    let settings =
        EmbedderSettings { chunk_tokens: 30, chunk_overlap: 5, chunk_limit: 3, ..server.settings() };
    let embedder = open(&settings).await;
    assert_eq!(kit::cut(&embedder, "  To be.  "), ["To be."]);
    let text = "Ten words are what this sentence has in all, yes. ".repeat(100);
    let pieces = kit::cut(&embedder, &text);
    assert_eq!(pieces.len(), 3);
    assert!(pieces.iter().all(|piece| piece.ends_with('.') && piece.len() < 160), "{pieces:?}");
}
