//! The jobs of consensus-builder: tasks close at their deadline, and records of agents are estimated anew.

use std::time::Duration;

use chrono::Utc;
use consensus_builder::{ConsensusBuilder, ConsensusItem, Job};
use contract::Tick;
use diesel_async::{AsyncConnection, SimpleAsyncConnection};
use keys::DataKeys;
use runtime::{ExternalWorker, Message, Source, Verdict, WorkItem};
use serde_json::{Value, json};
use store::{Fault, security};
use testkit::{Fixture, RequestMessage, eventually};
use uuid::Uuid;

use crate::support::consensus::{Task, agent, builder, start, three_families, verdict, with_users};
use crate::support::statements::Transactions;
use crate::support::ticks;

const THREE: [&str; 3] = ["a", "b", "c"];

async fn tick(fixture: &Fixture, job: Job) {
    ticks::tick(fixture, "consensus-builder", runtime::Job::name(job)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_closes_at_its_deadline_by_the_shipped_schedule() {
    let fixture = with_users([1]).await;
    let task = Task::of(1);
    let worker = fixture.run(builder(&fixture).await);
    let mut requests = three_families(1);
    let soon = (Utc::now() + Duration::from_secs(1)).to_rfc3339();
    requests.push(task.delegate(&THREE, 3, json!({ "deadline": soon })));
    requests.extend(task.all_say(&["a", "b"], "The Tagus"));
    fixture.publish(requests).await;
    eventually("the task is closed", async || {
        (fixture.count("consensus_tasks WHERE state = 'closed'").await == 1).then_some(())
    })
    .await;
    worker.stop().await.expect("a clean end");
    assert_eq!(task.outcome(&fixture).await, r#"unvalidated 0.666667 ["no-quorum"]"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deadline_closes_what_is_due_of_each_user_and_nothing_else() {
    let fixture = with_users([1, 2, 3]).await;
    let tasks: Vec<Task> = (1..=3).map(Task::of).collect();
    let mut requests: Vec<RequestMessage> = (1..=3).flat_map(three_families).collect();
    for task in &tasks {
        let deadline = if task.user == 3 { "2100-01-01T00:00:00Z" } else { "2026-01-01T00:00:00Z" };
        requests.push(task.delegate(&THREE, 3, json!({ "deadline": deadline })));
        requests.extend(task.all_say(&["a", "b"], "The Tagus"));
    }
    // One of a user who has work due, and that is not due itself.
    requests.push(Task::of(1).delegate(&THREE, 3, json!({ "deadline": "2100-01-01T00:00:00Z" })));
    let worker = fixture.run(builder(&fixture).await);
    fixture.publish(requests).await;
    fixture.drained::<ConsensusBuilder>().await;
    tick(&fixture, Job::Close).await;
    let states =
        "concat_ws(' ', state, close_reason, responded) FROM consensus_tasks ORDER BY user_id, deadline";
    assert_eq!(fixture.lines(states).await, ["closed deadline 2", "open 0", "closed deadline 2", "open 2"]);
    let events = "concat_ws(' ', user_id, event_type, source_agent_id) FROM blackboard_events
        WHERE event_type IN ('task.completed', 'node.established') ORDER BY user_id, event_sequence";
    let job = "job:consensus-close";
    assert_eq!(
        fixture.lines(events).await,
        [
            format!("1 task.completed {job}"),
            format!("1 node.established {job}"),
            format!("2 task.completed {job}"),
            format!("2 node.established {job}")
        ]
    );
    let counters = "tasks_completed FROM multi_agent_conversations ORDER BY user_id";
    assert_eq!(fixture.lines(counters).await, ["1", "1", "0"]);
    let published = fixture.messages("EVENTS").await.len();
    tick(&fixture, Job::Close).await;
    assert_eq!(fixture.messages("EVENTS").await.len(), published, "there was nothing more to close");
    // A response after the deadline is late.
    fixture.publish([tasks[0].respond("c", "The Tagus", json!({}))]).await;
    fixture.drained::<ConsensusBuilder>().await;
    assert_eq!(fixture.count("agent_responses WHERE NOT is_counted").await, 1);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    worker.stop().await.expect("a clean end");
}

/// Twenty questions: `a`, `b` and `d` agree, `c` says something else. `e` repeats `c`, being of its family.
fn questions(user: i32, count: usize, more: &Value) -> (Vec<Task>, Vec<RequestMessage>) {
    let agents = ["a", "b", "c", "d", "e"];
    let tasks: Vec<Task> = (0..count).map(|_| Task::of(user)).collect();
    let mut requests: Vec<RequestMessage> =
        agents.iter().zip(["v", "w", "x", "y", "x"]).map(|(id, family)| agent(user, id, family)).collect();
    requests.push(start(user));
    for (place, task) in tasks.iter().enumerate() {
        let (right, wrong) = if place % 2 == 0 { ("Tagus", "Douro") } else { ("Douro", "Tagus") };
        requests.push(task.delegate(&agents, 5, more.clone()));
        for (id, text) in agents.iter().zip([right, right, wrong, right, wrong]) {
            requests.push(task.respond(id, text, json!({ "confidence": 0.5 })));
        }
    }
    (tasks, requests)
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_estimated_from_closed_tasks_and_weigh_the_next_answers() {
    let fixture = with_users([1, 2]).await;
    let options = json!({ "task_kind": "rivers", "options": ["Tagus", "Douro"] });
    let (tasks, mut requests) = questions(1, 20, &options);
    let (_, open) = questions(2, 10, &json!({ "task_kind": "open" }));
    requests.extend(open);
    let worker = fixture.run(builder(&fixture).await);
    fixture.publish(requests).await;
    fixture.drained::<ConsensusBuilder>().await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    tick(&fixture, Job::Reestimate).await;

    let records = "concat_ws(' ', user_id, agent_id, task_kind, round(right_micro / 1e6), round(wrong_micro / 1e6), confidence_micro)
        FROM agent_records ORDER BY user_id, agent_id";
    let expected = [("a", [20, 0]), ("b", [20, 0]), ("c", [0, 20]), ("d", [20, 0]), ("e", [0, 20])];
    let line = |user, kind: &str, scale: i32| {
        let kind = kind.to_owned();
        expected.map(move |(id, [right, wrong])| {
            format!("{user} {id} {kind} {} {} {}", right / scale, wrong / scale, 10_000_000 / scale)
        })
    };
    assert_eq!(fixture.lines(records).await, [line(1, "rivers", 1), line(2, "open", 2)].concat());
    let estimated = "concat_ws(' ', answer, probability > 0.95, estimated_at IS NOT NULL)
        FROM task_estimates WHERE user_id = 1 GROUP BY 1 ORDER BY 1";
    assert_eq!(fixture.lines(estimated).await, ["0 t t", "1 t t"]);
    let events = "concat_ws(' ', user_id, event_payload) FROM blackboard_events WHERE event_type = 'reliability.estimated' ORDER BY user_id";
    assert_eq!(
        fixture.lines(events).await,
        [
            r#"1 {"tasks": 20, "agents": 5, "task_kind": "rivers"}"#,
            r#"2 {"tasks": 10, "agents": 5, "task_kind": "open"}"#
        ]
    );

    // Nothing is due any more.
    tick(&fixture, Job::Reestimate).await;
    assert_eq!(fixture.count("blackboard_events WHERE event_type = 'reliability.estimated'").await, 2);

    // The next dossier takes the records in; an agent that was never right has no weight.
    let next = Task::of(1);
    let mut requests = vec![next.delegate(&["a", "c"], 2, options.clone())];
    requests.push(next.respond("a", "Tagus", json!({})));
    requests.push(next.respond("c", "Douro", json!({})));
    fixture.publish(requests).await;
    fixture.drained::<ConsensusBuilder>().await;
    let votes = format!(
        "concat_ws(' ', v ->> 'agent', round((v ->> 'right')::numeric / 1e6), v ->> 'uncounted') FROM consensus_dossiers d
         JOIN consensus_tasks t ON t.node_id = d.id,
         jsonb_array_elements(convert_from(d.dossier, 'UTF8')::jsonb -> 'votes') AS v WHERE t.id = '{}'",
        next.id
    );
    assert_eq!(fixture.lines(&votes).await, ["a 20", "c 0 unreliable"]);

    // A verdict is the truth of its task, which is estimated again.
    tick(&fixture, Job::Reestimate).await;
    let node = tasks[0].node(&fixture).await;
    fixture.publish([verdict(1, node, "confirm")]).await;
    fixture.drained::<ConsensusBuilder>().await;
    let due = "count(*) FROM task_estimates e JOIN consensus_tasks t USING (user_id, id) WHERE e.estimated_at IS NULL AND t.truth = 0";
    assert_eq!(fixture.lines(due).await, ["1"]);
    tick(&fixture, Job::Reestimate).await;
    assert_eq!(fixture.lines(due).await, ["0"]);
    let sure = format!("probability FROM task_estimates WHERE id = '{}'", tasks[0].id);
    assert_eq!(fixture.lines(&sure).await, ["1"]);
    worker.stop().await.expect("a clean end");
}

/// More tasks than a tick closes, all past their deadline.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_many_late_tasks_keeps_nobody_out() {
    let fixture = with_users([1, 2]).await;
    let mut requests: Vec<RequestMessage> = [1, 2].into_iter().flat_map(three_families).collect();
    let task = Task::of(2);
    requests.push(task.delegate(&THREE, 3, json!({ "deadline": "2026-01-02T00:00:00Z" })));
    fixture.process(builder(&fixture).await, requests).await;
    fixture
        .execute(
            "INSERT INTO consensus_tasks (id, user_id, session_id, pm_agent_id, question, task_kind, node_type, node_key, title, quorum,
                asked, deadline)
             SELECT md5('late' || t)::uuid, 1, 'group', 'pm', 'q', 'kind', 'answer', 'late' || t, 'n', 1, 1, '2026-01-01T00:00:00Z'
             FROM generate_series(1, 310) AS t;
             UPDATE multi_agent_conversations SET total_tasks_delegated = 310 WHERE user_id = 1",
        )
        .await;
    let worker = fixture.run(builder(&fixture).await);
    tick(&fixture, Job::Close).await;
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.count("consensus_tasks WHERE user_id = 2 AND state = 'closed'").await, 1);
    assert_eq!(fixture.count("consensus_tasks WHERE user_id = 1 AND state = 'closed'").await, 299);
}

/// 4 MiB of texts and evidence, and one more: what is before a task decides. While one task is computed the transaction is idle, but not
/// for as long as all of them take.
#[tokio::test(flavor = "multi_thread")]
async fn a_tick_compares_a_limited_number_of_bytes() {
    let mut fixture = with_users([1]).await;
    fixture.process(builder(&fixture).await, three_families(1)).await;
    fixture
        .execute(
            "SET session_replication_role = replica;
             INSERT INTO consensus_tasks (id, user_id, session_id, pm_agent_id, question, task_kind, node_type, node_key, title, quorum,
                asked, responded, answered, deadline)
             SELECT md5('long' || t)::uuid, 1, 'group', 'pm', 'q', 'kind', 'answer', 'long' || t, 'n', 1, 1, 1, 1, '2026-01-01T00:00:00Z'
             FROM generate_series(1, 6) AS t;
             INSERT INTO agent_responses (id, user_id, task_delegation_id, task_id, agent_id, response_text, evidence)
             SELECT t.id, 1, t.id, t.id, 'a', repeat('a', 500000), jsonb_build_array(jsonb_build_object('source', repeat('a', 500000)))
             FROM consensus_tasks t;
             UPDATE multi_agent_conversations SET total_tasks_delegated = 6 WHERE user_id = 1",
        )
        .await;
    let transactions = Transactions::watch(&mut fixture.settings).await;
    let worker = fixture.run(builder(&fixture).await);
    tick(&fixture, Job::Close).await;
    assert_eq!(fixture.count("consensus_tasks WHERE state = 'closed'").await, 5);
    let closed = transactions.take("INSERT INTO consensus_dossiers");
    assert_eq!(
        closed.iter().flatten().filter(|statement| *statement == "SELECT 1").count(),
        5,
        "{closed:#?}"
    );
    tick(&fixture, Job::Close).await;
    assert_eq!(fixture.count("consensus_tasks WHERE state = 'closed'").await, 6);
    worker.stop().await.expect("a clean end");
}

/// Answers from before such texts were refused. Each character is eighteen in its normal form.
#[tokio::test(flavor = "multi_thread")]
async fn stored_answers_that_normalisation_would_lengthen_keep_nobody_out() {
    let mut fixture = with_users([1, 2]).await;
    let mut requests: Vec<RequestMessage> = [1, 2].into_iter().flat_map(three_families).collect();
    let task = Task::of(2);
    requests.push(task.delegate(&THREE, 3, json!({ "deadline": "2026-01-02T00:00:00Z" })));
    requests.extend(task.all_say(&["a", "b"], "The Tagus"));
    fixture.process(builder(&fixture).await, requests).await;
    fixture
        .execute(
            "SET session_replication_role = replica;
             INSERT INTO consensus_tasks (id, user_id, session_id, pm_agent_id, question, task_kind, node_type, node_key, title, quorum,
                asked, responded, answered, deadline)
             SELECT md5('long' || t)::uuid, 1, 'group', 'pm', 'q', 'kind', 'answer', 'long' || t, 'n', 9, 9, 8, 8, '2026-01-01T00:00:00Z'
             FROM generate_series(1, 2) AS t;
             INSERT INTO agent_responses (id, user_id, task_delegation_id, task_id, agent_id, response_text)
             SELECT md5(t.id::text || a)::uuid, 1, md5(t.id::text || a)::uuid, t.id, 'agent-' || a, a || repeat(chr(64922), 16000)
             FROM consensus_tasks t, generate_series(1, 8) AS a WHERE t.user_id = 1;
             UPDATE multi_agent_conversations SET total_tasks_delegated = 2 WHERE user_id = 1",
        )
        .await;
    // Shorter than by default: as many answers as a tick compares would be too slow a test.
    let url = fixture.settings.postgres.worker_url.clone().expect("a URL");
    fixture.settings.postgres.worker_url =
        Some(url + "?options=-c%20idle_in_transaction_session_timeout%3D4000");
    let worker = fixture.run(builder(&fixture).await);
    tick(&fixture, Job::Close).await;
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(fixture.count("consensus_tasks WHERE state = 'closed'").await, 3);
    let clusters =
        "jsonb_array_length(convert_from(dossier, 'UTF8')::jsonb -> 'clusters') FROM consensus_dossiers
        WHERE user_id = 1";
    assert_eq!(fixture.lines(clusters).await, ["8", "8"]);
}

/// Closed tasks of 100 agents that nobody has estimated, as the database has them.
async fn closed_tasks(fixture: &Fixture, user: i32, count: usize) {
    fixture
        .execute(&format!(
            "SET session_replication_role = replica;
             INSERT INTO consensus_memory_nodes (id, user_id, node_type, node_key, title, content)
             VALUES (md5('n')::uuid, {user}, 'answer', 'n', 'n', '{{}}');
             INSERT INTO consensus_tasks (id, user_id, session_id, pm_agent_id, question, task_kind, node_type, node_key, title, options,
                quorum, asked, responded, answered, state, close_reason, closed_at, node_id, voters, choices, confidences)
             SELECT md5('t' || t)::uuid, {user}, 'group', 'pm', 'q', 'kind', 'answer', 'n', 'n', '[\"a\", \"b\", \"c\", \"d\"]'::jsonb,
                100, 100, 100, 100, 'closed', 'quorum', now() - t * interval '1 second', md5('n')::uuid, array_agg('agent-' || a ORDER BY a),
                array_agg(CASE WHEN random() < 0.3 + 0.006 * a THEN t % 4 ELSE floor(random() * 4)::integer END ORDER BY a),
                array_agg(0.5 ORDER BY a)
             FROM generate_series(1, {count}) AS t, generate_series(1, 100) AS a GROUP BY t;
             INSERT INTO task_estimates (user_id, id) SELECT user_id, id FROM consensus_tasks WHERE node_id = md5('n')::uuid"
        ))
        .await;
}

/// PostgreSQL ends a transaction that is idle for long. An estimate takes longer, and no transaction is open meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn an_estimate_may_take_longer_than_a_transaction_may_be_idle() {
    const IDLE: Duration = Duration::from_millis(250);
    let mut fixture = with_users([1]).await;
    let requests = three_families(1);
    fixture.process(builder(&fixture).await, requests).await;
    closed_tasks(&fixture, 1, 5_000).await;
    let url = fixture.settings.postgres.worker_url.clone().expect("a URL");
    let limit = format!("?options=-c%20idle_in_transaction_session_timeout%3D{}", IDLE.as_millis());
    fixture.settings.postgres.worker_url = Some(url + &limit);
    let since = std::time::Instant::now();
    let prepared = Estimate::prepare(&fixture, 1).await;
    let took = since.elapsed();
    assert!(took > 2 * IDLE, "{took:?} would not have been too long");
    drop(prepared);
    let worker = fixture.run(builder(&fixture).await);
    tick(&fixture, Job::Reestimate).await;
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(fixture.count("task_estimates WHERE estimated_at IS NOT NULL").await, 5_000);
    assert_eq!(fixture.count("agent_records").await, 100);
}

