//! The status of the database.

use std::time::Duration;

use anyhow::Context;
use audit::HeldBack;
use chrono::{SecondsFormat, TimeDelta, Utc};
use cli::output::printable;
use cli::table::{Align, Table, grouped};
use cli::{out, outln};
use config::Settings;
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Text};
use diesel_async::RunQueryDsl;
use fleet::sealer::anchors;
use serde::Serialize;
use store::{Connection, Fault, migration};
use tokio::time::timeout;

use crate::command::privacy::hints;
use crate::command::{maintenance, revocations};

/// Time limit of all queries together.
const DEADLINE: Duration = Duration::from_secs(15);
/// Time limit of the comparison with the key store.
const KEY_STORE_DEADLINE: Duration = Duration::from_secs(5);
/// Time limit of the comparison with the receipts of erasures.
const RECEIPTS_DEADLINE: Duration = Duration::from_secs(5);
/// Maximum number of tables; those with the most rows come first.
const MAX_TABLES: i64 = 40;

#[derive(Debug, Serialize)]
pub(super) struct DatabaseStatus {
    pub(super) version: String,
    database: String,
    bytes: i64,
    migrations_applied: usize,
    migrations_waiting: Vec<String>,
    /// Why workers do not start, although the database answers, or why a part of this status is unknown.
    warnings: Vec<String>,
    /// The transactions that keep old rows of the audit trail from being sealed.
    sealing_held_back: Option<HeldBack>,
    tables: Vec<TableStatus>,
}

#[derive(Debug, Serialize, QueryableByName)]
struct TableStatus {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = BigInt)]
    rows_estimate: i64,
    #[diesel(sql_type = BigInt)]
    bytes: i64,
}

#[derive(QueryableByName)]
struct Server {
    #[diesel(sql_type = Text)]
    version: String,
    #[diesel(sql_type = Text)]
    database: String,
    #[diesel(sql_type = BigInt)]
    bytes: i64,
}

const SERVER: &str = "SELECT current_setting('server_version') AS version,
    current_database()::text AS database, pg_database_size(current_database()) AS bytes";

/// `n_live_tup` of the cumulative statistics, which unlike `reltuples` needs no ANALYZE.
const TABLES: &str = "SELECT relname::text AS name, n_live_tup AS rows_estimate,
    pg_total_relation_size(relid) AS bytes
    FROM pg_stat_user_tables WHERE relname <> '__diesel_schema_migrations' ORDER BY 2 DESC, 1 LIMIT ";

pub(super) async fn read(settings: &Settings) -> anyhow::Result<DatabaseStatus> {
    let (status, trail) =
        tokio::join!(timeout(DEADLINE, read_all(settings)), timeout(DEADLINE, trail_warning(settings)));
    let mut status =
        status.with_context(|| format!("PostgreSQL did not answer within {} s", DEADLINE.as_secs()))??;
    status.warnings.extend(
        trail.unwrap_or_else(|_| Some(format!("{UNKNOWN}: no answer within {} s", DEADLINE.as_secs()))),
    );
    Ok(status)
}

const UNKNOWN: &str = "it is unknown whether the seals of the audit trail are those that NATS has anchors of";

/// What is wrong with the seals of the audit trail and their anchors, if anything is. That a server cannot be reached is shown
/// elsewhere.
async fn trail_warning(settings: &Settings) -> Option<String> {
    let mut connection = store::connect(&settings.postgres.url).await.ok()?;
    if !has_trail(&mut connection).await.ok()? {
        return None;
    }
    let anchors = anchors(settings).await.ok()?;
    match audit::condition(&mut connection, &anchors).await {
        Ok(wrong) => wrong.map(|wrong| wrong.to_string()),
        Err(error) => Some(format!("{UNKNOWN}: {error}")),
    }
}

