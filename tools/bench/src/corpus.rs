//! Deterministic context messages of about 1 KB, as a chat service sends them.

use bytes::Bytes;
use fastrand::Rng;
use serde_json::{Value, json};
use uuid::Uuid;

use super::bulk::Prepared;

/// The first user of the benchmark.
const FIRST_USER: i32 = 2_000_000_001;
const USERS: i32 = 200;
const SESSIONS_OF_A_USER: i32 = 5;
/// Percentage of messages that update a key of the same run.
const UPDATES: u8 = 25;
/// Approximate size of a body, in bytes.
const BODY_BYTES: usize = 1_000;

const TOOLS: [&str; 5] = ["search", "calendar", "booking", "maps", "calculator"];
const WORDS: [&str; 24] = [
    "reservation",
    "window",
    "train",
    "dinner",
    "quiet",
    "museum",
    "evening",
    "allergy",
    "budget",
    "northern",
    "platform",
    "breakfast",
    "umbrella",
    "weekend",
    "ticket",
    "museum pass",
    "vegetarian",
    "return trip",
    "aisle seat",
    "late arrival",
    "river view",
    "two adults",
    "concert",
    "harbour",
];

/// Generates messages. No two runs share a key.
pub(super) struct Corpus {
    random: Rng,
    run: u32,
    /// Percentage of messages marked sensitive.
    sensitive: u8,
}

impl Corpus {
    pub(super) fn new() -> Self {
        Self { random: Rng::with_seed(7), run: 0, sensitive: 0 }
    }

    /// Sets the percentage of further messages that are marked sensitive.
    pub(super) fn mark(&mut self, sensitive: u8) {
        self.sensitive = sensitive;
    }

    /// Requests that create the users and their sessions.
    pub(super) fn accounts(&self) -> Vec<Prepared> {
        let mut requests = Vec::new();
        for user in FIRST_USER..FIRST_USER + USERS {
            let account =
                json!({ "username": format!("bench{user}"), "email": format!("{user}@example.org") });
            requests.push(request("user.put", user, &account.to_string()));
            for session in 0..SESSIONS_OF_A_USER {
                let open = json!({ "session_id": format!("bench-{session}"), "chat_mode": "simple" });
                requests.push(request("session.open", user, &open.to_string()));
            }
        }
        requests
    }

    /// The messages of one run.
    pub(super) fn messages(&mut self, count: usize) -> Vec<Prepared> {
        self.run += 1;
        let mut keys: Vec<(i32, i32, i64)> = Vec::new();
        (0..count)
            .map(|_| {
                let updates = !keys.is_empty() && self.random.u8(0..100) < UPDATES;
                let key = if updates { self.random.usize(..keys.len()) } else { keys.len() };
                if !updates {
                    let user = FIRST_USER + self.random.i32(0..USERS);
                    keys.push((user, self.random.i32(0..SESSIONS_OF_A_USER), 0));
                }
                let (user, session, version) = keys.get_mut(key).map_or((FIRST_USER, 0, 1), |known| {
                    known.2 += 1;
                    *known
                });
                let body = self.body(session, key, version);
                request("context.put", user, &body)
            })
            .collect()
    }

    /// Decisions of one run, of about 1 KB.
    pub(super) fn decisions(&mut self, count: usize) -> Vec<Prepared> {
        (0..count)
            .map(|number| {
                let user = FIRST_USER + self.random.i32(0..USERS);
                let tools: Vec<&str> = (0..self.random.u8(0..4)).filter_map(|_| self.random.choice(TOOLS)).collect();
                let why = self.value(number as i64);
                let body = json!({
                    "decision_id": Uuid::now_v7(),
                    "session_id": format!("bench-{}", self.random.i32(0..SESSIONS_OF_A_USER)),
                    "user_request": "Find a quiet place for dinner, then the last train home.",
                    "routing_decision": { "route": self.random.choice(["direct", "tools", "expert"]), "because": why },
                    "tools_invoked": tools,
                    "complexity_score": self.random.f64(),
                    "confidence_score": self.random.f64(),
                    "processing_time_ms": self.random.u32(5..5_000),
                    "tokens_used": self.random.u32(50..2_000),
                    "model_used": self.random.choice(["small", "large"]),
                    "success": self.random.u8(0..20) > 0,
                });
                request("decision.log", user, &body.to_string())
            })
            .collect()
    }

    /// A value of about 700 bytes.
    pub(super) fn value(&mut self, turn: i64) -> Value {
        let mut notes: Vec<String> = Vec::new();
        let mut length = 300;
        while length < BODY_BYTES {
            let note: Vec<&str> = (0..6).filter_map(|_| self.random.choice(WORDS)).collect();
            length += note.join(" ").len() + 3;
            notes.push(note.join(" "));
        }
        json!({
            "intent": "plan_trip", "confidence": self.random.f64(), "turn": turn, "notes": notes,
            "slots": { "party": self.random.u8(1..9), "city": self.random.choice(WORDS), "paid": false },
        })
    }

    /// A text of about twenty words, unique for each number.
    pub(super) fn text(&mut self, number: usize) -> String {
        let words: Vec<&str> = (0..20).filter_map(|_| self.random.choice(WORDS)).collect();
        format!("{} {number}", words.join(" "))
    }

    fn body(&mut self, session: i32, key: usize, version: i64) -> String {
        let sensitive = self.random.u8(0..100) < self.sensitive;
        json!({
            "session_id": format!("bench-{session}"),
            "context_key": format!("run{}.topic.{key}", self.run),
            "context_value": self.value(version),
            "context_type": "state",
            "access_level": "shared",
            "priority": 3,
            "version": version,
            "is_persistent": false,
            "sensitive": sensitive,
        })
        .to_string()
    }
}

fn request(kind: &str, user: i32, body: &str) -> Prepared {
    Prepared {
        subject: format!("memory.req.bench.{kind}.{user}"),
        id: Uuid::now_v7(),
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}
