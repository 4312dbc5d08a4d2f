SET LOCAL lock_timeout = '100ms';

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

CREATE OR REPLACE FUNCTION sec.drop_job(old_job text) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    worker name;
BEGIN
    DELETE FROM sec.jobs j WHERE j.job = old_job RETURNING j.role_name INTO worker;
    IF worker IS NOT NULL AND NOT EXISTS (SELECT FROM sec.jobs j WHERE j.role_name = worker) THEN
        EXECUTE format('REVOKE EXECUTE ON FUNCTION sec.job_grants FROM %I', worker);
    END IF;
END $$;
DELETE FROM sec.minted_job_grants m WHERE NOT EXISTS (SELECT FROM sec.jobs j WHERE j.job = m.job);
ALTER TABLE sec.minted_job_grants ADD CONSTRAINT minted_job_grants_job_fkey FOREIGN KEY (job) REFERENCES sec.jobs (job) ON DELETE CASCADE;
ALTER TABLE sec.jobs DROP COLUMN added_at;
