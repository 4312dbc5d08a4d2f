-- The key store knows who is erased (000072 of the main database): a key that is added late would outlive its user.
SET LOCAL lock_timeout = '100ms';

-- Users whose erasure is under way.
CREATE TABLE sec.fenced_users (
    user_id integer PRIMARY KEY CHECK (user_id > 0),
    -- The row of privacy_requests in the main database.
    request_id uuid NOT NULL,
    since timestamptz NOT NULL DEFAULT now()
);
CREATE TRIGGER trust_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON sec.fenced_users
    FOR EACH STATEMENT EXECUTE FUNCTION sec.trust_changed();

-- Users who were erased, for ever.
CREATE TABLE sec.erased_users (
    tombstone bytea PRIMARY KEY CHECK (octet_length(tombstone) = 32),
    bucket integer NOT NULL CHECK (bucket BETWEEN 0 AND 65535),
    key_id varchar(32) NOT NULL REFERENCES sec.keys (key_id),
    erased_at timestamptz NOT NULL DEFAULT now()
);

ALTER TABLE sec.fenced_users OWNER TO memfleet_owner;
ALTER TABLE sec.erased_users OWNER TO memfleet_owner;

-- Those of these users who are erased, that is, who have a tombstone under any key. The bucket is there for speed: only users who share it with
-- a tombstone are compared. Hashes of partitions are the same in each version of PostgreSQL, so that a dump can be restored into another one.
CREATE FUNCTION sec.erased_among(users integer[]) RETURNS SETOF integer LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY
    WITH near AS MATERIALIZED (
        SELECT u.id, e.tombstone, e.key_id FROM sec.erased_users e
        JOIN (SELECT t AS id, (hashint4extended(t, 0) & 65535)::integer AS bucket FROM unnest(users) AS t OFFSET 0) AS u ON u.bucket = e.bucket
    )
    SELECT n.id FROM near n JOIN sec.keys k ON k.key_id = n.key_id AND k.purpose = 'tombstone'
    WHERE n.tombstone = sec.hmac(k.inner_pad, k.outer_pad, int4send(n.id));
END $$;

-- Whether one of these users is erased, or is being erased.
CREATE FUNCTION sec.is_fenced(users integer[]) RETURNS boolean LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN EXISTS (SELECT FROM sec.erased_among(users)) OR EXISTS (SELECT FROM sec.fenced_users f WHERE f.user_id = ANY (users));
END $$;

-- Notes that a user is erased, under the newest key.
CREATE FUNCTION sec.note_erased(of_user integer) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    made bytea;
    of_key text;
BEGIN
    SELECT sec.hmac(k.inner_pad, k.outer_pad, int4send(of_user)), k.key_id INTO made, of_key
    FROM sec.keys k WHERE k.purpose = 'tombstone' AND k.retired_at IS NULL ORDER BY k.created_at DESC, k.key_id LIMIT 1;
    IF of_key IS NULL THEN
        RAISE no_data_found USING MESSAGE = 'the key store has no key of tombstones';
    END IF;
    INSERT INTO sec.erased_users (tombstone, bucket, key_id) VALUES (made, (hashint4extended(of_user, 0) & 65535)::integer, of_key)
    ON CONFLICT DO NOTHING;
END $$;

-- No key of an erased user is added, whoever adds it: it is left out, so that a rotation or a dump of the keys of all goes on with the others.
CREATE FUNCTION sec.skip_erased() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN CASE WHEN NOT sec.is_fenced(ARRAY[new.user_id]) THEN new END;
END $$;

-- As before. Erased users are refused, and those whose erasure is under way. It must not read as a refusal: the main database says so.
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
    IF sec.is_fenced(users) THEN
        RAISE insufficient_privilege USING MESSAGE = 'it knows a user as erased';
    END IF;
    content := concat_ws('|', array_to_string(users, ','), version);
    PERFORM set_config('memfleet.context', content || '|' || sec.seal(content), true);
    RETURN cardinality(users);
END $$;

DO $$
DECLARE
    made regprocedure;
BEGIN
    FOREACH made IN ARRAY ARRAY['sec.erased_among(integer[])', 'sec.is_fenced(integer[])', 'sec.note_erased(integer)',
        'sec.skip_erased()']::regprocedure[] LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO memfleet_owner', made);
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', made);
    END LOOP;
END $$;

SELECT sec.hide_plans();

-- Locks that workers wait for come last.
CREATE TRIGGER skip_erased BEFORE INSERT ON data_keys FOR EACH ROW EXECUTE FUNCTION sec.skip_erased();

-- A tombstone is an HMAC of the id, under a key of this database.
ALTER TABLE sec.keys DROP CONSTRAINT keys_purpose_check,
    ADD CONSTRAINT keys_purpose_check CHECK (purpose IN ('grant', 'context', 'tombstone'));
WITH secret AS MATERIALIZED (
    SELECT sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())) AS key
)
SELECT sec.add_key('tombstone-' || left(encode(sha256(s.key), 'hex'), 16), 'tombstone', s.key) FROM secret s;

