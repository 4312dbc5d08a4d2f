//! The proof of an erasure: one person among ten is in every store, and then in none, nor in any file or log of them, whatever happens meanwhile;
//! and the nine others are as they were.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use diesel_async::SimpleAsyncConnection as _;
use privacy::Step;
use testkit::{DEADLINE, Fixture, eventually, logs};
use tokio::process::Child;
use tokio::time::timeout;

use crate::support::erasure::{audit_verifies, file, finish, killed_at, messages_of, privacy};
use crate::support::program::{memfleet, signal};
use crate::support::proof::{PERSON, Ten};
use crate::support::search::{database_log, files_with};

/// The workers that write what is sent meanwhile, each in two replicas.
const WORKERS: [&str; 5] =
    ["context-writer", "router-logger", "vector-indexer", "consensus-builder", "memory-sync"];
const REPLICAS: usize = 2;
/// All log lines of our own.
const EVERYTHING: &str = "debug,context_writer=trace,router_logger=trace,vector_indexer=trace,runtime=trace,store=trace,keys=trace,privacy=trace";

/// A process of the program, and its log.
struct Running {
    process: Child,
    log: PathBuf,
}

impl Running {
    fn start(ten: &Ten, arguments: &[&str], log: PathBuf) -> Self {
        let mut command = memfleet(ten.fixture(), arguments);
        command.env("MEMFLEET_LOG__FILTER", EVERYTHING).env("MEMFLEET_PRIVACY__EVERY_S", "1");
        command.env("MEMFLEET_WORKER__RETRY_FIRST_DELAY_MS", "50");
        command.env("MEMFLEET_WORKER__RETRY_LONGEST_DELAY_MS", "500");
        command.stdout(Stdio::null()).stderr(File::create(&log).expect("a log"));
        Self { process: command.spawn().expect("a process"), log }
    }

    /// Ends it as an operator does. Its log is kept with those that are searched for secrets.
    async fn stop(mut self) {
        signal("TERM", self.process.id().expect("it runs"));
        let ended = timeout(DEADLINE, self.process.wait()).await.expect("it ends in time");
        logs::keep_file("proof", &self.log);
        assert!(ended.expect("a status").success(), "{}", self.log.display());
    }
}

/// The replicas of all workers.
fn replicas(ten: &Ten, logs: &Path) -> Vec<Running> {
    let all = WORKERS.iter().flat_map(|worker| (0..REPLICAS).map(move |number| (*worker, number)));
    all.map(|(worker, number)| {
        Running::start(ten, &["run", worker], logs.join(format!("{worker}-{number}.log")))
    })
    .collect()
}

/// Waits until the person is erased. A try that has to wait, such as for a seal, is repeated at once.
async fn erased(fixture: &Fixture) {
    let again = format!(
        "UPDATE privacy_requests SET retry_at = NULL WHERE user_id = {PERSON} AND retry_at IS NOT NULL"
    );
    eventually("the person is erased", async || {
        fixture.execute(&again).await;
        (fixture.count("sec.erased_users WHERE receipt IS NOT NULL").await == 1).then_some(())
    })
    .await;
}

/// What services sent without knowing of the erasure goes, too.
async fn purged(fixture: &Fixture) {
    eventually("late messages are deleted", async || {
        let ran = privacy(fixture, &["run"]).await;
        assert!(ran.is_success(), "{}", ran.all());
        messages_of(fixture, PERSON).await.is_empty().then_some(())
    })
    .await;
}

/// The person is nowhere, the others are as they were, and there is one receipt that verifies.
async fn assert_proof(ten: &Ten, id: &str, others: &[String]) {
    ten.assert_nowhere().await;
    let after = ten.of_others().await;
    let changed = others.iter().zip(&after).find(|(before, after)| before != after);
    assert_eq!(changed, None, "nothing of others is changed");
    assert_eq!(after.len(), others.len(), "nothing of others is gone or new");
    audit_verifies(ten.fixture()).await;
    assert_eq!(ten.fixture().count("sec.erased_users").await, 1);
    assert_eq!(ten.fixture().count("sec.fenced_users").await, 0);
    let receipt = ten.receipts.path().join(format!("{id}.json"));
    let verified = privacy(ten.fixture(), &["verify", receipt.to_str().expect("a path")]).await;
    assert!(verified.is_success(), "{}", verified.all());
}

