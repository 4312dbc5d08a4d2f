SET LOCAL lock_timeout = '100ms';

CREATE OR REPLACE FUNCTION sec.job_grants(job text, tick uuid, max_users integer)
RETURNS TABLE (user_id integer, is_due boolean, grant_text text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    mint CONSTANT uuid := gen_random_uuid();
    expiry CONSTANT bigint := extract(epoch FROM clock_timestamp() + interval '5 minutes');
    due_function text;
    due integer[];
    users integer[];
    signing record;
BEGIN
    SELECT j.due_function INTO due_function FROM sec.jobs j WHERE j.job = job_grants.job AND j.role_name = session_user;
    IF due_function IS NULL THEN
        RAISE insufficient_privilege USING MESSAGE = 'the security context is refused: this role has no such job';
    END IF;
    -- With as many of earlier mints and the platform's they are as many as one context may have.
    IF tick IS NULL OR (max_users BETWEEN 1 AND 4999) IS NOT TRUE THEN
        RAISE invalid_parameter_value USING MESSAGE = 'job grants: the tick is missing, or max_users is out of range (1 to 4999)';
    END IF;
    -- An old snapshot would show work as due that has been done since.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE insufficient_privilege
            USING MESSAGE = 'the security context is refused: job grants are minted in read committed only';
    END IF;
    SELECT k.key_id, k.inner_pad, k.outer_pad INTO STRICT signing FROM sec.keys k
    WHERE k.purpose = 'job' AND k.retired_at IS NULL ORDER BY k.created_at DESC LIMIT 1;
    BEGIN
        EXECUTE format('SELECT coalesce(array_agg(DISTINCT u), ''{}'') FROM (SELECT u FROM %s($1) AS u WHERE u >= 0 LIMIT $1) AS d',
            due_function) INTO due USING max_users;
    EXCEPTION WHEN insufficient_privilege OR undefined_function OR undefined_table OR undefined_column THEN
        -- One broken job must not look like an unavailable database, for which its worker would wait.
        RAISE insufficient_privilege USING MESSAGE = format('the security context is refused: %s of the job %s fails (SQLSTATE %s)',
            due_function, job, SQLSTATE), DETAIL = SQLERRM;
    END;
    users := ARRAY(SELECT u FROM (SELECT u, max(m.minted_at) AS latest FROM sec.minted_job_grants m, unnest(m.users) AS u
        WHERE m.job = job_grants.job AND m.tick = job_grants.tick AND m.role_name = session_user AND u <> 0 AND u <> ALL (due)
        GROUP BY u ORDER BY latest DESC LIMIT 4999) AS earlier);

    INSERT INTO sec.minted_job_grants (mint_id, job, tick, role_name, users, expires_at)
    VALUES (mint, job, tick, session_user, due, to_timestamp(expiry));
    -- More than are added, so that they never pile up; not all, so that no tick pays for many.
    DELETE FROM sec.minted_job_grants m WHERE m.mint_id IN (SELECT o.mint_id FROM sec.minted_job_grants o
        WHERE o.expires_at < clock_timestamp() - interval '1 day' LIMIT 100 FOR UPDATE SKIP LOCKED);
    users := array_remove(due, 0) || users;
    -- The platform's row has the number of users.
    INSERT INTO audit.data_access_log (subject_token, role_name, service, request_id, access_type, object_name, rows_returned)
    SELECT s.token, session_user, 'job:' || job, tick, 'job-grant', job, CASE u.id WHEN 0 THEN cardinality(users) ELSE 1 END
    FROM unnest(0 || users) AS u (id) LEFT JOIN audit.subjects s ON s.user_id = u.id;
    RETURN QUERY
    SELECT g.id, g.id = ANY (due),
        g.content || '|' || encode(sec.hmac(signing.inner_pad, signing.outer_pad, convert_to(g.content, 'UTF8')), 'hex')
    FROM (SELECT u.id, concat_ws('|', 'v1', signing.key_id, u.id, '', 'job:' || job, session_user, mint, expiry) AS content
        FROM unnest(0 || users) AS u (id)) AS g;
END $$;

CREATE OR REPLACE FUNCTION sec.note_unpublished(event_count integer) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    noted bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM sec.event_writers w WHERE w.role_name = session_user) THEN
        RAISE insufficient_privilege USING MESSAGE = 'permission denied: this role appends no events';
    END IF;
    IF (SELECT count(*) FROM (SELECT FROM sec.unpublished_transactions u
        WHERE u.role_name = session_user AND u.since >= now() - interval '1 hour' LIMIT 10000) AS few) >= 10000 THEN
        RAISE configuration_limit_exceeded
            USING MESSAGE = 'too many unpublished transactions of this role';
    END IF;
    INSERT INTO sec.unpublished_transactions AS u (transaction_id, role_name, since, events)
    VALUES (pg_current_xact_id()::text::bigint, session_user, transaction_timestamp(), event_count)
    ON CONFLICT (transaction_id) DO UPDATE SET events = u.events + excluded.events
    RETURNING transaction_id INTO noted;
    RETURN noted;
END $$;

DROP FUNCTION audit.foreign_sessions();
CREATE FUNCTION sec.is_session_of_another(user_id integer, session_id text) RETURNS boolean LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM public.chat_mode_sessions s WHERE s.session_id = $2 AND s.user_id <> $1)
        AND NOT EXISTS (SELECT FROM public.chat_mode_sessions s WHERE s.session_id = $2 AND s.user_id = $1)
$$;
CREATE INDEX chat_mode_sessions_by_name ON chat_mode_sessions (session_id);
REVOKE EXECUTE ON FUNCTION sec.is_session_of_another FROM PUBLIC;
ALTER FUNCTION sec.is_session_of_another OWNER TO memfleet_due;
GRANT EXECUTE ON FUNCTION sec.is_session_of_another TO memfleet_owner;
REVOKE EXECUTE ON FUNCTION sec.is_session_of_another FROM memfleet_due;
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
