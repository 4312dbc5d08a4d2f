//! What a worker needs, and waits for before its stages start.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::{self, consumer::PullConsumer};
use contract::limit;
use keys::Keys;
use store::{Connection, Pool, PoolOptions, security};
use tokio_util::sync::CancellationToken;
use trust::role_of;

use crate::authorise::Gate;
use crate::decode::Bodies;
use crate::patience::Patience;
use crate::pipeline::RunError;
use crate::readiness::{Dependency, Readiness};
use crate::settings::Settings;
use crate::worker::Worker;
use crate::{broker, watch};

/// What a worker's stages share.
pub(crate) struct Dependencies {
    pub(crate) client: Client,
    pub(crate) jetstream: jetstream::Context,
    pub(crate) consumer: PullConsumer,
    pub(crate) advisories: PullConsumer,
    pub(crate) pool: Pool,
    /// There for a worker that encrypts.
    pub(crate) keys: Option<Arc<Keys>>,
    pub(crate) bodies: Arc<Bodies>,
    pub(crate) gate: Arc<Gate>,
}

/// Waits for everything the worker needs. None if it is stopped first.
pub(crate) async fn start<W: Worker>(
    settings: &Settings,
    readiness: &Readiness,
    stop: &CancellationToken,
) -> Result<Option<Dependencies>, RunError> {
    let patience = Duration::from_millis(settings.postgres.connect_timeout_ms);
    let pool = store::open_pool(
        &settings.postgres.url_of(&role_of(W::NAME)),
        &PoolOptions {
            name: W::NAME,
            size: settings.postgres.write_pool_size,
            patience,
            statement_timeout: Duration::from_millis(settings.postgres.statement_timeout_ms),
        },
    )?;
    let keys = match W::ENCRYPTS {
        true => Some(Arc::new(Keys::open(&settings.keys, &role_of(W::NAME), W::NAME, patience)?)),
        false => None,
    };
    let bodies = Arc::new(Bodies::new(settings.trust.payload_ring_file.as_deref()));
    let ready = async {
        let wait = Patience::new(readiness, settings);
        let client = wait.for_it(Dependency::Nats, || connect_to_broker(settings, W::NAME)).await?;
        let jetstream = match &settings.nats.api_prefix {
            Some(prefix) => jetstream::with_prefix(client.clone(), prefix),
            None => jetstream::new(client.clone()),
        };
        let consumer = wait
            .for_it(Dependency::Nats, || find_consumer(&jetstream, W::STREAM, W::NAME.to_owned()))
            .await?;
        let advisories = wait
            .for_it(Dependency::Nats, || {
                find_consumer(&jetstream, crate::advisory::STREAM, crate::advisory::consumer(W::NAME))
            })
            .await?;
        wait.for_it(Dependency::Postgres, || check_database(&pool, W::NAME)).await?;
        if let Some(keys) = &keys {
            wait.for_it(Dependency::KeyStore, || keys.check()).await?;
        }
        wait.for_it(Dependency::PayloadKeys, async || bodies.check()).await?;
        let state = wait.for_it(Dependency::Postgres, || watch::read(&pool)).await?;
        let gate = Arc::new(Gate::new(&settings.trust, W::NAME, state));
        Ok(Dependencies {
            client,
            jetstream,
            consumer,
            advisories,
            pool: pool.clone(),
            keys: keys.clone(),
            bodies: Arc::clone(&bodies),
            gate,
        })
    };
    tokio::select! {
        () = stop.cancelled() => Ok(None),
        ready = ready => ready.map(Some),
    }
}

async fn connect_to_broker(settings: &Settings, name: &str) -> Result<Client, String> {
    let client = broker::connect(&settings.nats, name).await.map_err(|error| error.to_string())?;
    let takes = client.server_info().max_payload;
    if takes < limit::BROKER_PAYLOAD_BYTES {
        return Err(format!(
            "NATS takes messages of at most {takes} bytes, too few for the events of the largest requests; \
             set max_payload of the server to {} or more",
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
        format!("the consumer {name} of the stream {stream} cannot be used ({error}); `memfleet nats apply` makes it")
    })
}

/// Whether the database has the schema, and lets this worker do what it needs and no more.
///
/// # Errors
/// What is missing or too much, and what to do about it.
pub async fn check_database(pool: &Pool, worker: &str) -> Result<(), String> {
    let mut connection = store::lend(pool)
        .await
        .map_err(|error| format!("{error}; is it running, and is postgres.url right?"))?;
    let missing = store::migration::MAIN.missing(&mut connection).await.map_err(|fault| fault.to_string())?;
    if let Some(name) = missing.first() {
        return Err(format!(
            "the database lacks the migration {name}; `memfleet migrate up` brings it up to date"
        ));
    }
    check_role(&mut connection, worker).await
}

/// A worker that could do more than it needs is refused: isolation would rest on its code alone.
async fn check_role(connection: &mut Connection, worker: &str) -> Result<(), String> {
    let (role, needed) =
        (security::role(connection).await.map_err(|fault| fault.to_string())?, role_of(worker));
    let excess = security::excess_privileges(connection).await.map_err(|fault| fault.to_string())?;
    if !excess.is_empty() {
        return Err(format!(
            "the database role {role} {}, which {worker} must not; run {worker} as {needed} and no more",
            excess.join(", ")
        ));
    }
    if role != needed {
        return Err(format!("the database role {role} is not this worker's; run {worker} as {needed}"));
    }
    Ok(())
}
