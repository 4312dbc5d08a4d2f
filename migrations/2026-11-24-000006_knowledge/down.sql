SET LOCAL lock_timeout = '100ms';
DROP INDEX idx_agent_context_lookup, idx_chat_session_correlation;
ALTER TABLE chat_mode_sessions DROP COLUMN unified_memory_id;
DROP TABLE unified_memory_vectors, consensus_memory_relations, consensus_memory_nodes;
DROP TYPE validationstatus, vectortype;
