//! One worker from start to stop.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::{self, consumer::PullConsumer};
use contract::{DeadClass, limit};
use keys::Keys;
use store::{Connection, Pool, PoolOptions, security};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use trust::{Refusal, role_of};

use crate::advisory::Undertaker;
use crate::authorise::{Denied, Gate, Judgement};
use crate::broker;
use crate::crash::{self, Point};
use crate::decode::{Bodies, Decoded, decode};
use crate::held::Held;
use crate::outlet::Outlet;
use crate::patience::{NotReady, Patience};
use crate::published::Watermarks;
use crate::pull::{Delivery, Puller};
use crate::retry::Budget;
use crate::settings::{Settings, SettingsError};
use crate::settle::{Settler, ToSettle};
use crate::stats::Stats;
use crate::watch;
use crate::worker::Worker;
use crate::write::{ToWrite, Writer};

/// A worker cannot start, or broke down.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Something it needs did not appear in time.
    #[error(transparent)]
    Startup(#[from] NotReady),
    /// The configuration is out of bounds.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The database pool cannot be made.
    #[error(transparent)]
    Pool(#[from] store::PoolError),
    /// The key store or the key provider cannot be used as configured.
    #[error(transparent)]
    Keys(#[from] keys::KeyError),
    /// A stage panicked. What was in flight is delivered again.
    #[error("{worker} broke down: {problem}")]
    BrokeDown {
        /// The worker.
        worker: &'static str,
        /// What the stage said.
        problem: String,
    },
}

/// Runs a worker until `stop` is cancelled, then finishes what is in flight and hands back the rest.
///
/// # Errors
/// [`RunError`] if it cannot start or a stage breaks down. Being stopped is no error.
pub async fn run<W: Worker>(
    worker: Arc<W>,
    settings: &Settings,
    stats: Arc<Stats>,
    stop: CancellationToken,
) -> Result<(), RunError> {
    settings.check()?;
    let Some(dependencies) = start::<W>(settings, &stop).await? else { return Ok(()) };
    tracing::info!(worker = W::NAME, stream = W::STREAM, "started");
    let held = Held::default();
    let ack_wait = dependencies.consumer.cached_info().config.ack_wait;
    // It goes on while the stages finish, and ends with them.
    let _renewing =
        AbortOnDropHandle::new(tokio::spawn(held.clone().renew(dependencies.client.clone(), ack_wait)));
    let mut stages = spawn_stages(worker, settings, &dependencies, held, stats, &stop);

    let mut broken = None;
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        Some(ended) = stages.join_next() => {
            // No stage ends before it is told to, unless it panics.
            broken = Some(ended.err().map_or_else(|| "a stage ended early".to_owned(), |error| error.to_string()));
            stop.cancel();
        }
    }
    let finished = timeout(settings.worker.shutdown_grace(), async {
        while let Some(ended) = stages.join_next().await {
            if let Err(error) = ended {
                broken.get_or_insert(error.to_string());
            }
        }
        // Acknowledgements leave with this; without a broker they cannot.
        let flushed = timeout(FLUSH_WITHIN, dependencies.client.flush()).await;
        tracing::debug!(worker = W::NAME, flushed = flushed.is_ok(), "finished");
    });
    if finished.await.is_err() {
        tracing::warn!(
            worker = W::NAME,
            "not finished within the grace period; what is in flight comes again"
        );
    }
    match broken {
        Some(problem) => Err(RunError::BrokeDown { worker: W::NAME, problem }),
        None => {
            tracing::info!(worker = W::NAME, "stopped");
            Ok(())
        }
    }
}

/// How long the last acknowledgements may take to leave.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

struct Dependencies {
    client: Client,
    jetstream: jetstream::Context,
    consumer: PullConsumer,
    advisories: PullConsumer,
    pool: Pool,
    /// There for a worker that encrypts.
    keys: Option<Arc<Keys>>,
    bodies: Arc<Bodies>,
    gate: Arc<Gate>,
}

fn spawn_stages<W: Worker>(
    worker: Arc<W>,
    settings: &Settings,
    dependencies: &Dependencies,
    held: Held,
    stats: Arc<Stats>,
    stop: &CancellationToken,
) -> JoinSet<()> {
    let mut stages = JoinSet::new();
    let (to_write, to_be_written) = mpsc::channel::<ToWrite<W::Request>>(1);
    let (to_settle, to_be_settled) = mpsc::channel(1);
    let Dependencies { client, jetstream, consumer, advisories, pool, keys, bodies, gate } = dependencies;

    let watermarks = Arc::new(Watermarks::default());
    let writer = Writer {
        worker: Arc::clone(&worker),
        pool: pool.clone(),
        keys: keys.clone(),
        watermarks: Arc::clone(&watermarks),
        stats: Arc::clone(&stats),
        stop: stop.clone(),
    };
    let outlet = Outlet { worker: W::NAME, jetstream: jetstream.clone(), stop: stop.clone() };
    let undertaker = Undertaker {
        worker: Arc::clone(&worker),
        bodies: Arc::clone(bodies),
        gate: Arc::clone(gate),
        client: client.clone(),
        outlet: outlet.clone(),
        jetstream: jetstream.clone(),
        pool: pool.clone(),
        stats: Arc::clone(&stats),
    };
    let settler = Settler {
        worker: Arc::clone(&worker),
        client: client.clone(),
        outlet,
        settings: settings.worker.clone(),
        watermarks,
        stats,
        budget: Budget::default(),
        last_delivery: Some(consumer.cached_info().config.max_deliver).filter(|&bound| bound > 0),
    };
    let burying = undertaker.run(advisories.clone(), held.clone(), settings.worker.clone(), stop.clone());
    let pulling = PullStage {
        worker,
        consumer: consumer.clone(),
        gate: Arc::clone(gate),
        bodies: Arc::clone(bodies),
        pool: pool.clone(),
        held,
        settings: settings.clone(),
        stop: stop.clone(),
        to_write,
        to_settle: to_settle.clone(),
    };
    stages.spawn(pulling.run());
    stages.spawn(write_stage(writer, to_be_written, to_settle));
    stages.spawn(settle_stage(settler, to_be_settled));
    stages.spawn(burying);
    stages.spawn(watch::follow(W::NAME, Arc::clone(gate), pool.clone(), stop.clone()));
    stages
}

/// How long a message waits that only the registry can judge, while the registry is away. It is away for longer than the
/// broker's bound of deliveries only after an hour.
const WITHOUT_REGISTRY: Duration = Duration::from_secs(30);

/// The first three stages.
struct PullStage<W: Worker> {
    worker: Arc<W>,
    consumer: PullConsumer,
    gate: Arc<Gate>,
    bodies: Arc<Bodies>,
    pool: Pool,
    held: Held,
    settings: Settings,
    stop: CancellationToken,
    to_write: mpsc::Sender<ToWrite<W::Request>>,
    to_settle: mpsc::Sender<ToSettle<W::Request>>,
}

impl<W: Worker> PullStage<W> {
    async fn run(self) {
        let mut settings = self.settings.worker.clone();
        settings.batch_size = settings.batch_size.min(W::LARGEST_BATCH);
        let mut puller = Puller::new(W::NAME, self.consumer.clone(), self.held.clone(), &settings);
        while let Some(deliveries) = puller.next(&self.stop).await {
            tracing::debug!(worker = W::NAME, messages = deliveries.len(), "pulled");
            crash::reach(Point::Pulled);
            if !self.forward(deliveries).await {
                break;
            }
        }
        let handed_back = puller.hand_back().await;
        tracing::debug!(worker = W::NAME, handed_back, "stopped pulling");
    }

    /// Decodes and authorises a batch and passes it on. False when the later stages are gone.
    async fn forward(&self, deliveries: Vec<Delivery>) -> bool {
        let mut batch = Vec::with_capacity(deliveries.len());
        let (mut denied, mut too_often, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
        let mut take = |decoded, denied: &mut Vec<(Decoded<W::Request>, Refusal)>| match self
            .gate
            .authorise(&*self.worker, decoded)
        {
            Judgement::Authorised(authorised) => batch.push(*authorised),
            Judgement::Denied(decoded, refusal) => denied.push((*decoded, refusal)),
            Judgement::TooOften(delivery, delay) => too_often.push(ToSettle::NotNow(delivery, delay)),
        };
        for delivery in deliveries {
            match decode(&*self.worker, &self.bodies, delivery) {
                Ok(decoded) => take(decoded, &mut denied),
                Err(refused) => {
                    let (delivery, malformed) = *refused;
                    let reason = malformed.to_string();
                    let rejected = ToSettle::Rejected(Box::new(delivery), DeadClass::Malformed, reason);
                    if self.to_settle.send(rejected).await.is_err() {
                        return false;
                    }
                }
            }
        }
        if denied.iter().any(|(_, refusal)| Gate::may_be_news(*refusal)) {
            let refreshed = watch::refresh(&self.gate, &self.pool).await.is_ok();
            tracing::debug!(worker = W::NAME, refreshed, "asked for news of the registry");
            for (decoded, refusal) in std::mem::take(&mut denied) {
                if refreshed {
                    take(decoded, &mut denied);
                } else if Gate::may_be_news(refusal) {
                    // Whether it is refused, nobody can say before the registry is back.
                    unknown.push(ToSettle::NotNow(Box::new(decoded.delivery), WITHOUT_REGISTRY));
                } else {
                    denied.push((decoded, refusal));
                }
            }
        }
        crash::reach(Point::Authorised);
        for delayed in too_often.into_iter().chain(unknown) {
            if self.to_settle.send(delayed).await.is_err() {
                return false;
            }
        }
        let denied: Vec<Denied> =
            denied.into_iter().map(|(decoded, refusal)| Denied::new(decoded, refusal)).collect();
        let nothing = batch.is_empty() && denied.is_empty();
        nothing || self.to_write.send(ToWrite { authorised: batch, denied }).await.is_ok()
    }
}

async fn write_stage<W: Worker>(
    writer: Writer<W>,
    mut batches: mpsc::Receiver<ToWrite<W::Request>>,
    to_settle: mpsc::Sender<ToSettle<W::Request>>,
) {
    while let Some(ToWrite { authorised, denied }) = batches.recv().await {
        let recorded = denied.is_empty() || writer.record_denied(&denied).await;
        for Denied { delivery, refusal, .. } in denied {
            let refused = if recorded {
                ToSettle::Rejected(Box::new(delivery), DeadClass::Denied, refusal.to_string())
            } else {
                ToSettle::NotNow(Box::new(delivery), Duration::ZERO)
            };
            if to_settle.send(refused).await.is_err() {
                return;
            }
        }
        if authorised.is_empty() {
            continue;
        }
        let (messages, since) = (authorised.len(), Instant::now());
        let settlements = writer.write(authorised, &to_settle).await;
        tracing::debug!(worker = W::NAME, messages, elapsed = ?since.elapsed(), "written");
        if to_settle.send(ToSettle::Written(settlements)).await.is_err() {
            return;
        }
    }
}

async fn settle_stage<W: Worker>(mut settler: Settler<W>, mut items: mpsc::Receiver<ToSettle<W::Request>>) {
    while let Some(item) = items.recv().await {
        let since = Instant::now();
        settler.settle(item).await;
        tracing::debug!(worker = W::NAME, elapsed = ?since.elapsed(), "settled");
    }
}

/// Waits for everything the worker needs. None if it is stopped first.
async fn start<W: Worker>(
    settings: &Settings,
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
        let wait = Patience::new(W::NAME, settings);
        let client = wait.for_it(|| connect_to_broker(settings, W::NAME)).await?;
        let jetstream = match &settings.nats.api_prefix {
            Some(prefix) => jetstream::with_prefix(client.clone(), prefix),
            None => jetstream::new(client.clone()),
        };
        let consumer = wait.for_it(|| find_consumer(&jetstream, W::STREAM, W::NAME.to_owned())).await?;
        let advisories = wait
            .for_it(|| find_consumer(&jetstream, crate::advisory::STREAM, crate::advisory::consumer(W::NAME)))
            .await?;
        wait.for_it(|| check_database(&pool, W::NAME)).await?;
        if let Some(keys) = &keys {
            wait.for_it(|| keys.check()).await?;
        }
        wait.for_it(async || bodies.check()).await?;
        let state = wait.for_it(|| watch::read(&pool)).await?;
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
