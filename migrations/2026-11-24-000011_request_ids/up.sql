-- The request that wrote a row last. A batch writes rows of many requests with one statement, so that only the row itself
-- can say to the audit trail which of them it was (docs/adr/0014). NULL for what no request wrote.
SET LOCAL lock_timeout = '100ms';

DO $$
DECLARE
    target regclass;
BEGIN
    FOR target IN
        SELECT p.polrelid FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid AND NOT c.relispartition
        WHERE p.polname = 'own_rows' AND c.oid <> 'inbox'::regclass ORDER BY c.oid
    LOOP
        EXECUTE format('ALTER TABLE %s ADD COLUMN request_id uuid', target);
    END LOOP;
END $$;
