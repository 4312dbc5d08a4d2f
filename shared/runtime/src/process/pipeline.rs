//! Runs one worker from start to stop.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, jetstream};
use config::Settings;
use contract::{DeadLetterClass, RequestSubject};
use keys::Keys;
use store::Pool;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use trust::Refusal;

use crate::delivery::awaited::AwaitedWorkers;
use crate::delivery::event_order::OtherWorkers;
use crate::delivery::event_publisher::EventPublisher;
use crate::delivery::in_flight::InFlight;
use crate::delivery::retry::Budget;
use crate::delivery::share::Shares;
use crate::delivery::summary::Summaries;
use crate::delivery::undeliverable::UndeliverableHandler;
use crate::delivery::watermarks::Watermarks;
use crate::process::crash::{self, Point};
use crate::process::readiness::{Dependency, Phase, Readiness, probe};
use crate::process::run_error::RunError;
use crate::process::start::{Dependencies, PullSource, start};
use crate::process::stats::Stats;
use crate::process::trust_refresh;
use crate::stages::authorize::{Authorization, Authorizer, Denied};
use crate::stages::decode::{Bodies, Decoded, decode};
use crate::stages::disposition::Disposition;
use crate::stages::heavy::{HeavyMessages, portions, prepare_stage};
use crate::stages::pull::{Delivery, Puller};
use crate::stages::settle::Settler;
use crate::stages::write::{ToSettle, ToWrite, Writer};
use crate::worker::ExternalWorker;

/// Runs a worker until `stop` is cancelled, then finishes what is in flight and hands back the rest.
///
/// # Errors
/// [`RunError`] if it cannot start or a stage fails. Being stopped is not an error.
pub async fn run<W: ExternalWorker>(
    worker: Arc<W>,
    settings: &Settings,
    observed: Observed,
    stop: CancellationToken,
) -> Result<(), RunError> {
    settings.check()?;
    let Observed { stats, readiness } = observed;
    let Some(dependencies) = start::<W>(settings, &readiness, &stop).await? else { return Ok(()) };
    tracing::info!(worker = W::INFO.name, stream = W::INFO.stream, "started");
    let in_flight = InFlight::default();
    let ack_waits = dependencies.consumers.iter().map(|source| source.consumer.cached_info().config.ack_wait);
    let ack_wait = ack_waits.min().unwrap_or_default();
    // Renewal continues until the stages have finished.
    let _renewing =
        AbortOnDropHandle::new(tokio::spawn(in_flight.clone().renew(dependencies.client.clone(), ack_wait)));
    readiness.reached(Phase::Running);
    let _probing = AbortOnDropHandle::new(tokio::spawn(probe_dependencies(
        Arc::clone(&worker),
        dependencies.keys.clone(),
        dependencies.consumers.clone(),
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
            // A stage ends before `stop` is cancelled only if it panics.
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
        // Sends the buffered acknowledgements. Times out if the broker is unreachable.
        let flushed = timeout(FLUSH_TIMEOUT, dependencies.client.flush()).await;
        tracing::debug!(worker = W::INFO.name, flushed = flushed.is_ok(), "finished");
    });
    if finished.await.is_err() {
        tracing::warn!(
            worker = W::INFO.name,
            "not finished within the grace period; messages in flight are redelivered"
        );
    }
    match broken {
        Some(problem) => Err(RunError::StageFailed { worker: W::INFO.name, problem }),
        None => {
            tracing::info!(worker = W::INFO.name, "stopped");
            Ok(())
        }
    }
}

/// The observable state of a running worker.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Its counters.
    pub stats: Arc<Stats>,
    /// Its readiness.
    pub readiness: Readiness,
}

impl Observed {
    /// The state of a worker that has not started yet.
    pub fn new(worker: &'static str) -> Self {
        Self { stats: Arc::default(), readiness: Readiness::new(worker) }
    }
}

