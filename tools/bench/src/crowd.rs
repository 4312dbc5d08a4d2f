//! The answers of a crowd through consensus-builder, message by message: what the fleet holds to be true.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use async_nats::HeaderMap;
use async_nats::jetstream;
use bytes::Bytes;
use chrono::{SecondsFormat, Utc};
use cli::errln;
use cli::table::grouped;
use config::Settings;
use consensus::dataset::Dataset;
use consensus::reliability::Task;
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
/// The most requests of a part. Of more than [`PARTS`], an estimate follows when so many closed tasks wait for one: with those of
/// another part, they are as many as an estimate takes in, so that each is among the newest once.
const MOST_OF_PART: usize = 15_000;
const WAITING: i64 = 5_000;
/// The most agents of a task, and options (`contract::TaskDelegate`).
const MOST_AGENTS: usize = 500;
const MOST_OPTIONS: usize = 100;
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// What makes no progress for this long has failed.
const STUCK_AFTER: Duration = Duration::from_secs(120);
/// How often progress is printed.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// How often the fleet is right.
pub(super) struct Fed {
    /// By what the tasks hold after the last answer.
    pub(super) at_end: f64,
    /// By the node that the last answer to a question made, never revised.
    pub(super) at_close: f64,
}

/// Checks that the fleet takes a data set.
pub(super) fn check(dataset: &Dataset) -> anyhow::Result<()> {
    let options = dataset.options;
    ensure!(
        (2..=MOST_OPTIONS).contains(&options),
        "the data set has {options} different answers; bench consensus takes 2 to {MOST_OPTIONS}, as many as a task may have"
    );
    let most = dataset.tasks().iter().map(|task| workers(task).len()).max().unwrap_or(0);
    ensure!(
        most <= MOST_AGENTS,
        "{most} workers answered one question of the data set; bench consensus takes up to {MOST_AGENTS}, as many as a task may ask"
    );
    Ok(())
}

