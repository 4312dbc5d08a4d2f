//! A fleet under load while everything around it fails, for as long as is wanted: `make chaos`. The faults follow from a
//! seed; when they meet a message does not.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write as _;
use std::time::{Duration, Instant};

use consensus_builder::ConsensusBuilder;
use context_writer::ContextWriter;
use contract::header;
use diesel_async::SimpleAsyncConnection as _;
use router_logger::RouterLogger;
use runtime::ExternalWorker as _;
use serde_json::json;
use testkit::{Fixture, RequestMessage, context, request, session, set_redelivery, user};
use tokio::process::Child;
use tokio::time::sleep;
use uuid::Uuid;

use crate::support::consensus::{Task, three_families};
use crate::support::program::{signal, start_worker};
use crate::support::publish_until_stored;
use crate::support::raw_nats::{RawPublisher, block};

const USERS: i32 = 30;
/// The workers, each as a process. context-writer and consensus-builder have two replicas.
const WORKERS: [&str; 5] =
    ["context-writer", "context-writer", "router-logger", "consensus-builder", "consensus-builder"];
/// Pause between two faults.
const BETWEEN_FAULTS: Duration = Duration::from_secs(2);
/// How long everything that is left may take once the faults end.
const RECOVERY: Duration = Duration::from_secs(600);

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What has been published.
#[derive(Default)]
struct Published {
    /// Requests that must take effect once.
    good: Vec<Uuid>,
    /// Requests that must become one dead letter each.
    bad: Vec<Uuid>,
    next: i64,
    /// Tasks that are delegated, each with all answers.
    tasks: usize,
}

impl Published {
    /// The next requests, good ones and a bad one now and then.
    fn next(&mut self, random: &mut fastrand::Rng) -> Vec<RequestMessage> {
        let mut requests = Vec::new();
        for _ in 0..20 {
            self.next += 1;
            let n = self.next;
            let user = random.i32(1..=USERS);
            let good = match n % 10 {
                0 => {
                    let name = format!("s{n}");
                    // The decision travels on another stream, and may arrive before its session.
                    let decision = request(
                        "decision.log",
                        user,
                        json!({ "decision_id": Uuid::now_v7(), "session_id": name, "user_request": "Plan it",
                            "routing_decision": { "route": "direct" } }),
                    );
                    requests.push((true, decision));
                    session(user, &name)
                }
                _ => context(user, "s", &format!("k{n}"), 1),
            };
            requests.push((true, good));
            if n % 25 == 0 {
                requests.extend(self.task(user, random));
            }
            if n % 53 == 0 {
                requests.push((false, request("context.put", user, json!({ "mistake": n }))));
            }
        }
        for (is_good, request) in &requests {
            if *is_good { &mut self.good } else { &mut self.bad }.push(request.id);
        }
        requests.into_iter().map(|(_, request)| request).collect()
    }
}

impl Published {
    /// A task and its answers, in any order. Answers may come before the task.
    fn task(&mut self, user: i32, random: &mut fastrand::Rng) -> Vec<(bool, RequestMessage)> {
        let (task, agents) = (Task::of(user), ["a", "b", "c"]);
        let mut requests = vec![(true, task.delegate(&agents, agents.len(), json!({})))];
        requests.extend(task.all_say(&agents, "The Tagus").into_iter().map(|answer| (true, answer)));
        random.shuffle(&mut requests);
        self.tasks += 1;
        requests
    }
}

/// The running processes of the fleet.
struct Fleet {
    workers: Vec<(&'static str, Child)>,
}

impl Fleet {
    fn start(fixture: &Fixture) -> Self {
        Self { workers: WORKERS.iter().map(|name| (*name, start_worker(fixture, name, None, &[]))).collect() }
    }

