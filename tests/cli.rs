//! What an operator does with the program: set up streams, publish, look after dead letters, look at it all.

use std::collections::BTreeMap;
use std::time::Duration;

use context_writer::ContextWriter;
use contract::header;
use serde_json::{Value, json};
use testkit::{Fixture, context, request, user};
use topology::Topology;
use uuid::Uuid;

use crate::support::program::{self, Ended, output_with_input};

const USER: &str = r#"{"username":"u","email":"u@example.org"}"#;
const SESSION: &str = r#"{"session_id":"s","chat_mode":"simple"}"#;
const CONTEXT: &str = r#"{"session_id":"s","context_key":"k","context_value":{"v":1},"version":1}"#;
const DAY: Duration = Duration::from_secs(86_400);

async fn memfleet(fixture: &Fixture, arguments: &[&str]) -> Ended {
    memfleet_reads(fixture, arguments, "").await
}

async fn memfleet_reads(fixture: &Fixture, arguments: &[&str], input: &str) -> Ended {
    output_with_input(program::memfleet(fixture, arguments), input).await.into()
}

/// What a test of the command line expects of a run.
impl Ended {
    #[track_caller]
    fn fine(self) -> String {
        // On a busy machine, a line says now and then how far it is.
        let said: Vec<&str> = self.err.lines().filter(|line| !line.contains(" published, ")).collect();
        assert_eq!((self.code, said), (Some(0), Vec::new()), "{}", self.out);
        self.out
    }

    #[track_caller]
    fn failed(self, message: &str) -> Self {
        assert_eq!(self.code, Some(1), "{self:?}");
        let last = self.err.lines().last().unwrap_or_default();
        assert!(last.starts_with("memfleet: ") && last.contains(message), "expected {message:?}: {self:#?}");
        self
    }

    /// The line that starts so.
    #[track_caller]
    fn line(text: &str, start: &str) -> String {
        let line = text.lines().find(|line| line.starts_with(start));
        line.unwrap_or_else(|| panic!("no line starts with {start:?}:\n{text}")).to_owned()
    }
}

