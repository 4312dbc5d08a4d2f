SET LOCAL lock_timeout = '100ms';

CREATE OR REPLACE FUNCTION sec.due_agent_contexts(users integer[], at timestamptz, most integer,
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

SELECT sec.revoke_worker('w_retention_cleaner', '{"multi_agent_conversations": ["SELECT"]}');
REVOKE SELECT (updated_at) ON agent_context_states FROM memfleet_due;
REVOKE SELECT (user_id, session_id, completed_at) ON multi_agent_conversations FROM memfleet_due;
DROP INDEX agent_context_states_by_update;
