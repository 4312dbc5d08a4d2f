SET LOCAL lock_timeout = '100ms';

ALTER TABLE consensus_tasks
    ADD COLUMN estimated_answer integer,
    ADD COLUMN estimated_probability double precision CHECK (estimated_probability BETWEEN 0 AND 1),
    ADD COLUMN estimated_at timestamptz;
ALTER TABLE consensus_tasks DISABLE TRIGGER audit_update;
UPDATE consensus_tasks t SET estimated_answer = e.answer, estimated_probability = e.probability, estimated_at = e.estimated_at
FROM task_estimates e WHERE e.user_id = t.user_id AND e.id = t.id;
ALTER TABLE consensus_tasks ENABLE TRIGGER audit_update;
CREATE INDEX consensus_tasks_to_estimate ON consensus_tasks (user_id, task_kind) WHERE state = 'closed' AND estimated_at IS NULL;
ALTER TABLE consensus_tasks DROP CONSTRAINT times_are_bounded;
ALTER TABLE consensus_tasks ADD CONSTRAINT times_are_bounded CHECK (
    deadline BETWEEN '0001-01-01 00:00:00+00'::timestamptz AND '9999-12-31 23:59:59.999999+00'::timestamptz
    AND closed_at BETWEEN '0001-01-01 00:00:00+00'::timestamptz AND '9999-12-31 23:59:59.999999+00'::timestamptz
    AND created_at BETWEEN '0001-01-01 00:00:00+00'::timestamptz AND '9999-12-31 23:59:59.999999+00'::timestamptz
    AND updated_at BETWEEN '0001-01-01 00:00:00+00'::timestamptz AND '9999-12-31 23:59:59.999999+00'::timestamptz
    AND estimated_at BETWEEN '0001-01-01 00:00:00+00'::timestamptz AND '9999-12-31 23:59:59.999999+00'::timestamptz) NOT VALID;

GRANT SELECT (estimated_at, updated_at) ON consensus_tasks TO memfleet_due;
CREATE OR REPLACE FUNCTION sec.due_consensus_reestimate(integer) RETURNS SETOF integer LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT t.user_id FROM public.consensus_tasks t WHERE t.state = 'closed' AND t.estimated_at IS NULL
    GROUP BY t.user_id ORDER BY min(t.updated_at), t.user_id LIMIT $1
$$;
SELECT sec.revoke_worker('w_memory_reader', '{"task_estimates": ["SELECT"]}');
SELECT sec.revoke_worker('w_consensus_builder', '{"task_estimates": ["SELECT", "INSERT", "UPDATE"]}');
DROP TABLE task_estimates;
