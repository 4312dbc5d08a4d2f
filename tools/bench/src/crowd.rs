//! The answers of a crowd through consensus-builder, message by message: what the fleet holds to be true.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use async_nats::HeaderMap;
use async_nats::jetstream;
use bytes::Bytes;
use chrono::{SecondsFormat, Utc};
use config::Settings;
use consensus::dataset::Dataset;
use consensus_builder::{ConsensusBuilder, Job};
use context_writer::ContextWriter;
use contract::SCHEDULE_ROOT;
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Integer, Nullable, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use fleet::{Fleet, WorkerName};
use serde_json::{Value, json};
use store::Connection;
use tokio::time::sleep;
use uuid::Uuid;

use super::bulk::Prepared;
use super::pipeline::Pipeline;

const USER: i32 = 2_000_000_001;
const SESSION: &str = "bench-crowd";
/// The agents' reliability is estimated anew after each of so many parts of the answers.
const PARTS: usize = 10;
/// The most agents of a task, and options (`contract::TaskDelegate`).
const MOST_AGENTS: usize = 500;
const MOST_OPTIONS: usize = 100;
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// What makes no progress for this long has failed.
const STUCK_AFTER: Duration = Duration::from_secs(120);

/// How often the fleet is right.
pub(super) struct Fed {
    /// By the estimate after the last answer.
    pub(super) at_end: f64,
    /// By the node that the last answer to a question made, never revised.
    pub(super) at_close: f64,
}

/// Feeds a data set in the order of its file. A question is a task to those who answer it; their last answer closes it.
pub(super) async fn feed(dataset: &Dataset, settings: &Settings) -> anyhow::Result<Fed> {
    let options = dataset.options;
    ensure!(
        (2..=MOST_OPTIONS).contains(&options),
        "the data set has {options} different answers, not 2 to {MOST_OPTIONS}"
    );
    let accounts = Pipeline::open::<ContextWriter>(settings).await?;
    accounts.process(vec![user()], WorkerName::ContextWriter).await?;
    let pipeline = Pipeline::open::<ConsensusBuilder>(settings).await?;
    pipeline.process(questions(dataset)?, WorkerName::ConsensusBuilder).await?;
    let mut fleet = Fleet::start(&[WorkerName::ConsensusBuilder], settings);
    let answered = tokio::select! {
        answered = answer(dataset, &pipeline, settings) => answered,
        ended = fleet.ended() => ended.map_err(Into::into).and_then(|()| bail!("the worker ended unexpectedly")),
    };
    let stopped = fleet.stop().await;
    answered?;
    stopped?;
    let mut owner = store::connect(&settings.postgres.url).await?;
    let held = held(&mut owner).await?;
    let score = |choices: fn(&Held) -> Vec<usize>| {
        // A question without an answer has no probabilities, and is not right by chance.
        let mut probabilities = vec![Vec::new(); dataset.truths.len()];
        for one in &held {
            let Some(place) = one.question().and_then(|question| probabilities.get_mut(question)) else {
                continue;
            };
            let choices = choices(one);
            if !choices.is_empty() {
                let share = |option| if choices.contains(&option) { 1.0 } else { 0.0 };
                *place = (0..options).map(share).collect();
            }
        }
        dataset.score(&probabilities)
    };
    Ok(Fed { at_end: score(Held::estimated), at_close: score(Held::leading) })
}

async fn answer(dataset: &Dataset, pipeline: &Pipeline, settings: &Settings) -> anyhow::Result<()> {
    let mut owner = store::connect(&settings.postgres.url).await?;
    let mut published = 0_i64;
    for part in dataset.answers.chunks(dataset.answers.len().div_ceil(PARTS).max(1)) {
        pipeline.publish(part.iter().map(response)).await?;
        pipeline.settled().await?;
        published += i64::try_from(part.len())?;
        until_count_is(&mut owner, RECORDED, published).await?;
        estimate(pipeline, &mut owner).await?;
    }
    Ok(())
}

fn user() -> Prepared {
    request("user.put", &json!({ "username": "bench", "email": "bench@example.org" }))
}

/// The agents, none of which depends on another, and the tasks.
fn questions(dataset: &Dataset) -> anyhow::Result<Vec<Prepared>> {
    let start = json!({ "session_id": SESSION, "conversation_title": "Crowd" });
    let mut requests = vec![request("expert-conversation.start", &start)];
    for worker in 0..dataset.workers {
        let name = agent(worker);
        let configure = json!({
            "agent_id": name, "agent_type": "expert", "agent_role": "labels", "assigned_llm": name,
            "model_provider": "other", "model_family": name,
        });
        requests.push(request("agent.configure", &configure));
    }
    let options: Vec<String> = (0..dataset.options).map(option).collect();
    for (question, task) in dataset.tasks().iter().enumerate() {
        let agents: BTreeSet<String> =
            task.answers.iter().map(|(worker, _)| agent(*worker as usize)).collect();
        let count = agents.len();
        if count == 0 {
            continue;
        }
        ensure!(
            count <= MOST_AGENTS,
            "a question has the answers of {count} workers, more than {MOST_AGENTS}"
        );
        let delegate = json!({
            "task_id": task_id(question), "session_id": SESSION, "pm_agent_id": "pm", "agents": agents, "quorum": count,
            "question": question.to_string(), "task_kind": "crowd", "options": options,
        });
        requests.push(request("task.delegate", &delegate));
    }
    Ok(requests)
}

