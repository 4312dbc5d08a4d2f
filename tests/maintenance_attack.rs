//! Maintenance under attack: by the role of its worker, by roles that spoil partitions and inboxes, and by whoever holds the database.

use audit::{Accepted, Keep, Source, retire, verify};
use chrono::{TimeDelta, Utc};
use diesel_async::SimpleAsyncConnection as _;
use store::registry;
use testkit::attack::{assert_refused, attempt, attempt_for, grant, login, roles};
use testkit::{Fixture, eventually};
use uuid::Uuid;

use crate::seal::{anchors, key, report, seal_everything, sealed, tamper};
use crate::support::program::{Ended, memfleet, output};
use crate::support::{ROLE, two_users};

/// Neither by the version of the registry nor by the rows that the clean-up deletes.
#[tokio::test(flavor = "multi_thread")]
async fn no_clean_up_holds_up_a_revocation() {
    let fixture = Fixture::new().await;
    let (old, new) = (Uuid::now_v7(), Uuid::now_v7());
    fixture
        .execute(&format!(
            "INSERT INTO sec.revoked_grants (grant_id, expires_at) VALUES ('{old}', now() - interval '2 days');
             INSERT INTO cross_service_auth (token_id, service, user_id, scopes, key_id, issued_at, expires_at, grants_expire_at)
                 VALUES ('{old}', 'test', 0, '{{context:put}}', 'k', now() - interval '50 days', now() - interval '49 days',
                     now() - interval '40 days')"
        ))
        .await;
    let mut worker = login(&fixture, "w_retention_cleaner").await;
    worker.batch_execute("BEGIN; SET idle_in_transaction_session_timeout = 0").await.expect("its right");
    attempt(&mut worker, "SELECT * FROM audit.cleanup_old_data()").await.expect("a clean-up");
    let mut operator = fixture.connection().await;
    operator.batch_execute("SET lock_timeout = '1s'").await.expect("a setting");
    assert_eq!(registry::revoke(&mut operator, &[old, new]).await.expect("no waiting"), 1);
    let service = "test".parse().expect("a service");
    assert!(registry::disable_service(&mut operator, &service).await.expect("no waiting"));
    worker.batch_execute("COMMIT").await.expect("its end");
    assert_eq!(fixture.lines("grant_id FROM sec.revoked_grants").await, [new.to_string()]);
    assert_eq!(fixture.count(&format!("cross_service_auth WHERE token_id = '{old}'")).await, 0);
    // Nor does the clean-up wait for the operator.
    fixture
        .execute("INSERT INTO sec.revoked_grants (grant_id, expires_at) VALUES (gen_random_uuid(), now() - interval '2 days')")
        .await;
    operator.batch_execute("BEGIN").await.expect("a transaction");
    registry::revoke(&mut operator, &[Uuid::now_v7()]).await.expect("a revocation");
    attempt(&mut worker, "SELECT * FROM audit.cleanup_old_data()").await.expect("no waiting");
    operator.batch_execute("COMMIT").await.expect("its end");
}

/// Months are added while no event lies outside of them, and an event of the far future would never be due.
#[tokio::test(flavor = "multi_thread")]
async fn no_role_writes_an_event_that_lies_outside_of_the_months() {
    let fixture = two_users().await;
    let mut worker = login(&fixture, ROLE).await;
    let insert = |id: &str| {
        format!(
            "INSERT INTO blackboard_events (id, event_type, performative, source_agent_id, user_id, session_id, event_payload,
                 logical_timestamp, request_id)
             SELECT {id}, 'user.stored', 'inform', 'test', 1, '@account', '{{}}', 1000, gen_random_uuid()"
        )
    };
    let grants = [grant(1, ROLE)];
    for id in [
        "'ffffffff-ffff-7fff-bfff-ffffffffffff'::uuid",
        "'00000000-0000-7000-8000-000000000000'::uuid",
        "uuid7_at(now() + interval '25 hours')",
        "uuid7_at(now() - interval '9 days')",
    ] {
        let done = attempt_for(&mut worker, &grants, &insert(id)).await;
        assert_refused(done, "row-level security policy \"evidence\"", id);
    }
    // The clock of a worker may be another one, and a message may have waited.
    for id in ["uuid7_at(now() + interval '23 hours')", "uuid7_at(now() - interval '7 days')"] {
        assert_eq!(attempt_for(&mut worker, &grants, &insert(id)).await, Ok(1), "{id}");
    }
}

