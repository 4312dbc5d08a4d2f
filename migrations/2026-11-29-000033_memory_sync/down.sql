-- The labels of eventtype stay: events may hold them, and up.sql adds only what is missing. What syncs wrote into contexts stays; what
-- could take it back goes.
SET LOCAL lock_timeout = '100ms';

SELECT sec.drop_job('sync-carry'), sec.drop_job('sync-forget');
DROP FUNCTION sec.due_sync_carry, sec.due_sync_forget, audit.note_foreign_session, sec.is_session_of_another,
    sec.has_due, sec.lock_synced_sessions;
DROP INDEX chat_mode_sessions_by_name;
REVOKE SELECT (user_id, session_id, is_active) ON chat_mode_sessions FROM memfleet_due;
REVOKE SELECT (user_id, session_id, logical_time) ON session_clocks FROM memfleet_due;
REVOKE SELECT (user_id, removed_at) ON simple_chat_context, agent_context_states FROM memfleet_due;
REVOKE SELECT (user_id, source_session_id, target_session_id, sync_status, expires_at, created_at)
    ON cross_service_memory_sync FROM memfleet_due;
DELETE FROM sec.event_writers WHERE role_name = 'w_memory_sync';
SELECT sec.revoke_worker('w_memory_reader', '{
    "cross_service_memory_sync": ["SELECT"], "sync_changes": ["SELECT"], "session_knowledge": ["SELECT"]}');
SELECT sec.revoke_worker('w_memory_sync', '{
    "cross_service_memory_sync": ["SELECT", "INSERT", "UPDATE"],
    "sync_changes": ["SELECT", "INSERT", "UPDATE"],
    "session_knowledge": ["SELECT", "INSERT", "DELETE"],
    "simple_chat_context": ["SELECT", "INSERT", "UPDATE", "DELETE"],
    "agent_context_states": ["SELECT", "INSERT", "UPDATE", "DELETE"],
    "encrypted_fields": ["SELECT", "INSERT", "UPDATE", "DELETE"],
    "consensus_tasks": ["SELECT"],
    "consensus_memory_nodes": ["SELECT", "INSERT", "UPDATE"]}');

-- The checks name columns that go.
ALTER TABLE simple_chat_context DROP CONSTRAINT times_are_bounded;
ALTER TABLE agent_context_states DROP CONSTRAINT times_are_bounded;
ALTER TABLE cross_service_memory_sync DROP CONSTRAINT times_are_bounded;

DELETE FROM encrypted_fields WHERE table_name = 'sync_changes' OR column_name = 'sync_values';
DROP TABLE session_knowledge, sync_changes;
DROP SEQUENCE sync_position_sequence;
DROP INDEX cross_service_memory_sync_running, cross_service_memory_sync_by_time;
ALTER TABLE cross_service_memory_sync
    DROP COLUMN filter, DROP COLUMN crosses_private, DROP COLUMN service, DROP COLUMN expires_at, DROP COLUMN end_reason,
    DROP COLUMN rounds, DROP COLUMN source_clock, DROP COLUMN has_more, DROP COLUMN resume_after, DROP COLUMN pass_clock, DROP COLUMN carried_at, DROP COLUMN updated_at,
    DROP COLUMN undone_at;
DROP INDEX simple_chat_context_removals, agent_context_states_removals;
ALTER TABLE simple_chat_context DROP CONSTRAINT simple_chat_context_syncs,
    DROP COLUMN writes, DROP COLUMN written_at, DROP COLUMN synced_writes, DROP COLUMN sync_state, DROP COLUMN sync_values;
ALTER TABLE agent_context_states DROP CONSTRAINT agent_context_states_syncs,
    DROP COLUMN writes, DROP COLUMN written_at, DROP COLUMN synced_writes, DROP COLUMN sync_state, DROP COLUMN sync_values;

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
        WHERE c.oid = ANY (ARRAY['simple_chat_context', 'agent_context_states']::regclass[])
        GROUP BY c.oid ORDER BY c.oid
    LOOP
        EXECUTE format('ALTER TABLE %s ADD CONSTRAINT times_are_bounded CHECK (%s) NOT VALID', target.name, target.bounds);
    END LOOP;
END $$;
