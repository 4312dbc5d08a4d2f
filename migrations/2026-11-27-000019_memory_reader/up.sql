-- memory-reader: it reads what questions are answered from, and writes no table of a user.
SET LOCAL lock_timeout = '100ms';

DO $$
DECLARE
    readable text;
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
END $$;
-- To open contexts and see whether its role is as it should be; to judge tokens; to record refusals and reads.
GRANT EXECUTE ON FUNCTION sec.open_context, sec.current_user_ids, sec.context, set_security_context, get_current_user_id,
    get_current_session_id, get_current_service_name, validate_security_context, sec.excess_privileges TO w_memory_reader;
GRANT EXECUTE ON FUNCTION sec.trust_version, sec.trust_state, sec.note_token_use, audit.record_refused_tokens,
    audit.check_security_violation, audit.log_data_access TO w_memory_reader;
GRANT EXECUTE ON FUNCTION router_bucket_end TO w_memory_reader;
SELECT sec.guard_database();
