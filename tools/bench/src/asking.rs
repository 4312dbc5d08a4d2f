//! Sends `search.similar` queries with given vectors over NATS.

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

/// The service that publishes and sends queries: a shipped one with all scopes of memories.
pub(super) const SERVICE: &str = "simple-chat";
/// Time limit for memory-reader to answer its first query.
const START_WITHIN: Duration = Duration::from_secs(60);

/// A vector and its model, as in requests and queries.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Ready<'a> {
    pub(super) model: &'a str,
    pub(super) vector: &'a [f32],
}

/// A search by vector only. Unlike [`SearchSimilar`], it borrows the vector.
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

/// Sends queries as a chat service does.
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

    /// The results, and the milliseconds from query to answer.
    pub(super) async fn search(
        &self,
        user: i32,
        similar: &Similar<'_>,
    ) -> anyhow::Result<(SearchAnswer, f64)> {
        let body = serde_json::to_vec(similar).context("cannot serialize a query")?;
        let token = self.tokens.of_holder(&self.service, UserId::new(user)?).await?;
        let token = token.context("the keys to issue tokens are not configured")?;
        let (kind, options) = (SearchSimilar::KIND, QueryOptions::default());
        let started = Instant::now();
        let answer = ask(&self.client, &self.service, kind, &token, &options, body.into()).await?;
        Ok((answer, started.elapsed().as_secs_f64() * 1_000.0))
    }

    /// Waits until memory-reader answers.
    pub(super) async fn until_answered(&self, user: i32, similar: &Similar<'_>) -> anyhow::Result<()> {
        let since = Instant::now();
        while let Err(error) = self.search(user, similar).await {
            ensure!(since.elapsed() < START_WITHIN, "memory-reader does not answer: {error:#}");
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}