/// Who writes into the inbox of another worker has requests pass for processed, and who deletes from it has them take effect twice.
#[tokio::test(flavor = "multi_thread")]
async fn an_inbox_is_of_its_own_worker() {
    let fixture = two_users().await;
    let taken = fixture.count("inbox WHERE worker = 'context-writer' AND user_id = 1").await;
    let taken = usize::try_from(taken).expect("a count");
    assert!(taken > 0);
    let insert = |worker: &str| {
        format!(
            "INSERT INTO inbox (worker, user_id, message_id, event_id) VALUES ('{worker}', 1, gen_random_uuid(), gen_random_uuid())"
        )
    };
    let changes = [
        "UPDATE inbox SET event_count = 0 WHERE worker = 'context-writer'",
        "SELECT FROM generate_series(1, (SELECT sec.release_messages('context-writer', array_agg(user_id), array_agg(message_id))
             FROM inbox WHERE worker = 'context-writer'))",
    ];
    let roles = roles(&fixture).await;
    assert!(roles.len() > 5, "{roles:?}");
    for role in &roles {
        let mut worker = login(&fixture, role).await;
        let grants = [grant(1, role)];
        let name = role.trim_start_matches("w_").replace('_', "-");
        for own in [name.clone(), format!("{name}-jobs"), format!("{name}-wakes")] {
            assert_eq!(attempt_for(&mut worker, &grants, &insert(&own)).await, Ok(1), "{role}: {own}");
        }
        let is_own = role == ROLE;
        for other in ["context-writer", "context-writer-jobs", "memory-sync-wakes", "nobody"] {
            if other.starts_with(&name) {
                continue;
            }
            let done = attempt_for(&mut worker, &grants, &insert(other)).await;
            assert_refused(
                done,
                "row-level security policy \"own_worker_adds\"",
                &format!("{role}: {other}"),
            );
        }
        for sql in changes {
            let expected = if is_own { taken } else { 0 };
            assert_eq!(attempt_for(&mut worker, &grants, sql).await, Ok(expected), "{role}: {sql}");
        }
    }
    // No stream has these requests any more. The sweep deletes them.
    fixture.execute("UPDATE inbox SET received_at = now() - interval '8 days'").await;
    for role in &roles {
        let mut worker = login(&fixture, role).await;
        let may_delete = role == ROLE || role == "w_retention_cleaner";
        let expected = if may_delete { taken } else { 0 };
        let done = attempt_for(&mut worker, &[grant(1, role)], changes[1]).await;
        assert_eq!(done, Ok(expected), "{role}");
    }
}

/// Whoever holds the database sets a short policy there, and has the operator excuse what was removed.
#[tokio::test(flavor = "multi_thread")]
async fn no_short_policy_excuses_that_events_are_missing() {
    let fixture = sealed().await;
    let (key, later) = (key(&fixture), Utc::now() + TimeDelta::days(20));
    let keys = [key.public()];
    let keeps = [Keep { source: Source::Events, days: 10 }];
    retire(
        &mut fixture.connection().await,
        &anchors(&fixture),
        &key,
        Accepted::of_seals(&keys),
        &keeps,
        later,
        false,
    )
    .await
    .expect("a statement");
    tamper(
        &fixture,
        "DELETE FROM blackboard_events WHERE id = (SELECT min(id::text)::uuid FROM blackboard_events)",
    )
    .await;
    let verified = report(&fixture).await;
    assert_eq!((verified.missing, verified.findings.len()), (1, 2), "{:?}", verified.findings);
    let named = verified
        .findings
        .iter()
        .any(|one| one.problem.contains("it keeps rows of blackboard_events for 10 days; 30 are the least"));
    assert!(named, "{:?}", verified.findings);
}

/// Whoever holds the database puts other rows in the place of those that retention may have removed.
#[tokio::test(flavor = "multi_thread")]
async fn no_statement_excuses_a_row_that_was_exchanged() {
    let fixture = sealed().await;
    // Of three transactions: in the last one, the first event stands behind the second one.
    for _ in 0..3 {
        fixture
            .execute(
                "INSERT INTO blackboard_events (id, event_type, performative, source_agent_id, user_id, session_id, event_payload,
                     logical_timestamp) VALUES (uuid7(), 'user.stored', 'inform', 'moved', 1, '@account', '{}', 7)",
            )
            .await;
    }
    seal_everything(&fixture).await;
    let (key, later) = (key(&fixture), Utc::now() + TimeDelta::days(40));
    let keys = [key.public()];
    let keeps = [Keep { source: Source::Events, days: 30 }];
    retire(
        &mut fixture.connection().await,
        &anchors(&fixture),
        &key,
        Accepted::of_seals(&keys),
        &keeps,
        later,
        false,
    )
    .await
    .expect("a statement");
    assert_eq!(report(&fixture).await.findings, []);
    let of = "blackboard_events WHERE source_agent_id = 'moved'";
    let first = fixture.lines(&format!("id FROM {of} ORDER BY transaction_id LIMIT 1")).await.remove(0);
    tamper(
        &fixture,
        &format!(
            "UPDATE blackboard_events SET transaction_id = (SELECT max(transaction_id) FROM {of}), event_payload = '{{\"a\": 1}}',
                 user_id = 2 WHERE id = '{first}'"
        ),
    )
    .await;
    let verified = report(&fixture).await;
    let named: Vec<Option<String>> =
        verified.findings.iter().map(|one| one.row.map(|row| row.to_string())).collect();
    assert_eq!((named, verified.accounted), (vec![Some(first)], 0), "{:?}", verified.findings);
}

