//! Anomalies: what is found in the figures of services, and how often quiet weeks raise an alarm.

use diesel_async::SimpleAsyncConnection as _;
use serde_json::Value;
use testkit::Fixture;
use testkit::attack::{assert_refused, attempt, login};

use crate::seal::{sealed, tamper};
use crate::support::retention::cleaner;
use crate::support::ticks;

const QUIET: &str = include_str!("support/quiet_weeks.sql");
/// A Monday.
const END: &str = "timestamptz '2026-11-02 00:00Z'";

/// So many quiet weeks, the last of which are still to be searched.
async fn quiet(weeks: i32, searched: i32) -> Fixture {
    let fixture = Fixture::new().await;
    fixture
        .execute(&format!(
            "{QUIET}
             SELECT quiet_weeks({END}, {weeks}, 1);
             ANALYZE audit.security_metrics;
             UPDATE audit.maintenance_state SET rolled_from = {END} - interval '{weeks} weeks', rolled_until = {END},
                 detected_until = {END} - interval '{searched} weeks'"
        ))
        .await;
    fixture
}

/// What a search finds that has not been found before. The time is past the third hour after the end.
async fn found(fixture: &Fixture) -> Vec<String> {
    fixture
        .lines(&format!(
            "concat_ws(' ', kind, service, observed, to_char(hour AT TIME ZONE 'UTC', 'FMHH24'))
             FROM audit.detect_anomalies_until({END} + interval '200 minutes', 100000) ORDER BY hour, kind, service"
        ))
        .await
}

/// 8 alarms in 480 weeks of a service were measured with 12 seeds (docs/adr/0054).
#[tokio::test(flavor = "multi_thread")]
async fn quiet_weeks_raise_almost_no_alarm() {
    let fixture = quiet(8, 3).await;
    let alarms = found(&fixture).await;
    assert!(alarms.len() <= 1, "15 weeks of a service: {alarms:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_anomaly_is_found_once() {
    let fixture = quiet(6, 0).await;
    let figures = |figures: &str| {
        format!(
            "INSERT INTO audit.security_metrics (measured_at, metric_name, metric_value, labels)
                 SELECT {END} + make_interval(hours => hour), name, value, jsonb_build_object('service', service)
                 FROM (VALUES {figures}) AS f (hour, name, value, service);
             UPDATE audit.maintenance_state SET rolled_until = {END} + interval '3 hours'"
        )
    };
    fixture
        .execute(&figures(
            "(0, 'refusals', 60, 'people'), (0, 'refusals', 50, 'unregistered'), (0, 'refusals', 29, 'machine'),
             (1, 'reads', 6000, 'machine'), (1, 'reads', 999, 'people'), (1, 'strangers', 60, 'machine'), (1, 'strangers', 19, 'people'),
             (1, 'uses', 40, 'new'), (1, 'reads', 90000, 'new'),
             (2, 'uses', 40, 'office'), (2, 'uses', 19, 'batch'), (2, 'uses', 40, 'crawl')",
        ))
        .await;
    assert_eq!(
        found(&fixture).await,
        [
            "anomaly-refusals people 60 0",
            "anomaly-refusals unregistered 50 0",
            "anomaly-reads machine 6000 1",
            "anomaly-strangers machine 60 1",
            "anomaly-hours office 40 2",
        ]
    );
    let rows =
        "concat_ws(' ', violation_type, severity, service, role_name <> '') FROM audit.security_violations
        WHERE violation_type LIKE 'anomaly-%' ORDER BY 1";
    let written = fixture.lines(rows).await;
    assert_eq!(written.len(), 5, "{written:?}");
    assert_eq!(written[0], "anomaly-hours medium office t");
    // Neither when the same hours are searched again, nor at once.
    fixture.execute(&format!("UPDATE audit.maintenance_state SET detected_until = {END}")).await;
    assert_eq!(found(&fixture).await, Vec::<String>::new());
    // Whatever the settings of the session are.
    fixture
        .execute(&format!(
            "UPDATE audit.maintenance_state SET detected_until = {END};
             SET datestyle = 'SQL, DMY'; SET timezone = 'America/New_York'; SET quote_all_identifiers = on;
             SELECT FROM audit.detect_anomalies_until({END} + interval '200 minutes', 100000)"
        ))
        .await;
    assert_eq!(fixture.lines(rows).await, written);
}

/// Three times as much as a burst would have to come, for 35 days.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_hides_no_later_one() {
    let fixture = quiet(6, 0).await;
    for (hour, refusals) in [(0, 100_000), (24, 60_000)] {
        fixture
            .execute(&format!(
                "INSERT INTO audit.security_metrics (measured_at, metric_name, metric_value, labels)
                     VALUES ({END} + interval '{hour} hours', 'refusals', {refusals}, '{{\"service\": \"machine\"}}');
                 UPDATE audit.maintenance_state SET rolled_until = {END} + make_interval(hours => {hour} + 1)"
            ))
            .await;
        assert_eq!(found(&fixture).await, [format!("anomaly-refusals machine {refusals} 0")]);
    }
}

