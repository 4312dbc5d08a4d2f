//! A verifier that is shown another past: functions, operators and casts beside PostgreSQL's own hide no edit, and are found.

use std::process::Command;

use audit::{Accepted, AuditError, Difference, Report, verify};
use diesel_async::SimpleAsyncConnection as _;
use testkit::{Fixture, eventually};

use crate::seal::{anchors, key, program, report, sealed, tamper};
use crate::support::program::text;
use crate::validation::validate;

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
    assert_doubted(&fixture, "the operator < (oid 412) calls int8le").await;
}

/// Asserts that a verification says that the database does not show what it stores.
async fn assert_doubted(fixture: &Fixture, says: &str) -> Report {
    let report = report(fixture).await;
    let found = report.findings.iter().find(|one| one.seal.is_none() && one.problem.starts_with(says));
    assert!(found.is_some(), "{says}: {:?}", report.findings);
    let verified = program(fixture, &["verify"]).await;
    assert_eq!(verified.status.code(), Some(1), "{verified:?}");
    assert!(text(&verified.stdout).contains(says), "{verified:?}");
    report
}

/// Edits an event, and has its type send what was there before.
async fn hide_an_event(fixture: &Fixture) {
    fixture
        .execute(
            "CREATE SCHEMA evil;
             CREATE TABLE evil.kept AS SELECT event_payload AS kept FROM blackboard_events WHERE user_id = 2;
             CREATE FUNCTION pg_toast.jsonb_send(jsonb) RETURNS bytea LANGUAGE plpgsql AS $$ BEGIN
                 RETURN pg_catalog.jsonb_send(CASE WHEN $1 = '\"edited\"' THEN (SELECT kept FROM evil.kept) ELSE $1 END);
             END $$;
             SET allow_system_table_mods = on; ALTER TYPE pg_catalog.jsonb SET (SEND = pg_toast.jsonb_send)",
        )
        .await;
    tamper(fixture, "UPDATE blackboard_events SET event_payload = '\"edited\"' WHERE user_id = 2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_function_of_a_type_of_postgresql_hides_nothing() {
    let fixture = sealed().await;
    hide_an_event(&fixture).await;
    let says = "values of the type jsonb are sent by pg_toast.jsonb_send and not by jsonb_send of PostgreSQL";
    assert_doubted(&fixture, says).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_of_ones_own_hides_nothing() {
    let fixture = sealed().await;
    tamper(&fixture, EDIT).await;
    fixture
        .execute(
            "CREATE TYPE pg_toast.texty;
             CREATE FUNCTION pg_toast.texty_in(cstring) RETURNS pg_toast.texty LANGUAGE internal IMMUTABLE STRICT AS 'textin';
             CREATE FUNCTION pg_toast.texty_out(pg_toast.texty) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
             CREATE TYPE pg_toast.texty (INPUT = pg_toast.texty_in, OUTPUT = pg_toast.texty_out, LIKE = text);
             CREATE CAST (text AS pg_toast.texty) WITHOUT FUNCTION AS IMPLICIT;
             CREATE CAST (pg_toast.texty AS text) WITHOUT FUNCTION AS IMPLICIT;
             CREATE FUNCTION pg_toast.texty_send(pg_toast.texty) RETURNS bytea LANGUAGE plpgsql AS $$ BEGIN
                 RETURN pg_catalog.textsend(CASE WHEN $1::text = 'other' THEN 'test' ELSE $1::text END); END $$;
             ALTER TYPE pg_toast.texty SET (SEND = pg_toast.texty_send);
             ALTER TABLE audit.audit_log ALTER COLUMN service TYPE pg_toast.texty",
        )
        .await;
    let says = "the column service of audit.audit_log is of the type pg_toast.texty and not text";
    let report = assert_doubted(&fixture, says).await;
    let edited = report.findings.iter().filter(|one| one.difference == Some(Difference::Edited));
    assert!(edited.count() > 0, "a value of another type proves nothing: {:?}", report.findings);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_or_a_foreign_table_in_the_place_of_a_table_is_named() {
    let fixture = sealed().await;
    fixture
        .execute(
            "ALTER TABLE audit.security_violations RENAME TO kept;
             CREATE VIEW audit.security_violations AS SELECT * FROM audit.kept;
             CREATE TABLE audit.more () INHERITS (audit.data_access_log);
             ALTER TABLE audit.data_access_log DROP COLUMN object_name;
             ALTER TABLE audit.data_access_log ADD COLUMN object_name varchar(128) GENERATED ALWAYS AS ('x') STORED",
        )
        .await;
    for says in [
        "audit.security_violations is a view and not a table",
        "audit.more inherits from audit.data_access_log and is not a partition of it",
        "the column object_name of audit.data_access_log is computed",
    ] {
        assert_doubted(&fixture, says).await;
    }
    let fixture = sealed().await;
    fixture
        .execute(
            "ALTER TABLE blackboard_events DROP CONSTRAINT blackboard_events_pkey;
             ALTER TABLE blackboard_events DETACH PARTITION blackboard_events_default;
             CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER elsewhere FOREIGN DATA WRAPPER nothing;
             CREATE FOREIGN TABLE shown PARTITION OF blackboard_events DEFAULT SERVER elsewhere",
        )
        .await;
    assert_doubted(&fixture, "public.shown is a foreign table and not a table").await;
    // What cannot be read is said too.
    assert_doubted(&fixture, "the rest cannot be read: ").await;
}

/// An index that is not kept up for a while holds what a row was before.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_with_other_values_hides_nothing() {
    let fixture = sealed().await;
    let shown = "concat_ws(' ', token, created_at) FROM audit.subjects WHERE transaction_id > 0 ORDER BY transaction_id, token";
    fixture
        .execute(
            "CREATE INDEX shown ON audit.subjects (transaction_id, token) INCLUDE (user_id, created_at, digest_key);
             DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET enable_seqscan = off', current_database()); END $$",
        )
        .await;
    let before = fixture.lines(shown).await;
    let kept_up = |flag: bool| {
        format!(
            "UPDATE pg_index SET indisready = {flag}, indisvalid = {flag} WHERE indexrelid = 'audit.shown'::regclass"
        )
    };
    fixture.execute(&kept_up(false)).await;
    let edit = "UPDATE audit.subjects SET created_at = created_at - interval '1 hour' WHERE user_id = 2";
    tamper(&fixture, edit).await;
    // PostgreSQL looks into an index alone once it knows that everybody sees all rows of a page.
    eventually("everybody sees all rows", async || {
        fixture.execute("VACUUM (ANALYZE) audit.subjects").await;
        let all =
            "pg_class WHERE oid = 'audit.subjects'::regclass AND relpages > 0 AND relallvisible = relpages";
        (fixture.count(all).await == 1).then_some(())
    })
    .await;
    fixture.execute(&kept_up(true)).await;
    assert_eq!(fixture.lines(shown).await, before, "the index hides the edit from others");
    let report = report(&fixture).await;
    let tables: Vec<_> = report.findings.iter().map(|one| one.table).collect();
    assert_eq!((tables, report.edited + report.missing), (vec![Some("audit.subjects")], 1));
}

/// A copy of the fixture's database in another one, by `pg_dump` and `pg_restore`.
async fn restored(fixture: &Fixture) -> store::Connection {
    let programs = stack::Programs::find().expect("programs");
    let tool = |name: &str| programs.postgres_bin.join(name).display().to_string();
    let name = format!("copy_{}", uuid::Uuid::now_v7().simple());
    fixture.execute(&format!("CREATE DATABASE {name}")).await;
    let url = &fixture.settings.postgres.url;
    let copy = format!("{}/{name}", url.rsplit_once('/').expect("a database").0);
    let (dump, restore) = (tool("pg_dump"), tool("pg_restore"));
    let command = format!("{dump} -Fc '{url}' | {restore} --no-owner --exit-on-error -d '{copy}'");
    let done = Command::new("sh").args(["-c", &command]).output().expect("a shell");
    assert!(done.status.success(), "{}", text(&done.stderr));
    store::connect(&copy).await.expect("the copy")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_restored_elsewhere_is_verified() {
    let fixture = sealed().await;
    let keys = [key(&fixture).public()];
    let mut copy = restored(&fixture).await;
    let verified =
        verify(&mut copy, Some(&anchors(&fixture)), Accepted::of_seals(&keys)).await.expect("a report");
    assert_eq!((verified.findings, verified.seals, verified.rows), (vec![], 3, 18));
    // What the original hides, the copy does not: a dump has no functions of PostgreSQL's own schemas.
    hide_an_event(&fixture).await;
    let mut copy = restored(&fixture).await;
    let verified =
        verify(&mut copy, Some(&anchors(&fixture)), Accepted::of_seals(&keys)).await.expect("a report");
    assert_eq!((verified.edited, verified.findings.len()), (1, 1), "{:?}", verified.findings);
}

/// A view in the place of a table of the trail, which leaves out what it likes.
const VIEW: &str = "ALTER TABLE audit.data_access_log RENAME TO data_access_log2;
    CREATE VIEW audit.data_access_log AS SELECT * FROM audit.data_access_log2 WHERE rows_returned <> 7";

/// PostgreSQL calls a function of its own as it was compiled, unless its planner puts the body of another one in the place of the call.
#[tokio::test(flavor = "multi_thread")]
async fn a_function_of_postgresql_that_the_planner_replaces_hides_nothing() {
    let fixture = sealed().await;
    let replace = "CREATE OR REPLACE FUNCTION pg_catalog.to_regclass(text) RETURNS regclass LANGUAGE sql STABLE STRICT AS $$
            SELECT pg_catalog.to_regclass(CASE $1 WHEN 'audit.data_access_log' THEN 'audit.data_access_log2' ELSE $1 END) $$;
        CREATE OR REPLACE FUNCTION pg_catalog.regexp_replace(string text, pattern text, replacement text) RETURNS text
            LANGUAGE sql IMMUTABLE STRICT AS $$ SELECT pg_catalog.regexp_replace($1, $2, $3) $$";
    fixture.execute(&format!("{VIEW}; {replace}")).await;
    assert_doubted(&fixture, "the function to_regclass of PostgreSQL (oid 3495) was replaced").await;
    assert_doubted(&fixture, "the function regexp_replace of PostgreSQL (oid 2284) was replaced").await;
    assert_validated(&fixture, "the function to_regclass of PostgreSQL").await;
    assert_validated(&fixture, "the function regexp_replace of PostgreSQL").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_in_the_place_of_a_catalog_hides_nothing() {
    let fixture = sealed().await;
    let hide = "SET allow_system_table_mods = on;
        CREATE VIEW pg_toast.shown AS SELECT oid, relname, relnamespace, reltype, reloftype, relowner, relam, relfilenode,
            reltablespace, relpages, reltuples, relallvisible, reltoastrelid, relhasindex, relisshared, relpersistence,
            CASE relname WHEN 'data_access_log' THEN 'r' ELSE relkind END AS relkind, relnatts, relchecks, relhasrules,
            relhastriggers, relhassubclass, relrowsecurity, relforcerowsecurity, relispopulated, relreplident, relispartition,
            relrewrite, relfrozenxid, relminmxid, relacl, reloptions, relpartbound, xmin FROM pg_catalog.pg_class;
        UPDATE pg_catalog.pg_class SET relname = CASE oid WHEN 1259 THEN 'pg_class_real' ELSE 'pg_class' END, relnamespace = 11
        WHERE oid IN (1259, 'pg_toast.shown'::regclass)";
    fixture.execute(&format!("{VIEW}; {hide}")).await;
    let says = "the name pg_catalog.pg_class stands for another relation than PostgreSQL's";
    assert_doubted(&fixture, says).await;
    assert_validated(&fixture, says).await;
}

/// Both looks at the catalogs see a table, and what is read between them is a view.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_another_one_for_a_while_is_named() {
    let fixture = sealed().await;
    let mut open = fixture.connection().await;
    open.batch_execute("BEGIN; LOCK TABLE audit.audit_log").await.expect("a lock");
    let waits =
        "pg_locks JOIN pg_database d ON d.oid = database WHERE d.datname = current_database() AND NOT granted
        AND relation = 'audit.audit_log'::regclass";
    let (report, ()) = tokio::join!(report(&fixture), async {
        eventually("it reads", async || (fixture.count(waits).await > 0).then_some(())).await;
        fixture.execute(VIEW).await;
        let back =
            "DROP VIEW audit.data_access_log; ALTER TABLE audit.data_access_log2 RENAME TO data_access_log";
        fixture.execute(back).await;
        open.batch_execute("COMMIT").await.expect("an end");
    });
    let says = "audit.data_access_log was changed while the trail was verified";
    assert!(report.findings.iter().any(|one| one.problem.starts_with(says)), "{:?}", report.findings);
}

/// Rows that nobody signed are counted, and bury nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_false_retirements_hides_no_edit() {
    let fixture = sealed().await;
    tamper(&fixture, EDIT).await;
    let edited = report(&fixture).await.findings.len();
    fixture
        .execute(
            "INSERT INTO audit.retirements (number, source, through_seal, seal_hash, keep_days, retired_at, key_name, signature)
             SELECT n, 1, 1, sha256('x'), 400, now(), 'test', sha512('x') FROM generate_series(1, 5000) AS n",
        )
        .await;
    let found = report(&fixture).await.findings;
    assert_eq!(found.len(), 21 + edited, "{found:?}");
    assert!(found.iter().any(|one| one.problem.starts_with("4980 more retirements excuse nothing")));
    assert!(found.iter().any(|one| one.difference == Some(Difference::Edited)), "{found:?}");
}

/// The rows of the trail are not read for each forged seal again.
#[tokio::test(flavor = "multi_thread")]
async fn forged_seals_have_no_rows_read() {
    let fixture = sealed().await;
    fixture
        .execute(
            "INSERT INTO audit.seals (number, previous_hash, through_transaction, through_id, leaves, root, sealed_at, key_name,
                 signature, format)
             SELECT 3 + n, s.previous_hash, CASE n % 2 WHEN 0 THEN s.through_transaction ELSE 0 END, s.through_id, s.leaves, s.root,
                 s.sealed_at, s.key_name, s.signature, s.format FROM audit.seals s, generate_series(1, 50) AS n WHERE s.number = 3",
        )
        .await;
    let verified = report(&fixture).await;
    let seals: Vec<Option<i64>> = verified.findings.iter().map(|one| one.seal).collect();
    assert_eq!(seals, [Some(4), Some(4), Some(5)], "{:?}", verified.findings);
    assert!(verified.findings[1].problem.starts_with("it ends where"), "{:?}", verified.findings);
    assert!(verified.findings[2].problem.contains("49 of them"), "{:?}", verified.findings);
    // Without anchors, nobody knows which seal is the last one. No row is called missing: none was read.
    let keys = [key(&fixture).public()];
    let alone =
        verify(&mut fixture.connection().await, None, Accepted::of_seals(&keys)).await.expect("a report");
    assert_eq!((alone.seals, alone.broken_seals, alone.missing, alone.added), (53, 50, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_keeps_the_trail_locked_is_named() {
    let fixture = sealed().await;
    let mut open = fixture.connection().await;
    let keep = "SET application_name = 'keeper'; SET idle_in_transaction_session_timeout = 0; BEGIN; LOCK TABLE audit.seals";
    open.batch_execute(keep).await.expect("a lock");
    let keys = [key(&fixture).public()];
    let error = verify(&mut fixture.connection().await, None, Accepted::of_seals(&keys))
        .await
        .expect_err("nothing can be read");
    assert!(
        matches!(error, AuditError::Blocked { .. }) && error.to_string().contains("\"keeper\""),
        "{error}"
    );
}
