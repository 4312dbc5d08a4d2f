-- Retention, vector permissions, encrypted fields, privacy requests and services (the reference document's "Public
-- Schema Security Tables").
SET LOCAL lock_timeout = '100ms';

CREATE TYPE retention_action AS ENUM ('delete', 'archive', 'anonymise');
CREATE TYPE privacy_request_type AS ENUM ('access', 'rectify', 'restrict', 'erase', 'anonymise');
CREATE TYPE privacy_request_status AS ENUM ('pending', 'in_progress', 'completed', 'rejected', 'failed');

-- A policy of user 0 is everybody's who has none of their own. NULLs are keys too: one policy for a table, whatever the
-- chat mode.
CREATE TABLE data_retention_policies (
    id uuid NOT NULL,
    user_id integer NOT NULL REFERENCES users (id),
    table_name varchar(128) NOT NULL,
    chat_mode chat_mode,
    keep_days integer NOT NULL CHECK (keep_days BETWEEN 1 AND 36500),
    action retention_action NOT NULL,
    is_active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, id),
    UNIQUE NULLS NOT DISTINCT (user_id, table_name, chat_mode)
);

CREATE TABLE qdrant_access_control (
    id uuid PRIMARY KEY,
    service varchar(64) NOT NULL,
    collection_name varchar(128) NOT NULL,
    vector_type vectortype NOT NULL,
    may_search boolean NOT NULL DEFAULT false,
    may_write boolean NOT NULL DEFAULT false,
    may_delete boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (service, collection_name, vector_type)
);

-- The ciphertext of a field; the row itself holds a marker in its place.
CREATE TABLE encrypted_fields (
    id uuid NOT NULL,
    user_id integer NOT NULL REFERENCES users (id),
    table_name varchar(128) NOT NULL,
    column_name varchar(128) NOT NULL,
    row_id uuid NOT NULL,
    ciphertext bytea NOT NULL CHECK (octet_length(ciphertext) BETWEEN 64 AND 2097152),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, id),
    -- The row first, whose ciphertexts are looked for and deleted together.
    UNIQUE (user_id, row_id, table_name, column_name)
);

CREATE TABLE privacy_requests (
    id uuid NOT NULL,
    user_id integer NOT NULL,
    request_type privacy_request_type NOT NULL,
    request_status privacy_request_status NOT NULL DEFAULT 'pending',
    details jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(details) = 'object'),
    receipt jsonb,
    requested_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    completed_at timestamptz CHECK (completed_at >= requested_at),
    PRIMARY KEY (user_id, id)
);

-- Tokens that services hold. The token itself is nowhere: only its id.
CREATE TABLE cross_service_auth (
    token_id uuid PRIMARY KEY,
    service varchar(64) NOT NULL,
    user_id integer NOT NULL,
    session_id varchar(128),
    scopes text[] NOT NULL CHECK (cardinality(scopes) BETWEEN 1 AND 64),
    -- The key that signed it.
    key_id varchar(32) NOT NULL,
    issued_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL CHECK (expires_at > issued_at),
    grants_expire_at timestamptz NOT NULL CHECK (grants_expire_at >= expires_at),
    last_used_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX cross_service_auth_by_service ON cross_service_auth (service, expires_at);
