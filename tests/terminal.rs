//! What an operator reads in a terminal: text from outside is escaped, and secrets are in no message.

use std::fs::File;

use async_nats::HeaderMap;
use client::{Client, ClientOptions};
use context_writer::ContextWriter;
use contract::{CONTEXT_WRITER, ContextRequest, Outcome, WorkerInfo, header, limit};
use keys::DataKeys;
use runtime::{Message, Verdict, Worker};
use serde_json::{Value, json};
use store::{Connection, Fault};
use testkit::{Fixture, next, request, session, user};
use topology::Topology;
use uuid::Uuid;

use crate::support::program::{self, Ended, output_with_input, signal};
use crate::support::reader::Reader;

/// A publisher's text that forges a line of a log, clears the screen in two ways, reverses what follows, and hides a
/// character.
const HOSTILE: &str = "x\nINFO forged\r \u{1b}[2J\u{9b}2J\u{202e}\u{200b}\u{2028}y";
/// How a terminal shows it.
const SHOWN: &str = "x\\u{a}INFO forged\\u{d} \\u{1b}[2J\\u{9b}2J\\u{202e}\\u{200b}\\u{2028}y";

async fn memfleet(fixture: &Fixture, arguments: &[&str], input: &str) -> Ended {
    output_with_input(program::memfleet(fixture, arguments), input).await.into()
}

/// Asserts that a terminal shows a text as it is, line by line.
#[track_caller]
fn is_harmless(text: &str) {
    let hostile = |character: char| {
        (character.is_control() && character != '\n') || "\u{202e}\u{200b}\u{2028}".contains(character)
    };
    assert!(!text.contains(hostile), "{text:?}");
    assert!(!text.lines().any(|line| line.starts_with("INFO forged")), "{text}");
}

/// context-writer, if the database refused everything for a reason that quotes the publisher.
struct Refusing;

impl Worker for Refusing {
    const INFO: &'static WorkerInfo = &CONTEXT_WRITER;
    const ENCRYPTS: bool = true;
    type Item = ContextRequest;

