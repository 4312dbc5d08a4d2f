-- Roles stay: they are of the whole cluster. Of messages with several events, the inbox keeps the first event alone.
SET LOCAL lock_timeout = '100ms';

ALTER TABLE inbox DROP COLUMN event_count;

DROP FUNCTION sec.job_grants, sec.add_job, sec.drop_job;
DROP TABLE sec.minted_job_grants, sec.jobs;
DELETE FROM sec.keys WHERE purpose = 'job';
ALTER TABLE sec.keys DROP CONSTRAINT keys_purpose_check;
ALTER TABLE sec.keys ADD CONSTRAINT keys_purpose_check CHECK (purpose IN ('grant', 'context'));

-- Opens the context of this transaction from grants, all of which must be good, and gives the number of users. A grant:
-- v1|key id|user|session|service|role|grant id|expiry in seconds since 1970|HMAC-SHA256 in hex of all before it.
CREATE OR REPLACE FUNCTION sec.open_context(grants text[], session_id text DEFAULT '', service text DEFAULT '') RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    now_seconds bigint := extract(epoch FROM clock_timestamp());
    users integer[];
    services text[];
    ids uuid[];
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
        SELECT p, CASE
            WHEN g IS NULL OR cardinality(p) <> 9 OR p[1] <> 'v1' THEN 'malformed'
            WHEN k.key_id IS NULL THEN 'unknown key'
            WHEN p[9] IS DISTINCT FROM encode(sec.hmac(k.inner_pad, k.outer_pad,
                substr(b, 1, greatest(octet_length(b) - 65, 0))), 'hex') THEN 'forged'
            WHEN p[6] <> session_user THEN 'of another role'
            WHEN p[8]::bigint <= now_seconds THEN 'expired'
            END AS fault
        FROM parsed LEFT JOIN sec.keys k ON k.key_id = p[2] AND k.purpose = 'grant' AND k.retired_at IS NULL
    )
    SELECT array_agg(CASE WHEN fault IS NULL THEN p[3]::integer END), array_agg(p[5]),
        array_agg(CASE WHEN fault IS NULL THEN p[7]::uuid END), min(fault)
    INTO users, services, ids, bad FROM judged;
    IF bad IS NULL AND EXISTS (SELECT FROM sec.revoked_grants WHERE grant_id = ANY (ids)) THEN
        bad := 'revoked';
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

-- Of the privileges that were given to workers, only these were new.
DO $$
DECLARE
    worker text;
BEGIN
    FOR worker IN SELECT role_name FROM sec.worker_privileges WHERE table_name = 'inbox'::regclass LOOP
        EXECUTE format('REVOKE UPDATE ON inbox FROM %I', worker);
    END LOOP;
END $$;
UPDATE sec.worker_privileges SET privileges = array_remove(privileges, 'UPDATE') WHERE table_name = 'inbox'::regclass;
REVOKE SELECT ON chat_mode_sessions FROM w_consensus_builder, w_memory_sync, w_retention_cleaner, w_gpu_allocator;
REVOKE SELECT (id) ON users FROM w_consensus_builder, w_memory_sync, w_retention_cleaner, w_gpu_allocator;
DELETE FROM sec.worker_privileges WHERE table_name = 'chat_mode_sessions'::regclass
    AND role_name IN ('w_consensus_builder', 'w_memory_sync', 'w_retention_cleaner', 'w_gpu_allocator');
DROP FUNCTION sec.revoke_worker, sec.grant_worker, sec.read_privileges, sec.worker_functions, sec.message_privileges;
REVOKE USAGE ON SCHEMA public FROM memfleet_due;
