-- The two labels of eventtype stay: events may hold them, and up.sql adds only what is missing. Removed memories go, since a row
-- without a node cannot stay; their points are gone already.
SET LOCAL lock_timeout = '100ms';

REVOKE SELECT (id) ON users FROM w_vector_indexer;
REVOKE ALL ON unified_memory_vectors, consensus_memory_nodes, chat_mode_sessions, qdrant_access_control FROM w_vector_indexer;
REVOKE ALL ON unified_memory_vectors, qdrant_access_control FROM w_memory_reader;
REVOKE EXECUTE ON FUNCTION audit.log_vector_operation FROM w_memory_reader;
DELETE FROM sec.worker_privileges WHERE (role_name = 'w_vector_indexer' AND table_name IN ('unified_memory_vectors'::regclass,
    'consensus_memory_nodes'::regclass, 'chat_mode_sessions'::regclass, 'qdrant_access_control'::regclass))
    OR (role_name = 'w_memory_reader' AND table_name IN ('unified_memory_vectors'::regclass, 'qdrant_access_control'::regclass))
    OR table_name = 'vector_collections'::regclass;
DELETE FROM qdrant_access_control WHERE collection_name = 'unified_memory' AND service IN ('simple-chat', 'smart-router', 'expert-group');
DROP FUNCTION sec.vector_tenants;
DROP TABLE vector_collections;
DROP TYPE vector_collection_state;
DROP INDEX unified_memory_vectors_by_content, unified_memory_vectors_by_time;
DELETE FROM unified_memory_vectors WHERE removed_at IS NOT NULL;
ALTER TABLE unified_memory_vectors
    DROP CONSTRAINT unified_memory_vectors_has_node, DROP CONSTRAINT unified_memory_vectors_forgotten,
    DROP COLUMN is_dated, DROP COLUMN occurred_at, DROP COLUMN speaker, DROP COLUMN content_length, DROP COLUMN content_words, DROP COLUMN preceding_text, DROP COLUMN is_brought,
    DROP COLUMN point_count, DROP COLUMN content_hash, ALTER COLUMN memory_node_id SET NOT NULL, DROP COLUMN removed_at;
DROP FUNCTION memory_words, memory_length;
