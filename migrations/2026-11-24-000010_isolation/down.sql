-- The roles stay: they are of the whole cluster, and other databases may use them.
SET LOCAL lock_timeout = '100ms';

DO $$
DECLARE
    target record;
BEGIN
    FOR target IN SELECT c.oid::regclass AS name FROM pg_class c
        WHERE c.relnamespace IN ('public'::regnamespace, 'audit'::regnamespace)
        AND c.relkind IN ('r', 'p') AND c.relname <> '__diesel_schema_migrations' LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO %I', target.name, current_user);
    END LOOP;
    FOR target IN SELECT p.oid::regprocedure AS name FROM pg_proc p
        WHERE p.pronamespace IN ('public'::regnamespace, 'audit'::regnamespace) LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO %I', target.name, current_user);
    END LOOP;
    FOR target IN SELECT polrelid::regclass AS name FROM pg_policy WHERE polname = 'own_rows' LOOP
        EXECUTE format('DROP POLICY own_rows ON %s', target.name);
        EXECUTE format('ALTER TABLE %s DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY', target.name);
    END LOOP;
    FOR target IN SELECT rolname AS name FROM pg_roles WHERE rolname IN ('memfleet_owner', 'w_context_writer',
        'w_router_logger', 'w_consensus_builder', 'w_vector_indexer', 'w_memory_sync', 'w_retention_cleaner',
        'w_gpu_allocator', 'w_memory_reader') LOOP
        EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA public, audit, sec FROM %I', target.name);
        EXECUTE format('REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM %I', target.name);
        EXECUTE format('REVOKE ALL ON ALL FUNCTIONS IN SCHEMA public, sec FROM %I', target.name);
        EXECUTE format('REVOKE ALL ON SCHEMA public, sec, audit FROM %I', target.name);
        EXECUTE format('REVOKE ALL ON DATABASE %I FROM %I', current_database(), target.name);
    END LOOP;
    EXECUTE format('GRANT CONNECT, TEMPORARY ON DATABASE %I TO PUBLIC', current_database());
END $$;
DROP FUNCTION set_security_context, get_current_user_id, get_current_session_id, get_current_service_name,
    validate_security_context;
DROP SCHEMA sec CASCADE;
ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO PUBLIC;
GRANT USAGE ON SCHEMA public TO PUBLIC;
