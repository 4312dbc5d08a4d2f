-- The two labels of eventtype stay: events may hold them, and up.sql adds only what is missing.
SET LOCAL lock_timeout = '100ms';

REVOKE SELECT (id) ON users FROM w_router_logger;
REVOKE ALL ON encrypted_fields, chat_mode_sessions, router_decision_log FROM w_router_logger;
DELETE FROM sec.worker_privileges WHERE role_name = 'w_router_logger' AND table_name IN ('router_decision_log'::regclass,
    'router_hourly_patterns'::regclass, 'chat_mode_sessions'::regclass, 'encrypted_fields'::regclass);
DROP TABLE router_hourly_patterns;
DROP FUNCTION router_route, router_tools, router_time_bucket, router_bucket_end, add_counts;
DROP TRIGGER ciphertext_delete ON router_decision_log;
ALTER TABLE router_decision_log DROP COLUMN chat_mode, DROP COLUMN is_sensitive;
