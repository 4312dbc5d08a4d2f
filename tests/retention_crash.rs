//! The job `maintenance` and `memfleet archive restore`, killed midway, and then done again.

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use diesel_async::SimpleAsyncConnection as _;
use testkit::{Fixture, eventually, set_redelivery};
use tokio::time::timeout;

use crate::archives::{filled, old_rows};
use crate::maintenance::{NEXT, drop_next};
use crate::support::archives::{TABLES, archive, ids, restore};
use crate::support::program::{memfleet, start_worker};
use crate::support::retention::{cleaner, sweep_all, without_schedule};
use crate::support::ticks::publish_tick;

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_that_is_killed_is_completed_by_the_next_run() {
    let fixture = Fixture::with_topology(|topology| {
        set_redelivery(topology, "retention-cleaner-jobs", Duration::from_secs(1), 1_000);
    })
    .await;
    without_schedule(&fixture).await;
    let jobs = fixture.consumer("JOBS", "retention-cleaner-jobs").await;
    for point in ["Taken:1", "Committed:1"] {
        drop_next(&fixture).await;
        fixture
            .execute(
                "INSERT INTO sec.revoked_grants (grant_id, expires_at) SELECT gen_random_uuid(), now() - interval '3 days'
                     FROM generate_series(1, 5)",
            )
            .await;
        let mut dying = start_worker(&fixture, "retention-cleaner", Some(point), &[]);
        publish_tick(&fixture, "maintenance").await;
        let ended = timeout(Duration::from_secs(60), dying.wait()).await.expect("it dies");
        assert_eq!(ended.expect("a status").signal(), Some(9), "killed at {point}");
        let mut survivor = start_worker(&fixture, "retention-cleaner", None, &[]);
        eventually("the tick is acknowledged", async || {
            let info = jobs.get_info().await.ok()?;
            (info.num_pending == 0 && info.num_ack_pending == 0).then_some(())
        })
        .await;
        survivor.start_kill().expect("SIGKILL");
        survivor.wait().await.expect("a status");
        let partition = format!("(VALUES (1)) AS one WHERE to_regclass({NEXT}) IS NOT NULL");
        assert_eq!(fixture.count(&partition).await, 1, "killed at {point}");
        let aged = "sec.revoked_grants WHERE expires_at < now() - interval '2 days'";
        assert_eq!(fixture.count(aged).await, 0, "killed at {point}");
    }
    assert!(fixture.count("job_runs WHERE job = 'maintenance'").await >= 1);
    assert_eq!(fixture.count("job_runs WHERE failure IS NOT NULL").await, 0);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
}

/// It has inserted rows, and waits to note them.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_killed_has_restored_nothing_and_is_complete_when_repeated() {
    let (fixture, _folder) = filled(1..=2).await;
    let before = old_rows(&fixture).await;
    archive(&fixture, &TABLES).await;
    let worker = fixture.run(cleaner(&fixture));
    sweep_all(&fixture).await;
    worker.stop().await.expect("a clean end");
    restore(&fixture, &["chat_mode_sessions"]).await;
    let contexts = ids(&fixture, "simple_chat_context").await;
    let mut other = fixture.connection().await;
    other.batch_execute("BEGIN; LOCK TABLE archive_restores IN EXCLUSIVE MODE").await.expect("a lock");
    let mut dying = memfleet(&fixture, &["archive", "restore", &contexts[0]]).spawn().expect("the program");
    let waits = "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
        AND query LIKE '%INSERT INTO archive_restores%'";
    eventually("it notes what it has restored", async || (fixture.count(waits).await == 1).then_some(()))
        .await;
    dying.start_kill().expect("SIGKILL");
    assert_eq!(dying.wait().await.expect("a status").signal(), Some(9));
    other.batch_execute("COMMIT").await.expect("no lock");
    let sessions =
        "pg_stat_activity WHERE datname = current_database() AND query LIKE '%INSERT INTO archive_restores%'
        AND query NOT LIKE '%pg_stat_activity%'";
    eventually("its transaction has ended", async || (fixture.count(sessions).await == 0).then_some(()))
        .await;
    let restored = "simple_chat_context WHERE session_id = 'ended'";
    assert_eq!(fixture.count(restored).await, 0);
    restore(&fixture, &TABLES).await;
    assert_eq!(old_rows(&fixture).await, before);
    assert_eq!(restore(&fixture, &TABLES).await, 0, "nothing is left to restore");
}
