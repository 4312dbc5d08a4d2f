SET LOCAL lock_timeout = '100ms';

DO $$
DECLARE
    taken regprocedure;
BEGIN
    FOR taken IN SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'pg_catalog'::regnamespace AND proname ~ '^pg_(try_)?advisory_' LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', taken);
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM memfleet_owner', taken);
    END LOOP;
END $$;
