SET LOCAL lock_timeout = '100ms';

DROP FUNCTION audit.drop_retired_partition;
DELETE FROM data_retention_policies WHERE user_id = 0 AND table_name IN ('audit_log', 'security_violations', 'data_access_log');
DROP TABLE audit.retirements;
