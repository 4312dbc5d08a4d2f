-- The labels of eventtype stay: events may hold them, and up.sql adds only what is missing.
SET LOCAL lock_timeout = '100ms';

SELECT sec.drop_job('retention-sweep');
DELETE FROM sec.event_writers WHERE role_name = 'w_retention_cleaner';
SELECT sec.revoke_worker('w_retention_cleaner', '{
    "data_retention_policies": ["SELECT", "INSERT", "UPDATE"],
    "retention_holds": ["SELECT", "INSERT", "UPDATE"],
    "retention_state": ["SELECT", "UPDATE"],
    "simple_chat_context": ["SELECT", "UPDATE", "DELETE"],
    "agent_context_states": ["SELECT", "UPDATE", "DELETE"],
    "encrypted_fields": ["SELECT", "DELETE"],
    "chat_mode_sessions": ["UPDATE", "DELETE"],
    "chat_session_summary": ["SELECT", "DELETE"],
    "router_decision_log": ["SELECT", "UPDATE", "DELETE"],
    "unified_memory_vectors": ["SELECT", "UPDATE", "DELETE"],
    "vector_collections": ["SELECT"],
    "cross_service_memory_sync": ["SELECT", "UPDATE", "DELETE"],
    "sync_changes": ["SELECT", "DELETE"],
    "session_knowledge": ["SELECT"]}', '{"sec.vector_tenants()", "sec.has_due(text)", "sec.deployment_id()", "public.memory_length(tsvector)"}');
DROP FUNCTION sec.due_retention_sweep, sec.next_slice, sec.due_users, sec.retention_slice, sec.forget_clocks, sec.forget_events, sec.due_inbox, sec.inbox_names,
    sec.due_events, sec.due_tombstones, sec.due_sessions, sec.due_syncs, sec.due_memories, sec.due_decisions, sec.due_agent_contexts,
    sec.due_contexts, sec.due_expired_agent_contexts, sec.due_expired_contexts, sec.retention_rules, sec.held_kinds, sec.kinds_of_rows,
    sec.platform_holds, sec.platform_policies;

CREATE OR REPLACE FUNCTION sec.worker_functions() RETURNS regprocedure[] LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT ARRAY['sec.open_context(text[], text, text)', 'sec.current_user_ids()', 'sec.context()',
        'public.set_security_context(integer, text, text)', 'public.get_current_user_id()',
        'public.get_current_session_id()', 'public.get_current_service_name()', 'public.validate_security_context()',
        'sec.excess_privileges()', 'sec.end_old_transactions()', 'sec.trust_version()', 'sec.trust_state()',
        'sec.note_token_use(uuid[], timestamptz[])',
        'sec.own_event_types()', 'sec.note_unpublished(integer)', 'sec.note_published(bigint[], uuid[])', 'sec.unpublished()',
        'audit.record_refused_tokens(text[], text[], integer[], text[], uuid[])',
        'audit.check_security_violation(text, text, integer, text, uuid)',
        'audit.log_data_access(text, text, integer[], uuid[], bigint[])',
        'audit.log_vector_operation(text, text, integer[], uuid[], bigint[])']::regprocedure[]
$$;
DROP FUNCTION sec.note_job_run;

REVOKE SELECT (id) ON users FROM memfleet_due;
REVOKE SELECT (id, user_id, table_name, chat_mode, keep_days, action, is_active) ON data_retention_policies FROM memfleet_due;
REVOKE SELECT (id, session_id, access_level, expires_at, is_persistent) ON simple_chat_context FROM memfleet_due;
REVOKE SELECT (id, session_id, memory_tier, expires_at) ON agent_context_states FROM memfleet_due;
REVOKE SELECT (id, chat_mode, ended_at) ON chat_mode_sessions FROM memfleet_due;
REVOKE SELECT (id, user_id, session_id, created_at) ON router_decision_log FROM memfleet_due;
REVOKE SELECT (session_id) ON unified_memory_vectors FROM memfleet_due;
REVOKE SELECT (id, completed_at) ON cross_service_memory_sync FROM memfleet_due;
REVOKE SELECT (user_id, session_id, sync_id) ON session_knowledge FROM memfleet_due;
REVOKE SELECT (id, user_id, session_id, event_sequence, created_at) ON blackboard_events FROM memfleet_due;
REVOKE SELECT (worker, user_id, message_id, received_at) ON inbox FROM memfleet_due;
REVOKE EXECUTE ON FUNCTION uuid7_at FROM memfleet_due;

-- The check names a column that goes.
ALTER TABLE router_decision_log DROP CONSTRAINT times_are_bounded, DROP COLUMN anonymised_at;
DO $$
DECLARE
    target record;
BEGIN
    FOR target IN
        SELECT c.oid::regclass AS name, string_agg(format(
            '%I BETWEEN ''0001-01-01 00:00:00+00''::timestamptz AND ''9999-12-31 23:59:59.999999+00''::timestamptz', a.attname),
            ' AND ' ORDER BY a.attnum) AS bounds
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
            AND a.atttypid = 'timestamptz'::regtype
        WHERE c.oid = 'router_decision_log'::regclass GROUP BY c.oid
    LOOP
        EXECUTE format('ALTER TABLE %s ADD CONSTRAINT times_are_bounded CHECK (%s) NOT VALID', target.name, target.bounds);
    END LOOP;
END $$;

DROP INDEX agent_context_states_removed, simple_chat_context_removed, agent_context_states_expiring, simple_chat_context_expiring,
    unified_memory_vectors_by_update, unified_memory_vectors_with_points;
ALTER TABLE unified_memory_vectors DROP COLUMN has_points;
DROP TABLE job_runs, retention_state, retention_holds;

DROP TRIGGER refuse_jobs ON data_retention_policies;
DROP FUNCTION sec.refuse_jobs;
ALTER TABLE data_retention_policies DROP CONSTRAINT times_are_bounded, DROP CONSTRAINT can_be_carried_out;
DELETE FROM data_retention_policies;
ALTER TABLE data_retention_policies DROP CONSTRAINT data_retention_policies_one_for_rows, DROP COLUMN access_tier,
    ADD CONSTRAINT data_retention_policies_user_id_table_name_chat_mode_key UNIQUE NULLS NOT DISTINCT (user_id, table_name, chat_mode);

DROP FUNCTION audit.note_updates_of_retention_holds;
SELECT audit.follow_updates(name::regclass) FROM unnest(ARRAY['data_retention_policies', 'router_decision_log',
    'unified_memory_vectors']) AS name;
