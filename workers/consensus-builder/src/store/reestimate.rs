//! The job `consensus-reestimate`: the records of agents, estimated anew from the closed tasks of a kind.
//!
//! Only kinds with tasks that no estimate has taken in yet are estimated, and of each at most as many tasks and answers as the
//! rules allow, the newest. What a tick does not reach is due at the next one.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use ::store::unnest::{UnnestRow, with_rows};
use ::store::{Connection, Fault};
use chrono::{DateTime, Utc};
use consensus::reliability::{OpenTask, Reliability, Task, estimate, estimate_open, most_probable};
use consensus::{Record, ReliabilityRules, Rules};
use contract::{Event, EventType, UserId};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Double, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use runtime::EventDraft;
use serde_json::json;
use uuid::Uuid;

use super::batch::uncomputable;
use super::close::event;

/// How long a tick begins new estimates. One takes up to a few seconds.
const TIME: Duration = Duration::from_secs(20);
/// The most kinds of tasks of one tick.
const KINDS: i32 = 1_000;
/// A smaller change of the probability of a task's answer is not written.
const CHANGE: f64 = 0.001;

const DUE: &str = "
    SELECT DISTINCT t.user_id, t.task_kind FROM consensus_tasks t WHERE t.state = 'closed' AND t.estimated_at IS NULL
    ORDER BY t.user_id, t.task_kind LIMIT $1";

#[derive(QueryableByName)]
struct Due {
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = Text)]
    task_kind: String,
}

/// The newest tasks, as far as the limits reach. The oldest comes last.
const CLOSED: &str = "
    SELECT c.id, c.options::text AS options, c.voters, c.choices, c.confidences, c.truth, c.closed_at,
        c.estimated_at IS NULL AS is_new, c.estimated_answer, c.estimated_probability
    FROM (SELECT *, sum(cardinality(t.voters)) OVER (ORDER BY t.closed_at DESC, t.id DESC) AS answers FROM consensus_tasks t
        WHERE t.user_id = $1 AND t.task_kind = $2 AND t.state = 'closed' ORDER BY t.closed_at DESC, t.id DESC LIMIT $3) AS c
    WHERE c.answers <= $4 ORDER BY c.closed_at DESC, c.id DESC";

#[derive(QueryableByName)]
struct Closed {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Nullable<Text>)]
    options: Option<String>,
    #[diesel(sql_type = Array<Text>)]
    voters: Vec<String>,
    #[diesel(sql_type = Array<Nullable<Integer>>)]
    choices: Vec<Option<i32>>,
    #[diesel(sql_type = Array<Nullable<Double>>)]
    confidences: Vec<Option<f64>>,
    #[diesel(sql_type = Nullable<Integer>)]
    truth: Option<i32>,
    #[diesel(sql_type = Timestamptz)]
    closed_at: DateTime<Utc>,
    #[diesel(sql_type = Bool)]
    is_new: bool,
    #[diesel(sql_type = Nullable<Integer>)]
    estimated_answer: Option<i32>,
    #[diesel(sql_type = Nullable<Double>)]
    estimated_probability: Option<f64>,
}

/// The families of a user's agents.
const FAMILIES: &str = "
    SELECT c.agent_id, coalesce(c.model_family, c.model_provider::text) AS family FROM agent_configurations c
    WHERE c.user_id = $1";

#[derive(QueryableByName)]
struct Family {
    #[diesel(sql_type = Text)]
    agent_id: String,
    #[diesel(sql_type = Text)]
    family: String,
}

/// Estimates records anew where something is due.
pub(crate) async fn reestimate(
    connection: &mut Connection,
    rules: &Arc<Rules>,
    tick: Uuid,
) -> Result<Vec<EventDraft>, Fault> {
    let begun = Instant::now();
    let due: Vec<Due> =
        ::store::prepared(diesel::sql_query(DUE).bind::<Integer, _>(KINDS)).load(connection).await?;
    let mut events = Vec::new();
    for Due { user_id, task_kind } in due {
        if begun.elapsed() > TIME {
            break;
        }
        events.extend(reestimate_kind(connection, rules, user_id, &task_kind, tick).await?);
    }
    Ok(events)
}

