//! Runs one worker from start to stop.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use config::Settings;
use contract::WAKES_STREAM;
use keys::Keys;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::delivery::accounts::Accounts;
use crate::delivery::awaited::AwaitedWorkers;
use crate::delivery::event_order::OtherWorkers;
use crate::delivery::event_publisher::EventPublisher;
use crate::delivery::in_flight::InFlight;
use crate::delivery::undeliverable::UndeliverableHandler;
use crate::delivery::watermarks::Watermarks;
use crate::process::readiness::{Dependency, Phase, Readiness, probe};
use crate::process::run_error::RunError;
use crate::process::start::{Dependencies, PullSource, start};
use crate::process::stats::Stats;
use crate::process::trust_refresh;
use crate::process::wake::Waker;
use crate::stages::fair_queue::Amount;
use crate::stages::intake::Intake;
use crate::stages::pull::{BATCH_BYTES, Puller};
use crate::stages::queues::{LightLane, QueueLimits, Queues};
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

/// How many heavy messages of different services are processed at once, beside the batches of light ones.
const HEAVY_LANES: usize = 2;
/// What other services leave to one of them in a batch, in bytes.
const PART_BYTES: usize = 256 * 1024;
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
    let Dependencies {
        client,
        jetstream,
        consumers,
        advisories,
        pool,
        keys,
        bodies,
        authorizer,
        dead_letter_ids,
    } = dependencies;

    let writer = Writer {
        worker: Arc::clone(&worker),
        pool: pool.clone(),
        keys: keys.clone(),
        watermarks: Arc::default(),
        stats: Arc::clone(&stats),
        blocked: readiness.blocked().clone(),
        lock_timeout: Duration::from_millis(settings.postgres.lock_timeout_ms),
        stop: stop.clone(),
    };
    let event_publisher =
        EventPublisher { worker: W::INFO.name, jetstream: jetstream.clone(), stop: stop.clone() };
    let undeliverable_handler = UndeliverableHandler::<W> {
        worker: PhantomData,
        bodies: Arc::clone(bodies),
        authorizer: Arc::clone(authorizer),
        client: client.clone(),
        event_publisher: event_publisher.clone(),
        jetstream: jetstream.clone(),
        dead_letter_ids: *dead_letter_ids,
        pool: pool.clone(),
        stats: Arc::clone(&stats),
    };
    let limits = consumers.iter().map(|source| source.consumer.cached_info().config.max_deliver);
    let awaited = AwaitedWorkers::new(W::INFO.name, jetstream.clone(), settings.worker.prerequisite_wait());
    let accounts = Arc::new(Accounts::new(awaited, settings.worker.waiting_per_service));
    let last_delivery = limits.filter(|&limit| limit > 0).min();
    // A lane has watermarks of its own: what it commits is not in the order of the others.
    let lane = |stages: &mut JoinSet<()>| {
        let watermarks: Arc<Watermarks> = Arc::default();
        let settler = Settler {
            worker: W::INFO.name,
            client: client.clone(),
            event_publisher: event_publisher.clone(),
            settings: settings.worker.clone(),
            watermarks: Arc::clone(&watermarks),
            stats: Arc::clone(&stats),
            accounts: Arc::clone(&accounts),
            dead_letter_ids: *dead_letter_ids,
            readiness: readiness.clone(),
            other_workers: OtherWorkers::new(W::INFO.name, pool.clone()),
            pool: pool.clone(),
            last_delivery,
        };
        let (to_settle, to_be_settled) = mpsc::channel::<ToSettle<W::Item>>(1);
        stages.spawn(settle_stage(settler, to_be_settled));
        (Writer { watermarks, ..writer.clone() }, to_settle)
    };
    let dead_lettering = undeliverable_handler.run(
        advisories.clone(),
        in_flight.clone(),
        settings.worker.clone(),
        stop.clone(),
    );
    for source in consumers {
        let PullSource { stream, consumer, max_batch } = source.clone();
        let batch_size = settings.worker.batch_size.min(max_batch);
        let limits = QueueLimits {
            batch: Amount { messages: batch_size, bytes: BATCH_BYTES },
            batch_wait: settings.worker.batch_wait(),
            heavy_bytes: W::HEAVY_BYTES,
            heavy_kinds: W::HEAVY_KINDS,
            // A part that is prepared in several portions would keep the others waiting for all of them.
            part_bytes: PART_BYTES.min(W::MAX_PREPARED_BYTES),
        };
        let intake = Arc::new(Intake::<W> {
            worker: PhantomData,
            queues: Arc::new(Queues::new(limits)),
            authorizer: Arc::clone(authorizer),
            bodies: Arc::clone(bodies),
            pool: pool.clone(),
            stop: stop.clone(),
        });
        let puller =
            Puller::new(W::INFO.name, stream, consumer, jetstream.clone(), in_flight.clone(), batch_size);
        let (_, to_settle) = lane(&mut stages);
        stages.spawn(Arc::clone(&intake).receive(puller, to_settle));
        for light in [LightLane::Quick, LightLane::Bulk] {
            let (writer, to_settle) = lane(&mut stages);
            let (to_write, to_be_written) = mpsc::channel(1);
            stages.spawn(Arc::clone(&intake).light_lane(light, to_write, to_settle.clone()));
            stages.spawn(write_stage(writer, to_be_written, to_settle));
        }
        for _ in 0..HEAVY_LANES {
            let (writer, to_settle) = lane(&mut stages);
            stages.spawn(Arc::clone(&intake).heavy_lane(writer, to_settle));
        }
    }
    for wakes in consumers.iter().filter(|source| source.stream == WAKES_STREAM) {
        for job in W::INFO.woken_jobs() {
            let waker = Waker {
                info: W::INFO,
                job,
                client: client.clone(),
                jetstream: jetstream.clone(),
                consumer: wakes.consumer.clone(),
                pool: pool.clone(),
                stop: stop.clone(),
            };
            stages.spawn(waker.follow());
        }
    }
    stages.spawn(dead_lettering);
    let key_store = keys.as_ref().map(|keys| keys.pool().clone());
    let refreshing =
        trust_refresh::follow(readiness, Arc::clone(authorizer), pool.clone(), key_store, stop.clone());
    stages.spawn(refreshing);
    stages
}

async fn write_stage<W: ExternalWorker>(
    writer: Writer<W>,
    mut batches: mpsc::Receiver<ToWrite<W>>,
    to_settle: mpsc::Sender<ToSettle<W::Item>>,
) {
    while let Some(batch) = batches.recv().await {
        if !writer.write_and_settle(batch, &to_settle).await {
            return;
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
