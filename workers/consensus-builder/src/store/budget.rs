//! What one batch spends on closing tasks. Others wait for all of it, so that it is limited, in equal shares for the services in the
//! batch; each closes one task at least. The others are complete then, and close at the next ticks of `consensus-close`.

use std::collections::{HashMap, HashSet};

use ::store::{Connection, Fault};

use super::close::MOST_WORK;
use super::task::TaskKey;
use crate::Message;
use crate::inputs;

/// The budget of a batch.
#[derive(Debug, Default)]
pub(crate) struct Budget<'a> {
    /// The work of the tasks that may close.
    work: HashMap<TaskKey, i64>,
    /// What each service may spend.
    share: i64,
    /// What each has spent.
    services: HashMap<&'a str, i64>,
}

impl<'a> Budget<'a> {
    /// For a batch of these services that may close these tasks. What its own responses add to them is limited by the size of a batch.
    pub async fn new(
        connection: &mut Connection,
        services: HashSet<&str>,
        may_close: &[TaskKey],
    ) -> Result<Self, Fault> {
        let work = inputs::work(connection, may_close).await?;
        let services = i64::try_from(services.len()).unwrap_or(i64::MAX);
        Ok(Self { work, share: MOST_WORK / services.max(1), ..Self::default() })
    }

    /// Spends the work of closing a task by this request. Says whether there was enough left.
    pub fn spend(&mut self, task: TaskKey, message: &'a Message) -> bool {
        let work = self.work.get(&task).copied().unwrap_or_default();
        let spent = self.services.entry(message.publisher()).or_default();
        let is_enough = *spent == 0 || *spent + work <= self.share;
        if is_enough {
            *spent += work;
        }
        is_enough
    }
}
