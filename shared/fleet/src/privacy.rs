//! Erases persons whose erasure was requested, and restricts and exports as services request it, at a fixed interval.

use std::time::Duration;

use config::Settings;
use privacy::Carried;
use privacy::process::{self, Passed};
use tokio::time::{Instant, MissedTickBehavior, interval};
use uuid::Uuid;

/// The minimum time between two warnings about requests that do not go on.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Does what is due of all erasures, and of requests of services, every `privacy.every_s` seconds. It never returns: after a failure, it tries again at the next interval.
/// Several may run at once.
pub async fn follow(settings: &Settings) {
    let run = Uuid::now_v7();
    let mut ticks = interval(settings.privacy.every());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut warned: Option<Instant> = None;
    loop {
        ticks.tick().await;
        let passed = match process::pass(settings, run, chrono::Utc::now()).await {
            Ok(passed) => passed,
            Err(error) => {
                tracing::error!(%error, "cannot look for erasures");
                continue;
            }
        };
        let Passed { done, waiting, failed, others } = passed;
        if done > 0 {
            tracing::info!(done, "erased");
        }
        let Carried { restricted, exported, .. } = others;
        if restricted > 0 || exported > 0 {
            tracing::info!(restricted, exported, "requests of services were carried out");
        }
        let (waiting, failed) = (waiting + others.waiting, failed + others.failed);
        if failed > 0 && warned.is_none_or(|warned| warned.elapsed() >= WARN_EVERY) {
            tracing::warn!(
                failed,
                waiting,
                "privacy requests do not go on; `memfleet privacy list` has the reasons"
            );
            warned = Some(Instant::now());
        }
    }
}
