//! Turns the answers of many agents into validated knowledge.
//!
//! It processes the stream `CONSENSUS`: configurations of agents, their conversations, the tasks that are delegated to them,
//! their responses, proposed knowledge, relations, and verdicts. The response that is the last one needed closes its task, in
//! the same transaction (`store/close.rs`): the latest response of each agent is frozen, `shared/consensus` computes a dossier
//! from them, and a node of the knowledge graph gets the answer. A node is never overwritten: a validated one ends the
//! validity of the one before it (`store/nodes.rs`).
//!
//! Of the tasks that a batch concerns, the rows are locked first, in the order of their keys. So two replicas that have the
//! last two responses of one task close it once.
//!
//! Two jobs run by ticks: `consensus-close` closes tasks that are past their deadline (`store/deadline.rs`), and
//! `consensus-reestimate` estimates from closed tasks how often each agent is right (`store/reestimate/`).
//!
//! Responses are read, and texts without a claim embedded, before the transaction (`prepare.rs`). Without an embedder, texts are the same if they
//! are equal.

pub mod inputs;
mod item;
mod prepare;
mod store;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::store::{Connection, Fault, Pool, PoolOptions};
use config::Settings;
use consensus::Rules;
use contract::{CONSENSUS_BUILDER, RequestType, VerdictGive, WorkerInfo};
use embed::Embedder;
use keys::DataKeys;
use runtime::{Dependency, Ended, ExternalWorker, ProbeResults, Verdict, Written};

pub use item::{ConsensusItem, Job};
pub use prepare::Prepared;

pub(crate) type Message = runtime::Message<ConsensusItem>;

/// The worker.
pub struct ConsensusBuilder {
    /// For reads before the transaction.
    pool: Pool,
    rules: Arc<Rules>,
    embedder: Option<Embedder>,
    /// The error of the embedder when it was last used; `None` if it succeeded.
    embedder_problem: Mutex<Option<String>>,
}

impl std::fmt::Debug for ConsensusBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsensusBuilder").finish_non_exhaustive()
    }
}

/// The worker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The pool cannot be created.
    #[error(transparent)]
    Pool(#[from] ::store::PoolError),
    /// The embedder cannot be used as configured.
    #[error("consensus-builder cannot start: {0}")]
    Embedder(#[from] embed::EmbedError),
    /// The rules cannot be read.
    #[error("consensus-builder cannot start: {0}")]
    Rules(#[from] consensus::RulesError),
}

/// The connections for reads before the transaction: one tick at a time reads.
const CONNECTIONS: usize = 1;

impl ConsensusBuilder {
    /// Opens the embedder, if one is configured. Connects to nothing yet.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(settings: &Settings) -> Result<Self, OpenError> {
        let pool = ::store::open_pool(
            &settings.postgres.url_of(&CONSENSUS_BUILDER.role()),
            &PoolOptions {
                name: "consensus-builder look-up",
                size: CONNECTIONS,
                acquire_timeout: Duration::from_millis(settings.postgres.connect_timeout_ms),
                statement_timeout: Duration::from_millis(settings.postgres.statement_timeout_ms),
                lock_timeout: Duration::ZERO,
            },
        )?;
        Ok(Self {
            pool,
            rules: Arc::new(Rules::current()?),
            embedder: Embedder::open(&settings.embedder).await?,
            embedder_problem: Mutex::default(),
        })
    }

    fn embedder_is(&self, problem: Option<String>) {
        *self.embedder_problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }
}

impl ExternalWorker for ConsensusBuilder {
    const INFO: &'static WorkerInfo = &CONSENSUS_BUILDER;
    /// A verdict reads all answers to a task, and writes the dossiers of its node and of those that it supersedes.
    const HEAVY_KINDS: &'static [(&'static str, &'static str)] =
        &[(VerdictGive::KIND.noun, VerdictGive::KIND.verb)];
    type Item = ConsensusItem;
    type Prepared = Prepared;
    type Finding = ();

    async fn probe(&self) -> ProbeResults {
        if self.embedder.is_none() {
            return ProbeResults::new();
        }
        let problem = self.embedder_problem.lock().unwrap_or_else(PoisonError::into_inner).clone();
        vec![(Dependency::Embedder, problem.map_or(Ok(()), Err))]
    }

    async fn prepare<'a>(
        &'a self,
        batch: &'a [&'a Message],
        grants: &'a [&'a str],
    ) -> Result<Prepared, Fault> {
        if let [Message { request: ConsensusItem::Tick(job), .. }] = batch {
            return Ok(match job {
                Job::Close => Prepared::default(),
                Job::Reestimate => {
                    let estimates = store::reestimate::estimate_due(&self.pool, &self.rules, grants).await?;
                    Prepared::of_estimates(estimates)
                }
            });
        }
        let prepared = prepare::prepare(self.embedder.as_ref(), &self.rules, batch).await;
        self.embedder_is(prepared.as_ref().err().map(ToString::to_string));
        prepared
    }

    fn join(&self, one: Prepared, other: Prepared) -> Prepared {
        one.with(other)
    }

    async fn write<'a>(
        &'a self,
        connection: &'a mut Connection,
        batch: &'a [&'a Message],
        _: &'a DataKeys,
        prepared: &'a Prepared,
    ) -> Result<Written<()>, Fault> {
        let verdicts = match batch {
            // A tick is a batch of its own.
            [tick] if matches!(tick.request, ConsensusItem::Tick(_)) => {
                vec![self.tick(connection, tick, prepared).await?]
            }
            requests => store::write(connection, &self.rules, requests, prepared).await?,
        };
        Ok(verdicts.into())
    }

    async fn clean_up<'a>(
        &'a self,
        _: &'a [Ended<'a, ConsensusItem, ()>],
        _: &'a Prepared,
    ) -> Result<(), Fault> {
        Ok(())
    }
}

impl ConsensusBuilder {
    async fn tick(
        &self,
        connection: &mut Connection,
        tick: &Message,
        prepared: &Prepared,
    ) -> Result<Verdict, Fault> {
        let ConsensusItem::Tick(job) = tick.request else { return Ok(Verdict::unchanged(tick)) };
        let events = match job {
            Job::Close => store::deadline::close_due(connection, &self.rules, tick.request_id).await?,
            Job::Reestimate => {
                store::reestimate::write(connection, &prepared.estimates, tick.request_id).await?
            }
        };
        Ok(if events.is_empty() { Verdict::unchanged(tick) } else { Verdict::Applied(events) })
    }
}
