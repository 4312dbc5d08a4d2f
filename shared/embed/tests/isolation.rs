//! Texts on which a server fails each time: they are found, and keep no other text from being embedded.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod kit;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use config::EmbedderSettings;
use embed::{EmbedError, Embedder, Refusal};
use kit::{ReceivedRequest, Reply, Server};

/// A text with this mark is one that a server fails on.
const MARK: char = '!';

fn texts(count: usize, marked: &[usize]) -> Vec<String> {
    (0..count).map(|at| format!("text {at}{}", if marked.contains(&at) { "!" } else { "" })).collect()
}

fn is_marked(asked: &ReceivedRequest) -> bool {
    asked.texts().iter().any(|text| text.ends_with(MARK))
}

fn is_harmless(asked: &ReceivedRequest) -> bool {
    asked.texts().iter().all(|text| text.starts_with("a "))
}

async fn open(server: &Server, change: impl FnOnce(&mut EmbedderSettings)) -> Embedder {
    let mut settings = EmbedderSettings { batch: 8, retries: 0, timeout_ms: 5_000, ..server.settings() };
    change(&mut settings);
    Embedder::open(&settings).await.unwrap().unwrap()
}

fn refused(embedded: Result<Vec<Vec<f32>>, EmbedError>) -> Refusal {
    let error = embedded.unwrap_err();
    let EmbedError::Refused(refusal) = error else { panic!("{error:?}") };
    refusal
}

