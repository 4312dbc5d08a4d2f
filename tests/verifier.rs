//! A verifier that is shown another past: functions, operators and casts beside PostgreSQL's own hide no edit, and are found.

use testkit::Fixture;

use crate::isolation::validate;
use crate::seal::{report, sealed, tamper};

/// An update of the trail whose service was `test`.
const EDIT: &str = "UPDATE audit.audit_log SET service = 'other' WHERE operation = 'UPDATE'";

/// Asserts that an edit is found although the database hides it.
async fn assert_found(fixture: &Fixture, edit: &str, hide: &str, table: &str) {
    tamper(fixture, edit).await;
    let before = report(fixture).await;
    fixture.execute(hide).await;
    let after = report(fixture).await;
    assert!(before.edited > 0 && before == after, "{hide}: {before:?} {after:?}");
    assert!(after.findings.iter().all(|one| one.table == Some(table)), "{:?}", after.findings);
}

async fn assert_validated(fixture: &Fixture, finding: &str) {
    let (fine, report) = validate(fixture).await;
    let findings = report["findings"].as_array().expect("findings");
    let whats: Vec<&str> = findings.iter().filter_map(|one| one["what"].as_str()).collect();
    assert!(!fine && whats.iter().any(|what| what.starts_with(finding)), "{whats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_in_the_system_schema_hides_nothing() {
    let fixture = sealed().await;
    let hide = "CREATE FUNCTION pg_catalog.json_build_array(bigint, uuid, bigint, uuid, text, text, uuid, varchar, uuid,
            audit.operation, text, text, text[]) RETURNS json LANGUAGE sql STABLE AS $$
        SELECT (left(replace(json_build_array($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, 0)::text,
            '\"other\"', '\"test\"'), -4) || ']')::json $$";
    assert_found(&fixture, EDIT, hide, "audit.audit_log").await;
    assert_validated(&fixture, "function pg_catalog.json_build_array (oid ").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_before_the_systems_hides_nothing() {
    let fixture = sealed().await;
    let edit = "CREATE SCHEMA evil; CREATE TABLE evil.kept AS SELECT sha256(row_digest_after) AS edited, row_digest_after AS kept
            FROM audit.audit_log WHERE operation = 'UPDATE';
        UPDATE audit.audit_log SET row_digest_after = sha256(row_digest_after) WHERE operation = 'UPDATE'";
    let hide = "CREATE FUNCTION evil.encode(bytea, text) RETURNS text LANGUAGE sql STABLE AS $$
            SELECT pg_catalog.encode(coalesce((SELECT k.kept FROM evil.kept k WHERE k.edited = $1), $1), $2) $$;
        DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = evil, pg_catalog, public', current_database()); END $$";
    assert_found(&fixture, edit, hide, "audit.audit_log").await;
    assert_validated(&fixture, "setting search_path of the database").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_before_the_systems_misleads_no_validation() {
    let fixture = Fixture::new().await;
    fixture
        .execute(
            "GRANT EXECUTE ON FUNCTION pg_advisory_lock(bigint) TO PUBLIC;
             CREATE SCHEMA evil;
             CREATE FUNCTION evil.has_function_privilege(text, oid, text) RETURNS boolean LANGUAGE sql AS 'SELECT false';
             DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = evil, pg_catalog, public', current_database());
             END $$",
        )
        .await;
    assert_validated(&fixture, "pg_advisory_lock(bigint)").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cast_hides_nothing() {
    let fixture = sealed().await;
    let edit = "CREATE SCHEMA evil; CREATE TABLE evil.kept AS SELECT event_payload::text AS kept FROM blackboard_events
            WHERE user_id = 2;
        UPDATE blackboard_events SET event_payload = '\"edited\"' WHERE user_id = 2";
    let hide = "CREATE FUNCTION evil.show(jsonb) RETURNS text LANGUAGE sql STABLE STRICT AS $$
            SELECT CASE WHEN $1 = '\"edited\"' THEN (SELECT kept FROM evil.kept) ELSE format('%s', $1) END $$;
        GRANT USAGE ON SCHEMA evil TO PUBLIC; GRANT EXECUTE ON FUNCTION evil.show(jsonb) TO PUBLIC;
        GRANT SELECT ON evil.kept TO PUBLIC;
        CREATE CAST (jsonb AS text) WITH FUNCTION evil.show(jsonb)";
    assert_found(&fixture, edit, hide, "blackboard_events").await;
    assert_validated(&fixture, "cast between types of PostgreSQL jsonb.text (oid ").await;
}

/// The oid of an operator of PostgreSQL stays the same when somebody makes it call another function.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_operator_is_named() {
    let fixture = sealed().await;
    fixture
        .execute(
            "UPDATE pg_operator SET oprcode = 'int8le'::regproc WHERE oid = '<(bigint,bigint)'::regoperator",
        )
        .await;
    assert_validated(&fixture, "changed operator pg_catalog.< (oid ").await;
}
