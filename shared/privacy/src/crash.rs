//! Crash points for the crash tests. Without the feature `crash-points`, reaching one has no effect.

use crate::step::Step;

/// Where in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "crash-points"), allow(dead_code))]
pub(crate) enum Point {
    /// Before anything of it is done.
    Before,
    /// A file, or something of another store, is written, and the row that tells of it is not.
    Between,
    /// All is done, and the next step is not committed.
    Done,
    /// The next step is committed.
    After,
}

#[cfg(feature = "crash-points")]
impl Point {
    fn as_str(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::Between => "between",
            Self::Done => "done",
            Self::After => "after",
        }
    }
}

/// Kills the process if `MEMFLEET_CRASH_AT` selects this point. `erase.rows.before:1` selects the first time that this process is before the
/// step `rows`.
#[cfg(feature = "crash-points")]
pub(crate) fn reach(step: Step, point: Point) {
    reach_named(&format!("erase.{step}.{}", point.as_str()));
}

/// The same of an export: `access.tables:1` selects the point at which the tables are read.
#[cfg(feature = "crash-points")]
pub(crate) fn reach_export(point: &str) {
    reach_named(&format!("access.{point}"));
}

#[cfg(feature = "crash-points")]
fn reach_named(here: &str) {
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
    if here == name && TIMES.fetch_add(1, Ordering::Relaxed) + 1 == *times {
        // SIGKILL, as the kernel's out-of-memory killer would send: nothing is flushed, nothing unwinds.
        let killed = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        tracing::error!(?killed, "SIGKILL did not end the process");
    }
}

/// Does nothing.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub(crate) fn reach(_: Step, _: Point) {}

/// Does nothing.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub(crate) fn reach_export(_: &str) {}
