//! The job `consensus-close`: tasks that are past their deadline close with the answers that have come.

use ::store::{Connection, Fault};
use chrono::{DateTime, Utc};
use consensus::Rules;
use diesel::QueryableByName;
use diesel::sql_types::{Integer, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use runtime::EventDraft;
use uuid::Uuid;

use super::batch::Verdicts;
use super::close::{CloseReason, Closing, close};
use super::conversations::{AllCounters, advance};

/// The most tasks of one tick: each causes up to eighteen events, of which a tick may cause 10,000.
const TASKS: i32 = 300;

/// Row-level security shows the tasks of the users alone that the tick acts for.
const DUE: &str = "
    SELECT t.user_id, t.id, t.asked, t.responded, t.answered, clock_timestamp() AS now FROM consensus_tasks t
    WHERE t.state = 'open' AND t.deadline <= now() ORDER BY t.user_id, t.id LIMIT $1 FOR NO KEY UPDATE";

#[derive(QueryableByName)]
struct Due {
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
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
    let due: Vec<Due> =
        ::store::prepared(diesel::sql_query(DUE).bind::<Integer, _>(TASKS)).load(connection).await?;
    let closings: Vec<Closing> = due
        .into_iter()
        .map(|task| Closing {
            user_id: task.user_id,
            task_id: task.id,
            reason: CloseReason::Deadline,
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