/// The job of one user, step by step.
struct Estimate {
    worker: ConsensusBuilder,
    message: Message<ConsensusItem>,
    grant: String,
    prepared: consensus_builder::Prepared,
}

impl Estimate {
    /// Reads and computes.
    async fn prepare(fixture: &Fixture, user: i32) -> Self {
        let worker = builder(fixture).await;
        let job = runtime::Job::name(Job::Reestimate).parse().expect("a job");
        let tick = Tick { job, scheduler: String::new(), stored_at: Utc::now() };
        let message = Message {
            request: ConsensusItem::from_tick(&tick).expect("a tick"),
            secrets: Vec::new(),
            source: Source::Tick(tick),
            request_id: Uuid::now_v7(),
            parent_event_id: None,
            stored_at: Utc::now(),
            sequence: 0,
            event_id: Uuid::now_v7(),
            body: bytes::Bytes::new(),
            is_widened: false,
        };
        let grant = testkit::attack::grant(user, "w_consensus_builder");
        let prepared = worker.prepare(&[&message], &[&grant]).await.expect("an estimate");
        Self { worker, message, grant, prepared }
    }

    /// Writes. True if it was written.
    async fn write(&self, fixture: &Fixture) -> bool {
        let url = fixture.settings.postgres.url_of("w_consensus_builder");
        let mut connection = store::connect(&url).await.expect("a connection");
        let written: Result<Vec<Verdict>, Fault> = connection
            .transaction(async |connection| {
                security::open_context(connection, &[&self.grant]).await?;
                let (batch, keys) = ([&self.message], DataKeys::new());
                Ok(self.worker.write(connection, &batch, &keys, &self.prepared).await?.verdicts)
            })
            .await;
        matches!(written.expect("a commit").as_slice(), [Verdict::Applied(_)])
    }
}

