//! The maintenance thread of each collection: it flushes writes without `wait` and runs the optimizer.
//!
//! It runs when no write has arrived for a while, or when writes have arrived for long enough. The engine's optimizer
//! blocks the thread that runs it, but no reads and writes; it decides as in a Qdrant server.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::collection::Collection;
use crate::error::Problem;

/// How long no write must arrive before it runs.
const QUIET: Duration = Duration::from_millis(200);
/// The longest delay after a first write, even if more writes arrive.
const MAX_DELAY: Duration = Duration::from_secs(10);
/// The longest delay of a flush after a first write: a crash loses writes without `wait` of this time.
const MAX_FLUSH_DELAY: Duration = Duration::from_secs(1);

/// Starts the thread. It ends with the collection.
pub(crate) fn start(name: &str, collection: &Arc<Collection>) -> Result<(), Problem> {
    let (wake, woken) = mpsc::sync_channel(1);
    let weak = Arc::downgrade(collection);
    let label = name.to_owned();
    thread::Builder::new()
        .name("maintenance".to_owned())
        .spawn(move || maintain(&label, &weak, &woken))
        .map_err(|error| Problem::Internal(format!("cannot start a thread for {name}: {error}")))?;
    collection.set_maintenance(wake);
    collection.wake_maintenance();
    Ok(())
}

fn maintain(name: &str, collection: &Weak<Collection>, woken: &Receiver<()>) {
    while woken.recv().is_ok() {
        let first = Instant::now();
        let mut flush_at = first + MAX_FLUSH_DELAY;
        while first.elapsed() < MAX_DELAY {
            match woken.recv_timeout(QUIET) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if Instant::now() >= flush_at {
                let Some(collection) = collection.upgrade() else { return };
                report(name, "flush", collection.flush());
                flush_at = Instant::now() + MAX_FLUSH_DELAY;
            }
        }
        let Some(collection) = collection.upgrade() else { return };
        report(name, "flush", collection.flush());
        if !collection.is_deleted() {
            let began = Instant::now();
            report(name, "optimize", collection.optimize());
            tracing::debug!(collection = name, took = ?began.elapsed(), "the optimizer ran");
        }
    }
}

fn report(name: &str, what: &str, done: Result<(), Problem>) {
    if let Err(error) = done {
        tracing::error!(collection = name, %error, "could not {what}");
    }
}