/// Probes the dependencies of a worker until `stop` is cancelled.
async fn probe_dependencies<W: ExternalWorker>(
    worker: Arc<W>,
    keys: Option<Arc<Keys>>,
    consumers: Vec<PullSource>,
    client: Client,
    readiness: Readiness,
    stop: CancellationToken,
) {
    let probe_all = async || {
        let mut results = worker.probe().await;
        for PullSource { consumer, .. } in &consumers {
            results.push(probe(Dependency::Nats, consumer.get_info()).await);
        }
        if let Some(keys) = &keys {
            results.push(probe(Dependency::KeyStore, keys.check()).await);
        }
        results
    };
    readiness.follow(client, probe_all, stop).await;
}

/// Time limit for sending the last acknowledgements.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

fn spawn_stages<W: ExternalWorker>(
    worker: Arc<W>,
    settings: &Settings,
    dependencies: &Dependencies,
    in_flight: InFlight,
    observed: Observed,
    stop: &CancellationToken,
) -> JoinSet<()> {
    let Observed { stats, readiness } = observed;
    let mut stages = JoinSet::new();
    let (to_write, to_be_written) = mpsc::channel::<ToWrite<W>>(1);
    let (to_settle, to_be_settled) = mpsc::channel(1);
    let Dependencies { client, jetstream, consumers, advisories, pool, keys, bodies, authorizer } =
        dependencies;

    let watermarks = Arc::new(Watermarks::default());
    let writer = Arc::new(Writer {
        worker: Arc::clone(&worker),
        pool: pool.clone(),
        keys: keys.clone(),
        watermarks: Arc::clone(&watermarks),
        stats: Arc::clone(&stats),
        blocked: readiness.blocked().clone(),
        lock_timeout: Duration::from_millis(settings.postgres.lock_timeout_ms),
        stop: stop.clone(),
    });
    let event_publisher =
        EventPublisher { worker: W::INFO.name, jetstream: jetstream.clone(), stop: stop.clone() };
    let undeliverable_handler = UndeliverableHandler::<W> {
        worker: PhantomData,
        bodies: Arc::clone(bodies),
        authorizer: Arc::clone(authorizer),
        client: client.clone(),
        event_publisher: event_publisher.clone(),
        jetstream: jetstream.clone(),
        pool: pool.clone(),
        stats: Arc::clone(&stats),
    };
    let limits = consumers.iter().map(|source| source.consumer.cached_info().config.max_deliver);
    let settler = Settler {
        worker: W::INFO.name,
        client: client.clone(),
        event_publisher,
        settings: settings.worker.clone(),
        watermarks,
        stats,
        budget: Budget::default(),
        shares: Shares::default(),
        summaries: Summaries::default(),
        readiness: readiness.clone(),
        awaited: AwaitedWorkers::new(W::INFO.name, jetstream.clone(), settings.worker.prerequisite_wait()),
        other_workers: OtherWorkers::new(W::INFO.name, pool.clone()),
        pool: pool.clone(),
        last_delivery: limits.filter(|&limit| limit > 0).min(),
    };
    let dead_lettering = undeliverable_handler.run(
        advisories.clone(),
        in_flight.clone(),
        settings.worker.clone(),
        stop.clone(),
    );
    let heavy = (W::MAX_PREPARED_BYTES < usize::MAX).then(|| {
        let (heavy, to_be_prepared, users) = HeavyMessages::new(W::MAX_PREPARED_BYTES);
        let (writer, to_write, to_settle) = (Arc::clone(&writer), to_write.clone(), to_settle.clone());
        stages.spawn(prepare_stage(writer, to_be_prepared, users, to_write, to_settle));
        heavy
    });
    let puller = |source| PullStage::<W> {
        worker: PhantomData,
        source,
        jetstream: jetstream.clone(),
        authorizer: Arc::clone(authorizer),
        bodies: Arc::clone(bodies),
        pool: pool.clone(),
        in_flight: in_flight.clone(),
        settings: settings.clone(),
        stop: stop.clone(),
        to_write: to_write.clone(),
        heavy: heavy.clone(),
        to_settle: to_settle.clone(),
    };
    for source in consumers {
        stages.spawn(puller(source.clone()).run());
    }
    drop((to_write, heavy));
    stages.spawn(write_stage(writer, to_be_written, to_settle));
    stages.spawn(settle_stage(settler, to_be_settled));
    stages.spawn(dead_lettering);
    stages.spawn(trust_refresh::follow(readiness, Arc::clone(authorizer), pool.clone(), stop.clone()));
    stages
}

