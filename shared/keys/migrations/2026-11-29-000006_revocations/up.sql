-- Two things (docs/adr/0050):
-- - The key store knows what was revoked. An operator's commands bring it here from the main database; no worker may write it.
-- - A worker may add the next key of a user, and not only the first one: a key that does not open, which somebody may have
--   stored with a grant of the user, must not keep the user without a key.
SET LOCAL lock_timeout = '100ms';

CREATE TABLE sec.revoked_grants (
    grant_id uuid PRIMARY KEY,
    -- As in the main database. No grant lives longer.
    expires_at timestamptz NOT NULL
);
CREATE INDEX revoked_grants_by_end ON sec.revoked_grants (expires_at);
CREATE TABLE sec.disabled_services (
    service varchar(64) PRIMARY KEY
);

-- Grows with each change of these, so that a context that was opened before it ends.
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
CREATE TRIGGER trust_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON sec.revoked_grants
    FOR EACH STATEMENT EXECUTE FUNCTION sec.trust_changed();
CREATE TRIGGER trust_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON sec.disabled_services
    FOR EACH STATEMENT EXECUTE FUNCTION sec.trust_changed();
-- Not when a key is added: `memfleet security validate` does that in a transaction, and nobody should wait for it.
CREATE TRIGGER trust_changed AFTER UPDATE ON sec.keys
    FOR EACH ROW WHEN (old.retired_at IS NULL AND new.retired_at IS NOT NULL) EXECUTE FUNCTION sec.trust_changed();

-- The users of the context; none without one. In a policy only as (SELECT sec.current_user_ids()), so that it is called
-- once for a statement and not for each row.
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
    IF split_part(held, '|', 2)::bigint IS DISTINCT FROM (SELECT t.version FROM sec.trust_version t) THEN
        RAISE serialization_failure USING MESSAGE = 'the security context has ended: something was revoked meanwhile';
    END IF;
    RETURN string_to_array(split_part(held, '|', 1), ',')::integer[];
END $$;

-- Opens the context of this transaction from grants, all of which must be good, and gives the number of users. A grant:
-- v1|key id|user|session|service|role|grant id|expiry in seconds since 1970|HMAC-SHA256 in hex of all before it.
-- The mints of job grants are known to the main database alone: it refuses the ciphertexts.
CREATE OR REPLACE FUNCTION sec.open_context(grants text[]) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    now_seconds bigint := extract(epoch FROM clock_timestamp());
    users integer[];
    services text[];
    ids uuid[];
    bad text;
    lacking text;
    content text;
    -- Read first: what is revoked after this is noticed by each statement that uses the context.
    version CONSTANT bigint := (SELECT t.version FROM sec.trust_version t);
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
    SELECT array_agg(DISTINCT CASE WHEN fault IS NULL THEN p[3]::integer END), array_agg(p[5]) FILTER (WHERE fault IS NULL),
        array_agg(CASE WHEN fault IS NULL THEN p[7]::uuid END), min(fault) FILTER (WHERE fault <> 'lacking'),
        min(p[2]) FILTER (WHERE fault = 'lacking')
    INTO users, services, ids, bad, lacking FROM judged;
    IF bad IS NOT NULL THEN
        RAISE insufficient_privilege USING MESSAGE = format('the security context is refused: a grant is %s', bad);
    END IF;
    -- Not the fault of a message, which waits until the key is registered: it must not read as a refusal.
    IF lacking IS NOT NULL THEN
        RAISE insufficient_privilege USING MESSAGE =
            format('it lacks the grant key %s; `memfleet security key add` registers it', lacking);
    END IF;
    -- Nor may these: the main database says whether it is so, and refuses the message then. It may accept a grant that is refused
    -- here: of a service that was enabled again while this database was away.
    IF EXISTS (SELECT FROM sec.revoked_grants r WHERE r.grant_id = ANY (ids)) THEN
        RAISE insufficient_privilege USING MESSAGE = 'it knows a grant as revoked';
    END IF;
    IF EXISTS (SELECT FROM sec.disabled_services s WHERE s.service = ANY (services)) THEN
        RAISE insufficient_privilege USING
            MESSAGE = 'it knows the service of a grant as disabled; if it was enabled again, `memfleet security sync` tells it';
    END IF;
    content := concat_ws('|', array_to_string(users, ','), version);
    PERFORM set_config('memfleet.context', content || '|' || sec.seal(content), true);
    RETURN cardinality(users);
END $$;

-- Who added a key, by the login. Not known of earlier keys; a version above 1 was an operator's then.
ALTER TABLE data_keys ADD COLUMN added_by name;
ALTER TABLE data_keys ALTER COLUMN added_by SET DEFAULT session_user;
-- Whoever holds a grant may add one key after the other: no number is the last one.
ALTER TABLE data_keys DROP CONSTRAINT data_keys_version_check, ADD CONSTRAINT data_keys_version_check CHECK (version >= 1);

-- The version after the highest one of a user of the context. For a policy of this table, which cannot look into the table itself.
CREATE FUNCTION sec.next_key_version(of_user integer) RETURNS integer LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(max(k.version), 0) + 1 FROM public.data_keys k WHERE k.user_id = of_user
$$;
-- Not a higher one: with the highest number taken, nobody could add a key any more. A lower one is there already, or was deleted.
DROP POLICY own_first_key ON data_keys;
CREATE POLICY own_next_key ON data_keys FOR INSERT
    WITH CHECK (user_id = ANY ((SELECT sec.current_user_ids())::integer[]) AND version <= sec.next_key_version(user_id));

ALTER TABLE sec.revoked_grants OWNER TO memfleet_owner;
ALTER TABLE sec.disabled_services OWNER TO memfleet_owner;
ALTER TABLE sec.trust_version OWNER TO memfleet_owner;
ALTER FUNCTION sec.trust_changed OWNER TO memfleet_owner;
ALTER FUNCTION sec.next_key_version OWNER TO memfleet_owner;
REVOKE EXECUTE ON FUNCTION sec.trust_changed, sec.next_key_version FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO memfleet_owner;
GRANT EXECUTE ON FUNCTION sec.next_key_version TO w_context_writer, w_router_logger;
