-- Memories of agents that work in no chat session: retention reaches them, too (docs/adr/0052).
SET LOCAL lock_timeout = '100ms';

-- Memories of agents of sessions that have ended, unless a sync still reads or writes them. Where there is no chat session, policies without
-- a chat mode decide, and what counts is the later of when the memory was written and when its conversation ended, if it is of one. Of these,
-- empty rows are left to the policy of tombstones, and rows whose own time is over become empty ones first.
--
-- OFFSET 0 keeps the order of the joins: first the old memories of each user, by the index, and then what each of them belongs to.
CREATE OR REPLACE FUNCTION sec.due_agent_contexts(users integer[], at timestamptz, most integer,
    of_action public.retention_action DEFAULT 'delete') RETURNS TABLE (user_id integer, id uuid, policy_id uuid)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH rules AS MATERIALIZED (
        SELECT r.user_id, r.chat_mode, r.access_tier, r.policy_id, at - make_interval(days => r.keep_days) AS before
        FROM sec.retention_rules(users, 'agent_context_states') AS r
        WHERE r.access_tier IS NOT NULL AND (of_action IS NULL OR r.action = of_action)
    )
    SELECT d.user_id, d.id, d.policy_id FROM (
        SELECT a.user_id, a.id, r.policy_id FROM (
            SELECT o.user_id, o.chat_mode, o.policy_id, o.before, array_agg(o.access_tier) AS access_tiers FROM rules o
            WHERE o.chat_mode IS NOT NULL GROUP BY o.user_id, o.chat_mode, o.policy_id, o.before) AS r
        CROSS JOIN LATERAL (
            SELECT s.user_id, s.session_id FROM public.chat_mode_sessions s
            WHERE s.user_id = r.user_id AND s.chat_mode = r.chat_mode AND s.ended_at <= r.before
                AND NOT EXISTS (SELECT FROM public.cross_service_memory_sync y WHERE y.user_id = s.user_id
                    AND s.session_id IN (y.source_session_id, y.target_session_id) AND y.sync_status IN ('pending', 'in_progress'))
            OFFSET 0
        ) AS s
        CROSS JOIN LATERAL (
            SELECT c.user_id, c.id FROM public.agent_context_states c
            WHERE c.user_id = s.user_id AND c.session_id = s.session_id AND c.memory_tier::text = ANY (r.access_tiers)
            OFFSET 0
        ) AS a
        UNION ALL
        SELECT a.user_id, a.id, r.policy_id
        FROM (SELECT o.user_id, max(o.before) AS latest FROM rules o WHERE o.chat_mode IS NULL GROUP BY o.user_id) AS u
        CROSS JOIN LATERAL (
            SELECT c.user_id, c.id, c.session_id, c.memory_tier::text AS access_tier, c.updated_at FROM public.agent_context_states c
            WHERE c.user_id = u.user_id AND c.updated_at <= u.latest AND c.removed_at IS NULL
                AND (c.expires_at IS NULL OR c.expires_at > at)
                AND NOT EXISTS (SELECT FROM public.chat_mode_sessions s
                    WHERE s.user_id = c.user_id AND s.session_id = c.session_id OFFSET 0)
            OFFSET 0
        ) AS a
        JOIN rules r ON r.user_id = a.user_id AND r.chat_mode IS NULL AND r.access_tier = a.access_tier AND a.updated_at <= r.before
        WHERE NOT EXISTS (SELECT FROM public.multi_agent_conversations m WHERE m.user_id = a.user_id AND m.session_id = a.session_id
            AND (m.completed_at IS NULL OR m.completed_at > r.before) OFFSET 0)
    ) AS d LIMIT most
$$;

GRANT SELECT (updated_at) ON agent_context_states TO memfleet_due;
GRANT SELECT (user_id, session_id, completed_at) ON multi_agent_conversations TO memfleet_due;
SELECT sec.grant_worker('w_retention_cleaner', '{"multi_agent_conversations": ["SELECT"]}', takes_messages => false);

-- What writers wait for comes last.
CREATE INDEX agent_context_states_by_update ON agent_context_states (user_id, updated_at) WHERE removed_at IS NULL;
