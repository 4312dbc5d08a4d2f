//! Runs a job at once after events that may give it work, instead of at its next tick.
//!
//! Whoever publishes such events also publishes a hint ([`contract::WAKES`]), which has no content. One replica of the job's worker
//! gets it, asks the database whether anybody has work due, and publishes a tick. A hint or such a tick may be lost and may come
//! for nothing: what is due is in the database alone, and the job's schedule goes on.
//!
//! The tick goes into a stream of its own. The stream of the schedules takes headers that are commands: whoever publishes into it can
//! purge it, or write schedules of others.

use std::time::Duration;

use async_nats::jetstream::stream::LastRawMessageErrorKind;
use async_nats::jetstream::{self, consumer::PullConsumer};
use async_nats::{Client, HeaderMap, Subscriber};
use contract::{JOBS_STREAM, Job, SCHEDULE_ROOT, TickSubject, WorkerInfo, header, wake_subject};
use futures::{FutureExt as _, StreamExt as _};
use store::{Fault, Pool, job_grants};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Hints that come within this time of the first one are one.
const GATHER: Duration = Duration::from_millis(5);
/// The shortest time between two ticks, and after a hint that came for nothing.
const PAUSE: Duration = Duration::from_millis(25);
/// Pause after an error. The schedule goes on.
const PAUSE_AFTER_ERROR: Duration = Duration::from_secs(1);
/// How often a hint is tried, so that a short interruption does not leave what it tells of to the next tick of the schedule.
const TRIES: u32 = 10;

/// Follows the hints for one job.
pub(crate) struct Waker {
    pub(crate) info: &'static WorkerInfo,
    pub(crate) job: &'static str,
    pub(crate) client: Client,
    pub(crate) jetstream: jetstream::Context,
    /// Delivers the ticks that are published here.
    pub(crate) consumer: PullConsumer,
    pub(crate) pool: Pool,
    pub(crate) stop: CancellationToken,
}

impl Waker {
    /// Follows the hints until `stop` is cancelled.
    pub(crate) async fn follow(self) {
        while !self.stop.is_cancelled() {
            let worker = self.info.name.to_owned();
            if let Ok(hints) = self.client.queue_subscribe(wake_subject(self.job), worker).await {
                self.answer(hints).await;
            }
            self.pause(PAUSE_AFTER_ERROR).await;
        }
    }

    /// Answers hints until the subscription ends or `stop` is cancelled.
    async fn answer(&self, mut hints: Subscriber) {
        let mut last = 0;
        loop {
            let hint = tokio::select! {
                () = self.stop.cancelled() => return,
                hint = hints.next() => hint,
            };
            if hint.is_none() {
                return;
            }
            self.pause(GATHER).await;
            while let Some(Some(_)) = hints.next().now_or_never() {}
            for _ in 0..TRIES {
                let Err(problem) = self.wake(&mut last).await else { break };
                tracing::warn!(
                    worker = self.info.name,
                    job = self.job,
                    problem,
                    "cannot run a job at once; its schedule goes on"
                );
                self.pause(PAUSE_AFTER_ERROR).await;
                if self.stop.is_cancelled() {
                    return;
                }
            }
            self.pause(PAUSE).await;
        }
    }

    /// Publishes a tick if one is needed, and notes its sequence number in `last`.
    async fn wake(&self, last: &mut u64) -> Result<(), String> {
        if self.is_waiting(*last).await?
            || self.is_paused().await?
            || !self.is_due().await.map_err(|fault| fault.to_string())?
        {
            return Ok(());
        }
        *last = self.tick().await?;
        Ok(())
    }

    /// Whether no replica has got the tick with this sequence number yet. It will find what is due now, too. Otherwise ticks would
    /// pile up while one takes its time.
    async fn is_waiting(&self, last: u64) -> Result<bool, String> {
        if last == 0 {
            return Ok(false);
        }
        let info = self.consumer.get_info().await.map_err(|error| error.to_string())?;
        // Without messages for the consumer, it was dropped, and its number says nothing.
        Ok(info.num_pending > 0 && info.delivered.stream_sequence < last)
    }

    /// Whether an operator has paused the job: then events do not run it either.
    async fn is_paused(&self) -> Result<bool, String> {
        let stream =
            self.jetstream.get_stream_no_info(JOBS_STREAM).await.map_err(|error| error.to_string())?;
        match stream.get_last_raw_message_by_subject(&format!("{SCHEDULE_ROOT}.{}", self.job)).await {
            Ok(schedule) => Ok(schedule.headers.get(header::PAUSED).is_some()),
            Err(error) => match error.kind() {
                LastRawMessageErrorKind::NoMessageFound => Ok(false),
                LastRawMessageErrorKind::InvalidSubject
                | LastRawMessageErrorKind::JetStream(_)
                | LastRawMessageErrorKind::Other => Err(error.to_string()),
            },
        }
    }

    async fn is_due(&self) -> Result<bool, Fault> {
        let mut connection = store::acquire(&self.pool).await?;
        let due = job_grants::has_due(&mut connection, self.job).await;
        store::discard_if_unusable(connection, &due);
        due
    }

    /// Publishes a tick, waits until it is stored, and returns its sequence number.
    async fn tick(&self) -> Result<u64, String> {
        let Ok(job) = self.job.parse::<Job>() else { return Err("no name of a job".to_owned()) };
        let mut headers = HeaderMap::new();
        // Nobody but the server may set the headers of a schedule.
        headers.insert(header::WOKEN, Uuid::now_v7().to_string());
        let subject = TickSubject::Woken(job).to_string();
        let sent = self.jetstream.publish_with_headers(subject, headers, "".into()).await;
        let stored = sent.map_err(|error| error.to_string())?.await;
        stored.map(|stored| stored.sequence).map_err(|error| error.to_string())
    }

    async fn pause(&self, time: Duration) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(time) => {}
        }
    }
}
