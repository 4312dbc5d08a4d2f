-- The key store knows its users, as the main database does (docs/adr/0040): a worker reaches the data keys of those users
-- only whose grants it holds, and the only key that it can add is the first of a user.
--
-- The functions are those of the main database's isolation, without sessions and services. Grants are of the same form,
-- and a grant key must be registered in both databases. The key of contexts is this database's own.
SET LOCAL lock_timeout = '100ms';

CREATE SCHEMA sec;

-- HMAC-SHA256 (RFC 2104) with the key's two pads made beforehand.
CREATE TABLE sec.keys (
    key_id varchar(32) PRIMARY KEY CHECK (key_id ~ '^[a-z0-9-]+$'),
    purpose varchar(16) NOT NULL CHECK (purpose IN ('grant', 'context')),
    inner_pad bytea NOT NULL CHECK (octet_length(inner_pad) = 64),
    outer_pad bytea NOT NULL CHECK (octet_length(outer_pad) = 64),
    created_at timestamptz NOT NULL DEFAULT now(),
    retired_at timestamptz
);

-- Names every schema instead of setting a path, so that it can be inlined.
CREATE FUNCTION sec.hmac(inner_pad bytea, outer_pad bytea, message bytea) RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT pg_catalog.sha256(outer_pad OPERATOR(pg_catalog.||) pg_catalog.sha256(inner_pad OPERATOR(pg_catalog.||) message))
$$;

-- Adds a key, or replaces the one of this name. For an administrator.
CREATE FUNCTION sec.add_key(new_key_id text, new_purpose text, key bytea) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    padded bytea := key || decode(repeat('00', 64 - octet_length(key)), 'hex');
    inner_pad bytea := padded;
    outer_pad bytea := padded;
BEGIN
    IF octet_length(key) NOT BETWEEN 32 AND 64 THEN
        RAISE 'a key has 32 to 64 bytes, not %', octet_length(key);
    END IF;
    FOR place IN 0 .. 63 LOOP
        inner_pad := set_byte(inner_pad, place, get_byte(padded, place) # 54);
        outer_pad := set_byte(outer_pad, place, get_byte(padded, place) # 92);
    END LOOP;
    INSERT INTO sec.keys AS k (key_id, purpose, inner_pad, outer_pad)
    VALUES (new_key_id, new_purpose, inner_pad, outer_pad)
    ON CONFLICT (key_id) DO UPDATE SET purpose = excluded.purpose, inner_pad = excluded.inner_pad,
        outer_pad = excluded.outer_pad, created_at = now(), retired_at = NULL;
END $$;

-- The key of contexts never leaves the database. Three random UUIDs hold 366 random bits.
SELECT sec.add_key('context', 'context',
    sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())));

-- What a context of this transaction is sealed over: another backend, another transaction and another role make another
-- seal, so a context that was copied is worth nothing there.
CREATE FUNCTION sec.seal(content text) RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT encode(sec.hmac(inner_pad, outer_pad, convert_to(concat_ws('|', content, pg_backend_pid(),
        extract(epoch FROM transaction_timestamp()), session_user), 'UTF8')), 'hex')
    FROM sec.keys WHERE key_id = 'context'
$$;

-- The users of the context; none without one. In a policy only as (SELECT sec.current_user_ids()), so that it is called
-- once for a statement and not for each row.
CREATE FUNCTION sec.current_user_ids() RETURNS integer[] LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    held text := current_setting('memfleet.context', true);
BEGIN
    IF held IS NULL OR held = '' THEN
        RETURN '{}';
    END IF;
    IF right(held, 65) IS DISTINCT FROM '|' || sec.seal(left(held, -65)) THEN
        RAISE insufficient_privilege USING MESSAGE = 'the security context is not genuine';
    END IF;
    RETURN string_to_array(left(held, -65), ',')::integer[];
END $$;

-- Opens the context of this transaction from grants, all of which must be good, and gives the number of users. A grant:
-- v1|key id|user|session|service|role|grant id|expiry in seconds since 1970|HMAC-SHA256 in hex of all before it.
-- Revocations and the mints of job grants are known to the main database alone: it refuses the ciphertexts.
CREATE FUNCTION sec.open_context(grants text[]) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    now_seconds bigint := extract(epoch FROM clock_timestamp());
    users integer[];
    bad text;
    lacking text;
    content text;
