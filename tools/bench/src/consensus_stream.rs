//! `memfleet bench consensus-stream`: responses of agents through consensus-builder, the close of a task, and the estimate of
//! the agents' reliability.

use std::time::Instant;

use anyhow::{Context, ensure};
use bytes::Bytes;
use chrono::Utc;
use clap::Args;
use cli::{errln, outln};
use config::Settings;
use consensus_builder::{ConsensusBuilder, ConsensusItem};
use context_writer::ContextWriter;
use contract::Tick;
use diesel_async::AsyncConnection;
use fastrand::Rng;
use fleet::WorkerName;
use keys::DataKeys;
use playground::Local;
use runtime::{ExternalWorker, Message, Source, Verdict, WorkItem};
use serde::Serialize;
use serde_json::json;
use store::{Fault, security};
use trust::worker_role;
use uuid::Uuid;

use super::bulk::Prepared;
use super::ceiling;
use super::filled::fill_tables;
use super::grants::Grants;
use super::pipeline::{Pipeline, Run, add_payload_key};
use super::process::Meter;
use super::{median, on_private_servers, percentile, rounded};

#[derive(Debug, Args)]
pub(super) struct ConsensusStreamArgs {
    /// Responses in each run.
    #[arg(long, default_value_t = 20_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(500..=1_000_000))]
    responses: u32,

    /// Runs of each kind.
    #[arg(long, default_value_t = 3, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=20))]
    runs: u32,

    /// Tasks of 50 responses whose close is measured.
    #[arg(long, default_value_t = 300, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(10..=10_000))]
    closes: u32,

    /// Closed tasks of 100 agents that are estimated together.
    #[arg(long, default_value_t = 10_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(100..=20_000))]
    tasks: u32,

    /// Print one JSON object, on the last line of standard output.
    #[arg(long)]
    json: bool,
}

/// The first user of the benchmark.
const FIRST_USER: i32 = 2_000_000_001;
const USERS: i32 = 50;
/// The user whose tasks are estimated.
const ESTIMATED: i32 = FIRST_USER + USERS;
const SESSION: &str = "bench-experts";
/// Agents of a task in the stream of responses.
const AGENTS: usize = 5;
/// Agents of a task whose close is measured.
const MANY_AGENTS: usize = 50;
const FAMILIES: [&str; 5] = ["gpt", "claude", "gemini", "llama", "qwen"];

/// The results.
#[derive(Debug, Serialize)]
struct Report {
    /// Through the worker, from its first pull until everything is settled.
    responses_per_second: f64,
    /// The same statements from prebuilt batches.
    ceiling_responses_per_second: f64,
    /// `responses_per_second` divided by `ceiling_responses_per_second`.
    ratio: f64,
    /// The transaction of the last of 50 responses, which closes the task: statements, arithmetic and commit.
    close_ms_p50: f64,
    close_ms_p99: f64,
    /// The job over all closed tasks of a user: reading, the estimate, and writing what has changed.
    reestimate_s: f64,
    /// The peak memory of the worker process.
    peak_rss_mib: f64,
}

pub(super) async fn execute(args: &ConsensusStreamArgs, settings: &Settings) -> anyhow::Result<()> {
    let report = on_private_servers(settings, async |local| measure(args, local).await).await?;
    if args.json {
        outln!("{}", serde_json::to_string(&report).context("cannot serialize the report")?);
        return Ok(());
    }
    outln!("responses/s               {:>10.0}", report.responses_per_second);
    outln!("ceiling, responses/s      {:>10.0}", report.ceiling_responses_per_second);
    outln!("ratio                     {:>10.2}", report.ratio);
    outln!("close of a task, ms p50   {:>10.2}", report.close_ms_p50);
    outln!("close of a task, ms p99   {:>10.2}", report.close_ms_p99);
    outln!("new estimate, s           {:>10.2}", report.reestimate_s);
    outln!("peak worker memory, MiB   {:>10.1}", report.peak_rss_mib);
    Ok(())
}

