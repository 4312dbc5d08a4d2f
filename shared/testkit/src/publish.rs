use async_nats::HeaderMap;
use contract::header;
use serde_json::{Value, json};
use uuid::Uuid;

/// A request as a publisher sends it.
#[derive(Clone, Debug)]
pub struct Published {
    /// Where.
    pub subject: String,
    /// Its request id.
    pub id: Uuid,
    /// Further headers.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Published {
    /// The same with a header.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    /// The headers on the wire.
    pub fn header_map(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::MESSAGE_ID, self.id.to_string());
        for (name, value) in &self.headers {
            headers.insert(*name, value.as_str());
        }
        headers
    }
}

/// A request of the service `test` with a fresh id: `request("context.put", 42, json!({…}))`.
pub fn request(kind: &str, user: i32, body: Value) -> Published {
    Published {
        subject: format!("memory.req.test.{kind}.{user}"),
        id: Uuid::now_v7(),
        headers: Vec::new(),
        body: body.to_string().into_bytes(),
    }
}

/// A request that makes a user known.
pub fn user(id: i32) -> Published {
    let body = json!({ "username": format!("user{id}"), "email": format!("user{id}@example.org") });
    request("user.put", id, body)
}

/// A request that opens a session.
pub fn session(user: i32, id: &str) -> Published {
    request("session.open", user, json!({ "session_id": id, "chat_mode": "simple" }))
}

/// A request that puts a context, whose value tells its version.
pub fn context(user: i32, session: &str, key: &str, version: i64) -> Published {
    let value = json!({ "v": version });
    let body =
        json!({ "session_id": session, "context_key": key, "context_value": value, "version": version });
    request("context.put", user, body)
}