/// No process and no server has written anything of the person into its log. Those of the broker and of the vector store are in their folders,
/// which are searched, too.
async fn assert_logs(ten: &Ten, folder: &Path, id: &str) {
    let canary = ten.canary(PERSON);
    let with_request = files_with(folder, id.as_bytes());
    assert!(!with_request.is_empty(), "who erases logs what it does");
    assert!(files_with(folder, b"INFO").len() >= WORKERS.len() * REPLICAS, "each worker logs something");
    assert_eq!(files_with(folder, canary.as_bytes()), Vec::<PathBuf>::new());
    let server = database_log(&ten.fixture().settings.postgres.url).await;
    let server = String::from_utf8_lossy(&std::fs::read(server).expect("a log")).into_owned();
    assert!(server.contains("database system is ready"), "it is the log of the server");
    let lines: Vec<&str> = server.lines().filter(|line| line.contains(&canary)).collect();
    assert_eq!(lines, Vec::<&str>::new());
}

/// With two replicas of each worker and two processes that erase, while services send for that very person.
#[tokio::test(flavor = "multi_thread")]
async fn one_of_ten_is_in_every_store_and_then_in_none_though_messages_of_the_person_go_on() {
    let ten = Ten::new().await;
    let (fixture, logs) = (ten.fixture(), tempfile::tempdir().expect("a folder"));
    ten.assert_everywhere().await;
    let others = ten.of_others().await;
    let mut running = replicas(&ten, logs.path());
    ten.send(20).await;
    ten.drained().await;
    for number in 0..REPLICAS {
        let log = logs.path().join(format!("privacy-{number}.log"));
        running.push(Running::start(&ten, &["privacy", "run", "--follow"], log));
    }
    let id = file(fixture, PERSON).await;
    tokio::select! {
        () = erased(fixture) => {}
        never = ten.load() => match never {},
    }
    // One more, for a person who is erased.
    ten.send(3).await;
    ten.drained().await;
    for process in running {
        process.stop().await;
    }
    purged(fixture).await;
    assert_proof(&ten, &id, &others).await;
    assert_logs(&ten, logs.path(), &id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_person_is_left_after_a_kill_at_every_step() {
    let ten = Ten::new().await;
    ten.assert_everywhere().await;
    let others = ten.of_others().await;
    let id = file(ten.fixture(), PERSON).await;
    for step in Step::ALL {
        killed_at(ten.fixture(), &format!("erase.{step}.done:1")).await;
    }
    finish(ten.fixture(), &id).await;
    assert_proof(&ten, &id, &others).await;
}

/// Runs the process until it has stopped at a step, because a store is unreachable.
async fn stopped_at(fixture: &Fixture, step: &str) {
    let stopped =
        format!("privacy_requests WHERE user_id = {PERSON} AND step = '{step}' AND last_error IS NOT NULL");
    eventually("it stops at the step", async || {
        let again = format!(
            "UPDATE privacy_requests SET retry_at = NULL WHERE user_id = {PERSON} AND retry_at IS NOT NULL"
        );
        fixture.execute(&again).await;
        let ran = privacy(fixture, &["run"]).await;
        assert!(!ran.err.contains("panicked"), "{}", ran.err);
        (fixture.count(&stopped).await == 1).then_some(())
    })
    .await;
}

/// Has the server refuse all connections to the key store and end those that are open, or allow them again.
async fn allow_key_store(fixture: &Fixture, is_allowed: bool) {
    let name = fixture.settings.keys.url.rsplit_once('/').expect("a database").1;
    let end = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
    let mut server = fixture.connection().await;
    let allow = format!("ALTER DATABASE {name} ALLOW_CONNECTIONS {is_allowed}");
    server.batch_execute(&allow).await.expect("a change");
    server.batch_execute(&end).await.expect("no connections");
}

/// They go away when the rows are deleted and nothing else is, and come back one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_person_is_left_after_all_stores_were_away_in_the_middle() {
    let mut ten = Ten::new().await;
    ten.assert_everywhere().await;
    let others = ten.of_others().await;
    let id = file(ten.fixture(), PERSON).await;
    killed_at(ten.fixture(), "erase.rows.after:1").await;
    ten.memories.fixture.nats.kill().await;
    ten.memories.qdrant.kill().await;
    allow_key_store(ten.fixture(), false).await;

    stopped_at(ten.fixture(), "streams").await;
    ten.memories.fixture.nats.resume().await.expect("the broker comes back");
    stopped_at(ten.fixture(), "vectors").await;
    ten.memories.qdrant.resume().await.expect("the vector store comes back");
    stopped_at(ten.fixture(), "keys").await;
    allow_key_store(ten.fixture(), true).await;
    finish(ten.fixture(), &id).await;

    let connected = async || ten.fixture().jetstream.get_stream("DEAD").await.ok();
    eventually("the test is connected again", connected).await;
    assert_proof(&ten, &id, &others).await;
}
