-- router-logger creates keys for sensitive fields, as context-writer does; memory-reader only reads them.
SET LOCAL lock_timeout = '100ms';

DO $$
DECLARE
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['w_router_logger', 'w_memory_reader'] LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I LOGIN NOINHERIT NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION',
                role_name);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
        EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', role_name);
        EXECUTE format('GRANT SELECT ON __diesel_schema_migrations, data_keys TO %I', role_name);
    END LOOP;
    GRANT INSERT ON data_keys TO w_router_logger;
END $$;

CREATE OR REPLACE FUNCTION guard_database() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO w_context_writer, w_router_logger, w_memory_reader', current_database());
END $$;
SELECT guard_database();
