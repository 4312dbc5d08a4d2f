//! Runs a job at once after events that may give it work, instead of at its next tick.
//!
//! Whoever publishes such events also publishes a hint ([`contract::WAKES`]), which has no content. One replica of the job's worker
//! gets it, asks the database whether anybody has work due, and publishes a tick, like that of a schedule. A hint may be lost and may
//! come for nothing: what is due is in the database alone.

use std::time::Duration;

use async_nats::{Client, HeaderMap, jetstream};
use contract::{JobSubject, WorkerInfo, header, wake_subject};
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

/// Follows the hints for one job until `stop` is cancelled.
pub(crate) async fn follow(
    info: &'static WorkerInfo,
    job: &'static str,
    client: Client,
    jetstream: jetstream::Context,
    pool: Pool,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        if let Ok(hints) = client.queue_subscribe(wake_subject(job), info.name.to_owned()).await {
            answer(info, job, hints, &jetstream, &pool, &stop).await;
        }
        pause(&stop, PAUSE_AFTER_ERROR).await;
    }
}

/// Answers hints until the subscription ends or `stop` is cancelled.
async fn answer(
    info: &'static WorkerInfo,
    job: &'static str,
    mut hints: async_nats::Subscriber,
    jetstream: &jetstream::Context,
    pool: &Pool,
    stop: &CancellationToken,
) {
    loop {
        let hint = tokio::select! {
            () = stop.cancelled() => return,
            hint = hints.next() => hint,
        };
        if hint.is_none() {
            return;
        }
        pause(stop, GATHER).await;
        while let Some(Some(_)) = hints.next().now_or_never() {}
        let woken = match is_due(pool, job).await {
            Ok(false) => Ok(()),
            Ok(true) => tick(jetstream, job).await,
            Err(fault) => Err(fault.to_string()),
        };
        if let Err(problem) = &woken {
            tracing::warn!(
                worker = info.name,
                job,
                problem,
                "cannot run a job at once; its schedule goes on"
            );
        }
        pause(stop, if woken.is_ok() { PAUSE } else { PAUSE_AFTER_ERROR }).await;
    }
}

async fn pause(stop: &CancellationToken, time: Duration) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = tokio::time::sleep(time) => {}
    }
}

async fn is_due(pool: &Pool, job: &str) -> Result<bool, Fault> {
    let mut connection = store::acquire(pool).await?;
    let due = job_grants::has_due(&mut connection, job).await;
    store::discard_if_unusable(connection, &due);
    due
}

/// Publishes a tick, and waits until it is stored.
async fn tick(jetstream: &jetstream::Context, job: &str) -> Result<(), String> {
    let Ok(name) = job.parse() else { return Err("no name of a job".to_owned()) };
    let mut headers = HeaderMap::new();
    // Nobody but the server may set the headers of a schedule.
    headers.insert(header::WOKEN, Uuid::now_v7().to_string());
    let sent = jetstream.publish_with_headers(JobSubject(name).to_string(), headers, "".into()).await;
    let stored = sent.map_err(|error| error.to_string())?.await;
    stored.map(drop).map_err(|error| error.to_string())
}
