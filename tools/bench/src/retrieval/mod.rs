//! `memfleet bench retrieval`: the recall of searches in conversations whose answering turns are known.

mod dataset;
mod filler;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use async_nats::Client;
use clap::Args;
use cli::outln;
use cli::output::step;
use cli::table::{Align, Table};
use cli::tokens::Tokens;
use client::{QueryOptions, ask};
use config::{EmbedderKind, Settings};
use contract::{QueryType, SearchAnswer, SearchSimilar, Service, UserId, limit};
use futures::{StreamExt, TryStreamExt, stream};
use playground::PrivateFleet;
use runtime::{Stats, broker};
use serde::Serialize;
use serde_json::json;
use tokio::time::sleep;

use super::{percentile, rounded};
use dataset::{Conversation, Question};

#[derive(Debug, Args)]
pub(super) struct RetrievalArgs {
    /// The folder with conversations in the format of LoCoMo: each *.json has sessions (`session_1`,
    /// `session_1_date_time`, …) and questions (`qa`) with the ids of the turns that answer them.
    #[arg(long, value_name = "DIR")]
    dataset: PathBuf,

    /// Print one JSON object, on the last line of standard output.
    #[arg(long)]
    json: bool,
}

/// The service that publishes and sends queries.
const SERVICE: &str = "simple-chat";
/// Number of concurrent queries.
const CONCURRENCY: usize = 4;
/// Number of results per query.
const LIMIT: usize = 10;
/// Time limit for memory-reader to answer its first query.
const START_WITHIN: Duration = Duration::from_secs(60);

/// The results. Recall is the share of a question's answering turns that are among the first results, averaged over all
/// questions.
#[derive(Debug, Serialize)]
struct Report {
    questions: usize,
    memories: usize,
    fulltext_recall_at_5: f64,
    fulltext_recall_at_10: f64,
    vector_recall_at_5: f64,
    vector_recall_at_10: f64,
    hybrid_recall_at_5: f64,
    hybrid_recall_at_10: f64,
    /// Time from query to answer over NATS.
    hybrid_ms_p50: f64,
    hybrid_ms_p95: f64,
    by_conversation: Vec<OfConversation>,
    #[serde(skip)]
    modes: [Mode; 3],
}

#[derive(Debug, Serialize)]
struct OfConversation {
    name: String,
    questions: usize,
    /// `None` without questions.
    hybrid_recall_at_10: Option<f64>,
}

/// The figures of one mode.
#[derive(Clone, Copy, Debug)]
struct Mode {
    name: &'static str,
    recall_at_5: f64,
    recall_at_10: f64,
    ms_p50: f64,
    ms_p95: f64,
}

/// The result of one question.
struct Measured {
    user: UserId,
    recall_at_5: f64,
    recall_at_10: f64,
    ms: f64,
}

pub(super) async fn execute(args: &RetrievalArgs, settings: &Settings) -> anyhow::Result<()> {
    let conversations: Vec<(UserId, Conversation)> = (1..)
        .zip(dataset::read(&args.dataset)?)
        .map(|(number, conversation)| Ok((UserId::new(number)?, conversation)))
        .collect::<anyhow::Result<_>>()?;
    let has_questions = conversations.iter().any(|(_, conversation)| !conversation.questions.is_empty());
    ensure!(has_questions, "no question in {} has the id of an answering turn", args.dataset.display());

    let starting = PrivateFleet::start(settings, true);
    let mut fleet = step("starting private NATS, PostgreSQL and vector store", starting).await?;
    let (inner, stats) = (fleet.settings().clone(), fleet.stats());
    let measured = fleet.during(measure(&inner, &stats, &conversations)).await;
    let stopped = step("stopping everything", fleet.stop()).await;
    let report = measured?;
    stopped?;
    if args.json {
        outln!("{}", serde_json::to_string(&report).context("cannot serialize the report")?);
    } else {
        show(&report);
    }
    Ok(())
}

async fn measure(
    settings: &Settings,
    stats: &[Arc<Stats>],
    conversations: &[(UserId, Conversation)],
) -> anyhow::Result<Report> {
    ensure!(
        settings.embedder.kind != EmbedderKind::None,
        "no embedder: run `make setup` to download the model all-MiniLM-L6-v2, or configure another embedder"
    );
    filler::fill(settings, stats, conversations).await?;
    let asker = Asker::open(settings, conversations).await?;
    asker.until_answered().await?;
    let (fulltext, _) = asker.ask_all("fulltext").await?;
    let (vector, _) = asker.ask_all("vector").await?;
    let (hybrid, outcomes) = asker.ask_all("hybrid").await?;
    let indexes = conversations.iter().flat_map(|(_, conversation)| &conversation.sessions);
    let indexes = indexes.flat_map(|session| &session.indexes);
    let by_conversation = conversations.iter().map(|(user, conversation)| {
        let own = outcomes.iter().filter(|outcome| outcome.user == *user);
        OfConversation {
            name: conversation.name.clone(),
            questions: conversation.questions.len(),
            hybrid_recall_at_10: mean(own.map(|outcome| outcome.recall_at_10)),
        }
    });
    Ok(Report {
        questions: outcomes.len(),
        memories: indexes.map(|index| index.memories.as_slice().len()).sum(),
        fulltext_recall_at_5: fulltext.recall_at_5,
        fulltext_recall_at_10: fulltext.recall_at_10,
        vector_recall_at_5: vector.recall_at_5,
        vector_recall_at_10: vector.recall_at_10,
        hybrid_recall_at_5: hybrid.recall_at_5,
        hybrid_recall_at_10: hybrid.recall_at_10,
        hybrid_ms_p50: hybrid.ms_p50,
        hybrid_ms_p95: hybrid.ms_p95,
        by_conversation: by_conversation.collect(),
        modes: [fulltext, vector, hybrid],
    })
}

