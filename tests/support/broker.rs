//! Clients of the broker that are somebody, and queries that they send.

use std::sync::{Arc, Mutex};

use async_nats::{Client, ConnectOptions, Event, HeaderMap, Message, Subscriber};
use serde_json::Value;
use testkit::{Fixture, eventually};
use uuid::Uuid;

/// What the server has refused a client, in lower case.
#[derive(Clone, Default)]
pub struct Refusals(Arc<Mutex<Vec<String>>>);

impl Refusals {
    /// All so far.
    pub fn list(&self) -> Vec<String> {
        self.0.lock().expect("a list").clone()
    }

    /// Waits until there are so many.
    pub async fn at_least(&self, count: usize) -> Vec<String> {
        eventually("the server refuses", async || Some(self.list()).filter(|list| list.len() >= count)).await
    }
}

/// A client with the key of this identity, and what the server refuses it.
pub async fn connect(fixture: &Fixture, identity: &str) -> (Client, Refusals) {
    let refusals = Refusals::default();
    let list = refusals.clone();
    let options = ConnectOptions::with_nkey(fixture.seed(identity))
        .custom_inbox_prefix(format!("_INBOX.{identity}"))
        .event_callback(move |event| {
            if let Event::ServerError(error) = event {
                list.0.lock().expect("a list").push(error.to_string().to_lowercase());
            }
            std::future::ready(())
        });
    (options.connect(fixture.nats.url()).await.expect("a connection"), refusals)
}

/// Sends a query and gives the subscription, below an inbox, on which its answer comes.
pub async fn send_query(
    client: &Client,
    subject: String,
    inbox: &str,
    headers: HeaderMap,
    body: String,
) -> Subscriber {
    let reply = format!("{inbox}.{}", Uuid::now_v7().simple());
    let answers = client.subscribe(reply.clone()).await.expect("a subscription");
    client.publish_with_reply_and_headers(subject, reply, headers, body.into()).await.expect("a query");
    answers
}

/// The code of an error, if an answer is one, and its body.
pub fn answer(message: &Message) -> (Option<String>, Value) {
    let code = message.headers.as_ref().and_then(|headers| headers.get("Nats-Service-Error-Code"));
    let body = serde_json::from_slice(&message.payload).expect("JSON");
    (code.map(|code| code.as_str().to_owned()), body)
}

/// Waits until a service of the broker can be discovered and what it reports of itself is as expected.
pub async fn discovered(client: &Client, service: &str, is_expected: impl Fn(&Value) -> bool) -> Value {
    eventually("the service can be discovered", async || {
        let found = client.request(format!("$SRV.INFO.{service}"), "".into()).await.ok()?;
        serde_json::from_slice::<Value>(&found.payload).ok().filter(|info| is_expected(info))
    })
    .await
}
