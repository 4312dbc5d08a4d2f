-- Advisory locks are what migrations, sealing and erasure keep each other out with. A role that may take any of them can stop
-- all three, and PostgreSQL lets everybody: here only functions of the owner may.
SET LOCAL lock_timeout = '100ms';

DO $$
DECLARE
    taken regprocedure;
BEGIN
    FOR taken IN SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'pg_catalog'::regnamespace AND proname ~ '^pg_(try_)?advisory_' LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', taken);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO memfleet_owner', taken);
    END LOOP;
END $$;