/// Amounts of the hour and of one before it, as they could be before they had a limit.
#[tokio::test(flavor = "multi_thread")]
async fn no_amount_ends_the_search() {
    let fixture = quiet(6, 0).await;
    fixture
        .execute(&format!(
            "INSERT INTO audit.security_metrics (measured_at, metric_name, metric_value, labels)
                 SELECT {END} + make_interval(hours => hour), 'refusals', value, jsonb_build_object('service', service)
                 FROM (VALUES (0, 9223372036854775807, 'people'), (-24, 9223372036854775807, 'machine'), (0, 70, 'machine'),
                     (0, 60, 'office')) AS f (hour, value, service)
                 ON CONFLICT (metric_name, measured_at, labels) DO UPDATE SET metric_value = excluded.metric_value;
             UPDATE audit.maintenance_state SET rolled_until = {END} + interval '3 hours'"
        ))
        .await;
    assert_eq!(
        found(&fixture).await,
        ["anomaly-refusals office 60 0", "anomaly-refusals people 1000000000000000 0"]
    );
    let searched = format!("audit.maintenance_state WHERE detected_until = {END} + interval '3 hours'");
    assert_eq!(fixture.count(&searched).await, 1);
}

/// Tables have the same names in all figures.
#[tokio::test(flavor = "multi_thread")]
async fn no_setting_changes_the_names_of_figures() {
    let fixture = Fixture::new().await;
    let mut role = login(&fixture, "w_retention_cleaner").await;
    role.batch_execute("SET quote_all_identifiers = on").await.expect("its setting");
    attempt(&mut role, "SELECT audit.measure_tables()").await.expect("its right");
    let parts = "audit.security_metrics WHERE labels ->> 'table' = 'simple_chat_context'";
    assert_eq!(fixture.count(parts).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_said_before_there_is_a_history() {
    let fixture = quiet(6, 0).await;
    fixture
        .execute(&format!(
            "DELETE FROM audit.security_metrics WHERE measured_at < {END} - interval '13 days';
             INSERT INTO audit.security_metrics (measured_at, metric_name, metric_value, labels)
                 SELECT {END}, name, 100000, '{{\"service\": \"machine\"}}' FROM unnest(ARRAY['reads', 'strangers', 'refusals']) AS name;
             UPDATE audit.maintenance_state SET rolled_until = {END} + interval '1 hour'"
        ))
        .await;
    // Of refusals no service needs a history, if the deployment has one.
    assert_eq!(found(&fixture).await, ["anomaly-refusals machine 100000 0"]);
    fixture
        .execute(&format!(
            "DELETE FROM audit.security_violations;
             UPDATE audit.maintenance_state SET detected_until = {END}, rolled_from = {END} - interval '13 days'"
        ))
        .await;
    assert_eq!(found(&fixture).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_are_rolled_up_from_what_was_accessed_and_refused() {
    let fixture = Fixture::new().await;
    fixture.register("a", "context:*").await;
    let id = "overlay(uuid7()::text PLACING left(uuid7_at(timestamptz '2026-10-01 10:30Z')::text, 13) FROM 1 FOR 13)::uuid";
    fixture
        .execute(&format!(
            "INSERT INTO users (id, username, email) SELECT n, 'u', 'e' FROM generate_series(1, 3) AS n;
             UPDATE audit.subjects SET created_at = CASE user_id WHEN 3 THEN timestamptz '2026-10-01 10:00Z' ELSE '2026-09-01 10:00Z' END;
             INSERT INTO audit.data_access_log (id, subject_token, role_name, service, access_type, object_name, rows_returned)
                 SELECT {id}, s.token, 'r', v.service, v.access_type, 'o', v.rows FROM audit.subjects s JOIN (VALUES
                     (1, 'a', 'read', 5), (1, 'a', 'vector-search', 2), (2, 'a', 'read', 3), (3, 'a', 'reveal', 1),
                     (1, 'nobody', 'read', 7), (1, 'a', 'vector-upsert', 100), (1, 'a', 'job-grant', 100)
                 ) AS v (user_id, service, access_type, rows) ON v.user_id = s.user_id;
             INSERT INTO audit.security_violations (id, role_name, service, violation_type, severity, reason)
                 SELECT {id}, 'r', v.service, v.kind, 'low', 'x' FROM (VALUES ('claimed:a', 'token-missing'), ('a', 'foreign-row'),
                     ('claimed:made-up-' || gen_random_uuid(), 'token-missing'), ('a', 'anomaly-reads')) AS v (service, kind);
             SELECT audit.roll_up_hour('2026-10-01 10:00Z'); SELECT audit.roll_up_hour('2026-10-01 10:00Z')"
        ))
        .await;
    let figures = "concat_ws(' ', labels ->> 'service', metric_name, metric_value) FROM audit.security_metrics ORDER BY 1";
    assert_eq!(
        fixture.lines(figures).await,
        [
            "a reads 11",
            "a refusals 2",
            // User 3 came in the same hour.
            "a strangers 2",
            "a uses 4",
            "unregistered reads 7",
            "unregistered refusals 1",
            "unregistered strangers 1",
            "unregistered uses 1",
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn gaps_of_seals_are_found() {
    let fixture = sealed().await;
    let gaps =
        |at: &str| format!("concat_ws(' ', observed, problem) FROM audit.gaps_of_seals({at}) ORDER BY 1");
    assert_eq!(
        fixture.lines(&gaps("now() + interval '3 hours'")).await,
        Vec::<String>::new(),
        "all is sealed"
    );
    fixture.execute("UPDATE users SET username = 'x' WHERE id = 1").await;
    assert_eq!(fixture.lines(&gaps("now() + interval '90 minutes'")).await, Vec::<String>::new());
    assert_eq!(
        fixture.lines(&gaps("now() + interval '190 minutes'")).await,
        ["3 hours since the last seal, and rows wait for one"]
    );
    tamper(&fixture, "DELETE FROM audit.seals WHERE number = 2").await;
    assert_eq!(fixture.lines(&gaps("now()")).await, ["1 seals are missing"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_the_job_publishes_an_event_for_each_anomaly() {
    let fixture = Fixture::new().await;
    // What was rolled up is an hour ago, and the hour before is to be searched.
    fixture
        .execute(
            "UPDATE audit.maintenance_state SET rolled_until = date_trunc('hour', now() - interval '10 minutes'),
                 rolled_from = now() - interval '30 days', detected_until = date_trunc('hour', now() - interval '10 minutes') - interval '1 hour';
             INSERT INTO audit.security_metrics (measured_at, metric_name, metric_value, labels)
                 SELECT detected_until, 'refusals', 77, '{\"service\": \"unregistered\"}' FROM audit.maintenance_state",
        )
        .await;
    let worker = fixture.run(cleaner(&fixture));
    ticks::tick(&fixture, "retention-cleaner", "maintenance").await;
    let events = fixture
        .lines("event_payload FROM blackboard_events WHERE event_type = 'anomaly.detected' AND user_id = 0")
        .await;
    assert_eq!(events.len(), 1, "{events:?}");
    let event: Value = serde_json::from_str(&events[0]).expect("JSON");
    assert_eq!(event["kind"], "anomaly-refusals");
    assert_eq!((event["observed"].as_i64(), event["expected_at_most"].as_i64()), (Some(77), Some(30)));
    let row = format!(
        "audit.security_violations WHERE id = '{}' AND role_name = 'w_retention_cleaner'",
        event["violation_id"].as_str().expect("an id")
    );
    assert_eq!(fixture.count(&row).await, 1);
    ticks::tick(&fixture, "retention-cleaner", "maintenance").await;
    assert_eq!(fixture.count("blackboard_events WHERE event_type = 'anomaly.detected'").await, 1);
    let runs = "job_runs WHERE job = 'maintenance' AND failure IS NULL";
    assert_eq!(fixture.count(runs).await, 2);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_role_of_the_worker_searches_the_present_only() {
    let fixture = Fixture::new().await;
    let mut role = login(&fixture, "w_retention_cleaner").await;
    for fine in [
        "SELECT * FROM audit.detect_security_anomalies()",
        "SELECT audit.roll_up_metrics()",
        "SELECT * FROM audit.cleanup_old_data()",
    ] {
        role.batch_execute(fine).await.expect(fine);
    }
    for statement in [
        "SELECT * FROM audit.detect_anomalies_until(now() + interval '1 year', 1000)",
        "SELECT audit.roll_up_until(now() + interval '1 year', 1000)",
        "SELECT audit.roll_up_hour(now())",
        "SELECT * FROM audit.clean_up_at(now() + interval '1 year', 1000)",
        "SELECT make_month_partitions('audit.audit_log', 12)",
        "SELECT * FROM audit.security_metrics",
        "DELETE FROM audit.service_subjects",
        "UPDATE audit.maintenance_state SET detected_until = now()",
    ] {
        assert_refused(attempt(&mut role, statement).await, "permission denied", statement);
    }
}
