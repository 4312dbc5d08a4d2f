//! memory-sync: what one service may have it compute.

use context_writer::ContextWriter;
use contract::{Outcome, OutcomeStatus, header};
use memory_sync::{Job, MemorySync};
use serde_json::{Map, Value, json};
use testkit::{Fixture, next, request};

use crate::support::sync::{
    Sync, memory, open, payloads, process, put, syncer, tick, with_sessions, without_wakes, write,
};

/// An object of so many texts, each of this word two hundred times: two of them are compared in 201 × 201 cells.
fn texts(members: usize, word: &str) -> Value {
    let text = vec![word; 200].join(" ");
    let members = (0..members).map(|at| (format!("m{at:03}"), Value::from(text.as_str())));
    Value::Object(members.collect::<Map<String, Value>>())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_texts_are_too_much_to_compare_fails_and_holds_up_nobody() {
    let fixture = open(with_sessions(&["a", "b"]).await, 2, &["c", "d"]).await;
    let keys = ["text.k1", "text.k2", "text.k3"];
    let of_both = [("a", "x"), ("b", "y")];
    let heavy =
        of_both.iter().flat_map(|(session, word)| keys.map(|key| put(session, key, texts(100, word), 1)));
    write(&fixture, heavy).await;
    let body = json!({ "session_id": "c", "context_key": "k", "context_value": 1, "version": 1,
        "access_level": "shared" });
    fixture.process(ContextWriter, [request("context.put", 2, body)]).await;
    let (heavy, neighbour) = (Sync::new(), Sync::new());
    let of_neighbour = neighbour.start_as(2, "context_transfer", "c", "d", json!({}));
    process(&fixture, [heavy.transfer("a", "b"), of_neighbour]).await;
    assert_eq!(neighbour.state(&fixture).await, "completed carried");
    assert_eq!(neighbour.counted(&fixture, "created").await, "1");
    assert_eq!(heavy.state(&fixture).await, "completed carried");
    assert_eq!(heavy.counted(&fixture, "failed").await, "3");
    let ended = payloads(&fixture, "sync.completed").await;
    let reasons: Vec<&str> =
        ended.iter().filter_map(|event| event["failures"][0]["reason"].as_str()).collect();
    assert!(!reasons.is_empty() && reasons.iter().all(|reason| reason.contains("cells")), "{reasons:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_has_computed_its_share_goes_on_at_the_next_tick() {
    const KEYS: usize = 170;
    let fixture = with_sessions(&["a", "b"]).await;
    without_wakes(&fixture).await;
    // 404,010 cells for each key.
    let key = |at: usize| format!("text.k{at:03}");
    let puts = |session: &'static str, word: &'static str| {
        (0..KEYS).map(move |at| put(session, &key(at), texts(10, word), 1)).collect::<Vec<_>>()
    };
    write(&fixture, puts("a", "x")).await;
    write(&fixture, puts("b", "y")).await;
    let sync = Sync::new();
    process(&fixture, [sync.transfer("a", "b")]).await;
    assert_eq!(sync.state(&fixture).await, "in_progress");
    assert_eq!(sync.counted(&fixture, "merged").await, "80", "32,000,000 cells");
    let worker = fixture.run(syncer(&fixture));
    tick(&fixture, Job::Carry).await;
    assert_eq!(sync.state(&fixture).await, "in_progress");
    assert_eq!(sync.counted(&fixture, "merged").await, "160", "as many in a tick, whose further rounds wait");
    tick(&fixture, Job::Carry).await;
    worker.stop().await.expect("a clean end");
    assert_eq!(sync.state(&fixture).await, "completed carried");
    assert_eq!(sync.counted(&fixture, "merged").await, KEYS.to_string());
    assert_eq!(sync.counted(&fixture, "failed").await, "0");
    let merged = "simple_chat_context WHERE session_id = 'b' AND context_value ->> 'm000' LIKE 'x %y'";
    assert_eq!(fixture.count(merged).await, i64::try_from(KEYS).expect("a number"));
}

/// Values that PostgreSQL stores in a hundredth of their size count as what they are.
#[tokio::test(flavor = "multi_thread")]
async fn a_round_and_an_undo_read_a_bounded_number_of_bytes() {
    const KEYS: i64 = 30;
    let mut fixture = with_sessions(&["a", "b"]).await;
    // Without optimization, 16 MiB take a while.
    let patience =
        "?options=-c%20statement_timeout%3D60000%20-c%20idle_in_transaction_session_timeout%3D60000";
    let url = fixture.settings.postgres.worker_url.clone().expect("a URL");
    fixture.settings.postgres.worker_url = Some(url + patience);
    without_wakes(&fixture).await;
    write(&fixture, (0..KEYS).map(|at| put("a", &format!("k{at:02}"), json!(at), 1))).await;
    fixture.execute("UPDATE simple_chat_context SET context_value = to_jsonb(repeat('x', 900000))").await;
    let sync = Sync::new();
    process(&fixture, [sync.transfer("a", "b")]).await;
    assert_eq!(sync.state(&fixture).await, "in_progress");
    assert_eq!(sync.counted(&fixture, "created").await, "19", "16 MiB");
    let worker = fixture.run(syncer(&fixture));
    tick(&fixture, Job::Carry).await;
    assert_eq!(sync.state(&fixture).await, "completed carried");
    let in_target = "simple_chat_context WHERE session_id = 'b'";
    assert_eq!(fixture.count(in_target).await, KEYS);
    // The session has put those that were carried last: they stay, and the others go back in several requests.
    let last = fixture
        .lines("context_key FROM sync_changes WHERE effect = 'created' ORDER BY position DESC LIMIT 12")
        .await;
    write(&fixture, last.iter().map(|key| put("b", key, json!(1), 1))).await;
    let mut requests = 0;
    while fixture.count(in_target).await > 12 {
        let before = fixture.count(in_target).await;
        fixture.publish([sync.undo()]).await;
        fixture.drained::<MemorySync>().await;
        assert!(fixture.count(in_target).await < before, "a request takes something back");
        requests += 1;
    }
    assert!(requests > 1, "what one request reads is bounded");
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
}

/// Each undo reads 5,000 changes, all of which stay: their keys are not there any more.
#[tokio::test(flavor = "multi_thread")]
async fn the_undos_of_a_batch_share_what_it_may_read() {
    const SYNCS: usize = 5;
    let fixture = with_sessions(&["a", "b"]).await;
    without_wakes(&fixture).await;
    let syncs = [(); SYNCS].map(|()| Sync::new());
    for sync in syncs {
        fixture
            .execute(&format!(
                "INSERT INTO cross_service_memory_sync (id, user_id, source_session_id, target_session_id, sync_type, sync_status,
                     data_transferred, service, completed_at)
                 VALUES ('{0}', 1, 'a', 'b', 'context_transfer', 'completed', '{{}}', 'test', now());
                 INSERT INTO sync_changes (id, user_id, sync_id, source_session_id, target_session_id, context_key, effect, after_digest)
                 SELECT gen_random_uuid(), 1, '{0}', 'a', 'b', 'k' || n, 'created', repeat('0', 64) FROM generate_series(1, 5000) AS n",
                sync.id
            ))
            .await;
    }
    // The second one of the first sync finds nothing to do, and that of the last one waits with the first one.
    let mut outcomes = fixture.subscribe("_INBOX.test.undo").await;
    let told = |sync: &Sync| sync.undo().with(header::REPLY_TO, "_INBOX.test.undo");
    let [first, .., last] = &syncs;
    let others = syncs[..SYNCS - 1].iter().map(|sync| sync.undo());
    fixture.publish(others.chain([told(last), first.undo(), told(last)])).await;
    process(&fixture, []).await;
    let outcome: Outcome = serde_json::from_slice(&next(&mut outcomes).await.payload).expect("an outcome");
    assert_eq!(outcome.status, OutcomeStatus::Applied, "{outcome:?}");
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    let undone = "blackboard_events WHERE event_type = 'sync.undone'";
    assert_eq!(fixture.count(undone).await, i64::try_from(SYNCS).expect("a number"));
    let transactions = fixture.lines(&format!("count(DISTINCT transaction_id) FROM {undone}")).await;
    assert_ne!(transactions, ["1"], "some have their turn in a later batch");
}

/// Each key may be a dispute, which is an event, and a tick with too many events would fail each time.
#[tokio::test(flavor = "multi_thread")]
async fn a_tick_compares_a_bounded_number_of_keys_in_all_its_rounds() {
    let fixture = with_sessions(&["a", "b", "c"]).await;
    without_wakes(&fixture).await;
    fixture
        .execute(
            "INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value, priority, access_level)
            SELECT gen_random_uuid(), 1, s, 'fact.' || n, to_jsonb(s), 1, 'shared'
            FROM unnest(ARRAY['a', 'b', 'c']) AS s, generate_series(1, 2600) AS n",
        )
        .await;
    let (one, other) = (Sync::new(), Sync::new());
    process(&fixture, [one.start("state_sync", "a", "b"), other.start("state_sync", "a", "c")]).await;
    let disputes = "blackboard_events WHERE event_type = 'sync.disputed'";
    assert_eq!(fixture.count(disputes).await, 1_000, "a round of each");
    let worker = fixture.run(syncer(&fixture));
    tick(&fixture, Job::Carry).await;
    assert_eq!(fixture.count(disputes).await, 5_000);
    tick(&fixture, Job::Carry).await;
    assert_eq!(fixture.count(disputes).await, 5_200);
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
}

/// Adds live syncs of user 1 that are due, and longer than any other.
async fn add_live(fixture: &Fixture, count: i32) {
    fixture
        .execute(&format!(
            "INSERT INTO cross_service_memory_sync (id, user_id, source_session_id, target_session_id, sync_type, sync_status,
                data_transferred, service, created_at)
            SELECT gen_random_uuid(), 1, 'a', 'b', 'state_sync', 'in_progress', '{{}}', 'test', now() - interval '1 hour'
            FROM generate_series(1, {count})"
        ))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_has_at_most_a_hundred_live_syncs() {
    let fixture = open(with_sessions(&["a", "b"]).await, 2, &["c", "d"]).await;
    without_wakes(&fixture).await;
    add_live(&fixture, 99).await;
    let (last, refused, transfer, other) = (Sync::new(), Sync::new(), Sync::new(), Sync::new());
    let of_other = other.start_as(2, "state_sync", "c", "d", json!({}));
    let of_user = [last.start("state_sync", "a", "b"), refused.start("state_sync", "a", "b")];
    process(&fixture, of_user.into_iter().chain([transfer.transfer("a", "b"), of_other])).await;
    assert_eq!(last.state(&fixture).await, "in_progress");
    assert_eq!(refused.state(&fixture).await, "", "not added");
    assert_eq!(transfer.state(&fixture).await, "completed carried");
    assert_eq!(other.state(&fixture).await, "in_progress");
    let letters = fixture.dead_letters().await;
    assert!(letters.len() == 1 && letters[0].contains("100 live syncs"), "{letters:?}");
    let next = Sync::new();
    process(&fixture, [last.stop()]).await;
    process(&fixture, [next.start("state_sync", "a", "b")]).await;
    assert_eq!(next.state(&fixture).await, "in_progress");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_due_syncs_of_a_user_keep_nobody_else_from_a_tick() {
    let fixture = open(with_sessions(&["a", "b"]).await, 2, &["c", "d"]).await;
    without_wakes(&fixture).await;
    let other = Sync::new();
    process(&fixture, [other.start_as(2, "state_sync", "c", "d", json!({}))]).await;
    add_live(&fixture, 250).await;
    let body = json!({ "session_id": "c", "context_key": "k", "context_value": 1, "version": 1,
        "access_level": "shared" });
    fixture.process(ContextWriter, [request("context.put", 2, body)]).await;
    let worker = fixture.run(syncer(&fixture));
    tick(&fixture, Job::Carry).await;
    assert_eq!(memory(&fixture, "d").await, ["k=1"]);
    assert_eq!(
        fixture.count("cross_service_memory_sync WHERE carried_at IS NULL").await,
        51,
        "200 of a tick"
    );
    worker.stop().await.expect("a clean end");
}
