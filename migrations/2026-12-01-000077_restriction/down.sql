-- Restrictions end with this. A label cannot be taken from an enum; an earlier program shows no request that has it.
SET LOCAL lock_timeout = '100ms';

CREATE OR REPLACE FUNCTION sec.was_revoked_since(users integer[], since timestamptz) RETURNS boolean LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM sec.revoked_grants r LEFT JOIN public.cross_service_auth a ON a.token_id = r.grant_id
            WHERE r.revoked_at > since - interval '10 minutes' AND (a.user_id = ANY (users) OR a.user_id IS NULL))
        OR EXISTS (SELECT FROM sec.services s WHERE s.disabled_at > since - interval '10 minutes')
        OR EXISTS (SELECT FROM sec.keys k WHERE k.purpose = 'grant' AND k.retired_at > since - interval '10 minutes')
        OR EXISTS (SELECT FROM sec.fenced_users f WHERE f.user_id = ANY (users))
$$;

CREATE OR REPLACE FUNCTION sec.open_context(grants text[], session_id text DEFAULT '', service text DEFAULT '') RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    now_seconds bigint := extract(epoch FROM clock_timestamp());
    users integer[];
    services text[];
    ids uuid[];
    mints uuid[];
    minted_users integer[];
    minted_services text[];
    bad text;
    fence text;
    named jsonb;
    content text;
    -- Read first: what is revoked after this is noticed by each statement that uses the context.
    version CONSTANT bigint := (SELECT t.version FROM sec.trust_version t);
