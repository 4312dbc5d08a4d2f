SET LOCAL lock_timeout = '100ms';

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

SELECT sec.hide_plans();

DROP TRIGGER skip_erased ON data_keys;
DROP FUNCTION sec.skip_erased(), sec.note_erased(integer), sec.is_fenced(integer[]), sec.erased_among(integer[]);
DROP TABLE sec.erased_users, sec.fenced_users;
DELETE FROM sec.keys WHERE purpose = 'tombstone';
ALTER TABLE sec.keys DROP CONSTRAINT keys_purpose_check, ADD CONSTRAINT keys_purpose_check CHECK (purpose IN ('grant', 'context'));
