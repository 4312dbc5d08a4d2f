//! The client of a service, against real servers with accounts.

use std::path::PathBuf;
use std::time::Duration;

use client::{Client, ClientError, ClientOptions};
use context_writer::ContextWriter;
use contract::{ContextGet, ContextPut, OutcomeStatus, QueryErrorCode, SessionList, SessionOpen, UserPut};
use runtime::{Readiness, RunError};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use testkit::{Fixture, RunningWorker, eventually};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// context-writer, memory-reader and token-issuer in the test's process.
struct Workers {
    writer: RunningWorker,
    stop: CancellationToken,
    reader: JoinHandle<Result<(), memory_reader::RunError>>,
    issuer: JoinHandle<Result<(), token_issuer::RunError>>,
}

impl Workers {
    async fn start(fixture: &Fixture) -> Self {
        let stop = CancellationToken::new();
        let (settings, stopped) = (fixture.settings.clone(), stop.clone());
        let reader = tokio::spawn(async move {
            memory_reader::run(&settings, Readiness::new(memory_reader::NAME), stopped).await
        });
        let (settings, stopped) = (fixture.settings.clone(), stop.clone());
        let issuer = tokio::spawn(async move {
            let readiness = Readiness::new(token_issuer::NAME);
            token_issuer::run(testkit::token::issuer(), &settings, readiness, stopped).await
        });
        for name in [memory_reader::NAME, token_issuer::NAME] {
            eventually("it can be found", async || {
                let asked = fixture.jetstream.client().request(format!("$SRV.INFO.{name}"), "".into()).await;
                let info: Value = serde_json::from_slice(&asked.ok()?.payload).ok()?;
                (!info["endpoints"].as_array()?.is_empty()).then_some(())
            })
            .await;
        }
        Self { writer: fixture.run(ContextWriter), stop, reader, issuer }
    }

    async fn stop(self) -> Result<(), RunError> {
        self.stop.cancel();
        self.reader.await.expect("no panic").expect("a clean end");
        self.issuer.await.expect("no panic").expect("a clean end");
        self.writer.stop().await
    }
}

fn options(fixture: &Fixture, service: &str) -> ClientOptions {
    let nkey_file = fixture.settings.nats.nkey_file.as_ref();
    ClientOptions {
        nkey_file: nkey_file.map(|file| PathBuf::from(file.replace("{name}", service))),
        ..ClientOptions::new(&fixture.settings.nats.url, service.parse().unwrap())
    }
}

fn from<T: DeserializeOwned>(body: Value) -> T {
    serde_json::from_value(body).expect("a request or a query")
}

fn account() -> UserPut {
    from(json!({ "username": "ada", "email": "ada@example.org" }))
}

fn open(session: &str) -> SessionOpen {
    from(json!({ "session_id": session, "chat_mode": "simple" }))
}

fn put(version: i64) -> ContextPut {
    from(json!({ "session_id": "s", "context_key": "k", "context_value": version, "version": version }))
}

fn get() -> ContextGet {
    from(json!({ "session_id": "s", "context_key": "k" }))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_is_committed_and_can_be_queried() {
    let fixture = Fixture::secured().await;
    fixture.register("simple-chat", "user:put session:* context:*").await;
    let workers = Workers::start(&fixture).await;
    let key_file = fixture.key_file("service.ring", testkit::PAYLOAD_RING);
    let options =
        ClientOptions { payload_ring_file: Some(key_file.into()), ..options(&fixture, "simple-chat") };
    let client = Client::connect(options).await.expect("a connection");
    let ada = client.user(42);
    for status in [
        ada.send(account()).await.unwrap().status,
        ada.send(open("s")).await.unwrap().status,
        ada.send(put(2)).await.unwrap().status,
    ] {
        assert_eq!(status, OutcomeStatus::Applied);
    }
    let older = ada.send(put(1)).await.unwrap();
    assert_eq!(older.status, OutcomeStatus::Unchanged);
    assert!(older.reason.is_some(), "{older:?}");
    let answer = ada.query(get()).await.unwrap();
    assert_eq!(serde_json::to_value(&answer).unwrap()["context"]["context_value"], 2);
    // Another user of the same service has a token, and a memory, of their own.
    let none = client.user(43).query(get()).await.unwrap_err();
    assert!(
        matches!(&none, ClientError::Refused(refusal) if refusal.code == QueryErrorCode::NotFound),
        "{none}"
    );
    // Without waiting for the outcome.
    let id = ada.publish(put(3)).await.unwrap();
    fixture.drained::<ContextWriter>().await;
    assert_eq!(
        fixture.lines("context_value FROM simple_chat_context").await,
        ["3"],
        "the request {id} is committed"
    );
    // Several at a time, each with its own outcome.
    let sessions = ["a", "b", "c", "d"].map(|session| ada.send(open(session)));
    for outcome in futures::future::join_all(sessions).await {
        assert_eq!(outcome.unwrap().status, OutcomeStatus::Applied);
    }
    let page = ada.query::<SessionList>(from(json!({}))).await.unwrap();
    assert_eq!(page.sessions.len(), 5);
    let issued = fixture.count("cross_service_auth").await;
    assert_eq!(issued, 2, "one token for each user");
    let nobody = client.user(-1).send(open("s")).await.unwrap_err();
    assert!(matches!(nobody, ClientError::UserId(-1)), "{nobody}");
    workers.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_without_the_scope_is_refused() {
    let fixture = Fixture::secured().await;
    fixture.register("simple-chat", "user:put session:open").await;
    let workers = Workers::start(&fixture).await;
    let client = Client::connect(options(&fixture, "simple-chat")).await.expect("a connection");
    let ada = client.user(42);
    ada.send(account()).await.unwrap();
    ada.send(open("s")).await.unwrap();
    let rejected = ada.send(put(1)).await.unwrap_err();
    // Only the operator learns why.
    let is_rejected = matches!(&rejected, ClientError::Rejected { reason, .. } if reason == "denied");
    assert!(is_rejected, "{rejected}");
    let refused = ada.query(get()).await.unwrap_err();
    assert!(
        matches!(&refused, ClientError::Refused(refusal) if refusal.code == QueryErrorCode::Denied),
        "{refused}"
    );
    // The broker knows this service, and the registry does not.
    fixture.execute("DELETE FROM sec.services WHERE service = 'smart-router'").await;
    let client = Client::connect(options(&fixture, "smart-router")).await.expect("a connection");
    let unknown = client.user(42).send(open("s")).await.unwrap_err();
    assert!(matches!(&unknown, ClientError::Token(problem) if problem.contains("smart-router")), "{unknown}");
    workers.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_outcome_is_reported_as_such_and_the_request_is_kept() {
    let fixture = Fixture::secured().await;
    let token = testkit::token::with_grant_key(testkit::attack::grant_key(), "simple-chat", 42);
    let options =
        ClientOptions { outcome_timeout: Duration::from_millis(300), ..options(&fixture, "simple-chat") };
    let connection = runtime::broker::connect(&fixture.settings.nats, "simple-chat").await.unwrap();
    // No worker runs.
    let client = Client::over(connection, token, &options).unwrap();
    let late = client.user(42).send(account()).await.unwrap_err();
    assert!(
        matches!(late, ClientError::NoOutcome { waited, .. } if waited == options.outcome_timeout),
        "{late}"
    );
    assert!(late.to_string().contains("(timed out)"), "{late}");
    assert_eq!(fixture.stored("CONTEXT").await, 1);
    let nobody = client.user(42).query(get()).await.unwrap_err();
    assert!(matches!(nobody, ClientError::NoAnswer { .. }), "{nobody}");
}
