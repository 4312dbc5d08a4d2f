//! The service whose latency is measured.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use cli::errln;
use client::{Client, ClientOptions, User};
use config::Settings;
use contract::{ContextGet, ContextPut, VectorIndex};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};
use uuid::Uuid;

use super::flood::{POLL_INTERVAL, STARTED_WITHIN};
use super::{MEASURED_FOR, USERS};
use crate::asking::SERVICE;
use crate::index::SESSION;

/// What the neighbour does over and over.
#[derive(Clone, Copy, Debug)]
pub(super) enum Action {
    /// Stores a small context.
    Put,
    /// Indexes a short text.
    Index,
    /// Reads a context.
    Ask,
}

impl Action {
    /// How often it is done. A model in the worker's process embeds few texts a second.
    fn every(self) -> Duration {
        match self {
            Self::Put | Self::Ask => Duration::from_millis(20),
            Self::Index => Duration::from_millis(200),
        }
    }
}

/// No outcome takes longer.
const OUTCOME_WITHIN: Duration = Duration::from_secs(180);

pub(super) struct Neighbour {
    user: User,
}

impl Neighbour {
    pub(super) async fn open(settings: &Settings) -> anyhow::Result<Self> {
        let options = ClientOptions {
            outcome_timeout: OUTCOME_WITHIN,
            nkey_file: settings.nats.nkey_file.as_ref().map(|file| file.replace("{name}", SERVICE).into()),
            payload_ring_file: settings.trust.payload_ring_file.as_ref().map(PathBuf::from),
            ..ClientOptions::new(settings.nats.url.clone(), SERVICE.parse()?)
        };
        let client = Client::connect(options).await?;
        let user = client.user(USERS[1]);
        user.authorize().await?;
        let neighbour = Self { user };
        // What it reads later.
        neighbour.once(Action::Put).await?;
        // memory-reader may start after the others.
        let since = Instant::now();
        while let Err(error) = neighbour.once(Action::Ask).await {
            if since.elapsed() > STARTED_WITHIN {
                return Err(error);
            }
            sleep(POLL_INTERVAL).await;
        }
        Ok(neighbour)
    }

    /// Acts at a steady rate, whether or not earlier ones are answered, until `flood` is done and there are as many
    /// samples as wanted. Returns the milliseconds until each outcome or answer.
    pub(super) async fn sample(
        &self,
        action: Action,
        at_least: usize,
        flood: impl Future<Output = anyhow::Result<()>>,
    ) -> anyhow::Result<Vec<f64>> {
        let (since, mut ticks, mut acting) = (Instant::now(), interval(action.every()), JoinSet::new());
        let (mut flood, mut is_over) = (std::pin::pin!(flood), false);
        while (!is_over && since.elapsed() < MEASURED_FOR) || acting.len() < at_least {
            tokio::select! {
                done = &mut flood, if !is_over => {
                    done?;
                    is_over = true;
                }
                _ = ticks.tick() => {
                    let neighbour = Self { user: self.user.clone() };
                    acting.spawn(async move { neighbour.once(action).await });
                }
            }
        }
        let (mut times, mut failed) = (Vec::with_capacity(acting.len()), Vec::new());
        while let Some(done) = acting.join_next().await {
            // Without an outcome or an answer, it waited for the whole time.
            let took = done.context("a sample panicked")?.unwrap_or_else(|error| {
                failed.push(error);
                MEASURED_FOR
            });
            times.push(took.as_secs_f64() * 1_000.0);
        }
        if let Some(first) = failed.first() {
            errln!("{} of {} samples failed; the first: {first:#}", failed.len(), times.len());
        }
        Ok(times)
    }

    async fn once(&self, action: Action) -> anyhow::Result<Duration> {
        let since = Instant::now();
        match action {
            Action::Put => {
                let put: ContextPut = serde_json::from_value(json!({
                    "session_id": SESSION, "context_key": "quiet", "context_value": { "museum": "open" },
                    "version": i64::try_from(Uuid::now_v7().as_u128() >> 80)?,
                }))?;
                self.user.send(put).await?;
            }
            Action::Index => {
                let index: VectorIndex = serde_json::from_value(json!({
                    "session_id": SESSION,
                    "memories": [{ "memory_id": Uuid::now_v7(), "vector_type": "context",
                        "content_text": "The museum opens at nine." }],
                }))?;
                self.user.send(index).await?;
            }
            Action::Ask => {
                let get: ContextGet =
                    serde_json::from_value(json!({ "session_id": SESSION, "context_key": "quiet" }))?;
                self.user.query(get).await?;
            }
        }
        Ok(since.elapsed())
    }
}