async fn read_all(settings: &Settings) -> anyhow::Result<DatabaseStatus> {
    let mut connection = store::connect(&settings.postgres.url).await?;
    let language = store::language::check_english(&mut connection).await;
    // What other schemas have in the place of PostgreSQL's own functions must not hide a warning.
    store::security::fix_search_path(&mut connection).await?;
    let server: Server = diesel::sql_query(SERVER).get_result(&mut connection).await?;
    let tables = diesel::sql_query(format!("{TABLES}{MAX_TABLES}")).load(&mut connection).await?;
    let mut warnings: Vec<String> = language.err().iter().map(ToString::to_string).collect();
    let sealing_held_back = held_back(&mut connection).await.unwrap_or_else(|fault| {
        warnings.push(format!("it is unknown whether the audit trail can be sealed: {fault}"));
        None
    });
    warnings.extend(
        unpublished(&mut connection).await.unwrap_or_else(|error| {
            vec![format!("it is unknown whether events wait to be published: {error}")]
        }),
    );
    warnings.extend(unmaintained(&mut connection).await.unwrap_or_else(|error| {
        vec![format!("it is unknown whether the database is looked after: {error:#}")]
    }));
    warnings.extend(unknown_revocations(&mut connection, settings).await);
    warnings.extend(
        hints::alarms(&mut connection)
            .await
            .unwrap_or_else(|fault| vec![format!("it is unknown whether erasures are late: {fault}")]),
    );
    warnings.extend(unapplied_erasures(&mut connection, settings).await);
    let states = migration::MAIN.status(connection).await?;
    let applied = states.iter().filter(|state| state.applied).count();
    Ok(DatabaseStatus {
        version: server.version,
        database: server.database,
        bytes: server.bytes,
        migrations_applied: applied,
        migrations_waiting: states
            .into_iter()
            .filter_map(|state| (!state.applied).then_some(state.name))
            .collect(),
        warnings,
        sealing_held_back,
        tables,
    })
}

/// The workers that have not published events for some time, one line each. Events that others appended to the same sessions
/// later wait for them.
async fn unpublished(connection: &mut Connection) -> Result<Vec<String>, diesel::result::Error> {
    const LATE: &str = "SELECT format('%s committed events %s s ago and has not published them; events that other workers '
            'appended to the same sessions later wait for up to an hour. Is %1$s running? (%s transactions)',
            replace(substr(role_name, 3), '_', '-'), extract(epoch FROM now() - min(since))::bigint, count(*)) AS line
        FROM sec.unpublished_transactions WHERE since BETWEEN now() - interval '1 hour' AND now() - interval '10 seconds'
        GROUP BY role_name ORDER BY min(since)";
    #[derive(QueryableByName)]
    struct Late {
        #[diesel(sql_type = Text)]
        line: String,
    }
    // The migration may not be applied yet.
    let table: Exists =
        diesel::sql_query("SELECT to_regclass('sec.unpublished_transactions') IS NOT NULL AS exists")
            .get_result(connection)
            .await?;
    let late: Vec<Late> =
        if table.exists { diesel::sql_query(LATE).load(connection).await? } else { Vec::new() };
    Ok(late.into_iter().map(|late| late.line).collect())
}

/// For how long nobody has to look after the database.
const MAINTAINED_WITHIN: TimeDelta = TimeDelta::days(8);

/// What is wrong with the partitions, and whether `memfleet maintenance run` has not run for long, a line each.
async fn unmaintained(connection: &mut Connection) -> anyhow::Result<Vec<String>> {
    // The migration may not be applied yet.
    let function: Exists = diesel::sql_query(
        "SELECT to_regprocedure('sec.partition_alarms_at(timestamptz)') IS NOT NULL AS exists",
    )
    .get_result(connection)
    .await?;
    if !function.exists {
        return Ok(Vec::new());
    }
    let mut warnings = maintenance::alarms(connection).await?;
    let runs = maintenance::last_runs(connection).await?;
    // Of a new deployment, nobody expects it yet.
    let is_in_use = is_in_use(connection).await?;
    match runs.iter().find(|run| run.job == maintenance::RUN) {
        None if is_in_use => {
            warnings.push("`memfleet maintenance run` has not run in the last 30 days".to_owned());
        }
        None => {}
        Some(run) if Utc::now() - run.started_at > MAINTAINED_WITHIN => warnings.push(format!(
            "`memfleet maintenance run` ran last at {}",
            run.started_at.to_rfc3339_opts(SecondsFormat::Secs, true)
        )),
        Some(run) => warnings.extend(
            run.failure.as_ref().map(|failure| format!("the last `memfleet maintenance run`: {failure}")),
        ),
    }
    Ok(warnings)
}

