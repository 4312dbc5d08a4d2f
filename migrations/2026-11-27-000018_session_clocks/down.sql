SET LOCAL lock_timeout = '100ms';

DO $$
DECLARE
    worker text;
BEGIN
    FOR worker IN SELECT role_name FROM sec.worker_privileges WHERE table_name = 'session_clocks'::regclass LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION uuid7_at FROM %I', worker);
    END LOOP;
END $$;
DELETE FROM sec.worker_privileges WHERE table_name = 'session_clocks'::regclass;
DROP TABLE session_clocks;