/// What comes of a verification if the seals are changed once it has read the first one, and before it reads the second one.
async fn while_it_reads<T>(fixture: &Fixture, change: &str, verification: impl Future<Output = T>) -> T {
    let mut open = fixture.connection().await;
    open.batch_execute("BEGIN; LOCK TABLE audit.security_violations").await.expect("a lock");
    let waits =
        "pg_locks JOIN pg_database d ON d.oid = database WHERE d.datname = current_database() AND NOT granted
        AND relation = 'audit.security_violations'::regclass";
    let (result, ()) = tokio::join!(verification, async {
        eventually("it reads the rows of the first seal", async || {
            (fixture.count(waits).await > 0).then_some(())
        })
        .await;
        open.batch_execute(&format!("UPDATE audit.seals {change}; COMMIT")).await.expect("a change");
    });
    result
}

/// Whoever holds the database has it show old seals when the true ones have been verified, and true ones when old ones were believed.
#[tokio::test(flavor = "multi_thread")]
async fn seals_that_change_while_they_are_verified_retire_and_excuse_nothing() {
    let fixture = sealed().await;
    let (key, anchors) = (key(&fixture), anchors(&fixture));
    let keys = [key.public()];
    let mut connection = fixture.connection().await;
    let rows = fixture.count("audit.audit_log").await;
    let keeps = [Keep { source: Source::AuditLog, days: 365 }];
    let young = retire(&mut connection, &anchors, &key, Accepted::of_seals(&keys), &keeps, Utc::now(), false);
    let old = "SET sealed_at = sealed_at - interval '72000 hours' WHERE number = 1";
    assert_eq!(while_it_reads(&fixture, old, young).await.expect("nothing"), []);
    assert_eq!((fixture.count("audit.audit_log").await, fixture.count("audit.retirements").await), (rows, 0));

    tamper(
        &fixture,
        "UPDATE audit.seals SET sealed_at = sealed_at + interval '72000 hours' WHERE number = 1",
    )
    .await;
    let later = Utc::now() + TimeDelta::days(366);
    retire(&mut connection, &anchors, &key, Accepted::of_seals(&keys), &keeps, later, false)
        .await
        .expect("rows");
    let verified = report(&fixture).await;
    assert_eq!((verified.findings, i64::try_from(verified.accounted)), (vec![], Ok(rows)));
    let verification = verify(&mut connection, Some(&anchors), Accepted::of_seals(&keys));
    let other = "SET sealed_at = sealed_at + interval '1 day' WHERE number = 3";
    let verified = while_it_reads(&fixture, other, verification).await.expect("a report");
    assert_eq!((i64::try_from(verified.missing), verified.accounted), (Ok(rows), 0));
    let says = "retirement 1 excuses nothing: the database showed another seal 3 when its rows were read";
    assert!(verified.findings.iter().any(|one| one.problem == says), "{:?}", verified.findings);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_stated_of_events_that_somebody_keeps() {
    let fixture = sealed().await;
    let retire = async || {
        let ended: Ended = output(memfleet(&fixture, &["audit", "retire", "--dry-run"])).await.into();
        assert!(ended.is_success(), "the trail goes on: {}", ended.all());
        ended.err
    };
    let stated = "nothing is stated of events";
    fixture
        .execute(
            "INSERT INTO retention_holds (id, user_id, table_name, reason) VALUES (gen_random_uuid(), 2, 'inbox', 'case 6');
             INSERT INTO data_retention_policies (id, user_id, table_name, keep_days, action)
                 VALUES (gen_random_uuid(), 2, 'blackboard_events', 700, 'delete')",
        )
        .await;
    assert!(!retire().await.contains(stated), "neither a hold on other rows nor a shorter policy");
    for (change, undo, reason) in [
        (
            "INSERT INTO retention_holds (id, user_id, reason) VALUES (gen_random_uuid(), 1, 'case 7')",
            "UPDATE retention_holds SET released_at = now()",
            "user 1 has a legal hold",
        ),
        (
            "INSERT INTO retention_holds (id, user_id, table_name, reason) VALUES (gen_random_uuid(), 1, 'blackboard_events', 'x')",
            "UPDATE retention_holds SET released_at = now()",
            "user 1 has a legal hold",
        ),
        (
            "UPDATE data_retention_policies SET keep_days = 1000 WHERE user_id = 2",
            "UPDATE data_retention_policies SET keep_days = 700 WHERE user_id = 2",
            "the policy of user 2 keeps 1000 days",
        ),
        (
            "UPDATE data_retention_policies SET keep_days = 29 WHERE table_name = 'blackboard_events'",
            "UPDATE data_retention_policies SET keep_days = 30 WHERE table_name = 'blackboard_events'",
            "the policy of blackboard_events keeps 29 days, and 30 are the least",
        ),
    ] {
        fixture.execute(change).await;
        let warned = retire().await;
        assert!(warned.contains(&format!("{stated}: {reason}")), "{change}: {warned}");
        fixture.execute(undo).await;
        assert!(!retire().await.contains(stated), "{undo}");
    }
}
