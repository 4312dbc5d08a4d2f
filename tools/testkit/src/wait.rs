use std::future::Future;
use std::time::{Duration, Instant};

/// How long a test waits for anything: far more than it takes, since the machine may be busy.
pub const DEADLINE: Duration = Duration::from_secs(60);

const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Probes until there is a result.
///
/// # Panics
/// With `what`, if the [`DEADLINE`] passes first.
pub async fn eventually<T, F>(what: &str, mut probe: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let since = Instant::now();
    loop {
        if let Some(result) = probe().await {
            return result;
        }
        assert!(since.elapsed() < DEADLINE, "waited {DEADLINE:?} for: {what}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
