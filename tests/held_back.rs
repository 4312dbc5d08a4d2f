//! Old transactions that hold back sealing: whoever looks is told of them.

use std::process::Stdio;
use std::time::Duration;

use audit::{Cause, Holder, held_back};
use diesel_async::SimpleAsyncConnection;
use testkit::{Fixture, eventually, lines_on};

use crate::seal::{program, seal_everything, sealed, tamper};
use crate::support::program::{memfleet, output, signal, text};

/// Makes a row of the trail, after which all unsealed ones have waited for two minutes.
async fn old_row(fixture: &Fixture) {
    fixture.execute("UPDATE users SET username = username || '+' WHERE id = 2").await;
    tamper(
        fixture,
        "UPDATE audit.audit_log SET occurred_at = now() - interval '2 minutes'
         WHERE transaction_id >= (SELECT max(through_transaction) FROM audit.seals)",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_holds_back_sealing_is_named_by_the_sealer_and_the_status() {
    let fixture = sealed().await;
    let mut open = fixture.connection().await;
    let begin = "SET application_name = 'forgotten'; BEGIN; SELECT pg_current_xact_id()";
    open.batch_execute(begin).await.expect("a statement");
    fixture.execute("UPDATE users SET username = 'later' WHERE id = 1").await;
    let fresh = held_back(&mut fixture.connection().await).await.expect("an answer");
    assert_eq!(fresh, None, "a young row may wait");
    old_row(&fixture).await;

    let held = program(&fixture, &["seal"]).await;
    assert_eq!(
        (held.status.code(), text(&held.stdout)),
        (Some(1), "sealed 0 rows under 0 seals\n".to_owned())
    );
    let said = text(&held.stderr);
    let database = fixture.lines("current_database() FROM (VALUES (1)) AS one").await.remove(0);
    let holder =
        format!("(role memfleet, database {database}, application \"forgotten\", idle in transaction, for ");
    assert!(said.contains("of the audit trail since ") && said.contains(&holder), "{said}");
    let shown = output(memfleet(&fixture, &["status"])).await;
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    assert!(text(&shown.stdout).contains("            warning: rows of the audit trail since "), "{shown:?}");
    let json = text(&output(memfleet(&fixture, &["status", "--json"])).await.stdout);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let holders = json["postgres"]["sealing_held_back"]["holders"].as_array().expect("holders");
    let ours = holders.iter().find(|one| one["application"] == "forgotten").expect("the session");
    assert!(ours["kind"] == "session" && ours["pid"].is_i64() && ours["age_s"].is_i64(), "{ours}");

    open.batch_execute("COMMIT").await.expect("its end");
    seal_everything(&fixture).await;
    let json = text(&output(memfleet(&fixture, &["status", "--json"])).await.stdout);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["postgres"]["sealing_held_back"], serde_json::Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_of_another_database_is_named() {
    let (fixture, other) = (sealed().await, Fixture::new().await);
    let gid = format!("forgotten-{}", std::process::id());
    let prepare = format!("BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION '{gid}'");
    other.connection().await.batch_execute(&prepare).await.expect("a prepared transaction");
    old_row(&fixture).await;
    let held = held_back(&mut fixture.connection().await).await;
    let logged = {
        let mut sealer = memfleet(&fixture, &["audit", "seal", "--follow"]);
        sealer.env("MEMFLEET_AUDIT__SEAL_EVERY_S", "1").env("MEMFLEET_LOG__FILTER", "info");
        let sealer = sealer.stderr(Stdio::piped()).spawn().expect("the sealer");
        tokio::time::sleep(Duration::from_secs(5)).await;
        signal("TERM", sealer.id().expect("its id"));
        sealer.wait_with_output().await
    };
    // First of all, for the sake of the other tests on this server: nobody else would end it.
    let end = format!("ROLLBACK PREPARED '{gid}'");
    other.connection().await.batch_execute(&end).await.expect("its end");
    let held = held.expect("an answer").expect("it is held back");
    let ours =
        held.holders.iter().find(|one| matches!(one, Holder::Prepared { gid: found, .. } if *found == gid));
    assert!(ours.is_some_and(|ours| ours.to_string().contains("(role memfleet, database test")), "{held}");
    let logged = logged.expect("its output");
    assert!(logged.status.success(), "it goes on until it is stopped: {logged:?}");
    assert_eq!(text(&logged.stderr).matches(&gid).count(), 1, "{}", text(&logged.stderr));
}

/// Old rows of a transaction that ends while the sealer reads wait for no further run of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_back_until_the_sealer_has_read_is_sealed_by_its_second_pass() {
    let fixture = sealed().await;
    let mut open = fixture.connection().await;
    // The sealer looks which transactions are open before it comes to the locked table.
    let begin = "BEGIN; UPDATE users SET username = 'late' WHERE id = 1; SET LOCAL session_replication_role = replica;
        UPDATE audit.audit_log SET occurred_at = now() - interval '2 minutes'
        WHERE transaction_id = pg_current_xact_id()::text::bigint;
        LOCK TABLE audit.security_violations";
    open.batch_execute(begin).await.expect("a lock");
    let own = lines_on(&mut open, "pg_current_xact_id() FROM (VALUES (1)) AS one").await.remove(0);
    let is_oldest =
        format!("(VALUES (1)) AS one WHERE pg_snapshot_xmin(pg_current_snapshot()) = '{own}'::xid8");
    eventually("older transactions have ended", async || {
        (fixture.count(&is_oldest).await == 1).then_some(())
    })
    .await;
    let waits =
        "pg_locks JOIN pg_database d ON d.oid = database WHERE d.datname = current_database() AND NOT granted
        AND relation = 'audit.security_violations'::regclass";
    let (sealed, ()) = tokio::join!(fleet::sealer::seal(&fixture.settings), async {
        eventually("the sealer waits", async || (fixture.count(waits).await > 0).then_some(())).await;
        open.batch_execute("COMMIT").await.expect("a commit");
    });
    let sealed = sealed.expect("seals");
    let rows = fixture.count(&format!("audit.audit_log WHERE transaction_id = {own}")).await;
    assert!(rows > 0);
    assert_eq!((sealed.seals, i64::try_from(sealed.rows), sealed.held_back), (1, Ok(rows), None));
}

/// The part of `memfleet status` that says what holds back sealing.
async fn status(fixture: &Fixture) -> serde_json::Value {
    let json = text(&output(memfleet(fixture, &["status", "--json"])).await.stdout);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    json["postgres"]["sealing_held_back"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_keeps_the_lock_of_the_sealers_is_named() {
    let fixture = sealed().await;
    old_row(&fixture).await;
    // Transactions of other tests on the same server may hold it back too; they end.
    let caused = async |cause: &str| {
        eventually(cause, async || {
            let held = status(&fixture).await;
            (held["cause"] == *cause).then_some(held)
        })
        .await
    };
    assert_eq!(caused("unknown").await["holders"], serde_json::json!([]));
    let mut other = fixture.connection().await;
    let lock = "SET application_name = 'forgotten'; SELECT pg_advisory_lock(7882827065171471475)";
    other.batch_execute(lock).await.expect("the lock");
    let sealed = program(&fixture, &["seal"]).await;
    let said = text(&sealed.stderr);
    assert_eq!(sealed.status.code(), Some(1), "{said}");
    assert!(said.contains("the lock of the sealers is taken for more than 10 s by pid "), "{said}");
    assert!(said.contains("application \"forgotten\", idle"), "{said}");
    assert_eq!(caused("lock").await["holders"][0]["application"], "forgotten");
    other.batch_execute("SELECT pg_advisory_unlock_all()").await.expect("its end");
    seal_everything(&fixture).await;
    assert_eq!(status(&fixture).await, serde_json::Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_the_future_hide_no_row_that_waits() {
    let fixture = sealed().await;
    let mut open = fixture.connection().await;
    // In the order of the trail, a row of the open transaction stands before all that wait for it.
    open.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.expect("a statement");
    let transaction = lines_on(&mut open, "pg_current_xact_id() FROM (VALUES (1)) AS one").await.remove(0);
    old_row(&fixture).await;
    tamper(
        &fixture,
        &format!(
            "INSERT INTO audit.audit_log SELECT (jsonb_populate_record(l, jsonb_build_object('transaction_id', {transaction},
                'occurred_at', now() + interval '1 year'))).* FROM audit.audit_log l ORDER BY transaction_id LIMIT 1"
        ),
    )
    .await;
    let held = held_back(&mut fixture.connection().await).await.expect("an answer").expect("it is held back");
    assert_eq!(held.cause, Cause::Transactions, "{held}");
    open.batch_execute("ROLLBACK").await.expect("its end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subject_that_is_kept_from_its_seal_is_told() {
    let fixture = sealed().await;
    let mut open = fixture.connection().await;
    open.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.expect("a statement");
    fixture.execute("INSERT INTO users (id, username, email) VALUES (7, 'a', 'e')").await;
    let old = "UPDATE audit.subjects SET created_at = now() - interval '2 minutes' WHERE user_id = 7";
    tamper(&fixture, old).await;
    let held = held_back(&mut fixture.connection().await).await.expect("an answer").expect("it is held back");
    assert_eq!(held.cause, Cause::Transactions, "{held}");
    open.batch_execute("ROLLBACK").await.expect("its end");
    // However young it is, and whatever it says of itself.
    let future = "UPDATE audit.subjects SET created_at = 'infinity', transaction_id = 9000000000000000000 WHERE user_id = 7";
    tamper(&fixture, future).await;
    let sealed = program(&fixture, &["seal"]).await;
    let said = text(&sealed.stderr);
    assert_eq!(sealed.status.code(), Some(1), "{said}");
    assert!(
        said.contains("cannot be sealed: they are of transactions that this server has not begun"),
        "{said}"
    );
    assert_eq!(status(&fixture).await["cause"], "future");
    // It hides no old row that waits.
    old_row(&fixture).await;
    let held = held_back(&mut fixture.connection().await).await.expect("an answer").expect("it is held back");
    assert_ne!(held.cause, Cause::Future, "{held}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_search_path_hides_a_row_that_waits_or_is_written_to() {
    let fixture = sealed().await;
    fixture
        .execute(
            "CREATE SCHEMA evil;
             CREATE FUNCTION evil.pg_snapshot_xmin(pg_snapshot) RETURNS xid8 LANGUAGE sql AS
                 'SELECT ''9000000000000000000''::xid8';
             CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT ''-infinity''::timestamptz';
             DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = evil, pg_catalog, public', current_database());
             END $$",
        )
        .await;
    fixture.execute("SET search_path = public; UPDATE users SET username = 'x' WHERE id = 2").await;
    let old = "SET search_path = pg_catalog; SET session_replication_role = replica; UPDATE audit.audit_log SET occurred_at =
        now() - interval '2 minutes' WHERE transaction_id >= (SELECT max(through_transaction) FROM audit.seals)";
    fixture.execute(old).await;
    let mut open = fixture.connection().await;
    open.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.expect("a statement");
    assert_ne!(status(&fixture).await, serde_json::Value::Null);
    program(&fixture, &["seal"]).await;
    let listed = output(memfleet(&fixture, &["migrate", "status"])).await;
    assert!(listed.status.success(), "{listed:?}");
    assert_eq!(
        fixture
            .lines("to_regclass('evil.__diesel_schema_migrations') IS NULL FROM (VALUES (1)) AS one")
            .await,
        ["true"]
    );
}
