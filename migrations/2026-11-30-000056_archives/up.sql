-- Archives: rows that retention takes out of the database are in files, which this table names (docs/adr/0053).
SET LOCAL lock_timeout = '100ms';

-- Rows of other tables cannot be archived: a policy of this kind would have no effect on them, or delete them.
ALTER TABLE data_retention_policies ADD CONSTRAINT data_retention_policies_archive CHECK (action <> 'archive'
    OR table_name IN ('simple_chat_context', 'agent_context_states', 'chat_mode_sessions', 'router_decision_log', 'blackboard_events'));

ALTER TABLE data_retention_policies DROP CONSTRAINT can_be_carried_out, ADD CONSTRAINT can_be_carried_out CHECK (NOT is_active OR (
    (action IN ('delete', 'archive') OR action = 'anonymise' AND table_name = 'router_decision_log')
    AND (keep_days >= 8 OR table_name NOT IN ('blackboard_events', 'tombstones', 'inbox'))));

-- The archives. One is named here in the transaction that removes its rows. A file that no row names is what a run left that was killed
-- before: its rows are still there.
CREATE TABLE archives (
    id uuid PRIMARY KEY,
    table_name varchar(128) NOT NULL,
    -- Its folder at the archive target.
    location text NOT NULL,
    -- What its manifest is signed with, and about.
    manifest_hash bytea NOT NULL CHECK (octet_length(manifest_hash) = 32),
    -- The policies that the rows were archived by, and the tick of the run.
    policies uuid[] NOT NULL,
    run_id uuid NOT NULL,
    row_count integer NOT NULL CHECK (row_count > 0),
    byte_count bigint NOT NULL CHECK (byte_count > 0),
    -- When its first and its last row were created.
    first_at timestamptz NOT NULL,
    last_at timestamptz NOT NULL CHECK (last_at >= first_at),
    -- Whose rows it has.
    user_ids integer[] NOT NULL,
    -- Rows in its files that were not removed, since they had changed meanwhile or were held. What the files have of them counts for nothing.
    not_removed uuid[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX archives_by_table ON archives (table_name, created_at);
CREATE INDEX archives_by_user ON archives USING gin (user_ids);
ALTER TABLE archives OWNER TO memfleet_owner;

-- What operators restored, by user: the trail of a user tells it, also of events, whose insertion it does not follow.
CREATE TABLE archive_restores (
    id uuid NOT NULL,
    user_id integer NOT NULL REFERENCES users (id),
    archive_id uuid NOT NULL,
    table_name varchar(128) NOT NULL,
    restored integer NOT NULL CHECK (restored > 0),
    restored_by text NOT NULL DEFAULT session_user,
    created_at timestamptz NOT NULL DEFAULT now(),
    request_id uuid,
    PRIMARY KEY (user_id, id)
);
SELECT sec.protect_rows('archive_restores');
CREATE TRIGGER audit_insert AFTER INSERT ON archive_restores REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION audit.audit_trigger_function();
CREATE TRIGGER audit_delete AFTER DELETE ON archive_restores REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION audit.audit_trigger_function();
ALTER TABLE archive_restores OWNER TO memfleet_owner;

-- The rows that are due, of those with this action; of all with NULL. What names no action means those to delete.
DROP FUNCTION sec.due_events(integer[], timestamptz, integer), sec.due_sessions(integer[], timestamptz, integer),
    sec.due_decisions(integer[], timestamptz, integer), sec.due_agent_contexts(integer[], timestamptz, integer),
    sec.due_contexts(integer[], timestamptz, integer);
CREATE FUNCTION sec.due_contexts(users integer[], at timestamptz, most integer,
    of_action public.retention_action DEFAULT 'delete') RETURNS TABLE (user_id integer, id uuid, policy_id uuid)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.user_id, c.id, r.policy_id FROM sec.retention_rules(users, 'simple_chat_context') AS r
    JOIN public.chat_mode_sessions s ON s.user_id = r.user_id AND s.chat_mode = r.chat_mode
        AND s.ended_at <= at - make_interval(days => r.keep_days)
    JOIN public.simple_chat_context c ON c.user_id = s.user_id AND c.session_id = s.session_id AND c.access_level::text = r.access_tier
    WHERE (of_action IS NULL OR r.action = of_action) AND NOT c.is_persistent
        AND NOT EXISTS (SELECT FROM public.cross_service_memory_sync y WHERE y.user_id = s.user_id
        AND s.session_id IN (y.source_session_id, y.target_session_id) AND y.sync_status IN ('pending', 'in_progress'))
    LIMIT most
$$;
CREATE FUNCTION sec.due_agent_contexts(users integer[], at timestamptz, most integer,
    of_action public.retention_action DEFAULT 'delete') RETURNS TABLE (user_id integer, id uuid, policy_id uuid)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT a.user_id, a.id, r.policy_id FROM sec.retention_rules(users, 'agent_context_states') AS r
    JOIN public.chat_mode_sessions s ON s.user_id = r.user_id AND s.chat_mode = r.chat_mode
        AND s.ended_at <= at - make_interval(days => r.keep_days)
    JOIN public.agent_context_states a ON a.user_id = s.user_id AND a.session_id = s.session_id AND a.memory_tier::text = r.access_tier
    WHERE (of_action IS NULL OR r.action = of_action)
        AND NOT EXISTS (SELECT FROM public.cross_service_memory_sync y WHERE y.user_id = s.user_id
        AND s.session_id IN (y.source_session_id, y.target_session_id) AND y.sync_status IN ('pending', 'in_progress'))
    LIMIT most
$$;
CREATE FUNCTION sec.due_decisions(users integer[], at timestamptz, most integer,
    of_action public.retention_action DEFAULT 'delete')
RETURNS TABLE (user_id integer, id uuid, policy_id uuid, action public.retention_action)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT d.user_id, d.id, r.policy_id, r.action FROM sec.retention_rules(users, 'router_decision_log') AS r
    JOIN public.chat_mode_sessions s ON s.user_id = r.user_id AND s.chat_mode = r.chat_mode
    JOIN public.router_decision_log d ON d.user_id = s.user_id AND d.session_id = s.session_id
        AND d.created_at <= at - make_interval(days => r.keep_days)
    WHERE r.access_tier IS NULL AND (of_action IS NULL OR r.action = of_action)
        AND (r.action <> 'anonymise' OR d.anonymised_at IS NULL)
    LIMIT most
$$;
CREATE FUNCTION sec.due_sessions(users integer[], at timestamptz, most integer,
    of_action public.retention_action DEFAULT 'delete') RETURNS TABLE (user_id integer, id uuid, policy_id uuid)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.user_id, s.id, r.policy_id FROM sec.retention_rules(users, 'chat_mode_sessions') AS r
    JOIN public.chat_mode_sessions s ON s.user_id = r.user_id AND s.chat_mode = r.chat_mode
        AND s.ended_at <= at - make_interval(days => r.keep_days)
    WHERE r.access_tier IS NULL AND (of_action IS NULL OR r.action = of_action)
        AND NOT EXISTS (SELECT FROM public.simple_chat_context t WHERE t.user_id = s.user_id AND t.session_id = s.session_id)
        AND NOT EXISTS (SELECT FROM public.agent_context_states t WHERE t.user_id = s.user_id AND t.session_id = s.session_id)
        AND NOT EXISTS (SELECT FROM public.router_decision_log t WHERE t.user_id = s.user_id AND t.session_id = s.session_id)
        AND NOT EXISTS (SELECT FROM public.unified_memory_vectors t WHERE t.user_id = s.user_id AND t.session_id = s.session_id)
        AND NOT EXISTS (SELECT FROM public.session_knowledge t WHERE t.user_id = s.user_id AND t.session_id = s.session_id)
        AND NOT EXISTS (SELECT FROM public.cross_service_memory_sync t WHERE t.user_id = s.user_id
            AND s.session_id IN (t.source_session_id, t.target_session_id))
    LIMIT most
$$;
CREATE FUNCTION sec.due_events(users integer[], at timestamptz, most integer,
    of_action public.retention_action DEFAULT 'delete') RETURNS TABLE (user_id integer, id uuid, policy_id uuid)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT k.user_id, e.id, r.policy_id FROM sec.retention_rules(users, 'blackboard_events') AS r
    JOIN public.session_clocks k ON k.user_id = r.user_id
    CROSS JOIN LATERAL (SELECT b.id FROM public.blackboard_events b WHERE b.user_id = k.user_id AND b.session_id = k.session_id
        AND b.id < public.uuid7_at(at - make_interval(days => r.keep_days)) AND b.created_at <= at - make_interval(days => r.keep_days)
        ORDER BY b.event_sequence LIMIT most) AS e
    WHERE r.chat_mode IS NULL AND r.access_tier IS NULL AND (of_action IS NULL OR r.action = of_action)
    LIMIT most
$$;
CREATE OR REPLACE FUNCTION sec.due_retention_sweep(integer) RETURNS SETOF integer LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    WITH slice AS MATERIALIZED (
        SELECT array_agg(u.id) AS users FROM public.users u
        WHERE u.id > (SELECT s.after_user FROM public.retention_state s) AND u.id <= sec.retention_slice()
    ), due AS (
        SELECT d.user_id FROM slice, sec.due_expired_contexts(slice.users, now(), 1000) AS d
        UNION ALL SELECT d.user_id FROM slice, sec.due_expired_agent_contexts(slice.users, now(), 1000) AS d
        UNION ALL SELECT d.user_id FROM slice, sec.due_contexts(slice.users, now(), 1000, NULL) AS d
        UNION ALL SELECT d.user_id FROM slice, sec.due_agent_contexts(slice.users, now(), 1000, NULL) AS d
        UNION ALL SELECT d.user_id FROM slice, sec.due_decisions(slice.users, now(), 1000, NULL) AS d
        UNION ALL SELECT d.user_id FROM slice, sec.due_memories(slice.users, now(), 1000) AS d
        UNION ALL SELECT d.user_id FROM slice, sec.due_syncs(slice.users, now(), 1000) AS d
        UNION ALL SELECT d.user_id FROM slice, sec.due_sessions(slice.users, now(), 1000, NULL) AS d
        UNION ALL SELECT d.user_id FROM slice, sec.due_tombstones(slice.users, now(), 1000) AS d
        UNION ALL SELECT d.user_id FROM slice, sec.due_events(slice.users, now(), 1000, NULL) AS d
        UNION ALL SELECT d.user_id FROM slice, sec.due_inbox(slice.users, now(), 1000) AS d
        UNION ALL SELECT v.user_id FROM slice, public.unified_memory_vectors v WHERE v.has_points AND v.user_id = ANY (slice.users)
    )
    SELECT 0 UNION ALL (SELECT DISTINCT d.user_id FROM due d WHERE d.user_id <> 0 LIMIT greatest($1 - 1, 0))
$$;

-- Whether any policy archives.
CREATE FUNCTION sec.has_archive_policies() RETURNS boolean LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM public.data_retention_policies p WHERE p.action = 'archive' AND p.is_active)
$$;
ALTER FUNCTION sec.has_archive_policies OWNER TO memfleet_due;
REVOKE EXECUTE ON FUNCTION sec.has_archive_policies FROM PUBLIC;
GRANT EXECUTE ON FUNCTION sec.has_archive_policies TO memfleet_owner;

-- Removes events that are in an archive. The worker's role may not delete them itself: it removes what is due to be archived at present,
-- and no more.
CREATE FUNCTION sec.forget_archived_events(ids uuid[]) RETURNS TABLE (user_id integer, id uuid)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY DELETE FROM public.blackboard_events b USING sec.retention_rules(sec.current_user_ids(), 'blackboard_events') AS r
    WHERE b.id = ANY (ids) AND b.user_id = r.user_id AND r.chat_mode IS NULL AND r.access_tier IS NULL AND r.action = 'archive'
        AND b.id < public.uuid7_at(now() - make_interval(days => r.keep_days)) AND b.created_at <= now() - make_interval(days => r.keep_days)
    RETURNING b.user_id, b.id;
END $$;
ALTER FUNCTION sec.forget_archived_events OWNER TO memfleet_owner;
REVOKE EXECUTE ON FUNCTION sec.forget_archived_events FROM PUBLIC;

-- Whether a user was erased: nothing of the user is restored then. An erasure destroys the user's subject with its key.
CREATE FUNCTION sec.is_erased(of_user integer) RETURNS boolean LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT NOT EXISTS (SELECT FROM public.users u WHERE u.id = of_user)
        OR NOT EXISTS (SELECT FROM audit.subjects s WHERE s.user_id = of_user)
$$;
ALTER FUNCTION sec.is_erased OWNER TO memfleet_owner;
REVOKE EXECUTE ON FUNCTION sec.is_erased FROM PUBLIC;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['due_contexts', 'due_agent_contexts', 'due_decisions', 'due_sessions', 'due_events'] LOOP
        name := format('sec.%I(integer[], timestamptz, integer, public.retention_action)', name);
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', name);
        EXECUTE format('ALTER FUNCTION %s OWNER TO memfleet_owner', name);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO memfleet_due, w_retention_cleaner', name);
    END LOOP;
END $$;

-- Summaries are not changed, but locked while their archive is compared with them.
SELECT sec.grant_worker('w_retention_cleaner', '{"archives": ["INSERT"], "chat_session_summary": ["UPDATE"]}',
    functions => '{"sec.has_archive_policies()", "sec.forget_archived_events(uuid[])"}', takes_messages => false);

-- The times that the worker may write are bounded as those of other workers are.
DO $$
DECLARE
    target record;
BEGIN
    FOR target IN
        SELECT c.oid::regclass AS name, string_agg(format(
            '%I BETWEEN ''0001-01-01 00:00:00+00''::timestamptz AND ''9999-12-31 23:59:59.999999+00''::timestamptz', a.attname),
            ' AND ' ORDER BY a.attnum) AS bounds
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
            AND a.atttypid = 'timestamptz'::regtype
        WHERE c.oid = ANY (ARRAY['archives', 'archive_restores']::regclass[])
        GROUP BY c.oid ORDER BY c.oid
    LOOP
        EXECUTE format('ALTER TABLE %s ADD CONSTRAINT times_are_bounded CHECK (%s) NOT VALID', target.name, target.bounds);
    END LOOP;
END $$;

SELECT audit.follow_updates('archive_restores');
