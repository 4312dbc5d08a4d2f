//! A primary that dies with acknowledged effects that its asynchronous standby does not have.

use std::collections::HashSet;
use std::time::Duration;

use context_writer::ContextWriter;
use contract::Event;
use router_logger::RouterLogger;
use serde_json::{Value, json};
use stack::{Postgres, PostgresOptions, Programs};
use testkit::{Fixture, RequestMessage, context, eventually, lines_on, request, session, user};
use uuid::Uuid;

use crate::support::program::{Ended, memfleet, output};

const LOST: usize = 40;

/// A primary, its standby, and a broker with streams. Workers connect to the one that accepts writes.
struct Pair {
    fixture: Fixture,
    primary: Postgres,
    standby: Postgres,
    _folders: [tempfile::TempDir; 2],
}

impl Pair {
    async fn start() -> Self {
        let programs = Programs::find().unwrap();
        let folders = [stack_folder(), stack_folder()];
        let settings = vec![("shared_buffers".to_owned(), "32MB".to_owned())];
        let options = || PostgresOptions { fsync: false, settings: settings.clone(), ..Default::default() };
        let primary = Postgres::start(&programs, folders[0].path(), options()).await.unwrap();
        let database = testkit::create_database_on(&primary.url("postgres")).await.unwrap();
        let standby = primary.start_standby(&programs, folders[1].path(), options()).await.unwrap();
        let mut fixture = Fixture::secured().await;
        let hosts = |url: &str| {
            let both = format!("127.0.0.1:{},127.0.0.1:{}", primary.port(), standby.port());
            let url = url.replace(&format!("127.0.0.1:{}", primary.port()), &both);
            format!("{url}?target_session_attrs=read-write")
        };
        fixture.settings.postgres.worker_url = Some(hosts(&testkit::worker_url(&database)));
        fixture.settings.postgres.url = hosts(&database);
        Self { fixture, primary, standby, _folders: folders }
    }

    /// The URL of the database on the standby alone.
    fn standby_url(&self) -> String {
        let url = self.fixture.settings.postgres.url.split('?').next().unwrap().to_owned();
        url.replace(&format!("127.0.0.1:{},", self.primary.port()), "")
    }

    async fn standby_lines(&self, select: &str) -> Vec<String> {
        lines_on(&mut store::connect(&self.standby_url()).await.unwrap(), select).await
    }

    /// Waits until the standby has everything, and cuts it off from the primary.
    async fn cut_off(&self) {
        let written = self.fixture.lines("pg_current_wal_lsn() FROM (SELECT 1) AS one").await.remove(0);
        let is_there = format!("pg_last_wal_replay_lsn() >= '{written}'::pg_lsn FROM (SELECT 1) AS one");
        eventually("the standby has everything", async || {
            (self.standby_lines(&is_there).await == ["true"]).then_some(())
        })
        .await;
        let mut standby = store::connect(&self.standby.url("postgres")).await.unwrap();
        use diesel_async::SimpleAsyncConnection as _;
        for statement in ["ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()"] {
            standby.batch_execute(statement).await.unwrap();
        }
        eventually("the standby receives nothing", async || {
            (self.standby_lines("count(*) FROM pg_stat_wal_receiver").await == ["0"]).then_some(())
        })
        .await;
    }

    /// Kills the primary and makes the standby the primary.
    async fn fail_over(&mut self) {
        self.primary.kill().await;
        let promoted = self.standby_lines("pg_promote() FROM (SELECT 1) AS one").await;
        assert_eq!(promoted, ["true"]);
    }

    async fn recover(&self, arguments: &[&str]) -> Ended {
        output(memfleet(&self.fixture, &[&["recover"], arguments].concat())).await.into()
    }

    async fn recovered(&self, arguments: &[&str]) -> Value {
        let ended = self.recover(&[arguments, &["--json"]].concat()).await;
        assert!(ended.is_success(), "{}", ended.all());
        serde_json::from_str(&ended.out).unwrap()
    }
}

