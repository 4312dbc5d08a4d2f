//! Rows and seals that somebody adds or spoils, so that something else is not seen.

use audit::{Accepted, Difference, Report, verify};
use diesel_async::SimpleAsyncConnection;
use testkit::Fixture;

use crate::seal::{anchors, key, program, report, sealed, tamper};
use crate::support::program::text;

/// Adds a copy of a row of the trail that differs in these columns.
fn copy(change: &str) -> String {
    format!(
        "INSERT INTO audit.audit_log SELECT (jsonb_populate_record(l, {change})).* FROM audit.audit_log l
         WHERE id = (SELECT id FROM audit.audit_log WHERE operation = 'UPDATE' ORDER BY id LIMIT 1)"
    )
}

/// What a verification finds after a change that is taken back again.
async fn found_after(fixture: &Fixture, change: &str, with_anchors: bool) -> Report {
    let mut connection = fixture.connection().await;
    let hidden = format!("SET session_replication_role = replica; BEGIN; {change}");
    connection.batch_execute(&hidden).await.expect("a change");
    let anchors = with_anchors.then(|| anchors(fixture));
    verify(&mut connection, anchors.as_ref(), Accepted::of_seals(&[key(fixture).public()]))
        .await
        .expect("a report")
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_without_a_place_are_named() {
    let fixture = sealed().await;
    let nullable = "ALTER TABLE audit.audit_log DROP CONSTRAINT audit_log_pkey, ALTER COLUMN transaction_id DROP NOT NULL;";
    let id = "00000000-0000-7000-8000-000000000001";
    let added = copy(&format!("jsonb_build_object('id', '{id}', 'transaction_id', NULL)"));
    let whole = found_after(&fixture, &format!("{nullable} {added}"), true).await;
    let found = &whole.findings;
    assert_eq!((whole.added, whole.unsealed, found.len()), (1, 0, 1), "{found:?}");
    assert_eq!((found[0].seal, found[0].table), (None, Some("audit.audit_log")));
    assert_eq!(found[0].row.map(|row| row.to_string()).as_deref(), Some(id));
    // The catalog says that there is no NULL, and PostgreSQL looks for none.
    let denied = format!(
        "{nullable} {added}; UPDATE pg_attribute SET attnotnull = true WHERE attname = 'transaction_id'
            AND attrelid IN (SELECT c.oid FROM pg_class c WHERE c.relname LIKE 'audit_log%')"
    );
    let whole = found_after(&fixture, &denied, true).await;
    assert_eq!((whole.added, whole.findings.len()), (1, 1), "{:?}", whole.findings);
    // A row whose id is NULL stands among those of its transaction.
    let nobody = "ALTER TABLE audit.security_violations DROP CONSTRAINT security_violations_pkey, ALTER COLUMN id DROP NOT NULL;
        INSERT INTO audit.security_violations (id, role_name, violation_type, severity, reason, transaction_id)
        SELECT NULL, 'r', 't', 'low', 'x', min(transaction_id) FROM audit.audit_log";
    let whole = found_after(&fixture, nobody, true).await;
    assert_eq!(whole.added, 1, "{:?}", whole.findings);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_before_all_others_is_named() {
    let fixture = sealed().await;
    let nil = "00000000-0000-0000-0000-000000000000";
    let first = format!(
        "INSERT INTO blackboard_events SELECT (jsonb_populate_record(e, jsonb_build_object('id', '{nil}',
            'transaction_id', -9223372036854775808))).* FROM blackboard_events e WHERE user_id = 2"
    );
    let whole = found_after(&fixture, &first, true).await;
    assert_eq!((whole.added, whole.findings.len()), (1, 1), "{:?}", whole.findings);
    assert_eq!((whole.findings[0].seal, whole.findings[0].difference), (Some(1), Some(Difference::Added)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_added_rows_hides_no_edit() {
    let fixture = sealed().await;
    let flood = "INSERT INTO audit.data_access_log (id, role_name, access_type, object_name, rows_returned, transaction_id)
        SELECT ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'r', 'read', 'x', 0, t.first
        FROM generate_series(1, 25000) AS n, (SELECT min(transaction_id) AS first FROM audit.audit_log WHERE
            transaction_id > (SELECT through_transaction FROM audit.seals WHERE number = 2)) AS t;
        UPDATE audit.audit_log SET service = 'other' WHERE operation = 'UPDATE'";
    let whole = found_after(&fixture, flood, true).await;
    assert_eq!((whole.added, whole.edited, whole.missing, whole.broken_seals), (25_000, 2, 0, 1));
    let edited = whole.findings.iter().filter(|one| one.difference == Some(Difference::Edited));
    assert_eq!(edited.count(), 2, "{:?}", whole.findings);
}

/// An edit of a row under the second seal.
const EDIT: &str = "UPDATE audit.audit_log SET service = 'other' WHERE id = (SELECT id FROM audit.audit_log
    WHERE operation = 'INSERT' AND table_name = 'simple_chat_context' ORDER BY id LIMIT 1)";

#[tokio::test(flavor = "multi_thread")]
async fn a_spoiled_or_missing_seal_hides_no_edit() {
    let fixture = sealed().await;
    let spoil = "UPDATE audit.seals SET signature = sha512(signature) WHERE number = 2";
    for (change, with_anchors, seals, proven) in [
        (format!("{spoil}; {EDIT}"), true, vec![2, 2], true),
        // Nothing says that the list of rows is the sealed one.
        (format!("{spoil}; {EDIT}"), false, vec![2, 2], false),
        ("DELETE FROM audit.seals WHERE number = 1;".to_owned() + EDIT, true, vec![1, 2], true),
    ] {
        let whole = found_after(&fixture, &change, with_anchors).await;
        let found = &whole.findings;
        assert_eq!(found.iter().filter_map(|one| one.seal).collect::<Vec<_>>(), seals, "{change}: {found:?}");
        assert_eq!((whole.edited, whole.added, whole.missing), (1, 0, 0), "{change}: {found:?}");
        assert_eq!(found[1].table, Some("audit.audit_log"), "{change}");
        assert_eq!(
            found[1].problem.ends_with("(by a list of rows that nothing proves)"),
            !proven,
            "{change}"
        );
    }
}

/// Neither those that are beyond what a program can add a day to, nor those beyond what it can read.
#[tokio::test(flavor = "multi_thread")]
async fn no_time_of_a_seal_or_a_row_ends_the_verification() {
    let fixture = sealed().await;
    for time in ["262142-12-31 23:00:00+00", "290000-01-01", "infinity", "-infinity"] {
        let seal = format!("UPDATE audit.seals SET sealed_at = '{time}' WHERE number = 2; {EDIT}");
        let whole = found_after(&fixture, &seal, true).await;
        assert_eq!((whole.seals, whole.edited, whole.findings[0].seal), (3, 1, Some(2)), "{time}: {whole:?}");
    }
    fixture.execute("DELETE FROM blackboard_events WHERE user_id = 2").await;
    tamper(&fixture, "UPDATE audit.audit_log SET occurred_at = 'infinity' WHERE operation = 'DELETE'").await;
    let whole = report(&fixture).await;
    assert_eq!((whole.missing, whole.excused_without_proof), (1, 1), "{:?}", whole.findings);
    // A value that no row can have is a finding too.
    let nothing = "ALTER TABLE audit.seals ALTER root DROP NOT NULL; UPDATE audit.seals SET root = NULL WHERE number = 1;";
    let whole = found_after(&fixture, nothing, false).await;
    assert!(whole.findings[0].problem.starts_with("the rest cannot be read: "), "{:?}", whole.findings);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_subject_of_a_user_is_named() {
    let fixture = sealed().await;
    fixture
        .execute(
            "ALTER TABLE audit.subjects DROP CONSTRAINT subjects_pkey;
             INSERT INTO audit.subjects (user_id) VALUES (1)",
        )
        .await;
    tamper(&fixture, EDIT).await;
    let whole = report(&fixture).await;
    let said: Vec<String> = whole.findings.iter().map(ToString::to_string).collect();
    assert!(said.iter().any(|one| one.starts_with("the database: user 1 has more than one row")), "{said:?}");
    assert!(said.iter().any(|one| one.contains(" of audit.audit_log: it was changed")), "{said:?}");
    let verified = program(&fixture, &["verify"]).await;
    assert_eq!(verified.status.code(), Some(1), "{}", text(&verified.stderr));
}