BEGIN
    session_id := coalesce(session_id, '');
    service := coalesce(service, '');
    -- A context is of one transaction, which its seal knows by the time at which it began. Several transactions begin at one time
    -- only within one message of the simple protocol, or one DO or CALL: a lone SELECT is in none of them.
    IF (current_query() ~* '^\s*(select|with)\M[^;]*;?\s*$') IS NOT TRUE THEN
        RAISE insufficient_privilege USING
            MESSAGE = 'the security context is refused: it is opened by a statement of its own, a SELECT without semicolons in it';
    END IF;
    -- An old snapshot would not show what was revoked since.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE insufficient_privilege USING MESSAGE = 'the security context is refused: it is opened in read committed only';
    END IF;
    -- A NULL among the parts would let the next one stand in its place, so that none is let in.
    IF (cardinality(grants) BETWEEN 1 AND 10000) IS NOT TRUE OR session_id ~ '[|]' OR service ~ '[|]' THEN
        RAISE insufficient_privilege USING MESSAGE = 'the security context is refused: it needs 1 to 10000 grants';
    END IF;
    -- MATERIALIZED, or every use of a part would take its grant to pieces anew. What has a good seal was written by an
    -- issuer, so that its parts are what they must be.
    WITH parsed AS MATERIALIZED (
        SELECT g, convert_to(g, 'UTF8') AS b, string_to_array(g, '|') AS p FROM unnest(grants) AS g
    ), judged AS MATERIALIZED (
        SELECT p, k.purpose, CASE
            WHEN g IS NULL OR cardinality(p) <> 9 OR p[1] <> 'v1' THEN 'malformed'
            WHEN k.key_id IS NULL THEN 'unknown key'
            WHEN p[9] IS DISTINCT FROM encode(sec.hmac(k.inner_pad, k.outer_pad,
                substr(b, 1, greatest(octet_length(b) - 65, 0))), 'hex') THEN 'forged'
            WHEN p[6] <> session_user THEN 'of another role'
            WHEN p[8]::bigint <= now_seconds THEN 'expired'
            WHEN k.retired_at IS NOT NULL THEN 'replaced'
            END AS fault
        FROM parsed LEFT JOIN sec.keys k ON k.key_id = p[2] AND (k.purpose = 'grant' AND k.retired_at IS NULL OR k.purpose = 'job')
    )
    SELECT array_agg(CASE WHEN fault IS NULL THEN p[3]::integer END), array_agg(p[5]),
        array_agg(CASE WHEN fault IS NULL THEN p[7]::uuid END),
        array_agg(p[7]::uuid) FILTER (WHERE fault IS NULL AND purpose = 'job'),
        array_agg(p[3]::integer) FILTER (WHERE fault IS NULL AND purpose = 'job'),
        array_agg(p[5]) FILTER (WHERE fault IS NULL AND purpose = 'job'), min(fault)
    INTO users, services, ids, mints, minted_users, minted_services, bad FROM judged;
    -- Its tick is tried again, and mints under the key that there is now.
    IF bad = 'replaced' THEN
        RAISE serialization_failure USING MESSAGE = 'the security context has ended: the key of job grants was replaced';
    END IF;
    IF bad IS NULL AND EXISTS (SELECT FROM sec.revoked_grants WHERE grant_id = ANY (ids)) THEN
        bad := 'revoked';
    END IF;
    IF bad IS NULL AND EXISTS (SELECT FROM sec.services s WHERE s.service = ANY (services) AND s.disabled_at IS NOT NULL) THEN
        bad := 'of a disabled service';
    END IF;
    IF bad IS NULL AND mints IS NOT NULL THEN
        -- A good seal alone reaches nobody: what the mint says is what counts.
        WITH given AS MATERIALIZED (
            SELECT * FROM unnest(mints, minted_users, minted_services) AS g (mint_id, user_id, service)
        ), mint AS MATERIALIZED (
            SELECT m.mint_id, m.job, m.role_name, m.expires_at, 0 || m.users || m.earlier AS users FROM sec.minted_job_grants m
            WHERE m.mint_id IN (SELECT g.mint_id FROM given g)
                AND m.transaction_id IS DISTINCT FROM pg_current_xact_id_if_assigned()::text::bigint
                AND EXISTS (SELECT FROM sec.jobs j WHERE j.job = m.job AND j.role_name = m.role_name AND j.added_at <= m.minted_at)
        ), reached AS MATERIALIZED (
            SELECT DISTINCT m.mint_id, u AS user_id FROM mint m, unnest(m.users) AS u
        )
        SELECT min(CASE WHEN m.mint_id IS NULL THEN 'of no committed mint'
            WHEN m.expires_at <= clock_timestamp() THEN 'expired'
            WHEN m.role_name <> session_user THEN 'of a mint of another role'
            WHEN g.service <> 'job:' || m.job THEN 'of another job than its mint'
            WHEN r.mint_id IS NULL THEN 'of a user who is not in its mint' END)
        INTO bad FROM given g LEFT JOIN mint m ON m.mint_id = g.mint_id
            LEFT JOIN reached r ON r.mint_id = g.mint_id AND r.user_id = g.user_id;
    END IF;
    IF bad IS NOT NULL THEN
        RAISE insufficient_privilege USING MESSAGE = format('the security context is refused: a grant is %s', bad);
    END IF;
    -- Read after the version, as revocations are.
    fence := sec.fence_of(users);
    IF fence IS NOT NULL THEN
        RAISE insufficient_privilege USING MESSAGE = format('the security context is refused: the user is %s', fence);
    END IF;
    -- By user, so that none is named for a user whose grants it does not have.
    SELECT jsonb_object_agg(u, names) INTO named FROM (
        SELECT u, string_agg(DISTINCT s, ', ') AS names FROM unnest(users, services) AS g (u, s) GROUP BY u) AS by_user;
    SELECT array_agg(DISTINCT u) INTO users FROM unnest(users) AS u;
    content := concat_ws('|', array_to_string(users, ','), session_id, service, version);
    content := content || '|' || sec.seal(content);
    PERFORM set_config('memfleet.context', content, true);
    PERFORM set_config('memfleet.services', named::text || sec.seal(concat_ws('|', 'services', content, named::text)), true);
    RETURN cardinality(users);
END $$;