    /// Ends one process with a signal and starts another in its place.
    async fn replace(&mut self, fixture: &Fixture, index: usize, name: &str) {
        let (worker, child) = &mut self.workers[index];
        signal(name, child.id().expect("a running worker"));
        child.wait().await.expect("a status");
        *child = start_worker(fixture, worker, None, &[]);
    }
}

/// One fault, chosen at random.
async fn fail(
    fixture: &mut Fixture,
    fleet: &mut Fleet,
    random: &mut fastrand::Rng,
    published: &mut Published,
) -> &'static str {
    let victim = random.usize(0..WORKERS.len());
    match random.u8(0..8) {
        0 => {
            fleet.replace(fixture, victim, "KILL").await;
            "a worker killed"
        }
        1 => {
            fleet.replace(fixture, victim, "TERM").await;
            "a worker stopped"
        }
        2 => {
            let pid = fleet.workers[victim].1.id().expect("a running worker");
            signal("STOP", pid);
            sleep(Duration::from_secs(random.u64(1..10))).await;
            signal("CONT", pid);
            "a worker frozen"
        }
        3 => {
            fixture.nats.kill().await;
            sleep(Duration::from_secs(random.u64(0..4))).await;
            fixture.nats.resume().await.expect("the broker comes back");
            "the broker killed"
        }
        4 => {
            lock(fixture, random.i32(1..=USERS), random.u32(3..20)).await;
            "a user locked"
        }
        5 => {
            fixture
                .execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                     WHERE datname = current_database() AND usename LIKE 'w\\_%'",
                )
                .await;
            "every database connection cut"
        }
        6 => {
            unreadable(fixture, random).await;
            "unreadable messages"
        }
        _ => {
            let flood: Vec<RequestMessage> = (0..20)
                .map(|_| request("context.put", 1, json!({ "unknown": "x".repeat(50_000) })))
                .collect();
            published.bad.extend(flood.iter().map(|request| request.id));
            publish_until_stored(fixture, flood).await;
            "malformed messages"
        }
    }
}

/// Locks all sessions, contexts and tasks of a user for so many seconds, from now on.
async fn lock(fixture: &Fixture, user: i32, seconds: u32) {
    let mut connection = fixture.connection().await;
    tokio::spawn(async move {
        let statements = format!(
            "BEGIN; SELECT FROM simple_chat_context WHERE user_id = {user} FOR UPDATE;
             SELECT FROM chat_mode_sessions WHERE user_id = {user} FOR UPDATE;
             SELECT FROM consensus_tasks WHERE user_id = {user} FOR UPDATE;
             SELECT pg_sleep({seconds}); ROLLBACK"
        );
        // The connection may be cut meanwhile, which ends the lock as well.
        drop(connection.batch_execute(&statements).await);
    });
}

/// Publishes messages that no client library reads.
async fn unreadable(fixture: &Fixture, random: &mut fastrand::Rng) {
    let mut raw = RawPublisher::connect(fixture.nats.url()).await;
    for line in [&b"X Trace: 1"[..], b"X-A: 1\rX-B: 2", b"X-Name: J\xfcrgen", b"no colon"] {
        let id = format!("Nats-Msg-Id: {}", Uuid::now_v7());
        let user = random.i32(1..=USERS);
        let subject = format!("memory.req.test.context.put.{user}");
        raw.publish(subject.as_bytes(), &block(&[id.as_bytes(), line]), b"{}").await;
    }
    raw.flush().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "runs for minutes: make chaos"]
async fn nothing_is_lost_doubled_or_held_up_whatever_fails() {
    let (minutes, seed) = (number("MEMFLEET_CHAOS_MINUTES", 30), number("MEMFLEET_CHAOS_SEED", 17));
    let mut fixture = Fixture::with_topology(|topology| {
        for worker in ["context-writer", "router-logger", "consensus-builder"] {
            set_redelivery(topology, worker, Duration::from_secs(10), 1_000);
        }
    })
    .await;
    let (mut random, mut published) = (fastrand::Rng::with_seed(seed), Published::default());
    let mut opened: Vec<RequestMessage> = (1..=USERS).flat_map(|id| [user(id), session(id, "s")]).collect();
    opened.extend((1..=USERS).flat_map(three_families));
    published.good.extend(opened.iter().map(|request| request.id));
    publish_until_stored(&fixture, opened).await;
    let mut fleet = Fleet::start(&fixture);
    let (since, mut faults) = (Instant::now(), BTreeMap::<&str, u32>::new());
    while since.elapsed() < Duration::from_secs(minutes * 60) {
        let until = Instant::now() + BETWEEN_FAULTS;
        while Instant::now() < until {
            let requests = published.next(&mut random);
            publish_until_stored(&fixture, requests).await;
        }
        let fault = fail(&mut fixture, &mut fleet, &mut random, &mut published).await;
        *faults.entry(fault).or_default() += 1;
    }
    settled(&fixture).await;
    report(&fixture, &published, &faults).await;
    drop(fleet);
}

