//! The job `consensus-reestimate`: the records of agents, estimated anew from the closed tasks of a kind.
//!
//! Only kinds with tasks that no estimate has taken in yet are estimated, and of each at most as many tasks and answers as the
//! rules allow, the newest. Older tasks that are due, at most as many again, are judged by what the estimate finds of their agents.
//! What a tick does not reach is due at the next one.
//!
//! An estimate may take seconds, for which no transaction can stay open. It is therefore read in one transaction (`read.rs`),
//! computed while none is open (`compute.rs`), and written in that of the tick, if nobody has estimated its tasks meanwhile
//! (`write.rs`).

mod compute;
mod read;
mod write;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::store::{Fault, Pool};
use consensus::Rules;

pub(crate) use compute::Estimated;
use read::{Basis, Due};
pub(crate) use write::write;

use super::batch::uncomputable;

/// How long a tick begins new estimates. One takes up to a few seconds.
const TIME: Duration = Duration::from_secs(20);
/// After so many rows to write, a tick begins no further estimate.
const ROWS: usize = 50_000;

/// Estimates what is due of the users of these grants. What cannot be estimated is left out.
///
/// # Errors
/// A [`Fault`] of a database that is not available.
pub(crate) async fn estimate_due(
    pool: &Pool,
    rules: &Arc<Rules>,
    grants: &[&str],
) -> Result<Vec<Estimated>, Fault> {
    if grants.is_empty() {
        return Ok(Vec::new());
    }
    let begun = Instant::now();
    let (mut estimates, mut rows) = (Vec::new(), 0);
    for due in read::due(pool, grants).await? {
        if begun.elapsed() > TIME || rows > ROWS {
            break;
        }
        let (user_id, task_kind) = (due.user_id, due.task_kind.clone());
        match estimate(pool, rules, grants, due).await {
            Ok(estimated) => {
                rows += estimated.rows();
                estimates.push(estimated);
            }
            Err(fault) if fault.kind.is_outage() => return Err(fault),
            // One kind that cannot be estimated must not keep the others from it.
            Err(fault) => {
                tracing::warn!(worker = contract::CONSENSUS_BUILDER.name, user_id, task_kind, %fault, "cannot estimate");
            }
        }
    }
    Ok(estimates)
}

async fn estimate(pool: &Pool, rules: &Arc<Rules>, grants: &[&str], due: Due) -> Result<Estimated, Fault> {
    let basis = Basis::find(pool, grants, due, &rules.reliability).await?;
    let rules = Arc::clone(rules);
    let computed = tokio::task::spawn_blocking(move || Estimated::new(&basis, &rules.reliability));
    computed.await.map_err(|error| uncomputable(&error))
}
