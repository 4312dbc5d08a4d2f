-- The files of archives stay where they are, and nothing names them any more.
SET LOCAL lock_timeout = '100ms';

SELECT sec.revoke_worker('w_retention_cleaner', '{"archives": ["INSERT"], "chat_session_summary": ["UPDATE"]}',
    '{"sec.has_archive_policies()", "sec.forget_archived_events(uuid[])"}');
DROP FUNCTION sec.is_erased, sec.forget_archived_events, sec.has_archive_policies;
DROP FUNCTION sec.due_events(integer[], timestamptz, integer, retention_action),
    sec.due_sessions(integer[], timestamptz, integer, retention_action), sec.due_decisions(integer[], timestamptz, integer, retention_action),
    sec.due_agent_contexts(integer[], timestamptz, integer, retention_action),
    sec.due_contexts(integer[], timestamptz, integer, retention_action);
CREATE FUNCTION sec.due_contexts(users integer[], at timestamptz, most integer) RETURNS TABLE (user_id integer, id uuid, policy_id uuid)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.user_id, c.id, r.policy_id FROM sec.retention_rules(users, 'simple_chat_context') AS r
    JOIN public.chat_mode_sessions s ON s.user_id = r.user_id AND s.chat_mode = r.chat_mode
        AND s.ended_at <= at - make_interval(days => r.keep_days)
    JOIN public.simple_chat_context c ON c.user_id = s.user_id AND c.session_id = s.session_id AND c.access_level::text = r.access_tier
    WHERE NOT c.is_persistent AND NOT EXISTS (SELECT FROM public.cross_service_memory_sync y WHERE y.user_id = s.user_id
        AND s.session_id IN (y.source_session_id, y.target_session_id) AND y.sync_status IN ('pending', 'in_progress'))
    LIMIT most
$$;
CREATE FUNCTION sec.due_agent_contexts(users integer[], at timestamptz, most integer)
RETURNS TABLE (user_id integer, id uuid, policy_id uuid) LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT a.user_id, a.id, r.policy_id FROM sec.retention_rules(users, 'agent_context_states') AS r
    JOIN public.chat_mode_sessions s ON s.user_id = r.user_id AND s.chat_mode = r.chat_mode
        AND s.ended_at <= at - make_interval(days => r.keep_days)
    JOIN public.agent_context_states a ON a.user_id = s.user_id AND a.session_id = s.session_id AND a.memory_tier::text = r.access_tier
    WHERE NOT EXISTS (SELECT FROM public.cross_service_memory_sync y WHERE y.user_id = s.user_id
        AND s.session_id IN (y.source_session_id, y.target_session_id) AND y.sync_status IN ('pending', 'in_progress'))
    LIMIT most
$$;
CREATE FUNCTION sec.due_decisions(users integer[], at timestamptz, most integer)
RETURNS TABLE (user_id integer, id uuid, policy_id uuid, action public.retention_action)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT d.user_id, d.id, r.policy_id, r.action FROM sec.retention_rules(users, 'router_decision_log') AS r
    JOIN public.chat_mode_sessions s ON s.user_id = r.user_id AND s.chat_mode = r.chat_mode
    JOIN public.router_decision_log d ON d.user_id = s.user_id AND d.session_id = s.session_id
        AND d.created_at <= at - make_interval(days => r.keep_days)
    WHERE r.access_tier IS NULL AND (r.action <> 'anonymise' OR d.anonymised_at IS NULL)
    LIMIT most