/// Two ticks may estimate at once, and a verdict may come meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn an_estimate_is_dropped_if_what_it_rests_on_has_changed() {
    let fixture = with_users([1, 2]).await;
    let records = "concat_ws(' ', agent_id, right_micro + wrong_micro) FROM agent_records ORDER BY 1";
    let due = "task_estimates WHERE estimated_at IS NULL";
    let (_, requests) = questions(1, 3, &json!({ "task_kind": "rivers" }));
    fixture.process(builder(&fixture).await, requests).await;
    // Of two, the one that has seen less comes last and changes nothing.
    let early = Estimate::prepare(&fixture, 1).await;
    let (more, requests) = questions(1, 1, &json!({ "task_kind": "rivers" }));
    fixture.process(builder(&fixture).await, requests).await;
    let late = Estimate::prepare(&fixture, 1).await;
    assert!(late.write(&fixture).await);
    let after = fixture.lines(records).await;
    assert!(after.iter().all(|line| line.ends_with(" 4000000")), "{after:?}");
    assert!(!early.write(&fixture).await, "it knows three tasks alone");
    assert_eq!(fixture.lines(records).await, after);
    assert_eq!(fixture.count(due).await, 0);
    // A repeat changes nothing either.
    assert!(!late.write(&fixture).await);

    // A verdict on a task that is new: it is estimated with its truth, at the next tick.
    let (tasks, requests) = questions(1, 1, &json!({ "task_kind": "rivers" }));
    fixture.process(builder(&fixture).await, requests).await;
    let overtaken = Estimate::prepare(&fixture, 1).await;
    let node = tasks[0].node(&fixture).await;
    fixture.process(builder(&fixture).await, [verdict(1, node, "confirm")]).await;
    assert!(!overtaken.write(&fixture).await);
    assert_eq!(fixture.count(due).await, 1);
    assert!(Estimate::prepare(&fixture, 1).await.write(&fixture).await);
    assert_eq!(fixture.count(due).await, 0);

    // A verdict on one that was estimated before: the estimate is good for the others, and this one stays due.
    let (_, requests) = questions(1, 1, &json!({ "task_kind": "rivers" }));
    fixture.process(builder(&fixture).await, requests).await;
    // What it says of that one is new, too.
    let moved = format!("UPDATE task_estimates SET probability = 0.5 WHERE id = '{}'", more[0].id);
    fixture.execute(&format!("SET session_replication_role = replica; {moved}")).await;
    let beside = Estimate::prepare(&fixture, 1).await;
    let node = more[0].node(&fixture).await;
    fixture.process(builder(&fixture).await, [verdict(1, node, "confirm")]).await;
    assert!(beside.write(&fixture).await);
    assert_eq!(fixture.count(due).await, 1);

    // Of a user whom the transaction does not act for, nothing is written.
    let (_, requests) = questions(2, 1, &json!({ "task_kind": "rivers" }));
    fixture.process(builder(&fixture).await, requests).await;
    let foreign = Estimate {
        grant: testkit::attack::grant(1, "w_consensus_builder"),
        ..Estimate::prepare(&fixture, 2).await
    };
    assert!(!foreign.write(&fixture).await);
    assert_eq!(fixture.count("agent_records WHERE user_id = 2").await, 0);
}

