-- A tombstone may come from a receipt, which does not have the bucket: after the restore of an older backup (docs/adr/0057).
SET LOCAL lock_timeout = '100ms';

ALTER TABLE sec.erased_users ALTER COLUMN bucket DROP NOT NULL;
CREATE INDEX erased_users_of_receipts ON sec.erased_users (key_id) WHERE bucket IS NULL;

-- As in the main database.
CREATE OR REPLACE FUNCTION sec.erased_among(users integer[]) RETURNS SETOF integer LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY
    WITH near AS MATERIALIZED (
        SELECT u.id, e.tombstone, e.key_id FROM sec.erased_users e
        JOIN (SELECT t AS id, (hashint4extended(t, 0) & 65535)::integer AS bucket FROM unnest(users) AS t OFFSET 0) AS u ON u.bucket = e.bucket
    )
    SELECT n.id FROM near n JOIN sec.keys k ON k.key_id = n.key_id AND k.purpose = 'tombstone'
    WHERE n.tombstone = sec.hmac(k.inner_pad, k.outer_pad, int4send(n.id));
    -- Of those that came from a receipt nobody knows the user, so that every user is compared, once for each key.
    IF EXISTS (SELECT FROM sec.erased_users e WHERE e.bucket IS NULL) THEN
        RETURN QUERY
        WITH hashed AS MATERIALIZED (
            SELECT u.id, k.key_id, sec.hmac(k.inner_pad, k.outer_pad, int4send(u.id)) AS tombstone FROM sec.keys k CROSS JOIN unnest(users) AS u (id)
            WHERE k.purpose = 'tombstone' AND EXISTS (SELECT FROM sec.erased_users e WHERE e.bucket IS NULL AND e.key_id = k.key_id)
        )
        SELECT h.id FROM hashed h JOIN sec.erased_users e ON e.tombstone = h.tombstone AND e.key_id = h.key_id;
    END IF;
END $$;

SELECT sec.hide_plans();
