//! The job `consensus-close`: tasks that are past their deadline close with the answers that have come. So do those that were complete when a
//! batch had no work left for them: their deadline is that moment.

use std::sync::LazyLock;

use ::store::{Connection, Fault};
use chrono::{DateTime, Utc};
use consensus::Rules;
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Integer, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use runtime::EventDraft;
use uuid::Uuid;

use super::batch::Verdicts;
use super::close::{CloseReason, Closing, MOST_WORK, close};
use super::conversations::{AllCounters, advance};
use crate::inputs::WORK;

/// The most tasks of one tick: each causes up to eighteen events, of which a tick may cause 10,000.
const TASKS: i32 = 300;

/// Row-level security shows the tasks of the users alone that the tick acts for. Users take turns, so that one with many tasks keeps
/// nobody out; the tasks of one tick are limited work, but one task is closed in any case.
static DUE: LazyLock<String> = LazyLock::new(|| {
    let work = WORK.as_str();
    format!(
        "WITH waiting AS (
        SELECT t.user_id, t.id, t.deadline, row_number() OVER (PARTITION BY t.user_id ORDER BY t.deadline, t.id) AS turn
        FROM consensus_tasks t WHERE t.state = 'open' AND t.deadline <= now()
    ), chosen AS MATERIALIZED (
        SELECT w.* FROM waiting w ORDER BY w.turn, w.deadline, w.user_id, w.id LIMIT $1
    ), sized AS MATERIALIZED (
        SELECT c.user_id, c.id, sum({work}) OVER (ORDER BY c.turn, c.deadline, c.user_id, c.id
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
        FROM chosen c JOIN consensus_tasks t ON t.user_id = c.user_id AND t.id = c.id
    )
    SELECT t.user_id, t.id, t.quorum, t.asked, t.responded, t.answered, clock_timestamp() AS now FROM consensus_tasks t
    WHERE t.id = ANY (ARRAY(SELECT s.id FROM sized s WHERE coalesce(s.before, 0) <= $2))
        AND t.user_id = ANY (ARRAY(SELECT s.user_id FROM sized s)) AND t.state = 'open' AND t.deadline <= now()
    ORDER BY t.user_id, t.id FOR NO KEY UPDATE"
    )
});

#[derive(QueryableByName)]
struct Due {
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Integer)]
    quorum: i32,
    #[diesel(sql_type = Integer)]
    asked: i32,
    #[diesel(sql_type = Integer)]
    responded: i32,
    #[diesel(sql_type = Integer)]
    answered: i32,
    #[diesel(sql_type = Timestamptz)]
    now: DateTime<Utc>,
}

/// Closes tasks that are past their deadline. The rest is due at the next tick.
pub(crate) async fn close_due(
    connection: &mut Connection,
    rules: &Rules,
    tick: Uuid,
) -> Result<Vec<EventDraft>, Fault> {
    let query = diesel::sql_query(DUE.as_str()).bind::<Integer, _>(TASKS).bind::<BigInt, _>(MOST_WORK);
    let due: Vec<Due> = ::store::prepared(query).load(connection).await?;
    let closings: Vec<Closing> = due
        .into_iter()
        .map(|task| Closing {
            user_id: task.user_id,
            task_id: task.id,
            reason: CloseReason::when_complete(task.quorum, task.asked, task.responded, task.answered)
                .unwrap_or(CloseReason::Deadline),
            asked: task.asked,
            responded: task.responded,
            answered: task.answered,
            at: task.now,
            request_id: tick,
        })
        .collect();
    let mut counters = AllCounters::new();
    let mut closed = close(connection, rules, &closings, &mut counters).await?;
    advance(connection, &[], &counters, &mut Verdicts::new(0)).await?;
    Ok(closings
        .iter()
        .flat_map(|closing| closed.remove(&(closing.user_id, closing.task_id)).unwrap_or_default())
        .collect())
}
