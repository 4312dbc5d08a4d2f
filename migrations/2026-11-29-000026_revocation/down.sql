SET LOCAL lock_timeout = '100ms';

DROP POLICY evidence ON blackboard_events;
DO $$
DECLARE
    worker name;
BEGIN
    FOR worker IN SELECT DISTINCT role_name FROM sec.worker_privileges LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION sec.end_old_transactions FROM %I', worker);
    END LOOP;
END $$;
CREATE OR REPLACE FUNCTION sec.worker_functions() RETURNS regprocedure[] LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT ARRAY['sec.open_context(text[], text, text)', 'sec.current_user_ids()', 'sec.context()',
        'public.set_security_context(integer, text, text)', 'public.get_current_user_id()',
        'public.get_current_session_id()', 'public.get_current_service_name()', 'public.validate_security_context()',
        'sec.excess_privileges()', 'sec.trust_version()', 'sec.trust_state()',
        'sec.note_token_use(uuid[], timestamptz[])',
        'audit.record_refused_tokens(text[], text[], integer[], text[], uuid[])',
        'audit.check_security_violation(text, text, integer, text, uuid)',
        'audit.log_data_access(text, text, integer[], uuid[], bigint[])',
        'audit.log_vector_operation(text, text, integer[], uuid[], bigint[])']::regprocedure[]
$$;
DROP FUNCTION sec.end_old_transactions();
-- The role stays, as other databases may use it.
REVOKE ALL ON sec.worker_privileges FROM memfleet_watch;
REVOKE ALL (role_name) ON sec.worker_privileges FROM memfleet_watch;
REVOKE USAGE ON SCHEMA sec FROM memfleet_watch;
CREATE OR REPLACE FUNCTION sec.open_context(grants text[], session_id text DEFAULT '', service text DEFAULT '') RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    now_seconds bigint := extract(epoch FROM clock_timestamp());
    users integer[];
    services text[];
    ids uuid[];
    mints uuid[];
    bad text;
    named jsonb;
    content text;
BEGIN
    session_id := coalesce(session_id, '');
    service := coalesce(service, '');
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
            END AS fault
        FROM parsed LEFT JOIN sec.keys k ON k.key_id = p[2] AND k.purpose IN ('grant', 'job') AND k.retired_at IS NULL
    )
    SELECT array_agg(CASE WHEN fault IS NULL THEN p[3]::integer END), array_agg(p[5]),
        array_agg(CASE WHEN fault IS NULL THEN p[7]::uuid END),
        array_agg(p[7]::uuid) FILTER (WHERE fault IS NULL AND purpose = 'job'), min(fault)
    INTO users, services, ids, mints, bad FROM judged;
    IF bad IS NULL AND EXISTS (SELECT FROM sec.revoked_grants WHERE grant_id = ANY (ids)) THEN
        bad := 'revoked';
    END IF;
    IF bad IS NULL AND mints IS NOT NULL THEN
        SELECT min(CASE WHEN m.mint_id IS NULL THEN 'of no committed mint'
            WHEN m.expires_at <= clock_timestamp() THEN 'expired' END)
        INTO bad FROM unnest(mints) AS g (id) LEFT JOIN sec.minted_job_grants m
            ON m.mint_id = g.id AND m.transaction_id IS DISTINCT FROM pg_current_xact_id_if_assigned()::text::bigint;
    END IF;
    IF bad IS NOT NULL THEN
        RAISE insufficient_privilege USING MESSAGE = format('the security context is refused: a grant is %s', bad);
    END IF;
    IF services[1] = ALL (services) THEN
        named := to_jsonb(services[1]);
    ELSE
        SELECT jsonb_object_agg(u, names) INTO named FROM (
            SELECT u, string_agg(DISTINCT s, ', ') AS names FROM unnest(users, services) AS g (u, s) GROUP BY u) AS by_user;
    END IF;
    PERFORM set_config('memfleet.services', named::text || sec.seal('services|' || named::text), true);
    SELECT array_agg(DISTINCT u) INTO users FROM unnest(users) AS u;
    content := concat_ws('|', array_to_string(users, ','), session_id, service);
    PERFORM set_config('memfleet.context', content || '|' || sec.seal(content), true);
    RETURN cardinality(users);
END $$;
CREATE OR REPLACE FUNCTION sec.current_user_ids() RETURNS integer[] LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    held text := current_setting('memfleet.context', true);
    genuine boolean;