fn response((question, worker, answer): &(u32, u32, u32)) -> Prepared {
    let said = option(*answer as usize);
    let body = json!({
        "response_id": Uuid::now_v7(), "task_id": task_id(*question as usize), "session_id": SESSION,
        "agent_id": agent(*worker as usize), "response_text": said, "claim": said,
    });
    request("response.submit", &body)
}

fn request(kind: &str, body: &Value) -> Prepared {
    let body = Bytes::from(body.to_string());
    Prepared { subject: format!("memory.req.bench.{kind}.{USER}"), id: Uuid::now_v7(), body }
}

fn agent(number: usize) -> String {
    format!("worker-{number}")
}

fn option(number: usize) -> String {
    format!("option-{number}")
}

/// The number of an option, if a text is one.
fn option_number(text: &str) -> Option<usize> {
    text.trim_matches('"').strip_prefix("option-")?.parse().ok()
}

fn task_id(question: usize) -> Uuid {
    Uuid::from_u128(0xc0de << 64 | question as u128)
}

/// Has the server publish a tick of the job at once, and waits until no closed task is without an estimate.
async fn estimate(pipeline: &Pipeline, owner: &mut Connection) -> anyhow::Result<()> {
    if count(owner, DUE).await? == 0 {
        return Ok(());
    }
    let jetstream = jetstream::new(pipeline.client().clone());
    let job = runtime::Job::name(Job::Reestimate);
    let mut headers = HeaderMap::new();
    let soon = (Utc::now() + Duration::from_millis(100)).to_rfc3339_opts(SecondsFormat::Millis, true);
    headers.insert("Nats-Schedule", format!("@at {soon}"));
    headers.insert("Nats-Schedule-Target", format!("memory.job.{job}"));
    let sent =
        jetstream.publish_with_headers(format!("{SCHEDULE_ROOT}.{job}"), headers, Bytes::new()).await?;
    sent.await.context("the broker does not schedule the job")?;
    until_count_is(owner, DUE, 0).await
}

const RECORDED: &str = "SELECT count(*) AS count FROM agent_responses WHERE user_id = $1";
const DUE: &str = "SELECT count(*) AS count FROM task_estimates WHERE user_id = $1 AND estimated_at IS NULL";

async fn count(owner: &mut Connection, sql: &str) -> anyhow::Result<i64> {
    #[derive(QueryableByName)]
    struct Count {
        #[diesel(sql_type = BigInt)]
        count: i64,
    }
    let rows: Vec<Count> = diesel::sql_query(sql).bind::<Integer, _>(USER).load(owner).await?;
    Ok(rows.iter().map(|row| row.count).sum())
}

/// Fails if the count does not change for [`STUCK_AFTER`].
async fn until_count_is(owner: &mut Connection, sql: &str, wanted: i64) -> anyhow::Result<()> {
    let (mut changed_at, mut seen) = (Instant::now(), -1);
    loop {
        let now = count(owner, sql).await?;
        if now == wanted {
            return Ok(());
        }
        if now != seen {
            (changed_at, seen) = (Instant::now(), now);
        }
        ensure!(
            changed_at.elapsed() < STUCK_AFTER,
            "the count is {now} and not {wanted}, without change for {STUCK_AFTER:?}: {sql}"
        );
        sleep(POLL_INTERVAL).await;
    }
}

/// What is held of a question.
#[derive(QueryableByName)]
struct Held {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Nullable<Integer>)]
    estimated_answer: Option<i32>,
    /// The content of its node.
    #[diesel(sql_type = Text)]
    content: String,
}

async fn held(owner: &mut Connection) -> anyhow::Result<Vec<Held>> {
    const HELD: &str = "
        SELECT t.id, e.answer AS estimated_answer, n.content::text AS content
        FROM consensus_tasks t JOIN task_estimates e ON e.user_id = t.user_id AND e.id = t.id
        JOIN consensus_memory_nodes n ON n.user_id = t.user_id AND n.id = t.node_id WHERE t.user_id = $1";
    Ok(diesel::sql_query(HELD).bind::<Integer, _>(USER).load(owner).await?)
}

impl Held {
    fn question(&self) -> Option<usize> {
        usize::try_from(self.id.as_u128() & u128::from(u64::MAX)).ok()
    }

    /// A tie has no estimated answer, and counts as wrong.
    fn estimated(&self) -> Vec<usize> {
        self.estimated_answer.and_then(|answer| usize::try_from(answer).ok()).into_iter().collect()
    }

    /// The answer of the node; of a tie, all.
    fn leading(&self) -> Vec<usize> {
        let content: Value = serde_json::from_str(&self.content).unwrap_or_default();
        let candidates = content["candidates"].as_array().into_iter().flatten().map(|one| &one["answer"]);
        let all = std::iter::once(&content["answer"]).chain(candidates);
        all.filter_map(|text| option_number(text.as_str()?)).collect()
    }
}