async fn reestimate_kind(
    connection: &mut Connection,
    rules: &Arc<Rules>,
    user_id: i32,
    task_kind: &str,
    tick: Uuid,
) -> Result<Option<EventDraft>, Fault> {
    let limit = |limit: usize| i64::try_from(limit).unwrap_or(i64::MAX);
    let query = diesel::sql_query(CLOSED)
        .bind::<Integer, _>(user_id)
        .bind::<Text, _>(task_kind)
        .bind::<BigInt, _>(limit(rules.reliability.task_limit))
        .bind::<BigInt, _>(limit(rules.reliability.answer_limit));
    let mut closed: Vec<Closed> = ::store::prepared(query).load(connection).await?;
    closed.reverse();
    let query = diesel::sql_query(FAMILIES).bind::<Integer, _>(user_id);
    let families: Vec<Family> = ::store::prepared(query).load(connection).await?;
    let rules = Arc::clone(rules);
    let computed = tokio::task::spawn_blocking(move || Estimated::new(closed, families, &rules.reliability));
    let estimated = computed.await.map_err(|error| uncomputable(&error))?;
    estimated.write(connection, user_id, task_kind, tick).await?;
    let user = UserId::new(user_id).map_err(|error| uncomputable(&error))?;
    let payload =
        json!({ "task_kind": task_kind, "tasks": estimated.tasks.len(), "agents": estimated.records.len() });
    Ok(Some(event(user, EventType::ReliabilityEstimated, Event::ACCOUNT_SESSION, &payload)))
}

/// The estimate of one kind of tasks.
#[derive(Default)]
struct Estimated {
    tasks: Vec<EstimatedTask>,
    /// Of each agent: its right answers, its answers, and the sum of the confidences that it stated.
    records: BTreeMap<String, Sums>,
    /// When the oldest of these tasks closed. Older ones are left out for good.
    oldest: Option<DateTime<Utc>>,
}

struct EstimatedTask {
    id: Uuid,
    answer: Option<i32>,
    probability: Option<f64>,
    truth: Option<i32>,
    is_changed: bool,
}

#[derive(Clone, Copy, Default)]
struct Sums {
    right: f64,
    answers: f64,
    confidence: f64,
}

impl Estimated {
    /// Tasks with the same options are estimated together, and so are those without.
    fn new(closed: Vec<Closed>, families: Vec<Family>, rules: &ReliabilityRules) -> Self {
        let mut result = Self { oldest: closed.iter().map(|task| task.closed_at).min(), ..Self::default() };
        let families: HashMap<String, String> =
            families.into_iter().map(|one| (one.agent_id, one.family)).collect();
        let mut by_options: BTreeMap<Option<String>, Vec<Closed>> = BTreeMap::new();
        for task in closed {
            by_options.entry(task.options.clone()).or_default().push(task);
        }
        for (options, tasks) in by_options {
            result.add(options.as_deref(), &tasks, &families, rules);
        }
        result
    }

    fn add(
        &mut self,
        options: Option<&str>,
        tasks: &[Closed],
        families: &HashMap<String, String>,
        rules: &ReliabilityRules,
    ) {
        let agents = Agents::of(tasks, families);
        let answers = |task: &Closed| -> Vec<(u32, u32)> {
            let votes = task.voters.iter().zip(&task.choices);
            votes
                .filter_map(|(agent, choice)| Some((agents.number(agent)?, u32::try_from((*choice)?).ok()?)))
                .collect()
        };
        let truth = |task: &Closed| task.truth.and_then(|truth| u32::try_from(truth).ok());
        let count = agents.names.len();
        let (probabilities, reliabilities) = match options {
            Some(options) => {
                let options = serde_json::from_str::<Vec<String>>(options).map_or(0, |options| options.len());
                let tasks: Vec<Task> =
                    tasks.iter().map(|task| Task { answers: answers(task), truth: truth(task) }).collect();
                let made = estimate(&tasks, count, options, &agents.groups, rules);
                (made.tasks, made.agents)
            }
            None => {
                let tasks: Vec<OpenTask> = tasks
                    .iter()
                    .map(|task| OpenTask { answers: answers(task), truth: truth(task) })
                    .collect();
                let made = estimate_open(&tasks, count, &agents.groups, rules);
                (made.tasks, made.agents)
            }
        };
        for (task, probabilities) in tasks.iter().zip(&probabilities) {
            self.tasks.push(EstimatedTask::new(task, probabilities));
            self.add_confidences(task, probabilities);
        }
        for (name, Reliability { answers, right, .. }) in agents.names.iter().zip(reliabilities) {
            let sums = self.records.entry((*name).to_owned()).or_default();
            sums.answers += answers;
            sums.right += right;
        }
    }

    /// An agent that states no confidence counts as one whose confidence is always right.
    fn add_confidences(&mut self, task: &Closed, probabilities: &[f64]) {
        for ((agent, choice), stated) in task.voters.iter().zip(&task.choices).zip(&task.confidences) {
            let Some(choice) = choice.and_then(|choice| usize::try_from(choice).ok()) else { continue };
            let confidence = stated.or(probabilities.get(choice).copied()).unwrap_or_default();
            self.records.entry(agent.clone()).or_default().confidence += confidence;
        }
    }

