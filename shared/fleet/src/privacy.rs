//! Erases persons whose erasure was requested, and restricts and exports as services request it, at a fixed interval.

use std::time::Duration;

use chrono::Utc;
use config::Settings;
use privacy::process::{self, Passed};
use privacy::{Carried, PrivacyError, aftercare, pending};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use uuid::Uuid;

/// The minimum time between two warnings about requests that do not go on.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Does what is due of all erasures, and of requests of services, every `privacy.every_s` seconds, and looks after erasures that are complete. None of
/// these waits for another. It never returns: after a failure, it tries again at the next interval. Several may run at once.
pub async fn follow(settings: &Settings) {
    tokio::join!(
        erase(settings),
        carry_out(settings, async || Box::pin(pending::restrict_due(settings)).await),
        carry_out(settings, async || Box::pin(pending::export_due(settings)).await),
        care(settings)
    );
}

fn ticks(settings: &Settings) -> Interval {
    let mut ticks = interval(settings.privacy.every());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn erase(settings: &Settings) {
    let (mut ticks, mut stopped) = (ticks(settings), Stopped::default());
    loop {
        ticks.tick().await;
        match process::erase_due(settings).await {
            Ok(Passed { done, waiting, failed }) => {
                if done > 0 {
                    tracing::info!(done, "erased");
                }
                stopped.warn(failed, waiting);
            }
            Err(error) => tracing::error!(%error, "cannot look for erasures"),
        }
    }
}

async fn carry_out(settings: &Settings, due: impl AsyncFn() -> Result<Carried, PrivacyError>) {
    let (mut ticks, mut stopped) = (ticks(settings), Stopped::default());
    loop {
        ticks.tick().await;
        match due().await {
            Ok(Carried { restricted, exported, waiting, failed }) => {
                if restricted > 0 || exported > 0 {
                    tracing::info!(restricted, exported, "requests of services were carried out");
                }
                stopped.warn(failed, waiting);
            }
            Err(error) => tracing::error!(%error, "cannot look for requests of services"),
        }
    }
}

async fn care(settings: &Settings) {
    let (run, mut ticks) = (Uuid::now_v7(), ticks(settings));
    loop {
        ticks.tick().await;
        if let Err(error) = aftercare::run_if_due(settings, run, Utc::now()).await {
            tracing::error!(%error, "cannot look after erasures that are complete");
        }
    }
}

/// When it was last warned of requests that do not go on.
#[derive(Default)]
struct Stopped {
    warned: Option<Instant>,
}

impl Stopped {
    fn warn(&mut self, failed: u64, waiting: u64) {
        if failed == 0 || self.warned.is_some_and(|warned| warned.elapsed() < WARN_EVERY) {
            return;
        }
        tracing::warn!(
            failed,
            waiting,
            "privacy requests do not go on; `memfleet privacy list` has the reasons"
        );
        self.warned = Some(Instant::now());
    }
}
