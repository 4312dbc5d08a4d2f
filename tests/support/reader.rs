//! A memory-reader and somebody who asks it.

use async_nats::{Client, HeaderMap};
use context_writer::ContextWriter;
use contract::{QUERIES, header};
use runtime::Readiness;
use serde_json::{Value, json};
use testkit::{CANARY, Fixture, context, request, session, user};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::broker::{answer, discovered, send_query};

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
        discovered(&client, "memory-reader", |info| {
            info["endpoints"].as_array().is_some_and(|endpoints| endpoints.len() == QUERIES.len())
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
        self.ask_with(
            query,
            Some(&testkit::token::with_grant_key(testkit::attack::grant_key(), "test", user)),
            body,
            &[],
        )
        .await
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
        let (subject, inbox) = (format!("memory.ask.{query}.{service}"), format!("_INBOX.{service}"));
        let mut answers = send_query(&self.client, subject, &inbox, map, body.to_string()).await;
        match answer(&testkit::next(&mut answers).await) {
            (Some(code), value) => Err((code, value)),
            (None, value) => Ok(value),
        }
    }
}

/// Sessions and contexts of two users.
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
    fixture.process(ContextWriter, requests).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    fixture
}