    async fn write(
        &self,
        connection: &mut Connection,
        user_id: i32,
        task_kind: &str,
        tick: Uuid,
    ) -> Result<(), Fault> {
        let mut rows: Vec<TaskRow> = self
            .tasks
            .iter()
            .filter(|task| task.is_changed)
            .map(|task| TaskRow {
                user_id,
                id: task.id,
                answer: task.answer,
                probability: task.probability,
                truth: task.truth,
                request_id: tick,
            })
            .collect();
        rows.sort_unstable_by_key(|row| row.id);
        if !rows.is_empty() {
            with_rows(&TASKS, rows).execute(connection).await?;
        }
        if let Some(oldest) = self.oldest {
            let query = diesel::sql_query(LEFT_OUT)
                .bind::<Integer, _>(user_id)
                .bind::<Text, _>(task_kind)
                .bind::<Timestamptz, _>(oldest)
                .bind::<SqlUuid, _>(tick);
            ::store::prepared(query).execute(connection).await?;
        }
        let rows: Vec<RecordRow<'_>> = self
            .records
            .iter()
            .map(|(agent, sums)| RecordRow::new(user_id, task_kind, agent, sums, tick))
            .collect();
        if !rows.is_empty() {
            with_rows(&RECORDS, rows).execute(connection).await?;
        }
        Ok(())
    }
}

impl EstimatedTask {
    fn new(task: &Closed, probabilities: &[f64]) -> Self {
        // A tie has no answer.
        let (answer, probability) = match most_probable(probabilities).as_slice() {
            [place] => (i32::try_from(*place).ok(), probabilities.get(*place).copied()),
            [] | [_, ..] => (None, None),
        };
        let probability = probability.map(|probability| probability.clamp(0.0, 1.0));
        let moved = match (probability, task.estimated_probability) {
            (Some(new), Some(old)) => (new - old).abs() > CHANGE,
            (new, old) => new.is_some() != old.is_some(),
        };
        let is_changed = task.is_new || moved || answer != task.estimated_answer;
        Self { id: task.id, answer, probability, truth: task.truth, is_changed }
    }
}

/// The agents of tasks, by number.
struct Agents<'a> {
    names: Vec<&'a str>,
    numbers: HashMap<&'a str, u32>,
    /// The family of each.
    groups: Vec<u32>,
}

impl<'a> Agents<'a> {
    fn of(tasks: &'a [Closed], families: &'a HashMap<String, String>) -> Self {
        let mut names: Vec<&str> =
            tasks.iter().flat_map(|task| task.voters.iter().map(String::as_str)).collect();
        names.sort_unstable();
        names.dedup();
        let numbers = names.iter().copied().zip(0..).collect();
        // Agents that declare no family are one.
        let mut known: HashMap<Option<&str>, u32> = HashMap::new();
        let groups = names
            .iter()
            .map(|name| {
                let next = u32::try_from(known.len()).unwrap_or(u32::MAX);
                *known.entry(families.get(*name).map(String::as_str)).or_insert(next)
            })
            .collect();
        Self { names, numbers, groups }
    }

    fn number(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).copied()
    }
}

::store::unnest_row! {
    struct TaskRow {
        user_id: i32,
        id: Uuid,
        answer: Option<i32>,
        probability: Option<f64>,
        truth: Option<i32>,
        request_id: Uuid,
    }
}

/// A task that got a verdict meanwhile stays due.
static TASKS: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (TaskRow::arrays(1), TaskRow::names());
    format!(
        "WITH input AS MATERIALIZED (SELECT * FROM unnest({arrays}) AS i ({names})), held AS MATERIALIZED (
        SELECT i.* FROM consensus_tasks t JOIN input i ON t.user_id = i.user_id AND t.id = i.id
        WHERE t.truth IS NOT DISTINCT FROM i.truth ORDER BY t.user_id, t.id FOR NO KEY UPDATE OF t
    )
    UPDATE consensus_tasks t SET estimated_answer = h.answer, estimated_probability = h.probability, estimated_at = now(),
        updated_at = now(), request_id = h.request_id
    FROM held h WHERE t.user_id = h.user_id AND t.id = h.id"
    )
});

/// Tasks beyond the limits are not due for ever.
const LEFT_OUT: &str = "
    UPDATE consensus_tasks SET estimated_at = now(), request_id = $4
    WHERE user_id = $1 AND task_kind = $2 AND state = 'closed' AND estimated_at IS NULL AND closed_at < $3";

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
