-- Sessions and their contexts (the reference document's "Unified Session Management", "Simple Chat Integration"
-- and "Agent Context Storage").
SET LOCAL lock_timeout = '100ms';

CREATE TYPE chat_mode AS ENUM ('simple', 'smart-router', 'expert-group', 'socratic');
CREATE TYPE context_type AS ENUM ('conversation', 'preference', 'state');
CREATE TYPE access_level AS ENUM ('private', 'shared', 'public');
CREATE TYPE memorytier AS ENUM ('private', 'shared', 'consensus');

CREATE TABLE chat_mode_sessions (
    id uuid PRIMARY KEY,
    user_id integer NOT NULL REFERENCES users (id),
    session_id varchar(128) NOT NULL,
    chat_mode chat_mode NOT NULL,
    configuration jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(configuration) = 'object'),
    -- Not a foreign key: the parent may be opened later, by another service.
    parent_session_id varchar(128) CHECK (parent_session_id <> session_id),
    is_active boolean NOT NULL DEFAULT true,
    session_metadata jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(session_metadata) = 'object'),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    UNIQUE (user_id, session_id),
    CHECK (is_active = (ended_at IS NULL))
);

-- A removed row stays as a tombstone without its value: its version keeps an older put from coming back.
CREATE TABLE simple_chat_context (
    id uuid PRIMARY KEY,
    user_id integer NOT NULL,
    session_id varchar(128) NOT NULL,
    context_key varchar(256) NOT NULL,
    context_value jsonb,
    context_type context_type NOT NULL DEFAULT 'conversation',
    access_level access_level NOT NULL DEFAULT 'private',
    priority integer NOT NULL DEFAULT 1 CHECK (priority BETWEEN 0 AND 100),
    version bigint NOT NULL DEFAULT 1 CHECK (version > 0),
    expires_at timestamptz,
    is_persistent boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    removed_at timestamptz,
    UNIQUE (user_id, session_id, context_key),
    FOREIGN KEY (user_id, session_id) REFERENCES chat_mode_sessions (user_id, session_id),
    CHECK ((context_value IS NULL) = (removed_at IS NOT NULL))
);

CREATE TABLE agent_context_states (
    id uuid PRIMARY KEY,
    agent_id varchar(128) NOT NULL,
    user_id integer NOT NULL REFERENCES users (id),
    -- Not a foreign key: agents also work in conversations that are no chat session.
    session_id varchar(128) NOT NULL,
    memory_tier memorytier NOT NULL,
    context_key varchar(256) NOT NULL,
    context_value jsonb,
    is_shareable boolean NOT NULL DEFAULT false,
    expires_at timestamptz,
    version bigint NOT NULL DEFAULT 1 CHECK (version > 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    removed_at timestamptz,
    UNIQUE (user_id, session_id, agent_id, memory_tier, context_key),
    CHECK ((context_value IS NULL) = (removed_at IS NOT NULL))
);

CREATE TABLE chat_session_summary (
    id uuid PRIMARY KEY,
    user_id integer NOT NULL,
    session_id varchar(128) NOT NULL,
    summary text NOT NULL,
    key_topics jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(key_topics) = 'array'),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (user_id, session_id),
    FOREIGN KEY (user_id, session_id) REFERENCES chat_mode_sessions (user_id, session_id)
);
