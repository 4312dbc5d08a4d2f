//! Whatever is due of all erasures.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use config::Settings;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::timeout;
use uuid::Uuid;

use crate::aftercare;
use crate::error::PrivacyError;
use crate::pending::{self, Carried};
use crate::process::go_on;
use crate::request;
use crate::step::{Advance, Claimed};
use crate::stores::Stores;

/// What became of erasures that were due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Erasures that are complete.
    pub done: u64,
    /// Erasures that wait, for a seal or for the release of a hold.
    pub waiting: u64,
    /// Erasures of which a step failed. It is tried again later; the request has the reason.
    pub failed: u64,
}

/// How many erasures are worked on at once: one person who has much keeps no other waiting.
const AT_ONCE: usize = 4;

/// Does all that is due once, of erasures and of what services have requested, and looks after erasures that are complete.
///
/// # Errors
/// [`PrivacyError`] if the main database cannot be used. A step or a request that fails is no error.
pub async fn run_once(
    settings: &Settings,
    run: Uuid,
    now: DateTime<Utc>,
) -> Result<(Passed, Carried), PrivacyError> {
    // On the heap: the compiler computes the layout of all that one future awaits in itself.
    let (passed, restricted, exported, cared) = tokio::join!(
        erase_due(settings),
        Box::pin(pending::restrict_due(settings)),
        Box::pin(pending::export_due(settings)),
        aftercare::run_if_due(settings, run, now)
    );
    cared?;
    Ok((passed?, restricted?.with(exported?)))
}

/// What became of an erasure.
#[derive(Clone, Copy)]
enum Outcome {
    Done,
    Waits,
    Failed,
}

/// Does what is due of all erasures. While some are worked on, it looks for more every `privacy.every_s` seconds. Several processes may do so at
/// once.
///
/// # Errors
/// [`PrivacyError`] if the main database cannot be used and nothing is under way. A step that fails is no error.
pub async fn erase_due(settings: &Settings) -> Result<Passed, PrivacyError> {
    let (mut free, mut working) = (Vec::new(), FuturesUnordered::new());
    let (mut outcomes, mut unreadable): (HashMap<Uuid, Outcome>, u64) = (HashMap::new(), 0);
    loop {
        while working.len() < AT_ONCE {
            match take(settings, &mut free).await {
                Ok(Some((stores, claimed))) => working.push(work(stores, claimed)),
                Ok(None) => break,
                // It is set aside; the others go on.
                Err(PrivacyError::Refused(reason)) => {
                    unreadable += 1;
                    tracing::warn!(reason, "a request cannot be read");
                }
                Err(error) if working.is_empty() => return Err(error),
                // Those under way have their connections.
                Err(error) => {
                    tracing::warn!(%error, "no more erasures can be worked on at once");
                    break;
                }
            }
        }
        match timeout(settings.privacy.every(), working.next()).await {
            Ok(Some((stores, id, outcome))) => {
                match outcome {
                    Outcome::Done | Outcome::Waits => free.push(stores),
                    // One of its connections may be lost.
                    Outcome::Failed => drop(stores),
                }
                outcomes.insert(id, outcome);
            }
            Ok(None) => break,
            // More may have become due.
            Err(_) => {}
        }
    }
    let mut passed = Passed { failed: unreadable, ..Passed::default() };
    for outcome in outcomes.values() {
        match outcome {
            Outcome::Done => passed.done += 1,
            Outcome::Waits => passed.waiting += 1,
            Outcome::Failed => passed.failed += 1,
        }
    }
    Ok(passed)
}

/// Takes a request that is due, over stores that nobody works with. None if there is none.
async fn take(
    settings: &Settings,
    free: &mut Vec<Stores>,
) -> Result<Option<(Stores, Claimed)>, PrivacyError> {
    let mut stores = match free.pop() {
        Some(stores) => stores,
        None => Stores::open(settings).await?,
    };
    // Each for itself: what one has taken must not be taken by another one of this process.
    let claimed = request::claim(&mut stores.database, Uuid::now_v7(), None).await;
    match claimed {
        Ok(Some(claimed)) => Ok(Some((stores, claimed))),
        Ok(None) => {
            free.push(stores);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Goes on with a request.
async fn work(mut stores: Stores, mut claimed: Claimed) -> (Stores, Uuid, Outcome) {
    let outcome = match go_on(&mut stores, &mut claimed).await {
        Ok(Advance::Done) => Outcome::Done,
        Ok(Advance::Waiting(_) | Advance::Held(_) | Advance::Next(_)) => Outcome::Waits,
        Err(error) => {
            tracing::warn!(request = %claimed.id, step = %claimed.step, %error, "a step of an erasure failed");
            Outcome::Failed
        }
    };
    (stores, claimed.id, outcome)
}