BEGIN
    -- As in the main database (docs/adr/0042): several transactions begin at one time only within one message of the simple
    -- protocol, or one DO or CALL; an old snapshot would not show what was changed since.
    IF (current_query() ~* '^\s*(select|with)\M[^;]*;?\s*$') IS NOT TRUE THEN
        RAISE insufficient_privilege USING
            MESSAGE = 'the security context is refused: it is opened by a statement of its own, a SELECT without semicolons in it';
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE insufficient_privilege USING MESSAGE = 'the security context is refused: it is opened in read committed only';
    END IF;
    IF (cardinality(grants) BETWEEN 1 AND 10000) IS NOT TRUE THEN
        RAISE insufficient_privilege USING MESSAGE = 'the security context is refused: it needs 1 to 10000 grants';
    END IF;
    -- MATERIALIZED, or every use of a part would take its grant to pieces anew. What has a good seal was written by an
    -- issuer, so that its parts are what they must be. The expiry is judged first, so that a grant of a key that this
    -- database never had reads as expired in the end, and not as a key that an operator forgot.
    WITH parsed AS MATERIALIZED (
        SELECT g, convert_to(g, 'UTF8') AS b, string_to_array(g, '|') AS p FROM unnest(grants) AS g
    ), judged AS MATERIALIZED (
        SELECT p, CASE
            WHEN g IS NULL OR cardinality(p) <> 9 OR p[1] <> 'v1' OR p[2] !~ '^[a-z0-9-]{1,32}$'
                OR p[8] !~ '^[0-9]{1,15}$' THEN 'malformed'
            WHEN p[8]::bigint <= now_seconds THEN 'expired'
            WHEN k.key_id IS NULL THEN 'lacking'
            WHEN k.retired_at IS NOT NULL THEN 'of a retired key'
            WHEN p[9] IS DISTINCT FROM encode(sec.hmac(k.inner_pad, k.outer_pad,
                substr(b, 1, greatest(octet_length(b) - 65, 0))), 'hex') THEN 'forged'
            WHEN p[6] <> session_user THEN 'of another role'
            END AS fault
        FROM parsed LEFT JOIN sec.keys k ON k.key_id = p[2] AND k.purpose = 'grant'
    )
    SELECT array_agg(DISTINCT CASE WHEN fault IS NULL THEN p[3]::integer END), min(fault) FILTER (WHERE fault <> 'lacking'),
        min(p[2]) FILTER (WHERE fault = 'lacking')
    INTO users, bad, lacking FROM judged;
    IF bad IS NOT NULL THEN
        RAISE insufficient_privilege USING MESSAGE = format('the security context is refused: a grant is %s', bad);
    END IF;
    -- Not the fault of a message, which waits until the key is registered: it must not read as a refusal.
    IF lacking IS NOT NULL THEN
        RAISE insufficient_privilege USING MESSAGE =
            format('it lacks the grant key %s; `memfleet security key add` registers it', lacking);
    END IF;
    content := array_to_string(users, ',');
    PERFORM set_config('memfleet.context', content || '|' || sec.seal(content), true);
    RETURN cardinality(users);
END $$;

ALTER TABLE data_keys ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_keys ON data_keys FOR SELECT USING (user_id = ANY ((SELECT sec.current_user_ids())::integer[]));
-- Later versions are an operator's. With the primary key: only for a user who has no key. Keys are never deleted singly.
CREATE POLICY own_first_key ON data_keys FOR INSERT
    WITH CHECK (user_id = ANY ((SELECT sec.current_user_ids())::integer[]) AND version = 1);

-- Not the times: a rotation goes by them, and a key that claims to come from the future would be left out for good.
REVOKE INSERT ON data_keys FROM w_context_writer, w_router_logger;
GRANT INSERT (user_id, version, kek, wrapped) ON data_keys TO w_context_writer, w_router_logger;

REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA sec FROM PUBLIC;
GRANT USAGE ON SCHEMA sec TO memfleet_owner, w_context_writer, w_router_logger, w_memory_reader;
GRANT EXECUTE ON FUNCTION sec.open_context, sec.current_user_ids TO w_context_writer, w_router_logger, w_memory_reader;
-- The owner cannot log in. add_key is for an administrator, and acts with the administrator's own rights.
ALTER TABLE sec.keys OWNER TO memfleet_owner;
ALTER FUNCTION sec.hmac OWNER TO memfleet_owner;
ALTER FUNCTION sec.seal OWNER TO memfleet_owner;
ALTER FUNCTION sec.current_user_ids OWNER TO memfleet_owner;
ALTER FUNCTION sec.open_context OWNER TO memfleet_owner;

-- Migrations keep each other out with an advisory lock, which no worker may hold (000014 of the main database).
DO $$
DECLARE
    taken regprocedure;
BEGIN
    FOR taken IN SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'pg_catalog'::regnamespace AND proname ~ '^pg_(try_)?advisory_' LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', taken);
    END LOOP;
END $$;