/// Feeds a data set in the order of its file. A question is a task to those who answer it; their last answer closes it.
pub(super) async fn feed(dataset: &Dataset, settings: &Settings) -> anyhow::Result<Fed> {
    let options = dataset.options;
    let accounts = Pipeline::open::<ContextWriter>(settings).await?;
    accounts.process(vec![user()], WorkerName::ContextWriter).await?;
    let pipeline = Pipeline::open::<ConsensusBuilder>(settings).await?;
    let mut fleet = Fleet::start(&[WorkerName::ConsensusBuilder], settings);
    let answered = tokio::select! {
        answered = ask_and_answer(dataset, &pipeline, settings) => answered,
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

async fn ask_and_answer(dataset: &Dataset, pipeline: &Pipeline, settings: &Settings) -> anyhow::Result<()> {
    let mut owner = store::connect(&settings.postgres.url).await?;
    let tasks = dataset.tasks();
    let agents: Vec<usize> = (0..dataset.workers).collect();
    let mut progress = Progress::new("agents configured and questions asked", agents.len() + tasks.len());
    pipeline.publish([start()]).await?;
    for part in agents.chunks(MOST_OF_PART) {
        pipeline.publish(part.iter().map(|worker| configure(*worker))).await?;
        processed(pipeline, &mut progress, part.len()).await?;
    }
    let options: Vec<String> = (0..dataset.options).map(option).collect();
    let numbered: Vec<(usize, &Task)> = tasks.iter().enumerate().collect();
    for part in numbered.chunks(MOST_OF_PART) {
        let asked = part.iter().filter(|(_, task)| !task.answers.is_empty());
        pipeline.publish(asked.map(|(question, task)| delegate(*question, task, &options))).await?;
        processed(pipeline, &mut progress, part.len()).await?;
    }
    let mut progress = Progress::new("answers processed", dataset.answers.len());
    let mut published = 0_i64;
    let length = dataset.answers.len().div_ceil(PARTS).clamp(1, MOST_OF_PART);
    let parts: Vec<_> = dataset.answers.chunks(length).collect();
    for (place, part) in parts.iter().enumerate() {
        pipeline.publish(part.iter().map(response)).await?;
        processed(pipeline, &mut progress, part.len()).await?;
        published += i64::try_from(part.len())?;
        until_count(&mut owner, RECORDED, |count| count == published).await?;
        let is_last = place + 1 == parts.len();
        if is_last || parts.len() <= PARTS || count(&mut owner, DUE).await? >= WAITING {
            estimate(pipeline, &mut owner).await?;
        }
    }
    Ok(())
}

/// Waits until what was published is processed.
async fn processed(pipeline: &Pipeline, progress: &mut Progress, count: usize) -> anyhow::Result<()> {
    pipeline.settled().await?;
    pipeline.purge().await?;
    progress.advance(count)
}

/// Prints on standard error how far a step is that takes long.
struct Progress {
    what: &'static str,
    all: usize,
    done: usize,
    began: Instant,
    printed: Instant,
}

impl Progress {
    fn new(what: &'static str, all: usize) -> Self {
        let now = Instant::now();
        Self { what, all, done: 0, began: now, printed: now }
    }

    fn advance(&mut self, count: usize) -> anyhow::Result<()> {
        self.done += count;
        if self.printed.elapsed() >= PROGRESS_EVERY {
            self.printed = Instant::now();
            let left = self.began.elapsed().as_secs_f64() / self.done.max(1) as f64
                * self.all.saturating_sub(self.done) as f64;
            let (done, all) = (grouped(u64::try_from(self.done)?), grouped(u64::try_from(self.all)?));
            errln!("{done} of {all} {}, about {left:.0} s left", self.what);
        }
        Ok(())
    }
}

fn user() -> Prepared {
    request("user.put", &json!({ "username": "bench", "email": "bench@example.org" }))
}

fn start() -> Prepared {
    request("expert-conversation.start", &json!({ "session_id": SESSION, "conversation_title": "Crowd" }))
}

/// An agent that depends on no other one.
fn configure(worker: usize) -> Prepared {
    let name = agent(worker);
    let body = json!({
        "agent_id": name, "agent_type": "expert", "agent_role": "labels", "assigned_llm": name,
        "model_provider": "other", "model_family": name,
    });
    request("agent.configure", &body)
}

fn delegate(question: usize, task: &Task, options: &[String]) -> Prepared {
    let workers = workers(task);
    let quorum = workers.len();
    let agents: BTreeSet<String> = workers.into_iter().map(|worker| agent(worker as usize)).collect();
    let body = json!({
        "task_id": task_id(question), "session_id": SESSION, "pm_agent_id": "pm", "agents": agents, "quorum": quorum,
        "question": question.to_string(), "task_kind": "crowd", "options": options,
    });
    request("task.delegate", &body)
}

fn workers(task: &Task) -> BTreeSet<u32> {
    task.answers.iter().map(|(worker, _)| *worker).collect()
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

/// Has ticks of the job run until no closed task is without an estimate.
async fn estimate(pipeline: &Pipeline, owner: &mut Connection) -> anyhow::Result<()> {
    loop {
        let due = count(owner, DUE).await?;
        if due == 0 {
            return Ok(());
        }
        tick(pipeline).await?;
        until_count(owner, DUE, |count| count < due).await?;
    }
}

/// Has the server publish a tick of the job at once.
async fn tick(pipeline: &Pipeline) -> anyhow::Result<()> {
    let jetstream = jetstream::new(pipeline.client().clone());
    let job = runtime::Job::name(Job::Reestimate);
    let mut headers = HeaderMap::new();
    let soon = (Utc::now() + Duration::from_millis(100)).to_rfc3339_opts(SecondsFormat::Millis, true);
    headers.insert("Nats-Schedule", format!("@at {soon}"));
    headers.insert("Nats-Schedule-Target", format!("memory.job.{job}"));
    let sent =
        jetstream.publish_with_headers(format!("{SCHEDULE_ROOT}.{job}"), headers, Bytes::new()).await?;
    sent.await.map(drop).context("the broker does not schedule the job")
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
async fn until_count(
    owner: &mut Connection,
    sql: &str,
    is_reached: impl Fn(i64) -> bool,
) -> anyhow::Result<()> {
    let (mut changed_at, mut seen) = (Instant::now(), -1);
    loop {
        let now = count(owner, sql).await?;
        if is_reached(now) {
            return Ok(());
        }
        if now != seen {
            (changed_at, seen) = (Instant::now(), now);
        }
        ensure!(
            changed_at.elapsed() < STUCK_AFTER,
            "the count stays {now}, without change for {STUCK_AFTER:?}: {sql}"
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

    /// The estimated answer. Without one, such as of a tie, what the node says.
    fn estimated(&self) -> Vec<usize> {
        let estimated = self.estimated_answer.and_then(|answer| usize::try_from(answer).ok());
        estimated.map_or_else(|| self.leading(), |answer| vec![answer])
    }

    /// The answer of the node; of a tie, all.
    fn leading(&self) -> Vec<usize> {
        let content: Value = serde_json::from_str(&self.content).unwrap_or_default();
        let candidates = content["candidates"].as_array().into_iter().flatten().map(|one| &one["answer"]);
        let all = std::iter::once(&content["answer"]).chain(candidates);
        all.filter_map(|text| option_number(text.as_str()?)).collect()
    }
}
