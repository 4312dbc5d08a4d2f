-- What estimates hold of closed tasks, in a table of their own. The trail keeps digests of whole rows, and a task has the votes of up to
-- 500 agents: writing an estimate into it cost ten times as much (docs/PERFORMANCE.md).
SET LOCAL lock_timeout = '100ms';

CREATE TABLE task_estimates (
    -- The task's id. Every closed task has a row.
    id uuid NOT NULL,
    user_id integer NOT NULL,
    -- What the estimate over many tasks holds to be the answer.
    answer integer,
    probability double precision CHECK (probability BETWEEN 0 AND 1),
    -- When an estimate last took the task in. NULL: none has, or its truth has changed since.
    estimated_at timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now(),
    request_id uuid,
    PRIMARY KEY (user_id, id),
    FOREIGN KEY (user_id, id) REFERENCES consensus_tasks (user_id, id),
    CONSTRAINT times_are_bounded CHECK (
        estimated_at BETWEEN '0001-01-01 00:00:00+00'::timestamptz AND '9999-12-31 23:59:59.999999+00'::timestamptz
        AND updated_at BETWEEN '0001-01-01 00:00:00+00'::timestamptz AND '9999-12-31 23:59:59.999999+00'::timestamptz)
);
INSERT INTO task_estimates (id, user_id, answer, probability, estimated_at, updated_at, request_id)
SELECT t.id, t.user_id, t.estimated_answer, t.estimated_probability, t.estimated_at, t.updated_at, t.request_id
FROM consensus_tasks t WHERE t.state = 'closed';
CREATE INDEX task_estimates_due ON task_estimates (user_id) WHERE estimated_at IS NULL;

ALTER TABLE task_estimates ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON task_estimates USING (user_id = ANY ((SELECT sec.current_user_ids())::integer[]))
    WITH CHECK (user_id = ANY ((SELECT sec.current_user_ids())::integer[]));
CREATE TRIGGER audit_insert AFTER INSERT ON task_estimates REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION audit.audit_trigger_function();
CREATE TRIGGER audit_update AFTER UPDATE ON task_estimates REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION audit.audit_trigger_function();
CREATE TRIGGER audit_delete AFTER DELETE ON task_estimates REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION audit.audit_trigger_function();
ALTER TABLE task_estimates OWNER TO memfleet_owner;
SELECT sec.grant_worker('w_consensus_builder', '{"task_estimates": ["SELECT", "INSERT", "UPDATE"]}');
SELECT sec.grant_worker('w_memory_reader', '{"task_estimates": ["SELECT"]}', takes_messages => false);

CREATE OR REPLACE FUNCTION sec.due_consensus_reestimate(integer) RETURNS SETOF integer LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT e.user_id FROM public.task_estimates e WHERE e.estimated_at IS NULL
    GROUP BY e.user_id ORDER BY min(e.updated_at), e.user_id LIMIT $1
$$;
GRANT SELECT (user_id, estimated_at, updated_at) ON task_estimates TO memfleet_due;
REVOKE SELECT (estimated_at, updated_at) ON consensus_tasks FROM memfleet_due;

-- The check names a column that goes.
ALTER TABLE consensus_tasks DROP CONSTRAINT times_are_bounded;
ALTER TABLE consensus_tasks DROP COLUMN estimated_answer, DROP COLUMN estimated_probability, DROP COLUMN estimated_at;
ALTER TABLE consensus_tasks ADD CONSTRAINT times_are_bounded CHECK (
    deadline BETWEEN '0001-01-01 00:00:00+00'::timestamptz AND '9999-12-31 23:59:59.999999+00'::timestamptz
    AND closed_at BETWEEN '0001-01-01 00:00:00+00'::timestamptz AND '9999-12-31 23:59:59.999999+00'::timestamptz
    AND created_at BETWEEN '0001-01-01 00:00:00+00'::timestamptz AND '9999-12-31 23:59:59.999999+00'::timestamptz
    AND updated_at BETWEEN '0001-01-01 00:00:00+00'::timestamptz AND '9999-12-31 23:59:59.999999+00'::timestamptz) NOT VALID;
