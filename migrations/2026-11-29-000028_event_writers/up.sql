-- A worker appends and publishes events of its own types alone (docs/adr/0043). The database refuses others, and knows which
-- transactions have events that are not published yet, so that a worker can wait for those of another one.
SET LOCAL lock_timeout = '100ms';

-- The types of the events that a role may append.
CREATE TABLE sec.event_writers (
    role_name name NOT NULL,
    -- Not of the type eventtype: a label that a migration adds cannot be used in the same transaction.
    event_type text NOT NULL,
    PRIMARY KEY (role_name, event_type)
);
ALTER TABLE sec.event_writers OWNER TO memfleet_owner;
INSERT INTO sec.event_writers (role_name, event_type)
SELECT CASE WHEN label IN ('decision.logged', 'tool.reported') THEN 'w_router_logger'
    WHEN label LIKE 'vector.%' THEN 'w_vector_indexer' ELSE 'w_context_writer' END, label
FROM unnest(enum_range(NULL::public.eventtype)::text[]) AS label;

-- The types of the events that this role may append. In a policy only as (SELECT sec.own_event_types()).
CREATE FUNCTION sec.own_event_types() RETURNS text[] LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(array_agg(w.event_type), '{}') FROM sec.event_writers w WHERE w.role_name = session_user
$$;
CREATE POLICY own_types ON public.blackboard_events AS RESTRICTIVE FOR INSERT
    WITH CHECK (event_type::text = ANY ((SELECT sec.own_event_types())::text[]));

-- The transactions whose events may not be published yet. A row belongs to the role that wrote it, which removes it when it has
-- published them. It says nothing of a user.
CREATE TABLE sec.unpublished_transactions (
    transaction_id bigint PRIMARY KEY,
    role_name name NOT NULL,
    since timestamptz NOT NULL,
    -- How many events it appended, and which of them are published.
    events integer NOT NULL CHECK (events > 0),
    published uuid[] NOT NULL DEFAULT '{}'
);
ALTER TABLE sec.unpublished_transactions OWNER TO memfleet_owner;

CREATE INDEX unpublished_transactions_since ON sec.unpublished_transactions (since);

-- Notes that this transaction appends events. Gives its id. A role that appends none has nothing to note; the others are limited, since
-- everybody who appends looks at these rows.
CREATE FUNCTION sec.note_unpublished(event_count integer) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    noted bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM sec.event_writers w WHERE w.role_name = session_user) THEN
        RAISE insufficient_privilege USING MESSAGE = 'permission denied: this role appends no events';
    END IF;
    IF (SELECT count(*) FROM (SELECT FROM sec.unpublished_transactions u
        WHERE u.role_name = session_user AND u.since >= now() - interval '1 hour' LIMIT 10000) AS few) >= 10000 THEN
        RAISE configuration_limit_exceeded
            USING MESSAGE = 'too many unpublished transactions of this role';
    END IF;
    INSERT INTO sec.unpublished_transactions AS u (transaction_id, role_name, since, events)
    VALUES (pg_current_xact_id()::text::bigint, session_user, transaction_timestamp(), event_count)
    ON CONFLICT (transaction_id) DO UPDATE SET events = u.events + excluded.events
    RETURNING transaction_id INTO noted;
    RETURN noted;
END $$;

-- Notes that events are published, each with the transaction of this role that appended it. What is older than an hour is looked at
-- by nobody, and goes.
CREATE FUNCTION sec.note_published(transaction_ids bigint[], event_ids uuid[]) RETURNS void LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    WITH given AS (
        SELECT g.transaction_id, array_agg(g.event_id) AS ids
        FROM unnest(transaction_ids, event_ids) AS g (transaction_id, event_id) GROUP BY g.transaction_id
    ), held AS (
        -- In one order, so that two replicas do not wait for each other in a circle.
        SELECT u.transaction_id, u.events, ARRAY(SELECT unnest(u.published) UNION SELECT unnest(g.ids)) AS published
        FROM sec.unpublished_transactions u JOIN given g ON g.transaction_id = u.transaction_id
        WHERE u.role_name = session_user ORDER BY u.transaction_id FOR UPDATE OF u
    ), done AS (
        DELETE FROM sec.unpublished_transactions u USING held h
        WHERE u.transaction_id = h.transaction_id AND cardinality(h.published) >= h.events
    ), outdated AS (
        DELETE FROM sec.unpublished_transactions u WHERE u.transaction_id = ANY (ARRAY(
            SELECT o.transaction_id FROM sec.unpublished_transactions o
            WHERE o.since < now() - interval '2 hours' AND o.transaction_id <> ALL (transaction_ids) LIMIT 100 FOR UPDATE SKIP LOCKED))
    )
    UPDATE sec.unpublished_transactions u SET published = h.published FROM held h
    WHERE u.transaction_id = h.transaction_id AND cardinality(h.published) < h.events
$$;

-- The transactions whose events may not be published yet, and those of their events that are. Committed ones of the last hour.
CREATE FUNCTION sec.unpublished() RETURNS TABLE (transaction_id bigint, published uuid[]) LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT u.transaction_id, u.published FROM sec.unpublished_transactions u WHERE u.since >= now() - interval '1 hour'
$$;

DO $$
DECLARE
    name text;
    worker name;
BEGIN
    FOREACH name IN ARRAY ARRAY['own_event_types()', 'note_unpublished(integer)', 'note_published(bigint[], uuid[])', 'unpublished()']
    LOOP
        EXECUTE format('ALTER FUNCTION sec.%s OWNER TO memfleet_owner', name);
        EXECUTE format('REVOKE EXECUTE ON FUNCTION sec.%s FROM PUBLIC', name);
        FOR worker IN SELECT DISTINCT role_name FROM sec.worker_privileges LOOP
            EXECUTE format('GRANT EXECUTE ON FUNCTION sec.%s TO %I', name, worker);
        END LOOP;
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION sec.worker_functions() RETURNS regprocedure[] LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT ARRAY['sec.open_context(text[], text, text)', 'sec.current_user_ids()', 'sec.context()',
        'public.set_security_context(integer, text, text)', 'public.get_current_user_id()',
        'public.get_current_session_id()', 'public.get_current_service_name()', 'public.validate_security_context()',
        'sec.excess_privileges()', 'sec.end_old_transactions()', 'sec.trust_version()', 'sec.trust_state()',
        'sec.note_token_use(uuid[], timestamptz[])',
        'sec.own_event_types()', 'sec.note_unpublished(integer)', 'sec.note_published(bigint[], uuid[])', 'sec.unpublished()',
        'audit.record_refused_tokens(text[], text[], integer[], text[], uuid[])',
        'audit.check_security_violation(text, text, integer, text, uuid)',
        'audit.log_data_access(text, text, integer[], uuid[], bigint[])',
        'audit.log_vector_operation(text, text, integer[], uuid[], bigint[])']::regprocedure[]
$$;