/// A question with its user and token.
struct Job<'a> {
    user: UserId,
    token: String,
    question: &'a Question,
}

struct Asker<'a> {
    client: Client,
    service: Service,
    jobs: Vec<Job<'a>>,
}

impl<'a> Asker<'a> {
    async fn open(
        settings: &Settings,
        conversations: &'a [(UserId, Conversation)],
    ) -> anyhow::Result<Asker<'a>> {
        let client = broker::connect(&settings.nats, SERVICE).await?;
        let (service, tokens): (Service, _) = (SERVICE.parse()?, Tokens::open(settings, None).await?);
        let mut jobs = Vec::new();
        for (user, conversation) in conversations {
            let token = tokens.of_holder(&service, *user).await?;
            let token = token.context("cannot issue a service token: trust.token_key_file is not set")?;
            let questions = conversation.questions.iter();
            jobs.extend(questions.map(|question| Job { user: *user, token: token.clone(), question }));
        }
        Ok(Self { client, service, jobs })
    }

    /// Waits until memory-reader has loaded its embedding model and answers.
    async fn until_answered(&self) -> anyhow::Result<()> {
        let since = Instant::now();
        let job = self.jobs.first().context("there are no questions")?;
        while let Err(error) = self.ask(job, "hybrid").await {
            ensure!(since.elapsed() < START_WITHIN, "memory-reader does not answer: {error:#}");
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Asks every question in one mode.
    async fn ask_all(&self, mode: &'static str) -> anyhow::Result<(Mode, Vec<Measured>)> {
        let asking: Vec<_> = self.jobs.iter().map(|job| self.ask(job, mode)).collect();
        let answered = stream::iter(asking).buffer_unordered(CONCURRENCY).try_collect::<Vec<Measured>>();
        let outcomes = step(&format!("asking {} questions, {mode}", self.jobs.len()), answered).await?;
        let times: Vec<f64> = outcomes.iter().map(|outcome| outcome.ms).collect();
        let nothing = "there are no questions";
        let mode = Mode {
            name: mode,
            recall_at_5: mean(outcomes.iter().map(|outcome| outcome.recall_at_5)).context(nothing)?,
            recall_at_10: mean(outcomes.iter().map(|outcome| outcome.recall_at_10)).context(nothing)?,
            ms_p50: rounded(percentile(&times, 0.5)),
            ms_p95: rounded(percentile(&times, 0.95)),
        };
        Ok((mode, outcomes))
    }

    async fn ask(&self, job: &Job<'_>, mode: &str) -> anyhow::Result<Measured> {
        let Question { text, evidence } = job.question;
        // With the longest deadline, so that slow machines can be measured too.
        let options = QueryOptions { deadline_ms: limit::DEADLINE_MS_MAX, ..QueryOptions::default() };
        let body = json!({ "text": text, "mode": mode, "limit": LIMIT }).to_string();
        let kind = SearchSimilar::KIND;
        let since = Instant::now();
        let answer = ask(&self.client, &self.service, kind, &job.token, &options, body.into()).await;
        let ms = since.elapsed().as_secs_f64() * 1_000.0;
        let answer: SearchAnswer =
            answer.with_context(|| format!("the question {text:?} of user {}", job.user))?;
        let recall = |most: usize| {
            let first = answer.hits.iter().take(most);
            let found = first.filter(|hit| evidence.contains(&hit.memory_id)).count();
            found as f64 / evidence.len() as f64
        };
        Ok(Measured { user: job.user, recall_at_5: recall(5), recall_at_10: recall(LIMIT), ms })
    }
}

/// The rounded mean; `None` without values.
fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0_u32, 0.0), |(count, sum), value| (count + 1, sum + value));
    (count > 0).then(|| rounded(sum / f64::from(count)))
}

fn show(report: &Report) {
    let right = Align::Right;
    let mut table = Table::new([
        ("mode", Align::Left),
        ("recall at 5", right),
        ("at 10", right),
        ("ms p50", right),
        ("p95", right),
    ]);
    for mode in &report.modes {
        let [five, ten, half, most] = [mode.recall_at_5, mode.recall_at_10, mode.ms_p50, mode.ms_p95]
            .map(|figure| format!("{figure:.3}"));
        table.row([mode.name.to_owned(), five, ten, half, most]);
    }
    outln!("{} questions about {} memories\n\n{table}", report.questions, report.memories);
    let mut table =
        Table::new([("conversation", Align::Left), ("questions", right), ("hybrid recall at 10", right)]);
    for one in &report.by_conversation {
        let recall = one.hybrid_recall_at_10.map_or_else(|| "-".to_owned(), |recall| format!("{recall:.3}"));
        table.row([one.name.clone(), one.questions.to_string(), recall]);
    }
    outln!("{table}");
}
