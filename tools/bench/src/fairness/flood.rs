//! The service that floods.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use async_nats::jetstream;
use bytes::Bytes;
use clap::ValueEnum;
use client::{QueryOptions, query_headers};
use config::Settings;
use context_writer::ContextWriter;
use contract::{ContextGet, QueryType, Service, UserId, WorkerInfo};
use futures::StreamExt;
use runtime::ExternalWorker;
use serde_json::json;
use tokio::time::{sleep, timeout};
use uuid::Uuid;
use vector_indexer::VectorIndexer;

use super::neighbour::Action;
use super::{FLOODING, USERS};
use crate::bulk::{Bulk, Prepared};
use crate::index::{SESSION, accounts};

/// What floods the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Flood {
    /// Queries with a token that nobody has signed.
    BadTokens,
    /// Contexts of nearly 1 MB.
    LargeContexts,
    /// Small contexts.
    SmallContexts,
    /// Requests of nearly 1 MB whose body is no JSON. They fill the stream of dead letters.
    Malformed,
    /// Texts of nearly 1 MB to index.
    Index,
    /// A few texts to index, each too small to be processed apart.
    FewTexts,
}

impl Flood {
    pub(super) const ALL: [Self; 6] = [
        Self::BadTokens,
        Self::LargeContexts,
        Self::SmallContexts,
        Self::Malformed,
        Self::Index,
        Self::FewTexts,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::BadTokens => "bad-tokens",
            Self::LargeContexts => "large-contexts",
            Self::SmallContexts => "small-contexts",
            Self::Malformed => "malformed",
            Self::Index => "index",
            Self::FewTexts => "few-texts",
        }
    }

    /// What the neighbour does meanwhile: something for the same worker.
    pub(super) fn action(self) -> Action {
        match self {
            Self::BadTokens => Action::Ask,
            Self::LargeContexts | Self::SmallContexts | Self::Malformed => Action::Put,
            Self::Index | Self::FewTexts => Action::Index,
        }
    }

    /// The number of messages of its full size.
    fn messages(self) -> u32 {
        match self {
            Self::BadTokens => 8_000,
            Self::LargeContexts => 150,
            Self::SmallContexts => 10_000,
            Self::Malformed => 2_150,
            Self::Index => 2,
            Self::FewTexts => 15,
        }
    }

    fn worker(self) -> Option<&'static WorkerInfo> {
        match self {
            Self::BadTokens => None,
            Self::LargeContexts | Self::SmallContexts | Self::Malformed => Some(ContextWriter::INFO),
            Self::Index | Self::FewTexts => Some(VectorIndexer::INFO),
        }
    }
}

/// Pieces of text of a large message, and the characters of each: what a request may hold at most.
const PIECES: usize = 90;
const PIECE: usize = 10_000;
/// How long a flood may take to be worked off.
const WORKED_OFF_WITHIN: Duration = Duration::from_secs(600);
/// How long the workers may take to start.
pub(super) const STARTED_WITHIN: Duration = Duration::from_secs(60);
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(20);

pub(super) struct Flooder {
    bulk: Bulk,
    service: Service,
}

impl Flooder {
    pub(super) async fn open(settings: &Settings) -> anyhow::Result<Self> {
        Ok(Self { bulk: Bulk::open(settings).await?, service: FLOODING.parse()? })
    }

    /// Creates the accounts and a session of each, and waits until the workers have written them.
    pub(super) async fn create_sessions(&self, users: i32) -> anyhow::Result<()> {
        self.bulk.publish(accounts(users)).await?;
        self.settled(ContextWriter::INFO, STARTED_WITHIN).await
    }

    /// Sends the flood, and returns when it is worked off.
    pub(super) async fn send(&self, flood: Flood, percent: u32) -> anyhow::Result<()> {
        let count = (flood.messages() * percent / 100).max(1);
        match flood {
            Flood::BadTokens => return self.ask(count).await,
            Flood::LargeContexts
            | Flood::SmallContexts
            | Flood::Malformed
            | Flood::Index
            | Flood::FewTexts => {}
        }
        self.bulk.publish((0..count).map(|number| message(flood, number))).await?;
        self.worked_off(flood).await
    }

