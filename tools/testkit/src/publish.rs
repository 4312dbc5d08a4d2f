use async_nats::HeaderMap;
use contract::{RequestSubject, header};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::secrets::CANARY;
use crate::token;

/// A request as a publisher sends it.
#[derive(Clone, Debug)]
pub struct RequestMessage {
    /// Its subject.
    pub subject: String,
    /// Its request id.
    pub id: Uuid,
    /// Further headers.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// Whether a valid token is added, if there is no such header yet.
    pub has_token: bool,
}

impl RequestMessage {
    /// Adds a header.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    /// Changes the body.
    #[must_use]
    pub fn map_body(mut self, change: impl FnOnce(String) -> String) -> Self {
        self.body = change(String::from_utf8_lossy(&self.body).into_owned()).into_bytes();
        self
    }

    /// Replaces the service token.
    #[must_use]
    pub fn with_token(self, token: &str) -> Self {
        self.with(header::AUTHORIZATION, header::bearer(token))
    }

    /// Encrypts the body under a key of [`PAYLOAD_RING`](crate::PAYLOAD_RING), such as `test.1`.
    #[must_use]
    #[allow(clippy::expect_used, clippy::missing_panics_doc, reason = "a failure here is one of the test")]
    pub fn encrypted(mut self, key_id: &str) -> Self {
        let ring = trust::KeyRing::parse(&crate::PAYLOAD_RING.to_owned().into()).expect("a ring");
        let (name, version) = trust::parse_key_id(key_id).expect("an id of a key");
        let aad = trust::AssociatedData::Payload { subject: &self.subject };
        self.body = ring.get(name, version).expect("a key").seal(&self.body, aad).expect("a ciphertext");
        self.with(header::ENCRYPTION, key_id)
    }

    /// Sends it without a service token.
    #[must_use]
    pub fn without_token(self) -> Self {
        Self { has_token: false, ..self }
    }

    /// All headers.
    pub fn header_map(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::MESSAGE_ID, self.id.to_string());
        if self.has_token
            && let Ok(subject) = self.subject.parse::<RequestSubject>()
        {
            headers.insert(header::AUTHORIZATION, header::bearer(&token::for_subject(&subject)));
        }
        for (name, value) in &self.headers {
            headers.insert(*name, value.as_str());
        }
        headers
    }
}

/// A request of the service `test` with a fresh id: `request("context.put", 42, json!({…}))`.
pub fn request(kind: &str, user: i32, body: Value) -> RequestMessage {
    RequestMessage {
        subject: format!("memory.req.test.{kind}.{user}"),
        id: Uuid::now_v7(),
        headers: Vec::new(),
        body: body.to_string().into_bytes(),
        has_token: true,
    }
}

/// A request that stores a user.
pub fn user(id: i32) -> RequestMessage {
    let body = json!({ "username": format!("user{id}"), "email": format!("user{id}@example.org") });
    request("user.put", id, body)
}

/// A request that opens a session.
pub fn session(user: i32, id: &str) -> RequestMessage {
    request("session.open", user, json!({ "session_id": id, "chat_mode": "simple" }))
}

/// A request that stores a context, whose value is its version.
pub fn context(user: i32, session: &str, key: &str, version: i64) -> RequestMessage {
    let value = json!({ "v": version });
    let body =
        json!({ "session_id": session, "context_key": key, "context_value": value, "version": version });
    request("context.put", user, body)
}

/// For one user, a request for every table that context-writer writes, ordered so that prerequisites come first.
pub fn requests_for_all_tables(user: i32) -> Vec<RequestMessage> {
    let message = Uuid::now_v7();
    vec![
        request("user.put", user, json!({ "username": "u", "email": "u@example.org" })),
        request("profile.put", user, json!({ "first_name": "U" })),
        request("setting.put", user, json!({ "setting_key": "k", "setting_value": 1 })),
        request(
            "device.put",
            user,
            json!({ "device_id": Uuid::now_v7(), "device_name": "d", "device_type": "phone", "security_level": "basic" }),
        ),
        request(
            "second-factor.put",
            user,
            json!({ "method": "totp", "secret_key": CANARY, "is_enabled": true }),
        ),
        request("passkey.put", user, json!({ "credential_id": "c", "public_key": CANARY })),
        request("session.open", user, json!({ "session_id": "s", "chat_mode": "simple" })),
        request(
            "context.put",
            user,
            json!({ "session_id": "s", "context_key": "k", "context_value": 1, "version": 1 }),
        ),
        request("summary.put", user, json!({ "session_id": "s", "summary": "x" })),
        request("conversation.put", user, json!({ "conversation_id": "c" })),
        request(
            "message.add",
            user,
            json!({ "conversation_id": "c", "message_id": message, "role": "user", "content": "x" }),
        ),
        request(
            "feedback.put",
            user,
            json!({ "message_id": message, "feedback_type": "rating", "rating": 1 }),
        ),
        request(
            "agent-context.put",
            user,
            json!({ "agent_id": "a", "session_id": "s", "memory_tier": "private", "context_key": "k", "context_value": 1, "version": 1 }),
        ),
    ]
}
