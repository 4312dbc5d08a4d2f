//! Responses to tasks, and the cancelling of tasks, in the order of the stream: the response that is the last one needed closes
//! its task.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::LazyLock;

use ::store::unnest::{UnnestRow, with_rows};
use ::store::{Connection, Fault};
use chrono::{DateTime, Utc};
use contract::{ResponseSubmit, SessionId, TaskCancel};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use runtime::{EventDraft, Retry, Verdict};
use uuid::Uuid;

use super::batch::{Item, Verdicts, json, overtaken};
use super::budget::Budget;
use super::close::{self, Closing, PendingRow};
use super::delegate::delegation_id;
use super::share::{RESPONSES_OF_AGENT, fits};
use super::task::{self, Task, TaskKey};
use crate::Message;
use crate::prepare::{Prepared, to_bytes};

/// A request that concerns an existing task.
pub(crate) enum Step<'a> {
    Respond(Item<'a, ResponseSubmit>),
    Cancel(Item<'a, TaskCancel>),
}

impl<'a> Step<'a> {
    pub(crate) fn task(&self) -> TaskKey {
        match self {
            Self::Respond(item) => (item.user(), item.request.task_id),
            Self::Cancel(item) => (item.user(), item.request.task_id),
        }
    }

    fn message(&self) -> &'a Message {
        match self {
            Self::Respond(item) => item.message,
            Self::Cancel(item) => item.message,
        }
    }

    fn session(&self) -> &SessionId {
        match self {
            Self::Respond(item) => &item.request.session_id,
            Self::Cancel(item) => &item.request.session_id,
        }
    }
}

::store::unnest_row! {
    struct LookUpRow {
        user_id: i32,
        delegation_id: Uuid,
        response_id: Uuid,
    }
}

static DELEGATIONS: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (LookUpRow::arrays(1), LookUpRow::names());
    format!(
        "SELECT i.user_id, i.delegation_id, i.response_id, d.has_answered, d.response_sequence, r.id IS NOT NULL AS is_known,
        (SELECT count(*) FROM (SELECT FROM agent_responses o WHERE o.user_id = i.user_id AND o.task_delegation_id = i.delegation_id
            LIMIT {RESPONSES_OF_AGENT}) AS few) AS responses
    FROM unnest({arrays}) AS i ({names})
    JOIN task_delegations d ON d.user_id = i.user_id AND d.id = i.delegation_id
    LEFT JOIN agent_responses r ON r.user_id = i.user_id AND r.id = i.response_id"
    )
});

#[derive(QueryableByName)]
struct Delegation {
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = SqlUuid)]
    delegation_id: Uuid,
    #[diesel(sql_type = SqlUuid)]
    response_id: Uuid,
    #[diesel(sql_type = Nullable<Bool>)]
    has_answered: Option<bool>,
    #[diesel(sql_type = Nullable<BigInt>)]
    response_sequence: Option<i64>,
    #[diesel(sql_type = Bool)]
    is_known: bool,
    #[diesel(sql_type = BigInt)]
    responses: i64,
}

/// What is known of an agent that was asked.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    has_answered: Option<bool>,
    sequence: i64,
    /// How many responses it has given.
    responses: i64,
    /// Changed in this batch, by this request.
    changed_by: Option<Uuid>,
}

::store::unnest_row! {
    struct ResponseRow<'a> {
        id: Uuid,
        user_id: i32,
        delegation_id: Uuid,
        task_id: Uuid,
        agent_id: &'a str,
        response_text: &'a str,
        claim: Option<&'a str>,
        evidence: String,
        confidence: Option<f64>,
        seconds: Option<f64>,
        stored_sequence: i64,
        is_counted: bool,
        embedding: Option<Vec<u8>>,
        embedding_model: Option<&'a str>,
        event_id: Uuid,
        stored_at: DateTime<Utc>,
        request_id: Uuid,
    }
}

