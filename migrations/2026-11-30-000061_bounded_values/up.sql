-- A JSON value that is short where it is stored and long as text: a thousand numbers like 1e131071 take some hundred bytes, and 131 MB when a
-- sync, a query or an archive reads them. And a role of a worker that holds a table for itself.
SET LOCAL lock_timeout = '100ms';

-- Ends transactions of workers that are open for too long; that hold so many locks that others might get none (an eighth of the server's lock
-- table by one transaction, or a third by those of one role; a batch holds some hundreds); or that are older than five seconds and keep all
-- others, or all that write, from a relation for which somebody waits. No worker holds such a lock for so long.
CREATE OR REPLACE FUNCTION sec.end_old_transactions() RETURNS integer LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    WITH lock AS MATERIALIZED (
        SELECT l.pid, l.locktype, l.database, l.relation, l.mode, l.granted FROM pg_locks l
    ), held AS MATERIALIZED (
        SELECT a.pid, coalesce(l.locks, 0) AS locks, sum(l.locks) OVER (PARTITION BY a.usename) AS of_role,
            a.xact_start < clock_timestamp() - interval '5 minutes'
                OR a.state LIKE 'idle in transaction%' AND a.state_change < clock_timestamp() - interval '30 seconds' AS is_old,
            a.xact_start < clock_timestamp() - interval '5 seconds' AND EXISTS (
                SELECT FROM lock o JOIN lock w ON w.locktype = 'relation' AND w.database = o.database AND w.relation = o.relation
                WHERE o.pid = a.pid AND o.locktype = 'relation' AND o.granted AND NOT w.granted AND w.pid <> o.pid
                    AND o.mode IN ('AccessExclusiveLock', 'ExclusiveLock', 'ShareRowExclusiveLock', 'ShareLock')) AS is_waited_for,
            current_setting('max_locks_per_transaction')::bigint
                * (current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint) AS size
        FROM pg_stat_activity a LEFT JOIN (SELECT pid, count(*) AS locks FROM lock GROUP BY pid) AS l ON l.pid = a.pid
        WHERE a.pid <> pg_backend_pid() AND a.usename IN (SELECT w.role_name FROM sec.worker_privileges w)
    )
    SELECT count(*) FILTER (WHERE pg_terminate_backend(h.pid))::integer FROM held h
    WHERE h.is_old OR h.is_waited_for OR h.locks > h.size / 8 OR h.of_role > h.size / 3 AND h.locks > h.size / 128
$$;

-- Locks that writers wait for come last.

-- A value fits into an event, as that of a request does, which is stored with it: the limit is that of the check event_is_bounded. Whoever
-- writes such a value has PostgreSQL write it as text, and nobody else does. Values from before are not checked, so that nobody waits for it.
ALTER TABLE simple_chat_context ADD CONSTRAINT value_is_bounded CHECK (octet_length(context_value::text) <= 2031616) NOT VALID;
ALTER TABLE agent_context_states ADD CONSTRAINT value_is_bounded CHECK (octet_length(context_value::text) <= 2031616) NOT VALID;
ALTER TABLE consensus_memory_nodes ADD CONSTRAINT content_is_bounded CHECK (octet_length(content::text) <= 2031616
    AND octet_length(semantic_tags::text) <= 2031616) NOT VALID;
