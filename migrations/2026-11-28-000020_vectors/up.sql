-- What vector-indexer needs beside its table: which collections there are, how a user is called in them, and what makes
-- texts findable by their words (the reference document's "Vector Search Integration" and "Vector Database Security").
SET LOCAL lock_timeout = '100ms';

ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'vector.indexed';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'vector.removed';

-- The words that a text is found by. A text longer than this would not fit into a tsvector if it were all different words.
CREATE FUNCTION memory_words(content text) RETURNS tsvector LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT to_tsvector('pg_catalog.english'::regconfig, left(content, 100000))
$$;

-- How many words that are, with their repeats.
CREATE FUNCTION memory_length(words tsvector) RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(sum(cardinality(positions)), 0)::integer FROM unnest(words)
$$;

ALTER TABLE unified_memory_vectors
    -- A removed memory has no text any more and keeps its row, so that an older request that comes late brings nothing back.
    ADD COLUMN removed_at timestamptz,
    ALTER COLUMN memory_node_id DROP NOT NULL,
    -- Of what was embedded; the same under the same model is not embedded again.
    ADD COLUMN content_hash bytea CHECK (octet_length(content_hash) = 32),
    -- The points of a text follow from the first one; a long text has several.
    ADD COLUMN point_count integer NOT NULL DEFAULT 1 CHECK (point_count BETWEEN 0 AND 4096),
    -- Whether the vector came with the request: then nobody can make it anew.
    ADD COLUMN is_brought boolean NOT NULL DEFAULT false,
    -- What was embedded along with the text.
    ADD COLUMN preceding_text text,
    -- Of the text, its speaker and its date.
    ADD COLUMN content_words tsvector NOT NULL DEFAULT '',
    ADD COLUMN content_length integer GENERATED ALWAYS AS (memory_length(content_words)) STORED,
    ADD COLUMN speaker varchar(200),
    ADD COLUMN occurred_at timestamptz NOT NULL DEFAULT now(),
    -- Whether the publisher said when; then the date is part of what is searched.
    ADD COLUMN is_dated boolean NOT NULL DEFAULT false,
    ADD CONSTRAINT unified_memory_vectors_has_node CHECK (memory_node_id IS NOT NULL OR removed_at IS NOT NULL),
    ADD CONSTRAINT unified_memory_vectors_forgotten CHECK (removed_at IS NULL OR (content_text = '' AND metadata = '{}'
        AND qdrant_point_id IS NULL AND point_count = 0 AND content_hash IS NULL AND preceding_text IS NULL AND speaker IS NULL
        AND content_words = ''));
CREATE INDEX unified_memory_vectors_by_content ON unified_memory_vectors (user_id, content_hash);
CREATE INDEX unified_memory_vectors_by_time ON unified_memory_vectors (user_id, session_id, occurred_at);

-- A collection of the vector store: one model, one dimension. Searches go to the active one; requests are written to it and to
-- the one that is being filled.
CREATE TYPE vector_collection_state AS ENUM ('filling', 'active', 'former');
CREATE TABLE vector_collections (
    collection_name varchar(128) PRIMARY KEY,
    alias varchar(128) NOT NULL,
    model varchar(100) NOT NULL,
    dimension integer NOT NULL CHECK (dimension BETWEEN 1 AND 8192),
    quantization varchar(16) NOT NULL CHECK (quantization IN ('none', 'int8', 'binary')),
    state vector_collection_state NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX vector_collections_one_active ON vector_collections (alias) WHERE state = 'active';
CREATE UNIQUE INDEX vector_collections_one_filling ON vector_collections (alias) WHERE state = 'filling';
ALTER TABLE vector_collections OWNER TO memfleet_owner;

-- How the users of the context are called in the vector store, and the key for what their points can be filtered by. Both follow
-- from the user's own key in the audit trail: with it they go when the user is erased, and nobody who reads the vector store
-- alone learns whose a point is.
CREATE FUNCTION sec.vector_tenants(OUT user_id integer, OUT tenant uuid, OUT filter_key bytea) RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.user_id, encode(substr(sha256(s.digest_key || convert_to('vector tenant', 'UTF8')), 1, 16), 'hex')::uuid,
        sha256(s.digest_key || convert_to('vector filters', 'UTF8'))
    FROM audit.subjects s WHERE s.user_id = ANY (sec.current_user_ids())
$$;
ALTER FUNCTION sec.vector_tenants OWNER TO memfleet_owner;

-- The services that are shipped may do everything with their own users' memories. More is given by `memfleet vectors grant`.
INSERT INTO qdrant_access_control (id, service, collection_name, vector_type, may_search, may_write, may_delete)
SELECT gen_random_uuid(), service, 'unified_memory', vector_type, true, true, true
FROM unnest(ARRAY['simple-chat', 'smart-router', 'expert-group']) AS service, unnest(enum_range(NULL::vectortype)) AS vector_type
ON CONFLICT DO NOTHING;

INSERT INTO sec.worker_privileges (role_name, table_name, privileges) VALUES
    ('w_vector_indexer', 'unified_memory_vectors'::regclass, '{SELECT,INSERT,UPDATE}'),
    ('w_vector_indexer', 'consensus_memory_nodes'::regclass, '{SELECT,INSERT}'),
    ('w_vector_indexer', 'chat_mode_sessions'::regclass, '{SELECT}'),
    ('w_vector_indexer', 'qdrant_access_control'::regclass, '{SELECT}'),
    ('w_vector_indexer', 'vector_collections'::regclass, '{SELECT}'),
    ('w_memory_reader', 'unified_memory_vectors'::regclass, '{SELECT}'),
    ('w_memory_reader', 'qdrant_access_control'::regclass, '{SELECT}'),
    ('w_memory_reader', 'vector_collections'::regclass, '{SELECT}');
DO $$
DECLARE
    given record;
BEGIN
    FOR given IN SELECT role_name, table_name, array_to_string(privileges, ', ') AS privileges FROM sec.worker_privileges
        WHERE role_name = 'w_vector_indexer' OR table_name IN ('unified_memory_vectors'::regclass,
            'qdrant_access_control'::regclass, 'vector_collections'::regclass) LOOP
        EXECUTE format('GRANT %s ON %s TO %I', given.privileges, given.table_name, given.role_name);
    END LOOP;
END $$;
-- Whoever appends an event looks whether its user is known, and sees no more of the account than that.
GRANT SELECT (id) ON users TO w_vector_indexer;
REVOKE EXECUTE ON FUNCTION sec.vector_tenants, memory_words, memory_length FROM PUBLIC;
ALTER FUNCTION memory_words OWNER TO memfleet_owner;
ALTER FUNCTION memory_length OWNER TO memfleet_owner;
GRANT EXECUTE ON FUNCTION sec.vector_tenants TO w_vector_indexer, w_memory_reader;
GRANT EXECUTE ON FUNCTION memory_words, memory_length TO w_vector_indexer, w_memory_reader;
GRANT EXECUTE ON FUNCTION audit.log_vector_operation TO w_memory_reader;
