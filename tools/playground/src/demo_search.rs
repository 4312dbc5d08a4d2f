//! The searches that `memfleet demo` runs at the end, in plain words.

use std::time::{Duration, Instant};

use anyhow::Context;
use cli::outln;
use cli::table::{Align, Table};
use cli::tokens::Tokens;
use client::{Client, ClientOptions};
use config::Settings;
use contract::{SearchAnswer, SearchHit, SearchSimilar};
use runtime::broker;
use serde_json::json;

/// Users and what they search for. No query shares more than one word with its answer.
const QUERIES: [(i32, &str); 3] = [
    (1, "Which disease do my vegetables have?"),
    (2, "What is broken on my bicycle?"),
    (3, "Which evening do I learn a foreign tongue?"),
];
/// The service that asks.
const SERVICE: &str = "simple-chat";
/// How many memories of each answer are shown.
const SHOWN: usize = 3;

/// A query and what it found.
pub struct Searched {
    /// Whose memory was asked.
    pub user: i32,
    /// What was asked.
    pub query: &'static str,
    /// What was found.
    pub answer: SearchAnswer,
    took: Duration,
}

/// Asks them, as a chat service would.
///
/// # Errors
/// If one is not answered.
pub async fn searched(settings: &Settings) -> anyhow::Result<Vec<Searched>> {
    let connection = broker::connect(&settings.nats, SERVICE).await?;
    let options = ClientOptions::new(&settings.nats.url, SERVICE.parse().context("a service")?);
    let tokens = Tokens::open(settings, None).await?.of_service(options.service.clone());
    let client = Client::over(connection, tokens, &options)?;
    let mut all = Vec::with_capacity(QUERIES.len());
    for (user, query) in QUERIES {
        let search: SearchSimilar = serde_json::from_value(json!({ "text": query, "limit": SHOWN }))?;
        let memory = client.user(user);
        memory.authorize().await?;
        let since = Instant::now();
        let answer = memory.query(search).await?;
        all.push(Searched { user, query, answer, took: since.elapsed() });
    }
    Ok(all)
}

impl Searched {
    /// Prints it.
    pub fn show(&self) {
        let mut table = Table::new([
            ("score", Align::Right),
            ("cosine", Align::Right),
            ("words", Align::Right),
            ("who", Align::Left),
            ("what was said", Align::Left),
        ]);
        let number = |part: Option<f64>| part.map_or_else(|| "-".to_owned(), |part| format!("{part:.2}"));
        for hit in self.answer.hits.iter().take(SHOWN) {
            let SearchHit { score, parts, speaker, content_text, .. } = hit;
            let said: String = content_text.chars().take(76).collect();
            let cut = if said.len() < content_text.len() { "…" } else { "" };
            table.row([
                format!("{score:.3}"),
                number(parts.cosine),
                number(parts.fulltext),
                speaker.clone().unwrap_or_default(),
                format!("{said}{cut}"),
            ]);
        }
        let Self { user, query, took, .. } = self;
        outln!("User {user}: “{query}” ({} ms)\n\n{table}", took.as_millis());
    }
}
