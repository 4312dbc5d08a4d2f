-- Routing decisions and synchronisation between sessions (the reference document's "Smart Router Integration" and
-- "Cross-Service Memory Synchronization").
SET LOCAL lock_timeout = '100ms';

CREATE TYPE sync_type AS ENUM ('context_transfer', 'knowledge_share', 'state_sync');
CREATE TYPE sync_status AS ENUM ('pending', 'in_progress', 'completed', 'failed');

CREATE TABLE router_decision_log (
    id uuid NOT NULL,
    user_id integer NOT NULL,
    session_id varchar(128) NOT NULL,
    user_request text NOT NULL,
    routing_decision jsonb NOT NULL,
    tools_invoked jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(tools_invoked) = 'array'),
    complexity_score double precision NOT NULL DEFAULT 0 CHECK (complexity_score BETWEEN 0 AND 1),
    confidence_score double precision NOT NULL DEFAULT 0 CHECK (confidence_score BETWEEN 0 AND 1),
    processing_time_ms bigint CHECK (processing_time_ms >= 0),
    tokens_used bigint CHECK (tokens_used >= 0),
    model_used varchar(100),
    success boolean NOT NULL DEFAULT true,
    error_details jsonb,
    -- Not a foreign key: the event is written in the same transaction.
    blackboard_event_id uuid,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, id),
    FOREIGN KEY (user_id, session_id) REFERENCES chat_mode_sessions (user_id, session_id)
);
CREATE INDEX idx_router_analytics
    ON router_decision_log (user_id, created_at, success, complexity_score, processing_time_ms);
CREATE INDEX router_decision_log_by_session ON router_decision_log (user_id, session_id, created_at);

CREATE TABLE cross_service_memory_sync (
    id uuid NOT NULL,
    user_id integer NOT NULL,
    source_session_id varchar(128) NOT NULL,
    target_session_id varchar(128) NOT NULL,
    sync_type sync_type NOT NULL,
    sync_status sync_status NOT NULL DEFAULT 'pending',
    data_transferred jsonb NOT NULL,
    conflict_resolution jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    completed_at timestamptz CHECK (completed_at >= created_at),
    PRIMARY KEY (user_id, id),
    CHECK (source_session_id <> target_session_id),
    FOREIGN KEY (user_id, source_session_id) REFERENCES chat_mode_sessions (user_id, session_id),
    FOREIGN KEY (user_id, target_session_id) REFERENCES chat_mode_sessions (user_id, session_id)
);
CREATE INDEX idx_memory_sync_queries ON cross_service_memory_sync (user_id, sync_status, sync_type, created_at);