    async fn write<'a>(
        &'a self,
        _: &'a mut Connection,
        batch: &'a [&'a Message<ContextRequest>],
        _: &'a DataKeys,
    ) -> Result<Vec<Verdict>, Fault> {
        Ok(batch.iter().map(|_| Verdict::Rejected(HOSTILE.repeat(100).into())).collect())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reason_of_an_outcome_is_one_short_line() {
    let fixture = Fixture::new().await;
    let mut outcomes = fixture.subscribe("_INBOX.test.outcomes").await;
    fixture.process(Refusing, [user(1).with(header::REPLY_TO, "_INBOX.test.outcomes")]).await;
    let outcome: Outcome = serde_json::from_slice(&next(&mut outcomes).await.payload).expect("an outcome");
    let reason = outcome.reason.expect("a reason");
    assert!(reason.starts_with(SHOWN) && reason.chars().count() <= limit::REASON_CHARS, "{reason}");
    is_harmless(&reason);
    assert_eq!(fixture.dead_letters().await, [format!("permanent: {reason}")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_is_shown_escaped() {
    let fixture = Fixture::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let ring = folder.path().join("ring\u{1b}[2J\u{202e}");
    let ring = ring.to_str().expect("a path");
    let made = memfleet(&fixture, &["keys", "generate", ring], "").await;
    assert!(made.out.contains("ring\\u{1b}[2J\\u{202e}"), "{made:?}");
    is_harmless(&made.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_is_shown_on_one_line() {
    let fixture = Fixture::new().await;
    let missing = memfleet(&fixture, &["publish", "memory.req.test.user.put.1", HOSTILE], "").await;
    is_harmless(&missing.all());
    assert_eq!(
        missing.err,
        format!("memfleet: cannot open {SHOWN}: No such file or directory (os error 2)\n")
    );
}

/// The lines that contain a text.
fn containing<'a>(text: &'a str, part: &str) -> Vec<&'a str> {
    text.lines().filter(|line| line.contains(part)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publishers_text_stays_on_its_line() {
    let fixture = Fixture::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let mut command = program::memfleet(&fixture, &["run", "context-writer"]);
    command.stderr(File::create(&log).expect("a log"));
    let mut worker = command.spawn().expect("the program");

    let line = |subject: &str, body: Value| {
        json!({ "subject": format!("memory.req.test.{subject}"), "body": body }).to_string()
    };
    let context =
        json!({ "session_id": "s", "context_key": HOSTILE, "context_value": { "a": HOSTILE }, "version": 1 });
    let mut unknown = context.clone();
    unknown[HOSTILE] = json!(1);
    let mut envelope: Value = serde_json::from_str(&line("user.put.1", json!({}))).expect("JSON");
    envelope[HOSTILE] = json!(1);
    let lines = [
        line("user.put.1", json!({ "username": HOSTILE, "email": "u@example.org" })),
        line("session.open.1", json!({ "session_id": "s", "chat_mode": "simple" })),
        line("context.put.1", context),
        line("context.put.1", unknown),
        line(
            "context.put.2",
            json!({ "session_id": "s", "context_key": "k", "context_value": 1, "version": 1 }),
        ),
        line("context.pu\u{1b}[2Jt\u{202e}.1", json!({})),
        envelope.to_string(),
    ];
    let published = memfleet(&fixture, &["publish", "--wait", "--requests", "-"], &lines.join("\n")).await;
    is_harmless(&published.all());
    let refused = format!("line 7: expected {{\"subject\", \"id\", \"body\"}}: unknown field `{SHOWN}`");
    assert_eq!(containing(&published.out, &refused).len(), 1, "{published:?}");
    let reason = format!("{SHOWN}: is unknown; expected one of ");
    assert_eq!(containing(&published.err, &format!("line 4: {reason}")).len(), 1, "{published:?}");
    let dead: Vec<&str> = containing(&published.out, &reason);
    assert!(dead.len() == 1 && dead[0].starts_with("dead: "), "{published:?}");

    let letters = fixture.dead_letters().await;
    assert!(letters.iter().any(|letter| letter.starts_with(&format!("malformed: {reason}"))), "{letters:?}");
    let list = memfleet(&fixture, &["dead", "list"], "").await.out;
    is_harmless(&list);
    assert_eq!(list.lines().count(), letters.len() + 2, "a heading, a rule, and one line each: {list}");
    // The relay has encoded it before.
    assert_eq!(containing(&list, "memory.req.test.context.pu%1B[2Jt%E2%80%AE.1").len(), 1, "{list}");
    for sequence in 1..=letters.len() {
        let sequence = sequence.to_string();
        is_harmless(&memfleet(&fixture, &["dead", "show", &sequence], "").await.out);
        is_harmless(&memfleet(&fixture, &["dead", "show", "--decrypt", &sequence], "").await.all());
    }

    signal("TERM", worker.id().expect("it runs"));
    worker.wait().await.expect("its end");
    let log = std::fs::read_to_string(&log).expect("a log");
    is_harmless(&log);
    assert_eq!(containing(&log, &format!("reason={SHOWN}: is unknown")).len(), 1, "{log}");
    assert_eq!(containing(&log, "reason=headers: the subject has characters").len(), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_of_digits_is_taken_and_never_shown() {
    let fixture = Fixture::new().await;
    for option in ["VECTORS__API_KEY", "EMBEDDER__TOKEN", "NEXT_EMBEDDER__TOKEN"] {
        for secret in ["4815162342", "true", "-1.5"] {
            let mut command = program::memfleet(&fixture, &["migrate", "status"]);
            command.env(format!("MEMFLEET_{option}"), secret);
            let ended: Ended = program::output(command).await.into();
            assert!(ended.is_success(), "{option}={secret}: {ended:?}");
        }
    }
    // A password of digits in a URL, and a URL that is none.
    let secrets =
        ["nats://u:4815162342@127.0.0.1:1", "4815162342", "u:4815162342@127.0.0.1:1", "password=4815162342"];
    for option in ["NATS__URL", "POSTGRES__URL"] {
        for secret in secrets {
            let mut command = program::memfleet(&fixture, &["status"]);
            command.env(format!("MEMFLEET_{option}"), secret);
            let ended: Ended = program::output(command).await.into();
            assert_eq!(ended.code, Some(1), "{option}={secret}: {ended:?}");
            assert!(!ended.all().contains("4815162342"), "{option}={secret}: {ended:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_library_hides_a_password() {
    let options = ClientOptions::new("nats://u:4815162342@127.0.0.1:1", "test".parse().expect("a service"));
    let Err(error) = Client::connect(options).await else { panic!("nobody listens there") };
    assert!(error.to_string().starts_with("NATS at nats://***@127.0.0.1:1: "), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_is_shown_escaped() {
    let fixture = Fixture::new().await;
    let context =
        json!({ "session_id": "s", "context_key": HOSTILE, "context_value": { "a": HOSTILE }, "version": 1 });
    fixture.process(ContextWriter, [user(1), session(1, "s"), request("context.put", 1, context)]).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());

    let tail = ["tail", "--user", "1", "--since", "600", "--count", "3"];
    let text = memfleet(&fixture, &tail, "").await;
    is_harmless(&text.all());
    assert_eq!(text.out.lines().count(), 3, "{}", text.out);
    // JSON is escaped as JSON, with the same values.
    let json = memfleet(&fixture, &[tail.as_slice(), &["--json"]].concat(), "").await.out;
    is_harmless(&json);
    let stored: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(stored[2]["payload"]["context_value"]["a"], HOSTILE);

    let reader = Reader::start(&fixture).await;
    let ask = ["ask", "--service", "test", "--user", "1"];
    let listed = [ask.as_slice(), &["context.list", r#"{"session_id":"s"}"#]].concat();
    let answer = memfleet(&fixture, &listed, "").await;
    is_harmless(&answer.all());
    let contexts: Value = serde_json::from_str(&answer.out).expect("JSON");
    assert_eq!(contexts["contexts"][0]["context_key"], HOSTILE, "{answer:?}");
    let body = json!({ "session_id": "s", "context_key": format!("{HOSTILE}?") }).to_string();
    let unknown = memfleet(&fixture, &[ask.as_slice(), &["context.get", &body]].concat(), "").await;
    is_harmless(&unknown.all());
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
    assert_eq!(unknown.err.lines().count(), 1, "{unknown:?}");
    reader.end().await;

    // A table that differs from the events, so that `replay` prints both.
    fixture.execute("UPDATE simple_chat_context SET context_value = '{\"a\": \"b\\u001b[2J\\u202e\"}'").await;
    let replay = memfleet(&fixture, &["replay", "--user", "1"], "").await;
    is_harmless(&replay.all());
    assert!(replay.out.contains("\\u{202e}"), "{replay:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_named() {
    let fixture = Fixture::new().await;
    let issued = memfleet(&fixture, &["token", "issue", "--service", "test", "--user", "1"], "").await;
    assert!(issued.is_success(), "{issued:?}");
    let list = memfleet(&fixture, &["token", "list", "--user", "1", "--json"], "").await.out;
    let list: Value = serde_json::from_str(&list).expect("JSON");
    let known = list["tokens"][0]["token_id"].as_str().expect("an id");
    let unknown = Uuid::now_v7();
    let ids = [known.to_owned(), unknown.to_string()];
    let revoked = memfleet(&fixture, &["token", "revoke", &ids[0], &ids[1]], "").await;
    assert_eq!((revoked.code, revoked.out.as_str()), (Some(1), "revoked 1\n"), "{revoked:?}");
    let problem =
        format!("memfleet: no token {unknown} is registered; `memfleet token list --all` shows all.");
    assert!(revoked.err.starts_with(&problem), "{revoked:?}");
    let rejected = format!("sec.revoked_grants WHERE grant_id IN ('{known}', '{unknown}')");
    assert_eq!(fixture.count(&rejected).await, 2, "a token that the registry has lost is rejected too");
    let again = memfleet(&fixture, &["token", "revoke", &ids[0]], "").await;
    assert_eq!((again.code, again.all().as_str()), (Some(0), "revoked 0\n"));

    for (arguments, problem) in [
        (["token", "revoke", "--service", "nobody"].as_slice(), "the service nobody is not registered"),
        (&["token", "service", "disable", "nobody"], "the service nobody is not registered"),
        (&["token", "key", "retire", "nobody"], "no signing key nobody"),
        (&["vectors", "grant", "nobody", "--search"], "the service nobody is not registered"),
        (&["keys", "rotate", "--data", "--user", "99"], "user 99 has no data key"),
        (&["replay", "--user", "99"], "there is no user 99"),
        (&["audit", "trail", "--user", "99"], "no user 99"),
        (&["dead", "show", "99"], "no dead letter 99"),
        (&["dead", "replay", "99"], "1 not replayed"),
        (&["dead", "drop", "99", "--yes"], "no dead letter 99"),
    ] {
        let ended = memfleet(&fixture, arguments, "").await;
        assert_eq!(ended.code, Some(1), "{arguments:?}: {ended:?}");
        let last = ended.err.lines().last().unwrap_or_default();
        assert!(last.starts_with("memfleet: ") && last.contains(problem), "{arguments:?}: {ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_fails_if_a_consumer_is_missing() {
    let fixture = Fixture::new().await;
    let status = async |arguments: &[&str]| memfleet(&fixture, &[&["status"], arguments].concat(), "").await;
    assert!(status(&[]).await.is_success());
    let delete = async |stream: &str, consumer: &str| {
        fixture.jetstream.delete_consumer_from_stream(consumer, stream).await.expect("a deletion");
    };
    delete("ROUTER", "router-logger").await;
    delete("ADVISORY", "context-writer-advisory").await;
    fixture.jetstream.delete_stream("DEAD").await.expect("a deletion");
    let expected =
        ["stream DEAD", "consumer ADVISORY/context-writer-advisory", "consumer ROUTER/router-logger"];
    let problem = format!(
        "memfleet: NATS lacks {}; `memfleet nats apply` creates what is missing\n",
        expected.join(", ")
    );
    let text = status(&[]).await;
    assert_eq!((text.code, &text.err), (Some(1), &problem), "{text:?}");
    for missing in expected {
        assert_eq!(containing(&text.out, &format!("missing: {missing}")).len(), 1, "{text:?}");
    }
    let json = status(&["--json"]).await;
    assert_eq!((json.code, &json.err), (Some(1), &problem), "{json:?}");
    let object: Value = serde_json::from_str(&json.out).expect("JSON");
    assert_eq!(object["nats"]["missing"], json!(expected));
    assert_eq!(object["nats"]["dead_letters"], Value::Null);

    assert!(memfleet(&fixture, &["nats", "apply"], "").await.is_success());
    let json: Value = serde_json::from_str(&status(&["--json"]).await.out).expect("JSON");
    assert_eq!(json["nats"]["missing"], json!([]));
    assert!(status(&[]).await.is_success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schedule_of_a_job_can_be_missing() {
    let fixture = Fixture::new().await;
    let workers = [WorkerInfo { jobs: &["sweep"], ..CONTEXT_WRITER }];
    let missing = async || {
        let missing = topology::missing(&fixture.jetstream, &workers).await.expect("a comparison");
        missing.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let schedule = "schedule memory.schedule.sweep";
    assert_eq!(missing().await, ["consumer JOBS/context-writer-jobs", schedule]);
    let topology = Topology::of(&workers).expect("a topology");
    topology::apply(&fixture.jetstream, &topology).await.expect("streams and consumers");
    assert_eq!(missing().await, [schedule]);
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Schedule", "@every 1h");
    headers.insert("Nats-Schedule-Target", "memory.job.sweep");
    let sent = fixture.jetstream.publish_with_headers("memory.schedule.sweep", headers, "".into()).await;
    sent.expect("a publish").await.expect("a stored schedule");
    assert_eq!(missing().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_place_of_a_schedule_is_replaced() {
    let fixture = Fixture::new().await;
    let topology = Topology::shipped().expect("a topology");
    let subject = "memory.schedule.consensus-reestimate";
    let target = "Nats-Schedule-Target";
    let missing = async || {
        let missing = topology::missing(&fixture.jetstream, contract::WORKERS).await.expect("a comparison");
        missing.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(missing().await, Vec::<String>::new());
    topology::apply(&fixture.jetstream, &topology).await.expect("limits as they are shipped");
    let of_others = [("Nats-Schedule", "@every 1h"), (target, "memory.job.consensus-close")];
    for spoiled in [&of_others[..], &[(target, "memory.job.consensus-reestimate")], &[]] {
        let mut headers = HeaderMap::new();
        for (name, value) in spoiled {
            headers.insert(*name, *value);
        }
        let sent = fixture.jetstream.publish_with_headers(subject, headers, "".into()).await;
        sent.expect("a publish").await.expect("a stored message");
        assert_eq!(missing().await, [format!("schedule {subject}")], "{spoiled:?}");
        for expected in [&["+ schedule memory.schedule.consensus-reestimate"][..], &[]] {
            let done = topology::apply(&fixture.jetstream, &topology).await.expect("changes");
            let done: Vec<String> = done.iter().map(ToString::to_string).collect();
            assert_eq!(done, expected, "{spoiled:?}");
        }
        assert_eq!(missing().await, Vec::<String>::new(), "{spoiled:?}");
    }
    // An operator's schedule stays.
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Schedule", "@every 24h");
    headers.insert(target, "memory.job.consensus-reestimate");
    let sent = fixture.jetstream.publish_with_headers(subject, headers, "".into()).await;
    sent.expect("a publish").await.expect("a stored schedule");
    let done = topology::apply(&fixture.jetstream, &topology).await.expect("no changes");
    assert!(done.is_empty(), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_printed_as_they_are_answered() {
    const DIGITS: &str = "123456789012345678901234567890.123456789012345678901234567890";
    let fixture = Fixture::new().await;
    let body = format!(
        r#"{{"session_id":"s","context_key":"k","version":1,"context_value":{{"b":1e400,"a":[{DIGITS},1.10,-0]}}}}"#
    );
    let context = request("context.put", 1, json!({})).map_body(|_| body.clone());
    let unknown = request("context.put", 1, json!({})).map_body(|_| body.replace("version", "b"));
    fixture.process(ContextWriter, [user(1), session(1, "s"), context, unknown]).await;
    let reader = Reader::start(&fixture).await;
    let query = r#"{"session_id":"s","context_key":"k"}"#;
    let answer =
        memfleet(&fixture, &["ask", "--service", "test", "--user", "1", "context.get", query], "").await;
    let value = format!(r#""context_value":{{"a":[{DIGITS},1.10,0],"b":1{}}}"#, "0".repeat(400));
    let compact: String = answer.out.split_whitespace().collect();
    assert!(answer.is_success() && compact.contains(&value), "PostgreSQL writes out 1e400: {answer:?}");
    reader.end().await;

    // A dead letter holds the publisher's own numbers.
    let shown = memfleet(&fixture, &["dead", "show", "1"], "").await.out;
    assert!(shown.contains(&format!("\"b\": 1e400,\n    \"a\": [\n      {DIGITS},")), "{shown}");
}
