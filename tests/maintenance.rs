//! Maintenance: partitions, dead rows, bloated indexes, what ages out, and the trail whose retention is over.

use audit::{Accepted, AuditError, Keep, RetiredRows, Source, retire};
use chrono::{TimeDelta, Utc};
use serde_json::Value;
use testkit::{Fixture, eventually};

use crate::seal::{anchors, key, report, sealed, tamper};
use crate::support::program::{Ended, memfleet, output};
use crate::support::retention::cleaner;
use crate::support::ticks;

async fn run(fixture: &Fixture, arguments: &[&str]) -> Ended {
    output(memfleet(fixture, arguments)).await.into()
}

/// The steps of a run, by their text.
fn steps(ended: &Ended) -> Vec<String> {
    let steps: Value = serde_json::from_str(ended.out.trim()).expect("JSON");
    let steps = steps["steps"].as_array().expect("steps");
    steps.iter().map(|step| step["what"].as_str().expect("a text").to_owned()).collect()
}

/// The partition of the audit trail of the next month.
pub const NEXT: &str = "'audit.audit_log' || to_char(date_trunc('month', now() AT TIME ZONE 'UTC') + interval '1 month', '_YYYY_MM')";

pub async fn drop_next(fixture: &Fixture) {
    fixture.execute(&format!("DO $$ BEGIN EXECUTE 'DROP TABLE ' || {NEXT}; END $$")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_job_makes_partitions_ahead() {
    let fixture = Fixture::new().await;
    drop_next(&fixture).await;
    let report = run(&fixture, &["maintenance", "report"]).await;
    assert_eq!(report.code, Some(1));
    assert!(report.err.contains("audit.audit_log has no partition for"), "{}", report.all());
    let worker = fixture.run(cleaner(&fixture));
    ticks::tick(&fixture, "retention-cleaner", "maintenance").await;
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.count(&format!("(VALUES (1)) AS one WHERE to_regclass({NEXT}) IS NOT NULL")).await, 1);
    let made = "details #>> '{steps,partitions}' FROM job_runs WHERE job = 'maintenance'";
    assert_eq!(fixture.lines(made).await, ["1"]);
    let report = run(&fixture, &["maintenance", "report", "--json"]).await;
    assert!(report.is_success(), "{}", report.all());
    let report: Value = serde_json::from_str(report.out.trim()).expect("JSON");
    assert_eq!(report["last_runs"][0]["job"], "maintenance");
    assert!(!report["growth"].as_array().expect("growth").is_empty(), "the job notes sizes");
    let (fine, validation) = crate::validation::validate(&fixture).await;
    assert!(fine, "{validation}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_missed_months_raise_an_alarm_and_get_their_partitions() {
    let fixture = Fixture::new().await;
    // Of three days in each of two months that have no partition.
    fixture
        .execute(
            "INSERT INTO blackboard_events (id, event_type, performative, source_agent_id, user_id, session_id, event_payload, logical_timestamp)
                 SELECT uuid7_at(date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' - make_interval(days => d)), 'context.stored',
                     'inform', 'x', 0, 's', '{}', 1 FROM unnest(ARRAY[1, 2, 3, 40, 41, 42]) AS d",
        )
        .await;
    drop_next(&fixture).await;
    let worker = fixture.run(cleaner(&fixture));
    ticks::tick(&fixture, "retention-cleaner", "maintenance").await;
    worker.stop().await.expect("a clean end");
    let alarms = fixture
        .lines(
            "jsonb_array_elements_text(details #> '{steps,alarms}') FROM job_runs WHERE job = 'maintenance'",
        )
        .await;
    assert!(
        alarms.len() == 1 && alarms[0].starts_with("public.blackboard_events has rows of months without"),
        "the other table got its partition: {alarms:?}"
    );
    let status = run(&fixture, &["status"]).await;
    assert!(status.out.contains("blackboard_events has rows of months without"), "{}", status.all());
    let done = run(&fixture, &["maintenance", "run", "--json"]).await;
    assert!(done.is_success(), "{}", done.all());
    let moved =
        steps(&done).iter().filter(|step| step.starts_with("moved rows into the new partition")).count();
    assert_eq!(moved, 2, "{}", done.out);
    assert_eq!(fixture.count("blackboard_events_default").await, 0);
    assert_eq!(fixture.count("blackboard_events WHERE session_id = 's'").await, 6);
    assert!(run(&fixture, &["maintenance", "report"]).await.is_success());
    // Of the month before the last one nothing is left: its partition goes, and that of the last month stays.
    fixture.execute("DELETE FROM blackboard_events WHERE session_id = 's'").await;
    let done = run(&fixture, &["maintenance", "run", "--json"]).await;
    let dropped = steps(&done).iter().filter(|step| step.starts_with("dropped the empty partition")).count();
    assert_eq!(dropped, 1, "{}", done.out);
}

/// What a report says of a table or an index.
async fn reported(fixture: &Fixture, list: &str, name: &str) -> Value {
    let report = run(fixture, &["maintenance", "report", "--json"]).await;
    let report: Value = serde_json::from_str(report.out.trim()).expect("JSON");
    let found = report[list].as_array().expect("a list").iter().find(|one| one["name"] == name).cloned();
    found.unwrap_or_else(|| panic!("{name} is not in {report}"))
}

fn number(of: &Value, name: &str) -> i64 {
    of[name].as_i64().expect("a number")
}

/// The line of a report about a table or an index.
async fn line_of(fixture: &Fixture, name: &str) -> String {
    let report = run(fixture, &["maintenance", "report"]).await;
    let found =
        report.out.lines().find(|line| line.split_whitespace().next() == Some(name)).map(str::to_owned);
    found.unwrap_or_else(|| panic!("{name} is not in {}", report.all()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_treats_what_needs_it_and_nothing_else() {
    let fixture = Fixture::new().await;
    fixture
        .execute(
            "ALTER TABLE job_runs SET (autovacuum_enabled = false);
             INSERT INTO job_runs (id, job, started_at, examined, changed, skipped)
                 SELECT gen_random_uuid(), 'x', now(), 1, 1, 0 FROM generate_series(1, 300000);
             CREATE INDEX job_runs_unused ON job_runs (id, started_at);
             ANALYZE job_runs;
             DELETE FROM job_runs WHERE id > '10000000-0000-0000-0000-000000000000'",
        )
        .await;
    let size =
        async || fixture.lines("pg_relation_size('job_runs_pkey') FROM (VALUES (1)) AS one").await[0].clone();
    let size = async || size().await.parse::<i64>().expect("a number");
    let before = size().await;
    eventually("the server has counted the dead rows", async || {
        let plan = run(&fixture, &["maintenance", "run", "--dry-run", "--json"]).await;
        steps(&plan)
            .iter()
            .any(|step| step.contains("VACUUM") && step.ends_with("public.job_runs"))
            .then_some(())
    })
    .await;
    assert_eq!(size().await, before, "a dry run changes nothing");
    let table = reported(&fixture, "tables", "public.job_runs").await;
    assert!(number(&table, "dead") > 250_000, "{table}");
    // Each row has an empty object in `details`.
    assert!((300_000..10_000_000).contains(&number(&table, "json_bytes")), "{table}");
    assert!(number(&table, "heap_bytes") < 4 * number(&table, "estimated_bytes"), "{table}");
    let unused = reported(&fixture, "indexes", "public.job_runs_unused").await;
    assert_eq!((number(&unused, "scans"), &unused["is_unique"]), (0, &Value::Bool(false)), "{unused}");
    let line = line_of(&fixture, "public.job_runs_unused").await;
    assert!(line.trim_end().ends_with("never used"), "{line}");
    let line = line_of(&fixture, "public.job_runs").await;
    assert!(line.trim_end().ends_with("VACUUM"), "{line}");
    let done = run(&fixture, &["maintenance", "run", "--json"]).await;
    assert!(done.is_success(), "{}", done.all());
    let done = steps(&done);
    assert!(done.contains(&"VACUUM (ANALYZE, SKIP_LOCKED) public.job_runs".to_owned()), "{done:?}");
    assert!(done.contains(&"REINDEX INDEX CONCURRENTLY public.job_runs_pkey".to_owned()), "{done:?}");
    assert!(size().await * 4 < before);
    // The rows that are left are all over the table.
    let table = reported(&fixture, "tables", "public.job_runs").await;
    assert!(number(&table, "heap_bytes") > 4 * number(&table, "estimated_bytes"), "{table}");
    assert!((1..2_000_000).contains(&number(&table, "json_bytes")), "{table}");
    assert_eq!(fixture.count("maintenance_indexes WHERE index_name = 'public.job_runs_pkey'").await, 1);
    let noted = "job_runs WHERE job = 'maintenance-run' AND failure IS NULL AND changed >= 2";
    assert_eq!(fixture.count(noted).await, 1);
    let again = run(&fixture, &["maintenance", "run", "--json"]).await;
    let again = steps(&again);
    assert!(!again.iter().any(|step| step.contains("job_runs")), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_run_is_under_way_at_a_time_and_a_failing_step_is_named() {
    use diesel_async::SimpleAsyncConnection as _;
    let fixture = Fixture::new().await;
    let mut other = fixture.connection().await;
    other.batch_execute("SELECT pg_advisory_lock(7882827039335083636)").await.expect("the lock");
    let refused = run(&fixture, &["maintenance", "run"]).await;
    assert!(refused.code == Some(1) && refused.err.contains("is under way"), "{}", refused.all());
    drop(other);
    // Whoever holds the trail keeps the partition from being made, and nothing else.
    drop_next(&fixture).await;
    let mut writer = fixture.connection().await;
    writer
        .batch_execute("BEGIN; LOCK TABLE ONLY audit.audit_log IN ACCESS EXCLUSIVE MODE")
        .await
        .expect("a lock");
    let failed = eventually("the lock of the other run is gone", async || {
        let ended = run(&fixture, &["maintenance", "run"]).await;
        (!ended.err.contains("is under way")).then_some(ended)
    })
    .await;
    assert!(failed.code == Some(1) && failed.out.contains("partitions ahead: failed"), "{}", failed.all());
    writer.batch_execute("COMMIT").await.expect("its end");
    assert!(run(&fixture, &["maintenance", "run"]).await.is_success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_aged_out_is_deleted_in_small_batches() {
    let fixture = Fixture::new().await;
    fixture
        .execute(
            "INSERT INTO cross_service_auth (token_id, service, user_id, scopes, key_id, issued_at, expires_at, grants_expire_at)
                 SELECT gen_random_uuid(), 'a', 0, '{context:put}', 'k', now() - interval '50 days', now() - interval '49 days',
                     now() - make_interval(days => d) FROM unnest(ARRAY[40, 41, 42, 29]) AS d;
             INSERT INTO sec.revoked_grants (grant_id, expires_at)
                 SELECT gen_random_uuid(), now() - make_interval(hours => h) FROM unnest(ARRAY[25, 26, 27, 23]) AS h;
             INSERT INTO audit.service_subjects (service, subject_token, first_read, last_read)
                 SELECT 'a', gen_random_uuid(), now() - interval '500 days', now() - make_interval(days => d)
                 FROM unnest(ARRAY[401, 402, 403, 399]) AS d;
             INSERT INTO audit.security_metrics (id, measured_at, metric_name, metric_value)
                 SELECT uuid7_at(now() - make_interval(days => d)), now() - make_interval(days => d), 'x', 1
                 FROM unnest(ARRAY[401, 402, 403, 399]) AS d",
        )
        .await;
    let removed = async || {
        let removed = "concat_ws(' ', what, removed) FROM audit.clean_up_at(now(), 2) ORDER BY 1";
        fixture.lines(removed).await
    };
    let each = |count: i32| {
        ["cross_service_auth", "revoked_grants", "security_metrics", "service_subjects"]
            .map(|table| format!("{table} {count}"))
    };
    let version = async || fixture.lines("version FROM sec.trust_version").await;
    let known = version().await;
    assert_eq!(removed().await, each(2));
    assert_eq!(removed().await, each(1));
    assert_eq!(removed().await, each(0));
    assert_eq!(version().await, known, "replicas read nothing anew");
    for table in
        ["cross_service_auth", "sec.revoked_grants", "audit.service_subjects", "audit.security_metrics"]
    {
        assert_eq!(fixture.count(table).await, 1, "{table}");
    }
}

/// Retires tables that are kept for seven years, eight years from now.
async fn in_eight_years(fixture: &Fixture, sources: &[Source]) -> Result<Vec<RetiredRows>, AuditError> {
    let keeps: Vec<Keep> = sources.iter().map(|source| Keep { source: *source, days: 2_557 }).collect();
    let (key, later) = (key(fixture), Utc::now() + TimeDelta::days(8 * 366));
    let keys = [key.public()];
    retire(
        &mut fixture.connection().await,
        &anchors(fixture),
        &key,
        Accepted::of_seals(&keys),
        &keeps,
        later,
        false,
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_were_retired_are_excused_with_proof_and_no_others() {
    let fixture = sealed().await;
    let rows = fixture.count("audit.audit_log").await;
    let retired = in_eight_years(&fixture, &[Source::AuditLog, Source::Violations]).await.expect("rows");
    assert_eq!((retired[0].through_seal, i64::try_from(retired[0].rows).expect("a count")), (3, rows));
    assert_eq!(fixture.count("audit.audit_log").await, 0);
    let verified = report(&fixture).await;
    assert_eq!(verified.findings, []);
    assert_eq!(i64::try_from(verified.accounted).expect("a count"), rows);
    // Again, there is nothing to do. An event was not retired.
    let again = in_eight_years(&fixture, &[Source::AuditLog]).await.expect("nothing");
    assert_eq!(again[0].rows, 0);
    assert_eq!(fixture.count("audit.retirements").await, 2);
    tamper(
        &fixture,
        "DELETE FROM blackboard_events WHERE id = (SELECT min(id::text)::uuid FROM blackboard_events)",
    )
    .await;
    let verified = report(&fixture).await;
    assert_eq!((verified.missing, verified.findings.len()), (1, 1), "{:?}", verified.findings);
    in_eight_years(&fixture, &[Source::Events]).await.expect("a statement about events");
    assert_eq!(report(&fixture).await.findings, []);
    // Whoever has no key can state nothing.
    for forged in [
        "UPDATE audit.retirements SET signature = sha512(signature)",
        "UPDATE audit.retirements SET keep_days = keep_days - 1",
        "UPDATE audit.retirements SET source = CASE source WHEN 1 THEN 2 ELSE 1 END",
        "UPDATE audit.retirements SET retired_at = 'infinity'",
    ] {
        fixture.execute("CREATE TABLE kept AS SELECT * FROM audit.retirements").await;
        tamper(&fixture, forged).await;
        let verified = report(&fixture).await;
        assert!(verified.missing > 0, "{forged}");
        let faults = verified.findings.iter().filter(|one| one.problem.contains("excuses nothing")).count();
        assert_eq!(faults, 3, "{forged}: {:?}", verified.findings);
        tamper(&fixture, "DELETE FROM audit.retirements; INSERT INTO audit.retirements SELECT * FROM kept; DROP TABLE kept").await;
    }
    assert_eq!(report(&fixture).await.findings, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_removed_if_its_statement_is_not_stored() {
    let fixture = sealed().await;
    let rows = fixture.count("audit.audit_log").await;
    fixture
        .execute(
            "CREATE FUNCTION pg_toast.none() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
             CREATE TRIGGER none BEFORE INSERT ON audit.retirements FOR EACH ROW EXECUTE FUNCTION pg_toast.none()",
        )
        .await;
    let error = in_eight_years(&fixture, &[Source::AuditLog]).await.expect_err("no statement");
    assert!(matches!(error, AuditError::NotStated { retirement: 1 }), "{error}");
    assert_eq!(fixture.count("audit.audit_log").await, rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_retired_before_its_time_or_while_a_row_differs() {
    let fixture = sealed().await;
    let rows = fixture.count("audit.audit_log").await;
    let now = run(&fixture, &["audit", "retire"]).await;
    assert!(now.is_success() && now.out.contains("no seal is as old as rows are kept"), "{}", now.all());
    tamper(&fixture, "UPDATE audit.audit_log SET service = 'other' WHERE operation = 'UPDATE'").await;
    let error = in_eight_years(&fixture, &[Source::AuditLog]).await.expect_err("it is evidence");
    assert!(error.to_string().contains("nothing is retired"), "{error}");
    assert_eq!(fixture.count("audit.audit_log").await, rows);
    assert_eq!(fixture.count("audit.retirements").await, 0);
    // A year is the least, and a hold keeps all of it.
    fixture.execute("UPDATE data_retention_policies SET keep_days = 30 WHERE table_name = 'audit_log'").await;
    let refused = run(&fixture, &["audit", "retire", "--dry-run"]).await;
    assert!(refused.code == Some(1) && refused.err.contains("365 at least"), "{}", refused.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_the_trail_is_kept_is_shown_and_set() {
    let fixture = sealed().await;
    let shown = async |more: &[&str]| {
        let ended = run(&fixture, &[&["audit", "retention", "--json"][..], more].concat()).await;
        assert!(ended.is_success(), "{more:?}: {}", ended.all());
        let shown: Value = serde_json::from_str(ended.out.trim()).expect("JSON");
        let tables = shown["tables"].as_array().expect("tables").iter();
        tables
            .map(|one| {
                (one["table"].clone(), one["keep_days"].clone(), one["due_rows"].clone(), one["held"].clone())
            })
            .collect::<Vec<_>>()
    };
    let of = |table: &str, days: i32, rows: i64, held: bool| {
        (Value::from(table), Value::from(days), Value::from(rows), Value::from(held))
    };
    let all = |days: i32, rows: i64, held: bool| {
        [
            of("audit_log", days, rows, held),
            of("data_access_log", days, 0, held),
            of("security_violations", days, 0, held),
        ]
    };
    let rows = fixture.count("audit.audit_log").await;
    tamper(&fixture, "UPDATE audit.seals SET sealed_at = sealed_at - interval '400 days'").await;
    assert_eq!(shown(&[]).await, all(2_557, 0, false));
    assert_eq!(
        shown(&["--years", "1", "--table", "audit_log"]).await,
        [of("audit_log", 366, rows, false)],
        "rounded up, and due"
    );
    assert_eq!(shown(&["--days", "365"]).await, all(365, rows, false));
    for (refused, code, reason) in [
        (["--days", "364"], 1, "for 364 days: it is evidence and is kept for 365 days at least"),
        (["--years", "0"], 1, "365 days at least"),
        (["--days", "36501"], 1, "36500 days at most"),
        (["--years", "4294967295"], 1, "36500 days at most"),
        (["--table", "users"], 2, "security_violations"),
    ] {
        let ended = run(&fixture, &[["audit", "retention"], refused].concat()).await;
        assert!(ended.code == Some(code) && ended.err.contains(reason), "{refused:?}: {}", ended.all());
    }
    assert_eq!(shown(&[]).await, all(365, rows, false), "what is refused changes nothing");
    // Nothing is removed but by `audit retire`, and a change of the policy is in the trail.
    assert!(fixture.count("audit.audit_log").await > rows);
    fixture
        .execute("INSERT INTO retention_holds (id, user_id, reason) VALUES (gen_random_uuid(), 0, 'case 7')")
        .await;
    assert_eq!(shown(&[]).await, all(365, 0, true));
    let table = run(&fixture, &["audit", "retention"]).await;
    assert!(table.out.contains("legal hold"), "{}", table.all());
    // A policy that was taken back is set again, and there is one for each table.
    fixture
        .execute("UPDATE data_retention_policies SET is_active = false WHERE table_name = 'audit_log'")
        .await;
    let table = run(&fixture, &["audit", "retention", "--table", "audit_log", "--years", "7"]).await;
    assert!(table.is_success() && table.out.contains("2,557"), "{}", table.all());
    let policies = "data_retention_policies WHERE user_id = 0 AND is_active
        AND table_name IN ('audit_log', 'data_access_log', 'security_violations')";
    assert_eq!(fixture.count(policies).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_months_of_the_trail_are_dropped() {
    let fixture = Fixture::new().await;
    fixture
        .execute(
            "INSERT INTO audit.audit_log (id, role_name, table_name, operation, row_digest_after, transaction_id)
                 SELECT uuid7_at(date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' - make_interval(days => d)), 'x', 'users',
                     'INSERT', sha256('x'), 200 - d FROM unnest(ARRAY[1, 40, 41, 80, 81]) AS d;
             SELECT make_missed_partition('audit.audit_log'), make_missed_partition('audit.audit_log'), make_missed_partition('audit.audit_log')",
        )
        .await;
    let drop = async |through: i64| {
        let from = format!(
            "dropped FROM audit.drop_retired_partition({through}, '00000000-0000-0000-0000-000000000000')"
        );
        fixture.lines(&from).await
    };
    assert_eq!(drop(119).await, Vec::<String>::new(), "one of its rows lies behind");
    assert_eq!(drop(121).await, ["2"]);
    assert_eq!(drop(121).await, Vec::<String>::new());
    assert_eq!(drop(1_000).await, ["2"]);
    assert_eq!(drop(1_000).await, Vec::<String>::new(), "the last month stays");
    assert_eq!(fixture.count("audit.audit_log WHERE role_name = 'x'").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sealer_s_runs_of_an_hour_share_a_row() {
    let fixture = sealed().await;
    let noted = "concat_ws(' ', tries, changed, failure) FROM job_runs WHERE job = 'audit-seal'";
    for pass in 1..=2 {
        fixture.execute(&format!("UPDATE users SET username = 'x{pass}' WHERE id = 1")).await;
        // Transactions of other tests may hold a row back for a while.
        eventually("it is sealed", async || {
            run(&fixture, &["audit", "seal"]).await;
            (report(&fixture).await.unsealed == 0).then_some(())
        })
        .await;
        let lines = fixture.lines(noted).await;
        assert_eq!(lines, [format!("{pass} {pass}")]);
    }
    // A pass that seals nothing is not noted.
    assert!(run(&fixture, &["audit", "seal"]).await.is_success());
    assert_eq!(fixture.lines(noted).await, ["2 2"]);
    let history = run(&fixture, &["schedule", "history", "audit-seal"]).await;
    assert!(history.out.contains("completed"), "{}", history.all());
}
