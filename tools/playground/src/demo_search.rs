//! The natural-language searches that `memfleet demo` runs at the end.

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

/// Users and their queries. A query shares at most one word with its answer, so that only semantic search finds it.
const QUERIES: [(i32, &str); 3] = [
    (1, "Which disease do my vegetables have?"),
    (2, "What is broken on my bicycle?"),
    (3, "Which evening do I learn a foreign tongue?"),
];
/// The service that sends the queries.
const SERVICE: &str = "simple-chat";
/// Number of memories shown of each answer.
const SHOWN: usize = 3;

/// A query and its answer.
pub struct Searched {
    /// The user whose memories were searched.
    pub user: i32,
    /// The query text.
    pub query: &'static str,
    /// The search results.
    pub answer: SearchAnswer,
    took: Duration,
}

/// Runs the queries as a chat service would.
///
/// # Errors
/// If a query fails.
pub async fn run_searches(settings: &Settings) -> anyhow::Result<Vec<Searched>> {
    let connection = broker::connect(&settings.nats, SERVICE).await?;
    let options = ClientOptions::new(&settings.nats.url, SERVICE.parse().context("invalid service name")?);
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
    /// Prints the query and its results.
    pub fn show(&self) {
        let mut table = Table::new([
            ("score", Align::Right),
            ("cosine", Align::Right),
            ("words", Align::Right),
            ("speaker", Align::Left),
            ("text", Align::Left),
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
