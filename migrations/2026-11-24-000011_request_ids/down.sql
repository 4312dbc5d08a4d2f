SET LOCAL lock_timeout = '100ms';

DO $$
DECLARE
    target regclass;
BEGIN
    FOR target IN
        SELECT p.polrelid FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid AND NOT c.relispartition
        WHERE p.polname = 'own_rows' AND c.oid <> 'inbox'::regclass ORDER BY c.oid
    LOOP
        EXECUTE format('ALTER TABLE %s DROP COLUMN request_id', target);
    END LOOP;
END $$;
