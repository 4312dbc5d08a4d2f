//! Connects a worker to its dependencies before its stages start.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::{self, consumer::PullConsumer};
use config::Settings;
use contract::{JOBS_STREAM, WAKES_STREAM, limit};
use keys::Keys;
use store::{Connection, Pool, PoolOptions, security};
use tokio_util::sync::CancellationToken;
use trust::worker_role;
use uuid::Uuid;

use crate::process::readiness::{Dependency, Readiness};
use crate::process::run_error::RunError;
use crate::process::startup_deadline::StartupDeadline;
use crate::process::trust_refresh;
use crate::stages::authorize::Authorizer;
use crate::stages::decode::Bodies;
use crate::worker::ExternalWorker;

/// The dependencies that a worker's stages share.
pub(crate) struct Dependencies {
    pub(crate) client: Client,
    pub(crate) jetstream: jetstream::Context,
    /// Deliver the worker's requests, the ticks of its jobs, or both. Never empty.
    pub(crate) consumers: Vec<PullSource>,
    pub(crate) advisories: PullConsumer,
    pub(crate) pool: Pool,
    /// Set for a worker that encrypts.
    pub(crate) keys: Option<Arc<Keys>>,
    pub(crate) bodies: Arc<Bodies>,
    pub(crate) authorizer: Arc<Authorizer>,
    /// The namespace of the ids of dead letters: the same for all replicas of the worker, and known to nobody else.
    pub(crate) dead_letter_ids: Uuid,
}

/// A consumer to pull from.
#[derive(Clone)]
pub(crate) struct PullSource {
    pub(crate) stream: &'static str,
    pub(crate) consumer: PullConsumer,
    pub(crate) max_batch: usize,
}

/// Waits for the worker's dependencies. `None` if it is stopped first.
pub(crate) async fn start<W: ExternalWorker>(
    settings: &Settings,
    readiness: &Readiness,
    stop: &CancellationToken,
) -> Result<Option<Dependencies>, RunError> {
    let worker = W::INFO.name;
    let requests = W::INFO.stream.map(|stream| (stream, worker.to_owned(), W::MAX_BATCH));
    // A tick is a batch of its own, because its job grants are valid only for it.
    let ticks = (!W::INFO.jobs.is_empty()).then(|| (JOBS_STREAM, W::INFO.jobs_consumer(), 1));
    let has_woken = W::INFO.woken_jobs().next().is_some();
    let woken_ticks = has_woken.then(|| (WAKES_STREAM, W::INFO.wakes_consumer(), 1));
    if requests.is_none() && ticks.is_none() {
        return Err(RunError::NoConsumer { worker });
    }
    let acquire_timeout = Duration::from_millis(settings.postgres.connect_timeout_ms);
    let pool = store::open_pool(
        &settings.postgres.url_of(&worker_role(worker)),
        &PoolOptions {
            name: worker,
            size: settings.postgres.write_pool_size,
            acquire_timeout,
            statement_timeout: Duration::from_millis(settings.postgres.statement_timeout_ms),
            lock_timeout: Duration::from_millis(settings.postgres.lock_timeout_ms),
        },
    )?;
    let keys = match W::ENCRYPTS {
        true => Some(Arc::new(Keys::open(&settings.keys, &worker_role(worker), worker, acquire_timeout)?)),
        false => None,
    };
    let bodies = Arc::new(Bodies::new(settings.trust.payload_ring_file.as_deref()));
    let ready = async {
        let wait = StartupDeadline::new(readiness, settings);
        let client = wait.wait_for(Dependency::Nats, || connect_to_broker(settings, worker)).await?;
        let secret = wait.wait_for(Dependency::Nats, || broker::secret_of(&settings.nats, worker)).await?;
        let jetstream = match &settings.nats.api_prefix {
            Some(prefix) => jetstream::with_prefix(client.clone(), prefix),
            None => jetstream::new(client.clone()),
        };
        let mut consumers = Vec::with_capacity(3);
        for (stream, name, max_batch) in requests.into_iter().chain(ticks).chain(woken_ticks) {
            let find = || find_consumer(&jetstream, stream, name.clone());
            let consumer = wait.wait_for(Dependency::Nats, find).await?;
            consumers.push(PullSource { stream, consumer, max_batch });
        }
        let advisories = wait
            .wait_for(Dependency::Nats, || {
                find_consumer(&jetstream, crate::delivery::undeliverable::STREAM, W::INFO.advisory_consumer())
            })
            .await?;
        wait.wait_for(Dependency::Postgres, || check_database(&pool, worker)).await?;
        if let Some(keys) = &keys {
            wait.wait_for(Dependency::KeyStore, || keys.check()).await?;
        }
        wait.wait_for(Dependency::PayloadKeys, async || bodies.check()).await?;
        let state = wait.wait_for(Dependency::Postgres, || trust_refresh::read(&pool)).await?;
        let authorizer = Arc::new(Authorizer::new(&settings.trust, worker, state));
        Ok(Dependencies {
            client,
            jetstream,
            consumers,
            advisories,
            pool: pool.clone(),
            keys: keys.clone(),
            bodies: Arc::clone(&bodies),
            authorizer,
            dead_letter_ids: Uuid::new_v5(&Uuid::NAMESPACE_OID, &secret),
        })
    };
    tokio::select! {
        () = stop.cancelled() => Ok(None),
        ready = ready => ready.map(Some),
    }
}