/// A folder that PostgreSQL can reach under root too.
fn stack_folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn decision(user: i32) -> RequestMessage {
    request(
        "decision.log",
        user,
        json!({ "decision_id": Uuid::now_v7(), "session_id": "s", "user_request": "q", "routing_decision": "direct" }),
    )
}

/// Of a list of a plan or a report: the field of the worker.
fn of(list: &Value, worker: &str, field: &str) -> Value {
    let one = list.as_array().unwrap().iter().find(|one| one["worker"] == worker).unwrap();
    one[field].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_to_a_standby_that_is_behind_loses_nothing_after_a_recovery() {
    let mut pair = Pair::start().await;
    let (writer, logger) = (pair.fixture.run(ContextWriter), pair.fixture.run(RouterLogger));
    let kept = (0..20).map(|n| context(1, "s", &format!("kept{n}"), 1));
    pair.fixture.publish([user(1), user(2), session(1, "s")].into_iter().chain(kept)).await;
    pair.fixture.drained::<ContextWriter>().await;
    pair.fixture.publish([decision(1)]).await;
    pair.fixture.drained::<RouterLogger>().await;

    pair.cut_off().await;
    // Acknowledged, and published as events; one of them is a dead letter, which is not lost.
    let invalid = request("session.open", 1, json!({ "session_id": "x" }));
    let mut lost: Vec<RequestMessage> = vec![invalid, session(2, "s")];
    lost.extend((0..LOST).map(|n| context(1 + (n % 2) as i32, "s", &format!("lost{n}"), 1)));
    // Two requests that say the same are two effects.
    lost.extend((0..2).map(|_| request("summary.put", 1, json!({ "session_id": "s", "summary": "x" }))));
    let decisions: Vec<RequestMessage> = (0..10).map(|_| decision(1)).collect();
    pair.fixture.publish(lost.clone()).await;
    pair.fixture.drained::<ContextWriter>().await;
    pair.fixture.publish(decisions.clone()).await;
    pair.fixture.drained::<RouterLogger>().await;
    let applied = lost.len() - 1;
    let (events, inbox) = (pair.fixture.count("blackboard_events").await, pair.fixture.count("inbox").await);
    let published_before = events_of(&pair.fixture).await;
    let greatest = published_before.iter().map(|event| event.event_sequence).max().unwrap();

    let standby = pair.standby_url();
    let mut command = memfleet(&pair.fixture, &["recover", "--after-restore"]);
    command.env("MEMFLEET_POSTGRES__URL", &standby);
    let refused: Ended = output(command).await.into();
    assert!(refused.code == Some(1) && refused.err.contains("is a standby"), "{}", refused.all());

    pair.fail_over().await;
    assert_eq!(pair.fixture.count("simple_chat_context").await, 20, "effects have vanished");
    assert_eq!(pair.fixture.count("inbox").await, inbox - (applied + decisions.len()) as i64);

    // The plan changes nothing.
    let plan = pair.recovered(&["--after-restore"]).await;
    let requests = &plan["requests"];
    assert_eq!(of(requests, "context-writer", "missing"), applied);
    assert_eq!(of(requests, "context-writer", "dead_letters"), 1);
    assert_eq!(of(requests, "context-writer", "in_database"), 23);
    assert_eq!(of(requests, "router-logger", "missing"), decisions.len());
    assert_eq!(of(requests, "vector-indexer", "missing"), 0);
    assert_eq!(plan["vanished"]["count"], applied + decisions.len());
    let text = pair.recover(&["--after-restore"]).await;
    assert!(
        text.out.contains("--yes resets the consumer context-writer to message 25 of CONTEXT"),
        "{}",
        text.out
    );
    let consumer = pair.fixture.consumer("CONTEXT", "context-writer").await;
    assert_eq!(consumer.get_info().await.unwrap().num_pending, 0);
    assert_eq!(pair.fixture.count("simple_chat_context").await, 20);

    let report = pair.recovered(&["--after-restore", "--yes"]).await;
    let workers = &report["workers"];
    assert_eq!(of(workers, "context-writer", "applied_again"), applied, "{report}");
    assert_eq!(of(workers, "context-writer", "dead_lettered"), 0, "{report}");
    assert_eq!(of(workers, "router-logger", "applied_again"), decisions.len(), "{report}");
    assert_eq!(of(workers, "vector-indexer", "reset_to"), Value::Null);

    // Everything is there, once.
    assert_eq!(pair.fixture.count("simple_chat_context").await, 20 + LOST as i64);
    assert_eq!(pair.fixture.count("router_decision_log").await, 11);
    assert_eq!(pair.fixture.count("inbox").await, inbox);
    assert_eq!(pair.fixture.count("blackboard_events").await, events);
    let ids: Vec<String> = lost[1..].iter().chain(&decisions).map(|request| request.id.to_string()).collect();
    let there = format!("inbox WHERE message_id IN ('{}')", ids.join("', '"));
    assert_eq!(pair.fixture.count(&there).await, ids.len() as i64);

    // Every vanished event has one that replaces it, of a request that was lost, under a number that none had.
    let listed = report["vanished"]["events"].as_array().unwrap();
    assert_eq!(listed.len(), ids.len());
    let names: HashSet<&str> = listed.iter().map(|one| one["event_id"].as_str().unwrap()).collect();
    let was_published: HashSet<String> =
        published_before.iter().map(|event| event.event_id.to_string()).collect();
    assert!(names.iter().all(|id| was_published.contains(*id)));
    let replacements: HashSet<&str> = listed.iter().map(|one| one["replaced_by"].as_str().unwrap()).collect();
    assert_eq!(replacements.len(), ids.len());
    let requests: HashSet<String> =
        listed.iter().map(|one| one["request_id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(requests, ids.into_iter().collect());
    let numbers: Vec<i64> = events_of(&pair.fixture)
        .await
        .iter()
        .filter(|event| replacements.contains(event.event_id.to_string().as_str()))
        .map(|event| event.event_sequence)
        .collect();
    assert!(numbers.len() >= replacements.len() && numbers.iter().all(|number| *number > greatest));

    // Once more there is nothing to do.
    let again = pair.recovered(&["--after-restore", "--yes"]).await;
    assert!(again["workers"].as_array().unwrap().iter().all(|one| one["reset_to"].is_null()), "{again}");
    writer.stop().await.expect("a clean end");
    logger.stop().await.expect("a clean end");
}

async fn events_of(fixture: &Fixture) -> Vec<Event> {
    let messages = fixture.messages("EVENTS").await;
    messages.iter().map(|message| serde_json::from_slice(&message.payload).expect("an event")).collect()
}

/// Requests that the inbox may have forgotten are not delivered again: they would take effect twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_does_not_go_back_further_than_the_inbox() {
    let fixture = Fixture::new().await;
    let began = chrono::Utc::now();
    fixture.process(ContextWriter, [user(1), session(1, "s")]).await;
    // Some time passes, and what is older is forgotten.
    fixture.execute("UPDATE inbox SET received_at = received_at - interval '1 hour'").await;
    fixture.process(ContextWriter, [user(2)]).await;
    let mut connection = fixture.connection().await;
    let forgotten = store::inbox::forget_before(
        &mut connection,
        "context-writer",
        began - chrono::Duration::minutes(1),
        100,
    );
    assert_eq!(forgotten.await.unwrap(), 2);
    fixture.process(ContextWriter, [context(1, "s", "kept", 1), context(1, "s", "lost", 1)]).await;
    let lost = "DELETE FROM inbox USING simple_chat_context c WHERE message_id = c.request_id AND context_key = 'lost';
        DELETE FROM simple_chat_context WHERE context_key = 'lost'";
    fixture.execute(lost).await;

    let recover = async |arguments: &[&str]| -> Ended {
        output(memfleet(&fixture, &[&["recover"], arguments].concat())).await.into()
    };
    let early = began.to_rfc3339();
    let refused = recover(&["--since", &early, "--yes"]).await;
    let expected = "is earlier than what the inbox of context-writer remembers: 2 requests";
    assert!(refused.code == Some(1) && refused.err.contains(expected), "{}", refused.all());
    let future = recover(&["--since", "2999-01-01T00:00:00Z"]).await;
    assert!(future.code == Some(1) && future.err.contains("in the future"), "{}", future.all());
    assert_eq!(recover(&["--yes"]).await.code, Some(2), "one of both is required");

    // Nobody works: the time to wait ends, and the command says so.
    let unfinished = recover(&["--after-restore", "--yes", "--wait", "1"]).await;
    assert!(unfinished.code == Some(1), "{}", unfinished.all());
    assert!(unfinished.err.contains("still missing: 1 of context-writer"), "{}", unfinished.all());
    let worker = fixture.run(ContextWriter);
    fixture.drained::<ContextWriter>().await;
    let done = recover(&["--after-restore", "--yes"]).await;
    assert!(done.is_success(), "{}", done.all());
    assert!(
        done.out.contains("2 requests of context-writer are older than everything in its inbox"),
        "{}",
        done.out
    );
    assert_eq!(worker.stats.report().applied, 1);
    assert_eq!(fixture.count("simple_chat_context").await, 2);
    worker.stop().await.expect("a clean end");
}

/// A host that accepts connections and answers nothing costs its share of the time, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_host_does_not_keep_a_worker_from_the_other_one() {
    let fixture = Fixture::new().await;
    let frozen = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = frozen.local_addr().unwrap();
    let url = fixture.settings.postgres.url.replace("@127.0.0.1:", &format!("@{address},127.0.0.1:"));
    let options = store::PoolOptions {
        name: "test",
        size: 1,
        acquire_timeout: Duration::from_secs(4),
        statement_timeout: Duration::from_secs(10),
        lock_timeout: Duration::ZERO,
    };
    let pool = store::open_pool(&format!("{url}?target_session_attrs=read-write"), &options).unwrap();
    let connection = store::acquire(&pool).await;
    assert!(connection.is_ok(), "{:?}", connection.err());
}

/// Many messages may share one dead letter, which lists them.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_a_dead_letter_lists_is_not_missing() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1), session(1, "s"), context(1, "s", "k", 1)]).await;
    fixture.execute("DELETE FROM inbox USING simple_chat_context c WHERE message_id = c.request_id").await;
    let plan = async || {
        let ended: Ended = output(memfleet(&fixture, &["recover", "--after-restore", "--json"])).await.into();
        assert!(ended.is_success(), "{}", ended.all());
        let plan: Value = serde_json::from_str(&ended.out).unwrap();
        let field = |name: &str| of(&plan["requests"], "context-writer", name).as_u64().unwrap();
        (field("missing"), field("dead_letters"))
    };
    assert_eq!(plan().await, (1, 0));
    let subject = contract::DeadLetterSubject { worker: "context-writer", user_id: None }.to_string();
    let listed =
        contract::DeadLetterSummary { service: None, stream: "CONTEXT".to_owned(), ranges: vec![(3, 3)] };
    let mut headers = async_nats::HeaderMap::new();
    headers.insert(contract::header::DEAD_COUNT, "1");
    headers.insert(contract::header::DEAD_SOURCE, "CONTEXT/3");
    let body = serde_json::to_vec(&listed).unwrap().into();
    let sent = fixture.jetstream.publish_with_headers(subject, headers, body).await.unwrap();
    sent.await.unwrap();
    assert_eq!(plan().await, (0, 1));
}