static RESPONSES: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (ResponseRow::arrays(1), ResponseRow::names());
    format!(
        "INSERT INTO agent_responses (id, user_id, task_delegation_id, task_id, agent_id, response_text, claim, evidence,
        confidence_score, processing_time_seconds, stored_sequence, is_counted, embedding, embedding_model, event_id, created_at,
        request_id)
    SELECT id, user_id, delegation_id, task_id, agent_id, response_text, claim::jsonb, evidence::jsonb, confidence, seconds,
        stored_sequence, is_counted, embedding, embedding_model, event_id, stored_at, request_id
    FROM unnest({arrays}) AS i ({names}) ORDER BY user_id, id
    ON CONFLICT (user_id, id) DO NOTHING"
    )
});

::store::unnest_row! {
    struct AskedRow {
        user_id: i32,
        id: Uuid,
        has_answered: bool,
        response_sequence: i64,
        request_id: Uuid,
    }
}

static ANSWERED: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (AskedRow::arrays(1), AskedRow::names());
    format!(
        "UPDATE task_delegations d SET status = 'completed', has_answered = i.has_answered, response_sequence = i.response_sequence,
        updated_at = now(), request_id = i.request_id
    FROM unnest({arrays}) AS i ({names}) WHERE d.user_id = i.user_id AND d.id = i.id"
    )
});

::store::unnest_row! {
    struct CountRow {
        user_id: i32,
        id: Uuid,
        responded: i32,
        answered: i32,
        is_cancelled: bool,
        is_complete: bool,
        request_id: Uuid,
    }
}

/// The tasks that stay open, and those that are cancelled. Tasks that close are written with their nodes; those that are complete and stay open
/// are due now.
static COUNTS: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (CountRow::arrays(1), CountRow::names());
    format!(
        "UPDATE consensus_tasks t SET responded = i.responded, answered = i.answered,
        state = CASE WHEN i.is_cancelled THEN 'cancelled' ELSE t.state END,
        deadline = CASE WHEN i.is_complete THEN least(t.deadline, now()) ELSE t.deadline END, updated_at = now(), request_id = i.request_id
    FROM unnest({arrays}) AS i ({names}) WHERE t.user_id = i.user_id AND t.id = i.id"
    )
});

/// The tasks of a batch, and what its requests make of them.
pub(crate) struct Tasks<'a> {
    tasks: HashMap<TaskKey, Task>,
    asked: HashMap<(i32, Uuid), Asked>,
    /// The responses that are stored, those of this batch included.
    known: HashSet<(i32, Uuid)>,
    /// Tasks that changed, and the request that changed them last.
    changed: BTreeMap<TaskKey, Uuid>,
    budget: Budget<'a>,
    rows: Vec<ResponseRow<'a>>,
    /// The tasks that close, with the place of the request that closes them.
    pub closings: Vec<(usize, Closing)>,
    /// The requests that took effect, with their events.
    pub applied: Vec<(usize, Vec<EventDraft>)>,
}

/// Locks tasks, and writes the responses to them.
///
/// `more_tasks` are locked too: those that later parts of the batch concern, by responses or by verdicts on their nodes.
pub(crate) async fn respond<'a>(
    connection: &mut Connection,
    steps: &[Step<'a>],
    more_tasks: &[TaskKey],
    prepared: &'a Prepared,
    verdicts: &mut Verdicts,
) -> Result<Tasks<'a>, Fault> {
    let mut keys: Vec<TaskKey> = steps.iter().map(Step::task).chain(more_tasks.iter().copied()).collect();
    keys.sort_unstable();
    keys.dedup();
    let mut tasks = Tasks {
        tasks: HashMap::new(),
        asked: HashMap::new(),
        known: HashSet::new(),
        changed: BTreeMap::new(),
        budget: Budget::default(),
        rows: Vec::new(),
        closings: Vec::new(),
        applied: Vec::new(),
    };
    if keys.is_empty() {
        return Ok(tasks);
    }
    tasks.tasks = task::lock(connection, &keys).await?;
    tasks.look_up(connection, steps).await?;
    let services = steps.iter().map(|step| step.message().publisher()).collect();
    tasks.budget = Budget::new(connection, services, &tasks.may_close(steps)).await?;
    for step in steps {
        tasks.take(step, prepared, verdicts);
    }
    tasks.write(connection).await?;
    Ok(tasks)
}