async fn measure(args: &ConsensusStreamArgs, local: &Local) -> anyhow::Result<Report> {
    let settings = &local.settings;
    add_payload_key(settings)?;
    let worker = ConsensusBuilder::open(settings).await?;
    let accounts = Pipeline::open::<ContextWriter>(settings).await?;
    accounts.process(users(), WorkerName::ContextWriter).await?;
    let pipeline = Pipeline::open::<ConsensusBuilder>(settings).await?;
    pipeline.process(groups(), WorkerName::ConsensusBuilder).await?;
    let meter = Meter::new(local.stack());
    let mut questions = Questions { random: Rng::with_seed(7) };
    let tasks = args.responses as usize / AGENTS;
    let (mut ceilings, mut runs): (Vec<f64>, Vec<Run>) = (Vec::new(), Vec::new());
    for run in 1..=args.runs {
        errln!("run {run} of {}: the statements alone, then the worker", args.runs);
        let responses = questions.delegated(&pipeline, tasks, AGENTS).await?;
        ceilings.push(ceiling::measure(&worker, settings, responses.concat()).await?);
        let mut responses = questions.delegated(&pipeline, tasks, AGENTS).await?.concat();
        questions.random.shuffle(&mut responses);
        let run = pipeline.measure(&responses, &meter).await?;
        report_processors(&run);
        runs.push(run);
    }
    let closes = closes(args, settings, &worker, &pipeline, &mut questions).await?;
    let reestimate_s = reestimate(args, settings, &worker).await?;
    let responses_per_second = median(runs.iter().map(|run| run.messages_per_second))?;
    let ceiling_responses_per_second = median(ceilings)?;
    Ok(Report {
        responses_per_second: rounded(responses_per_second),
        ceiling_responses_per_second: rounded(ceiling_responses_per_second),
        ratio: rounded(responses_per_second / ceiling_responses_per_second),
        close_ms_p50: rounded(percentile(&closes, 0.5)),
        close_ms_p99: rounded(percentile(&closes, 0.99)),
        reestimate_s: rounded(reestimate_s),
        peak_rss_mib: rounded(median(runs.iter().map(|run| run.peak_rss_mib))?),
    })
}

/// Where the time of a run goes.
fn report_processors(run: &Run) {
    let of = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0}"));
    errln!(
        "{:.0} responses/s; processor ms per 1,000: worker {:.0}, NATS {}, PostgreSQL {}",
        run.messages_per_second,
        run.client_ms_per_1k,
        of(run.nats_ms_per_1k),
        of(run.postgres_ms_per_1k)
    );
}

/// Milliseconds of each transaction that closes a task.
async fn closes(
    args: &ConsensusStreamArgs,
    settings: &Settings,
    worker: &ConsensusBuilder,
    pipeline: &Pipeline,
    questions: &mut Questions,
) -> anyhow::Result<Vec<f64>> {
    errln!("closing {} tasks of {MANY_AGENTS} responses", args.closes);
    let tasks = questions.delegated(pipeline, args.closes as usize, MANY_AGENTS).await?;
    let batches = tasks.into_iter().flat_map(|mut responses| {
        let last = responses.split_off(responses.len() - 1);
        [responses, last]
    });
    let seconds = ceiling::seconds(worker, settings, batches.collect()).await?;
    Ok(seconds.into_iter().skip(1).step_by(2).map(|seconds| seconds * 1_000.0).collect())
}

/// Generates tasks and the responses to them.
struct Questions {
    random: Rng,
}

impl Questions {
    /// Delegates tasks through the worker, and returns the responses to each.
    async fn delegated(
        &mut self,
        pipeline: &Pipeline,
        tasks: usize,
        agents: usize,
    ) -> anyhow::Result<Vec<Vec<Prepared>>> {
        let (mut delegations, mut responses) = (Vec::with_capacity(tasks), Vec::with_capacity(tasks));
        for number in 0..tasks {
            let (user, task) = (FIRST_USER + self.random.i32(0..USERS), Uuid::now_v7());
            let names: Vec<String> = (0..agents).map(agent).collect();
            let delegate = json!({
                "task_id": task, "session_id": SESSION, "pm_agent_id": "pm", "agents": names, "quorum": agents,
                "question": format!("Which port does gateway {number} listen on, and who may open it?"),
            });
            delegations.push(request("task.delegate", user, &delegate.to_string()));
            responses.push(names.iter().map(|name| self.response(user, task, name)).collect());
        }
        pipeline.process(delegations, WorkerName::ConsensusBuilder).await?;
        Ok(responses)
    }

    fn response(&mut self, user: i32, task: Uuid, agent: &str) -> Prepared {
        let port = if self.random.u8(0..10) < 8 { 8_080 } else { self.random.u16(8_000..8_010) };
        let body = json!({
            "response_id": Uuid::now_v7(), "task_id": task, "session_id": SESSION, "agent_id": agent,
            "response_text": format!("It listens on {port}, as the deployment notes of last week say; the platform team may open it."),
            "claim": { "port": port }, "confidence": self.random.f64(), "processing_time_seconds": 1.5,
            "evidence": [{ "source": format!("doc:{agent}") }],
        });
        request("response.submit", user, &body.to_string())
    }
}

fn agent(number: usize) -> String {
    format!("agent-{number:02}")
}

