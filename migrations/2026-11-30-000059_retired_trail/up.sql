-- Rows of the trail whose retention is over: what the holder of the seal key states about them, so that verification can tell their
-- removal from tampering (docs/adr/0055).
SET LOCAL lock_timeout = '100ms';

CREATE TABLE audit.retirements (
    number bigint PRIMARY KEY CHECK (number > 0),
    -- The table whose rows these are, as leaves name it (1 audit_log, 2 security_violations, 3 data_access_log, 4 blackboard_events), under
    -- this seal and those before it.
    source smallint NOT NULL CHECK (source BETWEEN 1 AND 4),
    through_seal bigint NOT NULL,
    seal_hash bytea NOT NULL CHECK (octet_length(seal_hash) = 32),
    keep_days integer NOT NULL CHECK (keep_days > 0),
    retired_at timestamptz NOT NULL,
    key_name varchar(32) NOT NULL,
    -- Ed25519 (RFC 8032) over the hash of all of the above but the name of the key.
    signature bytea NOT NULL CHECK (octet_length(signature) = 64)
);
ALTER TABLE audit.retirements OWNER TO memfleet_owner;

-- How long the trail is kept: seven years.
INSERT INTO data_retention_policies (id, user_id, table_name, keep_days, action)
SELECT gen_random_uuid(), 0, name, 2557, 'delete' FROM unnest(ARRAY['audit_log', 'security_violations', 'data_access_log']) AS name
ON CONFLICT DO NOTHING;

-- Drops the oldest partition of the trail all of whose rows lie up to this place, and gives its name and how many there were; no row if
-- there is none. Those of this month and the last one stay. For an administrator.
CREATE FUNCTION audit.drop_retired_partition(through_transaction bigint, through_id uuid) RETURNS TABLE (name text, dropped bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    last_month CONSTANT text := to_char(date_trunc('month', now() AT TIME ZONE 'UTC') - interval '1 month', '_YYYY_MM');
    later boolean;
BEGIN
    FOR name IN SELECT c.oid::regclass::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'audit.audit_log'::regclass AND c.relname ~ '_\d{4}_\d{2}$' AND right(c.relname, 8) < last_month
        ORDER BY right(c.relname, 8)
    LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM %s t WHERE (t.transaction_id, t.id) > ($1, $2))', name) INTO later
            USING through_transaction, through_id;
        CONTINUE WHEN later;
        EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', name);
        EXECUTE format('SELECT EXISTS (SELECT FROM %s t WHERE (t.transaction_id, t.id) > ($1, $2)), (SELECT count(*) FROM %1$s)', name)
            INTO later, dropped USING through_transaction, through_id;
        CONTINUE WHEN later OR dropped = 0;
        EXECUTE format('DROP TABLE %s', name);
        RETURN NEXT;
        RETURN;
    END LOOP;
END $$;
REVOKE EXECUTE ON FUNCTION audit.drop_retired_partition FROM PUBLIC;
