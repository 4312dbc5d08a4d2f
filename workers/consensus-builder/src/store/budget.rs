//! What one batch spends on closing tasks. Others wait for all of it, so that it is limited, in equal shares for the services in the
//! batch; each closes one task at least. The rest is delivered again later, as much at a time as a batch may close.

use std::collections::{HashMap, HashSet};

use ::store::{Connection, Fault};
use chrono::{DateTime, TimeDelta, Utc};
use runtime::{Reason, Retry, Verdict};

use super::close::MOST_WORK;
use super::task::TaskKey;
use crate::Message;
use crate::inputs;

/// When the next share of a service is delivered again. Other requests are written between the two.
const NEXT: TimeDelta = TimeDelta::seconds(2);
/// How long a request may be delivered again. The broker delivers it less often than would take so long.
const WITHIN: TimeDelta = TimeDelta::days(1);

/// The work that each service has had done and has left to do.
#[derive(Clone, Copy, Debug, Default)]
struct OfService {
    done: i64,
    later: i64,
}

/// The budget of a batch.
#[derive(Debug, Default)]
pub(crate) struct Budget<'a> {
    /// The work of the tasks that may close.
    work: HashMap<TaskKey, i64>,
    /// What each service may spend.
    share: i64,
    services: HashMap<&'a str, OfService>,
    /// The tasks that would have closed, and when the requests to them are tried again: they keep their order.
    later: HashMap<TaskKey, DateTime<Utc>>,
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

    /// Spends the work of closing a task by this request. If too much is spent, the task is left for later: what becomes of the request.
    pub fn spend(&mut self, task: TaskKey, message: &'a Message, now: DateTime<Utc>) -> Option<Verdict> {
        let work = self.work.get(&task).copied().unwrap_or_default();
        let service = self.services.entry(message.publisher()).or_default();
        if service.done == 0 || service.done + work <= self.share {
            service.done += work;
            return None;
        }
        service.later += work;
        let turns = i32::try_from(service.later / self.share.max(1) + 1).unwrap_or(i32::MAX);
        self.later.insert(task, now + NEXT * turns);
        self.later(task)
    }

    /// What becomes of a request to a task that is left for later.
    pub fn later(&self, task: TaskKey) -> Option<Verdict> {
        let time = *self.later.get(&task)?;
        let retry = Retry::NotBefore { time, deadline: time + WITHIN };
        let reason = "its service closes other tasks first: the answers to several large ones are not compared at once";
        Some(Verdict::Retry(retry, Reason::new(reason)))
    }
}
