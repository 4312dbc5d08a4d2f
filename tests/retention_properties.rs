//! The sweep against a plain evaluation of the policies, with a clock of its own; and killed at every stage boundary.

use std::collections::BTreeSet;
use std::time::Duration;

use archive::{Keys, Target, Value};
use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use config::ArchiveSettings;
use contract::Tick;
use diesel::QueryableByName;
use diesel::sql_types::{Array, Binary, Integer, Text, Uuid as SqlUuid};
use diesel_async::{AsyncConnection, AsyncPgConnection, SimpleAsyncConnection};
use fastrand::Rng;
use keys::DataKeys;
use retention_cleaner::{Job, RetentionCleaner, RetentionItem};
use runtime::{ExternalWorker, Message, Source};
use store::job_runs::Counts;
use store::{Fault, security};
use testkit::attack::{grant, login};
use testkit::{Fixture, eventually, lines_on, set_redelivery};
use tokio::time::timeout;
use uuid::Uuid;

use crate::support::archives::{succeeds, with_target};
use crate::support::program::start_worker;
use crate::support::retention::{cleaner, job, left, with_old_sessions, without_schedule};
use crate::support::retention_model::{Action, Hold, Kind, Model, Policy, line};
use crate::support::retention_rows::{AGENT_TIERS, DELETE_ALL, MODES, TIERS, rows, users};
use crate::support::ticks::publish_tick;

const ROLE: &str = "w_retention_cleaner";
const TABLES: [&str; 7] = [
    "simple_chat_context",
    "chat_mode_sessions",
    "router_decision_log",
    "tombstones",
    "agent_context_states",
    "unified_memory_vectors",
    "cross_service_memory_sync",
];
/// The tiers of all tables.
const ALL_TIERS: [&str; 4] = ["private", "shared", "public", "consensus"];
const USERS: i32 = 3;

async fn lines(connection: &mut AsyncPgConnection) -> BTreeSet<String> {
    let select = "concat(id, kind) FROM (
        SELECT id, concat(' context', CASE WHEN removed_at IS NOT NULL THEN ' empty' END) AS kind FROM simple_chat_context
        UNION ALL SELECT id, concat(' decision', CASE WHEN anonymised_at IS NOT NULL THEN ' anonymised' END) FROM router_decision_log
        UNION ALL SELECT id, concat(' agent', CASE WHEN removed_at IS NOT NULL THEN ' empty' END) FROM agent_context_states
        UNION ALL SELECT id, concat(' memory', CASE WHEN removed_at IS NOT NULL THEN ' empty' END) FROM unified_memory_vectors
        UNION ALL SELECT id, ' sync' FROM cross_service_memory_sync
        UNION ALL SELECT id, ' session' FROM chat_mode_sessions) AS l";
    lines_on(connection, select).await.into_iter().collect()
}

