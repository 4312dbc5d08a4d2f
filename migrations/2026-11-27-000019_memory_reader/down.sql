SET LOCAL lock_timeout = '100ms';

DO $$
DECLARE
    made record;
BEGIN
    DELETE FROM sec.worker_privileges WHERE role_name = 'w_memory_reader';
    FOR made IN SELECT p.oid::regprocedure AS name FROM pg_proc p
        JOIN pg_roles r ON r.rolname = 'w_memory_reader'
        WHERE p.pronamespace IN ('public'::regnamespace, 'sec'::regnamespace, 'audit'::regnamespace)
        AND EXISTS (SELECT FROM aclexplode(p.proacl) AS a WHERE a.grantee = r.oid) LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM w_memory_reader', made.name);
    END LOOP;
    REVOKE ALL ON ALL TABLES IN SCHEMA public FROM w_memory_reader;
    REVOKE ALL ON SCHEMA public, sec, audit FROM w_memory_reader;
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM w_memory_reader', current_database());
END $$;
