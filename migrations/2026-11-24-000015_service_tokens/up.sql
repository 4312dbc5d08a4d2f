-- What service tokens are judged by: services, the keys that sign tokens, what was revoked (docs/adr/0017). With
-- cross_service_auth, the tokens that were issued, this is the registry of services.
SET LOCAL lock_timeout = '100ms';

-- A service that is not here, or is disabled, may do nothing, whatever its token says.
CREATE TABLE sec.services (
    service varchar(64) PRIMARY KEY CHECK (service ~ '^[a-z0-9-]+$'),
    -- The most that a token of it may allow.
    scopes text[] NOT NULL CHECK (cardinality(scopes) BETWEEN 1 AND 64),
    -- Requests a second that one replica of a worker lets through: of the service, of one of its scopes, for one of its
    -- users. NULL leaves it to the replica's settings.
    per_second integer CHECK (per_second BETWEEN 1 AND 1000000),
    scope_per_second integer CHECK (scope_per_second BETWEEN 1 AND 1000000),
    user_per_second integer CHECK (user_per_second BETWEEN 1 AND 1000000),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    disabled_at timestamptz
);

-- Several are in use while one takes over from another. A retired one signs nothing that is believed.
CREATE TABLE sec.token_keys (
    key_id varchar(32) PRIMARY KEY CHECK (key_id ~ '^[a-z0-9-]+$'),
    -- Ed25519 (RFC 8032).
    public_key bytea NOT NULL UNIQUE CHECK (octet_length(public_key) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    retired_at timestamptz
);

-- When its grants have ended, a revoked token need not be known any more.
ALTER TABLE sec.revoked_grants ADD COLUMN expires_at timestamptz NOT NULL DEFAULT now() + interval '10 days';

-- Grows with every change, so that replicas notice one by asking for a number. Whoever changes something waits for whoever
-- changes something else: a number that is seen stands for everything up to it.
CREATE TABLE sec.trust_version (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version bigint NOT NULL
);
INSERT INTO sec.trust_version (version) VALUES (1);

CREATE FUNCTION sec.trust_changed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE sec.trust_version SET version = version + 1;
    RETURN NULL;
END $$;
CREATE TRIGGER trust_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON sec.services
    FOR EACH STATEMENT EXECUTE FUNCTION sec.trust_changed();
CREATE TRIGGER trust_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON sec.token_keys
    FOR EACH STATEMENT EXECUTE FUNCTION sec.trust_changed();
CREATE TRIGGER trust_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON sec.revoked_grants
    FOR EACH STATEMENT EXECUTE FUNCTION sec.trust_changed();

CREATE FUNCTION sec.trust_version() RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT version FROM sec.trust_version
$$;

-- All that tokens are judged by, as of one moment.
CREATE FUNCTION sec.trust_state() RETURNS jsonb LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_build_object(
        'version', (SELECT version FROM sec.trust_version),
        'keys', (SELECT coalesce(jsonb_object_agg(key_id, encode(public_key, 'hex')), '{}')
            FROM sec.token_keys WHERE retired_at IS NULL),
        'services', (SELECT coalesce(jsonb_object_agg(service, jsonb_build_object('scopes', scopes, 'per_second', per_second,
            'scope_per_second', scope_per_second, 'user_per_second', user_per_second)), '{}')
            FROM sec.services WHERE disabled_at IS NULL),
        'revoked', (SELECT coalesce(jsonb_agg(grant_id), '[]') FROM sec.revoked_grants WHERE expires_at > now()))
$$;

-- Notes that tokens were used, at the latest at these times.
CREATE FUNCTION sec.note_token_use(token_ids uuid[], used_at timestamptz[]) RETURNS void LANGUAGE sql SECURITY DEFINER
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

-- Registers tokens that were issued. All of a call are for registered services. What these may have, the issuer sees to, and
-- every worker again.
CREATE FUNCTION sec.register_tokens(tokens jsonb) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
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

-- Revokes tokens by their ids, also such as were never registered. Gives the number that were not revoked before. From the
-- commit on no transaction writes under their grants, and within a second no replica believes them.
CREATE FUNCTION sec.revoke_tokens(token_ids uuid[]) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
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

-- Records tokens that were refused. One element of each array for one refusal; a user is NULL where nobody knows whose.
CREATE FUNCTION audit.record_refused_tokens(kinds text[], reasons text[], users integer[], services text[], requests uuid[])
RETURNS integer LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH recorded AS (
        INSERT INTO audit.security_violations (subject_token, role_name, service, request_id, violation_type, severity, reason)
        SELECT s.token, session_user, left(r.service, 64), r.request_id, left(r.kind, 64),
            (CASE
                WHEN r.kind IN ('token-signature', 'token-algorithm') THEN 'critical'
                WHEN r.kind IN ('token-expired', 'token-not-yet-valid', 'token-missing') THEN 'medium'
                ELSE 'high' END)::audit.severity,
            left(r.reason, 256)
        FROM unnest(kinds, reasons, users, services, requests) AS r (kind, reason, user_id, service, request_id)
        LEFT JOIN audit.subjects s ON s.user_id = r.user_id
        RETURNING 1)
    SELECT count(*)::integer FROM recorded
$$;

DO $$
DECLARE
    worker text;
    made record;
BEGIN
    BEGIN
        CREATE ROLE w_token_issuer LOGIN NOINHERIT NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
        NULL;
    END;
    INSERT INTO sec.worker_privileges (role_name, table_name, privileges)
    VALUES ('w_token_issuer', 'cross_service_auth'::regclass, '{SELECT}');
    GRANT SELECT ON cross_service_auth TO w_token_issuer;
    GRANT USAGE ON SCHEMA public, sec, audit TO w_token_issuer;
    GRANT SELECT ON __diesel_schema_migrations TO w_token_issuer;
    GRANT EXECUTE ON FUNCTION sec.excess_privileges TO w_token_issuer;

    FOR made IN SELECT c.oid::regclass AS name FROM pg_class c WHERE c.relnamespace = 'sec'::regnamespace
        AND c.relname IN ('services', 'token_keys', 'trust_version') AND c.relkind = 'r' LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO memfleet_owner', made.name);
    END LOOP;
    FOR made IN SELECT p.oid::regprocedure AS name, p.proname FROM pg_proc p
        WHERE p.pronamespace IN ('sec'::regnamespace, 'audit'::regnamespace) AND p.proname IN ('trust_changed',
            'trust_version', 'trust_state', 'note_token_use', 'register_tokens', 'revoke_tokens', 'record_refused_tokens') LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO memfleet_owner', made.name);
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', made.name);
        IF made.proname = 'register_tokens' THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO w_token_issuer', made.name);
        ELSIF made.proname IN ('trust_version', 'trust_state', 'note_token_use', 'record_refused_tokens') THEN
            FOR worker IN SELECT DISTINCT role_name FROM sec.worker_privileges LOOP
                EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', made.name, worker);
            END LOOP;
        END IF;
    END LOOP;
END $$;
SELECT sec.guard_database();