impl<'a> Tasks<'a> {
    /// Finds the delegations and the responses that are stored already.
    async fn look_up(&mut self, connection: &mut Connection, steps: &[Step<'a>]) -> Result<(), Fault> {
        let row = |step: &Step<'_>| match step {
            Step::Respond(item) => Some(LookUpRow {
                user_id: item.user(),
                delegation_id: delegation_id(item.request.task_id, item.request.agent_id.as_str()),
                response_id: item.request.response_id,
            }),
            Step::Cancel(_) => None,
        };
        let rows: Vec<LookUpRow> = steps.iter().filter_map(row).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let found: Vec<Delegation> = with_rows(&DELEGATIONS, rows).load(connection).await?;
        for one in found {
            let (has_answered, responses) = (one.has_answered, one.responses);
            let sequence = one.response_sequence.unwrap_or(-1);
            let asked = Asked { has_answered, sequence, responses, changed_by: None };
            self.asked.insert((one.user_id, one.delegation_id), asked);
            if one.is_known {
                self.known.insert((one.user_id, one.response_id));
            }
        }
        Ok(())
    }

    /// The tasks that may close if all these responses count.
    fn may_close(&self, steps: &[Step<'a>]) -> Vec<TaskKey> {
        let mut responses: BTreeMap<TaskKey, i32> = BTreeMap::new();
        for step in steps.iter().filter(|step| matches!(step, Step::Respond(_))) {
            *responses.entry(step.task()).or_default() += 1;
        }
        let may_close = |(key, count): &(TaskKey, i32)| {
            let is_last =
                |task: &Task| task.answered + count >= task.quorum || task.responded + count >= task.asked;
            self.tasks.get(key).is_some_and(|task| task.takes_answers() && is_last(task))
        };
        responses.into_iter().filter(may_close).map(|(key, _)| key).collect()
    }

    fn take(&mut self, step: &Step<'a>, prepared: &'a Prepared, verdicts: &mut Verdicts) {
        let key = step.task();
        let Some(task) = self.tasks.get_mut(&key) else { return };
        // A token may be for one session alone, so a task is found in its own session only.
        if task.session_id != step.session().as_str() {
            return;
        }
        match step {
            Step::Cancel(item) if task.takes_answers() => {
                "cancelled".clone_into(&mut task.state);
                self.changed.insert(key, item.message.request_id);
                verdicts.written(item, true);
            }
            Step::Cancel(item) => verdicts.written(item, false),
            Step::Respond(item) => self.take_response(item, prepared, verdicts),
        }
    }

    fn take_response(
        &mut self,
        item: &Item<'a, ResponseSubmit>,
        prepared: &'a Prepared,
        verdicts: &mut Verdicts,
    ) {
        let Item { index, message, request } = *item;
        let (key, delegation) =
            ((item.user(), request.task_id), delegation_id(request.task_id, request.agent_id.as_str()));
        let Some(asked) = self.asked.get_mut(&(key.0, delegation)) else {
            let reason =
                format!("agent_id: agent {} was not asked in task {}", request.agent_id, request.task_id);
            return verdicts.set(index, Verdict::Rejected(reason.into()));
        };
        let abstains = match prepared.abstains(message.event_id) {
            Some(Ok(abstains)) => abstains,
            Some(Err(reason)) => return verdicts.set(index, Verdict::Rejected(reason.to_owned().into())),
            None => {
                let reason = "the response was not read before the transaction".to_owned();
                return verdicts.set(index, Verdict::Retry(Retry::WithinBudget, reason.into()));
            }
        };
        let Some(task) = self.tasks.get_mut(&key) else { return };
        if let Err(reason) = fits(request, task.asked, asked.responses) {
            return verdicts.set(index, Verdict::Rejected(reason.into()));
        }
        if self.known.contains(&(key.0, request.response_id)) {
            return verdicts.written(item, false);
        }
        let is_counted = task.takes_answers();
        let sequence = i64::try_from(message.sequence).unwrap_or(i64::MAX);
        let is_latest = is_counted && sequence > asked.sequence;
        let (responded, answered) = if is_latest {
            task.with_response(asked.has_answered, abstains)
        } else {
            (task.responded, task.answered)
        };
        let reason = task.close_reason(responded, answered).filter(|_| is_counted);
        self.known.insert((key.0, request.response_id));
        asked.responses += 1;
        if is_latest {
            (task.responded, task.answered) = (responded, answered);
            (asked.has_answered, asked.sequence) = (Some(!abstains), sequence);
            asked.changed_by = Some(message.request_id);
            self.changed.insert(key, message.request_id);
        }
        if let Some(reason) = reason.filter(|_| self.budget.spend(key, message)) {
            "closed".clone_into(&mut task.state);
            let closing = Closing {
                user_id: key.0,
                task_id: key.1,
                reason,
                asked: task.asked,
                responded: task.responded,
                answered: task.answered,
                at: task.now,
                request_id: message.request_id,
            };
            self.closings.push((index, closing));
        }
        self.rows.push(ResponseRow::new(item, delegation, is_counted, prepared));
        self.applied.push((
            index,
            EventDraft::of_request(message).map(|event| late(event, is_counted, item)).into_iter().collect(),
        ));
    }

    async fn write(&mut self, connection: &mut Connection) -> Result<(), Fault> {
        let count = self.rows.len();
        if count > 0 {
            let written = with_rows(&RESPONSES, std::mem::take(&mut self.rows)).execute(connection).await?;
            if written < count {
                return Err(overtaken("a response"));
            }
        }
        let mut asked: Vec<AskedRow> = self.asked.iter().filter_map(asked_row).collect();
        asked.sort_unstable_by_key(|row| (row.user_id, row.id));
        if !asked.is_empty() {
            with_rows(&ANSWERED, asked).execute(connection).await?;
        }
        let closing: HashSet<TaskKey> =
            self.closings.iter().map(|(_, closing)| (closing.user_id, closing.task_id)).collect();
        let open = self.changed.iter().filter(|(key, _)| !closing.contains(*key));
        let rows: Vec<CountRow> = open
            .filter_map(|(key, &request_id)| {
                let task = self.tasks.get(key)?;
                Some(CountRow {
                    user_id: key.0,
                    id: key.1,
                    responded: task.responded,
                    answered: task.answered,
                    is_cancelled: task.state == "cancelled",
                    is_complete: task.is_open() && !task.takes_answers(),
                    request_id,
                })
            })
            .collect();
        let cancelled = rows.iter().filter(|row| row.is_cancelled);
        let cancelled = cancelled.map(|row| PendingRow::new((row.user_id, row.id), row.request_id)).collect();
        if !rows.is_empty() {
            with_rows(&COUNTS, rows).execute(connection).await?;
        }
        close::release(connection, cancelled).await
    }
}

fn asked_row((key, asked): (&(i32, Uuid), &Asked)) -> Option<AskedRow> {
    Some(AskedRow {
        user_id: key.0,
        id: key.1,
        has_answered: asked.has_answered?,
        response_sequence: asked.sequence,
        request_id: asked.changed_by?,
    })
}

impl<'a> ResponseRow<'a> {
    fn new(
        item: &Item<'a, ResponseSubmit>,
        delegation_id: Uuid,
        is_counted: bool,
        prepared: &'a Prepared,
    ) -> Self {
        let Item { message, request, .. } = *item;
        let vector = prepared.vector(message.event_id);
        Self {
            id: request.response_id,
            user_id: item.user(),
            delegation_id,
            task_id: request.task_id,
            agent_id: request.agent_id.as_str(),
            response_text: request.response_text.as_str(),
            claim: request.claim.as_ref().map(contract::Json::as_str),
            evidence: json(&request.evidence),
            confidence: request.confidence.map(contract::Score::get),
            seconds: request.processing_time_seconds.map(contract::Real::get),
            stored_sequence: i64::try_from(message.sequence).unwrap_or(i64::MAX),
            is_counted,
            embedding: vector.map(|(_, vector)| to_bytes(vector)),
            embedding_model: vector.map(|(model, _)| model),
            event_id: message.event_id,
            stored_at: message.stored_at,
            request_id: message.request_id,
        }
    }
}

/// The event of a response that came too late says so.
fn late(event: EventDraft, is_counted: bool, item: &Item<'_, ResponseSubmit>) -> EventDraft {
    if is_counted {
        return event;
    }
    let mut body = serde_json::to_value(item.request).unwrap_or_default();
    if let Some(fields) = body.as_object_mut() {
        fields.insert("is_counted".to_owned(), false.into());
    }
    EventDraft { payload: Some(body.to_string()), ..event }
}
