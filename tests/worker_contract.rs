//! The contract of a worker: several events of one message, verdicts, and ticks.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use context_writer::ContextWriter;
use contract::{
    CONTEXT_WRITER, ContextRequest, Event, EventType, Malformed, Performative, Redacted, RequestFacts,
    RequestSubject, Tick, UserId, WorkerInfo,
};
use diesel::QueryableByName;
use diesel::sql_types::Integer;
use keys::DataKeys;
use runtime::{EventDraft, Message, Retry, Verdict, WorkItem, Worker};
use serde_json::{Value, json};
use store::{Connection, Fault};
use testkit::{Fixture, context, eventually, session, set_duplicate_window, user};
use tokio::sync::Semaphore;
use topology::Topology;

/// context-writer, whose contexts cause more events than one.
struct Chatty {
    /// How many events a context causes.
    events: usize,
    /// Whose the further ones are; the message's user if there is none.
    user: Option<UserId>,
}

impl Worker for Chatty {
    const INFO: &'static WorkerInfo = &CONTEXT_WRITER;
    const ENCRYPTS: bool = true;
    type Item = ContextRequest;

    async fn write<'a>(
        &'a self,
        connection: &'a mut Connection,
        batch: &'a [&'a Message<ContextRequest>],
        keys: &'a DataKeys,
    ) -> Result<Vec<Verdict>, Fault> {
        let mut verdicts = Worker::write(&ContextWriter, connection, batch, keys).await?;
        for (message, verdict) in batch.iter().zip(&mut verdicts) {
            if let (ContextRequest::ContextPut(put), Verdict::Applied(drafts)) = (&message.request, verdict) {
                drafts.extend((1..self.events).map(|number| EventDraft {
                    user_id: self.user.unwrap_or(message.user_id()),
                    event_type: EventType::ContextRemoved,
                    performative: Performative::Propose,
                    source_agent_id: Some("chatty".to_owned()),
                    target_agent_id: None,
                    session_id: Cow::Owned(if number % 2 == 0 {
                        "other".to_owned()
                    } else {
                        put.session_id.to_string()
                    }),
                    payload: Some(json!({ "number": number }).to_string()),
                }));
            }
        }
        Ok(verdicts)
    }
}

/// The events of the stream as they were published, repeats included: their ids, types and payloads' numbers.
async fn published(fixture: &Fixture) -> Vec<(String, EventType, Option<Value>)> {
    let messages = fixture.messages("EVENTS").await;
    let events =
        messages.iter().map(|message| serde_json::from_slice::<Event>(&message.payload).expect("an event"));
    events
        .map(|event| {
            let payload: Value = serde_json::from_str(event.payload.as_str()).expect("JSON");
            (event.event_id.to_string(), event.event_type, payload.get("number").cloned())
        })
        .collect()
}

