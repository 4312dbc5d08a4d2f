//! `memfleet bench write-path`: the cost that each layer adds to a bare insert.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use cli::table::{Align, Table};
use cli::{errln, outln};
use config::Settings;
use contract::{EventType, Performative, RequestSubject};
use diesel::sql_types::{Array, Integer, Text, Uuid as SqlUuid};
use diesel_async::{AsyncConnection, RunQueryDsl, SimpleAsyncConnection};
use serde::Serialize;
use store::blackboard::{self, NewEvent};
use store::{Connection, Fault, security};
use trust::worker_role;
use uuid::Uuid;

use super::corpus::Corpus;
use super::grants::Grants;
use super::{median, on_private_servers, percentile, rounded};

#[derive(Debug, Args)]
pub(super) struct WritePathArgs {
    /// Batches per table and number of users.
    #[arg(long, default_value_t = 200, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(10..=10_000))]
    batches: u32,

    /// Print one JSON object, on the last line of standard output.
    #[arg(long)]
    json: bool,
}

/// Rows per batch.
const BATCH: usize = 500;
/// Users per batch.
const MIXES: [usize; 3] = [50, 200, 500];
/// Batches per table in a round. Each round yields one ratio, and the median of the ratios is reported.
const ROUND: usize = 10;
/// Batches before measuring, in which plans are cached, files grow and caches fill.
const WARM_UP: usize = 5;

/// The layers; each includes those before it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layer {
    Bare,
    Isolated,
    WithEvents,
    Audited,
}

impl Layer {
    const ALL: [Self; 4] = [Self::Bare, Self::Isolated, Self::WithEvents, Self::Audited];

    fn table(self) -> &'static str {
        match self {
            Self::Bare => "bench_bare",
            Self::Isolated => "bench_isolated",
            Self::WithEvents => "bench_events",
            Self::Audited => "bench_audited",
        }
    }
}

/// The results.
#[derive(Debug, Serialize)]
struct Report {
    bare_rows_per_second: f64,
    rls_ratio: f64,
    events_ratio: f64,
    full_path_ratio: f64,
    context_ms_p50: f64,
    context_ms_p99: f64,
    audit_ms_p50: f64,
    audit_ms_p99: f64,
    by_users: Vec<Mix>,
}

/// The results for one number of users per batch.
#[derive(Clone, Debug, Serialize)]
struct Mix {
    users: usize,
    bare_rows_per_second: f64,
    rls_ratio: f64,
    events_ratio: f64,
    full_path_ratio: f64,
    /// Time to open the security context of a transaction.
    context_ms_p50: f64,
    context_ms_p99: f64,
    /// Time that the audit trail adds per row.
    audit_ms_p50: f64,
    audit_ms_p99: f64,
    /// Time that the audit trail adds per transaction of 500 rows.
    audit_ms_per_batch_p50: f64,
}

pub(super) async fn execute(args: &WritePathArgs, settings: &Settings) -> anyhow::Result<()> {
    let mixes = on_private_servers(settings, async |local| measure(args, &local.settings).await).await?;
    let worst = |of: fn(&Mix) -> f64| mixes.iter().map(of).fold(f64::INFINITY, f64::min);
    let most = |of: fn(&Mix) -> f64| mixes.iter().map(of).fold(0.0, f64::max);
    let report = Report {
        bare_rows_per_second: rounded(median(mixes.iter().map(|mix| mix.bare_rows_per_second))?),
        rls_ratio: worst(|mix| mix.rls_ratio),
        events_ratio: worst(|mix| mix.events_ratio),
        full_path_ratio: worst(|mix| mix.full_path_ratio),
        context_ms_p50: most(|mix| mix.context_ms_p50),
        context_ms_p99: most(|mix| mix.context_ms_p99),
        audit_ms_p50: most(|mix| mix.audit_ms_p50),
        audit_ms_p99: most(|mix| mix.audit_ms_p99),
        by_users: mixes,
    };
    if args.json {
        outln!("{}", serde_json::to_string(&report).context("cannot serialize the report")?);
    } else {
        show(&report);
    }
    Ok(())
}

