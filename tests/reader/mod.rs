//! A memory-reader and somebody who asks it.

use async_nats::{Client, HeaderMap};
use context_writer::ContextWriter;
use contract::{QUERIES, header};
use runtime::Readiness;
use serde_json::{Value, json};
use testkit::{CANARY, Fixture, context, eventually, request, session, user};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A memory-reader that runs in the test's process.
pub struct Reader {
    client: Client,
    stop: CancellationToken,
    task: JoinHandle<Result<(), memory_reader::RunError>>,
}

impl Reader {
    pub async fn start(fixture: &Fixture) -> Self {
        Self::start_with(fixture, fixture.settings.clone()).await
    }

    pub async fn start_with(fixture: &Fixture, settings: config::Settings) -> Self {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            memory_reader::run(&settings, Readiness::new(memory_reader::NAME), stopped).await
        });
        let client = fixture.jetstream.client();
        eventually("it can be found", async || {
            let found = client.request("$SRV.INFO.memory-reader", "".into()).await.ok()?;
            let info: Value = serde_json::from_slice(&found.payload).ok()?;
            (info["endpoints"].as_array()?.len() == QUERIES.len()).then_some(())
        })
        .await;
        Self { client, stop, task }
    }

    pub async fn end(self) {
        self.stop.cancel();
        self.task.await.expect("no panic").expect("a clean end");
    }

    /// Asks as the service `test`.
    pub async fn ask(&self, query: &str, user: i32, body: Value) -> Result<Value, (String, Value)> {
        self.ask_with(query, Some(&testkit::token::by(testkit::attack::key(), "test", user)), body, &[]).await
    }

    /// The answer; or the code and the body of the refusal.
    pub async fn ask_with(
        &self,
        query: &str,
        token: Option<&str>,
        body: Value,
        headers: &[(&str, &str)],
    ) -> Result<Value, (String, Value)> {
        self.ask_as("test", query, token, body, headers).await
    }

    /// The same of another service.
    pub async fn ask_as(
        &self,
        service: &str,
        query: &str,
        token: Option<&str>,
        body: Value,
        headers: &[(&str, &str)],
    ) -> Result<Value, (String, Value)> {
        let mut map = HeaderMap::new();
        if let Some(token) = token {
            map.insert(header::AUTHORIZATION, header::bearer(token));
        }
        for (name, value) in headers {
            map.insert(*name, *value);
        }
        let reply = format!("_INBOX.{service}.{}", Uuid::now_v7().simple());
        let mut answers = self.client.subscribe(reply.clone()).await.expect("a subscription");
        let subject = format!("memory.ask.{query}.{service}");
        let body = body.to_string().into();
        self.client.publish_with_reply_and_headers(subject, reply, map, body).await.expect("a query");
        let answer = testkit::next(&mut answers).await;
        let value: Value = serde_json::from_slice(&answer.payload).expect("JSON");
        match answer.headers.as_ref().and_then(|headers| headers.get("Nats-Service-Error-Code")) {
            Some(code) => Err((code.as_str().to_owned(), value)),
            None => Ok(value),
        }
    }
}

/// Sessions and contexts of two users.
#[allow(dead_code, reason = "tests of searches fill in their own")]
pub async fn filled() -> Fixture {
    let fixture = Fixture::new().await;
    let mut requests = vec![user(1), user(2)];
    for id in [1, 2] {
        requests.extend((0..5).map(|n| session(id, &format!("s{n}"))));
        requests.push(request("session.close", id, json!({ "session_id": "s1" })));
        requests.extend((0..7).map(|n| context(id, "s0", &format!("k{n}"), 1)));
        requests.push(request(
            "context.remove",
            id,
            json!({ "session_id": "s0", "context_key": "k6", "version": 2 }),
        ));
        requests.push(request(
            "context.put",
            id,
            json!({ "session_id": "s0", "context_key": "old", "context_value": 1, "version": 1,
            "expires_at": "2020-01-01T00:00:00Z" }),
        ));
        requests.push(request(
            "context.put",
            id,
            json!({ "session_id": "s0", "context_key": "like.tea", "context_value": ["green"],
            "version": 1, "context_type": "preference", "access_level": "shared" }),
        ));
        requests.push(request(
            "context.put",
            id,
            json!({ "session_id": "s0", "context_key": "pin", "context_value": { "pin": CANARY },
            "version": 1, "sensitive": true }),
        ));
    }
    fixture.carry(ContextWriter, requests).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    fixture
}
