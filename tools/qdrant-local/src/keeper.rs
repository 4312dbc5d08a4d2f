//! The thread beside each collection: flushes what nobody waits for, and runs the optimiser.
//!
//! It acts when no write has come for a while, or when writes have come for long enough. The engine's optimiser blocks
//! the thread that runs it, not those that read and write; what it decides to do is as in a Qdrant server.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::collection::Collection;
use crate::error::Problem;

/// How long no write must come before it acts.
const QUIET: Duration = Duration::from_millis(200);
/// How long after a first write it acts, though others still come.
const AT_MOST: Duration = Duration::from_secs(10);
/// How long after a first write it flushes at the latest: what is not waited for is at stake so long.
const FLUSH_AT_MOST: Duration = Duration::from_secs(1);

/// Starts the thread. It ends with the collection.
pub(crate) fn start(name: &str, collection: &Arc<Collection>) -> Result<(), Problem> {
    let (wake, woken) = mpsc::sync_channel(1);
    let kept = Arc::downgrade(collection);
    let label = name.to_owned();
    thread::Builder::new()
        .name("keeper".to_owned())
        .spawn(move || keep(&label, &kept, &woken))
        .map_err(|error| Problem::Internal(format!("cannot start a thread for {name}: {error}")))?;
    collection.set_keeper(wake);
    collection.wake_keeper();
    Ok(())
}

fn keep(name: &str, kept: &Weak<Collection>, woken: &Receiver<()>) {
    while woken.recv().is_ok() {
        let first = Instant::now();
        let mut flush_at = first + FLUSH_AT_MOST;
        while first.elapsed() < AT_MOST {
            match woken.recv_timeout(QUIET) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if Instant::now() >= flush_at {
                let Some(collection) = kept.upgrade() else { return };
                report(name, "flush", collection.flush());
                flush_at = Instant::now() + FLUSH_AT_MOST;
            }
        }
        let Some(collection) = kept.upgrade() else { return };
        report(name, "flush", collection.flush());
        if !collection.is_doomed() {
            let began = Instant::now();
            report(name, "optimise", collection.optimize());
            tracing::debug!(collection = name, took = ?began.elapsed(), "looked for something to optimise");
        }
    }
}

fn report(name: &str, what: &str, done: Result<(), Problem>) {
    if let Err(error) = done {
        tracing::error!(collection = name, %error, "could not {what}");
    }
}
