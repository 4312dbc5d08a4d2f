-- memory-sync decrypts a field of one session and encrypts it for another, under keys that exist: it only reads them.
SET LOCAL lock_timeout = '100ms';

DO $$
BEGIN
    BEGIN
        CREATE ROLE w_memory_sync LOGIN NOINHERIT NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
        NULL;
    END;
    IF EXISTS (SELECT FROM pg_roles r WHERE r.rolname = 'w_memory_sync' AND r.rolconnlimit = -1) THEN
        BEGIN
            EXECUTE format('ALTER ROLE w_memory_sync CONNECTION LIMIT %s', greatest(current_setting('max_connections')::integer / 2, 1));
        EXCEPTION
            WHEN insufficient_privilege THEN
                RAISE WARNING 'the connections of w_memory_sync are not limited, since the role that migrates may not do it: %', SQLERRM;
            WHEN internal_error THEN
                IF SQLERRM NOT LIKE 'tuple concurrently %' THEN
                    RAISE;
                END IF;
        END;
    END IF;
END $$;
GRANT USAGE ON SCHEMA public, sec TO w_memory_sync;
GRANT SELECT ON __diesel_schema_migrations, data_keys TO w_memory_sync;
GRANT EXECUTE ON FUNCTION sec.open_context, sec.current_user_ids TO w_memory_sync;

CREATE OR REPLACE FUNCTION guard_database() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO w_context_writer, w_router_logger, w_memory_reader, w_memory_sync',
        current_database());
END $$;
SELECT guard_database();
