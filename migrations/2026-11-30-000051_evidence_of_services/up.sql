-- What a role says of services in the trail, and what everybody sees of the locks of syncs (docs/SECURITY.md).
SET LOCAL lock_timeout = '100ms';

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

-- The services in whose name the context acts, an object of names by user. NULL without a context; an error if it is not genuine, also
-- if it belongs to another context of the same transaction. The second seal is that of contexts which were opened before this migration:
-- their transactions go on.
CREATE OR REPLACE FUNCTION sec.context_services() RETURNS jsonb LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    held text := current_setting('memfleet.services', true);
BEGIN
    IF held IS NULL OR held = '' THEN
        RETURN NULL;
    END IF;
    IF right(held, 64) IS DISTINCT FROM sec.seal(concat_ws('|', 'services', current_setting('memfleet.context', true), left(held, -64)))
        AND right(held, 64) IS DISTINCT FROM sec.seal('services|' || left(held, -64)) THEN
        RAISE insufficient_privilege USING MESSAGE = 'the security context is not genuine';
    END IF;
    RETURN left(held, -64)::jsonb;
END $$;

-- What stands for a service where the context names none: nothing, for an administrator. A worker acts in the name of services, and may
-- hide the setting from a trigger: it then changes nothing.
CREATE FUNCTION audit.no_service() RETURNS text LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM sec.worker_privileges w WHERE w.role_name = session_user) THEN
        RAISE insufficient_privilege USING MESSAGE = 'permission denied: the security context names no service for this user';
    END IF;
    RETURN NULL;
END $$;
ALTER FUNCTION audit.no_service OWNER TO memfleet_owner;
REVOKE EXECUTE ON FUNCTION audit.no_service FROM PUBLIC;

-- Notes reads and other uses of users' data that leave no row behind, in the name of the context: what was done to what,
-- for which user, and how many rows or points it was. One element of each array for one use.
CREATE OR REPLACE FUNCTION audit.log_data_access(access_type text, object_name text, users integer[], requests uuid[], amounts bigint[])
RETURNS integer LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    services jsonb := sec.context_services();
    noted integer;
BEGIN
    IF (cardinality(users) = cardinality(requests) AND cardinality(users) = cardinality(amounts)
        AND cardinality(users) BETWEEN 1 AND 10000) IS NOT TRUE THEN
        RAISE invalid_parameter_value USING MESSAGE = 'users, requests and amounts must be as many as each other, 1 to 10000';
    END IF;
    IF access_type = 'job-grant' THEN
        RAISE insufficient_privilege USING MESSAGE = 'the access is not noted: only a mint of job grants is of the type job-grant';
    END IF;
    -- An error of the table would show its row, with the token of the subject.
    IF (length(access_type) <= 64 AND length(object_name) <= 128 AND array_position(amounts, NULL) IS NULL AND 0 <= ALL (amounts)) IS NOT TRUE THEN
        RAISE invalid_parameter_value USING MESSAGE = 'an access has a type, an object and an amount, which is not negative';
    END IF;
    IF EXISTS (SELECT unnest(users) EXCEPT SELECT unnest(sec.current_user_ids())) THEN
        RAISE insufficient_privilege USING MESSAGE = 'the access is not noted: it is of a user who is not in the security context';
    END IF;
    IF cardinality(users) + (SELECT count(*) FROM audit.data_access_log l
        WHERE l.transaction_id = pg_current_xact_id()::text::bigint) > 10000 THEN
        RAISE invalid_parameter_value USING MESSAGE = 'a transaction notes at most 10000 accesses';
    END IF;
    INSERT INTO audit.data_access_log (subject_token, role_name, service, request_id, access_type, object_name, rows_returned)
    SELECT s.token, session_user, coalesce(services ->> u.id::text, audit.no_service()),
        u.request, log_data_access.access_type, log_data_access.object_name, u.amount
    FROM unnest(users, requests, amounts) AS u (id, request, amount)
    LEFT JOIN audit.subjects s ON s.user_id = u.id;
    GET DIAGNOSTICS noted = ROW_COUNT;
    RETURN noted;
END $$;

