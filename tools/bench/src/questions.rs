//! `memfleet bench questions`: the latency of memory-reader in PostgreSQL, in this process, and over NATS.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, ensure};
use async_nats::Client;
use bytes::Bytes;
use clap::Args;
use cli::table::{Align, Table};
use cli::{errln, outln};
use client::{QueryOptions, query_headers};
use config::Settings;
use contract::{QUERY_ROOT, UserId, header};
use diesel_async::SimpleAsyncConnection;
use fleet::{Fleet, WorkerName};
use memory_reader::QueryHandler;
use runtime::query::IncomingQuery;
use runtime::{Readiness, StartupDeadline, broker};
use serde::Serialize;
use store::Connection;
use store::registry::{self, Rates, ServiceEntry};
use tokio::time::sleep;
use trust::TokenRequest;

use super::filled::{self, FilledArgs};
use super::reads::QUERIES;
use super::{on_private_servers, percentile, rounded};

#[derive(Debug, Args)]
pub(super) struct QuestionsArgs {
    #[command(flatten)]
    filled: FilledArgs,

    /// Print one JSON object, on the last line of standard output.
    #[arg(long)]
    json: bool,
}

/// The service that sends the queries.
const SERVICE: &str = "bench";
/// Queries before measuring, so that connections are open and statements prepared.
const WARM_UP: u32 = 20;
/// Time limit for memory-reader to answer its first query.
const START_WITHIN: Duration = Duration::from_secs(60);

