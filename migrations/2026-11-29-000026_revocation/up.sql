-- What a role does holds up no revocation, and a revocation ends the contexts that are open; what a service's registry entry and an
-- event say of themselves is said by the database (docs/SECURITY.md, docs/adr/0042).
SET LOCAL lock_timeout = '100ms';

-- When each worker last used a token. A row belongs to the role that wrote it, so that no role can hold one that another writes, and
-- whoever revokes a token touches none. cross_service_auth.last_used_at is written no more.
CREATE TABLE sec.token_uses (
    role_name name NOT NULL,
    token_id uuid NOT NULL,
    used_at timestamptz NOT NULL CHECK (isfinite(used_at)),
    PRIMARY KEY (token_id, role_name)
);
ALTER TABLE sec.token_uses OWNER TO memfleet_owner;
INSERT INTO sec.token_uses (role_name, token_id, used_at)
SELECT 'memfleet_owner', token_id, last_used_at FROM public.cross_service_auth WHERE last_used_at IS NOT NULL;

-- Notes that tokens were used, at the latest at these times. What another replica of the same role is writing is left to it.
CREATE OR REPLACE FUNCTION sec.note_token_use(token_ids uuid[], used_at timestamptz[]) RETURNS void LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    WITH used AS (
        SELECT u.token_id, max(least(u.used_at, clock_timestamp())) AS used_at FROM unnest(token_ids, used_at) AS u (token_id, used_at)
        JOIN public.cross_service_auth t ON t.token_id = u.token_id
        WHERE isfinite(u.used_at) GROUP BY u.token_id
    ), held AS (
        SELECT t.token_id FROM sec.token_uses t JOIN used u ON u.token_id = t.token_id
        WHERE t.role_name = session_user FOR UPDATE OF t SKIP LOCKED
    ), noted AS (
        UPDATE sec.token_uses t SET used_at = u.used_at FROM used u JOIN held h ON h.token_id = u.token_id
        WHERE t.token_id = u.token_id AND t.role_name = session_user AND t.used_at < u.used_at
    )
    INSERT INTO sec.token_uses (role_name, token_id, used_at)
    SELECT session_user, u.token_id, u.used_at FROM used u
    WHERE NOT EXISTS (SELECT FROM sec.token_uses t WHERE t.token_id = u.token_id AND t.role_name = session_user)
    ORDER BY u.token_id ON CONFLICT DO NOTHING
$$;

-- Registers tokens that were issued. All of a call are for registered services. What these may have, the issuer sees to, and
-- every worker again. Tokens whose grants have ended a month ago are forgotten, so that the registry does not grow for ever.
CREATE OR REPLACE FUNCTION sec.register_tokens(tokens jsonb) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    unknown text;
    registered integer;
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
CREATE INDEX cross_service_auth_by_end ON public.cross_service_auth (grants_expire_at);

-- Revokes tokens by their ids, also such as were never registered. Gives the number that were not revoked before. From the
-- commit on no statement reads or writes under their grants, and within a second no replica believes them. How long a revocation
-- is remembered depends on nothing that a token's row says.
CREATE OR REPLACE FUNCTION sec.revoke_tokens(token_ids uuid[]) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    revoked integer;
BEGIN
    -- In one order, so that two operators do not wait for each other in a circle.
    PERFORM FROM public.cross_service_auth WHERE token_id = ANY (token_ids) ORDER BY token_id FOR UPDATE;
    UPDATE public.cross_service_auth SET revoked_at = now() WHERE token_id = ANY (token_ids) AND revoked_at IS NULL;
    INSERT INTO sec.revoked_grants (grant_id, expires_at)
    SELECT i.token_id, now() + interval '10 days' FROM (SELECT DISTINCT unnest(token_ids) AS token_id) AS i
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS revoked = ROW_COUNT;
    -- What needs not be known any more.
    DELETE FROM sec.revoked_grants WHERE expires_at < now() - interval '1 day';
    RETURN revoked;
END $$;

-- Whether something was revoked that a context may rest on which was opened in a transaction of that time: a token of one of its
-- users, a token of which nobody knows whose it is, or a service. A revocation is as old as its own transaction, which may have
-- begun before the other one.
CREATE FUNCTION sec.was_revoked_since(users integer[], since timestamptz) RETURNS boolean LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM sec.revoked_grants r LEFT JOIN public.cross_service_auth a ON a.token_id = r.grant_id
            WHERE r.revoked_at > since - interval '10 minutes' AND (a.user_id = ANY (users) OR a.user_id IS NULL))
        OR EXISTS (SELECT FROM sec.services s WHERE s.disabled_at > since - interval '10 minutes')
$$;
ALTER FUNCTION sec.was_revoked_since OWNER TO memfleet_owner;
REVOKE EXECUTE ON FUNCTION sec.was_revoked_since FROM PUBLIC;

-- The parts of this transaction's context: users, session, service, the version of the registry. NULL without one; an error if it is
-- not genuine.
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
    IF array_length(parts, 1) IS DISTINCT FROM 5
        OR parts[5] IS DISTINCT FROM sec.seal(concat_ws('|', parts[1], parts[2], parts[3], parts[4])) THEN
        RAISE insufficient_privilege USING MESSAGE = 'the security context is not genuine';
    END IF;
    RETURN parts;
