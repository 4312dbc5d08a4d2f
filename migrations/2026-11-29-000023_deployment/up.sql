-- The identity of a deployment: this database with the servers that hold parts of its data. A collection of the vector store
-- records it as its owner, so that the deployment of another database does not change it (docs/adr/0034).
SET LOCAL lock_timeout = '100ms';

CREATE TABLE sec.deployment (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    created_at timestamptz NOT NULL DEFAULT now()
);
-- Otherwise `memfleet vectors apply` makes it, with the first collection.
INSERT INTO sec.deployment (is_only) SELECT true WHERE EXISTS (SELECT FROM vector_collections);
ALTER TABLE sec.deployment OWNER TO memfleet_owner;

CREATE FUNCTION sec.deployment_id() RETURNS uuid LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT d.id FROM sec.deployment d
$$;
ALTER FUNCTION sec.deployment_id OWNER TO memfleet_owner;
REVOKE EXECUTE ON FUNCTION sec.deployment_id FROM PUBLIC;
SELECT sec.grant_worker(worker, functions => '{sec.deployment_id()}', takes_messages => false)
FROM unnest('{w_vector_indexer,w_memory_reader}'::name[]) AS worker;