CREATE OR REPLACE FUNCTION sec.job_grants(job text, tick uuid, max_users integer)
RETURNS TABLE (user_id integer, is_due boolean, grant_text text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    mint CONSTANT uuid := gen_random_uuid();
    expiry CONSTANT bigint := extract(epoch FROM clock_timestamp() + interval '5 minutes');
    due_function text;
    due integer[];
    users integer[];
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
    BEGIN
        EXECUTE format('SELECT coalesce(array_agg(DISTINCT u), ''{}'') FROM (SELECT u FROM %s($1) AS u WHERE u >= 0
            AND NOT EXISTS (SELECT FROM sec.fenced_users f WHERE f.user_id = u) LIMIT $1) AS d',
            due_function) INTO due USING max_users;
    EXCEPTION WHEN insufficient_privilege OR undefined_function OR undefined_table OR undefined_column THEN
        -- One broken job must not look like an unavailable database, for which its worker would wait.
        RAISE insufficient_privilege USING MESSAGE = format('the security context is refused: %s of the job %s fails (SQLSTATE %s)',
            due_function, job, SQLSTATE), DETAIL = SQLERRM;
    END;
    users := ARRAY(SELECT u FROM (SELECT u, max(m.minted_at) AS latest FROM sec.minted_job_grants m, unnest(m.users) AS u
        WHERE m.job = job_grants.job AND m.tick = job_grants.tick AND m.role_name = session_user
            AND m.minted_at > clock_timestamp() - interval '1 day' AND u <> 0 AND u <> ALL (due)
            AND NOT EXISTS (SELECT FROM sec.fenced_users f WHERE f.user_id = u)
        GROUP BY u ORDER BY latest DESC LIMIT 4999) AS earlier);

    INSERT INTO sec.minted_job_grants (mint_id, job, tick, role_name, users, earlier, expires_at)
    VALUES (mint, job, tick, session_user, due, users, to_timestamp(expiry));
    -- More than are added, so that they never pile up; not all, so that no tick pays for many.
    DELETE FROM sec.minted_job_grants m WHERE m.mint_id IN (SELECT o.mint_id FROM sec.minted_job_grants o
        WHERE o.expires_at < clock_timestamp() - interval '1 day' LIMIT 100 FOR UPDATE SKIP LOCKED);
    users := array_remove(due, 0) || users;
    -- The platform's row has the number of users.
    INSERT INTO audit.data_access_log (subject_token, role_name, service, request_id, access_type, object_name, rows_returned)
    SELECT s.token, session_user, 'job:' || job, tick, 'job-grant', job, CASE u.id WHEN 0 THEN cardinality(users) ELSE 1 END
    FROM unnest(0 || users) AS u (id) LEFT JOIN audit.subjects s ON s.user_id = u.id;
    -- The pads are columns here and nowhere variables: a plan shows the values of variables.
    RETURN QUERY
    SELECT g.id, g.id = ANY (due),
        g.content || '|' || encode(sec.hmac(signing.inner_pad, signing.outer_pad, convert_to(g.content, 'UTF8')), 'hex')
    FROM (SELECT k.key_id, k.inner_pad, k.outer_pad FROM sec.keys k WHERE k.purpose = 'job' AND k.retired_at IS NULL
        ORDER BY k.created_at DESC LIMIT 1) AS signing
    CROSS JOIN LATERAL (SELECT u.id, concat_ws('|', 'v1', signing.key_id, u.id, '', 'job:' || job, session_user, mint, expiry) AS content
        FROM unnest(0 || users) AS u (id)) AS g;
    IF NOT FOUND THEN
        RAISE no_data_found USING MESSAGE = 'there is no key of job grants';
    END IF;
END $$;

CREATE OR REPLACE FUNCTION sec.due_users(of_users integer[]) RETURNS SETOF integer LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    enough CONSTANT integer := 2000;
    has_archives CONSTANT boolean := sec.has_archive_policies();
    found integer[];
    users integer[] := '{}';
BEGIN
    of_users := ARRAY(SELECT u FROM unnest(of_users) AS u WHERE NOT EXISTS (SELECT FROM sec.fenced_users f WHERE f.user_id = u));
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

CREATE OR REPLACE FUNCTION sec.register_tokens(tokens jsonb) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    unknown text;
    registered integer;
    fence text;
    forgotten uuid[];
