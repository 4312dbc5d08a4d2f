//! Crash points for the crash tests. Without the feature `crash-points`, reaching one has no effect.

/// A boundary between stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "crash-points"), allow(dead_code))]
pub(crate) enum Point {
    /// A batch has been pulled.
    Pulled,
    /// It has been decoded and authorized.
    Authorized,
    /// The transaction holds the inbox rows.
    Taken,
    /// The transaction holds the effects and their events.
    Written,
    /// The transaction has committed; no event is published.
    Committed,
    /// The broker has stored the events; no message is acknowledged.
    EventsPublished,
    /// Some messages of the batch are acknowledged.
    Acknowledging,
    /// The broker has stored a dead letter; its message is not settled.
    DeadLettered,
}

/// Kills the process if `MEMFLEET_CRASH_AT` selects this point. `Committed:3` selects the third time that this process
/// reaches `Committed`.
#[cfg(feature = "crash-points")]
pub(crate) fn reach(point: Point) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static TIMES: AtomicU32 = AtomicU32::new(0);
    static WANTED: OnceLock<Option<(String, u32)>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| {
        let wanted = std::env::var("MEMFLEET_CRASH_AT").ok()?;
        let (name, times) = wanted.split_once(':')?;
        Some((name.to_owned(), times.parse().ok()?))
    });
    let Some((name, times)) = wanted else { return };
    if format!("{point:?}") == *name && TIMES.fetch_add(1, Ordering::Relaxed) + 1 == *times {
        // SIGKILL, as the kernel's out-of-memory killer would send: nothing is flushed, nothing unwinds.
        let killed = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        tracing::error!(?killed, "SIGKILL did not end the process");
    }
}

/// Does nothing.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub(crate) fn reach(_: Point) {}
