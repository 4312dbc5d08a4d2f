//! The close of tasks: their answers are frozen, weighed, and become nodes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;

use ::store::unnest::{UnnestRow, with_rows};
use ::store::{Connection, Fault};
use chrono::{DateTime, Utc};
use consensus::{Dossier, Rules, Status, Vote, canonical};
use contract::{EventType, Performative, UserId};
use diesel_async::RunQueryDsl;
use runtime::EventDraft;
use serde_json::{Value, json};
use uuid::Uuid;

use super::batch::{computed, keep_alive, overtaken, rounds, uncomputable};
use super::conversations::AllCounters;
use super::nodes::{self, DossierRow, Live, NodeKey, Succession};
use super::task::TaskKey;
use crate::inputs::{self, TaskInputs};

/// Why a task closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseReason {
    /// As many agents have answered as were needed.
    Quorum,
    /// All agents have responded, some of them with abstentions.
    AllAnswered,
    /// Its time is over.
    Deadline,
}

impl CloseReason {
    /// Why a task that wants so many answers, of so many agents, closes when so many have responded and answered. None if it is not complete.
    pub fn when_complete(quorum: i32, asked: i32, responded: i32, answered: i32) -> Option<Self> {
        if answered >= quorum {
            Some(Self::Quorum)
        } else if responded >= asked {
            Some(Self::AllAnswered)
        } else {
            None
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Quorum => "quorum",
            Self::AllAnswered => "all-answered",
            Self::Deadline => "deadline",
        }
    }
}

/// A task that closes. It is locked.
#[derive(Clone, Debug)]
pub(crate) struct Closing {
    pub user_id: i32,
    pub task_id: Uuid,
    pub reason: CloseReason,
    pub asked: i32,
    pub responded: i32,
    pub answered: i32,
    pub at: DateTime<Utc>,
    /// The request or the tick that closes it.
    pub request_id: Uuid,
}

impl Closing {
    fn key(&self) -> TaskKey {
        (self.user_id, self.task_id)
    }
}

/// The events of closed tasks, in order.
pub(crate) type ClosedEvents = HashMap<TaskKey, Vec<EventDraft>>;

/// The most work of one transaction, unless it is one task ([`contract::limit::TASK_CHARS`]) for each service in it: four MiB of answers,
/// or two tasks of 500 agents. The normal forms of answers are about twice as long at most.
pub(super) const MOST_WORK: i64 = 4 * 1024 * 1024;

/// Closes tasks, in this order. Tasks for the same key follow each other, so that one sees the node of the one before.
pub(crate) async fn close(
    connection: &mut Connection,
    rules: &Rules,
    closings: &[Closing],
    counters: &mut AllCounters,
) -> Result<ClosedEvents, Fault> {
    let mut events = ClosedEvents::new();
    if closings.is_empty() {
        return Ok(events);
    }
    let keys: Vec<TaskKey> = closings.iter().map(Closing::key).collect();
    let mut tasks = inputs::of_tasks(connection, &keys).await?;
    inputs::add_agents(connection, &mut tasks).await?;
    let known: Vec<(&Closing, &TaskInputs)> =
        closings.iter().filter_map(|closing| Some((closing, tasks.get(&closing.key())?))).collect();
    for round in rounds(&known, |(_, task)| node_key(task)) {
        for (closing, task) in &round {
            let counter = counters.entry((closing.user_id, task.task.session_id.clone())).or_default();
            counter.completed += 1;
            counter.request_id = closing.request_id;
        }
        close_round(connection, rules, &round, &mut events).await?;
    }
    Ok(events)
}

fn node_key(task: &TaskInputs) -> NodeKey {
    (task.task.user_id, task.task.node_type.clone(), task.task.node_key.clone())
}

