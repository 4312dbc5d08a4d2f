SET LOCAL lock_timeout = '100ms';

CREATE OR REPLACE FUNCTION sec.end_old_transactions() RETURNS integer LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    WITH held AS MATERIALIZED (
        SELECT a.pid, coalesce(l.locks, 0) AS locks, sum(l.locks) OVER (PARTITION BY a.usename) AS of_role,
            a.xact_start < clock_timestamp() - interval '5 minutes'
                OR a.state LIKE 'idle in transaction%' AND a.state_change < clock_timestamp() - interval '30 seconds' AS is_old,
            current_setting('max_locks_per_transaction')::bigint
                * (current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint) AS size
        FROM pg_stat_activity a LEFT JOIN (SELECT pid, count(*) AS locks FROM pg_locks GROUP BY pid) AS l ON l.pid = a.pid
        WHERE a.pid <> pg_backend_pid() AND a.usename IN (SELECT w.role_name FROM sec.worker_privileges w)
    )
    SELECT count(*) FILTER (WHERE pg_terminate_backend(h.pid))::integer FROM held h
    WHERE h.is_old OR h.locks > h.size / 8 OR h.of_role > h.size / 3 AND h.locks > h.size / 128
$$;

-- Locks that writers wait for come last.
ALTER TABLE simple_chat_context DROP CONSTRAINT value_is_bounded;
ALTER TABLE agent_context_states DROP CONSTRAINT value_is_bounded;
ALTER TABLE consensus_memory_nodes DROP CONSTRAINT content_is_bounded;
