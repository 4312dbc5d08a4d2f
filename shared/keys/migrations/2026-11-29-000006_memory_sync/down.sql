-- The role stays: roles are of the whole cluster.
SET LOCAL lock_timeout = '100ms';

REVOKE ALL ON FUNCTION sec.open_context, sec.current_user_ids FROM w_memory_sync;
REVOKE ALL ON __diesel_schema_migrations, data_keys FROM w_memory_sync;
REVOKE ALL ON SCHEMA public, sec FROM w_memory_sync;
DO $$
BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM w_memory_sync', current_database());
END $$;
CREATE OR REPLACE FUNCTION guard_database() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO w_context_writer, w_router_logger, w_memory_reader', current_database());
END $$;