fn users() -> Vec<Prepared> {
    let account =
        |user| json!({ "username": format!("bench{user}"), "email": format!("{user}@example.org") });
    (FIRST_USER..=ESTIMATED).map(|user| request("user.put", user, &account(user).to_string())).collect()
}

/// The agents and the conversation of each user.
fn groups() -> Vec<Prepared> {
    let mut requests = Vec::new();
    for user in FIRST_USER..=ESTIMATED {
        let start = json!({ "session_id": SESSION, "conversation_title": "Benchmark" });
        requests.push(request("expert-conversation.start", user, &start.to_string()));
        for number in 0..MANY_AGENTS {
            let family = FAMILIES[number % FAMILIES.len()];
            let configure = json!({
                "agent_id": agent(number), "agent_type": "expert", "agent_role": "engineer", "assigned_llm": "large",
                "model_provider": "other", "model_family": family,
            });
            requests.push(request("agent.configure", user, &configure.to_string()));
        }
    }
    requests
}

fn request(kind: &str, user: i32, body: &str) -> Prepared {
    Prepared {
        subject: format!("memory.req.bench.{kind}.{user}"),
        id: Uuid::now_v7(),
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

/// Closed tasks of a user, of which all have 100 voters and four options. Agents differ in how often they are right.
const CLOSED: [&str; 3] = [
    "INSERT INTO consensus_memory_nodes (id, user_id, node_type, node_key, title, content)
     VALUES (md5('estimated')::uuid, {user}, 'answer', 'estimated', 'Estimated', '{}');
     SELECT setseed(0.5)",
    "INSERT INTO consensus_tasks (id, user_id, session_id, pm_agent_id, question, task_kind, node_type, node_key, title, options, quorum,
        asked, responded, answered, state, close_reason, closed_at, node_id, voters, choices, confidences)
     SELECT md5('estimated' || t)::uuid, {user}, 'bench-experts', 'pm', 'q', 'estimated', 'answer', 'estimated', 'Estimated',
        '[\"a\", \"b\", \"c\", \"d\"]'::jsonb, 100, 100, 100, 100, 'closed', 'quorum', now() - t * interval '1 second', md5('estimated')::uuid,
        array_agg('agent-' || a ORDER BY a),
        array_agg(CASE WHEN random() < 0.3 + 0.006 * a THEN t % 4 ELSE floor(random() * 4)::integer END ORDER BY a),
        array_agg(random() ORDER BY a)
     FROM generate_series(1, {tasks}) AS t, generate_series(1, 100) AS a GROUP BY t",
    "INSERT INTO task_estimates (user_id, id) SELECT user_id, id FROM consensus_tasks WHERE user_id = {user}",
];

/// Seconds of the job for one user.
async fn reestimate(
    args: &ConsensusStreamArgs,
    settings: &Settings,
    worker: &ConsensusBuilder,
) -> anyhow::Result<f64> {
    errln!("estimating the agents of {} closed tasks of 100 responses", args.tasks);
    let mut owner = store::connect(&settings.postgres.url).await?;
    let values = [("{user}", ESTIMATED.to_string()), ("{tasks}", args.tasks.to_string())];
    fill_tables(&mut owner, &CLOSED, &values).await?;
    let job = "consensus-reestimate".parse()?;
    let tick = Tick { job, scheduler: String::new(), stored_at: Utc::now() };
    let message = Message {
        request: ConsensusItem::from_tick(&tick)?,
        secrets: Vec::new(),
        source: Source::Tick(tick),
        request_id: Uuid::now_v7(),
        parent_event_id: None,
        is_widened: false,
        stored_at: Utc::now(),
        sequence: 0,
        event_id: Uuid::now_v7(),
        body: Bytes::new(),
    };
    let name = ConsensusBuilder::INFO.name;
    let grant = Grants::open(&settings.trust, name)?
        .of(&format!("memory.req.bench.task.delegate.{ESTIMATED}").parse()?);
    let mut connection = store::connect(&settings.postgres.url_of(&worker_role(name))).await?;
    let batch = [&message];
    let started = Instant::now();
    let prepared = worker.prepare(&batch, &[&grant]).await.context("the estimate failed")?;
    let done: Result<Vec<Verdict>, Fault> = connection
        .transaction(async |connection| {
            security::open_context(connection, &[&grant]).await?;
            Ok(worker.write(connection, &batch, &DataKeys::new(), &prepared).await?.verdicts)
        })
        .await;
    let seconds = started.elapsed().as_secs_f64();
    let verdicts = done.context("the estimate cannot be written")?;
    ensure!(matches!(verdicts.as_slice(), [Verdict::Applied(_)]), "nothing was estimated: {verdicts:?}");
    Ok(seconds)
}
