//! The whole path: messages are stored in the broker first, then consumed by a separate worker process.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{self, stream::Stream};
use cli::key_file::add_key;
use config::Settings;
use fleet::{Fleet, WorkerName};
use runtime::ExternalWorker;
use store::registry::{self, Rates, ServiceEntry};
use tokio::process::Child;
use tokio::time::{MissedTickBehavior, interval, sleep};
use trust::KeyRing;

use super::bulk::{Bulk, Prepared, stored};
use super::corpus::Corpus;
use super::process::{Meter, Reading, peak_rss_mib, start_workers};

/// The figures of one run.
pub(super) struct Run {
    pub(super) messages_per_second: f64,
    pub(super) client_ms_per_1k: f64,
    pub(super) nats_ms_per_1k: Option<f64>,
    pub(super) postgres_ms_per_1k: Option<f64>,
    pub(super) peak_rss_mib: f64,
}

/// Milliseconds from being stored by the broker to commit.
pub(super) struct Delay {
    pub(super) p50: f64,
    pub(super) p99: f64,
}

/// The path through one worker.
pub(super) struct Pipeline {
    worker: &'static str,
    settings: Settings,
    bulk: Bulk,
    stream: Stream<()>,
    consumer: PullConsumer,
}

const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// A run without progress for this long has failed.
const STUCK_AFTER: Duration = Duration::from_secs(60);
/// For how long the delay is measured.
const DELAY_FOR: Duration = Duration::from_secs(8);
/// How often messages are published while the delay is measured.
const PULSE: Duration = Duration::from_millis(10);
/// The consumer resumes by itself after this time, in case this process is killed before it resumes it.
const PAUSE: Duration = Duration::from_secs(120);
/// Messages before the delay is measured, so that the worker's connection is open and its statements are prepared.
const WARM_UP: usize = 200;

impl Pipeline {
    pub(super) async fn open<W: ExternalWorker>(settings: &Settings) -> anyhow::Result<Self> {
        let mut registry = store::connect(&settings.postgres.url).await?;
        let entry = ServiceEntry { scopes: vec!["*:*".parse()?], rates: Rates::default() };
        registry::put_service(&mut registry, &"bench".parse()?, &entry).await?;
        let bulk = Bulk::open(settings).await?;
        let jetstream = jetstream::new(bulk.client().clone());
        let stream = jetstream.get_stream_no_info(W::INFO.stream.unwrap_or_default()).await?;
        let consumer =
            jetstream.get_consumer_from_stream(W::INFO.name, W::INFO.stream.unwrap_or_default()).await?;
        Ok(Self { worker: W::INFO.name, settings: settings.clone(), bulk, stream, consumer })
    }

    /// Writes the users and sessions that the messages need, through context-writer.
    pub(super) async fn prepare(&self, corpus: &Corpus) -> anyhow::Result<()> {
        self.process(corpus.accounts(), WorkerName::ContextWriter).await
    }

    /// The connection to the broker.
    pub(super) fn client(&self) -> &async_nats::Client {
        self.bulk.client()
    }

    /// Publishes messages and waits until the broker has stored them.
    pub(super) async fn publish(&self, messages: impl IntoIterator<Item = Prepared>) -> anyhow::Result<()> {
        self.bulk.publish(messages).await
    }

    /// Publishes messages, and has the worker of this pipeline process them in this process.
    pub(super) async fn process(&self, messages: Vec<Prepared>, worker: WorkerName) -> anyhow::Result<()> {
        self.bulk.publish(messages).await?;
        let fleet = Fleet::start(&[worker], &self.settings);
        let settled = self.settled().await;
        fleet.stop().await?;
        settled
    }

    /// Measures one run. The consumer is paused until the worker's pull request is waiting.
    pub(super) async fn measure(&self, messages: &[Prepared], meter: &Meter) -> anyhow::Result<Run> {
        self.bulk.publish(messages.iter().cloned()).await?;
        let (mut worker, process) = self.start_waiting_worker().await?;
        let (started, before) = self.first_delivery(process, meter).await?;
        self.settled().await?;
        let seconds = started.elapsed().as_secs_f64();
        let after = meter.read(process)?;
        let peak_rss_mib = peak_rss_mib(process)?;
        worker.kill().await.context("cannot kill the worker process")?;
        let count = messages.len() as f64;
        let per_1k = |after: f64, before: f64| (after - before) / count * 1_000.0;
        Ok(Run {
            messages_per_second: count / seconds,
            client_ms_per_1k: per_1k(after.client, before.client),
            nats_ms_per_1k: after.nats.zip(before.nats).map(|(after, before)| per_1k(after, before)),
            postgres_ms_per_1k: after
                .postgres
                .zip(before.postgres)
                .map(|(after, before)| per_1k(after, before)),
            peak_rss_mib,
        })
    }

