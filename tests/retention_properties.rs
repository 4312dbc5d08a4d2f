//! The sweep against a plain evaluation of the policies, with a clock of its own; and killed at every stage boundary.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use diesel_async::{AsyncConnection, AsyncPgConnection, SimpleAsyncConnection};
use fastrand::Rng;
use store::Fault;
use testkit::{Fixture, eventually, lines_on, set_redelivery};
use tokio::time::timeout;
use uuid::Uuid;

use crate::support::program::start_worker;
use crate::support::retention::{job, left, with_old_sessions, without_schedule};
use crate::support::ticks::publish_tick;

const MODES: [&str; 4] = ["simple", "smart-router", "expert-group", "socratic"];
const TIERS: [&str; 3] = ["private", "shared", "public"];
const TABLES: [&str; 4] = ["simple_chat_context", "chat_mode_sessions", "router_decision_log", "tombstones"];
const USERS: i32 = 3;

#[derive(Clone, Debug)]
struct Policy {
    user: i32,
    table: &'static str,
    mode: Option<&'static str>,
    tier: Option<&'static str>,
    days: i64,
    anonymises: bool,
}

#[derive(Clone, Debug)]
struct Hold {
    user: i32,
    table: Option<&'static str>,
    mode: Option<&'static str>,
    tier: Option<&'static str>,
}

#[derive(Clone, Debug)]
struct Session {
    user: i32,
    mode: &'static str,
    ended_at: Option<DateTime<Utc>>,
}

#[derive(Clone, Debug)]
struct Context {
    session: Uuid,
    tier: &'static str,
    is_persistent: bool,
    expires_at: Option<DateTime<Utc>>,
    removed_at: Option<DateTime<Utc>>,
}

#[derive(Clone, Debug)]
struct Decision {
    session: Uuid,
    created_at: DateTime<Utc>,
    is_anonymised: bool,
}

/// What the rows are, and what the policies say of them, without a database.
#[derive(Default)]
struct Model {
    policies: Vec<Policy>,
    holds: Vec<Hold>,
    sessions: BTreeMap<Uuid, Session>,
    contexts: BTreeMap<Uuid, Context>,
    decisions: BTreeMap<Uuid, Decision>,
}

impl Model {
    fn is_held(&self, user: i32, table: &str, mode: Option<&str>, tier: Option<&str>) -> bool {
        self.holds.iter().any(|hold| {
            [0, user].contains(&hold.user)
                && hold.table.is_none_or(|of| of == table)
                && (hold.mode.is_none() || hold.mode == mode)
                && (hold.tier.is_none() || hold.tier == tier)
        })
    }

    fn rule(&self, user: i32, table: &str, mode: Option<&str>, tier: Option<&str>) -> Option<&Policy> {
        let applies = |policy: &&Policy| {
            [0, user].contains(&policy.user)
                && policy.table == table
                && (policy.mode.is_none() || policy.mode == mode)
                && (policy.tier.is_none() || policy.tier == tier)
        };
        let rank = |policy: &&Policy| (policy.user != 0, policy.mode.is_some(), policy.tier.is_some());
        (!self.is_held(user, table, mode, tier))
            .then(|| self.policies.iter().filter(applies).max_by_key(rank))
            .flatten()
    }

    fn sweep(&mut self, at: DateTime<Utc>) {
        let past = |time: DateTime<Utc>, policy: &Policy| time <= at - TimeDelta::days(policy.days);
        let (sessions, contexts, decisions) =
            (self.sessions.clone(), self.contexts.clone(), self.decisions.clone());
        for (id, context) in contexts {
            let of = &sessions[&context.session];
            let held = self.is_held(of.user, "simple_chat_context", Some(of.mode), Some(context.tier));
            let expires = context.removed_at.is_none() && context.expires_at.is_some_and(|time| time <= at);
            if expires && !held {
                let empty = Context { expires_at: None, removed_at: Some(at), ..context.clone() };
                self.contexts.insert(id, empty);
            }
            let rule = self.rule(of.user, "simple_chat_context", Some(of.mode), Some(context.tier));
            let is_over = of.ended_at.zip(rule).is_some_and(|(time, rule)| past(time, rule));
            let tombstone = self.rule(of.user, "tombstones", None, None);
            let is_old = context.removed_at.zip(tombstone).is_some_and(|(time, rule)| past(time, rule));
            if is_over && !context.is_persistent || is_old {
                self.contexts.remove(&id);
            }
        }
        for (id, decision) in decisions {
            let of = &sessions[&decision.session];
            let rule = self.rule(of.user, "router_decision_log", Some(of.mode), None);
            match rule.filter(|rule| past(decision.created_at, rule)).map(|rule| rule.anonymises) {
                Some(true) => {
                    self.decisions.insert(id, Decision { is_anonymised: true, ..decision });
                }
                Some(false) => {
                    self.decisions.remove(&id);
                }
                None => {}
            }
        }
        for (id, session) in sessions {
            let rule = self.rule(session.user, "chat_mode_sessions", Some(session.mode), None);
            let is_over = session.ended_at.zip(rule).is_some_and(|(time, rule)| past(time, rule));
            let is_needed = self.contexts.values().any(|context| context.session == id)
                || self.decisions.values().any(|decision| decision.session == id);
            if is_over && !is_needed {
                self.sessions.remove(&id);
            }
        }
    }

