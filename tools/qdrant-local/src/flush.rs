//! Group commit: one flush makes many writes durable.
//!
//! The engine does not read its write-ahead log when it loads a collection, so a crash loses everything that was not
//! flushed. A write with `wait` therefore returns after a flush that began after it. A flush costs about the same for
//! one write as for a hundred, and concurrent writers share one.

use std::cell::Cell;
use std::panic;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::Problem;

thread_local! {
    static FLUSHING: Cell<bool> = const { Cell::new(false) };
}

/// Silences the panics of a flush that runs into the optimizer. They are caught, see [`catching`].
pub(crate) fn silence_expected_panics() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if FLUSHING.get() {
            tracing::debug!("a flush ran into the optimizer: {info}");
        } else {
            usual(info);
        }
    }));
}

/// Runs a flush of the engine. The engine panics where it would have to wait for a lock; the flush can be tried again.
pub(crate) fn catching(flush: impl FnOnce()) -> Result<(), String> {
    FLUSHING.set(true);
    let done = panic::catch_unwind(panic::AssertUnwindSafe(flush));
    FLUSHING.set(false);
    done.map_err(|cause| match cause.downcast::<String>() {
        Ok(text) => *text,
        Err(cause) => {
            cause.downcast::<&str>().map_or_else(|_| "it panicked".to_owned(), |text| (*text).to_owned())
        }
    })
}

/// Coordinates writers, so that one flush serves all that wait.
#[derive(Debug, Default)]
pub(crate) struct FlushGate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The number of flushes that have begun.
    begun: u64,
    /// The number of the latest successful flush.
    done: u64,
    running: bool,
}

impl FlushGate {
    /// Returns after a successful flush that began after this call. It runs the flush, or waits for the flush of
    /// another writer.
    pub(crate) fn pass(&self, flush: impl Fn() -> Result<(), Problem>) -> Result<(), Problem> {
        let mut state = self.lock();
        let wanted = state.begun + 1;
        while state.done < wanted {
            if state.running {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.running = true;
            state.begun += 1;
            let this = state.begun;
            drop(state);
            let flushed = flush();
            state = self.lock();
            state.running = false;
            if flushed.is_ok() {
                state.done = this;
            }
            self.changed.notify_all();
            // After a failure, the next waiting writer tries.
            flushed?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