BEGIN
    SELECT t.service INTO unknown FROM jsonb_to_recordset(tokens) AS t (service text)
    WHERE NOT EXISTS (SELECT FROM sec.services s WHERE s.service = t.service AND s.disabled_at IS NULL) LIMIT 1;
    IF unknown IS NOT NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = format('the service %s is not registered or is disabled', unknown);
    END IF;
    IF EXISTS (SELECT FROM jsonb_to_recordset(tokens) AS t (issued_at timestamptz, expires_at timestamptz, grants_expire_at timestamptz)
        WHERE (isfinite(t.issued_at) AND t.issued_at BETWEEN now() - interval '1 day' AND now() + interval '1 day'
            AND t.expires_at <= t.issued_at + interval '10 days'
            AND t.grants_expire_at BETWEEN t.expires_at AND t.issued_at + interval '10 days') IS NOT TRUE) THEN
        RAISE invalid_parameter_value
            USING MESSAGE = 'a token is issued now, and it and its grants expire within 10 days, the token first';
    END IF;
    IF EXISTS (SELECT FROM jsonb_to_recordset(tokens) AS t (scopes text[])
        WHERE array_ndims(t.scopes) IS DISTINCT FROM 1
            OR EXISTS (SELECT FROM unnest(t.scopes) AS s WHERE (octet_length(s) <= 128) IS NOT TRUE)) THEN
        RAISE invalid_parameter_value USING MESSAGE = 'the scopes of a token are a list of texts of at most 128 bytes';
    END IF;
    fence := sec.fence_of(ARRAY(SELECT t.user_id FROM jsonb_to_recordset(tokens) AS t (user_id integer)));
    IF fence IS NOT NULL THEN
        RAISE insufficient_privilege USING MESSAGE = format('the token is refused: the user is %s', fence);
    END IF;
    INSERT INTO public.cross_service_auth (token_id, service, user_id, session_id, scopes, key_id, issued_at, expires_at,
        grants_expire_at)
    SELECT token_id, service, user_id, session_id, scopes, key_id, issued_at, expires_at, grants_expire_at
    FROM jsonb_to_recordset(tokens) AS t (token_id uuid, service text, user_id integer, session_id text, scopes text[],
        key_id text, issued_at timestamptz, expires_at timestamptz, grants_expire_at timestamptz);
    GET DIAGNOSTICS registered = ROW_COUNT;
    -- More than are added, so that they never pile up; not all, so that nobody pays for many.
    forgotten := ARRAY(SELECT a.token_id FROM public.cross_service_auth a WHERE a.grants_expire_at < now() - interval '30 days'
        ORDER BY a.grants_expire_at LIMIT 2 * registered + 100 FOR UPDATE SKIP LOCKED);
    DELETE FROM public.cross_service_auth a WHERE a.token_id = ANY (forgotten);
    DELETE FROM sec.token_uses u WHERE (u.token_id, u.role_name) IN (
        SELECT f.token_id, f.role_name FROM sec.token_uses f WHERE f.token_id = ANY (forgotten) FOR UPDATE SKIP LOCKED);
    RETURN registered;
END $$;

CREATE OR REPLACE FUNCTION sec.has_due(of_job text) RETURNS boolean LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    due_function CONSTANT text := (SELECT j.due_function FROM sec.jobs j WHERE j.job = of_job AND j.role_name = session_user);
    found boolean;
BEGIN
    IF due_function IS NULL THEN
        RAISE insufficient_privilege USING MESSAGE = 'the security context is refused: this role has no such job';
    END IF;
    EXECUTE format('SELECT EXISTS (SELECT FROM %s(1) AS u WHERE u >= 0)', due_function) INTO found;
    RETURN found;
END $$;

CREATE OR REPLACE FUNCTION sec.due_knowledge_index(integer) RETURNS SETOF integer LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    -- Of nodes that have no memory there are few, of memories many: the second look is for those alone.
    WITH without AS MATERIALIZED (
        SELECT n.user_id, n.id, n.updated_at FROM public.consensus_memory_nodes n
        WHERE n.validation_status = 'validated' AND n.valid_to IS NULL AND NOT EXISTS (
            SELECT FROM public.unified_memory_vectors v
            WHERE v.user_id = n.user_id AND v.id = n.id AND v.is_of_node AND v.removed_at IS NULL)
    ), due AS (
        SELECT w.user_id, w.updated_at FROM without w WHERE NOT EXISTS (
            SELECT FROM public.unified_memory_vectors v
            WHERE v.user_id = w.user_id AND v.id = w.id AND (v.is_of_node OR v.removed_at IS NULL))
        UNION ALL
        SELECT v.user_id, v.updated_at FROM public.unified_memory_vectors v
        WHERE v.is_of_node AND v.removed_at IS NULL AND NOT EXISTS (
            SELECT FROM public.consensus_memory_nodes n
            WHERE n.user_id = v.user_id AND n.id = v.id AND n.validation_status = 'validated' AND n.valid_to IS NULL)
    )
    SELECT d.user_id FROM due d GROUP BY d.user_id ORDER BY min(d.updated_at), d.user_id LIMIT least($1, 100)
$$;

SELECT sec.hide_plans();

DROP FUNCTION sec.restriction_of;
DROP TABLE sec.restricted_users;
