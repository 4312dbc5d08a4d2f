SET LOCAL lock_timeout = '100ms';

DROP POLICY own_keys ON data_keys;
DROP POLICY own_first_key ON data_keys;
ALTER TABLE data_keys DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY;
REVOKE INSERT (user_id, version, kek, wrapped) ON data_keys FROM w_context_writer, w_router_logger;
GRANT INSERT ON data_keys TO w_context_writer, w_router_logger;
-- The registered grant keys go with it: they are in the files of the issuers, too.
DROP SCHEMA sec CASCADE;
DO $$
DECLARE
    taken regprocedure;
BEGIN
    FOR taken IN SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'pg_catalog'::regnamespace AND proname ~ '^pg_(try_)?advisory_' LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', taken);
    END LOOP;
END $$;