#[tokio::test]
async fn a_text_that_a_server_fails_on_is_found_however_it_fails() {
    type Does = fn(&ReceivedRequest) -> Reply;
    let failures: [(Does, &str); 8] = [
        (|_| Reply::status(500), "status 500"),
        (|_| Reply::status(424), "status 424"),
        (|_| Reply::status(503), "status 503"),
        (|_| Reply::status(403), "status 403"),
        (|_| Reply::Says(200, "X-Nothing: 1", "<html>Oops</html>".to_owned()), "not a list of embeddings"),
        (
            |_| {
                Reply::Says(200, "X-Nothing: 1", r#"{"data":[{"index":0,"embedding":[NaN,1,2]}]}"#.to_owned())
            },
            "not a list of embeddings",
        ),
        (|_| Reply::data(&[]), "returned 0 vectors"),
        (|_| Reply::Closes(""), "failed"),
    ];
    for (does, said) in failures {
        let server =
            Server::start(move |_, asked| if is_marked(asked) { does(asked) } else { Reply::vectors(asked) });
        let embedder = open(&server, |_| ()).await;
        let marked = [3, 10, 19];
        let mut all = texts(20, &marked);
        let refusal = refused(embedder.embed(all.clone()).await);
        assert_eq!(refusal.texts, marked, "{said}");
        assert!(refusal.reason.contains(said) && !refusal.reason.contains("text "), "{}", refusal.reason);
        let count = server.asked().len();
        assert!(count <= 60, "{said}: {count} requests");
        for at in marked.into_iter().rev() {
            all.remove(at);
        }
        assert_eq!(embedder.embed(all).await.unwrap().len(), 17, "the others are embedded");
        // Alone, without a text beside it that is embedded.
        assert_eq!(refused(embedder.embed(vec!["text!".to_owned()]).await).texts, [0]);
    }
}

#[tokio::test]
async fn a_text_without_an_answer_costs_a_few_timeouts() {
    let server =
        Server::start(|_, asked| if is_marked(asked) { Reply::Hangs } else { Reply::vectors(asked) });
    let embedder = open(&server, |settings| settings.timeout_ms = 400).await;
    let began = Instant::now();
    assert_eq!(refused(embedder.embed(texts(8, &[5])).await).texts, [5]);
    // The batch, its half, its quarter, the text with an eighth, and twice the text alone.
    let most = Duration::from_millis(400) * 10;
    assert!(began.elapsed() < most, "{:?}", began.elapsed());
    let began = Instant::now();
    assert_eq!(refused(embedder.embed(texts(8, &[0, 2, 4, 6])).await).texts, [0, 2, 4, 6]);
    assert!(began.elapsed() < most, "tried beside each other: {:?}", began.elapsed());
}

#[tokio::test]
async fn no_text_is_blamed_while_the_server_fails_on_a_harmless_one() {
    let server = Server::start(|_, _| Reply::status(500));
    let embedder = open(&server, |_| ()).await;
    for _ in 0..3 {
        let error = embedder.embed(texts(3, &[1])).await.unwrap_err();
        assert!(matches!(error, EmbedError::Unavailable(_)), "{error:?}");
    }
    assert_eq!(server.asked().len(), 4, "after a failure, a harmless text goes first, alone");
}

#[tokio::test]
async fn a_used_up_quota_is_no_fault_of_a_text() {
    for status in [429, 402] {
        let server =
            Server::start(
                move |_, asked| {
                    if is_harmless(asked) { Reply::vectors(asked) } else { Reply::status(status) }
                },
            );
        let embedder = open(&server, |_| ()).await;
        for _ in 0..3 {
            let error = embedder.embed(texts(3, &[])).await.unwrap_err();
            assert!(matches!(error, EmbedError::Unavailable(_)), "{status}: {error:?}");
        }
    }
}

#[tokio::test]
async fn a_text_that_fails_for_a_while_is_embedded() {
    let failures = AtomicUsize::new(0);
    let server = Server::start(move |_, asked| {
        // The batches of eight, four and two with it, and the text alone twice.
        if is_marked(asked) && failures.fetch_add(1, Ordering::SeqCst) < 5 {
            return Reply::status(500);
        }
        Reply::vectors(asked)
    });
    let embedder = open(&server, |_| ()).await;
    assert_eq!(embedder.embed(texts(8, &[5])).await.unwrap().len(), 8);
}

#[tokio::test]
async fn a_text_that_stops_the_server_is_told_from_a_server_that_is_away() {
    let down = AtomicUsize::new(0);
    let server = Server::start(move |_, asked| {
        if is_marked(asked) {
            down.store(2, Ordering::SeqCst);
            return Reply::Closes("");
        }
        let is_down =
            down.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if is_down { Reply::Closes("") } else { Reply::vectors(asked) }
    });
    let embedder = open(&server, |_| ()).await;
    let mut said = Vec::new();
    for _ in 0..6 {
        said.push(match embedder.embed(texts(1, &[0])).await.unwrap_err() {
            EmbedError::Unavailable(_) => "unavailable",
            EmbedError::Stopped(_) => "stopped",
            EmbedError::Refused(_) => "refused",
            EmbedError::Misconfigured(_) => "misconfigured",
        });
    }
    // The server is up, stops, is away for the next call, is up again.
    assert_eq!(said, ["unavailable", "unavailable", "stopped", "unavailable", "stopped", "unavailable"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_beside_one_that_stops_the_server_is_not_blamed() {
    let (stops, down) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let server = Server::start(move |_, asked| {
        if is_marked(asked) {
            stops.fetch_add(1, Ordering::SeqCst);
            down.store(1, Ordering::SeqCst);
            return Reply::Closes("");
        }
        let is_down =
            down.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if is_down {
            return Reply::Closes("");
        }
        // Every request that is being answered when the server stops is lost.
        let before = stops.load(Ordering::SeqCst);
        if !is_harmless(asked) {
            std::thread::sleep(Duration::from_millis(100));
        }
        if stops.load(Ordering::SeqCst) == before { Reply::vectors(asked) } else { Reply::Closes("") }
    });
    let embedder = open(&server, |_| ()).await;
    let error = embedder.embed(texts(1, &[0])).await.unwrap_err();
    assert!(matches!(error, EmbedError::Unavailable(_)), "{error:?}");
    let marked = async {
        for _ in 0..6 {
            embedder.embed(texts(1, &[0])).await.unwrap_err();
        }
    };
    let beside = async {
        for _ in 0..6 {
            let embedded = embedder.embed(texts(1, &[])).await;
            assert!(
                !matches!(embedded, Err(EmbedError::Stopped(_) | EmbedError::Refused(_))),
                "{embedded:?}"
            );
        }
    };
    tokio::join!(marked, beside);
}

#[tokio::test]
async fn who_waits_gets_an_answer_within_the_time() {
    let server = Server::start(|_, asked| match asked.texts()[0].as_str() {
        "hangs!" => Reply::Hangs,
        "fails!" => Reply::status(500),
        _ => Reply::vectors(asked),
    });
    let embedder = open(&server, |settings| settings.timeout_ms = 60_000).await;
    let limit = Duration::from_millis(500);
    for text in ["hangs!", "fails!"] {
        let began = Instant::now();
        let error = embedder.embed_within(text.to_owned(), limit).await.unwrap_err();
        assert!(matches!(error, EmbedError::Refused(_)), "{error:?}");
        assert!(began.elapsed() < 6 * limit, "{:?}", began.elapsed());
    }
    assert_eq!(embedder.embed_within("fine".to_owned(), limit).await.unwrap().len(), 3);
}
