-- The label of eventtype stays: events may hold it, and up.sql adds only what is missing.
SET LOCAL lock_timeout = '100ms';

SELECT sec.drop_job('maintenance');
DELETE FROM sec.event_writers WHERE role_name = 'w_retention_cleaner' AND event_type = 'anomaly.detected';
SELECT sec.revoke_worker('w_retention_cleaner', functions => '{"sec.make_partitions_ahead()", "sec.partition_alarms()",
    "audit.roll_up_metrics()", "audit.measure_tables()", "audit.cleanup_old_data()", "audit.detect_security_anomalies()"}');
REVOKE EXECUTE ON FUNCTION public.make_month_partitions FROM memfleet_owner;
REVOKE CREATE ON SCHEMA public, audit FROM memfleet_owner;
DROP FUNCTION sec.due_maintenance, audit.detect_security_anomalies, audit.cleanup_old_data, audit.measure_tables, audit.roll_up_metrics,
    sec.partition_alarms, sec.make_partitions_ahead, sec.partition_alarms_at, sec.has_rows_outside, sec.has_events_outside, audit.clean_up_at, audit.measure_tables_at,
    audit.detect_anomalies_until, audit.gaps_of_seals, audit.anomalies_of, audit.roll_up_until, audit.roll_up_hour, audit.counted_service,
    audit.anomaly_limits;
REVOKE SELECT (id) ON public.blackboard_events_default FROM memfleet_due;
DROP TABLE audit.maintenance_state, audit.service_subjects;
ALTER TABLE audit.security_metrics DROP CONSTRAINT security_metrics_once;
CREATE INDEX security_metrics_by_name ON audit.security_metrics (metric_name, measured_at);