    /// Waits until nothing of a flood is left.
    pub(super) async fn worked_off(&self, flood: Flood) -> anyhow::Result<()> {
        match flood.worker() {
            Some(worker) => self.settled(worker, WORKED_OFF_WITHIN).await,
            None => Ok(()),
        }
    }

    async fn settled(&self, worker: &WorkerInfo, within: Duration) -> anyhow::Result<()> {
        let (jetstream, since) = (jetstream::new(self.bulk.client().clone()), Instant::now());
        let stream = worker.stream.context("the worker has no stream")?;
        let consumer: jetstream::consumer::PullConsumer =
            jetstream.get_consumer_from_stream(worker.name, stream).await?;
        loop {
            let info = consumer.get_info().await?;
            if info.num_pending == 0 && info.num_ack_pending == 0 {
                return Ok(());
            }
            ensure!(since.elapsed() < within, "{} is not done after {within:?}", worker.name);
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Sends queries with a bad token, without waiting for an answer before the next one.
    async fn ask(&self, count: u32) -> anyhow::Result<()> {
        let (client, kind) = (self.bulk.client(), ContextGet::KIND);
        let token = self.bulk.tokens().of_holder(&self.service, UserId::new(USERS[0])?).await?;
        let mut token = token.context("the keys to issue tokens are not configured")?;
        // The signature is the last part.
        let last = token.pop().context("the token is empty")?;
        token.pop();
        token.extend([if last == 'A' { 'B' } else { 'A' }, last]);
        let inbox = format!("_INBOX.{}.{}", self.service, Uuid::now_v7().simple());
        let mut answers = client.subscribe(inbox.clone()).await?;
        let body = Bytes::from(json!({ "session_id": SESSION, "context_key": "quiet" }).to_string());
        for _ in 0..count {
            let headers = query_headers(&token, &QueryOptions::default());
            let subject = kind.subject(self.service.as_str());
            client.publish_with_reply_and_headers(subject, inbox.clone(), headers, body.clone()).await?;
        }
        client.flush().await?;
        for number in 0..count {
            let answer = timeout(WORKED_OFF_WITHIN, answers.next()).await;
            answer.ok().flatten().with_context(|| format!("{number} of {count} queries were answered"))?;
        }
        Ok(())
    }
}

fn message(flood: Flood, number: u32) -> Prepared {
    let piece = || "many words of a museum ".repeat(PIECE / 23);
    let put = |value: serde_json::Value| json!({ "session_id": SESSION, "context_key": format!("k{number}"), "context_value": value, "version": 1 });
    let (kind, body) = match flood {
        Flood::BadTokens | Flood::SmallContexts => {
            ("context.put", put(json!({ "number": number })).to_string())
        }
        Flood::LargeContexts => {
            let pieces: Vec<String> = std::iter::repeat_with(piece).take(PIECES).collect();
            ("context.put", put(json!(pieces)).to_string())
        }
        Flood::Malformed => ("context.put", "x".repeat(PIECES * PIECE)),
        Flood::Index | Flood::FewTexts => {
            let memory =
                || json!({ "memory_id": Uuid::now_v7(), "vector_type": "context", "content_text": piece() });
            let pieces = if flood == Flood::Index { PIECES } else { 1 };
            let memories: Vec<_> = std::iter::repeat_with(memory).take(pieces).collect();
            ("vector.index", json!({ "session_id": SESSION, "memories": memories }).to_string())
        }
    };
    let user = USERS[0];
    Prepared {
        subject: format!("memory.req.{FLOODING}.{kind}.{user}"),
        id: Uuid::now_v7(),
        body: body.into(),
    }
}
