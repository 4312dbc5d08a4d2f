SET LOCAL lock_timeout = '100ms';

DO $$
DECLARE
    taken regprocedure;
BEGIN
    FOR taken IN SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'pg_catalog'::regnamespace AND proname ~ '^(lo_|loread$|lowrite$)'
        AND proname NOT IN ('lo_import', 'lo_export') LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', taken);
    END LOOP;
END $$;