async fn close_round(
    connection: &mut Connection,
    rules: &Rules,
    round: &[&(&Closing, &TaskInputs)],
    events: &mut ClosedEvents,
) -> Result<(), Fault> {
    let keys: Vec<NodeKey> = round.iter().map(|(_, task)| node_key(task)).collect();
    let live = nodes::live(connection, &keys).await?;
    let none = Vec::new();
    let mut made = Vec::with_capacity(round.len());
    for (key, (closing, task)) in keys.iter().zip(round) {
        made.push(computed(|| Made::new(closing, task, live.get(key).unwrap_or(&none), rules))?);
        keep_alive(connection).await?;
    }
    let successions = made.iter_mut().flat_map(|made| std::mem::take(&mut made.successions)).collect();
    nodes::supersede(connection, rules, successions).await?;
    let rows: Vec<NodeRow<'_>> = made.iter().map(Made::node_row).collect();
    if with_rows(&NODES, rows).execute(connection).await? < made.len() {
        return Err(overtaken("the node of a key"));
    }
    with_rows(&TASKS, made.iter().map(Made::task_row).collect()).execute(connection).await?;
    release(connection, made.iter().filter_map(Made::pending_row).collect()).await?;
    let mut dossiers = Vec::with_capacity(made.len());
    for made in made {
        events.insert(made.closing.key(), made.events);
        dossiers.push(made.dossier_row);
    }
    nodes::add_dossiers(connection, dossiers).await
}

/// A node that is made of the answers to a task.
struct Made<'a> {
    closing: &'a Closing,
    task: &'a TaskInputs,
    id: Uuid,
    response_id: Option<Uuid>,
    content: String,
    status: Status,
    score: f64,
    valid_from: DateTime<Utc>,
    voters: String,
    choices: String,
    confidences: String,
    successions: Vec<Succession>,
    dossier_row: DossierRow,
    events: Vec<EventDraft>,
}

impl<'a> Made<'a> {
    fn new(closing: &'a Closing, task: &'a TaskInputs, live: &[Live], rules: &Rules) -> Result<Self, Fault> {
        // Not derived from the task: publishers choose the ids of nodes that they propose, and could take one that they foresee.
        let id = Uuid::now_v7();
        let key = (closing.user_id, id);
        let answer = |dossier: &Dossier| nodes::representative(dossier, &task.inputs);
        let contradicts = |dossier: &Dossier| {
            nodes::contradictions(live, id, answer(dossier), task.model.as_deref(), rules)
        };
        let (row, dossier) = DossierRow::compute(key, &task.inputs, rules, closing.request_id, contradicts)?;
        let answer = answer(&dossier);
        let status = dossier.outcome.status;
        let replaced = if status == Status::Validated { live } else { &[] };
        let valid_from = replaced.iter().map(|old| old.valid_from).fold(closing.at, DateTime::max);
        let votes = Votes::of(&dossier, task)?;
        Ok(Self {
            closing,
            task,
            id,
            response_id: answer.and_then(|answer| answer.id.parse().ok()),
            content: content(task, answer, &dossier),
            status,
            score: dossier.score(),
            valid_from,
            voters: votes.voters,
            choices: votes.choices,
            confidences: votes.confidences,
            successions: replaced
                .iter()
                .map(|old| Succession::new(old, id, valid_from, closing.request_id))
                .collect(),
            dossier_row: row,
            events: events(closing, task, id, &dossier, replaced)?,
        })
    }

    fn node_row(&self) -> NodeRow<'_> {
        NodeRow {
            id: self.id,
            user_id: self.closing.user_id,
            node_type: &self.task.task.node_type,
            node_key: &self.task.task.node_key,
            title: &self.task.task.title,
            content: &self.content,
            validation_status: self.status.as_str(),
            consensus_score: self.score,
            semantic_tags: &self.task.task.semantic_tags,
            task_id: self.closing.task_id,
            response_id: self.response_id,
            valid_from: self.valid_from,
            rules_version: self.dossier_row.rules_version(),
            inputs_sha256: self.dossier_row.inputs_sha256(),
            request_id: self.closing.request_id,
        }
    }

    /// None if all agents have responded.
    fn pending_row(&self) -> Option<PendingRow> {
        let Closing { user_id, task_id, request_id, responded, asked, .. } = *self.closing;
        (responded < asked).then_some(PendingRow::new((user_id, task_id), request_id))
    }

    fn task_row(&self) -> TaskRow<'_> {
        TaskRow {
            user_id: self.closing.user_id,
            id: self.closing.task_id,
            reason: self.closing.reason.as_str(),
            at: self.closing.at,
            node_id: self.id,
            responded: self.closing.responded,
            answered: self.closing.answered,
            voters: &self.voters,
            choices: &self.choices,
            confidences: &self.confidences,
            request_id: self.closing.request_id,
        }
    }
}

