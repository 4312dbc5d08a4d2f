//! Events as they happen: heard by whom they may be heard, in a terminal and in a browser.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use context_writer::ContextWriter;
use runtime::Readiness;
use serde_json::Value;
use stack::Places;
use testkit::{Fixture, context, eventually, next, session, user};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::support::broker::{connect, discovered};
use crate::support::program::{memfleet, signal};
use crate::support::{in_repository, skipped};

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_hears_its_own_user_and_may_do_nothing_else() {
    let fixture = Fixture::with_listeners([1]).await;
    let (listener, refused) = connect(&fixture, "live-1").await;
    let mut events = listener.subscribe("memory.event.*.*.1").await.expect("a subscription");
    listener.flush().await.expect("a broker that has it");
    fixture.process(ContextWriter, [user(2), user(1), session(2, "s"), session(1, "s")]).await;
    for expected in ["user.stored", "session.opened"] {
        let message = next(&mut events).await;
        assert_eq!(message.subject.as_str(), format!("memory.event.{expected}.1"));
        let event: Value = serde_json::from_slice(&message.payload).expect("an event");
        assert_eq!((&event["event_type"], &event["user_id"]), (&expected.into(), &1.into()));
    }
    for subject in ["memory.event.*.*.2", "memory.event.>", ">", "$JS.>", "_INBOX.>"] {
        let before = refused.list().len();
        let _kept = listener.subscribe(subject).await.expect("the client asks");
        eventually(&format!("{subject} is refused"), async || (refused.list().len() > before).then_some(()))
            .await;
    }
    for subject in [
        "memory.req.live-1.user.put.1",
        "memory.event.user.stored.1",
        "memory.ask.session.list.live-1",
        "$JS.API.INFO",
    ] {
        let before = refused.list().len();
        listener.publish(subject, "{}".into()).await.expect("the client sends");
        eventually(&format!("{subject} is refused"), async || (refused.list().len() > before).then_some(()))
            .await;
    }
    assert!(refused.list().iter().all(|error| error.contains("permissions violation")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workers_that_answer_can_be_discovered_by_the_operator() {
    let fixture = Fixture::secured().await;
    let (settings, stop) = (fixture.settings.clone(), tokio_util::sync::CancellationToken::new());
    let stopped = stop.clone();
    let reader = tokio::spawn(async move {
        memory_reader::run(&settings, Readiness::new(memory_reader::NAME), stopped).await
    });
    let client = fixture.jetstream.client();
    let info = discovered(&client, "memory-reader", |info| info["endpoints"].is_array()).await;
    let endpoints = info["endpoints"].as_array().expect("endpoints");
    assert_eq!(endpoints.len(), contract::QUERIES.len());
    for endpoint in endpoints {
        let schema: Value =
            serde_json::from_str(endpoint["metadata"]["query"].as_str().expect("a schema")).expect("JSON");
        assert_eq!(schema["type"], "object", "{endpoint}");
    }
    stop.cancel();
    reader.await.expect("no panic").expect("a clean end");
}

fn program(fixture: &Fixture, arguments: &[&str]) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut command = memfleet(fixture, arguments);
    command.stdout(Stdio::piped()).stderr(testkit::logs::stderr_for("tail"));
    let mut child = command.spawn().expect("the program");
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    (child, lines)
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_prints_what_happens_to_a_user() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1), user(2), session(1, "s"), session(1, "t")]).await;
    // What has happened before, of one session.
    let arguments = ["tail", "--user", "1", "--since", "3600", "--session", "s", "--count", "2"];
    let (mut child, mut lines) = program(&fixture, &arguments);
    let first = lines.next_line().await.expect("a pipe").expect("a line");
    assert!(first.contains("session.opened") && first.contains("  s  test  {"), "{first}");
    fixture
        .process(ContextWriter, [context(1, "t", "k", 1), context(2, "s", "k", 1), context(1, "s", "k", 1)])
        .await;
    let second = lines.next_line().await.expect("a pipe").expect("a line");
    assert!(second.contains("context.stored"), "{second}");
    assert!(child.wait().await.expect("a status").success());

    let (mut child, mut lines) =
        program(&fixture, &["tail", "--user", "1", "--since", "3600", "--json", "--count", "5"]);
    let mut types = Vec::new();
    while let Some(line) = lines.next_line().await.expect("a pipe") {
        let event: Value = serde_json::from_str(&line).expect("an event");
        types.push(event["event_type"].as_str().expect("a type").to_owned());
    }
    assert_eq!(
        types,
        ["user.stored", "session.opened", "session.opened", "context.stored", "context.stored"]
    );
    assert!(child.wait().await.expect("a status").success());

    // Ctrl-C is how it ends.
    let (mut child, mut lines) = program(&fixture, &["tail", "--user", "1", "--since", "3600"]);
    assert!(lines.next_line().await.expect("a pipe").is_some(), "it follows");
    signal("INT", child.id().expect("a process"));
    assert!(child.wait().await.expect("a status").success());
}

