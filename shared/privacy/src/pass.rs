//! Whatever is due of all requests of persons.

use chrono::{DateTime, Utc};
use config::Settings;
use futures::stream::{FuturesUnordered, StreamExt as _};
use uuid::Uuid;

use crate::aftercare;
use crate::error::PrivacyError;
use crate::pending::{self, Carried};
use crate::process::go_on;
use crate::request;
use crate::step::{Advance, Claimed};
use crate::stores::Stores;

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Erasures that are complete.
    pub done: u64,
    /// Erasures that wait, for a seal or for the release of a hold.
    pub waiting: u64,
    /// Erasures of which a step failed. It is tried again later; the request has the reason.
    pub failed: u64,
    /// Restrictions and exports that services have requested.
    pub others: Carried,
}

/// The most requests that one pass takes.
const MAX_REQUESTS: usize = 1_000;
/// How many of them it works on at once: one person who has much keeps no other waiting.
const AT_ONCE: usize = 4;

/// Does what is due of all erasures, and looks after those that are complete: every ten minutes in the passes of one `run`. Carries out
/// restrictions and exports that services have requested. Several processes may do so at once.
///
/// # Errors
/// [`PrivacyError`] if the main database cannot be used. A step that fails is no error.
pub async fn pass(settings: &Settings, run: Uuid, now: DateTime<Utc>) -> Result<Passed, PrivacyError> {
    let (passed, carried, cared) = tokio::join!(
        requests(settings),
        // On the heap: the compiler computes the layout of all that one future awaits in itself.
        Box::pin(pending::carry_out(settings)),
        aftercare::run_if_due(settings, run, now)
    );
    cared?;
    Ok(Passed { others: carried?, ..passed? })
}

async fn requests(settings: &Settings) -> Result<Passed, PrivacyError> {
    let mut free = vec![Stores::open(settings).await?];
    let (mut passed, mut taken, mut working) = (Passed::default(), 0, FuturesUnordered::new());
    loop {
        while working.len() < AT_ONCE && taken < MAX_REQUESTS {
            let mut stores = match free.pop() {
                Some(stores) => stores,
                None => Stores::open(settings).await?,
            };
            taken += 1;
            // Each for itself: what one has taken must not be taken by another one of this process.
            match request::claim(&mut stores.database, Uuid::now_v7(), None).await {
                Ok(Some(claimed)) => working.push(work(stores, claimed)),
                Ok(None) => {
                    free.push(stores);
                    break;
                }
                // It is set aside; the others go on.
                Err(PrivacyError::Refused(reason)) => {
                    free.push(stores);
                    passed.failed += 1;
                    tracing::warn!(reason, "a request cannot be read");
                }
                Err(error) => return Err(error),
            }
        }
        let Some((stores, advanced)) = working.next().await else { return Ok(passed) };
        free.push(stores);
        match advanced {
            Some(Advance::Done) => passed.done += 1,
            Some(Advance::Waiting(_) | Advance::Held(_) | Advance::Next(_)) => passed.waiting += 1,
            None => passed.failed += 1,
        }
    }
}

/// Goes on with a request. None if a step failed.
async fn work(mut stores: Stores, mut claimed: Claimed) -> (Stores, Option<Advance>) {
    let advanced = go_on(&mut stores, &mut claimed).await;
    if let Err(error) = &advanced {
        tracing::warn!(request = %claimed.id, step = %claimed.step, %error, "a step of an erasure failed");
    }
    (stores, advanced.ok())
}
