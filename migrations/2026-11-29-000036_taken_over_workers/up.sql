-- What a worker that is taken over could do beyond its part: fill the lock table of the server, read and delete ciphertexts of tables that
-- it may not touch, record violations in the name of services, and learn of others from counters of statistics.
SET LOCAL lock_timeout = '100ms';

-- Ends transactions of workers that are open for too long, or that hold so many locks that others might get none: an eighth of the
-- server's lock table by one transaction, or a third by those of one role. A batch holds some hundreds.
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

-- At most as many sessions as the syncs of one batch or tick concern, so that the locks of one transaction are few.
CREATE OR REPLACE FUNCTION sec.lock_synced_sessions(users integer[], sessions text[]) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    key integer;
    locked integer := 0;
BEGIN
    IF NOT users <@ sec.current_user_ids() THEN
        RAISE insufficient_privilege USING MESSAGE = 'sessions are locked for the users of the security context only';
    END IF;
    IF cardinality(sessions) + (SELECT count(*) FROM pg_locks l WHERE l.pid = pg_backend_pid() AND l.locktype = 'advisory') > 1000 THEN
        RAISE invalid_parameter_value USING MESSAGE = 'a transaction locks at most 1000 sessions';
    END IF;
    FOR key IN SELECT DISTINCT hashtext(s.user_id || ' ' || s.session_id) FROM unnest(users, sessions) AS s (user_id, session_id) ORDER BY 1 LOOP
        PERFORM pg_advisory_xact_lock(33, key);
        locked := locked + 1;
    END LOOP;
    RETURN locked;
END $$;

-- A ciphertext belongs to a row of another table: who may not read or write that table may not read or write the ciphertext.
CREATE POLICY of_readable_tables ON encrypted_fields AS RESTRICTIVE FOR SELECT
    USING (has_table_privilege(current_user, 'public.' || quote_ident(table_name), 'SELECT'));
CREATE POLICY of_writable_tables ON encrypted_fields AS RESTRICTIVE FOR INSERT
    WITH CHECK (has_table_privilege(current_user, 'public.' || quote_ident(table_name), 'INSERT, UPDATE'));
CREATE POLICY of_changeable_tables ON encrypted_fields AS RESTRICTIVE FOR UPDATE
    USING (has_table_privilege(current_user, 'public.' || quote_ident(table_name), 'INSERT, UPDATE'))
    WITH CHECK (has_table_privilege(current_user, 'public.' || quote_ident(table_name), 'INSERT, UPDATE'));
CREATE POLICY of_deletable_tables ON encrypted_fields AS RESTRICTIVE FOR DELETE
    USING (has_table_privilege(current_user, 'public.' || quote_ident(table_name), 'UPDATE, DELETE'));

-- As audit.record_refused_tokens: the service is what the role says of it, and there are limits.
CREATE INDEX security_violations_by_request ON audit.security_violations (request_id, violation_type) WHERE request_id IS NOT NULL;
CREATE OR REPLACE FUNCTION audit.note_foreign_session(of_user integer, of_session text, service text, of_request uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF of_user = ANY (sec.current_user_ids()) AND sec.is_session_of_another(of_user, of_session)
        AND NOT EXISTS (SELECT FROM audit.security_violations v
            WHERE v.violation_type = 'foreign-session' AND v.request_id = of_request) THEN
        IF (SELECT count(*) FROM audit.security_violations v WHERE v.transaction_id = pg_current_xact_id()::text::bigint) >= 1000 THEN
            RAISE invalid_parameter_value USING MESSAGE = 'a transaction records at most 1000 foreign sessions';
        END IF;
        INSERT INTO audit.security_violations (subject_token, role_name, service, request_id, violation_type, severity, table_name,
            reason)
        VALUES ((SELECT s.token FROM audit.subjects s WHERE s.user_id = of_user), session_user, 'claimed:' || left(service, 64), of_request,
            'foreign-session', 'low', 'chat_mode_sessions', 'a sync names a session that another user has');
    END IF;
END $$;

-- Whether a service may still carry what a sync carries on in its name: it is neither disabled, nor has it lost the scopes.
CREATE FUNCTION sec.may_sync(of_service text, crosses_private boolean) RETURNS boolean LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM sec.services s WHERE s.service = of_service AND s.disabled_at IS NULL
            AND EXISTS (SELECT FROM unnest(s.scopes) AS c (scope) WHERE split_part(c.scope, ':', 1) IN ('sync', '*')
                AND split_part(c.scope, ':', 2) IN ('start', '*'))
            AND (NOT crosses_private OR EXISTS (SELECT FROM unnest(s.scopes) AS c (scope) WHERE split_part(c.scope, ':', 1) IN ('sync', '*')
                AND split_part(c.scope, ':', 2) IN ('private', '*'))))
$$;
REVOKE EXECUTE ON FUNCTION sec.may_sync FROM PUBLIC;
ALTER FUNCTION sec.may_sync OWNER TO memfleet_owner;
SELECT sec.grant_worker('w_memory_sync', functions => '{"sec.may_sync(text, boolean)"}');
GRANT USAGE ON SCHEMA sec TO memfleet_due;
GRANT EXECUTE ON FUNCTION sec.may_sync TO memfleet_due;
CREATE OR REPLACE FUNCTION sec.due_sync_carry(integer) RETURNS SETOF integer LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.user_id FROM public.cross_service_memory_sync s
    JOIN public.chat_mode_sessions a ON a.user_id = s.user_id AND a.session_id = s.source_session_id
    JOIN public.chat_mode_sessions b ON b.user_id = s.user_id AND b.session_id = s.target_session_id
    LEFT JOIN public.session_clocks c ON c.user_id = s.user_id AND c.session_id = s.source_session_id
    WHERE s.sync_status = 'in_progress'
        AND (s.has_more OR s.source_clock IS NULL OR c.logical_time > s.source_clock OR s.expires_at <= now()
            OR NOT a.is_active OR NOT b.is_active OR NOT sec.may_sync(s.service, s.crosses_private))
    GROUP BY s.user_id ORDER BY min(coalesce(s.carried_at, s.created_at)), s.user_id LIMIT $1
$$;
GRANT SELECT (service, crosses_private) ON cross_service_memory_sync TO memfleet_due;
ALTER TABLE cross_service_memory_sync DROP CONSTRAINT cross_service_memory_sync_end_reason_check;
ALTER TABLE cross_service_memory_sync ADD CONSTRAINT cross_service_memory_sync_end_reason_check
    CHECK (end_reason IN ('carried', 'stopped', 'source-ended', 'target-ended', 'expired', 'undone', 'not-allowed')) NOT VALID;

-- Counters of statistics tell what a statement of others' functions has read or written, also what was rolled back. The queue of
-- notifications and the log belong to all.
DO $$
DECLARE
    taken regprocedure;
BEGIN
    FOR taken IN SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'pg_catalog'::regnamespace AND (proname ~ '^pg_stat_get_xact_'
            OR proname ~ '^pg_stat_get_(numscans|tuples_|blocks_|live_tuples|dead_tuples|mod_since_|ins_since_)'
            OR proname IN ('pg_notify', 'pg_logical_emit_message')) LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', taken);
    END LOOP;
END $$;