    fn lines(&self) -> BTreeSet<String> {
        let contexts = self.contexts.iter().map(|(id, context)| {
            format!("{id} context{}", if context.removed_at.is_some() { " empty" } else { "" })
        });
        let decisions = self.decisions.iter().map(|(id, decision)| {
            format!("{id} decision{}", if decision.is_anonymised { " anonymised" } else { "" })
        });
        let sessions = self.sessions.keys().map(|id| format!("{id} session"));
        contexts.chain(decisions).chain(sessions).collect()
    }
}

async fn lines(connection: &mut AsyncPgConnection) -> BTreeSet<String> {
    let select = "concat(id, kind) FROM (
        SELECT id, concat(' context', CASE WHEN removed_at IS NOT NULL THEN ' empty' END) AS kind FROM simple_chat_context
        UNION ALL SELECT id, concat(' decision', CASE WHEN anonymised_at IS NOT NULL THEN ' anonymised' END) FROM router_decision_log
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

/// Rows of some users, in the model and as statements.
fn rows(random: &mut Rng, model: &mut Model, base: DateTime<Utc>) -> String {
    let mut sql = String::new();
    let ago = |random: &mut Rng| base - TimeDelta::hours(random.i64(0..24 * 60));
    for user in 1..=USERS {
        for n in 0..random.usize(1..6) {
            let (id, name, mode) = (Uuid::new_v4(), format!("s{n}"), MODES[random.usize(..MODES.len())]);
            let ended_at = (random.u8(..4) > 0).then(|| ago(random));
            let ended = ended_at.map_or_else(|| "NULL".to_owned(), |time| format!("'{time}'"));
            sql += &format!(
                "INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode, is_active, ended_at)
                VALUES ('{id}', {user}, '{name}', '{mode}', {}, {ended});",
                ended_at.is_none()
            );
            for key in 0..random.usize(..5) {
                let (row, tier) = (Uuid::new_v4(), TIERS[random.usize(..TIERS.len())]);
                let expires_at = random.bool().then(|| ago(random) + TimeDelta::days(random.i64(0..120)));
                let removed_at = (expires_at.is_none() && random.bool()).then(|| ago(random));
                let is_persistent = random.u8(..4) == 0;
                let time = |time: Option<DateTime<Utc>>| {
                    time.map_or_else(|| "NULL".to_owned(), |time| format!("'{time}'"))
                };
                sql += &format!("INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value, access_level,
                    is_persistent, expires_at, removed_at) VALUES ('{row}', {user}, '{name}', 'k{key}', {}, '{tier}', {is_persistent}, {}, {});",
                    if removed_at.is_some() { "NULL" } else { "'1'" }, time(expires_at), time(removed_at));
                let context = Context { session: id, tier, is_persistent, expires_at, removed_at };
                model.contexts.insert(row, context);
            }
            for _ in 0..random.usize(..3) {
                let (row, created_at) = (Uuid::new_v4(), ago(random));
                sql += &format!("INSERT INTO router_decision_log (id, user_id, session_id, user_request, routing_decision, created_at)
                    VALUES ('{row}', {user}, '{name}', 'x', '{{}}', '{created_at}');");
                model.decisions.insert(row, Decision { session: id, created_at, is_anonymised: false });
            }
            model.sessions.insert(id, Session { user, mode, ended_at });
        }
    }
    sql
}

/// One policy or hold more, or one less, in the model and as a statement.
fn change(random: &mut Rng, model: &mut Model) -> String {
    let user = random.i32(0..=USERS);
    let table = TABLES[random.usize(..TABLES.len())];
    let mode = if table == "tombstones" { None } else { maybe(random, &MODES) };
    let tier = if table == "simple_chat_context" { maybe(random, &TIERS) } else { None };
    let same =
        |policy: &Policy| (policy.user, policy.table, policy.mode, policy.tier) == (user, table, mode, tier);
    match random.u8(..8) {
        0 => {
            let hold =
                Hold { user, table: random.bool().then_some(table), mode: maybe(random, &MODES), tier: None };
            let sql = format!(
                "INSERT INTO retention_holds (id, user_id, table_name, chat_mode, reason)
                VALUES (gen_random_uuid(), {user}, {}, {}, 'x')",
                quoted(hold.table),
                quoted(hold.mode)
            );
            model.holds.push(hold);
            sql
        }
        1 => {
            model.holds.clear();
            "UPDATE retention_holds SET released_at = now() WHERE released_at IS NULL".to_owned()
        }
        2 => {
            model.policies.retain(|policy| !same(policy));
            format!("UPDATE data_retention_policies SET is_active = false WHERE user_id = {user} AND table_name = '{table}'
                AND chat_mode IS NOT DISTINCT FROM {}::chat_mode AND access_tier IS NOT DISTINCT FROM {}", quoted(mode), quoted(tier))
        }
        _ => {
            let least = if table == "tombstones" { 8 } else { 1 };
            let (days, anonymises) = (random.i64(least..90), table == "router_decision_log" && random.bool());
            model.policies.retain(|policy| !same(policy));
            model.policies.push(Policy { user, table, mode, tier, days, anonymises });
            format!("INSERT INTO data_retention_policies (id, user_id, table_name, chat_mode, access_tier, keep_days, action)
                VALUES (gen_random_uuid(), {user}, '{table}', {}, {}, {days}, '{}')
                ON CONFLICT (user_id, table_name, chat_mode, access_tier) DO UPDATE SET keep_days = excluded.keep_days,
                    action = excluded.action, is_active = true",
                quoted(mode), quoted(tier), if anonymises { "anonymise" } else { "delete" })
        }
    }
}

/// Runs until one changes nothing.
async fn sweep(connection: &mut AsyncPgConnection, at: DateTime<Utc>, most: i32) {
    let users: Vec<i32> = (1..=USERS).collect();
    loop {
        let swept = connection
            .transaction(async |connection| {
                retention_cleaner::sweep(connection, at, &users, most, Uuid::now_v7()).await
            })
            .await
            .unwrap_or_else(|fault: Fault| panic!("{fault}"));
        if swept.changed() == 0 {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_is_what_a_plain_evaluation_of_the_policies_leaves() {
    let fixture = Fixture::new().await;
    let mut connection = fixture.connection().await;
    let users = "INSERT INTO users (id, username, email) SELECT n, 'u', 'e' FROM generate_series(1, 3) AS n";
    connection.batch_execute(users).await.expect("users");
    let mut removed = 0;
    for seed in 0..40 {
        let mut random = Rng::with_seed(seed);
        let (mut model, base) = (Model::default(), Utc::now().trunc_subsecs(0));
        let empty = "DELETE FROM simple_chat_context; DELETE FROM router_decision_log; DELETE FROM chat_mode_sessions;
            DELETE FROM data_retention_policies; DELETE FROM retention_holds;";
        let filling = format!("{empty}{}", rows(&mut random, &mut model, base));
        connection.batch_execute(&filling).await.expect("rows");
        let (mut at, before) = (base, model.lines().len());
        for step in 0..12 {
            if random.u8(..3) > 0 {
                let sql = change(&mut random, &mut model);
                connection.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
                continue;
            }
            at += TimeDelta::hours(random.i64(0..24 * 20));
            model.sweep(at);
            sweep(&mut connection, at, random.i32(1..20)).await;
            assert_eq!(lines(&mut connection).await, model.lines(), "seed {seed}, step {step}, at {at}");
        }
        removed += before - model.lines().len();
    }
    assert!(removed > 100, "{removed} rows were removed in all");
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
