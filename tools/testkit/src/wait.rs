use std::future::Future;
use std::time::{Duration, Instant};

/// How long a test waits for anything. Far more than it takes, since the machine may be busy with other things.
pub const DEADLINE: Duration = Duration::from_secs(60);

const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Looks again and again until there is something to see.
///
/// # Panics
/// With `what`, if the [`DEADLINE`] passes first.
pub async fn eventually<T, F>(what: &str, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let since = Instant::now();
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(since.elapsed() < DEADLINE, "waited {DEADLINE:?} for: {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
