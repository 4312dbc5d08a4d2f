-- What a worker that is taken over could still do: learn which sessions others have, have everybody read what it stores, and act for users
-- of a mint of long ago.
SET LOCAL lock_timeout = '100ms';

-- Notes that a user's request named a session which the user does not have: once for a request and a session. Whether somebody else has
-- it is not even looked up: a role can observe what a function writes and how many pages it reads. audit.foreign_sessions tells it to
-- an operator. The session is noted as a digest, as the trail has no names of what belongs to users.
CREATE OR REPLACE FUNCTION audit.note_foreign_session(of_user integer, of_session text, service text, of_request uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    subject CONSTANT uuid := (SELECT s.token FROM audit.subjects s WHERE s.user_id = of_user);
    content CONSTANT text := format('a sync names a session that its user does not have: %s',
        encode(sha256(convert_to(of_session, 'UTF8')), 'hex'));
BEGIN
    IF of_user = ANY (sec.current_user_ids())
        AND NOT EXISTS (SELECT FROM public.chat_mode_sessions s WHERE s.user_id = of_user AND s.session_id = of_session)
        AND NOT EXISTS (SELECT FROM audit.security_violations v WHERE v.violation_type = 'unknown-session'
            AND v.request_id = of_request AND v.subject_token = subject AND v.reason = content) THEN
        IF (SELECT count(*) FROM audit.security_violations v WHERE v.transaction_id = pg_current_xact_id()::text::bigint) >= 1000 THEN
            RAISE invalid_parameter_value USING MESSAGE = 'a transaction records at most 1000 unknown sessions';
        END IF;
        INSERT INTO audit.security_violations (subject_token, role_name, service, request_id, violation_type, severity, table_name,
            reason)
        VALUES (subject, session_user, 'claimed:' || left(service, 64), of_request, 'unknown-session', 'low', 'chat_mode_sessions', content);
    END IF;
END $$;
DROP FUNCTION sec.is_session_of_another(integer, text);

-- The unknown sessions of syncs that other users have now. Session ids are unique within a user, so the same name may be chance.
-- For an administrator.
CREATE FUNCTION audit.foreign_sessions() RETURNS TABLE (violation_id uuid, occurred_at timestamptz, user_id integer, service text,
    request_id uuid, session_id text, owners integer[]) LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH named AS MATERIALIZED (
        SELECT v.*, right(v.reason, 64) AS digest FROM audit.security_violations v WHERE v.violation_type = 'unknown-session'
    ), owned AS MATERIALIZED (
        SELECT encode(sha256(convert_to(s.session_id, 'UTF8')), 'hex') AS digest, s.session_id, s.user_id FROM public.chat_mode_sessions s
    )
    SELECT n.id, n.occurred_at, u.user_id, n.service, n.request_id, o.session_id, array_agg(o.user_id ORDER BY o.user_id)
    FROM named n JOIN audit.subjects u ON u.token = n.subject_token JOIN owned o ON o.digest = n.digest AND o.user_id <> u.user_id
    GROUP BY n.id, n.occurred_at, u.user_id, n.service, n.request_id, o.session_id ORDER BY n.id
$$;
REVOKE EXECUTE ON FUNCTION audit.foreign_sessions FROM PUBLIC;

-- At most as many events as a batch has: the ids of those that are published are kept with it, and every batch reads them.
CREATE OR REPLACE FUNCTION sec.note_unpublished(event_count integer) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    noted bigint;
    counted integer;
BEGIN
    IF NOT EXISTS (SELECT FROM sec.event_writers w WHERE w.role_name = session_user) THEN
        RAISE insufficient_privilege USING MESSAGE = 'permission denied: this role appends no events';
    END IF;
    IF (SELECT count(*) FROM (SELECT FROM sec.unpublished_transactions u
        WHERE u.role_name = session_user AND u.since >= now() - interval '1 hour' LIMIT 10000) AS few) >= 10000 THEN
        RAISE configuration_limit_exceeded
            USING MESSAGE = 'too many unpublished transactions of this role';
    END IF;
    IF event_count BETWEEN 1 AND 10000 THEN
        INSERT INTO sec.unpublished_transactions AS u (transaction_id, role_name, since, events)
        VALUES (pg_current_xact_id()::text::bigint, session_user, transaction_timestamp(), event_count)
        ON CONFLICT (transaction_id) DO UPDATE SET events = u.events + excluded.events
        RETURNING transaction_id, events INTO noted, counted;
    END IF;
    IF (counted <= 10000) IS NOT TRUE THEN
        RAISE invalid_parameter_value USING MESSAGE = 'a transaction notes 1 to 10000 events';
    END IF;
    RETURN noted;
END $$;

-- A mint counts for a day, also while its row is still there.
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
        WHERE m.job = job_grants.job AND m.tick = job_grants.tick AND m.role_name = session_user
            AND m.minted_at > clock_timestamp() - interval '1 day' AND u <> 0 AND u <> ALL (due)
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

-- Last, because it locks the table until the end of this transaction.
DROP INDEX chat_mode_sessions_by_name;
