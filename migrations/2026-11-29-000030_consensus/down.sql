-- The labels of eventtype stay: events may hold them, and up.sql adds only what is missing. Tasks, their responses and their dossiers
-- go; of nodes with the same key, all but the one that is valid get a key of their own.
SET LOCAL lock_timeout = '100ms';

SELECT sec.drop_job('consensus-close'), sec.drop_job('consensus-reestimate');
DROP FUNCTION sec.due_consensus_close, sec.due_consensus_reestimate;
DELETE FROM sec.event_writers WHERE role_name = 'w_consensus_builder';
SELECT sec.revoke_worker('w_memory_reader', '{
    "agent_configurations": ["SELECT"], "agent_profiles": ["SELECT"], "multi_agent_conversations": ["SELECT"],
    "consensus_tasks": ["SELECT"], "task_delegations": ["SELECT"], "agent_responses": ["SELECT"],
    "consensus_dossiers": ["SELECT"], "agent_records": ["SELECT"]}');
SELECT sec.revoke_worker('w_consensus_builder', '{
    "agent_configurations": ["SELECT", "INSERT", "UPDATE"],
    "agent_profiles": ["SELECT", "INSERT", "UPDATE"],
    "multi_agent_conversations": ["SELECT", "INSERT", "UPDATE"],
    "consensus_tasks": ["SELECT", "INSERT", "UPDATE"],
    "task_delegations": ["SELECT", "INSERT", "UPDATE"],
    "agent_responses": ["SELECT", "INSERT"],
    "consensus_memory_nodes": ["SELECT", "INSERT", "UPDATE"],
    "consensus_memory_relations": ["SELECT", "INSERT", "UPDATE"],
    "consensus_dossiers": ["SELECT", "INSERT", "UPDATE"],
    "agent_records": ["SELECT", "INSERT", "UPDATE"]}');

-- The checks name columns that go.
ALTER TABLE agent_configurations DROP CONSTRAINT times_are_bounded;
ALTER TABLE agent_profiles DROP CONSTRAINT times_are_bounded;
ALTER TABLE multi_agent_conversations DROP CONSTRAINT times_are_bounded;
ALTER TABLE task_delegations DROP CONSTRAINT times_are_bounded;
ALTER TABLE agent_responses DROP CONSTRAINT times_are_bounded;
ALTER TABLE consensus_memory_relations DROP CONSTRAINT times_are_bounded;
ALTER TABLE consensus_memory_nodes DROP CONSTRAINT times_are_bounded;

DROP TABLE agent_records, consensus_dossiers;
DELETE FROM consensus_memory_relations WHERE removed_at IS NOT NULL;
ALTER TABLE consensus_memory_relations DROP COLUMN removed_at;

DROP INDEX consensus_memory_nodes_one_valid, consensus_memory_nodes_by_key, consensus_memory_nodes_by_time;
CREATE INDEX idx_consensus_validation ON consensus_memory_nodes (user_id, validation_status, consensus_score);
ALTER TABLE consensus_memory_nodes
    DROP COLUMN response_id, DROP COLUMN task_id, DROP COLUMN superseded_by, DROP COLUMN verdict, DROP COLUMN verdict_by,
    DROP COLUMN verdict_reason, DROP COLUMN verdict_at, DROP COLUMN verdict_sequence, DROP COLUMN rules_version,
    DROP COLUMN inputs_sha256;
UPDATE consensus_memory_nodes n SET node_key = left(n.node_key, 219) || ' ' || n.id
FROM (SELECT user_id, id, row_number() OVER (PARTITION BY user_id, node_type, node_key
    ORDER BY valid_to IS NULL AND validation_status = 'validated' DESC, valid_to IS NULL DESC, established_at DESC, id) AS place
    FROM consensus_memory_nodes) AS o
WHERE o.place > 1 AND n.user_id = o.user_id AND n.id = o.id;
ALTER TABLE consensus_memory_nodes
    DROP CONSTRAINT consensus_memory_nodes_interval, DROP COLUMN valid_from, DROP COLUMN valid_to,
    ADD CONSTRAINT consensus_memory_nodes_user_id_node_type_node_key_key UNIQUE (user_id, node_type, node_key);
ALTER TABLE consensus_memory_nodes ADD CONSTRAINT times_are_bounded CHECK (
    established_at BETWEEN '0001-01-01 00:00:00+00'::timestamptz AND '9999-12-31 23:59:59.999999+00'::timestamptz
    AND updated_at BETWEEN '0001-01-01 00:00:00+00'::timestamptz AND '9999-12-31 23:59:59.999999+00'::timestamptz) NOT VALID;

DELETE FROM agent_responses;
DROP INDEX agent_responses_to_count;
ALTER TABLE agent_responses
    DROP COLUMN task_id, DROP COLUMN claim, DROP COLUMN evidence, DROP COLUMN stored_sequence, DROP COLUMN is_counted,
    DROP COLUMN embedding, DROP COLUMN embedding_model, DROP COLUMN event_id,
    ALTER COLUMN confidence_score SET DEFAULT 0.5, ALTER COLUMN confidence_score SET NOT NULL,
    ALTER COLUMN processing_time_seconds SET NOT NULL;
DELETE FROM task_delegations;
ALTER TABLE task_delegations DROP COLUMN task_id, DROP COLUMN has_answered, DROP COLUMN response_sequence;
DROP TABLE consensus_tasks;
ALTER TABLE agent_configurations DROP COLUMN model_family;
