//! Estimates are written, unless another one came first.

use std::sync::LazyLock;

use ::store::unnest::{UnnestRow, with_rows};
use ::store::{Connection, Fault};
use chrono::{DateTime, Utc};
use consensus::Record;
use consensus::reliability::Reliability;
use contract::{CONSENSUS_BUILDER, Event, EventType, UserId};
use diesel::QueryableByName;
use diesel::sql_types::BigInt;
use diesel_async::RunQueryDsl;
use runtime::EventDraft;
use serde_json::json;
use uuid::Uuid;

use super::super::batch::uncomputable;
use super::super::close::event;
use super::compute::{Estimated, Sums};

/// Writes the estimates of the users that the transaction acts for.
pub(crate) async fn write(
    connection: &mut Connection,
    estimates: &[Estimated],
    tick: Uuid,
) -> Result<Vec<EventDraft>, Fault> {
    let mut events = Vec::with_capacity(estimates.len());
    for estimated in estimates {
        if !is_current(connection, estimated).await? {
            tracing::debug!(
                worker = CONSENSUS_BUILDER.name,
                user = estimated.user_id,
                task_kind = estimated.task_kind,
                "the tasks of an estimate have changed, the next tick estimates them"
            );
            continue;
        }
        write_one(connection, estimated, tick).await?;
        let user = UserId::new(estimated.user_id).map_err(|error| uncomputable(&error))?;
        let payload = json!({
            "task_kind": estimated.task_kind, "tasks": estimated.count, "agents": estimated.records.len()
        });
        events.push(event(user, EventType::ReliabilityEstimated, Event::ACCOUNT_SESSION, &payload));
    }
    Ok(events)
}

::store::unnest_row! {
    struct NewRow {
        user_id: i32,
        id: Uuid,
        updated_at: DateTime<Utc>,
    }
}

/// Every estimate has a task that none had taken in. If one of them is not as it was read, somebody else has estimated these tasks, or
/// a verdict said what is true: the estimate may then rest on less than the records that are stored. So it is dropped, and what is still
/// due is estimated at the next tick. The rows stay locked, so that of two estimates one is first.
static NEW: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (NewRow::arrays(1), NewRow::names());
    format!(
        "WITH held AS MATERIALIZED (
        SELECT e.estimated_at, e.updated_at, i.updated_at AS read_at
        FROM task_estimates e JOIN unnest({arrays}) AS i ({names}) ON e.user_id = i.user_id AND e.id = i.id
        ORDER BY e.user_id, e.id FOR NO KEY UPDATE OF e
    )
    SELECT count(*) AS count FROM held WHERE estimated_at IS NULL AND updated_at = read_at"
    )
});

async fn is_current(connection: &mut Connection, estimated: &Estimated) -> Result<bool, Fault> {
    #[derive(QueryableByName)]
    struct Count {
        #[diesel(sql_type = BigInt)]
        count: i64,
    }
    let row = |new: &super::compute::New| NewRow {
        user_id: estimated.user_id,
        id: new.id,
        updated_at: new.updated_at,
    };
    let rows: Vec<NewRow> = estimated.new.iter().map(row).collect();
    let expected = i64::try_from(rows.len()).unwrap_or(i64::MAX);
    let counted: Vec<Count> = with_rows(&NEW, rows).load(connection).await?;
    // Of a user whom the transaction does not act for, no row is seen.
    Ok(expected > 0 && counted.iter().all(|one| one.count == expected))
}

async fn write_one(connection: &mut Connection, estimated: &Estimated, tick: Uuid) -> Result<(), Fault> {
    let Estimated { user_id, task_kind, .. } = estimated;
    let mut rows: Vec<EstimateRow> = estimated
        .changed
        .iter()
        .map(|task| EstimateRow {
            user_id: *user_id,
            id: task.id,
            answer: task.answer,
            probability: task.probability,
            updated_at: task.updated_at,
            request_id: tick,
        })
        .collect();
    rows.sort_unstable_by_key(|row| row.id);
    if !rows.is_empty() {
        with_rows(&ESTIMATES, rows).execute(connection).await?;
    }
    let rows: Vec<RecordRow<'_>> = estimated
        .records
        .iter()
        .map(|(agent, sums)| RecordRow::new(*user_id, task_kind, agent, sums, tick))
        .collect();
    if !rows.is_empty() {
        with_rows(&RECORDS, rows).execute(connection).await?;
    }
    Ok(())
}

::store::unnest_row! {
    struct EstimateRow {
        user_id: i32,
        id: Uuid,
        answer: Option<i32>,
        probability: Option<f64>,
        updated_at: DateTime<Utc>,
        request_id: Uuid,
    }
}

/// A task that got a verdict meanwhile stays due.
static ESTIMATES: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (EstimateRow::arrays(1), EstimateRow::names());
    format!(
        "WITH input AS MATERIALIZED (SELECT * FROM unnest({arrays}) AS i ({names})), held AS MATERIALIZED (
        SELECT i.* FROM task_estimates e JOIN input i ON e.user_id = i.user_id AND e.id = i.id
        WHERE e.updated_at = i.updated_at ORDER BY e.user_id, e.id FOR NO KEY UPDATE OF e
    )
    UPDATE task_estimates e SET answer = h.answer, probability = h.probability, estimated_at = now(), updated_at = now(),
        request_id = h.request_id
    FROM held h WHERE e.user_id = h.user_id AND e.id = h.id"
    )
});

::store::unnest_row! {
    struct RecordRow<'a> {
        id: Uuid,
        user_id: i32,
        agent_id: &'a str,
        task_kind: &'a str,
        right_micro: i64,
        wrong_micro: i64,
        confidence_micro: i64,
        request_id: Uuid,
    }
}

impl<'a> RecordRow<'a> {
    fn new(user_id: i32, task_kind: &'a str, agent_id: &'a str, sums: &Sums, request_id: Uuid) -> Self {
        let reliability = Reliability { answers: sums.answers, right: sums.right, accuracy: 0.0 };
        let Record { right, wrong, confidence } = reliability.record(sums.confidence);
        let micro = |value: consensus::Micro| i64::try_from(value.millionths()).unwrap_or(i64::MAX);
        let name = format!("{task_kind}\n{agent_id}");
        Self {
            id: Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()),
            user_id,
            agent_id,
            task_kind,
            right_micro: micro(right),
            wrong_micro: micro(wrong),
            confidence_micro: micro(confidence),
            request_id,
        }
    }
}

static RECORDS: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (RecordRow::arrays(1), RecordRow::names());
    format!(
        "INSERT INTO agent_records AS t (id, user_id, agent_id, task_kind, right_micro, wrong_micro, confidence_micro, request_id)
    SELECT id, user_id, agent_id, task_kind, right_micro, wrong_micro, confidence_micro, request_id
    FROM unnest({arrays}) AS i ({names}) ORDER BY user_id, agent_id, task_kind
    ON CONFLICT (user_id, agent_id, task_kind) DO UPDATE SET right_micro = excluded.right_micro,
        wrong_micro = excluded.wrong_micro, confidence_micro = excluded.confidence_micro, estimated_at = now(),
        request_id = excluded.request_id
    WHERE (t.right_micro, t.wrong_micro, t.confidence_micro)
        IS DISTINCT FROM (excluded.right_micro, excluded.wrong_micro, excluded.confidence_micro)"
    )
});
