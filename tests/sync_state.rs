//! `state_sync`: one session follows another, through chains and cycles, restarts and the end of its token.

use std::time::{Duration, SystemTime};

use context_writer::ContextWriter;
use memory_sync::{Job, MemorySync};
use serde_json::json;
use store::registry;
use testkit::{Fixture, eventually, request, set_redelivery, token};
use trust::TokenRequest;

use crate::support::sync::{
    Sync, memory, open, open_scheduled, payloads, process, put, put_as, syncer, tick, with_sessions,
    without_wakes, write,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_session_follows_another_until_it_ends() {
    let fixture = with_sessions(&["a", "b"]).await;
    write(&fixture, [put("a", "k", json!(1), 1)]).await;
    let sync = Sync::new();
    let worker = fixture.run(syncer(&fixture));
    fixture.publish([sync.start("state_sync", "a", "b")]).await;
    fixture.drained::<MemorySync>().await;
    assert_eq!(sync.state(&fixture).await, "in_progress");
    assert_eq!(memory(&fixture, "b").await, ["k=1"]);
    write(&fixture, [put("a", "k", json!(2), 2), put("a", "new", json!(1), 1)]).await;
    tick(&fixture, Job::Carry).await;
    assert_eq!(memory(&fixture, "b").await, ["k=2", "new=1"]);
    // A restart loses nothing.
    worker.stop().await.expect("a clean end");
    write(&fixture, [put("a", "k", json!(3), 3)]).await;
    let worker = fixture.run(syncer(&fixture));
    tick(&fixture, Job::Carry).await;
    assert_eq!(memory(&fixture, "b").await, ["k=3", "new=1"]);
    // What was written before the end still crosses.
    write(&fixture, [put("a", "k", json!(4), 4), request("session.close", 1, json!({ "session_id": "a" }))])
        .await;
    tick(&fixture, Job::Carry).await;
    assert_eq!(memory(&fixture, "b").await, ["k=4", "new=1"]);
    assert_eq!(sync.state(&fixture).await, "completed source-ended");
    let ended = payloads(&fixture, "sync.completed").await;
    assert_eq!(ended.len(), 2, "in both sessions");
    assert_eq!(ended[0]["transferred"]["fast_forwarded"], json!(3));
    worker.stop().await.expect("a clean end");
    let services =
        "source_agent_id FROM blackboard_events WHERE event_type = 'sync.completed' GROUP BY source_agent_id";
    assert_eq!(fixture.lines(services).await, ["job:sync-carry"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_a_sync_is_on_record() {
    let fixture = with_sessions(&["a", "b", "c"]).await;
    write(&fixture, [put("a", "k", json!(1), 1)]).await;
    let (stopped, expired, vanished) = (Sync::new(), Sync::new(), Sync::new());
    let worker = fixture.run(syncer(&fixture));
    let soon = (chrono::Utc::now() + Duration::from_millis(1)).to_rfc3339();
    fixture
        .publish([
            stopped.start("state_sync", "a", "b"),
            expired.start_as(1, "state_sync", "a", "b", json!({ "expires_at": soon })),
            vanished.start("state_sync", "a", "c"),
            stopped.stop(),
            stopped.stop(),
        ])
        .await;
    fixture.drained::<MemorySync>().await;
    write(&fixture, [request("session.close", 1, json!({ "session_id": "c" })), put("a", "k", json!(2), 2)])
        .await;
    tick(&fixture, Job::Carry).await;
    assert_eq!(stopped.state(&fixture).await, "completed stopped");
    assert_eq!(expired.state(&fixture).await, "completed expired");
    assert_eq!(vanished.state(&fixture).await, "completed target-ended");
    assert_eq!(memory(&fixture, "c").await, ["k=1"], "an ended session is not written");
    assert_eq!(memory(&fixture, "b").await, ["k=1"]);
    assert_eq!(fixture.count("blackboard_events WHERE event_type = 'sync.stopped'").await, 2);
    worker.stop().await.expect("a clean end");
}

/// What a sync carries on in the name of a service ends with what the service may do.
#[tokio::test(flavor = "multi_thread")]
async fn a_live_sync_ends_when_its_service_loses_the_scope_or_is_disabled() {
    let private = |value, version| put_as("a", "k", value, version, json!({ "access_level": "private" }));
    for (scopes, change) in [
        ("*:*", "UPDATE sec.services SET disabled_at = now() WHERE service = 'test'"),
        ("*:*", "UPDATE sec.services SET scopes = '{session:*,context:*}' WHERE service = 'test'"),
        ("*:*", "UPDATE sec.services SET scopes = '{sync:start,session:*,context:*}' WHERE service = 'test'"),
    ] {
        let fixture = with_sessions(&["a", "b"]).await;
        fixture.register("test", scopes).await;
        without_wakes(&fixture).await;
        write(&fixture, [private(json!(1), 1)]).await;
        let sync = Sync::new();
        let worker = fixture.run(syncer(&fixture));
        fixture.publish([sync.start("state_sync", "a", "b")]).await;
        fixture.drained::<MemorySync>().await;
        assert_eq!(memory(&fixture, "b").await, ["k=1"], "with the scope sync:private");
        write(&fixture, [private(json!(2), 2)]).await;
        fixture.execute(change).await;
        tick(&fixture, Job::Carry).await;
        assert_eq!(memory(&fixture, "b").await, ["k=1"], "{change}");
        assert_eq!(sync.state(&fixture).await, "failed not-allowed", "{change}");
        assert_eq!(payloads(&fixture, "sync.failed").await.len(), 2, "{change}: in both sessions");
        worker.stop().await.expect("a clean end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_sync_goes_on_after_its_token_has_expired_and_after_it_was_revoked() {
    let fixture = with_sessions(&["a", "b", "c"]).await;
    without_wakes(&fixture).await;
    write(&fixture, [put("a", "k", json!(1), 1)]).await;
    let worker = fixture.run(syncer(&fixture));
    let mut operator = fixture.connection().await;
    let now = SystemTime::now();
    let wanted = token::request("test", 1);
    let revoked = registry::issue(&mut operator, &token::issuer(), wanted.clone(), now).await;
    let (_, revoked) = revoked.expect("a token");
    // Clocks may differ by five seconds: eight are left.
    let wanted = TokenRequest { life: Duration::from_secs(60), ..wanted };
    let short = token::issuer().issue(&wanted, SystemTime::now() - Duration::from_secs(57)).expect("a token");
    let syncs = [Sync::new(), Sync::new()];
    fixture
        .publish([
            syncs[0].start("state_sync", "a", "b").with_token(&short.token),
            syncs[1].start("state_sync", "a", "c").with_token(&revoked.token),
        ])
        .await;
    fixture.drained::<MemorySync>().await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());

    assert_eq!(registry::revoke(&mut operator, &[revoked.id]).await.expect("a revocation"), 1);
    let over = short.expires + Duration::from_secs(5);
    eventually("its time is over", async || (SystemTime::now() >= over).then_some(())).await;
    let under = |token: &str| Sync::new().transfer("a", "b").with_token(token);
    fixture.publish([under(&short.token), under(&revoked.token)]).await;
    fixture.drained::<MemorySync>().await;
    let letters = fixture.dead_letters().await;
    assert_eq!(letters.len(), 2, "{letters:?}");
    assert!(letters.iter().all(|letter| letter.starts_with("denied: ")), "{letters:?}");

    for version in 2..4 {
        write(&fixture, [put("a", "k", json!(version), version)]).await;
        tick(&fixture, Job::Carry).await;
        for session in ["b", "c"] {
            assert_eq!(memory(&fixture, session).await, [format!("k={version}")], "{session}");
        }
    }
    for sync in syncs {
        assert_eq!(sync.state(&fixture).await, "in_progress");
    }
    // An operator who wants it to end has the service stop it, or disables the service.
    fixture.publish([syncs[1].stop()]).await;
    fixture.drained::<MemorySync>().await;
    assert_eq!(syncs[1].state(&fixture).await, "completed stopped");
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_whose_target_vanishes_midway_fails() {
    let fixture = with_sessions(&["a", "b"]).await;
    let many: Vec<_> = (0..700).map(|n| put("a", &format!("k{n:03}"), json!(n), 1)).collect();
    write(&fixture, many).await;
    let (whole, cut) = (Sync::new(), Sync::new());
    without_wakes(&fixture).await;
    process(&fixture, [cut.transfer("a", "b")]).await;
    assert_eq!(cut.state(&fixture).await, "in_progress");
    assert_eq!(memory(&fixture, "b").await.len(), 500);
    write(&fixture, [request("session.close", 1, json!({ "session_id": "b" }))]).await;
    let worker = fixture.run(syncer(&fixture));
    tick(&fixture, Job::Carry).await;
    assert_eq!(cut.state(&fixture).await, "failed target-ended");
    assert_eq!(payloads(&fixture, "sync.failed").await.len(), 2);
    // One that does not vanish gets the rest with the next tick.
    write(&fixture, [testkit::session(1, "b")]).await;
    fixture.publish([whole.transfer("a", "b")]).await;
    fixture.drained::<MemorySync>().await;
    tick(&fixture, Job::Carry).await;
    assert_eq!(whole.state(&fixture).await, "completed carried");
    assert_eq!(memory(&fixture, "b").await.len(), 700);
    assert_eq!(whole.counted(&fixture, "created").await, "200");
    assert_eq!(whole.counted(&fixture, "unchanged").await, "500");
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cycle_of_live_syncs_comes_to_rest() {
    let fixture = with_sessions(&["a", "b", "c"]).await;
    without_wakes(&fixture).await;
    write(
        &fixture,
        [
            put("a", "k", json!({ "a": 1 }), 1),
            put("b", "k", json!({ "b": 2 }), 1),
            put("c", "k", json!({ "c": 3 }), 1),
            put("b", "count.n", json!(7), 1),
        ],
    )
    .await;
    let worker = fixture.run(syncer(&fixture));
    let cycle = [("a", "b"), ("b", "c"), ("c", "a")];
    fixture.publish(cycle.map(|(source, target)| Sync::new().start("state_sync", source, target))).await;
    fixture.drained::<MemorySync>().await;
    let same = [r#"count.n=7"#, r#"k={"a": 1, "b": 2, "c": 3}"#];
    let mut ticks = 0;
    let carried = async || fixture.count("blackboard_events WHERE event_type = 'sync.carried'").await;
    loop {
        let before = carried().await;
        tick(&fixture, Job::Carry).await;
        ticks += 1;
        if carried().await == before {
            break;
        }
        assert!(ticks < 8, "it never comes to rest");
    }
    for session in ["a", "b", "c"] {
        assert_eq!(memory(&fixture, session).await, same, "{session}");
    }
    // Another tick finds nobody due: no mint for the user.
    let due = "sec.due_sync_carry(10)";
    tick(&fixture, Job::Carry).await;
    assert_eq!(fixture.count(due).await, 0, "at rest");
    // A write anywhere goes round once.
    write(&fixture, [put("c", "k", json!({ "a": 1, "b": 2, "c": 4 }), 2)]).await;
    for _ in 0..4 {
        tick(&fixture, Job::Carry).await;
    }
    for session in ["a", "b", "c"] {
        assert_eq!(
            memory(&fixture, session).await,
            [r#"count.n=7"#, r#"k={"a": 1, "b": 2, "c": 4}"#],
            "{session}"
        );
    }
    assert_eq!(fixture.count(due).await, 0, "at rest again");
    assert_eq!(fixture.count("sync_changes WHERE conflicts <> '[]'").await, 0);
    worker.stop().await.expect("a clean end");
}

/// How often the syncs of the cycle have written.
async fn rounds_of_cycle(fixture: &Fixture) -> i64 {
    let rounds = "sum(rounds) FROM cross_service_memory_sync WHERE target_session_id IN ('a', 'b', 'c')";
    fixture.lines(rounds).await[0].parse().expect("a number")
}

/// Waits until the sessions of the cycle hold this and nobody is due. Another sync of the user then shows that ticks go on and
/// write nothing there.
async fn cycle_rests(fixture: &Fixture, expected: &[&str], marker: i64) {
    eventually("all have the same, and nobody is due", async || {
        for session in ["a", "b", "c"] {
            if memory(fixture, session).await != expected {
                return None;
            }
        }
        (fixture.count("sec.due_sync_carry(10)").await == 0).then_some(())
    })
    .await;
    let rows = "concat_ws(' ', session_id, context_key, context_value, version, writes, xmin) FROM simple_chat_context
        WHERE session_id IN ('a', 'b', 'c') ORDER BY 1";
    let before = (fixture.lines(rows).await, rounds_of_cycle(fixture).await);
    fixture.publish([put("d", "marker", json!(marker), marker)]).await;
    let carried = [format!("marker={marker}")];
    eventually("a later tick has carried", async || (memory(fixture, "e").await == carried).then_some(()))
        .await;
    assert_eq!((fixture.lines(rows).await, rounds_of_cycle(fixture).await), before);
}

/// As it is shipped: each round's events wake the job again.
#[tokio::test(flavor = "multi_thread")]
async fn a_cycle_whose_events_wake_it_comes_to_rest() {
    let fixture = open_scheduled(Fixture::new().await, 1, &["a", "b", "c", "d", "e"]).await;
    let (syncs, writer) = (fixture.run(syncer(&fixture)), fixture.run(ContextWriter));
    let pairs = [("a", "b"), ("b", "c"), ("c", "a"), ("d", "e")];
    fixture.publish(pairs.map(|(source, target)| Sync::new().start("state_sync", source, target))).await;
    fixture.drained::<MemorySync>().await;
    fixture
        .publish([
            put("a", "k", json!({ "a": 1 }), 1),
            put("b", "k", json!({ "b": 2 }), 1),
            put("c", "k", json!({ "c": 3 }), 1),
            put("b", "count.n", json!(7), 1),
        ])
        .await;
    cycle_rests(&fixture, &["count.n=7", r#"k={"a": 1, "b": 2, "c": 3}"#], 1).await;
    // A round brings its target at least one of the four writes that two sessions each lacked.
    let rounds = rounds_of_cycle(&fixture).await;
    assert!(rounds <= 8, "{rounds} rounds");
    fixture.publish([put("c", "k", json!({ "a": 1, "b": 2, "c": 4 }), 2)]).await;
    cycle_rests(&fixture, &["count.n=7", r#"k={"a": 1, "b": 2, "c": 4}"#], 2).await;
    assert_eq!(rounds_of_cycle(&fixture).await, rounds + 2);
    writer.stop().await.expect("a clean end");
    syncs.stop().await.expect("a clean end");
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_sync_goes_on_under_job_grants_for_its_user_alone_and_decrypts_nothing() {
    let fixture = open(with_sessions(&["a", "b"]).await, 2, &["a", "b"]).await;
    let hidden = json!({ "access_level": "shared", "sensitive": true });
    write(&fixture, [put_as("a", "pin", json!("1234"), 1, hidden.clone()), put("a", "k", json!(1), 1)]).await;
    let sync = Sync::new();
    let worker = fixture.run(syncer(&fixture));
    fixture.publish([sync.start("state_sync", "a", "b")]).await;
    fixture.drained::<MemorySync>().await;
    let pins = "simple_chat_context WHERE context_key = 'pin' AND is_sensitive";
    assert_eq!(fixture.count(pins).await, 2, "the request has decrypted it");
    write(&fixture, [put_as("a", "pin", json!("5678"), 2, hidden), put("a", "k", json!(2), 2)]).await;
    tick(&fixture, Job::Carry).await;
    assert_eq!(memory(&fixture, "b").await, ["k=2", r#"pin="$encrypted""#]);
    assert_eq!(sync.counted(&fixture, "encrypted").await, "1", "job grants open no data keys");
    let users = "s.user_id FROM audit.data_access_log d JOIN audit.subjects s ON s.token = d.subject_token
        WHERE d.access_type = 'job-grant' AND d.object_name LIKE '%sync-carry%' GROUP BY s.user_id";
    let minted = fixture.lines(users).await;
    assert!(!minted.contains(&"2".to_owned()), "{minted:?}");
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_schedule_carries() {
    let fixture = Fixture::with_topology(|topology| {
        set_redelivery(topology, "memory-sync-jobs", Duration::from_secs(5), 100);
    })
    .await;
    let fixture = open_scheduled(fixture, 1, &["a", "b"]).await;
    without_wakes(&fixture).await;
    let worker = fixture.run(syncer(&fixture));
    fixture.publish([Sync::new().start("state_sync", "a", "b")]).await;
    fixture.drained::<MemorySync>().await;
    write(&fixture, [put("a", "k", json!(1), 1)]).await;
    eventually("it is carried", async || (memory(&fixture, "b").await == ["k=1"]).then_some(())).await;
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_wakes_a_live_sync_without_its_schedule() {
    // With the shipped permissions, too.
    for fixture in [Fixture::new().await, Fixture::secured().await] {
        let fixture = open(fixture, 1, &["a", "b", "c"]).await;
        let (syncs, writer) = (fixture.run(syncer(&fixture)), fixture.run(ContextWriter));
        let chain = [("a", "b"), ("b", "c")];
        fixture.publish(chain.map(|(source, target)| Sync::new().start("state_sync", source, target))).await;
        fixture.drained::<MemorySync>().await;
        for version in 1..4 {
            fixture.publish([put("a", "k", json!(version), version)]).await;
            let expected = [format!("k={version}")];
            eventually("it has gone through the chain", async || {
                (memory(&fixture, "c").await == expected).then_some(())
            })
            .await;
        }
        writer.stop().await.expect("a clean end");
        syncs.stop().await.expect("a clean end");
        assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
        assert!(fixture.stored("WAKES").await > 0);
    }
}
