SET LOCAL lock_timeout = '100ms';

DO $$
DECLARE
    target record;
BEGIN
    FOR target IN
        SELECT c.oid::regclass AS name, t.tgfoid::regprocedure AS function FROM pg_trigger t
        JOIN pg_class c ON c.oid = t.tgrelid AND NOT c.relispartition JOIN pg_proc p ON p.oid = t.tgfoid
        WHERE t.tgname = 'audit_update' AND p.pronamespace = 'audit'::regnamespace AND p.proname LIKE 'note\_updates\_of\_%'
        ORDER BY c.relname = 'blackboard_events', c.oid
    LOOP
        EXECUTE format('CREATE OR REPLACE TRIGGER audit_update AFTER UPDATE ON %s REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
            FOR EACH STATEMENT EXECUTE FUNCTION audit.audit_trigger_function()', target.name);
        EXECUTE format('DROP FUNCTION %s', target.function);
    END LOOP;
END $$;
DROP FUNCTION audit.follow_updates, audit.make_update_function;