    /// Starts a worker process, and returns when its pull request is waiting at the server. Resumes the consumer in any
    /// case.
    async fn start_waiting_worker(&self) -> anyhow::Result<(Child, u32)> {
        let until = time_in(PAUSE)?;
        self.stream.pause_consumer(self.worker, until).await.context("cannot pause the consumer")?;
        let waiting = async {
            let mut worker = start_workers(&self.settings, &[self.worker])?;
            let process = worker.id().context("the worker process ended immediately")?;
            self.wait_for(&mut worker, "the worker to wait for messages", |info| info.num_waiting > 0)
                .await?;
            Ok((worker, process))
        };
        let started = waiting.await;
        self.resume().await?;
        started
    }

    /// Resumes the consumer, whether or not it was paused.
    pub(super) async fn resume(&self) -> anyhow::Result<()> {
        let resumed = self.stream.resume_consumer(self.worker).await;
        resumed.map(drop).context("cannot resume the consumer")
    }

    /// Waits for the first delivery, and returns its time and the processor time used until then. The broker may start
    /// to deliver only some seconds after the resume, which is not counted as the worker's time.
    async fn first_delivery(&self, process: u32, meter: &Meter) -> anyhow::Result<(Instant, Reading)> {
        let since = Instant::now();
        let delivered = self.consumer.get_info().await?.delivered.consumer_sequence;
        loop {
            let before = (Instant::now(), meter.read(process)?);
            if self.consumer.get_info().await?.delivered.consumer_sequence > delivered {
                return Ok(before);
            }
            ensure!(since.elapsed() < STUCK_AFTER, "waited {STUCK_AFTER:?} for a first delivery");
            sleep(POLL_INTERVAL).await;
        }
    }

    async fn wait_for(
        &self,
        worker: &mut Child,
        what: &str,
        seen: impl Fn(&jetstream::consumer::Info) -> bool,
    ) -> anyhow::Result<()> {
        let since = Instant::now();
        loop {
            if let Some(status) = worker.try_wait()? {
                bail!("the worker process ended: {status}");
            }
            if seen(&self.consumer.get_info().await?) {
                return Ok(());
            }
            ensure!(since.elapsed() < STUCK_AFTER, "waited {STUCK_AFTER:?} for {what}");
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits until all messages are settled. Fails if there is no progress for [`STUCK_AFTER`].
    pub(super) async fn settled(&self) -> anyhow::Result<()> {
        let (mut progress_at, mut left) = (Instant::now(), u64::MAX);
        loop {
            let info = self.consumer.get_info().await?;
            let now_left = info.num_pending + info.num_ack_pending as u64;
            if now_left == 0 {
                return Ok(());
            }
            if now_left != left {
                (progress_at, left) = (Instant::now(), now_left);
            }
            ensure!(
                progress_at.elapsed() < STUCK_AFTER,
                "no progress for {STUCK_AFTER:?}; {left} messages are left"
            );
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Removes what is acknowledged from the stream: with millions of messages, it would be full.
    pub(super) async fn purge(&self) -> anyhow::Result<()> {
        let acknowledged = self.consumer.get_info().await?.ack_floor.stream_sequence;
        let purged = self.stream.purge().sequence(acknowledged + 1).await;
        purged.map(drop).context("cannot purge the stream")
    }

    /// Publishes contexts at a steady rate below saturation, and reads the delay from context-writer's counters.
    pub(super) async fn delay(&self, corpus: &mut Corpus, rate: u32) -> anyhow::Result<Delay> {
        let fleet = Fleet::start(&[WorkerName::ContextWriter], &self.settings);
        let (_, stats) = fleet.stats().first().context("no worker is running")?;
        self.bulk.publish(corpus.messages(WARM_UP)).await?;
        self.settled().await?;
        stats.reset();
        let pulses = DELAY_FOR.as_millis() / PULSE.as_millis();
        let messages = corpus.messages((f64::from(rate) * DELAY_FOR.as_secs_f64()) as usize);
        let mut publisher = self.bulk.publisher();
        let mut tick = interval(PULSE);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let share = (messages.len() / usize::try_from(pulses)?).max(1);
        for pulse in messages.chunks(share) {
            tick.tick().await;
            for message in pulse {
                self.bulk.send(&mut publisher, message.clone()).await?;
            }
        }
        stored(&publisher.finish().await)?;
        let settled = self.settled().await;
        let report = stats.report();
        fleet.stop().await?;
        settled?;
        ensure!(
            report.applied == messages.len() as u64,
            "{} of {} messages took effect",
            report.applied,
            messages.len()
        );
        Ok(Delay { p50: report.publish_to_commit_ms_p50, p99: report.publish_to_commit_ms_p99 })
    }
}

/// Adds a payload key for the benchmark's service, so that its bodies are encrypted as those of other services are.
pub(super) fn add_payload_key(settings: &Settings) -> anyhow::Result<()> {
    let Some(ring) = settings.trust.payload_ring_file.as_ref().map(Path::new) else { return Ok(()) };
    if KeyRing::read(ring)?.current("bench").is_none() {
        add_key(ring, "bench", 1)?;
    }
    Ok(())
}

fn time_in(pause: Duration) -> anyhow::Result<time::OffsetDateTime> {
    let now = time::OffsetDateTime::now_utc();
    now.checked_add(time::Duration::try_from(pause)?).context("the pause is out of range")
}