/// Waits until nothing is pending.
async fn settled(fixture: &Fixture) {
    let since = Instant::now();
    for worker in [ContextWriter::INFO, RouterLogger::INFO, ConsensusBuilder::INFO] {
        let name = worker.name;
        let consumer = fixture.consumer(worker.stream.expect("a stream"), name).await;
        loop {
            let info = consumer.get_info().await;
            if info.is_ok_and(|info| info.num_pending == 0 && info.num_ack_pending == 0) {
                break;
            }
            assert!(since.elapsed() < RECOVERY, "{name} still has messages after {RECOVERY:?}");
            sleep(Duration::from_millis(500)).await;
        }
    }
}

/// Counts what became of every message, and fails if one is lost or doubled.
async fn report(fixture: &Fixture, published: &Published, faults: &BTreeMap<&str, u32>) {
    // The last answer to a task causes an event of each of several types.
    let mut effects: HashMap<String, HashMap<String, usize>> = HashMap::new();
    let ids: HashSet<String> = published.good.iter().chain(&published.bad).map(Uuid::to_string).collect();
    for line in fixture.lines("concat_ws(' ', request_id, event_type) FROM blackboard_events").await {
        let (id, kind) = line.split_once(' ').expect("an id and a type");
        // A tick of a job causes events of one type for several users.
        if !ids.contains(id) {
            continue;
        }
        *effects.entry(id.to_owned()).or_default().entry(kind.to_owned()).or_default() += 1;
    }
    let (mut dead, mut listed, mut anonymous) = (HashMap::<String, usize>::new(), 0, 0);
    for letter in fixture.messages("DEAD").await {
        if let Some(count) = letter.headers.get(header::DEAD_COUNT) {
            listed += count.as_str().parse::<usize>().expect("a count");
            continue;
        }
        match letter.headers.get(header::DEAD_REQUEST_ID) {
            Some(id) => *dead.entry(id.to_string()).or_default() += 1,
            None => anonymous += 1,
        }
    }
    let good: Vec<String> = published.good.iter().map(Uuid::to_string).collect();
    let lost = good.iter().filter(|id| !effects.contains_key(*id)).count();
    let doubled = effects.values().filter(|kinds| kinds.values().any(|count| *count > 1)).count();
    let buried = good.iter().filter(|id| dead.contains_key(*id)).count();
    let longest = fixture
        .lines(
            "coalesce(max(date_part('epoch', received_at) - ('x' || left(replace(message_id::text, '-', ''), 12))::bit(48)::bigint / 1000.0), 0) FROM inbox
            WHERE user_id > 0",
        )
        .await;
    let closed = fixture
        .lines(
            "concat_ws(' ', sum(total_tasks_delegated), sum(tasks_completed)) FROM multi_agent_conversations",
        )
        .await;
    let told = json!({
        "tasks": published.tasks, "tasks_delegated_and_completed": closed, "published_good": good.len(), "published_bad": published.bad.len(), "effects": effects.len(),
        "dead_letters": dead.len() + anonymous, "listed_in_summaries": listed, "lost": lost, "doubled": doubled,
        "good_ones_dead": buried, "longest_wait_s": longest.first().and_then(|seconds| seconds.parse::<f64>().ok()), "faults": faults,
    });
    writeln!(std::io::stderr(), "chaos: {told}").expect("standard error");
    assert_eq!((lost, doubled, buried), (0, 0, 0), "{told}");
    assert_eq!(closed, [format!("{0} {0}", published.tasks)], "{told}");
    let bad_without_letter = published.bad.iter().filter(|id| !dead.contains_key(&id.to_string())).count();
    assert!(bad_without_letter <= listed, "{bad_without_letter} bad ones have no dead letter; {told}");
}