async fn measure(args: &WritePathArgs, settings: &Settings) -> anyhow::Result<Vec<Mix>> {
    let mut owner = store::connect(&settings.postgres.url).await?;
    for layer in Layer::ALL {
        prepare(&mut owner, layer).await.with_context(|| format!("cannot create {}", layer.table()))?;
    }
    // With the worker's own role and grants, so that no layer has more privileges than in production.
    let grants_of = Grants::open(&settings.trust, contract::CONTEXT_WRITER.name)?;
    let mut worker =
        store::connect(&settings.postgres.url_of(&worker_role(contract::CONTEXT_WRITER.name))).await?;
    let mut corpus = Corpus::new();
    let mut mixes = Vec::new();
    for users in MIXES {
        errln!("batches of {BATCH} rows of {users} users");
        mixes.push(measure_mix(args, &mut worker, &grants_of, &mut corpus, users).await?);
        // Cleans up now, so that it does not slow down the next measurement.
        for sql in ["VACUUM ANALYZE", "CHECKPOINT"] {
            owner.batch_execute(sql).await.with_context(|| format!("{sql} failed"))?;
        }
    }
    Ok(mixes)
}

async fn prepare(owner: &mut Connection, layer: Layer) -> anyhow::Result<()> {
    let table = layer.table();
    let mut sql = format!(
        "INSERT INTO users (id, username, email) SELECT n, 'bench', 'bench' FROM generate_series(1, 500) AS n ON CONFLICT DO NOTHING;
         INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode)
             SELECT uuid7(), n, 's', 'simple' FROM generate_series(1, 500) AS n ON CONFLICT DO NOTHING;
         CREATE TABLE {table} (LIKE simple_chat_context INCLUDING ALL,
             FOREIGN KEY (user_id, session_id) REFERENCES chat_mode_sessions (user_id, session_id));
         ALTER TABLE {table} OWNER TO memfleet_owner;
         GRANT SELECT, INSERT ON {table} TO {};",
        worker_role(contract::CONTEXT_WRITER.name)
    );
    if layer != Layer::Bare {
        sql.push_str(&format!("SELECT sec.protect_rows('{table}');"));
    }
    if layer == Layer::Audited {
        sql.push_str(&format!(
            "CREATE TRIGGER audit_insert AFTER INSERT ON {table} REFERENCING NEW TABLE AS new_rows
             FOR EACH STATEMENT EXECUTE FUNCTION audit.audit_trigger_function();"
        ));
    }
    owner.batch_execute(&sql).await?;
    Ok(())
}

/// A row and its event.
struct Row {
    id: Uuid,
    event_id: Uuid,
    request_id: Uuid,
    subject: RequestSubject,
    key: String,
    value: String,
}

fn batch(corpus: &mut Corpus, users: usize) -> anyhow::Result<Vec<Row>> {
    (0..BATCH)
        .map(|number| {
            let id = Uuid::now_v7();
            Ok(Row {
                id,
                event_id: Uuid::now_v7(),
                request_id: Uuid::now_v7(),
                subject: format!("memory.req.bench.context.put.{}", 1 + number % users).parse()?,
                key: id.to_string(),
                value: corpus.value(1).to_string(),
            })
        })
        .collect()
}

/// Durations of a transaction, and of opening its security context, in milliseconds.
struct Durations {
    total: f64,
    context: f64,
}

async fn write(
    connection: &mut Connection,
    layer: Layer,
    grants: &[&str],
    rows: &[Row],
) -> Result<Durations, Fault> {
    let insert = format!(
        "INSERT INTO {} (id, user_id, session_id, context_key, context_value, request_id)
         SELECT r.id, r.user_id, 's', r.key, r.value::jsonb, r.request_id
         FROM unnest($1::uuid[], $2::integer[], $3::text[], $4::text[], $5::uuid[]) AS r (id, user_id, key, value, request_id)
         ORDER BY r.user_id, r.key",
        layer.table()
    );
    let started = Instant::now();
    let mut context = 0.0;
    let written: Result<(), Fault> = connection
        .transaction(async |connection| {
            if layer != Layer::Bare {
                let opening = Instant::now();
                security::open_context(connection, grants).await?;
                context = opening.elapsed().as_secs_f64() * 1_000.0;
            }
            store::prepared(
                diesel::sql_query(insert)
                    .bind::<Array<SqlUuid>, _>(rows.iter().map(|row| row.id).collect::<Vec<_>>())
                    .bind::<Array<Integer>, _>(
                        rows.iter().map(|row| row.subject.user_id.get()).collect::<Vec<_>>(),
                    )
                    .bind::<Array<Text>, _>(rows.iter().map(|row| &row.key).collect::<Vec<_>>())
                    .bind::<Array<Text>, _>(rows.iter().map(|row| &row.value).collect::<Vec<_>>())
                    .bind::<Array<SqlUuid>, _>(rows.iter().map(|row| row.request_id).collect::<Vec<_>>()),
            )
            .execute(connection)
            .await?;
            if matches!(layer, Layer::WithEvents | Layer::Audited) {
                let events: Vec<NewEvent<'_>> = rows.iter().map(event).collect();
                blackboard::append(connection, &events).await?;
            }
            Ok(())
        })
        .await;
    written?;
    Ok(Durations { total: started.elapsed().as_secs_f64() * 1_000.0, context })
}

