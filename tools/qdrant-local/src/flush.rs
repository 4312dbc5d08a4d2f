//! Making writes durable, many at a time.
//!
//! The engine does not read its write-ahead log when it loads a collection: what was not flushed is gone after a crash.
//! So a write is answered after a flush that began after it. A flush costs about the same for one write as for a
//! hundred; writers that wait at the same time share one.

use std::cell::Cell;
use std::panic;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::Problem;

thread_local! {
    static FLUSHING: Cell<bool> = const { Cell::new(false) };
}

/// Has the panics of a flush that meets the optimiser left out of the output: they are caught, see [`catching`].
pub(crate) fn quieten_expected_panics() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if FLUSHING.get() {
            tracing::debug!("a flush met the optimiser: {info}");
        } else {
            usual(info);
        }
    }));
}

/// Runs a flush of the engine. It panics where it would have to wait for a lock; that is no more than a "not now".
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

/// Who flushes for whom.
#[derive(Debug, Default)]
pub(crate) struct FlushGate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Flushes that have begun.
    begun: u64,
    /// The latest flush that ended well.
    done: u64,
    running: bool,
}

impl FlushGate {
    /// Returns once a flush that began after this call has ended well; runs it, or waits for another writer's.
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
            // The others find that it is not done, and the next of them tries.
            flushed?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
