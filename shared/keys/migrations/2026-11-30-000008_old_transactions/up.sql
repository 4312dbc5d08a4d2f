-- A worker's role that keeps a new key of a user uncommitted keeps the user's messages waiting. As in the main database
-- (docs/adr/0042), workers end such transactions; the key store may be on another server.
SET LOCAL lock_timeout = '100ms';

DO $$
BEGIN
    CREATE ROLE memfleet_watch NOLOGIN INHERIT NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL;
END $$;
DO $$
BEGIN
    IF NOT (pg_has_role('memfleet_watch', 'pg_read_all_stats', 'MEMBER') AND pg_has_role('memfleet_watch', 'pg_signal_backend', 'MEMBER')) THEN
        GRANT pg_read_all_stats, pg_signal_backend TO memfleet_watch;
    END IF;
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE WARNING 'memfleet_watch gets neither pg_read_all_stats nor pg_signal_backend, so that old transactions are not ended: %', SQLERRM;
    WHEN unique_violation THEN
        -- The main database is migrated at the same time.
        NULL;
    WHEN internal_error THEN
        IF SQLERRM NOT LIKE 'tuple concurrently %' THEN
            RAISE;
        END IF;
END $$;

-- Ends the transactions here of workers' roles that have been idle for half a minute or open for five. Gives the number of them.
CREATE FUNCTION sec.end_old_transactions() RETURNS integer LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT count(*) FILTER (WHERE pg_terminate_backend(a.pid))::integer FROM pg_stat_activity a
    WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.usename LIKE 'w\_%'
        AND (a.xact_start < clock_timestamp() - interval '5 minutes'
            OR a.state LIKE 'idle in transaction%' AND a.state_change < clock_timestamp() - interval '30 seconds')
$$;
ALTER FUNCTION sec.end_old_transactions OWNER TO memfleet_watch;
REVOKE EXECUTE ON FUNCTION sec.end_old_transactions FROM PUBLIC;
GRANT EXECUTE ON FUNCTION sec.end_old_transactions TO w_context_writer, w_router_logger, w_memory_reader, w_memory_sync;
