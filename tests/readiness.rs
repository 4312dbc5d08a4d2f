//! What the program says of itself over HTTP.

use std::net::SocketAddr;
use std::process::Stdio;

use async_nats::jetstream::consumer::{FromConsumer, PullConsumer, pull};
use config::Settings;
use fleet::health;
use runtime::{Dependency, Phase, Readiness};
use serde_json::json;
use testkit::{Fixture, eventually};
use tokio::net::{TcpListener, TcpStream};

use crate::support::http;
use crate::support::program::{Ended, bare, memfleet, output};

#[tokio::test]
async fn a_process_is_ready_when_all_its_workers_are() {
    let (one, other) = (Readiness::new("one"), Readiness::new("other"));
    let (address, listener) = http::listen().await;
    let answering = health::serve(listener, vec![one.clone(), other.clone()]);
    one.reached(Phase::Running);
    let (status, told) = http::get(address, "/readyz").await;
    assert_eq!((status, &told["ready"]), (503, &json!(false)));
    assert_eq!(
        told["workers"][0],
        json!({ "worker": "one", "ready": true, "phase": "running", "missing": [] })
    );
    assert_eq!(told["workers"][1]["phase"], "starting");
    other.reached(Phase::Running);
    assert_eq!(http::get(address, "/readyz").await.0, 200);
    other.note(Dependency::KeyStore, Err("it is locked"));
    let (status, told) = http::get(address, "/readyz").await;
    let missing = &told["workers"][1]["missing"][0];
    assert_eq!(
        (status, &missing["dependency"], &missing["problem"]),
        (503, &json!("key_store"), &json!("it is locked"))
    );

    assert_eq!(http::get(address, "/healthz").await.0, 200, "a restart would bring nothing back");
    assert_eq!(http::get(address, "/").await.0, 404);
    assert_eq!(http::ask(address, "POST", "/readyz").await.0, 405);
    let mut settings = Settings::default();
    settings.health.listen = Some(address);
    let busy = health::listen(&settings).await.unwrap_err().to_string();
    assert!(busy.contains("health.listen"), "{busy}");
    drop(answering);
    eventually("nobody listens any more", async || TcpListener::bind(address).await.ok()).await;
}

#[tokio::test]
async fn nothing_is_started_where_health_cannot_be_told() {
    let (address, _listener) = http::listen().await;
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("dev");
    let mut program = bare(&["dev"]);
    program.arg("--dir").arg(&dir).env("MEMFLEET_HEALTH__LISTEN", address.to_string());
    let ended: Ended = output(program).await.into();
    assert!(!ended.is_success() && ended.err.contains("health.listen"), "{}", ended.err);
    assert!(!dir.exists(), "no server has run in it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_cannot_start_yet_says_what_it_waits_for() {
    let fixture = Fixture::new().await;
    // A port that was free a moment ago.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    drop(listener);
    let stream = fixture.jetstream.get_stream("CONTEXT").await.unwrap();
    let consumer: PullConsumer = stream.get_consumer("context-writer").await.unwrap();
    let kept = pull::Config::try_from_consumer_config(consumer.cached_info().config.clone()).unwrap();
    stream.delete_consumer("context-writer").await.unwrap();
    let mut program = memfleet(&fixture, &["run", "context-writer"]);
    program.env("MEMFLEET_HEALTH__LISTEN", address.to_string());
    program.stdout(Stdio::null()).stderr(testkit::logs::stderr_for("memfleet"));
    let mut program = program.spawn().unwrap();
    let told = eventually("it says what it waits for", async || {
        TcpStream::connect(address).await.ok()?;
        let (status, told) = http::get(address, "/readyz").await;
        (status == 503 && told["workers"][0]["missing"][0]["dependency"] == "nats").then_some(told)
    })
    .await;
    assert_eq!(told["workers"][0]["phase"], "starting");
    let problem = told["workers"][0]["missing"][0]["problem"].as_str().unwrap();
    assert!(problem.contains("`memfleet nats apply` creates it"), "{problem}");
    stream.create_consumer(kept).await.unwrap();
    eventually("it is ready", async || (http::get(address, "/readyz").await.0 == 200).then_some(())).await;
    program.start_kill().unwrap();
    program.wait().await.unwrap();
}