/// Of two ticks that find the same due, one may read the tasks only when the other has estimated them.
#[tokio::test(flavor = "multi_thread")]
async fn an_estimate_without_new_tasks_is_dropped() {
    let fixture = with_users([1]).await;
    let (_, requests) = questions(1, 3, &json!({ "task_kind": "rivers" }));
    fixture.process(builder(&fixture).await, requests).await;
    let mut other = fixture.connection().await;
    // Families are read after what is due and before the tasks.
    let hold = "SET session_replication_role = replica; BEGIN; LOCK TABLE agent_configurations;
        UPDATE task_estimates SET estimated_at = now()";
    other.batch_execute(hold).await.expect("a lock");
    let waits = "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
        AND query LIKE '%agent_configurations%'";
    let (estimate, ()) = tokio::join!(Estimate::prepare(&fixture, 1), async {
        eventually("the estimate waits", async || (fixture.count(waits).await > 0).then_some(())).await;
        other.batch_execute("COMMIT").await.expect("a commit");
    });
    assert!(format!("{:?}", estimate.prepared).contains("rivers"), "{:?}", estimate.prepared);
    assert!(!estimate.write(&fixture).await);
    assert_eq!(fixture.count("agent_records").await, 0);
}

/// Beyond the limits of an estimate, tasks that are due are judged by what it finds of their agents.
#[tokio::test(flavor = "multi_thread")]
async fn tasks_beyond_the_limit_are_judged_by_the_records_of_their_agents() {
    let fixture = with_users([1]).await;
    fixture.process(builder(&fixture).await, three_families(1)).await;
    closed_tasks(&fixture, 1, 20).await;
    // With ten of these, as many tasks as an estimate takes. An agent that answered none of them keeps its record.
    fixture
        .execute(
            "SET session_replication_role = replica;
             INSERT INTO consensus_tasks (id, user_id, session_id, pm_agent_id, question, task_kind, node_type, node_key, title, options,
                quorum, asked, responded, answered, state, close_reason, closed_at, node_id, voters, choices, confidences)
             SELECT md5('s' || t)::uuid, 1, 'group', 'pm', 'q', 'kind', 'answer', 'n', 'n', '[\"a\", \"b\"]'::jsonb, 1, 1, 1, 1, 'closed',
                'quorum', now() + t * interval '1 second', md5('n')::uuid, ARRAY['a'], ARRAY[0], ARRAY[0.5]
             FROM generate_series(1, 19990) AS t;
             INSERT INTO task_estimates (user_id, id) SELECT user_id, id FROM consensus_tasks WHERE voters = ARRAY['a'];
             UPDATE consensus_tasks SET voters = array_replace(voters, 'agent-100', 'gone') WHERE id = md5('t20')::uuid;
             UPDATE consensus_tasks SET truth = 3 WHERE id = md5('t19')::uuid;
             INSERT INTO agent_records (id, user_id, agent_id, task_kind, right_micro, wrong_micro, confidence_micro)
             VALUES (md5('r')::uuid, 1, 'gone', 'kind', 1, 2, 3)",
        )
        .await;
    assert!(Estimate::prepare(&fixture, 1).await.write(&fixture).await);
    assert_eq!(fixture.count("task_estimates WHERE answer IS NOT NULL").await, 20_010);
    assert_eq!(fixture.count("task_estimates WHERE estimated_at IS NULL").await, 0);
    let judged = "concat_ws(' ', answer, probability) FROM task_estimates WHERE id = md5('t19')::uuid";
    assert_eq!(fixture.lines(judged).await, ["3 1"]);
    let answers = |agent: &str| {
        format!("round((right_micro + wrong_micro) / 1e6) FROM agent_records WHERE agent_id = '{agent}'")
    };
    assert_eq!(fixture.lines(&answers("a")).await, ["19990"]);
    assert_eq!(
        fixture.lines(&answers("agent-1")).await,
        ["10"],
        "records rest on the tasks within the limit"
    );
    assert_eq!(fixture.lines(&answers("gone")).await, ["0"]);
    assert_eq!(fixture.count("agent_records WHERE agent_id = 'gone' AND right_micro = 1").await, 1);

    // A verdict on one of these is all that is due: what is newer and not due is read and left as it is.
    fixture
        .execute(
            "SET session_replication_role = replica;
             UPDATE task_estimates SET estimated_at = NULL WHERE id = md5('t15')::uuid;
             UPDATE consensus_tasks SET truth = 2 WHERE id = md5('t15')::uuid",
        )
        .await;
    let beside = "e FROM task_estimates e WHERE id IN (md5('t14')::uuid, md5('t16')::uuid) ORDER BY id";
    let before = fixture.lines(beside).await;
    assert!(Estimate::prepare(&fixture, 1).await.write(&fixture).await);
    assert_eq!(fixture.lines(beside).await, before);
    let judged = "concat_ws(' ', answer, probability) FROM task_estimates WHERE id = md5('t15')::uuid";
    assert_eq!(fixture.lines(judged).await, ["2 1"]);
}
