-- The knowledge graph and its vectors (the reference document's "Consensus Memory (Knowledge Graph)" and "Vector Search
-- Integration").
SET LOCAL lock_timeout = '100ms';

CREATE TYPE validationstatus AS ENUM ('unvalidated', 'pending', 'validated', 'disputed', 'rejected', 'superseded');
CREATE TYPE vectortype AS ENUM ('query', 'response', 'context', 'knowledge');

CREATE TABLE consensus_memory_nodes (
    id uuid NOT NULL,
    user_id integer NOT NULL REFERENCES users (id),
    node_type varchar(128) NOT NULL,
    node_key varchar(256) NOT NULL,
    title varchar(512) NOT NULL,
    content jsonb NOT NULL,
    validation_status validationstatus NOT NULL DEFAULT 'unvalidated',
    consensus_score double precision NOT NULL DEFAULT 0 CHECK (consensus_score BETWEEN 0 AND 1),
    semantic_tags jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(semantic_tags) = 'array'),
    is_active boolean NOT NULL DEFAULT true,
    established_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, id),
    UNIQUE (user_id, node_type, node_key)
);
CREATE INDEX idx_consensus_validation ON consensus_memory_nodes (user_id, validation_status, consensus_score);

CREATE TABLE consensus_memory_relations (
    id uuid NOT NULL,
    user_id integer NOT NULL,
    source_node_id uuid NOT NULL,
    target_node_id uuid NOT NULL,
    relation_type varchar(128) NOT NULL,
    strength double precision NOT NULL DEFAULT 1 CHECK (strength BETWEEN 0 AND 1),
    confidence double precision NOT NULL DEFAULT 1 CHECK (confidence BETWEEN 0 AND 1),
    validation_status validationstatus NOT NULL DEFAULT 'unvalidated',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, id),
    UNIQUE (user_id, source_node_id, target_node_id, relation_type),
    CHECK (source_node_id <> target_node_id),
    FOREIGN KEY (user_id, source_node_id) REFERENCES consensus_memory_nodes (user_id, id),
    FOREIGN KEY (user_id, target_node_id) REFERENCES consensus_memory_nodes (user_id, id)
);
CREATE INDEX consensus_memory_relations_by_target ON consensus_memory_relations (user_id, target_node_id);

CREATE TABLE unified_memory_vectors (
    id uuid NOT NULL,
    user_id integer NOT NULL,
    memory_node_id uuid NOT NULL,
    session_id varchar(128),
    vector_type vectortype NOT NULL,
    content_text text NOT NULL,
    embedding_model varchar(100) NOT NULL,
    qdrant_point_id uuid,
    metadata jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    relevance_score double precision CHECK (relevance_score BETWEEN -1 AND 1),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, id),
    FOREIGN KEY (user_id, memory_node_id) REFERENCES consensus_memory_nodes (user_id, id),
    FOREIGN KEY (user_id, session_id) REFERENCES chat_mode_sessions (user_id, session_id)
);
CREATE INDEX unified_memory_vectors_by_node ON unified_memory_vectors (user_id, memory_node_id);
CREATE INDEX unified_memory_vectors_by_session ON unified_memory_vectors (user_id, session_id);

ALTER TABLE chat_mode_sessions ADD COLUMN unified_memory_id uuid;
-- Every row has NULL there, so there is nothing to look through.
ALTER TABLE chat_mode_sessions ADD CONSTRAINT chat_mode_sessions_unified_memory
    FOREIGN KEY (user_id, unified_memory_id) REFERENCES consensus_memory_nodes (user_id, id);
CREATE INDEX idx_chat_session_correlation ON chat_mode_sessions (user_id, chat_mode, is_active, created_at);
CREATE INDEX idx_agent_context_lookup
    ON agent_context_states (user_id, agent_id, session_id, memory_tier, created_at);
