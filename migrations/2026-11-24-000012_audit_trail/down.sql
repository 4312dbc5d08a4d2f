SET LOCAL lock_timeout = '100ms';

DO $$
DECLARE
    target record;
    log text;
BEGIN
    FOR target IN SELECT t.tgrelid::regclass AS name, t.tgname FROM pg_trigger t
        WHERE t.tgfoid = 'audit.audit_trigger_function'::regproc AND t.tgparentid = 0 LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', target.tgname, target.name);
    END LOOP;
    FOREACH log IN ARRAY ARRAY['audit_log', 'security_violations', 'data_access_log'] LOOP
        -- What the shorter types cannot hold is cut: the services of a row, at 64 characters.
        EXECUTE format('ALTER TABLE audit.%I DROP COLUMN transaction_id CASCADE,
            ALTER COLUMN service TYPE varchar(64) USING left(service, 64), ALTER COLUMN role_name TYPE name', log);
    END LOOP;
    FOR target IN SELECT DISTINCT role_name FROM sec.worker_privileges LOOP
        EXECUTE format('REVOKE USAGE ON SCHEMA audit FROM %I', target.role_name);
    END LOOP;
END $$;
ALTER TABLE audit.audit_log DROP COLUMN row_id, ADD PRIMARY KEY (id);
DROP INDEX audit.security_violations_by_subject;
ALTER TABLE blackboard_events DROP COLUMN transaction_id, ADD FOREIGN KEY (user_id) REFERENCES users (id);
ALTER TABLE audit.subjects DROP COLUMN digest_key;
DROP FUNCTION audit.audit_trigger_function, audit.check_security_violation, audit.log_vector_operation, audit.log_data_access;
