//! Asks `search.similar` over NATS, with a vector that is ready.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use async_nats::Client;
use cli::tokens::Tokens;
use client::{QueryOptions, ask};
use config::Settings;
use contract::{QueryType, SearchAnswer, SearchSimilar, Service, UserId};
use runtime::broker;
use serde::Serialize;
use tokio::time::sleep;

/// The service that publishes and asks. It is shipped, and may do everything with memories.
pub(super) const SERVICE: &str = "simple-chat";
/// How long memory-reader may take to appear.
const START_WITHIN: Duration = Duration::from_secs(60);

/// A vector and its model, as requests and queries bring them.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Ready<'a> {
    pub(super) model: &'a str,
    pub(super) vector: &'a [f32],
}

/// A search by the vector alone. Unlike [`SearchSimilar`] it borrows the vector.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Similar<'a> {
    embedding: Ready<'a>,
    mode: &'static str,
    exact: bool,
    limit: u32,
}

impl<'a> Similar<'a> {
    pub(super) fn new(embedding: Ready<'a>, exact: bool, limit: u32) -> Self {
        Self { embedding, mode: "vector", exact, limit }
    }
}

/// Asks as a chat service does.
pub(super) struct Asker {
    client: Client,
    tokens: Tokens,
    service: Service,
}

impl Asker {
    pub(super) async fn open(settings: &Settings) -> anyhow::Result<Self> {
        let client = broker::connect_operator(&settings.nats, "bench-search").await?;
        let tokens = Tokens::open(settings, None).await?;
        Ok(Self { client, tokens, service: SERVICE.parse()? })
    }

    /// What was found, and how many milliseconds it took from the query to the answer.
    pub(super) async fn search(
        &self,
        user: i32,
        similar: &Similar<'_>,
    ) -> anyhow::Result<(SearchAnswer, f64)> {
        let body = serde_json::to_vec(similar).context("a query cannot be written")?;
        let token = self.tokens.of_holder(&self.service, UserId::new(user)?).await?;
        let token = token.context("the keys of tokens are not set")?;
        let (kind, options) = (SearchSimilar::KIND, QueryOptions::default());
        let started = Instant::now();
        let answer = ask(&self.client, &self.service, kind, &token, &options, body.into()).await?;
        Ok((answer, started.elapsed().as_secs_f64() * 1_000.0))
    }

    /// Waits for memory-reader.
    pub(super) async fn until_answered(&self, user: i32, similar: &Similar<'_>) -> anyhow::Result<()> {
        let since = Instant::now();
        while let Err(error) = self.search(user, similar).await {
            ensure!(since.elapsed() < START_WITHIN, "memory-reader does not answer: {error:#}");
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}
