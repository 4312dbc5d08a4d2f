-- The files of archives stay where they are, and nothing names them any more.
SET LOCAL lock_timeout = '100ms';

SELECT sec.revoke_worker('w_retention_cleaner', '{"chat_session_summary": ["UPDATE"]}',
    '{"sec.has_archive_policies()", "sec.forget_archived_events(uuid[])",
        "sec.record_archive(uuid, text, text, bytea, uuid[], uuid, integer, bigint, timestamptz, timestamptz, integer[], uuid[])"}');
DROP FUNCTION sec.is_erased, sec.record_archive, sec.forget_archived_events, sec.has_archive_policies;

DROP TABLE archive_restores, archives;
DROP FUNCTION audit.note_updates_of_archive_restores;
-- Nothing carries such policies out any more: their rows stay.
UPDATE data_retention_policies SET is_active = false WHERE action = 'archive';
ALTER TABLE data_retention_policies DROP CONSTRAINT data_retention_policies_archive, DROP CONSTRAINT can_be_carried_out,
    ADD CONSTRAINT can_be_carried_out CHECK (NOT is_active OR (
        (action = 'delete' OR action = 'anonymise' AND table_name = 'router_decision_log')
        AND (keep_days >= 8 OR table_name NOT IN ('blackboard_events', 'tombstones', 'inbox'))));