async fn connect_to_broker(settings: &Settings, name: &str) -> Result<Client, String> {
    let client = broker::connect(&settings.nats, name).await.map_err(|error| error.to_string())?;
    let max_payload = client.server_info().max_payload;
    if max_payload < limit::BROKER_PAYLOAD_BYTES {
        return Err(format!(
            "NATS accepts messages of at most {max_payload} bytes, too few for the events of the largest requests; \
             set max_payload in its configuration to {} or more",
            limit::BROKER_PAYLOAD_BYTES
        ));
    }
    Ok(client)
}

async fn find_consumer(
    jetstream: &jetstream::Context,
    stream: &str,
    name: String,
) -> Result<PullConsumer, String> {
    jetstream.get_consumer_from_stream(&name, stream).await.map_err(|error| {
        format!("the consumer {name} of the stream {stream} cannot be used ({error}); `memfleet nats apply` creates it")
    })
}

/// Checks that the server reports errors in English, that all migrations are applied, and that the worker's role has no
/// more privileges than it needs.
///
/// # Errors
/// What is wrong, such as the missing migration or the excess privilege, and what to do about it.
pub async fn check_database(pool: &Pool, worker: &str) -> Result<(), String> {
    let mut connection = store::acquire(pool)
        .await
        .map_err(|error| format!("{error}; is it running, and is postgres.url correct?"))?;
    store::language::check_english(&mut connection).await.map_err(|fault| fault.to_string())?;
    let missing = store::migration::MAIN.missing(&mut connection).await.map_err(|fault| fault.to_string())?;
    if let Some(name) = missing.first() {
        return Err(format!("the database lacks the migration {name}; `memfleet migrate up` applies it"));
    }
    check_role(&mut connection, worker).await
}

/// Refuses a role with excess privileges: with them, only the worker's code would keep users' data apart.
async fn check_role(connection: &mut Connection, worker: &str) -> Result<(), String> {
    let (role, needed) =
        (security::role(connection).await.map_err(|fault| fault.to_string())?, worker_role(worker));
    let excess = security::excess_privileges(connection).await.map_err(|fault| fault.to_string())?;
    if !excess.is_empty() {
        return Err(format!(
            "the database role {role} {}, which {worker} must not; run {worker} as {needed} and no more",
            excess.join(", ")
        ));
    }
    if role != needed {
        return Err(format!("{worker} runs as the database role {role}; it must run as {needed}"));
    }
    Ok(())
}