async fn without_streams() -> Fixture {
    Fixture::with_topology(|topology| {
        topology.streams.clear();
        topology.consumers.clear();
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_and_consumers_are_shown_and_then_made() {
    let fixture = without_streams().await;
    let shipped = Topology::shipped().expect("the shipped streams");
    let streams = shipped.streams.iter().map(|stream| format!("+ stream {}", stream.name));
    let consumers = shipped.consumers.iter().map(|one| format!("+ consumer {}/{}", one.stream, one.name));
    let schedules = contract::SCHEDULES.iter().map(|(job, _)| format!("+ schedule memory.schedule.{job}"));
    let expected: Vec<String> = streams.chain(consumers).chain(schedules).collect();
    let differing = "the broker's streams or consumers differ; run `memfleet nats apply` to update them";

    let diff = memfleet(&fixture, &["nats", "diff"]).await.fine();
    assert_eq!(diff.lines().collect::<Vec<_>>(), expected);
    let checked = memfleet(&fixture, &["nats", "diff", "--check"]).await.failed(differing);
    assert_eq!(checked.out, diff, "looking changed nothing");

    let applied = memfleet(&fixture, &["nats", "apply"]).await.fine();
    assert_eq!(applied, format!("{diff}applied {} changes\n", expected.len()));
    for again in [["diff"].as_slice(), &["diff", "--check"], &["apply"]] {
        let out = memfleet(&fixture, &[&["nats"], again].concat()).await.fine();
        assert_eq!(out, "nothing to do: the broker's streams and consumers are up to date\n");
    }
    // What was made is what a worker needs.
    let worker = fixture.run(ContextWriter);
    fixture.publish([request("user.put", 1, json!({ "username": "u", "email": "u@example.org" }))]).await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.count("users WHERE id = 1").await, 1);
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_by_hand_is_shown_and_put_right() {
    let fixture = Fixture::new().await;
    let jetstream = &fixture.jetstream;
    let mut config = jetstream.get_stream("CONTEXT").await.expect("a stream").cached_info().config.clone();
    config.max_age = DAY;
    config.subjects.retain(|subject| !subject.contains(".user."));
    config.subjects.push("memory.req.*.weather.>".to_owned());
    // The file says nothing of this, so it stays.
    config.max_consumers = 7;
    config.metadata.insert("owner".to_owned(), "us".to_owned());
    jetstream.update_stream(config).await.expect("an update");
    fixture.jetstream.delete_consumer_from_stream("context-writer", "CONTEXT").await.expect("a deletion");
    let stream = jetstream.get_stream("CONTEXT").await.expect("a stream");
    let consumer = async_nats::jetstream::consumer::pull::Config {
        durable_name: Some("context-writer".to_owned()),
        ack_wait: Duration::from_millis(1_500),
        ..Default::default()
    };
    stream.create_consumer(consumer).await.expect("a consumer");

    let checked = memfleet(&fixture, &["nats", "diff", "--check"])
        .await
        .failed("the broker's streams or consumers differ");
    for line in [
        "~ stream CONTEXT max_age: 1d -> 7d",
        "~ stream CONTEXT subjects: -memory.req.*.weather.> +memory.req.*.user.>",
        "~ consumer CONTEXT/context-writer ack_wait: 1500ms -> 30s",
        "~ consumer CONTEXT/context-writer max_deliver: -1 -> 128",
    ] {
        Ended::line(&checked.out, line);
    }
    assert!(!checked.out.contains("owner") && !checked.out.contains("max_consumers"), "{}", checked.out);
    let applied = memfleet(&fixture, &["nats", "apply"]).await.fine();
    assert!(applied.starts_with(&checked.out), "what was shown is what is done: {applied}");
    memfleet(&fixture, &["nats", "diff", "--check"]).await.fine();

    let config =
        &fixture.jetstream.get_stream("CONTEXT").await.expect("a stream").cached_info().config.clone();
    assert_eq!(config.max_age, DAY * 7);
    assert_eq!((config.max_consumers, config.metadata.get("owner").map(String::as_str)), (7, Some("us")));
    assert!(config.subjects.iter().any(|subject| subject == "memory.req.*.user.>"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_cannot_change_is_refused_by_name() {
    let fixture = Fixture::new().await;
    let replicas = ["nats", "diff", "--replicas", "3"];
    let diff = memfleet(&fixture, &replicas).await.fine();
    assert_eq!(diff.lines().count(), 12, "{diff}");
    Ended::line(&diff, "~ stream CONTEXT num_replicas: 1 -> 3");
    memfleet(&fixture, &["nats", "apply", "--replicas", "3"])
        .await
        .failed("the broker refuses to change stream ADVISORY, num_replicas: 1 -> 3: ");
    memfleet(&fixture, &["nats", "diff", "--check"]).await.fine();

    let folder = tempfile::tempdir().expect("a folder");
    let directory = folder.path().to_str().expect("a path");
    let write = |path: &str, text: &str| {
        let file = folder.path().join(path);
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        std::fs::write(file, text).expect("a file");
    };
    let missing = memfleet(&fixture, &["nats", "diff", "--dir", directory]).await;
    missing.failed(&format!("{directory}/streams: "));
    // The first is fine, and stays.
    let shipped = Topology::shipped().expect("the shipped streams");
    let events = shipped.streams.iter().find(|stream| stream.name == "EVENTS").expect("the events' stream");
    let stream = |changes: Value| {
        let mut config = events.config.clone();
        config.extend(changes.as_object().expect("fields").clone());
        Value::Object(config).to_string()
    };
    write("streams/A.json", &stream(json!({ "name": "A", "subjects": ["a.>"] })));
    write("streams/EVENTS.json", &stream(json!({ "storage": "memory" })));
    write("consumers/none.txt", "not read");
    let refused = memfleet(&fixture, &["nats", "apply", "--dir", directory]).await;
    let refused = refused.failed("the broker refuses to change stream EVENTS, storage: file -> memory: ");
    assert!(refused.err.contains("nothing was deleted, earlier changes stay applied"), "{}", refused.err);
    fixture.jetstream.get_stream("A").await.expect("the stream that was made before");

    write("streams/EVENTS.json", &stream(json!({ "max_aeg": 1 })));
    memfleet(&fixture, &["nats", "apply", "--dir", directory])
        .await
        .failed("streams/EVENTS.json: max_aeg is not a field of the JetStream API");
}

/// A line of `publish --requests`.
fn line(subject: &str, body: &str) -> String {
    format!(r#"{{"subject":"memory.req.test.{subject}","body":{body}}}"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_input_is_named_by_line_and_field_and_hurts_no_other() {
    let fixture = Fixture::new().await;
    let worker = fixture.run(ContextWriter);
    let large = "x".repeat(1024 * 1024);
    let lines = [
        line("user.put.1", USER),
        line("session.open.1", SESSION),
        line("context.put.1", CONTEXT),
        String::new(),
        line("context.put.1", &CONTEXT.replace("context_key", "colour")),
        line("context.put.1", &CONTEXT.replace("\"version\":1", "\"version\":\"one\"")),
        line("context.burn.1", CONTEXT),
        line("context.put.1", &CONTEXT.replace("{\"v\":1}", &format!("{large:?}"))),
        line("weather.put.1", CONTEXT),
        line("context.put.1", "{"),
        line("context.put.1", &CONTEXT.replace("\"k\"", "\"last\"")),
    ];
    let publish = ["publish", "--wait", "--requests", "-"];
    let ended = memfleet_reads(&fixture, &publish, &lines.join("\n")).await.failed("2 refused");

    let bytes = CONTEXT.len() - "{\"v\":1}".len() + large.len() + 2;
    let dead = [
        (5, "colour: is unknown; expected one of ".to_owned()),
        (6, "version: is a string; expected ".to_owned()),
        (7, "subject: no request is named context.burn".to_owned()),
        (8, format!("body: has {bytes} bytes, more than 1048576")),
    ];
    let letters = fixture.dead_letters().await;
    assert_eq!(letters.len(), dead.len(), "{letters:#?}");
    for (number, problem) in &dead {
        let warned = Ended::line(&ended.err, &format!("line {number}: {problem}"));
        assert!(warned.ends_with("; the worker will dead-letter it"), "{warned}");
        let start = format!("malformed: {problem}");
        assert!(letters.iter().any(|letter| letter.starts_with(&start)), "{start}: {letters:#?}");
        let told = ended.out.lines().any(|line| line.starts_with("dead: ") && line.contains(problem));
        assert!(told, "the outcome says so too: {}", ended.out);
    }
    assert_eq!(ended.err.lines().filter(|line| line.starts_with("line ")).count(), 5, "{}", ended.err);
    let warned = Ended::line(&ended.err, "line 9: subject: no request is named weather.put");
    assert!(!warned.contains("dead-letter"), "no stream takes it, so no worker does: {warned}");
    Ended::line(&ended.out, "published 8, duplicates 0, refused 2");
    Ended::line(&ended.out, "line 9: no stream captures this subject; is it correct, ");
    Ended::line(&ended.out, "line 10: expected {\"subject\", \"id\", \"body\"}: ");
    Ended::line(&ended.out, "applied 4, unchanged 0, dead 4, no outcome yet (timed out) 0");
    assert_eq!(
        fixture.lines("context_key FROM simple_chat_context ORDER BY 1").await,
        ["k", "last"],
        "good lines around bad ones go through"
    );

    // What is no JSON at all has to be published as it stands.
    let publish = ["publish", "--plain", "--wait", "memory.req.test.context.put.1", "-"];
    let ended = memfleet_reads(&fixture, &publish, "{\"session_id\":\n").await.failed("1 were dead-lettered");
    Ended::line(
        &ended.err,
        "line 1: body: is not valid JSON: EOF while parsing a value at line 1 column 14; the worker will",
    );
    Ended::line(&ended.out, "published 1, duplicates 0, refused 0");
    let letters = fixture.messages("DEAD").await;
    assert_eq!(letters.last().expect("a letter").payload, "{\"session_id\":", "byte for byte");
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_is_counted() {
    let fixture = Fixture::new().await;
    let user = "memory.req.test.user.put.1";
    let reads = async |arguments: &[&str], input: &str| memfleet_reads(&fixture, arguments, input).await;

    let three = format!("{USER}\n\n  {USER}\r\n{USER}");
    let out = reads(&["publish", "--plain", user, "-"], &three).await.fine();
    assert_eq!(out, "published 3, duplicates 0, refused 0\n", "an empty line is nothing");
    let bodies = fixture.messages("CONTEXT").await;
    assert!(bodies.iter().all(|message| message.payload == USER));

    let id = Uuid::now_v7().to_string();
    for expected in ["published 1, duplicates 0, refused 0\n", "published 0, duplicates 1, refused 0\n"] {
        assert_eq!(reads(&["publish", "--id", &id, user, "-"], USER).await.fine(), expected);
    }
    let two =
        reads(&["publish", "--id", &id, user, "-"], &format!("{USER}\n{USER}")).await.failed("1 refused");
    Ended::line(&two.out, "published 0, duplicates 1, refused 1");
    Ended::line(&two.out, "line 2: --id allows only one request");

    let before = fixture.stored("CONTEXT").await;
    let strict =
        reads(&["publish", "--strict", user, "-"], &format!("{{}}\n{USER}")).await.failed("1 refused");
    assert_eq!(strict.err.lines().count(), 1, "no warning, it is left out: {}", strict.err);
    Ended::line(&strict.out, "published 1, duplicates 0, refused 1");
    Ended::line(&strict.out, "line 1: username: is missing");
    assert_eq!(fixture.stored("CONTEXT").await, before + 1);

    // The stream takes 2 MiB, the server 4 MiB.
    for (mebibytes, subject) in [(3, user), (5, user)] {
        let body = format!("{{\"username\":\"{}\"}}", "x".repeat(mebibytes << 20));
        let ended = reads(&["publish", "--plain", subject, "-"], &body).await.failed("1 refused");
        Ended::line(&ended.out, "published 0, duplicates 0, refused 1");
        let reason = Ended::line(&ended.out, "line 1: ");
        assert!(reason.contains("size") || reason.contains("payload"), "{reason}");
    }

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("body.json");
    std::fs::write(&path, "{\n}\n").expect("a file");
    let path = path.to_str().expect("a path");
    let whole = memfleet(&fixture, &["publish", "--plain", "--whole", user, path]).await;
    assert_eq!((whole.code, whole.out.as_str()), (Some(0), "published 1, duplicates 0, refused 0\n"));
    assert_eq!(fixture.messages("CONTEXT").await.last().expect("a message").payload, "{\n}\n");
    memfleet(&fixture, &["publish", user, "no-such-file"]).await.failed("cannot open no-such-file");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_stream_takes_and_what_nobody_answers_is_said() {
    let bare = without_streams().await;
    let user = "memory.req.test.user.put.1";
    let refused = memfleet_reads(&bare, &["publish", user, "-"], USER).await.failed("1 refused");
    Ended::line(&refused.out, "published 0, duplicates 0, refused 1");
    let reason = Ended::line(&refused.out, "line 1: no stream captures this subject");
    assert!(reason.contains("`memfleet nats apply`"), "{reason}");
    memfleet(&bare, &["dead", "list"])
        .await
        .failed("cannot open the stream DEAD; `memfleet nats apply` creates it");

    memfleet(&bare, &["nats", "apply"]).await.fine();
    let alone = ["publish", "--wait", "--timeout", "1", user, "-"];
    let alone = memfleet_reads(&bare, &alone, USER).await;
    let alone = alone.failed("1 have no outcome after 1 s; is the worker running?");
    Ended::line(&alone.out, "applied 0, unchanged 0, dead 0, no outcome yet (timed out) 1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_shown_replayed_and_gone() {
    let fixture = Fixture::new().await;
    let worker = fixture.run(ContextWriter);
    assert_eq!(memfleet(&fixture, &["dead", "list"]).await.fine(), "no dead letters\n");
    assert_eq!(memfleet(&fixture, &["dead", "list", "--json"]).await.fine(), "[]\n");
    let publish = async |subject: &str, body: &str| {
        memfleet_reads(&fixture, &["publish", "--wait", subject, "-"], body).await
    };
    publish("memory.req.test.user.put.7", USER).await.fine();
    let missing_prerequisite = "session_id: user 7 has opened no session s";
    let ended = publish("memory.req.test.context.put.7", CONTEXT).await.failed("1 were dead-lettered");
    assert!(Ended::line(&ended.out, "dead: ").ends_with(missing_prerequisite), "{}", ended.out);

    let list = memfleet(&fixture, &["dead", "list"]).await.fine();
    let row: Vec<String> =
        list.lines().last().expect("a row").split_whitespace().map(str::to_owned).collect();
    assert_eq!(row[..5], ["1", "missing-prerequisite", "7", "memory.req.test.context.put.7", "12"]);
    assert!(list.trim_end().ends_with(missing_prerequisite), "{list}");
    let json = memfleet(&fixture, &["dead", "list", "--json"]).await.fine();
    let letters: Value = serde_json::from_str(&json).expect("JSON");
    let letter = &letters[0];
    let request_id = letter["request_id"].as_str().expect("an id").to_owned();
    assert_eq!(letter["sequence"], 1);
    assert_eq!(letter["source"], format!("CONTEXT/{}", fixture.stored("CONTEXT").await));
    assert_eq!(
        (&letter["class"], &letter["reason"]),
        (&json!("missing-prerequisite"), &json!(missing_prerequisite))
    );
    for (option, value, rows) in [
        ("--class", "missing-prerequisite", 1),
        ("--class", "denied", 0),
        ("--worker", "context-writer", 1),
        ("--worker", "x", 0),
    ] {
        let json = memfleet(&fixture, &["dead", "list", "--json", option, value]).await.fine();
        let letters: Vec<Value> = serde_json::from_str(&json).expect("JSON");
        assert_eq!(letters.len(), rows, "{option} {value}");
    }
    let shown = memfleet(&fixture, &["dead", "show", "1"]).await.fine();
    assert!(shown.starts_with("DEAD/1 on memory.dead.context-writer.7, "), "{shown}");
    Ended::line(&shown, &format!("{}: {request_id}", header::DEAD_REQUEST_ID));
    Ended::line(&shown, &format!("{}: test.1", header::ENCRYPTION));
    assert!(shown.ends_with(" bytes, encrypted with key test.1; --decrypt shows them)\n"), "{shown}");
    let shown = memfleet(&fixture, &["dead", "show", "--decrypt", "1"]).await.fine();
    assert!(shown.contains("\n  \"context_key\": \"k\",\n"), "{shown}");
    assert_eq!(memfleet(&fixture, &["dead", "show", "--decrypt", "--body", "1"]).await.fine(), CONTEXT);

    // Nothing has changed, so it dies again, as a letter of its own.
    memfleet(&fixture, &["dead", "replay", "1"]).await.fine();
    fixture.drained::<ContextWriter>().await;
    let sequences: Vec<u64> = fixture.messages("DEAD").await.iter().map(|letter| letter.sequence).collect();
    assert_eq!(sequences, [2], "replayed and died again");

    publish("memory.req.test.session.open.7", SESSION).await.fine();
    let replayed =
        memfleet(&fixture, &["dead", "replay", "--all", "--class", "missing-prerequisite"]).await.fine();
    Ended::line(&replayed, "2  replayed to CONTEXT as request ");
    Ended::line(&replayed, "replayed 1, not replayed 0");
    fixture.drained::<ContextWriter>().await;
    assert_eq!(memfleet(&fixture, &["dead", "list"]).await.fine(), "no dead letters\n");
    let again = memfleet(&fixture, &["dead", "replay", "2"]).await.failed("1 not replayed");
    Ended::line(&again.err, "2  not replayed: no dead letter 2; `memfleet dead list` shows all");
    let none = memfleet(&fixture, &["dead", "replay", "--all"]).await.fine();
    Ended::line(&none, "nothing to do: no matching dead letter");
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.count("simple_chat_context").await, 1);
    assert_eq!(fixture.count("blackboard_events WHERE event_type = 'context.stored'").await, 1);
    worker.stop().await.expect("a clean end");
}

/// A worker's login may publish any dead letter of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_forged_dead_letter_is_not_replayed() {
    let fixture = Fixture::new().await;
    fixture.publish([context(3, "s", "k", 1)]).await;
    let forged = async |worker: &str, source: &str, subject: &str, body: &str| {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert(header::MESSAGE_ID, Uuid::now_v7().to_string());
        headers.insert(header::DEAD_CLASS, "exhausted");
        headers.insert(header::DEAD_REASON, "deadlock detected");
        headers.insert(header::DEAD_TRIES, "12");
        headers.insert(header::DEAD_SOURCE, source);
        headers.insert(header::DEAD_SUBJECT, subject);
        let letter = format!("memory.dead.{worker}.3");
        let sent = fixture.jetstream.publish_with_headers(letter, headers, body.to_owned().into()).await;
        sent.expect("published").await.expect("stored");
    };
    let (subject, stored) = ("memory.req.test.context.put.3", fixture.stored("CONTEXT").await);
    forged("router-logger", "CONTEXT/1", subject, "{}").await;
    forged("context-writer", "CONTEXT/1", "memory.req.account.passkey.put.3", "{}").await;
    forged("context-writer", "CONTEXT/1", subject, "{}").await;
    forged("context-writer", "CONTEXT/99", subject, "{}").await;
    for (letter, reason) in [
        ("1", "its worker takes no messages from CONTEXT/1"),
        ("2", "it is not about its message CONTEXT/1"),
        ("3", "it is not about its message CONTEXT/1"),
        ("4", "--unverified"),
    ] {
        let refused = memfleet(&fixture, &["dead", "replay", letter]).await.failed("1 not replayed");
        assert!(refused.err.contains(reason), "{letter}: {}", refused.err);
    }
    assert_eq!(fixture.stored("CONTEXT").await, stored, "nothing is published");
    memfleet(&fixture, &["dead", "replay", "4", "--unverified"]).await.fine();
    assert_eq!(fixture.stored("CONTEXT").await, stored + 1);
}

/// What was processed or refused is in the database, whatever a dead letter says.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_about_a_processed_or_denied_request_is_not_replayed() {
    let fixture = Fixture::new().await;
    let worker = fixture.run(ContextWriter);
    fixture.publish([user(3), context(3, "s", "k", 1).without_token()]).await;
    fixture.drained::<ContextWriter>().await;
    memfleet(&fixture, &["dead", "drop", "--all", "--yes"]).await.fine();
    for (number, message) in (1..).zip(fixture.messages("CONTEXT").await) {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert(header::DEAD_CLASS, "exhausted");
        headers.insert(header::DEAD_SOURCE, format!("CONTEXT/{number}"));
        headers.insert(header::DEAD_SUBJECT, message.subject.as_str());
        // Another request id, which nobody has processed.
        headers.insert(header::DEAD_REQUEST_ID, Uuid::now_v7().to_string());
        let letter = "memory.dead.context-writer.3";
        let sent = fixture.jetstream.publish_with_headers(letter, headers, message.payload).await;
        sent.expect("published").await.expect("stored");
    }
    let refused = memfleet(&fixture, &["dead", "replay", "--all"]).await.failed("2 not replayed");
    assert!(refused.err.contains("was processed since"), "{}", refused.err);
    assert!(refused.err.contains("pass --denied"), "{}", refused.err);
    assert_eq!(fixture.stored("CONTEXT").await, 2, "nothing is published");
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_dropped_by_number_or_all_of_a_kind() {
    let fixture = Fixture::new().await;
    let worker = fixture.run(ContextWriter);
    fixture.publish((1..=4).map(|user| request("user.put", user, json!({})))).await;
    fixture.publish([request("context.put", 5, serde_json::from_str(CONTEXT).expect("JSON"))]).await;
    fixture.drained::<ContextWriter>().await;
    let drop = async |arguments: &[&str]| memfleet(&fixture, &[&["dead", "drop"], arguments].concat()).await;
    let limited = memfleet(&fixture, &["dead", "list", "--limit", "2"]).await.fine();
    Ended::line(&limited, "showing the newest 2 of 5; use --limit for more");

    drop(&["1", "2"]).await.failed("this permanently deletes dead letters 1, 2; add --yes to confirm");
    assert_eq!(fixture.stored("DEAD").await, 5, "nothing is deleted unasked");
    assert_eq!(drop(&["1", "2", "--yes"]).await.fine(), "dropped 2\n");
    let unknown = drop(&["2", "3", "99", "--yes"]).await.failed("no dead letter 2, 99");
    assert_eq!(unknown.out, "dropped 1\n");
    memfleet(&fixture, &["dead", "show", "99"]).await.failed("no dead letter 99; `memfleet dead list`");
    for fits in [["--all"].as_slice(), &["--all", "--class", "malformed"]] {
        drop(fits).await.failed("--all permanently deletes every matching dead letter; add --yes to confirm");
    }
    assert_eq!(drop(&[]).await.code, Some(2), "which is not said");
    assert_eq!(fixture.stored("DEAD").await, 2, "none of these dropped any");

    assert_eq!(drop(&["--all", "--class", "malformed", "--yes"]).await.fine(), "dropped 1\n");
    assert_eq!(
        fixture.dead_letters().await,
        ["missing-prerequisite: session_id: user 5 has opened no session s"]
    );
    assert_eq!(drop(&["--all", "--yes"]).await.fine(), "dropped 1\n");
    assert_eq!(drop(&["--all", "--yes"]).await.fine(), "dropped 0\n");
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_both_servers_or_says_which_is_away() {
    let mut fixture = Fixture::new().await;
    let all = store::migration::MAIN.status(fixture.connection().await).await.expect("a list");
    let migrations = all.len();
    fixture.publish((1..=3).map(|user| request("user.put", user, json!({})))).await;
    let json = memfleet(&fixture, &["status", "--json"]).await.fine();
    let status: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert!(!json.contains(fixture.nats.password()), "passwords are not shown: {json}");
    let messages = |status: &Value| -> BTreeMap<String, u64> {
        let streams = status["nats"]["streams"].as_array().expect("streams");
        let count =
            |stream: &Value| (stream["name"].as_str().map(str::to_owned), stream["messages"].as_u64());
        let named = streams.iter().map(count);
        named.filter_map(|(name, messages)| Some((name?, messages?))).collect()
    };
    let streams = Topology::shipped().expect("the topology").streams;
    assert!(streams.len() >= 7, "{streams:?}");
    let expected = streams.into_iter().map(|stream| match stream.name.as_str() {
        "CONTEXT" => (stream.name, 3),
        "JOBS" => (stream.name, contract::SCHEDULES.len() as u64),
        _ => (stream.name, 0),
    });
    assert_eq!(messages(&status), expected.collect());
    let writer = status["nats"]["consumers"].as_array().expect("consumers").iter();
    let writer = writer.clone().find(|one| one["name"] == "context-writer").expect("the worker's consumer");
    assert_eq!((&writer["stream"], &writer["pending"]), (&json!("CONTEXT"), &json!(3)), "the lag");
    assert_eq!((&writer["in_flight"], &writer["waiting"]), (&json!(0), &json!(0)), "no worker runs");
    assert!(writer["oldest_age_s"].is_u64(), "{writer}");
    assert_eq!(status["postgres"]["migrations_waiting"], json!([]));
    assert!(
        fixture.settings.postgres.url.ends_with(status["postgres"]["database"].as_str().expect("a name"))
    );

    let worker = fixture.run(ContextWriter);
    fixture.drained::<ContextWriter>().await;
    worker.stop().await.expect("a clean end");
    let json = memfleet(&fixture, &["status", "--json"]).await.fine();
    assert_eq!(serde_json::from_str::<Value>(&json).expect("JSON")["nats"]["dead_letters"], 3);
    let tables = memfleet(&fixture, &["status"]).await.fine();
    Ended::line(&tables, "            3 dead letters");
    Ended::line(&tables, "  CONTEXT/context-writer ");
    Ended::line(&tables, &format!("            {migrations} migrations applied"));

    fixture.nats.kill().await;
    let away = memfleet(&fixture, &["status"]).await.failed("NATS unavailable; see above");
    Ended::line(&away.out, "NATS        unavailable: NATS at nats://***@127.0.0.1:");
    Ended::line(&away.out, &format!("            {migrations} migrations applied"));
    let away = memfleet(&fixture, &["status", "--json"]).await.failed("NATS unavailable");
    let status: Value = serde_json::from_str(&away.out).expect("JSON");
    assert!(
        status["nats"]["error"].as_str().expect("an error").starts_with("NATS at nats://***@"),
        "{status}"
    );
    assert_eq!(status["postgres"]["migrations_applied"], migrations);
    memfleet(&fixture, &["dead", "list"]).await.failed("NATS at nats://***@127.0.0.1:");
}
