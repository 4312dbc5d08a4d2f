-- The memories of nodes stay, as memories of a service would.
SET LOCAL lock_timeout = '100ms';

SELECT sec.drop_job('knowledge-index');
DROP FUNCTION sec.due_knowledge_index;
REVOKE SELECT (user_id, id, validation_status, valid_to, updated_at) ON consensus_memory_nodes FROM memfleet_due;
REVOKE SELECT (user_id, id, removed_at, is_of_node, updated_at) ON unified_memory_vectors FROM memfleet_due;
DROP INDEX unified_memory_vectors_of_nodes;
ALTER TABLE unified_memory_vectors DROP COLUMN is_of_node;

CREATE OR REPLACE FUNCTION sec.due_consensus_reestimate(integer) RETURNS SETOF integer LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT DISTINCT t.user_id FROM public.consensus_tasks t WHERE t.state = 'closed' AND t.estimated_at IS NULL ORDER BY 1 LIMIT $1
$$;
REVOKE SELECT (updated_at) ON consensus_tasks FROM memfleet_due;
