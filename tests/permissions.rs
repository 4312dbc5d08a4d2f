//! Who may publish and hear what, on a real server with the accounts that are shipped.

use std::path::Path;
use std::time::Duration;

use async_nats::{Client, jetstream};
use context_writer::ContextWriter;
use runtime::{Readiness, broker};
use serde_json::{Value, json};
use testkit::{Fixture, RequestMessage, context, eventually, next, session, token, user};
use tokio_util::sync::CancellationToken;
use topology::{API_PREFIX, INCLUDED_NKEYS, Service, Topology, identities};

use crate::support::broker::connect;
use crate::support::in_repository;

/// The same request of simple-chat.
fn of_chat(mut request: RequestMessage) -> RequestMessage {
    request.subject = request.subject.replace(".test.", ".simple-chat.");
    request
}

async fn publish(client: &Client, request: RequestMessage) {
    let jetstream = jetstream::new(client.clone());
    let headers = request.header_map();
    let sent = jetstream.publish_with_headers(request.subject, headers, request.body.into()).await;
    sent.expect("a publish").await.expect("an acknowledged publish");
}

#[test]
fn the_files_are_what_the_table_says() {
    let services = Service::shipped().unwrap();
    let file = in_repository("nats/accounts.conf");
    let shipped = std::fs::read_to_string(file).expect("nats/accounts.conf");
    assert_eq!(
        shipped,
        topology::render(&services, INCLUDED_NKEYS),
        "renew it with `memfleet nats render > nats/accounts.conf`"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_can_do_what_they_must_and_nothing_is_refused() {
    let fixture = Fixture::secured().await;
    let worker = fixture.run(ContextWriter);
    let chat = broker::connect(&fixture.settings.nats, "simple-chat").await.expect("a connection");
    let mut outcomes = chat.subscribe("_INBOX.simple-chat.outcomes").await.expect("a subscription");
    chat.flush().await.expect("a broker that has it");
    let reply =
        |request: RequestMessage| of_chat(request).with("Memfleet-Reply-To", "_INBOX.simple-chat.outcomes");
    for request in
        [user(1), session(1, "s"), context(1, "s", "k", 1), context(1, "unknown", "k", 1).without_token()]
    {
        publish(&chat, reply(request)).await;
    }
    let mut told = Vec::new();
    for _ in 0..4 {
        let outcome: Value = serde_json::from_slice(&next(&mut outcomes).await.payload).expect("JSON");
        told.push(outcome["status"].as_str().unwrap_or_default().to_owned());
    }
    told.sort();
    assert_eq!(told, ["applied", "applied", "applied", "dead"]);
    fixture.drained::<ContextWriter>().await;
    assert_eq!((fixture.stored("EVENTS").await, fixture.stored("DEAD").await), (3, 1));
    // Many more messages than one answer's worth come through one query for messages.
    let many: Vec<RequestMessage> = (0..1_200).map(|n| of_chat(context(1, "s", &n.to_string(), 1))).collect();
    fixture.publish(many).await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.count("simple_chat_context").await, 1_201);
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_gets_its_tokens_over_the_broker_and_nobody_elses() {
    let fixture = Fixture::secured().await;
    let stop = CancellationToken::new();
    let (settings, stopped) = (fixture.settings.clone(), stop.clone());
    let running = tokio::spawn(async move {
        token_issuer::run(token::issuer(), &settings, Readiness::new(token_issuer::NAME), stopped).await
    });
    let chat = broker::connect(&fixture.settings.nats, "simple-chat").await.expect("a connection");
    let ask = json!({ "user_id": 5 }).to_string();
    let answer = eventually("it answers", async || {
        let on = format!("{}.simple-chat", contract::TOKEN_ISSUE);
        let answer = chat.request(on, ask.clone().into()).await.ok()?;
        serde_json::from_slice::<Value>(&answer.payload).ok()
    })
    .await;
    assert!(answer["token"].is_string(), "{answer}");
    let other = format!("{}.smart-router", contract::TOKEN_ISSUE);
    let refused = tokio::time::timeout(Duration::from_millis(700), chat.request(other, ask.into())).await;
    assert!(!matches!(refused, Ok(Ok(_))), "{refused:?}");
    assert_eq!(fixture.lines("DISTINCT_service FROM (SELECT DISTINCT service AS DISTINCT_service FROM cross_service_auth) AS s").await, ["simple-chat"]);
    stop.cancel();
    running.await.expect("no panic").expect("a clean end");
}

/// nats/server.conf as it is shipped, but for where it listens, where it keeps its data, and how much it may reserve: the
/// disk of whoever runs this need not have room for full streams.
#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_configuration_encrypts_what_travels_and_what_is_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let shipped = in_repository("nats");
    for file in ["server.conf", "accounts.conf"] {
        let shipped = std::fs::read_to_string(shipped.join(file)).expect("a file");
        let folder = "store_dir: $MEMFLEET_JS_DIR";
        std::fs::write(path(file), shipped.replace(folder, &format!("{folder}\n  max_file_store: 100GB")))
            .expect("a copy");
    }
    let (topology, services) = (Topology::shipped().unwrap(), Service::shipped().unwrap());
    let public = topology::make_nkeys(&path("nkeys"), &identities(&services)).expect("keys");
    std::fs::write(path("nkeys.conf"), public).expect("a file");
    topology::make_certificates(folder.path(), &["127.0.0.1".to_owned()], Duration::from_secs(3_600))
        .expect("files");
    let program = stack::Programs::find().expect("the servers' programs").nats_server;
    let mut server = tokio::process::Command::new(program);
    server.arg("-c").arg(path("server.conf")).arg("--ports_file_dir").arg(folder.path());
    server.args(["-a", "127.0.0.1", "-p", "-1"]).kill_on_drop(true);
    server.env("MEMFLEET_JS_DIR", path("data")).env("MEMFLEET_WS_LISTEN", "127.0.0.1:-1");
    server.env("MEMFLEET_SERVER_NAME", "n1").env("MEMFLEET_JS_KEY", "a-key-for-the-disk");
    for (variable, file) in [("CERT", "server.pem"), ("KEY", "server.key"), ("CA", "ca.pem")] {
        server.env(format!("MEMFLEET_TLS_{variable}"), path(file));
    }
    let server = server.stdout(std::process::Stdio::null()).spawn().expect("a server");
    let ports = path(&format!("nats-server_{}.ports", server.id().expect("a process")));
    let port = eventually("the server says its port", async || {
        let ports: Value = serde_json::from_str(&std::fs::read_to_string(&ports).ok()?).ok()?;
        ports["nats"][0].as_str()?.rsplit_once(':').map(|(_, port)| port.to_owned())
    })
    .await;

    let mut settings = config::NatsSettings {
        url: format!("tls://127.0.0.1:{port}"),
        nkey_file: Some(path("nkeys/{name}.nk").to_str().expect("a path").to_owned()),
        ..Default::default()
    };
    // Who signed the server's certificate is not known, or another one is.
    assert!(broker::connect_operator(&settings, "test").await.is_err());
    settings.ca_file = Some(path("ca.pem").to_str().expect("a path").to_owned());
    let client = broker::connect_operator(&settings, "test").await.expect("an encrypted connection");
    let jetstream = jetstream::new(client);
    topology::apply(&jetstream, &topology).await.expect("streams and consumers");
    let canary = "a-canary-that-must-not-be-found-on-the-disk";
    let sent = jetstream.publish("memory.req.account.user.put.1", canary.into()).await.expect("a publish");
    sent.await.expect("an acknowledged publish");
    let mut kept = Vec::new();
    for entry in walk(&path("data")) {
        let bytes = std::fs::read(&entry).expect("a file");
        assert!(!bytes.windows(canary.len()).any(|part| part == canary.as_bytes()), "{}", entry.display());
        kept.push(entry);
    }
    assert!(kept.iter().any(|file| file.extension().is_some_and(|ending| ending == "blk")), "{kept:?}");
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_publishes_or_hears_anything_else() {
    let fixture = Fixture::secured().await;
    let services = Service::shipped().unwrap();
    let publish = [
        "memory.req.other.context.put.1",
        "memory.req.other.anything.put.1",
        "memory.event.context.stored.1",
        "memory.event.decision.logged.1",
        "memory.event.vector.indexed.1",
        "memory.event.unknown.kind.1",
        "memory.dead.other.1",
        "memory.job.sync-carry",
        "memory.schedule.sync-carry",
        "memory.woken.other",
        "memory.seal.1",
        "memory.ask.token.issue.other",
        "_INBOX.other.x",
        "$JS.API.STREAM.CREATE.MINE",
        "$JS.API.STREAM.UPDATE.CONTEXT",
        "$JS.API.STREAM.DELETE.CONTEXT",
        "$JS.API.STREAM.PURGE.CONTEXT",
        "$JS.API.STREAM.MSG.DELETE.CONTEXT",
        "$JS.API.CONSUMER.CREATE.CONTEXT.mine",
        "$JS.API.CONSUMER.DELETE.CONTEXT.context-writer",
        "$JS.API.CONSUMER.MSG.NEXT.CONTEXT.other",
        "$JS.API.DIRECT.GET.CONTEXT",
        "STORE.API.CONSUMER.MSG.NEXT.CONTEXT.other",
        "STORE.API.STREAM.MSG.GET.DEAD",
        "$JS.ACK.CONTEXT.other.1.1.1.1.1",
        "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.CONTEXT.context-writer",
        "$SYS.REQ.SERVER.PING",
        "$SRV.PING",
    ];
    let subscribe = [
        ">",
        "memory.req.>",
        "memory.event.>",
        "memory.dead.>",
        "_INBOX.>",
        "_INBOX.other.>",
        "$JS.>",
        "$SYS.>",
    ];
    for identity in identities(&services).iter().filter(|identity| identity.name != "operator") {
        let (client, refused) = connect(&fixture, &identity.name).await;
        // What it may do is its own; everything else is refused by name.
        let covers = |list: &[String], subject: &str| list.iter().any(|allowed| covers(allowed, subject));
        let not_allowed: Vec<&str> =
            publish.into_iter().filter(|subject| !covers(&identity.publish, subject)).collect();
        assert!(not_allowed.len() >= publish.len() - 2, "{}: {not_allowed:?}", identity.name);
        for subject in &not_allowed {
            client.publish(*subject, "{}".into()).await.expect("a publish that nobody hears");
        }
        let not_heard: Vec<&str> =
            subscribe.into_iter().filter(|subject| !covers(&identity.subscribe, subject)).collect();
        assert!(not_heard.len() >= subscribe.len() - 1, "{}: {not_heard:?}", identity.name);
        for subject in &not_heard {
            let _ = client.subscribe(*subject).await.expect("a subscription");
        }
        let refused = refused.at_least(not_allowed.len() + not_heard.len()).await;
        for subject in not_allowed.iter().chain(&not_heard) {
            let quoted = format!("\"{}\"", subject.to_lowercase());
            assert!(
                refused.iter().any(|error| error.contains(&quoted)),
                "{}: {subject}: {refused:?}",
                identity.name
            );
        }
    }
    for stream in ["CONTEXT", "EVENTS", "DEAD", "SEAL", "ADVISORY", "WAKES"] {
        assert_eq!(fixture.stored(stream).await, 0, "{stream}");
    }
}

/// Whether a pattern of subjects covers a subject or another pattern.
fn covers(pattern: &str, subject: &str) -> bool {
    let (mut left, mut right) = (pattern.split('.'), subject.split('.'));
    loop {
        match (left.next(), right.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(own), Some(token)) if own == token => {}
            _ => return false,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_taken_over_stores_no_request() {
    let fixture = Fixture::secured().await;
    let (chat, _) = connect(&fixture, "simple-chat").await;
    publish(&chat, of_chat(user(1))).await;
    let (worker, refused) = connect(&fixture, "context-writer").await;
    let own = "_INBOX.context-writer.x";
    let mut answers = worker.subscribe(own).await.expect("a subscription");
    worker.flush().await.expect("a broker");
    let pull = format!("{API_PREFIX}.CONSUMER.MSG.NEXT.{}.{}", "CONTEXT", contract::CONTEXT_WRITER.name);
    let ask = json!({ "batch": 1, "expires": 2_000_000_000 }).to_string();
    // Delivered to the subject of a request, the message would be stored again as if another service had published it.
    let forged = "memory.req.smart-router.user.put.2";
    worker.publish_with_reply(pull.clone(), forged, ask.clone().into()).await.expect("a publish");
    // It leads nowhere, so that the message is still there for whoever asks next.
    worker.publish_with_reply(pull, own, ask.into()).await.expect("a publish");
    let answer = next(&mut answers).await;
    assert_eq!(answer.subject.as_str(), "memory.req.simple-chat.user.put.1");
    assert_eq!(fixture.stored("CONTEXT").await, 1);
    assert_eq!(refused.list(), Vec::<String>::new());
}

/// A subject that both patterns cover.
fn common(one: &str, other: &str) -> Option<String> {
    fn concrete(token: &str) -> &str {
        match token {
            "*" | ">" => "1",
            token => token,
        }
    }
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    let mut subject: Vec<&str> = Vec::new();
    loop {
        let token = match (one.next(), other.next()) {
            (None, None) => return Some(subject.join(".")),
            (Some(">"), Some(next)) => {
                subject.push(concrete(next));
                subject.extend(other.map(concrete));
                return Some(subject.join("."));
            }
            (Some(next), Some(">")) => {
                subject.push(concrete(next));
                subject.extend(one.map(concrete));
                return Some(subject.join("."));
            }
            (Some("*"), Some(token)) | (Some(token), Some("*")) => token,
            (Some(left), Some(right)) if left == right => left,
            _ => return None,
        };
        subject.push(concrete(token));
    }
}

/// Who may publish into a stream, and a subject on which they may.
struct Grant {
    identity: String,
    stream: String,
    subject: String,
    /// Another subject of the stream, if it has more than one.
    target: String,
}

/// One for each stream and each identity that may publish into it. The operator may do everything.
fn grants() -> Vec<Grant> {
    let (topology, services) = (Topology::shipped().unwrap(), Service::shipped().unwrap());
    let mut grants = Vec::new();
    for identity in identities(&services).iter().filter(|identity| identity.name != "operator") {
        for stream in &topology.streams {
            let subjects = stream.config["subjects"].as_array().expect("subjects");
            let subjects: Vec<&str> = subjects.iter().filter_map(Value::as_str).collect();
            let own = |pattern: &String| subjects.iter().find_map(|subject| common(pattern, subject));
            let Some(subject) = identity.publish.iter().find_map(own) else { continue };
            let target = subjects.iter().find_map(|subject| common(subject, subject)).expect("a subject");
            let (identity, stream) = (identity.name.clone(), stream.name.clone());
            grants.push(Grant { identity, stream, subject, target });
        }
    }
    grants
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_are_orders_to_the_broker_change_nothing_of_others() {
    assert_eq!(common("a.*.c.>", "a.b.>").as_deref(), Some("a.b.c.1"));
    assert_eq!((common("a.b", "a.b.c"), common("a.>", "a"), common("a.*", "b.*")), (None, None, None));
    let fixture = Fixture::secured().await;
    let grants = grants();
    let of = |stream: &str| grants.iter().filter(|grant| grant.stream == stream).count();
    assert!(of("CONTEXT") >= 2 && of("EVENTS") >= 4 && of("DEAD") >= 5 && of("WAKES") == 2);
    assert_eq!(of("JOBS"), 0, "a stream with schedules takes such headers");
    for grant in &grants {
        let (client, _) = connect(&fixture, &grant.identity).await;
        let jetstream = jetstream::new(client);
        let name = format!("{} in {}", grant.identity, grant.stream);
        let sent = jetstream.publish(grant.subject.clone(), "{}".into()).await.expect("a publish");
        let stored = sent.await;
        assert!(stored.is_ok(), "{name}: {stored:?}");
        for order in [
            &[("Nats-Rollup", "all")][..],
            &[("Nats-Rollup", "sub")],
            &[("Nats-Rollup", "all"), ("KV-Operation", "PURGE")],
            &[("Nats-Expected-Stream", "OTHER")],
            &[("Nats-TTL", "1s")],
            &[("Nats-Batch-Id", "x")],
            &[("Nats-Schedule", "@every 1s")],
            &[("Nats-Schedule", "@every 1s"), ("Nats-Schedule-Target", grant.target.as_str())],
        ] {
            let mut headers = async_nats::HeaderMap::new();
            for (header, value) in order {
                headers.insert(*header, *value);
            }
            let sent = jetstream.publish_with_headers(grant.subject.clone(), headers, "{}".into()).await;
            let stored =
                tokio::time::timeout(Duration::from_secs(2), sent.expect("a publish").into_future()).await;
            assert!(!matches!(stored, Ok(Ok(_))), "{name}: {order:?}: {stored:?}");
        }
    }
    for grant in &grants {
        let stream = &grant.stream;
        assert_eq!(fixture.stored(stream).await, of(stream) as u64, "{stream}");
        let stream = fixture.jetstream.get_stream(stream).await.expect("a stream");
        let config = &stream.cached_info().config;
        let orders = (config.allow_rollup, config.allow_message_schedules, config.allow_message_ttl);
        assert_eq!(orders, (false, false, false), "{}", grant.stream);
    }
}

/// The broker drops a message whose id it has seen, whoever published the first.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_knows_the_id_of_anothers_request_does_not_suppress_it() {
    let fixture = Fixture::secured().await;
    let (chat, _) = connect(&fixture, "simple-chat").await;
    let (account, _) = connect(&fixture, "account").await;
    let of_account = |id: i32| {
        let mut request = user(id);
        request.subject = request.subject.replace(".test.", ".account.");
        request
    };
    let [bare, apart] = [of_account(1), of_account(2)];
    let (chat, jetstream) = (jetstream::new(chat), jetstream::new(account.clone()));
    for request in [&bare, &apart] {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert(contract::header::MESSAGE_ID, request.id.to_string());
        headers.insert(contract::header::REQUEST_ID, request.id.to_string());
        let forged = "memory.req.simple-chat.context.put.1";
        let sent = chat.publish_with_headers(forged, headers, "{}".into()).await.expect("a publish");
        assert!(!sent.await.expect("an acknowledgement").duplicate);
    }
    let (headers, body) = (bare.header_map(), bare.body.clone());
    let sent = jetstream.publish_with_headers(bare.subject.clone(), headers, body.into()).await;
    let acknowledged = sent.expect("a publish").await.expect("an acknowledgement");
    assert!(acknowledged.duplicate, "a request id in Nats-Msg-Id is shared with all services");

    let mut publisher = client::Publisher::new(account, client::PublisherOptions::default());
    let token = token::for_subject(&apart.subject.parse().expect("a subject"));
    for _ in 0..2 {
        publisher.send(apart.subject.clone(), apart.id, apart.body.clone().into(), Some(token.clone())).await;
    }
    let published = publisher.finish().await;
    assert_eq!((published.stored, published.duplicate), (1, 1), "{published:?}");
    let worker = fixture.run(ContextWriter);
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.lines("id FROM users WHERE id > 0").await, ["2"]);
    assert_eq!(fixture.lines("message_id FROM inbox").await, [apart.id.to_string()]);
    worker.stop().await.expect("a clean end");
}
