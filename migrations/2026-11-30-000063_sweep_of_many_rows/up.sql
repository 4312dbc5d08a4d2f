-- A sweep of many rows, also of one user: what it costs to find whose rows are due, and which.
SET LOCAL lock_timeout = '100ms';

-- Contexts of sessions that have ended, unless a sync still reads or writes them. Each is read once, whatever the number of access tiers.
-- OFFSET 0 keeps the order of the joins, which reads nothing of other users.
CREATE OR REPLACE FUNCTION sec.due_contexts(users integer[], at timestamptz, most integer,
    of_action public.retention_action DEFAULT 'delete') RETURNS TABLE (user_id integer, id uuid, policy_id uuid)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.user_id, c.id, r.policy_id FROM (
        SELECT a.user_id, a.chat_mode, a.policy_id, a.keep_days, array_agg(a.access_tier) AS access_tiers
        FROM sec.retention_rules(users, 'simple_chat_context') AS a
        WHERE a.chat_mode IS NOT NULL AND a.access_tier IS NOT NULL AND (of_action IS NULL OR a.action = of_action)
        GROUP BY a.user_id, a.chat_mode, a.policy_id, a.keep_days) AS r
    CROSS JOIN LATERAL (
        SELECT s.user_id, s.session_id FROM public.chat_mode_sessions s
        WHERE s.user_id = r.user_id AND s.chat_mode = r.chat_mode AND s.ended_at <= at - make_interval(days => r.keep_days)
            AND NOT EXISTS (SELECT FROM public.cross_service_memory_sync y WHERE y.user_id = s.user_id
                AND s.session_id IN (y.source_session_id, y.target_session_id) AND y.sync_status IN ('pending', 'in_progress'))
        OFFSET 0
    ) AS s
    CROSS JOIN LATERAL (
        SELECT c.user_id, c.id FROM public.simple_chat_context c WHERE c.user_id = s.user_id AND c.session_id = s.session_id
            AND c.access_level::text = ANY (r.access_tiers) AND NOT c.is_persistent
        OFFSET 0
    ) AS c
    LIMIT most
$$;

-- Whose rows are due, of these users. A kind of rows of which a run has enough is the last one that is looked at: others come when it is done.
-- Rows that an archive waits for keep no others out.
CREATE OR REPLACE FUNCTION sec.due_users(of_users integer[]) RETURNS SETOF integer LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    enough CONSTANT integer := 2000;
    has_archives CONSTANT boolean := sec.has_archive_policies();
    found integer[];
    users integer[] := '{}';
BEGIN
    -- In the order of the statements of a run.
    FOR step IN 1 .. 12 LOOP
        found := CASE step
            WHEN 1 THEN ARRAY(SELECT d.user_id FROM sec.due_expired_contexts(of_users, now(), enough) AS d)
            WHEN 2 THEN ARRAY(SELECT d.user_id FROM sec.due_expired_agent_contexts(of_users, now(), enough) AS d)
            WHEN 3 THEN ARRAY(SELECT d.user_id FROM sec.due_contexts(of_users, now(), enough, NULL) AS d)
            WHEN 4 THEN ARRAY(SELECT d.user_id FROM sec.due_agent_contexts(of_users, now(), enough, NULL) AS d)
            WHEN 5 THEN ARRAY(SELECT d.user_id FROM sec.due_decisions(of_users, now(), enough, NULL) AS d)
            WHEN 6 THEN ARRAY(SELECT d.user_id FROM sec.due_memories(of_users, now(), enough) AS d)
            WHEN 7 THEN ARRAY(SELECT d.user_id FROM sec.due_syncs(of_users, now(), enough) AS d)
            WHEN 8 THEN ARRAY(SELECT d.user_id FROM sec.due_tombstones(of_users, now(), enough) AS d)
            WHEN 9 THEN ARRAY(SELECT d.user_id FROM sec.due_events(of_users, now(), enough, NULL) AS d)
            WHEN 10 THEN ARRAY(SELECT d.user_id FROM sec.due_inbox(of_users, now(), enough) AS d)
            WHEN 11 THEN ARRAY(SELECT d.user_id FROM sec.due_sessions(of_users, now(), enough, NULL) AS d)
            ELSE ARRAY(SELECT v.user_id FROM public.unified_memory_vectors v WHERE v.has_points AND v.user_id = ANY (of_users) LIMIT enough)
        END;
        users := users || found;
        EXIT WHEN cardinality(found) = enough AND NOT has_archives;
    END LOOP;
    RETURN QUERY SELECT DISTINCT u.id FROM unnest(users) AS u (id) WHERE u.id <> 0;
END $$;

-- What the planner expects of them: of a thousand rows each, as by default, it would read all sessions for a few users.
ALTER FUNCTION sec.kinds_of_rows ROWS 25;
ALTER FUNCTION sec.platform_policies ROWS 5;
ALTER FUNCTION sec.platform_holds ROWS 5;
ALTER FUNCTION sec.held_kinds ROWS 10;
ALTER FUNCTION sec.retention_rules ROWS 100;
