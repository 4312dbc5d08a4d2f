SET LOCAL lock_timeout = '100ms';

REVOKE ALL ON __diesel_schema_migrations, data_keys FROM w_router_logger, w_memory_reader;
REVOKE ALL ON SCHEMA public FROM w_router_logger, w_memory_reader;
DO $$
BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM w_router_logger, w_memory_reader', current_database());
END $$;
CREATE OR REPLACE FUNCTION guard_database() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO w_context_writer', current_database());
END $$;
