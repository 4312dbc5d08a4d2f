//! Tasks that the requests of a batch concern.

use std::collections::HashMap;
use std::sync::LazyLock;

use ::store::unnest::{UnnestRow, with_rows};
use ::store::{Connection, Fault};
use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Integer, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::close::CloseReason;
use crate::inputs::{KeyRow, key_rows};

/// A task: its user and its id.
pub(crate) type TaskKey = (i32, Uuid);

/// Tasks are locked before anything that belongs to them, in the order of their keys.
static LOCK: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (KeyRow::arrays(1), KeyRow::names());
    format!(
        "SELECT t.user_id, t.id, t.session_id, t.state, t.quorum, t.asked, t.responded, t.answered, clock_timestamp() AS now
    FROM consensus_tasks t JOIN unnest({arrays}) AS i ({names}) ON t.user_id = i.user_id AND t.id = i.id
    ORDER BY t.user_id, t.id FOR NO KEY UPDATE OF t"
    )
});

#[derive(Clone, Debug, QueryableByName)]
pub(crate) struct Task {
    #[diesel(sql_type = Integer)]
    pub user_id: i32,
    #[diesel(sql_type = SqlUuid)]
    pub id: Uuid,
    #[diesel(sql_type = Text)]
    pub session_id: String,
    #[diesel(sql_type = Text)]
    pub state: String,
    #[diesel(sql_type = Integer)]
    pub quorum: i32,
    #[diesel(sql_type = Integer)]
    pub asked: i32,
    #[diesel(sql_type = Integer)]
    pub responded: i32,
    #[diesel(sql_type = Integer)]
    pub answered: i32,
    #[diesel(sql_type = Timestamptz)]
    pub now: DateTime<Utc>,
}

impl Task {
    pub fn is_open(&self) -> bool {
        self.state == "open"
    }

    /// Whether it takes answers. One that is complete takes none, though it may still have to be closed.
    pub fn takes_answers(&self) -> bool {
        self.is_open() && self.close_reason(self.responded, self.answered).is_none()
    }

    /// How many agents have responded and answered with a later response of one, whose response before is given.
    pub fn with_response(&self, has_answered: Option<bool>, abstains: bool) -> (i32, i32) {
        let responded = self.responded + i32::from(has_answered.is_none());
        let answered = self.answered + i32::from(!abstains) - i32::from(has_answered == Some(true));
        (responded, answered)
    }

    /// Why the task closes when so many have responded and answered.
    pub fn close_reason(&self, responded: i32, answered: i32) -> Option<CloseReason> {
        CloseReason::when_complete(self.quorum, self.asked, responded, answered)
    }
}

/// Locks tasks.
pub(crate) async fn lock(
    connection: &mut Connection,
    keys: &[TaskKey],
) -> Result<HashMap<TaskKey, Task>, Fault> {
    let found: Vec<Task> = with_rows(&LOCK, key_rows(keys)).load(connection).await?;
    Ok(found.into_iter().map(|task| ((task.user_id, task.id), task)).collect())
}