BEGIN
    IF held IS NULL OR held = '' THEN
        RETURN '{}';
    END IF;
    SELECT right(held, 65) = '|' || encode(sec.hmac(inner_pad, outer_pad, convert_to(concat_ws('|', left(held, -65),
        pg_backend_pid(), extract(epoch FROM transaction_timestamp()), session_user), 'UTF8')), 'hex')
    INTO genuine FROM sec.keys WHERE key_id = 'context';
    IF genuine IS NOT TRUE THEN
        RAISE insufficient_privilege USING MESSAGE = 'the security context is not genuine';
    END IF;
    RETURN string_to_array(split_part(held, '|', 1), ',')::integer[];
END $$;
CREATE OR REPLACE FUNCTION sec.context() RETURNS text[] LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    held text := current_setting('memfleet.context', true);
    parts text[];
BEGIN
    IF held IS NULL OR held = '' THEN
        RETURN NULL;
    END IF;
    parts := string_to_array(held, '|');
    IF array_length(parts, 1) IS DISTINCT FROM 4
        OR parts[4] IS DISTINCT FROM sec.seal(concat_ws('|', parts[1], parts[2], parts[3])) THEN
        RAISE insufficient_privilege USING MESSAGE = 'the security context is not genuine';
    END IF;
    RETURN parts;
END $$;
CREATE OR REPLACE FUNCTION sec.revoke_tokens(token_ids uuid[]) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    revoked integer;
BEGIN
    -- In one order, as those who note the use of tokens lock them.
    PERFORM FROM public.cross_service_auth WHERE token_id = ANY (token_ids) ORDER BY token_id FOR UPDATE;
    UPDATE public.cross_service_auth SET revoked_at = now() WHERE token_id = ANY (token_ids) AND revoked_at IS NULL;
    INSERT INTO sec.revoked_grants (grant_id, expires_at)
    SELECT i.token_id, coalesce(a.grants_expire_at, now() + interval '10 days')
    FROM (SELECT DISTINCT unnest(token_ids) AS token_id) AS i
    LEFT JOIN public.cross_service_auth a ON a.token_id = i.token_id
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS revoked = ROW_COUNT;
    -- What needs not be known any more.
    DELETE FROM sec.revoked_grants WHERE expires_at < now() - interval '1 day';
    RETURN revoked;
END $$;
CREATE OR REPLACE FUNCTION sec.register_tokens(tokens jsonb) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    unknown text;
    registered integer;
BEGIN
    SELECT t.service INTO unknown FROM jsonb_to_recordset(tokens) AS t (service text)
    WHERE NOT EXISTS (SELECT FROM sec.services s WHERE s.service = t.service AND s.disabled_at IS NULL) LIMIT 1;
    IF unknown IS NOT NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = format('the service %s is not registered or is disabled', unknown);
    END IF;
    INSERT INTO public.cross_service_auth (token_id, service, user_id, session_id, scopes, key_id, issued_at, expires_at,
        grants_expire_at)
    SELECT token_id, service, user_id, session_id, scopes, key_id, issued_at, expires_at, grants_expire_at
    FROM jsonb_to_recordset(tokens) AS t (token_id uuid, service text, user_id integer, session_id text, scopes text[],
        key_id text, issued_at timestamptz, expires_at timestamptz, grants_expire_at timestamptz);
    GET DIAGNOSTICS registered = ROW_COUNT;
    RETURN registered;
END $$;
CREATE OR REPLACE FUNCTION sec.note_token_use(token_ids uuid[], used_at timestamptz[]) RETURNS void LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    UPDATE public.cross_service_auth AS a SET last_used_at = u.used_at
    FROM (
        -- In one order, so that two replicas do not wait for each other in a circle.
        SELECT t.token_id, u.used_at FROM unnest(token_ids, used_at) AS u (token_id, used_at)
        JOIN public.cross_service_auth t ON t.token_id = u.token_id AND (t.last_used_at IS NULL OR t.last_used_at < u.used_at)
        ORDER BY t.token_id FOR UPDATE OF t
    ) AS u
    WHERE a.token_id = u.token_id
$$;
DROP FUNCTION sec.was_revoked_since(integer[], timestamptz);
DROP INDEX cross_service_auth_by_end;
UPDATE public.cross_service_auth a SET last_used_at = u.used_at
FROM (SELECT token_id, max(used_at) AS used_at FROM sec.token_uses GROUP BY token_id) AS u
WHERE a.token_id = u.token_id AND (a.last_used_at IS NULL OR a.last_used_at < u.used_at);
DROP TABLE sec.token_uses;
