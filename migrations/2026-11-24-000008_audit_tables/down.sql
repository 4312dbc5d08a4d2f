SET LOCAL lock_timeout = '100ms';
DROP TABLE audit.security_metrics, audit.data_access_log, audit.security_violations, audit.audit_log, audit.subjects;
DROP TYPE audit.operation, audit.severity;
DROP SCHEMA audit;