/// The broker takes messages again that it has stored, and events.
async fn forgetful() -> Fixture {
    Fixture::with_topology(|topology| {
        for stream in ["CONTEXT", "EVENTS"] {
            set_duplicate_window(topology, stream, Duration::from_millis(100));
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_causes_several_events_and_a_redelivery_publishes_all_of_them_again() {
    let fixture = forgetful().await;
    let worker = fixture.run(Chatty { events: 5, user: None });
    let put = context(1, "s", "k", 1);
    fixture.publish([user(1), session(1, "s"), put.clone()]).await;
    fixture.drained::<ContextWriter>().await;

    let first: Vec<_> = published(&fixture).await.split_off(2);
    let numbers: Vec<Option<Value>> = first.iter().map(|(_, _, number)| number.clone()).collect();
    assert_eq!(
        numbers,
        [None, Some(json!(1)), Some(json!(2)), Some(json!(3)), Some(json!(4))],
        "in their order"
    );
    assert_eq!(first[0].1, EventType::ContextStored);
    // Their numbers grow in their order, and the inbox knows how many they are.
    let rows = fixture.lines("id FROM blackboard_events ORDER BY event_sequence OFFSET 2").await;
    assert_eq!(rows, first.iter().map(|(id, ..)| id.clone()).collect::<Vec<_>>());
    let counted = format!("concat_ws(' ', event_id, event_count) FROM inbox WHERE message_id = '{}'", put.id);
    assert_eq!(fixture.lines(&counted).await, [format!("{} 5", first[0].0)]);
    assert_eq!(fixture.lines("logical_time FROM session_clocks WHERE session_id = 's'").await, ["4"]);

    let already = fixture.stored("EVENTS").await;
    // The broker refuses an event that it has stored a moment ago.
    let again = eventually("all events are published again", async || {
        fixture.publish([put.clone()]).await;
        fixture.drained::<ContextWriter>().await;
        let again = published(&fixture).await.split_off(usize::try_from(already).expect("a number"));
        first.iter().all(|event| again.contains(event)).then_some(again)
    })
    .await;
    assert!(again.iter().all(|event| first.contains(event)), "{again:?}");
    assert_eq!(fixture.count("blackboard_events").await, 7);
    assert_eq!(worker.stats.report().applied, 3);
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_without_events_is_applied_and_one_with_too_many_is_dead_lettered_alone() {
    let fixture = forgetful().await;
    let worker = fixture.run(Chatty { events: 1_001, user: None });
    let neighbours = [session(1, "t"), session(1, "u")];
    fixture.publish([user(1), session(1, "s"), context(1, "s", "k", 1)].into_iter().chain(neighbours)).await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(
        fixture.dead_letters().await,
        ["permanent: the message would cause 1001 events, more than 1000"]
    );
    assert_eq!(fixture.count("chat_mode_sessions").await, 3);
    assert_eq!(fixture.count("simple_chat_context").await, 0, "its effect is rolled back");
    worker.stop().await.expect("a clean end");

    let most = fixture.run(Chatty { events: 1_000, user: None });
    let put = context(1, "s", "l", 1);
    fixture.publish([put.clone()]).await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.count("blackboard_events WHERE session_id IN ('s', 'other')").await, 1_001);
    assert_eq!(
        fixture.lines(&format!("event_count FROM inbox WHERE message_id = '{}'", put.id)).await,
        ["1000"]
    );
    most.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_a_request_is_of_its_user_also_beside_messages_of_others() {
    let fixture = Fixture::new().await;
    let neighbour = UserId::new(2).expect("a user");
    let worker = fixture.run(Chatty { events: 2, user: Some(neighbour) });
    fixture.publish([user(1), user(2), session(1, "s"), session(2, "s"), context(1, "s", "k", 1)]).await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(
        fixture.dead_letters().await,
        ["permanent: an event of a request must be of the request's user"]
    );
    assert_eq!(fixture.count("blackboard_events WHERE event_type = 'context.removed'").await, 0);
    worker.stop().await.expect("a clean end");
}

/// context-writer, which takes no context before a time, and gives up at a deadline.
struct Waiting {
    time: DateTime<Utc>,
    deadline: DateTime<Utc>,
    tries: AtomicU32,
}

impl Worker for Waiting {
    const INFO: &'static WorkerInfo = &CONTEXT_WRITER;
    const ENCRYPTS: bool = true;
    type Item = ContextRequest;

    async fn write<'a>(
        &'a self,
        connection: &'a mut Connection,
        batch: &'a [&'a Message<ContextRequest>],
        keys: &'a DataKeys,
    ) -> Result<Vec<Verdict>, Fault> {
        let waits = |message: &Message<ContextRequest>| {
            matches!(message.request, ContextRequest::ContextPut(_)) && Utc::now() < self.time
        };
        let open: Vec<_> = batch.iter().copied().filter(|message| !waits(message)).collect();
        let mut written = Worker::write(&ContextWriter, connection, &open, keys).await?.into_iter();
        let verdict = |message: &&Message<ContextRequest>| {
            if open.iter().any(|one| std::ptr::eq(*one, *message)) {
                return written.next();
            }
            self.tries.fetch_add(1, Ordering::Relaxed);
            let retry = Retry::NotBefore { time: self.time, deadline: self.deadline };
            Some(Verdict::Retry(retry, "it is too early".to_owned().into()))
        };
        Ok(batch.iter().filter_map(verdict).collect())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_not_before_a_time_spends_no_try_of_the_budget() {
    let fixture = Fixture::new().await;
    let mut settings = fixture.settings.clone();
    // A single spent try would be the last one.
    settings.worker.retry_attempts = 1;
    let (time, deadline) = (Utc::now() + Duration::from_millis(700), Utc::now() + Duration::from_secs(3_600));
    let worker = fixture.run_with(Waiting { time, deadline, tries: AtomicU32::new(0) }, settings);
    fixture.publish([user(1), session(1, "s"), context(1, "s", "k", 1)]).await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(fixture.count("simple_chat_context").await, 1);
    let applied = fixture.lines("received_at >= now() - interval '1 hour' FROM inbox").await;
    assert_eq!(applied.len(), 3);
    assert!(Utc::now() >= time, "it was delivered again too early");
    let report = worker.stats.report();
    assert_eq!(report.retried, 0, "{report:?}");
    assert!(report.delayed >= 1, "{report:?}");
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_its_deadline_is_dead_lettered() {
    let fixture = Fixture::new().await;
    let (time, deadline) = (Utc::now() + Duration::from_secs(3_600), Utc::now() + Duration::from_millis(400));
    let worker = fixture.run(Waiting { time, deadline, tries: AtomicU32::new(0) });
    fixture.publish([user(1), session(1, "s"), context(1, "s", "k", 1)]).await;
    fixture.drained::<ContextWriter>().await;
    assert_eq!(fixture.dead_letters().await, ["missing-prerequisite: it is too early"]);
    assert!(Utc::now() >= deadline, "it was given up too early");
    assert_eq!(fixture.count("inbox").await, 2, "it leaves no trace");
    worker.stop().await.expect("a clean end");
}

/// A worker with a job and without requests.
struct Cleaner;

const CLEANER: WorkerInfo = WorkerInfo {
    name: "gpu-allocator",
    stream: None,
    stream_bytes: 0,
    job_events: &[EventType::ContextRemoved],
    depends_on: &[],
    description: "Expires contexts",
    jobs: &["expire-contexts"],
};

/// What it takes in.
struct Sweep {
    job: String,
}

impl WorkItem for Sweep {
    fn from_request(_: &RequestSubject, _: &[u8]) -> Result<Redacted<Self>, Malformed> {
        Err(Malformed::new("subject", "there are no requests"))
    }

    fn from_tick(tick: &Tick) -> Result<Self, Malformed> {
        Ok(Self { job: tick.job.to_string() })
    }

    fn facts(&self) -> Option<&dyn RequestFacts> {
        None
    }

    fn event(&self, _: bool) -> Option<(EventType, Option<String>)> {
        None
    }
}

impl Worker for Cleaner {
    const INFO: &'static WorkerInfo = &CLEANER;
    type Item = Sweep;

    async fn write<'a>(
        &'a self,
        connection: &'a mut Connection,
        batch: &'a [&'a Message<Sweep>],
        _: &'a DataKeys,
    ) -> Result<Vec<Verdict>, Fault> {
        // No condition on users: row-level security shows those alone that the tick acts for.
        const EXPIRE: &str = "UPDATE simple_chat_context SET priority = priority + 1 RETURNING user_id";
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Integer)]
            user_id: i32,
        }
        use diesel_async::RunQueryDsl as _;
        assert_eq!(batch.len(), 1, "a tick is a batch of its own");
        assert_eq!(batch[0].request.job, "expire-contexts");
        assert_eq!((batch[0].user_id(), batch[0].publisher()), (UserId::PLATFORM, "job:expire-contexts"));
        let rows: Vec<Row> = diesel::sql_query(EXPIRE).load(connection).await?;
        assert!(!rows.is_empty(), "it is called without work");
        let drafts = rows.into_iter().map(|row| EventDraft {
            user_id: UserId::new(row.user_id).expect("a user"),
            event_type: EventType::ContextRemoved,
            performative: Performative::Inform,
            source_agent_id: None,
            target_agent_id: None,
            session_id: Cow::Borrowed("s"),
            payload: None,
        });
        Ok(vec![Verdict::Applied(drafts.collect())])
    }
}

/// Four users, two of whom have work for the job, and the streams of its worker.
async fn with_job() -> Fixture {
    let fixture = Fixture::new().await;
    fixture
        .execute(
            "INSERT INTO users (id, username, email) SELECT n, 'u', 'e' FROM generate_series(1, 4) AS n;
             INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode)
                 SELECT gen_random_uuid(), n, 's', 'simple' FROM generate_series(1, 4) AS n;
             INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value, priority, expires_at)
                 SELECT gen_random_uuid(), n, 's', 'k', '1', 1, now() + CASE WHEN n <= 2 THEN '-1 hour' ELSE '1 hour' END::interval
                 FROM generate_series(1, 4) AS n;
             CREATE FUNCTION sec.due_test(integer) RETURNS SETOF integer LANGUAGE sql STABLE SECURITY DEFINER
                 SET search_path = pg_catalog, pg_temp AS $due$
                 SELECT DISTINCT user_id FROM public.simple_chat_context WHERE expires_at < now() AND priority < 2 ORDER BY 1 LIMIT $1 $due$;
             GRANT SELECT (user_id, expires_at, priority) ON simple_chat_context TO memfleet_due;
             SELECT sec.grant_worker('w_gpu_allocator', '{\"simple_chat_context\": [\"SELECT\", \"UPDATE\"]}');
             INSERT INTO sec.event_writers (role_name, event_type) VALUES ('w_gpu_allocator', 'context.removed');
             SELECT sec.add_job('expire-contexts', 'w_gpu_allocator', 'sec.due_test(integer)')",
        )
        .await;
    let topology = Topology::of(&[CLEANER]).expect("streams");
    topology::apply(&fixture.jetstream, &topology).await.expect("the streams of the worker");
    fixture
}

