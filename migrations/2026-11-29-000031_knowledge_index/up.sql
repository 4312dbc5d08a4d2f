-- Memories of validated nodes, which vector-indexer makes and removes by a job (docs/adr/0049).
SET LOCAL lock_timeout = '100ms';

ALTER TABLE unified_memory_vectors
    -- Whether the job has made this memory of the node of its id. A service that removes such a memory leaves this as it is, so that
    -- the job does not make it again; the job itself takes it back.
    ADD COLUMN is_of_node boolean NOT NULL DEFAULT false;
CREATE INDEX unified_memory_vectors_of_nodes ON unified_memory_vectors (user_id, id) WHERE is_of_node AND removed_at IS NULL;

-- Whose validated nodes have no memory, and whose memories are of nodes that are not valid any more. Few users at a time: a tick takes
-- few nodes, and each user in it leaves a row in the trail.
CREATE FUNCTION sec.due_knowledge_index(integer) RETURNS SETOF integer LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    -- Of nodes that have no memory there are few, of memories many: the second look is for those alone.
    WITH without AS MATERIALIZED (
        SELECT n.user_id, n.id, n.updated_at FROM public.consensus_memory_nodes n
        WHERE n.validation_status = 'validated' AND n.valid_to IS NULL AND NOT EXISTS (
            SELECT FROM public.unified_memory_vectors v
            WHERE v.user_id = n.user_id AND v.id = n.id AND v.is_of_node AND v.removed_at IS NULL)
    ), due AS (
        SELECT w.user_id, w.updated_at FROM without w WHERE NOT EXISTS (
            SELECT FROM public.unified_memory_vectors v
            WHERE v.user_id = w.user_id AND v.id = w.id AND (v.is_of_node OR v.removed_at IS NULL))
        UNION ALL
        SELECT v.user_id, v.updated_at FROM public.unified_memory_vectors v
        WHERE v.is_of_node AND v.removed_at IS NULL AND NOT EXISTS (
            SELECT FROM public.consensus_memory_nodes n
            WHERE n.user_id = v.user_id AND n.id = v.id AND n.validation_status = 'validated' AND n.valid_to IS NULL)
    )
    SELECT d.user_id FROM due d GROUP BY d.user_id ORDER BY min(d.updated_at), d.user_id LIMIT least($1, 100)
$$;
GRANT SELECT (user_id, id, validation_status, valid_to, updated_at) ON consensus_memory_nodes TO memfleet_due;
GRANT SELECT (user_id, id, removed_at, is_of_node, updated_at) ON unified_memory_vectors TO memfleet_due;
SELECT sec.add_job('knowledge-index', 'w_vector_indexer', 'sec.due_knowledge_index(integer)');

-- What has waited longest comes first, so that no user is left out for good.
CREATE OR REPLACE FUNCTION sec.due_consensus_reestimate(integer) RETURNS SETOF integer LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT t.user_id FROM public.consensus_tasks t WHERE t.state = 'closed' AND t.estimated_at IS NULL
    GROUP BY t.user_id ORDER BY min(t.updated_at), t.user_id LIMIT $1
$$;
GRANT SELECT (updated_at) ON consensus_tasks TO memfleet_due;