/// Redelivery delay of a message whose authorization needs the latest registry state while the registry is unavailable.
/// At this delay, a message reaches the consumer's `max_deliver` only after an hour.
const REGISTRY_RETRY_DELAY: Duration = Duration::from_secs(30);

/// The first three stages: pull, decode, authorize.
struct PullStage<W: ExternalWorker> {
    worker: PhantomData<fn() -> W>,
    source: PullSource,
    jetstream: jetstream::Context,
    authorizer: Arc<Authorizer>,
    bodies: Arc<Bodies>,
    pool: Pool,
    in_flight: InFlight,
    settings: Settings,
    stop: CancellationToken,
    to_write: mpsc::Sender<ToWrite<W>>,
    /// Set for a worker some of whose messages are prepared apart.
    heavy: Option<HeavyMessages<W::Item>>,
    to_settle: mpsc::Sender<ToSettle<W::Item>>,
}

impl<W: ExternalWorker> PullStage<W> {
    async fn run(self) {
        let mut settings = self.settings.worker.clone();
        let PullSource { stream, consumer, max_batch } = self.source.clone();
        settings.batch_size = settings.batch_size.min(max_batch);
        let (jetstream, in_flight) = (self.jetstream.clone(), self.in_flight.clone());
        let mut puller = Puller::new(W::INFO.name, stream, consumer, jetstream, in_flight, &settings);
        while let Some(deliveries) = puller.next(&self.stop).await {
            tracing::debug!(worker = W::INFO.name, messages = deliveries.len(), "pulled");
            crash::reach(Point::Pulled);
            if !self.forward(deliveries).await {
                break;
            }
        }
        let handed_back = puller.hand_back().await;
        tracing::debug!(worker = W::INFO.name, handed_back, "stopped pulling");
    }

    /// Decodes and authorizes a batch and passes it on. False if the later stages have ended.
    async fn forward(&self, deliveries: Vec<Delivery>) -> bool {
        let mut sorted =
            Sorted { to_write: ToWrite::default(), maybe_stale: Vec::new(), to_settle: Vec::new() };
        for delivery in deliveries {
            match decode::<W::Item>(&self.bodies, delivery) {
                Ok(decoded) => sorted.add(self.authorizer.authorize(decoded)),
                Err(refused) => {
                    let (delivery, malformed) = *refused;
                    let (class, reason) = (DeadLetterClass::Malformed, malformed.to_string().into());
                    let disposition = Disposition::DeadLetter { class, reason };
                    sorted.to_settle.push(ToSettle::Single(Box::new(delivery), disposition));
                }
            }
        }
        if !sorted.maybe_stale.is_empty() {
            self.authorize_again(&mut sorted).await;
        }
        if let Some(heavy) = &self.heavy {
            for message in heavy.take(&mut sorted.to_write.authorized) {
                let delivery = Box::new(message.into_delivery());
                sorted.to_settle.push(ToSettle::Single(delivery, Disposition::Park(Duration::ZERO)));
            }
        }
        crash::reach(Point::Authorized);
        for item in sorted.to_settle {
            if self.to_settle.send(item).await.is_err() {
                return false;
            }
        }
        let nothing = sorted.to_write.authorized.is_empty() && sorted.to_write.denied.is_empty();
        nothing || self.to_write.send(sorted.to_write).await.is_ok()
    }

