-- Who a token of the trail stands for is sealed too (docs/adr/0046); what a role writes into an event and into a session's clock is what
-- is so; and no role takes all connections, or keeps a transaction open in another database (docs/SECURITY.md).
SET LOCAL lock_timeout = '100ms';

-- The last number that an event of anybody has.
CREATE FUNCTION sec.last_event_sequence() RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.last_value FROM public.blackboard_event_sequence s
$$;
ALTER FUNCTION sec.last_event_sequence OWNER TO memfleet_owner;
REVOKE EXECUTE ON FUNCTION sec.last_event_sequence FROM PUBLIC;
DO $$
DECLARE
    worker name;
BEGIN
    FOR worker IN SELECT w.role_name FROM sec.worker_privileges w
        WHERE w.table_name = 'session_clocks'::regclass AND 'INSERT' = ANY (w.privileges) LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION sec.last_event_sequence TO %I', worker);
    END LOOP;
END $$;

-- In every database of the server: a role has no business to keep a transaction open anywhere, and any holds back the seals.
CREATE OR REPLACE FUNCTION sec.end_old_transactions() RETURNS integer LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT count(*) FILTER (WHERE pg_terminate_backend(a.pid))::integer FROM pg_stat_activity a
    WHERE a.pid <> pg_backend_pid()
        AND a.usename IN (SELECT w.role_name FROM sec.worker_privileges w)
        AND (a.xact_start < clock_timestamp() - interval '5 minutes'
            OR a.state LIKE 'idle in transaction%' AND a.state_change < clock_timestamp() - interval '30 seconds')
$$;

-- Limits the connections of a worker's role to half of those of the server, unless an administrator has limited them. Roles are of the
-- whole cluster, so down.sql leaves the limit.
CREATE FUNCTION sec.limit_connections(worker name) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles r WHERE r.rolname = worker AND r.rolconnlimit = -1) THEN
        EXECUTE format('ALTER ROLE %I CONNECTION LIMIT %s', worker, greatest(current_setting('max_connections')::integer / 2, 1));
    END IF;
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE WARNING 'the connections of % are not limited, since the role that migrates may not do it: %', worker, SQLERRM;
    WHEN internal_error THEN
        -- A migration of another database does it at the same time.
        IF SQLERRM NOT LIKE 'tuple concurrently %' THEN
            RAISE;
        END IF;
END $$;
REVOKE EXECUTE ON FUNCTION sec.limit_connections FROM PUBLIC;
SELECT sec.limit_connections(w.role_name) FROM (SELECT DISTINCT role_name FROM sec.worker_privileges) AS w;
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
    PERFORM sec.limit_connections(worker);
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
        EXECUTE format('GRANT EXECUTE ON FUNCTION public.uuid7_at, sec.last_event_sequence TO %I', worker);
        -- Whoever appends an event checks that its user exists, and sees no more of the account than that.
        IF NOT has_column_privilege(worker, 'public.users', 'id', 'SELECT') THEN
            EXECUTE format('GRANT SELECT (id) ON public.users TO %I', worker);
        END IF;
    END IF;
END $$;

-- Locks that writers wait for come last.

-- The seals cover what their programs know of. An older program, which leaves the subjects out, has no value for this column and so
-- makes no seal any more; and as all seals up to now are of transactions before this one, no subject stands among their rows.
ALTER TABLE audit.seals ADD COLUMN format smallint NOT NULL DEFAULT 1 CHECK (format IN (1, 2));
ALTER TABLE audit.seals ALTER COLUMN format DROP DEFAULT;

-- A subject is sealed as a row of the transaction that made it; those that are there already, as rows of this one. The value is put in
-- as a constant first, so that the table need not be written anew.
DO $$
BEGIN
    EXECUTE format('ALTER TABLE audit.subjects ADD COLUMN transaction_id bigint NOT NULL DEFAULT %L', pg_current_xact_id()::text::bigint);
END $$;
ALTER TABLE audit.subjects ALTER COLUMN transaction_id SET DEFAULT pg_current_xact_id()::text::bigint;
CREATE INDEX subjects_in_order ON audit.subjects (transaction_id, token);

-- No event is published that is not there.
CREATE POLICY published ON session_clocks AS RESTRICTIVE USING (true)
    WITH CHECK (published_sequence <= (SELECT sec.last_event_sequence()));

-- The number of an event is the last one that its session drew, and is used once: the check draws another one, so that the next event
-- cannot have the same.
DROP POLICY evidence ON blackboard_events;
CREATE POLICY evidence ON blackboard_events AS RESTRICTIVE FOR INSERT WITH CHECK (
    transaction_id = pg_current_xact_id()::text::bigint AND created_at = transaction_timestamp()
    AND logical_timestamp <= extract(epoch FROM clock_timestamp()) * 1000000
    AND CASE WHEN event_sequence = currval('public.blackboard_event_sequence')
        THEN nextval('public.blackboard_event_sequence') > event_sequence ELSE false END);

-- An event can be published: its payload has at most contract::limit::EVENT_PAYLOAD_BYTES. No request reaches the limit. Events from
-- before are not checked, so that nobody waits for it.
ALTER TABLE blackboard_events ADD CONSTRAINT event_is_bounded CHECK (octet_length(event_payload::text) <= 2031616
    AND octet_length(causality_chain::text) <= 8192 AND octet_length(semantic_context::text) <= 65536) NOT VALID;