/// What the node says. `answer` is missing if no answer leads alone.
fn content(task: &TaskInputs, answer: Option<&consensus::Response>, dossier: &Dossier) -> String {
    let mut content = json!({ "question": task.task.question, "reasons": dossier.outcome.reasons });
    match answer {
        Some(answer) => content["answer"] = answer.text.as_str().into(),
        None => content["candidates"] = leaders(dossier).into(),
    }
    let text = content.to_string();
    // The claim is put in as it is written, so that all digits of its numbers are kept.
    match answer.and_then(|answer| answer.claim.as_deref()) {
        Some(claim) => format!("{{\"claim\":{claim},{}", text.trim_start_matches('{')),
        None => text,
    }
}

/// The answers that lead: several if there is a tie.
fn leaders(dossier: &Dossier) -> Vec<Value> {
    let clusters = dossier.outcome.leaders.iter().filter_map(|place| dossier.clusters.get(*place as usize));
    clusters.map(|cluster| json!({ "answer": cluster.answer, "agents": cluster.agents })).collect()
}

/// Who voted for what, as JSON lists, for estimates over many tasks.
struct Votes {
    voters: String,
    choices: String,
    confidences: String,
}

impl Votes {
    fn of(dossier: &Dossier, task: &TaskInputs) -> Result<Self, Fault> {
        let options: Option<Vec<String>> = match &task.task.options {
            Some(options) => {
                let texts: Vec<String> =
                    serde_json::from_str(options).map_err(|error| uncomputable(&error))?;
                Some(texts.iter().map(|text| as_claim(text)).collect())
            }
            None => None,
        };
        let choice = |vote: &Vote| match &options {
            Some(options) => option(vote, options, task),
            None => vote.cluster,
        };
        let list = |values: Vec<Value>| Value::from(values).to_string();
        let all = |value: &dyn Fn(&Vote) -> Value| list(dossier.votes.iter().map(value).collect());
        Ok(Self {
            voters: all(&|vote| vote.agent.as_str().into()),
            choices: all(&|vote| choice(vote).into()),
            confidences: all(&|vote| vote.confidence.map(consensus::Micro::to_f64).into()),
        })
    }
}

/// A text in the form in which claims are compared.
fn as_claim(text: &str) -> String {
    canonical(&Value::from(text).to_string()).ok().flatten().unwrap_or_default()
}

/// The option that a vote is for: its claim, or else its text, is one of them.
fn option(vote: &Vote, options: &[String], task: &TaskInputs) -> Option<u32> {
    vote.cluster?;
    let response = task.inputs.responses.iter().find(|response| response.id == vote.response)?;
    let said = match &response.claim {
        Some(claim) => canonical(claim).ok().flatten().unwrap_or_default(),
        None => as_claim(&response.text),
    };
    let place = options.iter().position(|option| *option == said && !said.is_empty())?;
    u32::try_from(place).ok()
}

fn events(
    closing: &Closing,
    task: &TaskInputs,
    id: Uuid,
    dossier: &Dossier,
    replaced: &[Live],
) -> Result<Vec<EventDraft>, Fault> {
    let user = UserId::new(closing.user_id).map_err(|error| uncomputable(&error))?;
    let outcome = &dossier.outcome;
    let completed = json!({
        "task_id": closing.task_id, "session_id": task.task.session_id, "node_id": id,
        "close_reason": closing.reason.as_str(), "responded": closing.responded, "answered": closing.answered,
    });
    let established = json!({
        "node_id": id, "task_id": closing.task_id, "node_type": task.task.node_type, "node_key": task.task.node_key,
        "title": task.task.title, "validation_status": outcome.status.as_str(), "consensus_score": dossier.score(),
        "reasons": outcome.reasons, "leaders": leaders(dossier), "contradicts": dossier.contradicts,
    });
    let event = |event_type, payload: Value| event(user, event_type, &task.task.session_id, &payload);
    let mut events =
        vec![event(EventType::TaskCompleted, completed), event(EventType::NodeEstablished, established)];
    events.extend(replaced.iter().map(|old| event(EventType::NodeSuperseded, superseded(old.id, id))));
    Ok(events)
}

/// The payload of the event of a succession.
pub(crate) fn superseded(old: Uuid, successor: Uuid) -> Value {
    json!({ "node_id": old, "superseded_by": successor })
}