END $$;

-- The users of the context; none without one. In a policy only as (SELECT sec.current_user_ids()), so that it is called
-- once for a table of a statement and not for each row. It does by itself what sec.context and sec.seal do: every read pays
-- for it, and each function that is called from it would cost it as much again.
CREATE OR REPLACE FUNCTION sec.current_user_ids() RETURNS integer[] LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    held text := current_setting('memfleet.context', true);
    genuine boolean;
    version bigint;
    users integer[];
BEGIN
    IF held IS NULL OR held = '' THEN
        RETURN '{}';
    END IF;
    SELECT right(held, 65) = '|' || encode(sec.hmac(inner_pad, outer_pad, convert_to(concat_ws('|', left(held, -65),
        pg_backend_pid(), extract(epoch FROM transaction_timestamp()), session_user), 'UTF8')), 'hex')
        , (SELECT t.version FROM sec.trust_version t)
    INTO genuine, version FROM sec.keys WHERE key_id = 'context';
    IF genuine IS NOT TRUE THEN
        RAISE insufficient_privilege USING MESSAGE = 'the security context is not genuine';
    END IF;
    users := string_to_array(split_part(held, '|', 1), ',')::integer[];
    IF split_part(held, '|', 4)::bigint <> version AND sec.was_revoked_since(users, transaction_timestamp()) THEN
        RAISE serialization_failure USING MESSAGE = 'the security context has ended: a token or service was revoked meanwhile';
    END IF;
    RETURN users;
END $$;

-- Opens the context of this transaction from grants, all of which must be good, and gives the number of users. A grant:
-- v1|key id|user|session|service|role|grant id|expiry in seconds since 1970|HMAC-SHA256 in hex of all before it. The id of a job
-- grant is that of its mint, whose row must have been committed by another transaction.
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
    IF bad IS NULL AND EXISTS (SELECT FROM sec.services s WHERE s.service = ANY (services) AND s.disabled_at IS NOT NULL) THEN
        bad := 'of a disabled service';
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
    content := concat_ws('|', array_to_string(users, ','), session_id, service, version);
    PERFORM set_config('memfleet.context', content || '|' || sec.seal(content), true);
    RETURN cardinality(users);
END $$;

-- Ends the transactions of workers' roles that have been idle for half a minute or open for five: they keep others waiting for
-- locks, and the trail from being sealed. A role can set its own timeouts to nothing, so other replicas see to it. Gives the number
-- of them.
DO $$
BEGIN
    CREATE ROLE memfleet_watch NOLOGIN INHERIT NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL;
END $$;
DO $$
BEGIN
    GRANT pg_read_all_stats, pg_signal_backend TO memfleet_watch;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING 'memfleet_watch gets neither pg_read_all_stats nor pg_signal_backend, so that old transactions are not ended: %', SQLERRM;
END $$;
GRANT USAGE ON SCHEMA sec TO memfleet_watch;
GRANT SELECT (role_name) ON sec.worker_privileges TO memfleet_watch;
CREATE FUNCTION sec.end_old_transactions() RETURNS integer LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT count(*) FILTER (WHERE pg_terminate_backend(a.pid))::integer FROM pg_stat_activity a
    WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
        AND a.usename IN (SELECT w.role_name FROM sec.worker_privileges w)
        AND (a.xact_start < clock_timestamp() - interval '5 minutes'
            OR a.state LIKE 'idle in transaction%' AND a.state_change < clock_timestamp() - interval '30 seconds')
$$;
ALTER FUNCTION sec.end_old_transactions OWNER TO memfleet_watch;
REVOKE EXECUTE ON FUNCTION sec.end_old_transactions FROM PUBLIC;
CREATE OR REPLACE FUNCTION sec.worker_functions() RETURNS regprocedure[] LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT ARRAY['sec.open_context(text[], text, text)', 'sec.current_user_ids()', 'sec.context()',
        'public.set_security_context(integer, text, text)', 'public.get_current_user_id()',
        'public.get_current_session_id()', 'public.get_current_service_name()', 'public.validate_security_context()',
        'sec.excess_privileges()', 'sec.end_old_transactions()', 'sec.trust_version()', 'sec.trust_state()',
        'sec.note_token_use(uuid[], timestamptz[])',
        'audit.record_refused_tokens(text[], text[], integer[], text[], uuid[])',
        'audit.check_security_violation(text, text, integer, text, uuid)',
        'audit.log_data_access(text, text, integer[], uuid[], bigint[])',
        'audit.log_vector_operation(text, text, integer[], uuid[], bigint[])']::regprocedure[]
$$;
DO $$
DECLARE
    worker name;
BEGIN
    FOR worker IN SELECT DISTINCT role_name FROM sec.worker_privileges LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION sec.end_old_transactions TO %I', worker);
    END LOOP;
END $$;

-- What the order and the seals of events rest on is what the database makes of it, whatever a statement says.
CREATE POLICY evidence ON blackboard_events AS RESTRICTIVE FOR INSERT WITH CHECK (
    transaction_id = pg_current_xact_id()::text::bigint AND created_at = transaction_timestamp()
    AND event_sequence = currval('public.blackboard_event_sequence'));
