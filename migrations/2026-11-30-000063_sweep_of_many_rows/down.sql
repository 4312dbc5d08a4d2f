SET LOCAL lock_timeout = '100ms';

CREATE OR REPLACE FUNCTION sec.due_contexts(users integer[], at timestamptz, most integer,
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

CREATE OR REPLACE FUNCTION sec.due_users(of_users integer[]) RETURNS SETOF integer LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT DISTINCT d.user_id FROM (
        SELECT d.user_id FROM sec.due_expired_contexts(of_users, now(), 1000) AS d
        UNION ALL SELECT d.user_id FROM sec.due_expired_agent_contexts(of_users, now(), 1000) AS d
        UNION ALL SELECT d.user_id FROM sec.due_contexts(of_users, now(), 1000, NULL) AS d
        UNION ALL SELECT d.user_id FROM sec.due_agent_contexts(of_users, now(), 1000, NULL) AS d
        UNION ALL SELECT d.user_id FROM sec.due_decisions(of_users, now(), 1000, NULL) AS d
        UNION ALL SELECT d.user_id FROM sec.due_memories(of_users, now(), 1000) AS d
        UNION ALL SELECT d.user_id FROM sec.due_syncs(of_users, now(), 1000) AS d
        UNION ALL SELECT d.user_id FROM sec.due_sessions(of_users, now(), 1000, NULL) AS d
        UNION ALL SELECT d.user_id FROM sec.due_tombstones(of_users, now(), 1000) AS d
        UNION ALL SELECT d.user_id FROM sec.due_events(of_users, now(), 1000, NULL) AS d
        UNION ALL SELECT d.user_id FROM sec.due_inbox(of_users, now(), 1000) AS d
        UNION ALL SELECT v.user_id FROM public.unified_memory_vectors v WHERE v.has_points AND v.user_id = ANY (of_users)
    ) AS d WHERE d.user_id <> 0
$$;

ALTER FUNCTION sec.kinds_of_rows ROWS 1000;
ALTER FUNCTION sec.platform_policies ROWS 1000;
ALTER FUNCTION sec.platform_holds ROWS 1000;
ALTER FUNCTION sec.held_kinds ROWS 1000;
ALTER FUNCTION sec.retention_rules ROWS 1000;