/// An event beside that of a request.
pub(crate) fn event(user_id: UserId, event_type: EventType, session: &str, payload: &Value) -> EventDraft {
    EventDraft {
        user_id,
        event_type,
        performative: Performative::Inform,
        source_agent_id: None,
        target_agent_id: None,
        session_id: Cow::Owned(session.to_owned()),
        payload: Some(payload.to_string()),
    }
}

::store::unnest_row! {
    struct NodeRow<'a> {
        id: Uuid,
        user_id: i32,
        node_type: &'a str,
        node_key: &'a str,
        title: &'a str,
        content: &'a str,
        validation_status: &'a str,
        consensus_score: f64,
        semantic_tags: &'a str,
        task_id: Uuid,
        response_id: Option<Uuid>,
        valid_from: DateTime<Utc>,
        rules_version: i32,
        inputs_sha256: &'a str,
        request_id: Uuid,
    }
}

static NODES: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (NodeRow::arrays(1), NodeRow::names());
    format!(
        "INSERT INTO consensus_memory_nodes (id, user_id, node_type, node_key, title, content, validation_status, consensus_score,
        semantic_tags, established_at, updated_at, task_id, response_id, valid_from, rules_version, inputs_sha256, request_id)
    SELECT id, user_id, node_type, node_key, title, content::jsonb, validation_status::validationstatus, consensus_score,
        semantic_tags::jsonb, valid_from, valid_from, task_id, response_id, valid_from, rules_version, inputs_sha256, request_id
    FROM unnest({arrays}) AS i ({names}) ORDER BY user_id, id
    ON CONFLICT DO NOTHING"
    )
});

::store::unnest_row! {
    struct TaskRow<'a> {
        user_id: i32,
        id: Uuid,
        reason: &'a str,
        at: DateTime<Utc>,
        node_id: Uuid,
        responded: i32,
        answered: i32,
        voters: &'a str,
        choices: &'a str,
        confidences: &'a str,
        request_id: Uuid,
    }
}

/// A closed task is due for an estimate.
static TASKS: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (TaskRow::arrays(1), TaskRow::names());
    format!(
        "WITH closed AS (
        UPDATE consensus_tasks t SET state = 'closed', close_reason = i.reason, closed_at = i.at, node_id = i.node_id,
        responded = i.responded, answered = i.answered,
        voters = ARRAY(SELECT v FROM jsonb_array_elements_text(i.voters::jsonb) WITH ORDINALITY AS e (v, n) ORDER BY n),
        choices = ARRAY(SELECT v::integer FROM jsonb_array_elements_text(i.choices::jsonb) WITH ORDINALITY AS e (v, n) ORDER BY n),
        confidences = ARRAY(SELECT v::float8 FROM jsonb_array_elements_text(i.confidences::jsonb) WITH ORDINALITY AS e (v, n)
            ORDER BY n),
        updated_at = now(), request_id = i.request_id
        FROM unnest({arrays}) AS i ({names}) WHERE t.user_id = i.user_id AND t.id = i.id
        RETURNING t.user_id, t.id, t.request_id
    )
    INSERT INTO task_estimates (user_id, id, request_id) SELECT user_id, id, request_id FROM closed ORDER BY user_id, id"
    )
});

::store::unnest_row! {
    /// A task that some agents have not responded to.
    pub(crate) struct PendingRow {
        user_id: i32,
        id: Uuid,
        request_id: Uuid,
    }
}

impl PendingRow {
    pub fn new((user_id, id): TaskKey, request_id: Uuid) -> Self {
        Self { user_id, id, request_id }
    }
}

/// Agents that have not responded to these tasks need not do so any more.
pub(crate) async fn release(connection: &mut Connection, tasks: Vec<PendingRow>) -> Result<(), Fault> {
    if !tasks.is_empty() {
        with_rows(&PENDING, tasks).execute(connection).await?;
    }
    Ok(())
}

static PENDING: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (PendingRow::arrays(1), PendingRow::names());
    format!(
        "UPDATE task_delegations d SET status = 'cancelled', updated_at = now(), request_id = i.request_id
    FROM unnest({arrays}) AS i ({names}) WHERE d.user_id = i.user_id AND d.task_id = i.id AND d.status = 'pending'"
    )
});
