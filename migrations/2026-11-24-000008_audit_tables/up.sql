-- The audit trail's tables (the reference document's "Core Security Tables"). No user id and no plain value stands in
-- audit_log: a subject is a random token, whose mapping to a user is erased with the user.
SET LOCAL lock_timeout = '100ms';

CREATE SCHEMA audit;

CREATE TYPE audit.operation AS ENUM ('INSERT', 'UPDATE', 'DELETE');
CREATE TYPE audit.severity AS ENUM ('low', 'medium', 'high', 'critical');

-- Who a subject token stands for.
CREATE TABLE audit.subjects (
    user_id integer PRIMARY KEY,
    token uuid NOT NULL UNIQUE DEFAULT gen_random_uuid(),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE audit.audit_log (
    id uuid PRIMARY KEY DEFAULT public.uuid7(),
    occurred_at timestamptz NOT NULL DEFAULT now(),
    subject_token uuid,
    role_name name NOT NULL,
    service varchar(64),
    request_id uuid,
    table_name varchar(128) NOT NULL,
    operation audit.operation NOT NULL,
    row_digest_before bytea CHECK (octet_length(row_digest_before) = 32),
    row_digest_after bytea CHECK (octet_length(row_digest_after) = 32),
    changed_columns text[] NOT NULL DEFAULT '{}',
    CHECK ((operation = 'INSERT') = (row_digest_before IS NULL)),
    CHECK ((operation = 'DELETE') = (row_digest_after IS NULL))
) PARTITION BY RANGE (id);
CREATE TABLE audit.audit_log_default PARTITION OF audit.audit_log DEFAULT;
CREATE INDEX audit_log_by_subject ON audit.audit_log (subject_token, id);

CREATE TABLE audit.security_violations (
    id uuid PRIMARY KEY DEFAULT public.uuid7(),
    occurred_at timestamptz NOT NULL DEFAULT now(),
    subject_token uuid,
    role_name name NOT NULL,
    service varchar(64),
    request_id uuid,
    violation_type varchar(64) NOT NULL,
    severity audit.severity NOT NULL,
    table_name varchar(128),
    reason text NOT NULL
);
CREATE INDEX security_violations_by_type ON audit.security_violations (violation_type, occurred_at);

CREATE TABLE audit.data_access_log (
    id uuid PRIMARY KEY DEFAULT public.uuid7(),
    occurred_at timestamptz NOT NULL DEFAULT now(),
    subject_token uuid,
    role_name name NOT NULL,
    service varchar(64),
    request_id uuid,
    access_type varchar(64) NOT NULL,
    object_name varchar(128) NOT NULL,
    rows_returned bigint NOT NULL CHECK (rows_returned >= 0)
);
CREATE INDEX data_access_log_by_subject ON audit.data_access_log (subject_token, occurred_at);

CREATE TABLE audit.security_metrics (
    id uuid PRIMARY KEY DEFAULT public.uuid7(),
    measured_at timestamptz NOT NULL DEFAULT now(),
    metric_name varchar(128) NOT NULL,
    metric_value double precision NOT NULL,
    labels jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(labels) = 'object')
);
CREATE INDEX security_metrics_by_name ON audit.security_metrics (metric_name, measured_at);

SELECT public.make_month_partitions('audit.audit_log', 3);