-- Everybody sees the keys of locks (pg_locks). Keyed with the user's own key they tell nobody whose sessions are synced, and nobody finds
-- another session with the same key.
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
    FOR key IN SELECT DISTINCT ('x' || left(encode(sha256(a.digest_key || convert_to('sync lock ' || s.session_id, 'UTF8')), 'hex'), 8))::bit(32)::integer
        FROM unnest(users, sessions) AS s (user_id, session_id) JOIN audit.subjects a ON a.user_id = s.user_id ORDER BY 1 LOOP
        PERFORM pg_advisory_xact_lock(33, key);
        locked := locked + 1;
    END LOOP;
    RETURN locked;
END $$;

-- Records tokens that were refused. One element of each array for one refusal; a user is NULL where nobody knows whose. The database
-- sees none of these tokens: the user and the service are what the role says of them, so the service is marked, also one that is
-- missing.
CREATE OR REPLACE FUNCTION audit.record_refused_tokens(kinds text[], reasons text[], users integer[], services text[], requests uuid[])
RETURNS integer LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    recorded integer;
BEGIN
    IF (cardinality(kinds) = cardinality(reasons) AND cardinality(kinds) = cardinality(users)
        AND cardinality(kinds) = cardinality(services) AND cardinality(kinds) = cardinality(requests)
        AND cardinality(kinds) > 0) IS NOT TRUE THEN
        RAISE invalid_parameter_value
            USING MESSAGE = 'kinds, reasons, users, services and requests must be as many as each other, and at least 1';
    END IF;
    IF EXISTS (SELECT FROM unnest(kinds) AS k (kind) WHERE (k.kind ~ '^[a-z0-9-]{1,64}$') IS NOT TRUE) THEN
        RAISE invalid_parameter_value USING MESSAGE = 'a kind of refusal has 1 to 64 lower-case letters, digits and hyphens';
    END IF;
    IF EXISTS (SELECT FROM unnest(kinds) AS k (kind) WHERE k.kind LIKE 'anomaly-%') THEN
        RAISE invalid_parameter_value USING MESSAGE = 'a refusal is no anomaly: those are found by the database';
    END IF;
    -- An error of the table would show its row, with the token of the subject.
    IF array_position(reasons, NULL) IS NOT NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = 'each refusal has a reason';
    END IF;
    IF cardinality(kinds) + (SELECT count(*) FROM audit.security_violations v
        WHERE v.transaction_id = pg_current_xact_id()::text::bigint) > 1000 THEN
        RAISE invalid_parameter_value USING MESSAGE = 'a transaction records at most 1000 refusals';
    END IF;
    INSERT INTO audit.security_violations (subject_token, role_name, service, request_id, violation_type, severity, reason)
    SELECT s.token, session_user, 'claimed:' || left(coalesce(r.service, ''), 64), r.request_id, r.kind,
        (CASE
            WHEN r.kind IN ('token-signature', 'token-algorithm') THEN 'critical'
            WHEN r.kind IN ('token-expired', 'token-not-yet-valid', 'token-missing') THEN 'medium'
            ELSE 'high' END)::audit.severity,
        left(r.reason, 256)
    FROM unnest(kinds, reasons, users, services, requests) AS r (kind, reason, user_id, service, request_id)
    LEFT JOIN audit.subjects s ON s.user_id = r.user_id;
    GET DIAGNOSTICS recorded = ROW_COUNT;
    RETURN recorded;
END $$;

-- The functions of the trail differ from those before in what stands for a service that is not named.
DO $$
DECLARE
    named CONSTANT text := 'coalesce(one_service, services ->> w.owner::text)';
    named_now CONSTANT text := 'coalesce(one_service, services ->> w.owner::text, audit.no_service())';
    changed regprocedure;
BEGIN
    FOREACH changed IN ARRAY '{audit.audit_trigger_function(),audit.make_update_function(regclass)}'::regprocedure[] LOOP
        EXECUTE replace(pg_get_functiondef(changed), named, named_now);
    END LOOP;
    PERFORM audit.make_update_function(t.tgrelid) FROM pg_trigger t WHERE t.tgname = 'audit_update' AND t.tgparentid = 0 ORDER BY t.tgrelid;
END $$;