/// A static file server for a folder, and where it is.
async fn serve(folder: &Path) -> (Child, String) {
    let mut command = Command::new("python3");
    command.args(["-u", "-m", "http.server", "-b", "127.0.0.1", "-d"]).arg(folder).arg("0");
    command.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut server = command.spawn().expect("python3");
    let mut lines = BufReader::new(server.stdout.take().expect("a pipe")).lines();
    let line = lines.next_line().await.expect("a pipe").expect("a line");
    let port = line.split(' ').nth(5).expect("a port").to_owned();
    (server, format!("http://127.0.0.1:{port}"))
}

/// The example page beside the client that it loads. None where a browser or the client is missing, which is a failure where
/// everything must be tested.
fn site() -> Option<tempfile::TempDir> {
    let client: PathBuf = Places::of_this_process().home().join("live/nats-core.js");
    let browser =
        |name: &str| std::process::Command::new(name).arg("--version").stdout(Stdio::null()).status().is_ok();
    let missing = if !client.is_file() {
        format!("{} is not there", client.display())
    } else if !browser("chromium-headless-shell") && !browser("chromium") {
        "there is no Chromium".to_owned()
    } else {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::copy(in_repository("docs/examples/live.html"), folder.path().join("live.html"))
            .expect("a copy");
        std::fs::copy(&client, folder.path().join("nats-core.js")).expect("a copy");
        return Some(folder);
    };
    assert!(std::env::var_os("CI").is_none(), "{missing}; `scripts/setup --tests` gets it");
    skipped(&format!("{missing}; `scripts/setup --tests` gets it"));
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_shows_them() {
    let Some(site) = site() else { return };
    let fixture = Fixture::with_listeners([1]).await;
    fixture.process(ContextWriter, [user(1), user(2), session(1, "seen"), session(2, "hidden")]).await;
    let (_server, address) = serve(site.path()).await;
    let socket = fixture.nats.websocket_url().expect("a WebSocket").to_owned();
    let page = format!("{address}/live.html?url={socket}&user=1#seed={}", fixture.seed("live-1"));
    let script = in_repository("scripts/browser.py");
    let mut browser = Command::new("python3");
    browser.arg(script).args([
        "--page",
        &page,
        "--ready",
        "listening",
        "--expect",
        "context.removed",
        "--timeout",
        "60",
    ]);
    browser.stdout(Stdio::piped()).stderr(testkit::logs::stderr_for("browser")).kill_on_drop(true);
    let mut browser = browser.spawn().expect("python3");
    let mut lines = BufReader::new(browser.stdout.take().expect("a pipe")).lines();
    assert_eq!(lines.next_line().await.expect("a pipe").as_deref(), Some("ready"));

    let remove = testkit::request(
        "context.remove",
        1,
        serde_json::json!({ "session_id": "seen", "context_key": "k", "version": 2 }),
    );
    fixture.process(ContextWriter, [context(1, "seen", "k", 1), context(2, "hidden", "k", 1), remove]).await;
    let mut shown = Vec::new();
    while let Some(line) = lines.next_line().await.expect("a pipe") {
        shown.push(line);
    }
    assert!(browser.wait().await.expect("a status").success(), "{shown:?}");
    let text = shown.join("\n");
    let (stored, removed) = (text.find("context.stored"), text.find("context.removed"));
    assert!(stored.is_some() && removed < stored, "the newest first: {text}");
    assert!(text.contains("seen") && !text.contains("hidden"), "{text}");
}
