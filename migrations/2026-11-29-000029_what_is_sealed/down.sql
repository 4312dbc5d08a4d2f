-- An earlier program cannot verify the seals that were made meanwhile: they cover the subjects.
SET LOCAL lock_timeout = '100ms';

CREATE OR REPLACE FUNCTION sec.grant_worker(worker name, tables jsonb DEFAULT '{}', functions regprocedure[] DEFAULT '{}',
    takes_messages boolean DEFAULT true) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    given record;
    callable regprocedure;
BEGIN
    IF worker !~ '^w_[a-z0-9_]+$' THEN
        RAISE invalid_parameter_value USING
            MESSAGE = format('%L is not the name of a worker''s role, such as w_memory_sync', worker);
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = worker) THEN
        -- Roles are of the whole cluster: a migration of another database may make this one at the same time.
        BEGIN
            EXECUTE format('CREATE ROLE %I LOGIN NOINHERIT NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION',
                worker);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), worker);
    EXECUTE format('GRANT USAGE ON SCHEMA public, sec, audit TO %I', worker);
    EXECUTE format('GRANT SELECT ON public.__diesel_schema_migrations TO %I', worker);
    FOR given IN
        SELECT * FROM sec.read_privileges(tables)
        UNION ALL SELECT p.* FROM sec.read_privileges(sec.message_privileges()) AS p WHERE takes_messages
    LOOP
        INSERT INTO sec.worker_privileges AS w (role_name, table_name, privileges)
        VALUES (worker, given.table_name, given.privileges)
        ON CONFLICT (role_name, table_name) DO UPDATE SET privileges = w.privileges
            || ARRAY(SELECT p FROM unnest(excluded.privileges) AS p WHERE p <> ALL (w.privileges));
        EXECUTE format('GRANT %s ON %s TO %I', array_to_string(given.privileges, ', '), given.table_name, worker);
    END LOOP;
    FOREACH callable IN ARRAY sec.worker_functions() || functions LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', callable, worker);
    END LOOP;
    IF takes_messages THEN
        EXECUTE format('GRANT USAGE ON SEQUENCE public.blackboard_event_sequence TO %I', worker);
        EXECUTE format('GRANT EXECUTE ON FUNCTION public.uuid7_at TO %I', worker);
        -- Whoever appends an event checks that its user exists, and sees no more of the account than that.
        IF NOT has_column_privilege(worker, 'public.users', 'id', 'SELECT') THEN
            EXECUTE format('GRANT SELECT (id) ON public.users TO %I', worker);
        END IF;
    END IF;
END $$;
DROP FUNCTION sec.limit_connections(name);
CREATE OR REPLACE FUNCTION sec.end_old_transactions() RETURNS integer LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT count(*) FILTER (WHERE pg_terminate_backend(a.pid))::integer FROM pg_stat_activity a
    WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
        AND a.usename IN (SELECT w.role_name FROM sec.worker_privileges w)
        AND (a.xact_start < clock_timestamp() - interval '5 minutes'
            OR a.state LIKE 'idle in transaction%' AND a.state_change < clock_timestamp() - interval '30 seconds')
$$;
ALTER TABLE blackboard_events DROP CONSTRAINT event_is_bounded;
DROP POLICY evidence ON blackboard_events;
CREATE POLICY evidence ON blackboard_events AS RESTRICTIVE FOR INSERT WITH CHECK (
    transaction_id = pg_current_xact_id()::text::bigint AND created_at = transaction_timestamp()
    AND event_sequence = currval('public.blackboard_event_sequence')
    AND logical_timestamp <= extract(epoch FROM clock_timestamp()) * 1000000);
DROP POLICY published ON session_clocks;
DROP FUNCTION sec.last_event_sequence();
DROP INDEX audit.subjects_in_order;
ALTER TABLE audit.subjects DROP COLUMN transaction_id;
ALTER TABLE audit.seals DROP COLUMN format;
