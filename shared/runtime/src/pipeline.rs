//! One worker from start to stop.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::consumer::PullConsumer;
use contract::DeadClass;
use keys::Keys;
use store::Pool;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use trust::Refusal;

use crate::advisory::Undertaker;
use crate::authorise::{Denied, Gate, Judgement};
use crate::crash::{self, Point};
use crate::decode::{Bodies, Decoded, decode};
use crate::held::Held;
use crate::outlet::Outlet;
use crate::patience::NotReady;
use crate::published::Watermarks;
use crate::pull::{Delivery, Puller};
use crate::readiness::{Dependency, Phase, Readiness, look_for};
use crate::retry::Budget;
use crate::settings::{Settings, SettingsError};
use crate::settle::{Settler, ToSettle};
use crate::start::{Dependencies, start};
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
    observed: Observed,
    stop: CancellationToken,
) -> Result<(), RunError> {
    settings.check()?;
    let Observed { stats, readiness } = observed;
    let Some(dependencies) = start::<W>(settings, &readiness, &stop).await? else { return Ok(()) };
    tracing::info!(worker = W::NAME, stream = W::STREAM, "started");
    let held = Held::default();
    let ack_wait = dependencies.consumer.cached_info().config.ack_wait;
    // It goes on while the stages finish, and ends with them.
    let _renewing =
        AbortOnDropHandle::new(tokio::spawn(held.clone().renew(dependencies.client.clone(), ack_wait)));
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
    let mut stages = spawn_stages(worker, settings, &dependencies, held, observed, &stop);

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
        looked.push(look_for(Dependency::Nats, consumer.get_info()).await);
        if let Some(keys) = &keys {
            looked.push(look_for(Dependency::KeyStore, keys.check()).await);
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
    held: Held,
    observed: Observed,
    stop: &CancellationToken,
) -> JoinSet<()> {
    let Observed { stats, readiness } = observed;
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
    stages.spawn(watch::follow(readiness, Arc::clone(gate), pool.clone(), stop.clone()));
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