    /// Refreshes the registry state, then authorizes the messages again that it may allow.
    async fn authorize_again(&self, sorted: &mut Sorted<W>) {
        let refreshed = trust_refresh::refresh(&self.authorizer, &self.pool).await.is_ok();
        tracing::debug!(worker = W::INFO.name, refreshed, "refreshed the state of the registry");
        for (decoded, ..) in std::mem::take(&mut sorted.maybe_stale) {
            if refreshed {
                sorted.add(self.authorizer.authorize(decoded));
            } else {
                // Whether it is allowed cannot be decided until the registry is reachable again.
                let delivery = Box::new(decoded.delivery);
                sorted
                    .to_settle
                    .push(ToSettle::Single(delivery, Disposition::Redeliver(REGISTRY_RETRY_DELAY)));
            }
        }
        for (decoded, subject, refusal) in std::mem::take(&mut sorted.maybe_stale) {
            sorted.to_write.denied.push(Denied::new(decoded, subject, refusal));
        }
    }
}

/// A batch, grouped by the next step of each message.
struct Sorted<W: ExternalWorker> {
    to_write: ToWrite<W>,
    /// Messages that the latest registry state may allow.
    maybe_stale: Vec<(Decoded<W::Item>, RequestSubject, Refusal)>,
    to_settle: Vec<ToSettle<W::Item>>,
}

impl<W: ExternalWorker> Sorted<W> {
    fn add(&mut self, authorization: Authorization<W::Item>) {
        match authorization {
            Authorization::Authorized(authorized) => self.to_write.authorized.push(*authorized),
            Authorization::Denied(denied) => self.to_write.denied.push(*denied),
            Authorization::MaybeStale(decoded, subject, refusal) => {
                self.maybe_stale.push((*decoded, subject, refusal));
            }
            Authorization::RateLimited(delivery, delay) => {
                self.to_settle.push(ToSettle::Single(delivery, Disposition::Redeliver(delay)));
            }
        }
    }
}

async fn write_stage<W: ExternalWorker>(
    writer: Arc<Writer<W>>,
    mut batches: mpsc::Receiver<ToWrite<W>>,
    to_settle: mpsc::Sender<ToSettle<W::Item>>,
) {
    while let Some(ToWrite { mut authorized, denied, mut prepared }) = batches.recv().await {
        let recorded = denied.is_empty() || writer.record_denied(&denied).await;
        for Denied { delivery, refusal, .. } in denied {
            let disposition = if recorded {
                Disposition::DeadLetter { class: DeadLetterClass::Denied, reason: refusal.to_string().into() }
            } else {
                Disposition::HAND_BACK
            };
            if to_settle.send(ToSettle::Single(Box::new(delivery), disposition)).await.is_err() {
                return;
            }
        }
        let sizes = authorized.iter().map(|message| message.message().body.len());
        for length in portions(sizes, W::MAX_PREPARED_BYTES) {
            let portion: Vec<_> = authorized.drain(..length).collect();
            let (messages, since) = (portion.len(), Instant::now());
            let settlements = writer.write(portion, prepared.take(), &to_settle).await;
            tracing::debug!(worker = W::INFO.name, messages, elapsed = ?since.elapsed(), "written");
            if to_settle.send(ToSettle::Batch(settlements)).await.is_err() {
                return;
            }
        }
    }
}

/// How often it is checked whether summaries of dead letters are due.
const SUMMARY_CHECK: Duration = Duration::from_secs(1);

async fn settle_stage<I>(mut settler: Settler, mut items: mpsc::Receiver<ToSettle<I>>) {
    let mut summaries = interval(SUMMARY_CHECK);
    summaries.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let item = tokio::select! {
            item = items.recv() => item,
            _ = summaries.tick() => {
                settler.publish_summaries(false).await;
                continue;
            }
        };
        let Some(item) = item else { break };
        let since = Instant::now();
        settler.settle(item).await;
        tracing::debug!(worker = settler.worker, elapsed = ?since.elapsed(), "settled");
    }
    settler.publish_summaries(true).await;
}
