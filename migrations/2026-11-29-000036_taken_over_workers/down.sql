SET LOCAL lock_timeout = '100ms';

DO $$
DECLARE
    taken regprocedure;
BEGIN
    FOR taken IN SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'pg_catalog'::regnamespace AND (proname ~ '^pg_stat_get_xact_'
            OR proname ~ '^pg_stat_get_(numscans|tuples_|blocks_|live_tuples|dead_tuples|mod_since_|ins_since_)'
            OR proname IN ('pg_notify', 'pg_logical_emit_message')) LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', taken);
    END LOOP;
END $$;

-- A reason that this version does not know.
UPDATE cross_service_memory_sync SET end_reason = 'stopped' WHERE end_reason = 'not-allowed';
ALTER TABLE cross_service_memory_sync DROP CONSTRAINT cross_service_memory_sync_end_reason_check;
ALTER TABLE cross_service_memory_sync ADD CONSTRAINT cross_service_memory_sync_end_reason_check
    CHECK (end_reason IN ('carried', 'stopped', 'source-ended', 'target-ended', 'expired', 'undone'));
CREATE OR REPLACE FUNCTION sec.due_sync_carry(integer) RETURNS SETOF integer LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.user_id FROM public.cross_service_memory_sync s
    JOIN public.chat_mode_sessions a ON a.user_id = s.user_id AND a.session_id = s.source_session_id
    JOIN public.chat_mode_sessions b ON b.user_id = s.user_id AND b.session_id = s.target_session_id
    LEFT JOIN public.session_clocks c ON c.user_id = s.user_id AND c.session_id = s.source_session_id
    WHERE s.sync_status = 'in_progress'
        AND (s.has_more OR s.source_clock IS NULL OR c.logical_time > s.source_clock OR s.expires_at <= now()
            OR NOT a.is_active OR NOT b.is_active)
    GROUP BY s.user_id ORDER BY min(coalesce(s.carried_at, s.created_at)), s.user_id LIMIT $1
$$;
REVOKE SELECT (service, crosses_private) ON cross_service_memory_sync FROM memfleet_due;
SELECT sec.revoke_worker('w_memory_sync', functions => '{"sec.may_sync(text, boolean)"}');
DROP FUNCTION sec.may_sync(text, boolean);
REVOKE USAGE ON SCHEMA sec FROM memfleet_due;

CREATE OR REPLACE FUNCTION audit.note_foreign_session(of_user integer, of_session text, service text, of_request uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF of_user = ANY (sec.current_user_ids()) AND sec.is_session_of_another(of_user, of_session)
        AND NOT EXISTS (SELECT FROM audit.security_violations v
            WHERE v.violation_type = 'foreign-session' AND v.request_id = of_request) THEN
        INSERT INTO audit.security_violations (subject_token, role_name, service, request_id, violation_type, severity, table_name,
            reason)
        VALUES ((SELECT s.token FROM audit.subjects s WHERE s.user_id = of_user), session_user, left(service, 64), of_request,
            'foreign-session', 'low', 'chat_mode_sessions', 'a sync names a session that another user has');
    END IF;
END $$;
DROP INDEX audit.security_violations_by_request;

DROP POLICY of_readable_tables ON encrypted_fields;
DROP POLICY of_writable_tables ON encrypted_fields;
DROP POLICY of_changeable_tables ON encrypted_fields;
DROP POLICY of_deletable_tables ON encrypted_fields;

CREATE OR REPLACE FUNCTION sec.lock_synced_sessions(users integer[], sessions text[]) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    key integer;
    locked integer := 0;
BEGIN
    IF NOT users <@ sec.current_user_ids() THEN
        RAISE insufficient_privilege USING MESSAGE = 'sessions are locked for the users of the security context only';
    END IF;
    FOR key IN SELECT DISTINCT hashtext(s.user_id || ' ' || s.session_id) FROM unnest(users, sessions) AS s (user_id, session_id) ORDER BY 1 LOOP
        PERFORM pg_advisory_xact_lock(33, key);
        locked := locked + 1;
    END LOOP;
    RETURN locked;
END $$;
CREATE OR REPLACE FUNCTION sec.end_old_transactions() RETURNS integer LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT count(*) FILTER (WHERE pg_terminate_backend(a.pid))::integer FROM pg_stat_activity a
    WHERE a.pid <> pg_backend_pid()
        AND a.usename IN (SELECT w.role_name FROM sec.worker_privileges w)
        AND (a.xact_start < clock_timestamp() - interval '5 minutes'
            OR a.state LIKE 'idle in transaction%' AND a.state_change < clock_timestamp() - interval '30 seconds')
$$;