$$;
CREATE FUNCTION sec.due_sessions(users integer[], at timestamptz, most integer) RETURNS TABLE (user_id integer, id uuid, policy_id uuid)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.user_id, s.id, r.policy_id FROM sec.retention_rules(users, 'chat_mode_sessions') AS r
    JOIN public.chat_mode_sessions s ON s.user_id = r.user_id AND s.chat_mode = r.chat_mode
        AND s.ended_at <= at - make_interval(days => r.keep_days)
    WHERE r.access_tier IS NULL
        AND NOT EXISTS (SELECT FROM public.simple_chat_context t WHERE t.user_id = s.user_id AND t.session_id = s.session_id)
        AND NOT EXISTS (SELECT FROM public.agent_context_states t WHERE t.user_id = s.user_id AND t.session_id = s.session_id)
        AND NOT EXISTS (SELECT FROM public.router_decision_log t WHERE t.user_id = s.user_id AND t.session_id = s.session_id)
        AND NOT EXISTS (SELECT FROM public.unified_memory_vectors t WHERE t.user_id = s.user_id AND t.session_id = s.session_id)
        AND NOT EXISTS (SELECT FROM public.session_knowledge t WHERE t.user_id = s.user_id AND t.session_id = s.session_id)
        AND NOT EXISTS (SELECT FROM public.cross_service_memory_sync t WHERE t.user_id = s.user_id
            AND s.session_id IN (t.source_session_id, t.target_session_id))
    LIMIT most
$$;
CREATE FUNCTION sec.due_events(users integer[], at timestamptz, most integer) RETURNS TABLE (user_id integer, id uuid, policy_id uuid)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT k.user_id, e.id, r.policy_id FROM sec.retention_rules(users, 'blackboard_events') AS r
    JOIN public.session_clocks k ON k.user_id = r.user_id
    CROSS JOIN LATERAL (SELECT b.id FROM public.blackboard_events b WHERE b.user_id = k.user_id AND b.session_id = k.session_id
        AND b.id < public.uuid7_at(at - make_interval(days => r.keep_days)) ORDER BY b.event_sequence LIMIT most) AS e
    WHERE r.chat_mode IS NULL AND r.access_tier IS NULL
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
        UNION ALL SELECT d.user_id FROM slice, sec.due_contexts(slice.users, now(), 1000) AS d
        UNION ALL SELECT d.user_id FROM slice, sec.due_agent_contexts(slice.users, now(), 1000) AS d
        UNION ALL SELECT d.user_id FROM slice, sec.due_decisions(slice.users, now(), 1000) AS d
        UNION ALL SELECT d.user_id FROM slice, sec.due_memories(slice.users, now(), 1000) AS d
        UNION ALL SELECT d.user_id FROM slice, sec.due_syncs(slice.users, now(), 1000) AS d
        UNION ALL SELECT d.user_id FROM slice, sec.due_sessions(slice.users, now(), 1000) AS d
        UNION ALL SELECT d.user_id FROM slice, sec.due_tombstones(slice.users, now(), 1000) AS d
        UNION ALL SELECT d.user_id FROM slice, sec.due_events(slice.users, now(), 1000) AS d
        UNION ALL SELECT d.user_id FROM slice, sec.due_inbox(slice.users, now(), 1000) AS d
        UNION ALL SELECT v.user_id FROM slice, public.unified_memory_vectors v WHERE v.has_points AND v.user_id = ANY (slice.users)
    )
    SELECT 0 UNION ALL (SELECT DISTINCT d.user_id FROM due d WHERE d.user_id <> 0 LIMIT greatest($1 - 1, 0))
$$;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['due_contexts', 'due_agent_contexts', 'due_decisions', 'due_sessions', 'due_events'] LOOP
        name := format('sec.%I(integer[], timestamptz, integer)', name);
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', name);
        EXECUTE format('ALTER FUNCTION %s OWNER TO memfleet_owner', name);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO memfleet_due, w_retention_cleaner', name);
    END LOOP;
END $$;

DROP TABLE archive_restores, archives;
DROP FUNCTION audit.note_updates_of_archive_restores;
-- Rows of such policies would be deleted: an older program does not archive.
UPDATE data_retention_policies SET is_active = false WHERE action = 'archive';
ALTER TABLE data_retention_policies DROP CONSTRAINT data_retention_policies_archive, DROP CONSTRAINT can_be_carried_out,
    ADD CONSTRAINT can_be_carried_out CHECK (NOT is_active OR (
        (action = 'delete' OR action = 'anonymise' AND table_name = 'router_decision_log')
        AND (keep_days >= 8 OR table_name NOT IN ('blackboard_events', 'tombstones', 'inbox'))));