/// Waits until every tick in the stream is acknowledged.
async fn ticked(fixture: &Fixture, ticks: u64) {
    let consumer = fixture.consumer("JOBS", "gpu-allocator-jobs").await;
    eventually("the ticks are acknowledged", async || {
        let info = consumer.get_info().await.ok()?;
        (info.delivered.consumer_sequence >= ticks && info.num_pending == 0 && info.num_ack_pending == 0)
            .then_some(())
    })
    .await;
}

/// Has the server publish a tick. It accepts none from a client.
async fn tick(fixture: &Fixture) {
    let mut headers = async_nats::HeaderMap::new();
    let time = (Utc::now() + Duration::from_millis(100)).to_rfc3339_opts(SecondsFormat::Millis, true);
    headers.insert("Nats-Schedule", format!("@at {time}"));
    headers.insert("Nats-Schedule-Target", "memory.job.expire-contexts");
    let sent =
        fixture.jetstream.publish_with_headers("memory.schedule.expire-contexts", headers, "".into()).await;
    sent.expect("a publish").await.expect("a stored schedule");
}

/// Has the server deliver all ticks once more.
async fn deliver_again(fixture: &Fixture) {
    let stream = fixture.jetstream.get_stream("JOBS").await.expect("the stream");
    stream.delete_consumer("gpu-allocator-jobs").await.expect("a consumer");
    let topology = Topology::of(&[CLEANER]).expect("streams");
    let consumers = Topology { streams: Vec::new(), ..topology };
    topology::apply(&fixture.jetstream, &consumers).await.expect("a new consumer");
}

