-- Keys that workers added after the first one stay. What was revoked is in the main database, too.
SET LOCAL lock_timeout = '100ms';

DROP POLICY own_next_key ON data_keys;
CREATE POLICY own_first_key ON data_keys FOR INSERT
    WITH CHECK (user_id = ANY ((SELECT sec.current_user_ids())::integer[]) AND version = 1);
DROP FUNCTION sec.next_key_version(integer);
REVOKE USAGE ON SCHEMA public FROM memfleet_owner;
ALTER TABLE data_keys DROP CONSTRAINT data_keys_version_check,
    ADD CONSTRAINT data_keys_version_check CHECK (version BETWEEN 1 AND 1000000);
ALTER TABLE data_keys DROP COLUMN added_by;
CREATE OR REPLACE FUNCTION sec.current_user_ids() RETURNS integer[] LANGUAGE plpgsql STABLE SECURITY DEFINER
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
CREATE OR REPLACE FUNCTION sec.open_context(grants text[]) RETURNS integer
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
DROP TRIGGER trust_changed ON sec.keys;
DROP TABLE sec.revoked_grants, sec.disabled_services;
DROP FUNCTION sec.trust_changed();
DROP TABLE sec.trust_version;
