//! Retention: policies and holds as requests, and what the sweep removes by them.

use context_writer::ContextWriter;
use serde_json::{Value, json};
use testkit::attack::{attempt, login};
use testkit::{Fixture, context, request, session, user};

use crate::support::memories::{Memories, index, memory};
use crate::support::program::{Ended, memfleet, output};
use crate::support::reader::Reader;
use crate::support::retention::{
    cleaner, left, put, sweep_all, tick, with_memories_of_no_session, with_old_sessions, without_schedule,
};

const POLICIES: &str =
    "concat_ws('|', user_id, table_name, chat_mode, access_tier, keep_days, action, is_active)
    FROM data_retention_policies WHERE user_id > 0 OR keep_days = 77 ORDER BY 1";

async fn run(fixture: &Fixture, arguments: &[&str]) -> Ended {
    output(memfleet(fixture, arguments)).await.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_and_holds_are_set_changed_and_removed() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1)]).await;
    let tier = json!({ "chat_mode": "simple", "access_tier": "private" });
    let hold = |more: Value| {
        let mut body = json!({ "hold_id": "0193c0de-0000-7000-8000-0000000000a1" });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("fields").clone());
        request("policy.hold", 1, body)
    };
    fixture
        .process(
            cleaner(&fixture),
            [
                put(1, "simple_chat_context", 10, tier.clone()),
                put(1, "simple_chat_context", 20, tier.clone()),
                put(1, "router_decision_log", 30, json!({ "action": "anonymise" })),
                put(0, "simple_chat_context", 77, json!({})),
                hold(json!({ "reason": "case 7", "table": "chat_mode_sessions" })),
            ],
        )
        .await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(
        fixture.lines(POLICIES).await,
        [
            "0|simple_chat_context|77|delete|t",
            "1|router_decision_log|30|anonymise|t",
            "1|simple_chat_context|simple|private|20|delete|t"
        ]
    );
    let holds = "concat_ws('|', user_id, table_name, reason, released_at IS NOT NULL) FROM retention_holds";
    assert_eq!(fixture.lines(holds).await, ["1|chat_mode_sessions|case 7|f"]);
    let mut removal = tier;
    removal.as_object_mut().expect("an object").insert("table".to_owned(), json!("simple_chat_context"));
    fixture
        .process(
            cleaner(&fixture),
            [
                request("policy.remove", 1, removal),
                hold(json!({ "released": true, "reason": "case 7 is closed" })),
            ],
        )
        .await;
    assert_eq!(fixture.count("data_retention_policies WHERE user_id = 1 AND is_active").await, 1);
    assert_eq!(fixture.lines(holds).await, ["1|chat_mode_sessions|case 7 is closed|t"]);
    let events = "concat_ws(' ', event_type, count(*)) FROM blackboard_events WHERE event_type::text LIKE 'policy.%' GROUP BY event_type ORDER BY 1";
    assert_eq!(fixture.lines(events).await, ["policy.held 2", "policy.removed 1", "policy.stored 4"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_kept_is_dead_lettered_with_the_reason() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1)]).await;
    fixture
        .process(
            cleaner(&fixture),
            [
                put(1, "inbox", 3, json!({})),
                put(1, "unified_memory_vectors", 3, json!({ "action": "archive" })),
                put(1, "users", 3, json!({})),
            ],
        )
        .await;
    let dead = fixture.dead_letters().await;
    assert_eq!(dead.len(), 3, "{dead:?}");
    for (letter, reason) in dead.iter().zip([
        "keep_days: 3 is too short for inbox: streams keep requests for 7 days",
        "action: rows of unified_memory_vectors cannot be archived; use delete",
        "table: ",
    ]) {
        assert!(letter.starts_with("malformed: ") && letter.contains(reason), "{letter}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_removes_what_is_due_and_says_so() {
    let fixture = Fixture::new().await;
    without_schedule(&fixture).await;
    with_old_sessions(&fixture, 1..=3, 400).await;
    // User 2 keeps everything for longer, user 3 is under a hold.
    fixture
        .execute(
            "INSERT INTO data_retention_policies (id, user_id, table_name, keep_days, action)
                 SELECT gen_random_uuid(), 2, t, 1000, 'delete'
                 FROM unnest(ARRAY['simple_chat_context', 'agent_context_states', 'chat_mode_sessions']) AS t;
             INSERT INTO data_retention_policies (id, user_id, table_name, keep_days, action)
                 VALUES (gen_random_uuid(), 2, 'router_decision_log', 30, 'anonymise');
             INSERT INTO retention_holds (id, user_id, reason) VALUES (gen_random_uuid(), 3, 'case 7')",
        )
        .await;
    let worker = fixture.run(cleaner(&fixture));
    sweep_all(&fixture).await;
    assert_eq!(
        left(&fixture).await,
        [
            "1 open",
            "1 open expired empty",
            "1 open kept",
            "1 open of a",
            "2 ended",
            "2 ended [anonymised]",
            "2 ended expired empty",
            "2 ended kept",
            "2 ended of a",
            "2 open",
            "2 open [anonymised]",
            "2 open expired empty",
            "2 open kept",
            "2 open of a",
            "3 ended",
            "3 ended expired",
            "3 ended kept",
            "3 ended of a",
            "3 ended where?",
            "3 open",
            "3 open expired",
            "3 open kept",
            "3 open of a",
            "3 open where?",
        ]
    );
    let events = fixture
        .lines(
            "concat_ws(' ', user_id, session_id, event_payload) FROM blackboard_events WHERE event_type = 'retention.swept'
             ORDER BY user_id, session_id, event_sequence",
        )
        .await;
    assert!(
        events[0].starts_with("1 ended ") && events[0].contains("\"chat_mode_sessions\": 1"),
        "{events:?}"
    );
    assert!(
        events.iter().any(|event| event.starts_with("2 open ") && event.contains("\"anonymised\"")),
        "{events:?}"
    );
    assert!(!events.iter().any(|event| event.starts_with("3 ")), "{events:?}");
    // Each row that was deleted is in the audit trail, under the job.
    let trail = "audit.audit_log WHERE operation = 'DELETE' AND service = 'job:retention-sweep' AND table_name = 'chat_mode_sessions'";
    assert_eq!(fixture.count(trail).await, 1);
    assert!(
        fixture.count("job_runs WHERE failure IS NULL AND changed > 0 AND finished_at >= started_at").await
            >= 1
    );
    assert_eq!(fixture.count("job_runs WHERE failure IS NOT NULL").await, 0);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn memories_of_no_chat_session_go_by_their_conversations_and_their_own_age() {
    let fixture = Fixture::new().await;
    without_schedule(&fixture).await;
    with_memories_of_no_session(&fixture, 1..=4).await;
    // What is said of a chat mode says nothing of them. User 3 is under a hold, and user 4 keeps what is shared.
    fixture
        .execute(
            "INSERT INTO data_retention_policies (id, user_id, table_name, chat_mode, access_tier, keep_days, action) VALUES
                 (gen_random_uuid(), 2, 'agent_context_states', 'simple', NULL, 1, 'delete'),
                 (gen_random_uuid(), 4, 'agent_context_states', NULL, 'shared', 1000, 'delete');
             INSERT INTO retention_holds (id, user_id, chat_mode, reason) VALUES (gen_random_uuid(), 2, 'simple', 'case 6'),
                 (gen_random_uuid(), 3, NULL, 'case 7')",
        )
        .await;
    let worker = fixture.run(cleaner(&fixture));
    sweep_all(&fixture).await;
    worker.stop().await.expect("a clean end");
    let mut expected = Vec::new();
    for user in 1..=4 {
        for tier in ["private", "shared"] {
            for session in ["expired", "new", "old", "over", "over-late", "under-way", "written-late"] {
                let is_kept = user == 3 || user == 4 && tier == "shared";
                match session {
                    "over" | "old" if !is_kept => {}
                    "expired" if user != 3 => expected.push(format!("{user} {tier} {session} empty")),
                    _ => expected.push(format!("{user} {tier} {session}")),
                }
            }
        }
    }
    let select = "concat_ws(' ', user_id, memory_tier, session_id, CASE WHEN removed_at IS NOT NULL THEN 'empty' END) FROM agent_context_states";
    let mut found = fixture.lines(select).await;
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    let told = "blackboard_events WHERE event_type = 'retention.swept' AND session_id = 'old' AND event_payload -> 'removed' @> '[{\"agent_id\": \"a\"}]'";
    assert_eq!(fixture.count(told).await, 3, "all but user 3");
    assert_eq!(fixture.count("job_runs WHERE failure IS NOT NULL").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tombstones_clocks_and_the_inbox_go_when_their_time_is_over() {
    let fixture = Fixture::new().await;
    without_schedule(&fixture).await;
    fixture
        .process(
            ContextWriter,
            [user(1), session(1, "s"), context(1, "s", "k", 1), context(1, "s", "removed", 1)],
        )
        .await;
    let removal = json!({ "session_id": "s", "context_key": "removed", "version": 2 });
    fixture.process(ContextWriter, [request("context.remove", 1, removal)]).await;
    fixture
        .execute(
            "UPDATE inbox SET received_at = now() - interval '9 days' WHERE worker = 'context-writer';
             UPDATE simple_chat_context SET removed_at = now() - interval '31 days' WHERE removed_at IS NOT NULL;
             INSERT INTO blackboard_events (id, event_type, performative, source_agent_id, user_id, session_id, event_payload,
                     logical_timestamp, created_at)
                 SELECT uuid7_at(now() - interval '731 days' + make_interval(secs => n)), 'context.stored', 'inform', 'x', 1,
                     CASE WHEN n IN (4, 5) THEN 'gone' ELSE 's' END, '{}', 1, now() - CASE WHEN n < 6 THEN interval '731 days' ELSE '0 days' END
                 FROM generate_series(1, 6) AS n;
             INSERT INTO session_clocks (user_id, session_id) VALUES (1, 'gone')",
        )
        .await;
    let before = fixture.count("blackboard_events").await;
    let worker = fixture.run(cleaner(&fixture));
    sweep_all(&fixture).await;
    // One of them has an id of long ago, which its writer has chosen, and is new.
    assert_eq!(fixture.count("blackboard_events WHERE event_type <> 'retention.swept'").await, before - 5);
    assert_eq!(
        fixture.lines("session_id FROM session_clocks WHERE session_id NOT LIKE '@%' ORDER BY 1").await,
        ["s"]
    );
    assert_eq!(fixture.lines("context_key FROM simple_chat_context").await, ["k"]);
    assert_eq!(fixture.count("inbox WHERE worker = 'context-writer'").await, 0);
    let deleted = "audit.audit_log WHERE operation = 'DELETE' AND table_name = 'blackboard_events'";
    assert_eq!(fixture.count(deleted).await, 5);
    worker.stop().await.expect("a clean end");
    let (fine, validation) = crate::validation::validate(&fixture).await;
    assert!(fine, "{validation}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_context_is_not_answered_and_its_next_put_is_applied() {
    let fixture = Fixture::new().await;
    without_schedule(&fixture).await;
    let memory = json!({ "agent_id": "a", "session_id": "s", "memory_tier": "shared", "context_key": "k",
        "context_value": 1, "version": 3 });
    let requests =
        [user(1), session(1, "s"), context(1, "s", "k", 3), request("agent-context.put", 1, memory)];
    fixture.process(ContextWriter, requests).await;
    let reader = Reader::start(&fixture).await;
    let key = json!({ "session_id": "s", "context_key": "k" });
    let answered = async || {
        let sessions = reader.ask("session.list", 1, json!({})).await.expect("sessions");
        let contexts = reader.ask("context.list", 1, json!({ "session_id": "s" })).await.expect("contexts");
        let tier = json!({ "memory_tier": "shared" });
        let memories = reader.ask("agent-context.list", 1, tier).await.expect("memories of agents");
        let number = |page: &Value| page["contexts"].as_array().expect("a list").len();
        (sessions["sessions"][0]["context_count"].clone(), number(&contexts), number(&memories))
    };
    assert_eq!(answered().await, (json!(1), 1, 1));
    fixture
        .execute(
            "UPDATE simple_chat_context SET expires_at = now() - interval '1 second';
             UPDATE agent_context_states SET expires_at = now() - interval '1 second'",
        )
        .await;
    assert_eq!(answered().await, (json!(0), 0, 0), "nothing has swept them");
    reader.ask("context.get", 1, key.clone()).await.expect_err("it has expired");
    let worker = fixture.run(cleaner(&fixture));
    sweep_all(&fixture).await;
    worker.stop().await.expect("a clean end");
    assert_eq!(
        fixture
            .lines("concat_ws(' ', context_key, version, removed_at IS NOT NULL) FROM simple_chat_context")
            .await,
        ["k 3 t"]
    );
    let replayed = run(&fixture, &["replay", "--user", "1"]).await;
    assert!(replayed.is_success(), "{}", replayed.all());
    // An older put changes nothing, a newer one is stored.
    fixture.process(ContextWriter, [context(1, "s", "k", 3)]).await;
    reader.ask("context.get", 1, key.clone()).await.expect_err("it is removed");
    fixture.process(ContextWriter, [context(1, "s", "k", 4)]).await;
    reader.ask("context.get", 1, key).await.expect("an answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_remove_each_row_once() {
    let fixture = Fixture::new().await;
    without_schedule(&fixture).await;
    with_old_sessions(&fixture, 1..=300, 400).await;
    let workers = [fixture.run(cleaner(&fixture)), fixture.run(cleaner(&fixture))];
    sweep_all(&fixture).await;
    assert_eq!(fixture.count("simple_chat_context").await, 2 * 300, "of the open sessions");
    assert_eq!(fixture.count("chat_mode_sessions").await, 300);
    let keys = "blackboard_events e, jsonb_array_elements(e.event_payload -> 'removed') AS k WHERE e.event_type = 'retention.swept'";
    assert_eq!(fixture.count(keys).await, 300 * 3, "each key once");
    let changed = fixture.lines("sum(changed) FROM job_runs").await;
    // The tombstones of expired keys, of the open sessions alone, and what else was removed or emptied.
    assert_eq!(changed, [(300 * (2 + 3 + 2 + 1)).to_string()]);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    for worker in workers {
        worker.stop().await.expect("a clean end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_another_transaction_holds_are_left_to_the_next_run() {
    use diesel_async::SimpleAsyncConnection as _;
    let fixture = Fixture::new().await;
    without_schedule(&fixture).await;
    with_old_sessions(&fixture, 1..=2, 400).await;
    let mut writer = fixture.connection().await;
    writer
        .batch_execute("BEGIN; UPDATE simple_chat_context SET priority = 2 WHERE user_id = 1 AND session_id = 'ended' AND context_key = 'kept'")
        .await
        .expect("a lock");
    let worker = fixture.run(cleaner(&fixture));
    tick(&fixture).await;
    assert_eq!(fixture.count("simple_chat_context WHERE session_id = 'ended'").await, 1);
    assert!(fixture.count("job_runs WHERE skipped > 0").await >= 1);
    writer.batch_execute("COMMIT").await.expect("its end");
    sweep_all(&fixture).await;
    assert_eq!(fixture.count("chat_mode_sessions WHERE session_id = 'ended'").await, 0);
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_under_way_is_not_started_twice() {
    use diesel_async::SimpleAsyncConnection as _;
    let fixture = Fixture::new().await;
    without_schedule(&fixture).await;
    with_old_sessions(&fixture, 1..=2, 400).await;
    let mut other = fixture.connection().await;
    other.batch_execute("BEGIN; SELECT FROM retention_state FOR UPDATE").await.expect("its lock");
    let worker = fixture.run(cleaner(&fixture));
    tick(&fixture).await;
    assert_eq!(fixture.count("chat_mode_sessions WHERE session_id = 'ended'").await, 2);
    assert_eq!(fixture.lines("concat_ws(' ', examined, changed) FROM job_runs").await, ["0 0"]);
    other.batch_execute("COMMIT").await.expect("its end");
    sweep_all(&fixture).await;
    assert_eq!(fixture.count("chat_mode_sessions WHERE session_id = 'ended'").await, 0);
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_points_of_a_removed_memory_go_too() {
    let memories = Memories::new().await.with_users(&[1]).await;
    let fixture = &memories.fixture;
    without_schedule(fixture).await;
    let ids = [uuid::Uuid::now_v7(), uuid::Uuid::now_v7()];
    let texts = ids.iter().zip(1..).map(|(id, number)| memory(*id, "a text", number));
    memories.process([index(1, texts.collect())]).await;
    assert_eq!(memories.points().await, 2);
    fixture
        .execute(&format!(
            "UPDATE unified_memory_vectors SET updated_at = updated_at - interval '731 days' WHERE id = '{}'",
            ids[0]
        ))
        .await;
    let worker = fixture.run(cleaner(fixture));
    // A tick does nothing while a run that follows by itself is under way.
    for _ in 0..10 {
        tick(fixture).await;
        if fixture.count("unified_memory_vectors WHERE removed_at IS NOT NULL AND NOT has_points").await == 1
        {
            break;
        }
    }
    worker.stop().await.expect("a clean end");
    let rows = "concat_ws(' ', removed_at IS NOT NULL, has_points, content_text = '') FROM unified_memory_vectors ORDER BY 1";
    assert_eq!(fixture.lines(rows).await, ["f f f", "t f t"]);
    assert_eq!(memories.points().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn schedules_are_listed_set_paused_and_run_at_once() {
    let fixture = Fixture::new().await;
    let listed = async |fixture: &Fixture| {
        let listed = run(fixture, &["schedule", "list", "--json"]).await;
        let listed: Value = serde_json::from_str(&listed.out).expect("JSON");
        let of_sweep = listed["schedules"].as_array().expect("schedules").iter();
        of_sweep.filter(|one| one["job"] == "retention-sweep").cloned().collect::<Vec<_>>().remove(0)
    };
    let state = async || {
        let found = listed(&fixture).await;
        (found["schedule"].clone(), found["time_zone"].clone(), found["paused"].clone())
    };
    let succeeds = async |arguments: &[&str]| {
        let ended = run(&fixture, arguments).await;
        assert!(ended.is_success(), "{arguments:?}: {}", ended.all());
    };
    assert_eq!(state().await, (json!("@every 30s"), json!(null), json!(false)));
    succeeds(&["schedule", "set", "retention-sweep", "0 0 3 * * *", "--time-zone", "Europe/Berlin"]).await;
    let set = (json!("0 0 3 * * *"), json!("Europe/Berlin"), json!(false));
    assert_eq!(state().await, set);
    succeeds(&["schedule", "pause", "retention-sweep"]).await;
    assert_eq!(state().await.2, json!(true));
    let applied = run(&fixture, &["nats", "apply"]).await;
    assert!(applied.out.starts_with("nothing to do"), "a pause is kept: {}", applied.all());
    succeeds(&["schedule", "resume", "retention-sweep"]).await;
    assert_eq!(state().await, set);
    for wrong in [
        vec!["schedule", "set", "retention-sweep", "0 3 * * *"],
        vec!["schedule", "set", "retention-sweep", "every day"],
        vec!["schedule", "set", "retention-sweep", "0 0 3 * * *", "--time-zone", "Mars/Olympus"],
        vec!["schedule", "pause", "sweep"],
        vec!["schedule", "resume", "retention-sweep"],
    ] {
        assert_eq!(run(&fixture, &wrong).await.code, Some(1), "{wrong:?}");
    }
    let last = async || {
        let found = listed(&fixture).await;
        (found["last_run"].clone(), found["last_failure"].clone())
    };
    assert_eq!(last().await, (json!(null), json!(null)));
    let table = run(&fixture, &["schedule", "list"]).await;
    assert!(table.is_success() && table.out.contains("never"), "{}", table.all());
    let worker = fixture.run(cleaner(&fixture));
    succeeds(&["schedule", "run-now", "retention-sweep"]).await;
    testkit::eventually("a run", async || (fixture.count("job_runs").await == 1).then_some(())).await;
    worker.stop().await.expect("a clean end");
    let history = run(&fixture, &["schedule", "history", "retention-sweep"]).await;
    assert!(history.out.contains("completed"), "{}", history.all());
    let (last_run, last_failure) = last().await;
    let began = last_run.as_str().and_then(|time| chrono::DateTime::parse_from_rfc3339(time).ok());
    assert!(began.is_some() && last_failure.is_null(), "{last_run} {last_failure}");
    fixture.execute("UPDATE job_runs SET failure = 'the disk is full'").await;
    assert_eq!(last().await, (last_run, json!("the disk is full")));
    let table = run(&fixture, &["schedule", "list"]).await;
    assert!(table.out.contains("failed"), "{}", table.all());
    // Schedules are in NATS, and are listed without the database.
    let mut without = memfleet(&fixture, &["schedule", "list"]);
    without.env("MEMFLEET_POSTGRES__URL", "postgres://nobody@127.0.0.1:1/none");
    let without: Ended = output(without).await.into();
    assert!(without.is_success() && without.out.contains("retention-sweep"), "{}", without.all());
    assert!(without.out.contains("unknown") && without.err.contains("are not known"), "{}", without.all());
    assert_eq!(state().await, set, "its schedule stays");
    let policies = run(&fixture, &["retention", "policies"]).await;
    assert!(policies.out.contains("router_decision_log"), "{}", policies.all());
}

/// A worker's role writes what it likes about a run of its job.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_details_no_program_can_read_is_listed_with_the_others() {
    let fixture = Fixture::new().await;
    let mut worker = login(&fixture, "w_retention_cleaner").await;
    let deep = format!("{{\"deep\":{}{}}}", "[".repeat(1_000), "]".repeat(1_000));
    for details in ["{\"lines\":[]}", deep.as_str()] {
        let note = format!(
            "SELECT sec.note_job_run('retention-sweep', gen_random_uuid(), now(), 1, 1, 0, NULL, '{details}')"
        );
        attempt(&mut worker, &note).await.expect("a note");
    }
    let history = run(&fixture, &["schedule", "history", "--json"]).await;
    assert!(history.is_success(), "{}", history.all());
    let history: Value = serde_json::from_str(&history.out).expect("JSON");
    let details: Vec<&Value> =
        history["runs"].as_array().expect("runs").iter().map(|run| &run["details"]).collect();
    assert_eq!(details, [&Value::Null, &json!({ "lines": [] })]);
}