const RUNS: &str =
    "concat_ws(' ', job, tries, examined, changed, skipped, failure) FROM job_runs ORDER BY finished_at";

const TOUCHED: &str = "concat_ws(' ', user_id, priority) FROM simple_chat_context ORDER BY user_id";

#[tokio::test(flavor = "multi_thread")]
async fn a_tick_acts_for_the_users_whose_work_is_due_once_however_often_it_is_delivered() {
    let fixture = with_job().await;
    let worker = fixture.run(Cleaner);
    tick(&fixture).await;
    ticked(&fixture, 1).await;
    assert_eq!(fixture.lines(TOUCHED).await, ["1 2", "2 2", "3 1", "4 1"]);
    let events = fixture
        .lines("concat_ws(' ', user_id, event_type, source_agent_id, event_payload) FROM blackboard_events ORDER BY user_id")
        .await;
    assert_eq!(
        events,
        ["1 context.removed job:expire-contexts {}", "2 context.removed job:expire-contexts {}"]
    );
    assert_eq!(fixture.stored("EVENTS").await, 2);
    let inbox = fixture.lines("concat_ws(' ', worker, user_id, event_count) FROM inbox").await;
    assert_eq!(inbox, ["gpu-allocator-jobs 0 2"]);
    let trail = "concat_ws(' ', access_type, object_name, service) FROM audit.data_access_log ORDER BY 1";
    assert_eq!(fixture.lines(trail).await, ["job-grant expire-contexts job:expire-contexts"; 3]);

    worker.stop().await.expect("a clean end");

    // The same tick again, after its users were made due anew: it had its effect.
    fixture.execute("UPDATE simple_chat_context SET priority = 1").await;
    deliver_again(&fixture).await;
    let worker = fixture.run(Cleaner);
    ticked(&fixture, 1).await;
    assert_eq!(fixture.lines(TOUCHED).await, ["1 1", "2 1", "3 1", "4 1"]);
    // The next one does what is due.
    tick(&fixture).await;
    ticked(&fixture, 2).await;
    assert_eq!(fixture.lines(TOUCHED).await, ["1 2", "2 2", "3 1", "4 1"]);
    // And one without work changes nothing. Of such runs, there is the last.
    tick(&fixture).await;
    ticked(&fixture, 3).await;
    let report = worker.stats.report();
    assert_eq!((report.applied, report.repeated, report.unchanged), (1, 1, 1), "{report:?}");
    let runs = ["expire-contexts 1 2 2 0", "expire-contexts 1 2 2 0", "expire-contexts 1 0 0 0"];
    assert_eq!(fixture.lines(RUNS).await, runs);
    let idle = "id FROM job_runs WHERE is_idle";
    let before = fixture.lines(idle).await;
    tick(&fixture).await;
    ticked(&fixture, 4).await;
    assert_eq!(fixture.lines(RUNS).await, runs);
    assert_ne!(fixture.lines(idle).await, before);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_events_of_a_tick_are_published_again_although_its_users_are_not_due_any_more() {
    let fixture = with_job().await;
    let mut topology = Topology::of(&[CLEANER]).expect("streams");
    set_duplicate_window(&mut topology, "EVENTS", Duration::from_millis(100));
    topology::apply(&fixture.jetstream, &topology).await.expect("a short window");
    let worker = fixture.run(Cleaner);
    tick(&fixture).await;
    ticked(&fixture, 1).await;
    worker.stop().await.expect("a clean end");
    let first: Vec<_> = published(&fixture).await;
    assert_eq!(first.len(), 2);
    // The broker refuses an event that it has stored a moment ago.
    eventually("the events are published again", async || {
        deliver_again(&fixture).await;
        let worker = fixture.run(Cleaner);
        ticked(&fixture, 1).await;
        worker.stop().await.expect("a clean end");
        (fixture.stored("EVENTS").await >= 4).then_some(())
    })
    .await;
    assert_eq!(published(&fixture).await[2..4], first[..]);
    assert_eq!(fixture.lines(TOUCHED).await, ["1 2", "2 2", "3 1", "4 1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tick_does_not_touch_the_platform_rows_nor_stop_at_one_users_row() {
    let fixture = with_job().await;
    fixture
        .execute(
            "INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode)
                 VALUES (gen_random_uuid(), 0, 's', 'simple');
             INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value, priority, expires_at)
                 VALUES (gen_random_uuid(), 0, 's', 'k', '1', 1, now() + interval '1 hour');
             ALTER TABLE simple_chat_context ADD CONSTRAINT stuck CHECK (user_id <> 1 OR priority < 2)",
        )
        .await;
    let worker = fixture.run(Cleaner);
    let users =
        "concat_ws(' ', user_id, priority) FROM simple_chat_context WHERE user_id < 3 ORDER BY user_id";
    tick(&fixture).await;
    ticked(&fixture, 1).await;
    assert_eq!(fixture.lines(users).await, ["0 1", "1 1", "2 2"], "user 1 stops nobody else");
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    // Left alone, the failing user is reported.
    tick(&fixture).await;
    ticked(&fixture, 2).await;
    assert_eq!(fixture.lines(users).await, ["0 1", "1 1", "2 2"]);
    assert_eq!(fixture.dead_letters().await.len(), 1);
    let runs = fixture.lines(RUNS).await;
    assert!(
        runs.len() == 2
            && runs[0].starts_with("expire-contexts 1 1 1 0 not for all users: ")
            && runs[1].starts_with("expire-contexts 1 0 0 0 ")
            && runs.iter().all(|run| run.contains("stuck")),
        "{runs:?}"
    );
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_keeps_its_last_1000_runs_for_a_month() {
    let fixture = with_job().await;
    let add = |runs: &str, days: i32| {
        format!(
            "INSERT INTO job_runs (id, job, started_at, examined, changed, skipped)
             SELECT gen_random_uuid(), 'expire-contexts', now() - interval '{days} days' - make_interval(secs => n), 1, 1, 0
             FROM generate_series({runs}) AS n"
        )
    };
    fixture.execute(&add("1, 1005", 1)).await;
    let worker = fixture.run(Cleaner);
    tick(&fixture).await;
    ticked(&fixture, 1).await;
    assert_eq!(fixture.count("job_runs").await, 1_001);
    fixture.execute("DELETE FROM job_runs").await;
    fixture.execute(&add("1, 9", 31)).await;
    tick(&fixture).await;
    ticked(&fixture, 2).await;
    assert_eq!(fixture.count("job_runs").await, 1);
    worker.stop().await.expect("a clean end");
}

/// A job whose runs wait until they are let go.
#[derive(Clone)]
struct Slow {
    running: Arc<AtomicU32>,
    most: Arc<AtomicU32>,
    go: Arc<Semaphore>,
}

impl Worker for Slow {
    const INFO: &'static WorkerInfo = &CLEANER;
    type Item = Sweep;

    async fn write<'a>(
        &'a self,
        _: &'a mut Connection,
        batch: &'a [&'a Message<Sweep>],
        _: &'a DataKeys,
    ) -> Result<Vec<Verdict>, Fault> {
        self.most.fetch_max(self.running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let permit = self.go.acquire().await;
        self.running.fetch_sub(1, Ordering::SeqCst);
        drop(permit);
        Ok(vec![Verdict::unchanged(batch[0])])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_under_way_is_not_started_twice() {
    let fixture = with_job().await;
    let slow = Slow { running: Arc::default(), most: Arc::default(), go: Arc::new(Semaphore::new(0)) };
    let workers = [fixture.run(slow.clone()), fixture.run(slow.clone())];
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Schedule", "@every 1s");
    headers.insert("Nats-Schedule-Target", "memory.job.expire-contexts");
    let sent =
        fixture.jetstream.publish_with_headers("memory.schedule.expire-contexts", headers, "".into()).await;
    sent.expect("a publish").await.expect("a stored schedule");
    let consumer = fixture.consumer("JOBS", "gpu-allocator-jobs").await;
    eventually("two ticks wait for the first one", async || {
        let info = consumer.get_info().await.ok()?;
        (info.num_ack_pending == 1 && info.num_pending >= 2).then_some(())
    })
    .await;
    assert_eq!(slow.running.load(Ordering::SeqCst), 1);
    slow.go.add_permits(1);
    eventually("three ticks are acknowledged", async || {
        let info = consumer.get_info().await.ok()?;
        (info.ack_floor.consumer_sequence >= 3).then_some(())
    })
    .await;
    assert_eq!(slow.most.load(Ordering::SeqCst), 1, "two runs at once");
    for worker in workers {
        worker.stop().await.expect("a clean end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schedule_of_the_server_ticks() {
    let fixture = with_job().await;
    let worker = fixture.run(Cleaner);
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Schedule", "@every 1s");
    headers.insert("Nats-Schedule-Target", "memory.job.expire-contexts");
    let sent =
        fixture.jetstream.publish_with_headers("memory.schedule.expire-contexts", headers, "".into()).await;
    sent.expect("a publish").await.expect("a stored schedule");
    eventually("the work of the tick is done", async || {
        (fixture.lines(TOUCHED).await == ["1 2", "2 2", "3 1", "4 1"]).then_some(())
    })
    .await;
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_schedule_has_published_is_no_tick() {
    let fixture = with_job().await;
    let worker = fixture.run(Cleaner);
    // Not with the header of ticks that events cause, either: those are in a stream of their own.
    let mut woken = async_nats::HeaderMap::new();
    woken.insert(contract::header::WOKEN, uuid::Uuid::now_v7().to_string());
    for (headers, ticks) in [(async_nats::HeaderMap::new(), 1), (woken, 2)] {
        let sent =
            fixture.jetstream.publish_with_headers("memory.job.expire-contexts", headers, "{}".into()).await;
        sent.expect("a publish").await.expect("a stored message");
        ticked(&fixture, ticks).await;
    }
    assert_eq!(
        fixture.dead_letters().await,
        ["malformed: Nats-Scheduler: is missing; only a schedule publishes ticks"; 2]
    );
    assert_eq!(fixture.lines(TOUCHED).await, ["1 1", "2 1", "3 1", "4 1"]);
    // A job that the database does not know is refused there, with a trace.
    fixture.execute("SELECT sec.drop_job('expire-contexts')").await;
    tick(&fixture).await;
    ticked(&fixture, 3).await;
    assert_eq!(fixture.lines(TOUCHED).await, ["1 1", "2 1", "3 1", "4 1"]);
    let letters = fixture.dead_letters().await;
    assert!(letters.iter().any(|letter| letter.starts_with("denied: ")), "{letters:?}");
    assert_eq!(fixture.count("audit.security_violations").await, 1);
    worker.stop().await.expect("a clean end");
}