/// Some of a list, or nothing.
fn maybe(random: &mut Rng, of: &[&'static str]) -> Option<&'static str> {
    random.bool().then(|| of[random.usize(..of.len())])
}

fn quoted(value: Option<&str>) -> String {
    value.map_or_else(|| "NULL".to_owned(), |value| format!("'{value}'"))
}

/// One policy or hold more, or one less, as a statement. One that is refused is not in the model.
struct Change {
    sql: String,
    is_refused: bool,
}

fn change(random: &mut Rng, model: &mut Model) -> Change {
    let user = random.i32(0..=USERS);
    let table = TABLES[random.usize(..TABLES.len())];
    let mode = if table == "tombstones" { None } else { maybe(random, &MODES) };
    let tier = match table {
        "simple_chat_context" => maybe(random, &TIERS),
        "agent_context_states" => maybe(random, &AGENT_TIERS),
        _ => None,
    };
    let of = Kind { user, table, mode, tier };
    let sql = match random.u8(..8) {
        0 => hold(random, model),
        1 => {
            model.holds.clear();
            "UPDATE retention_holds SET released_at = now() WHERE released_at IS NULL".to_owned()
        }
        2 => {
            model.remove(of);
            format!("UPDATE data_retention_policies SET is_active = false WHERE user_id = {user} AND table_name = '{table}'
                AND chat_mode IS NOT DISTINCT FROM {}::chat_mode AND access_tier IS NOT DISTINCT FROM {}", quoted(mode), quoted(tier))
        }
        _ => {
            let least = if table == "tombstones" { 8 } else { 1 };
            let policy = Policy { of, days: random.i64(least..90), action: action(random, table) };
            let sql = put(&policy);
            if policy.action == Action::Archive && archive::table(table).is_none() {
                return Change { sql, is_refused: true };
            }
            model.put(policy);
            sql
        }
    };
    Change { sql, is_refused: false }
}

fn action(random: &mut Rng, table: &str) -> Action {
    use Action::{Anonymise, Archive, Delete};
    let of: &[Action] = match table {
        "router_decision_log" => &[Delete, Anonymise, Archive],
        "tombstones" | "unified_memory_vectors" | "cross_service_memory_sync" => {
            &[Delete, Delete, Delete, Archive]
        }
        _ => &[Delete, Archive],
    };
    of[random.usize(..of.len())]
}

fn put(policy: &Policy) -> String {
    let Policy { of: Kind { user, table, mode, tier }, days, action } = policy;
    format!(
        "INSERT INTO data_retention_policies (id, user_id, table_name, chat_mode, access_tier, keep_days, action)
        VALUES (gen_random_uuid(), {user}, '{table}', {}, {}, {days}, '{}')
        ON CONFLICT (user_id, table_name, chat_mode, access_tier) DO UPDATE SET keep_days = excluded.keep_days,
            action = excluded.action, is_active = true",
        quoted(*mode),
        quoted(*tier),
        action.name()
    )
}

fn hold(random: &mut Rng, model: &mut Model) -> String {
    let (user, table) = (random.i32(0..=USERS), TABLES[random.usize(..TABLES.len())]);
    let (mode, tier) = (maybe(random, &MODES), maybe(random, &ALL_TIERS));
    let hold = Hold { user, table: random.bool().then_some(table), mode, tier };
    let sql = format!(
        "INSERT INTO retention_holds (id, user_id, table_name, chat_mode, access_tier, reason)
        VALUES (gen_random_uuid(), {user}, {}, {}, {}, 'x')",
        quoted(hold.table),
        quoted(hold.mode),
        quoted(hold.tier)
    );
    model.holds.push(hold);
    sql
}

/// Policies of the platform for most tables, so that there is something to do.
fn first_policies(random: &mut Rng, model: &mut Model) -> String {
    let mut sql = String::new();
    for table in TABLES {
        if random.u8(..4) > 0 {
            let of = Kind { user: 0, table, mode: None, tier: None };
            let can_be_archived = archive::table(table).is_some();
            let action = if can_be_archived { action(random, table) } else { Action::Delete };
            let policy = Policy { of, days: random.i64(8..60), action };
            sql += &format!("{};", put(&policy));
            model.put(policy);
        }
    }
    sql
}

/// Grants for the platform and all users.
fn grants() -> Vec<String> {
    (0..=USERS).map(|user| grant(user, ROLE)).collect()
}

/// Sweeps with the login of the worker's role, as if it were this time, until nothing changes. It archives nothing.
async fn sweep(connection: &mut AsyncPgConnection, at: DateTime<Utc>, most: i32) {
    let users: Vec<i32> = (1..=USERS).collect();
    loop {
        let swept = connection
            .transaction(async |connection| {
                let grants = grants();
                let grants: Vec<&str> = grants.iter().map(String::as_str).collect();
                security::open_context(connection, &grants).await?;
                retention_cleaner::sweep(connection, at, &users, most, Uuid::now_v7()).await
            })
            .await
            .unwrap_or_else(|fault: Fault| panic!("{fault}"));
        if swept.changed() == 0 {
            return;
        }
    }
}

/// The worker, step by step.
struct Worker {
    cleaner: RetentionCleaner,
    /// With the login of its role.
    connection: AsyncPgConnection,
}

impl Worker {
    async fn open(fixture: &Fixture) -> Self {
        Self { cleaner: cleaner(fixture), connection: login(fixture, ROLE).await }
    }

    /// Runs until a run changes nothing, and gives the ids of the runs. `meanwhile` is executed between the archives of the first one and
    /// its transaction.
    async fn run(&mut self, operator: &mut AsyncPgConnection, mut meanwhile: Option<String>) -> Vec<Uuid> {
        let worker = &self.cleaner;
        let mut runs = Vec::new();
        loop {
            let tick = tick();
            runs.push(tick.request_id);
            let grants = grants();
            let grants: Vec<&str> = grants.iter().map(String::as_str).collect();
            let prepared =
                worker.prepare(&[&tick], &grants).await.unwrap_or_else(|fault: Fault| panic!("{fault}"));
            if let Some(sql) = meanwhile.take() {
                operator.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
            }
            let written: Result<Option<Counts>, Fault> = self
                .connection
                .transaction(async |connection| {
                    security::open_context(connection, &grants).await?;
                    let (batch, keys) = ([&tick], DataKeys::new());
                    Ok(worker.write(connection, &batch, &keys, &prepared).await?.counts)
                })
                .await;
            let counts = written.unwrap_or_else(|fault| panic!("{fault}")).expect("the counts of a run");
            assert_eq!(counts.failure, None);
            if counts.changed == 0 {
                return runs;
            }
        }
    }
}

fn tick() -> Message<RetentionItem> {
    let job = job().parse().expect("a job");
    let tick = Tick { job, scheduler: String::new(), stored_at: Utc::now() };
    Message {
        request: RetentionItem::Tick(Job::Sweep),
        secrets: Vec::new(),
        source: Source::Tick(tick),
        request_id: Uuid::now_v7(),
        parent_event_id: None,
        stored_at: Utc::now(),
        sequence: 0,
        event_id: Uuid::now_v7(),
        body: bytes::Bytes::new(),
        is_widened: false,
    }
}

/// Makes all rows older, as the model does.
fn move_back(by: TimeDelta) -> String {
    let by = format!("interval '{} hours'", by.num_hours());
    format!(
        "UPDATE chat_mode_sessions SET ended_at = ended_at - {by};
         UPDATE simple_chat_context SET expires_at = expires_at - {by}, removed_at = removed_at - {by};
         UPDATE router_decision_log SET created_at = created_at - {by};
         UPDATE agent_context_states SET expires_at = expires_at - {by}, removed_at = removed_at - {by}, updated_at = updated_at - {by};
         UPDATE multi_agent_conversations SET completed_at = completed_at - {by};
         UPDATE unified_memory_vectors SET removed_at = removed_at - {by}, updated_at = updated_at - {by};
         UPDATE cross_service_memory_sync SET completed_at = completed_at - {by}"
    )
}

#[derive(QueryableByName)]
struct Named {
    #[diesel(sql_type = Text)]
    location: String,
    #[diesel(sql_type = Binary)]
    manifest_hash: Vec<u8>,
    #[diesel(sql_type = Integer)]
    row_count: i32,
    #[diesel(sql_type = Array<SqlUuid>)]
    not_removed: Vec<Uuid>,
}

/// The rows that the archives of these runs have removed, sorted. A row that two archives have is listed twice.
async fn archived(
    connection: &mut AsyncPgConnection,
    settings: &ArchiveSettings,
    runs: &[Uuid],
) -> Vec<String> {
    use diesel_async::RunQueryDsl as _;
    const NAMED: &str =
        "SELECT location, manifest_hash, row_count, not_removed FROM archives WHERE run_id = ANY ($1)";
    let query = diesel::sql_query(NAMED).bind::<Array<SqlUuid>, _>(runs);
    let named: Vec<Named> = query.load(connection).await.expect("the archives");
    let (target, keys) = (Target::open(settings).expect("a target"), Keys::public(settings).expect("keys"));
    let mut lines = Vec::new();
    for Named { location, manifest_hash, row_count, not_removed } in named {
        let read = archive::read(&target, &keys, &location, Some(&manifest_hash)).await;
        let contents = read.unwrap_or_else(|error| panic!("{location}: {error}"));
        let [rows] = &contents.tables[..] else { panic!("one table") };
        let before = lines.len();
        for row in 0..rows.len() {
            let Value::Uuid(id) = *rows.get(row, "id") else { panic!("{location}: a row without an id") };
            let has = |column: &str| *rows.get(row, column) != Value::Null;
            if not_removed.contains(&id) {
                continue;
            }
            lines.push(match rows.table.as_str() {
                "simple_chat_context" => line(id, "context", has("removed_at").then_some("empty")),
                "agent_context_states" => line(id, "agent", has("removed_at").then_some("empty")),
                "router_decision_log" => line(id, "decision", has("anonymised_at").then_some("anonymised")),
                "chat_mode_sessions" => line(id, "session", None),
                other => panic!("{location}: rows of {other}"),
            });
        }
        assert_eq!(i32::try_from(lines.len() - before), Ok(row_count), "{location}");
    }
    lines.sort();
    lines
}

/// The tables have the rows that the model says are left. The archives have those that it says were archived, each once, and no other: none
/// that is left, and none that was deleted.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_is_what_a_plain_evaluation_of_the_policies_leaves() {
    const STEPS: usize = 12;
    const REFUSED: &str = "data_retention_policies_archive";
    let mut fixture = Fixture::new().await;
    let _folder = with_target(&mut fixture);
    let (mut connection, mut worker) = (fixture.connection().await, Worker::open(&fixture).await);
    connection.batch_execute(&users(USERS)).await.expect("users");
    let (mut removed, mut refused, mut all_archived) = (0, 0, Vec::<String>::new());
    for seed in 0..24 {
        let mut random = Rng::with_seed(seed);
        let (mut model, base) = (Model::default(), Utc::now().trunc_subsecs(0));
        let filling = rows(&mut random, &mut model, base, USERS);
        let policies = first_policies(&mut random, &mut model);
        connection.batch_execute(&format!("{DELETE_ALL}{filling}{policies}")).await.expect("rows");
        let (mut at, before, mut runs) = (base, model.lines().len(), Vec::<Uuid>::new());
        for step in 0..=STEPS {
            let is_last = step == STEPS;
            if !is_last && random.u8(..3) > 0 {
                let Change { sql, is_refused } = change(&mut random, &mut model);
                match connection.batch_execute(&sql).await {
                    Ok(()) => assert!(!is_refused, "{sql}: it is not refused"),
                    Err(error) => {
                        assert!(is_refused && error.to_string().contains(REFUSED), "{sql}: {error}");
                    }
                }
                refused += usize::from(is_refused);
                continue;
            }
            at += TimeDelta::hours(random.i64(0..24 * 20));
            if is_last || random.bool() {
                // The worker's clock is that of the machine: the rows become older instead, and what it empties now is emptied at `base`.
                model.move_back(at - base);
                connection.batch_execute(&move_back(at - base)).await.expect("older rows");
                at = base;
                let meanwhile = (random.u8(..4) == 0).then(|| hold(&mut random, &mut model));
                model.sweep(at, true);
                runs.extend(worker.run(&mut connection, meanwhile).await);
                let emptied = ["simple_chat_context", "agent_context_states", "unified_memory_vectors"]
                    .map(|table| {
                        format!("UPDATE {table} SET removed_at = '{base}' WHERE removed_at > '{base}';")
                    })
                    .concat();
                connection.batch_execute(&emptied).await.expect("a time");
            } else {
                model.sweep(at, false);
                sweep(&mut worker.connection, at, random.i32(1..20)).await;
            }
            assert_eq!(lines(&mut connection).await, model.lines(), "seed {seed}, step {step}, at {at}");
            let found = archived(&mut connection, &fixture.settings.archive, &runs).await;
            let expected: Vec<String> = model.archived.iter().cloned().collect();
            assert_eq!(found, expected, "in archives; seed {seed}, step {step}, at {at}");
        }
        removed += before - model.lines().len();
        all_archived.extend(model.archived);
    }
    assert!(removed > 150, "{removed} rows were removed in all");
    assert!(refused > 0, "no policy was refused");
    for what in [" context", " context empty", " decision", " session", " agent"] {
        assert!(all_archived.iter().any(|line| line.ends_with(what)), "no{what} was archived");
    }
    assert!(all_archived.len() > 50, "{} rows were archived in all", all_archived.len());
    // The operator finds the same rows.
    let told = succeeds(&fixture, &["query", "--json", "--limit", "100000"]).await;
    assert_eq!(told.lines().count(), all_archived.len());
}

const POINTS: [&str; 7] =
    ["Pulled", "Authorized", "Taken", "Written", "Committed", "EventsPublished", "Acknowledging"];

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_that_is_killed_anywhere_ends_as_one_that_is_not() {
    use std::os::unix::process::ExitStatusExt as _;
    let fixture = Fixture::with_topology(|topology| {
        for consumer in ["retention-cleaner-jobs", "retention-cleaner-wakes"] {
            set_redelivery(topology, consumer, Duration::from_secs(2), 1_000);
        }
    })
    .await;
    without_schedule(&fixture).await;
    for (round, point) in (0..).zip(POINTS) {
        let first = round * 10 + 1;
        with_old_sessions(&fixture, first..=first + 9, 400).await;
        let crash = format!("{point}:1");
        let mut dying = start_worker(&fixture, "retention-cleaner", Some(&crash), &[]);
        publish_tick(&fixture, job()).await;
        let status =
            timeout(Duration::from_secs(60), dying.wait()).await.expect("it dies").expect("a status");
        assert_eq!(status.signal(), Some(9), "killed at {point}");
        let mut survivor = start_worker(&fixture, "retention-cleaner", None, &[]);
        eventually("all that is due is gone", async || {
            publish_tick(&fixture, job()).await;
            (fixture.count("chat_mode_sessions WHERE session_id = 'ended'").await == 0
                && fixture
                    .count("simple_chat_context WHERE removed_at IS NULL AND expires_at <= now()")
                    .await
                    == 0)
                .then_some(())
        })
        .await;
        let wakes = fixture.consumer("WAKES", "retention-cleaner-wakes").await;
        let jobs = fixture.consumer("JOBS", "retention-cleaner-jobs").await;
        eventually("nothing is in flight", async || {
            let (wakes, jobs) = (wakes.get_info().await.ok()?, jobs.get_info().await.ok()?);
            let open = wakes.num_pending + jobs.num_pending;
            (open == 0 && wakes.num_ack_pending + jobs.num_ack_pending == 0).then_some(())
        })
        .await;
        survivor.start_kill().expect("SIGKILL");
        survivor.wait().await.expect("a status");
    }
    let expected: Vec<String> = (1..=POINTS.len() * 10)
        .flat_map(|user| ["", " expired empty", " kept", " of a"].map(|rest| format!("{user} open{rest}")))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    assert_eq!(left(&fixture).await, expected);
    // Each key is said to be gone once, and all that is said is published.
    let keys =
        "concat_ws(' ', e.user_id, e.session_id, k ->> 'context_key', count(*)) FROM blackboard_events e,
        jsonb_array_elements(e.event_payload -> 'removed') AS k WHERE e.event_type = 'retention.swept'
        GROUP BY e.user_id, e.session_id, k ->> 'context_key' HAVING count(*) > 1";
    assert_eq!(fixture.lines(keys).await, Vec::<String>::new());
    assert_eq!(fixture.count("job_runs WHERE failure IS NOT NULL").await, 0);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
}