fn event(row: &Row) -> NewEvent<'_> {
    NewEvent {
        id: row.event_id,
        request_id: row.request_id,
        event_type: EventType::ContextStored,
        performative: Performative::Inform,
        source_agent_id: row.subject.service.as_str(),
        target_agent_id: None,
        user_id: row.subject.user_id,
        session_id: "s",
        payload: &row.value,
        cause: None,
        logical_timestamp: 1,
    }
}

async fn measure_mix(
    args: &WritePathArgs,
    connection: &mut Connection,
    grants_of: &Grants,
    corpus: &mut Corpus,
    users: usize,
) -> anyhow::Result<Mix> {
    let mut times: [Vec<f64>; 4] = Default::default();
    let mut contexts: Vec<f64> = Vec::new();
    for number in 0..WARM_UP + args.batches as usize {
        for turn in 0..Layer::ALL.len() {
            // A layer may be slowed down by the one before it, so the order rotates and each is first equally often.
            let place = (turn + number) % Layer::ALL.len();
            let layer = Layer::ALL[place];
            let rows = batch(corpus, users)?;
            let grants: BTreeSet<Arc<str>> = rows.iter().map(|row| grants_of.of(&row.subject)).collect();
            let grants: Vec<&str> = grants.iter().map(|grant| &**grant).collect();
            let durations =
                write(connection, layer, &grants, &rows).await.context("the database rejected a batch")?;
            if number >= WARM_UP {
                times[place].push(durations.total);
                if layer != Layer::Bare {
                    contexts.push(durations.context);
                }
            }
        }
    }
    let [bare, isolated, events, audited] = &times;
    let audit: Vec<f64> = audited.iter().zip(events).map(|(with, without)| with - without).collect();
    let per_row: Vec<f64> = audit.iter().map(|batch| batch / BATCH as f64).collect();
    Ok(Mix {
        users,
        bare_rows_per_second: rounded(BATCH as f64 * 1_000.0 / median(bare.iter().copied())?),
        rls_ratio: rounded(ratio(bare, isolated)?),
        events_ratio: rounded(ratio(bare, events)?),
        full_path_ratio: rounded(ratio(bare, audited)?),
        context_ms_p50: rounded(percentile(&contexts, 0.5)),
        context_ms_p99: rounded(percentile(&contexts, 0.99)),
        audit_ms_p50: rounded(percentile(&per_row, 0.5)),
        audit_ms_p99: rounded(percentile(&per_row, 0.99)),
        audit_ms_per_batch_p50: rounded(percentile(&audit, 0.5)),
    })
}

/// The throughput of a layer relative to the bare table: the median over rounds, in which both wrote the same number of
/// rows.
fn ratio(bare: &[f64], other: &[f64]) -> anyhow::Result<f64> {
    let rounds = bare.chunks(ROUND).zip(other.chunks(ROUND));
    median(rounds.map(|(bare, other)| bare.iter().sum::<f64>() / other.iter().sum::<f64>()))
}

fn show(report: &Report) {
    let mut table = Table::new([
        ("users", Align::Right),
        ("bare rows/s", Align::Right),
        ("isolated", Align::Right),
        ("+ events", Align::Right),
        ("+ audit", Align::Right),
        ("context ms p50", Align::Right),
        ("p99", Align::Right),
        ("audit ms/row p50", Align::Right),
        ("p99", Align::Right),
    ]);
    for mix in &report.by_users {
        table.row([
            mix.users.to_string(),
            format!("{:.0}", mix.bare_rows_per_second),
            format!("{:.2}", mix.rls_ratio),
            format!("{:.2}", mix.events_ratio),
            format!("{:.2}", mix.full_path_ratio),
            format!("{:.2}", mix.context_ms_p50),
            format!("{:.2}", mix.context_ms_p99),
            format!("{:.4}", mix.audit_ms_p50),
            format!("{:.4}", mix.audit_ms_p99),
        ]);
    }
    outln!("{table}");
}