/// Whether jobs have run for as long.
async fn is_in_use(connection: &mut Connection) -> Result<bool, diesel::result::Error> {
    const OLD: &str =
        "SELECT EXISTS (SELECT FROM public.job_runs WHERE started_at < now() - interval '8 days') AS exists";
    let old: Exists = diesel::sql_query(OLD).get_result(connection).await?;
    Ok(old.exists)
}

/// The revocations that the key store does not know, in one line.
async fn unknown_revocations(connection: &mut Connection, settings: &Settings) -> Option<String> {
    let looked = timeout(KEY_STORE_DEADLINE, revocations::difference(connection, settings)).await;
    match looked {
        Ok(Ok(found)) if found.is_none() => None,
        Ok(Ok(found)) => Some(format!(
            "the key store does not know of {}; `memfleet security sync` tells it",
            found.phrases().join("; ")
        )),
        Ok(Err(error)) => {
            Some(format!("it is unknown whether the key store knows what was revoked: {error:#}"))
        }
        Err(_) => Some(format!(
            "it is unknown whether the key store knows what was revoked: no answer within {} s",
            KEY_STORE_DEADLINE.as_secs()
        )),
    }
}

/// The erasures that the database does not know of, in one line.
async fn unapplied_erasures(connection: &mut Connection, settings: &Settings) -> Option<String> {
    let looked = timeout(RECEIPTS_DEADLINE, hints::unapplied_warning(connection, settings)).await;
    looked.unwrap_or_else(|_| {
        Some(format!(
            "it is unknown whether the database has all erasures: no answer within {} s",
            RECEIPTS_DEADLINE.as_secs()
        ))
    })
}

#[derive(QueryableByName)]
struct Exists {
    #[diesel(sql_type = Bool)]
    exists: bool,
}

/// The last migration that changed what is sealed.
const SEALED_SINCE: &str = "_what_is_sealed";

/// Whether the trail is one that this program seals. That is for the list of migrations to say: a table of the trail that is
/// missing is worth a warning.
async fn has_trail(connection: &mut Connection) -> Result<bool, Fault> {
    let missing = migration::MAIN.missing(connection).await?;
    Ok(!missing.iter().any(|name| name.ends_with(SEALED_SINCE)))
}

async fn held_back(connection: &mut Connection) -> Result<Option<HeldBack>, Fault> {
    if has_trail(connection).await? { audit::held_back(connection).await } else { Ok(None) }
}

impl DatabaseStatus {
    pub(super) fn show(&self) {
        let count = |number: i64| grouped(u64::try_from(number).unwrap_or(0));
        outln!("            database {}, {} bytes", self.database, count(self.bytes));
        match self.migrations_waiting.as_slice() {
            [] => outln!("            {} migrations applied", self.migrations_applied),
            waiting => outln!(
                "            {} migrations applied, {} pending; `memfleet migrate up` applies them: {}",
                self.migrations_applied,
                waiting.len(),
                waiting.join(", ")
            ),
        }
        for warning in &self.warnings {
            outln!("            warning: {}", printable(warning));
        }
        if let Some(held) = &self.sealing_held_back {
            outln!("            warning: {}", printable(&held.to_string()));
        }
        let mut tables =
            Table::new([("table", Align::Left), ("rows (estimate)", Align::Right), ("bytes", Align::Right)]);
        for table in &self.tables {
            tables.row([table.name.clone(), count(table.rows_estimate), count(table.bytes)]);
        }
        if !self.tables.is_empty() {
            out!("\n{tables}");
        }
    }
}
