-- memory-reader: it reads what questions are answered from, and may call what every worker may.
SET LOCAL lock_timeout = '100ms';

DO $$
DECLARE
    readable text;
    made record;
BEGIN
    FOREACH readable IN ARRAY ARRAY['chat_mode_sessions', 'simple_chat_context', 'chat_history', 'chat_messages',
        'agent_context_states', 'router_hourly_patterns', 'consensus_memory_nodes', 'consensus_memory_relations',
        'blackboard_events', 'encrypted_fields'] LOOP
        INSERT INTO sec.worker_privileges (role_name, table_name, privileges)
        VALUES ('w_memory_reader', readable::regclass, '{SELECT}');
        EXECUTE format('GRANT SELECT ON %I TO w_memory_reader', readable);
    END LOOP;
    GRANT USAGE ON SCHEMA public, sec, audit TO w_memory_reader;
    GRANT SELECT ON __diesel_schema_migrations TO w_memory_reader;
    FOR made IN SELECT p.oid::regprocedure AS name FROM pg_proc p
        JOIN pg_roles r ON r.rolname = 'w_vector_indexer'
        WHERE p.pronamespace IN ('public'::regnamespace, 'sec'::regnamespace, 'audit'::regnamespace)
        AND EXISTS (SELECT FROM aclexplode(p.proacl) AS a WHERE a.grantee = r.oid) LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO w_memory_reader', made.name);
    END LOOP;
    FOR made IN SELECT p.oid::regprocedure AS name FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace
        AND p.proname = 'router_time_percentile' LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO w_memory_reader', made.name);
    END LOOP;
END $$;
SELECT sec.guard_database();
