//! One worker from start to stop.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::consumer::PullConsumer;
use config::{Settings, SettingsError};
use contract::DeadLetterClass;
use keys::Keys;
use store::Pool;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use trust::Refusal;

use crate::delivery::event_publisher::EventPublisher;
use crate::delivery::in_flight::InFlight;
use crate::delivery::retry::Budget;
use crate::delivery::undeliverable::UndeliverableHandler;
use crate::delivery::watermarks::Watermarks;
use crate::process::crash::{self, Point};
use crate::process::readiness::{Dependency, Phase, Readiness, probe};
use crate::process::start::{Dependencies, start};
use crate::process::startup_deadline::NotReady;
use crate::process::stats::Stats;
use crate::process::trust_refresh;
use crate::stages::authorize::{Authorization, Authorizer, Denied};
use crate::stages::decode::{Bodies, Decoded, decode};
use crate::stages::pull::{Delivery, Puller};
use crate::stages::settle::{Settler, ToSettle};
use crate::stages::write::{ToWrite, Writer};
use crate::worker::Worker;

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
    observed: Observed,
    stop: CancellationToken,
) -> Result<(), RunError> {
    settings.check()?;
    let Observed { stats, readiness } = observed;
    let Some(dependencies) = start::<W>(settings, &readiness, &stop).await? else { return Ok(()) };
    tracing::info!(worker = W::NAME, stream = W::STREAM, "started");
    let in_flight = InFlight::default();
    let ack_wait = dependencies.consumer.cached_info().config.ack_wait;
    // It goes on while the stages finish, and ends with them.
    let _renewing =
        AbortOnDropHandle::new(tokio::spawn(in_flight.clone().renew(dependencies.client.clone(), ack_wait)));
    readiness.reached(Phase::Running);
    let _looking = AbortOnDropHandle::new(tokio::spawn(look(
        Arc::clone(&worker),
        dependencies.keys.clone(),
        dependencies.consumer.clone(),
        dependencies.client.clone(),
        readiness.clone(),
        stop.clone(),
    )));
    let observed = Observed { stats, readiness: readiness.clone() };
    let mut stages = spawn_stages(worker, settings, &dependencies, in_flight, observed, &stop);

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
    readiness.reached(Phase::Stopping);
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

/// What others see of a worker while it runs.
#[derive(Clone, Debug)]
pub struct Observed {
    /// What it has done.
    pub stats: Arc<Stats>,
    /// What it has and lacks.
    pub readiness: Readiness,
}

impl Observed {
    /// That of a worker which has not started yet.
    pub fn new(worker: &'static str) -> Self {
        Self { stats: Arc::default(), readiness: Readiness::new(worker) }
    }
}

/// Looks for the servers of a worker until `stop` is cancelled.
async fn look<W: Worker>(
    worker: Arc<W>,
    keys: Option<Arc<Keys>>,
    consumer: PullConsumer,
    client: Client,
    readiness: Readiness,
    stop: CancellationToken,
) {
    let look = async || {
        let mut looked = worker.look().await;
        looked.push(probe(Dependency::Nats, consumer.get_info()).await);
        if let Some(keys) = &keys {
            looked.push(probe(Dependency::KeyStore, keys.check()).await);
        }
        looked
    };
    readiness.follow(client, look, stop).await;
}

/// How long the last acknowledgements may take to leave.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

fn spawn_stages<W: Worker>(
    worker: Arc<W>,
    settings: &Settings,
    dependencies: &Dependencies,
    in_flight: InFlight,
    observed: Observed,
    stop: &CancellationToken,
) -> JoinSet<()> {
    let Observed { stats, readiness } = observed;
    let mut stages = JoinSet::new();
    let (to_write, to_be_written) = mpsc::channel::<ToWrite<W::Request>>(1);
    let (to_settle, to_be_settled) = mpsc::channel(1);
    let Dependencies { client, jetstream, consumer, advisories, pool, keys, bodies, authorizer } =
        dependencies;

    let watermarks = Arc::new(Watermarks::default());
    let writer = Writer {
        worker: Arc::clone(&worker),
        pool: pool.clone(),
        keys: keys.clone(),
        watermarks: Arc::clone(&watermarks),
        stats: Arc::clone(&stats),
        stop: stop.clone(),
    };
    let event_publisher =
        EventPublisher { worker: W::NAME, jetstream: jetstream.clone(), stop: stop.clone() };
    let undeliverable_handler = UndeliverableHandler {
        worker: Arc::clone(&worker),
        bodies: Arc::clone(bodies),
        authorizer: Arc::clone(authorizer),
        client: client.clone(),
        event_publisher: event_publisher.clone(),
        jetstream: jetstream.clone(),
        pool: pool.clone(),
        stats: Arc::clone(&stats),
    };
    let settler = Settler {
        worker: Arc::clone(&worker),
        client: client.clone(),
        event_publisher,
        settings: settings.worker.clone(),
        watermarks,
        stats,
        budget: Budget::default(),
        last_delivery: Some(consumer.cached_info().config.max_deliver).filter(|&bound| bound > 0),
    };
    let dead_lettering = undeliverable_handler.run(
        advisories.clone(),
        in_flight.clone(),
        settings.worker.clone(),
        stop.clone(),
    );
    let pulling = PullStage {
        worker,
        consumer: consumer.clone(),
        authorizer: Arc::clone(authorizer),
        bodies: Arc::clone(bodies),
        pool: pool.clone(),
        in_flight,
        settings: settings.clone(),
        stop: stop.clone(),
        to_write,
        to_settle: to_settle.clone(),
    };
    stages.spawn(pulling.run());
    stages.spawn(write_stage(writer, to_be_written, to_settle));
    stages.spawn(settle_stage(settler, to_be_settled));
    stages.spawn(dead_lettering);
    stages.spawn(trust_refresh::follow(readiness, Arc::clone(authorizer), pool.clone(), stop.clone()));
    stages
}

/// How long a message waits that only the registry can authorize, while the registry is away. It is away for longer than the
/// broker's bound of deliveries only after an hour.
const WITHOUT_REGISTRY: Duration = Duration::from_secs(30);

/// The first three stages.
struct PullStage<W: Worker> {
    worker: Arc<W>,
    consumer: PullConsumer,
    authorizer: Arc<Authorizer>,
    bodies: Arc<Bodies>,
    pool: Pool,
    in_flight: InFlight,
    settings: Settings,
    stop: CancellationToken,
    to_write: mpsc::Sender<ToWrite<W::Request>>,
    to_settle: mpsc::Sender<ToSettle<W::Request>>,
}

impl<W: Worker> PullStage<W> {
    async fn run(self) {
        let mut settings = self.settings.worker.clone();
        settings.batch_size = settings.batch_size.min(W::LARGEST_BATCH);
        let mut puller = Puller::new(W::NAME, self.consumer.clone(), self.in_flight.clone(), &settings);
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

    /// Decodes and authorizes a batch and passes it on. False when the later stages are gone.
    async fn forward(&self, deliveries: Vec<Delivery>) -> bool {
        let mut batch = Vec::with_capacity(deliveries.len());
        let (mut denied, mut rate_limited, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
        let mut take = |decoded, denied: &mut Vec<(Decoded<W::Request>, Refusal)>| match self
            .authorizer
            .authorize(&*self.worker, decoded)
        {
            Authorization::Authorized(authorized) => batch.push(*authorized),
            Authorization::Denied(decoded, refusal) => denied.push((*decoded, refusal)),
            Authorization::RateLimited(delivery, delay) => {
                rate_limited.push(ToSettle::NotNow(delivery, delay))
            }
        };
        for delivery in deliveries {
            match decode(&*self.worker, &self.bodies, delivery) {
                Ok(decoded) => take(decoded, &mut denied),
                Err(refused) => {
                    let (delivery, malformed) = *refused;
                    let reason = malformed.to_string();
                    let rejected = ToSettle::Rejected(Box::new(delivery), DeadLetterClass::Malformed, reason);
                    if self.to_settle.send(rejected).await.is_err() {
                        return false;
                    }
                }
            }
        }
        if denied.iter().any(|(_, refusal)| Authorizer::may_be_stale(*refusal)) {
            let refreshed = trust_refresh::refresh(&self.authorizer, &self.pool).await.is_ok();
            tracing::debug!(worker = W::NAME, refreshed, "asked for news of the registry");
            for (decoded, refusal) in std::mem::take(&mut denied) {
                if refreshed {
                    take(decoded, &mut denied);
                } else if Authorizer::may_be_stale(refusal) {
                    // Whether it is refused, nobody can say before the registry is back.
                    unknown.push(ToSettle::NotNow(Box::new(decoded.delivery), WITHOUT_REGISTRY));
                } else {
                    denied.push((decoded, refusal));
                }
            }
        }
        crash::reach(Point::Authorized);
        for delayed in rate_limited.into_iter().chain(unknown) {
            if self.to_settle.send(delayed).await.is_err() {
                return false;
            }
        }
        let denied: Vec<Denied> =
            denied.into_iter().map(|(decoded, refusal)| Denied::new(decoded, refusal)).collect();
        let nothing = batch.is_empty() && denied.is_empty();
        nothing || self.to_write.send(ToWrite { authorized: batch, denied }).await.is_ok()
    }
}

async fn write_stage<W: Worker>(
    writer: Writer<W>,
    mut batches: mpsc::Receiver<ToWrite<W::Request>>,
    to_settle: mpsc::Sender<ToSettle<W::Request>>,
) {
    while let Some(ToWrite { authorized, denied }) = batches.recv().await {
        let recorded = denied.is_empty() || writer.record_denied(&denied).await;
        for Denied { delivery, refusal, .. } in denied {
            let refused = if recorded {
                ToSettle::Rejected(Box::new(delivery), DeadLetterClass::Denied, refusal.to_string())
            } else {
                ToSettle::NotNow(Box::new(delivery), Duration::ZERO)
            };
            if to_settle.send(refused).await.is_err() {
                return;
            }
        }
        if authorized.is_empty() {
            continue;
        }
        let (messages, since) = (authorized.len(), Instant::now());
        let settlements = writer.write(authorized, &to_settle).await;
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