/// Names of SQL queries of the reference document, as in `bench reads`, each with the corresponding query and its body.
const ASKED: [(&str, &str, &str); 5] = [
    ("session_lookup", "session.list", r#"{"active": true}"#),
    ("context_get", "context.get", r#"{"session_id": "s3", "context_key": "k3"}"#),
    ("hourly_analytics", "router.analytics", "{}"),
    ("graph_walk", "graph.walk", r#"{"node_key": "n0", "node_type": "fact"}"#),
    ("events_after", "event.list", r#"{"session_id": "s3", "limit": 100}"#),
];

/// The results. Times in PostgreSQL are those of the whole read transaction: security context, query, commit, and
/// network round trips.
#[derive(Debug, Serialize)]
struct Report {
    rows: u32,
    users: u32,
    session_lookup_ms_p99: f64,
    context_get_ms_p99: f64,
    analytics_ms_p99: f64,
    graph_walk_ms_p99: f64,
    /// Median over NATS minus median in this process, for the kind of query with the largest difference.
    nats_added_ms_p50: f64,
    questions: Vec<Question>,
}

#[derive(Debug, Serialize)]
struct Question {
    name: &'static str,
    /// The reference document's SQL query, as a role that bypasses row-level security.
    bare_ms_p50: f64,
    bare_ms_p99: f64,
    /// Time in PostgreSQL.
    read_ms_p50: f64,
    read_ms_p99: f64,
    /// Time in memory-reader: PostgreSQL, token verification, JSON serialization, and the durable access log row.
    in_process_ms_p50: f64,
    in_process_ms_p99: f64,
    /// Time from query to answer over NATS.
    nats_ms_p50: f64,
    nats_ms_p99: f64,
}

pub(super) async fn execute(args: &QuestionsArgs, settings: &Settings) -> anyhow::Result<()> {
    let questions = on_private_servers(settings, async |local| measure(args, &local.settings).await).await?;
    let p99 = |name: &str| {
        let found = questions.iter().find(|question| question.name == name);
        found.map(|question| question.read_ms_p99).with_context(|| format!("{name} was not measured"))
    };
    let added = questions.iter().map(|question| question.nats_ms_p50 - question.in_process_ms_p50);
    let report = Report {
        rows: args.filled.rows,
        users: args.filled.users,
        session_lookup_ms_p99: p99("session_lookup")?,
        context_get_ms_p99: p99("context_get")?,
        analytics_ms_p99: p99("hourly_analytics")?,
        graph_walk_ms_p99: p99("graph_walk")?,
        nats_added_ms_p50: rounded(added.fold(0.0, f64::max)),
        questions,
    };
    if args.json {
        outln!("{}", serde_json::to_string(&report).context("cannot serialize the report")?);
    } else {
        show(&report);
    }
    Ok(())
}

async fn measure(args: &QuestionsArgs, settings: &Settings) -> anyhow::Result<Vec<Question>> {
    let mut owner = filled::fill(settings, args.filled.size()).await?;
    errln!("computing the routing statistics");
    owner.batch_execute(&routing_statistics()).await.context("cannot compute the routing statistics")?;
    owner.batch_execute("VACUUM ANALYZE router_hourly_patterns").await?;
    let entry = ServiceEntry { scopes: vec!["*:*".parse()?], rates: Rates::default() };
    registry::put_service(&mut owner, &SERVICE.parse()?, &entry).await?;
    let asker = Asker {
        handler: memory_reader::open(settings, &StartupDeadline::new(&Readiness::new("bench"), settings))
            .await?,
        client: broker::connect_operator(&settings.nats, SERVICE).await?,
        issuer: token_issuer::issuer(&settings.trust)?
            .context("the keys to issue tokens are not configured")?,
    };
    let fleet = Fleet::start(&[WorkerName::MemoryReader], settings);
    let measured = async {
        asker.until_answered().await?;
        let mut measured = Vec::new();
        for (name, question, body) in ASKED {
            measured.push(measure_one(args, &asker, &mut owner, name, question, body).await?);
        }
        Ok(measured)
    };
    let measured = measured.await;
    fleet.stop().await?;
    measured
}

fn routing_statistics() -> String {
    let columns = "user_id, hour, chat_mode, route, tool, model, decisions, successes, timed, times, time_ms_sum, tokens_sum,
        complexity_sum, confidence_sum";
    format!(
        "INSERT INTO router_hourly_patterns ({columns}) SELECT {columns} FROM ({}) AS r",
        router_logger::store::RECOMPUTED
    )
}

struct Asker {
    handler: QueryHandler,
    client: Client,
    issuer: trust::TokenIssuer,
}

impl Asker {
    /// A query of the service, with a token for the user.
    fn question(&self, question: &str, user: UserId, body: &'static str) -> anyhow::Result<IncomingQuery> {
        let request = TokenRequest {
            service: SERVICE.parse()?,
            user_id: user,
            session: None,
            scopes: vec!["*:*".parse()?],
            life: Duration::from_secs(3_600),
        };
        let token = self.issuer.issue(&request, SystemTime::now())?.token;
        let headers = query_headers(&token, &QueryOptions::default());
        let (noun, verb) = question.split_once('.').context("a query needs a noun and a verb")?;
        let body = Bytes::from_static(body.as_bytes());
        Ok(IncomingQuery {
            service: request.service,
            noun: noun.to_owned(),
            verb: verb.to_owned(),
            headers: Some(headers),
            body,
        })
    }

    /// Milliseconds until the answer, and the part of them in the database.
    async fn in_process(&self, asked: IncomingQuery) -> anyhow::Result<(f64, f64)> {
        let started = Instant::now();
        let (answer, read) = self.handler.handle_timed(asked).await;
        let took = ms(started.elapsed());
        ensure!(answer.is_ok(), "a query was rejected: {answer:?}");
        Ok((took, ms(read)))
    }

    async fn over_nats(&self, asked: IncomingQuery) -> anyhow::Result<f64> {
        let subject = format!("{QUERY_ROOT}.{}.{}.{SERVICE}", asked.noun, asked.verb);
        let headers = asked.headers.unwrap_or_default();
        let started = Instant::now();
        let answer = self.client.request_with_headers(subject, headers, asked.body).await?;
        let took = ms(started.elapsed());
        let refused = answer.headers.is_some_and(|headers| headers.get(header::REFUSED).is_some());
        ensure!(!refused, "a query was rejected: {}", String::from_utf8_lossy(&answer.payload));
        Ok(took)
    }

    /// Waits until memory-reader answers.
    async fn until_answered(&self) -> anyhow::Result<()> {
        let since = Instant::now();
        while let Err(error) = self.over_nats(self.question("session.list", UserId::new(1)?, "{}")?).await {
            ensure!(since.elapsed() < START_WITHIN, "memory-reader does not answer: {error:#}");
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

async fn measure_one(
    args: &QuestionsArgs,
    asker: &Asker,
    owner: &mut Connection,
    name: &'static str,
    question: &str,
    body: &'static str,
) -> anyhow::Result<Question> {
    errln!("measuring {question}");
    let (_, sql) = QUERIES.iter().find(|(query, _)| *query == name).context("unknown SQL query")?;
    let mut times: HashMap<&str, Vec<f64>> = HashMap::new();
    for number in 0..WARM_UP + args.filled.times {
        // Each user is queried in all three ways in rotating order, since the first query loads the pages into memory.
        let user = filled::user(number, args.filled.users)?;
        for turn in 0..3 {
            let mut note = |way, took| {
                if number >= WARM_UP {
                    times.entry(way).or_default().push(took);
                }
            };
            match (number + turn) % 3 {
                0 => note("bare", filled::time(owner, sql, user).await?),
                1 => {
                    let (took, read) = asker.in_process(asker.question(question, user, body)?).await?;
                    note("in process", took);
                    note("read", read);
                }
                _ => note("nats", asker.over_nats(asker.question(question, user, body)?).await?),
            }
        }
    }
    let of = |way: &str, share: f64| rounded(percentile(times.get(way).map_or(&[], Vec::as_slice), share));
    Ok(Question {
        name,
        bare_ms_p50: of("bare", 0.5),
        bare_ms_p99: of("bare", 0.99),
        read_ms_p50: of("read", 0.5),
        read_ms_p99: of("read", 0.99),
        in_process_ms_p50: of("in process", 0.5),
        in_process_ms_p99: of("in process", 0.99),
        nats_ms_p50: of("nats", 0.5),
        nats_ms_p99: of("nats", 0.99),
    })
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

fn show(report: &Report) {
    let right = Align::Right;
    let mut table = Table::new([
        ("milliseconds", Align::Left),
        ("bare p50", right),
        ("p99", right),
        ("in PostgreSQL p50", right),
        ("p99", right),
        ("in process p50", right),
        ("p99", right),
        ("over NATS p50", right),
        ("p99", right),
    ]);
    for one in &report.questions {
        let figures = [
            one.bare_ms_p50,
            one.bare_ms_p99,
            one.read_ms_p50,
            one.read_ms_p99,
            one.in_process_ms_p50,
            one.in_process_ms_p99,
            one.nats_ms_p50,
            one.nats_ms_p99,
        ];
        let [a, b, c, d, e, f, g, h] = figures.map(|figure| format!("{figure:.3}"));
        table.row([one.name.to_owned(), a, b, c, d, e, f, g, h]);
    }
    outln!("{table}");
    outln!("NATS adds {:.3} ms", report.nats_added_ms_p50);
}
