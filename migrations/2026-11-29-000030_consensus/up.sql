-- What consensus-builder writes beside the tables of the reference document: tasks, the dossiers of nodes, the records of agents;
-- and nodes that supersede each other instead of being overwritten (docs/adr/0047).
SET LOCAL lock_timeout = '100ms';

ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'agent.configured' AFTER 'vector.removed';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'agent.retired' AFTER 'agent.configured';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'agent.profiled' AFTER 'agent.retired';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'expert-conversation.started' AFTER 'agent.profiled';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'expert-conversation.phase-changed' AFTER 'expert-conversation.started';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'expert-conversation.ended' AFTER 'expert-conversation.phase-changed';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'task.delegated' AFTER 'expert-conversation.ended';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'task.cancelled' AFTER 'task.delegated';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'response.recorded' AFTER 'task.cancelled';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'knowledge.proposed' AFTER 'response.recorded';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'relation.stored' AFTER 'knowledge.proposed';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'relation.removed' AFTER 'relation.stored';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'verdict.given' AFTER 'relation.removed';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'task.completed' AFTER 'verdict.given';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'node.established' AFTER 'task.completed';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'node.superseded' AFTER 'node.established';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'reliability.estimated' AFTER 'node.superseded';

-- The family of the model, such as that of a vendor: agents of one family make the same mistakes.
ALTER TABLE agent_configurations ADD COLUMN model_family varchar(100);

-- A question to several agents. Its answers are in agent_responses, its delegations to each of them in task_delegations.
CREATE TABLE consensus_tasks (
    id uuid NOT NULL,
    user_id integer NOT NULL,
    session_id varchar(128) NOT NULL,
    pm_agent_id varchar(128) NOT NULL,
    question text NOT NULL,
    task_kind varchar(64) NOT NULL,
    node_type varchar(128) NOT NULL,
    node_key varchar(256) NOT NULL,
    title varchar(512) NOT NULL,
    semantic_tags jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(semantic_tags) = 'array'),
    -- The fixed answers, if there are some.
    options jsonb CHECK (jsonb_typeof(options) = 'array'),
    quorum integer NOT NULL CHECK (quorum BETWEEN 1 AND asked),
    asked integer NOT NULL CHECK (asked BETWEEN 1 AND 500),
    -- The agents that have responded before the close, and those of them whose latest response is no abstention.
    responded integer NOT NULL DEFAULT 0 CHECK (responded BETWEEN 0 AND asked),
    answered integer NOT NULL DEFAULT 0 CHECK (answered BETWEEN 0 AND responded),
    deadline timestamptz,
    state varchar(16) NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'closed', 'cancelled')),
    close_reason varchar(16) CHECK (close_reason IN ('quorum', 'all-answered', 'deadline')),
    closed_at timestamptz,
    node_id uuid,
    -- Of a closed task, for estimates over many of them: who voted, for which option (of a task without options: which cluster of
    -- the dossier; NULL for an abstention), and how sure the agent said it was.
    voters text[],
    choices integer[],
    confidences double precision[],
    -- The choice that a verdict confirmed.
    truth integer,
    -- What the estimate over many tasks holds to be the answer, and when it last took this task in.
    estimated_answer integer,
    estimated_probability double precision CHECK (estimated_probability BETWEEN 0 AND 1),
    estimated_at timestamptz,
    -- Not a foreign key: the event is written in the same transaction.
    event_id uuid,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    request_id uuid,
    PRIMARY KEY (user_id, id),
    FOREIGN KEY (user_id, session_id) REFERENCES multi_agent_conversations (user_id, session_id),
    FOREIGN KEY (user_id, node_id) REFERENCES consensus_memory_nodes (user_id, id),
    CHECK ((state = 'closed') = (closed_at IS NOT NULL AND close_reason IS NOT NULL AND node_id IS NOT NULL)),
    CHECK (cardinality(voters) = cardinality(choices) AND cardinality(voters) = cardinality(confidences))
);
CREATE INDEX consensus_tasks_due ON consensus_tasks (deadline) WHERE state = 'open' AND deadline IS NOT NULL;
CREATE INDEX consensus_tasks_to_estimate ON consensus_tasks (user_id, task_kind) WHERE state = 'closed' AND estimated_at IS NULL;
CREATE INDEX consensus_tasks_by_kind ON consensus_tasks (user_id, task_kind, closed_at) WHERE state = 'closed';
CREATE INDEX consensus_tasks_by_session ON consensus_tasks (user_id, session_id, created_at);

ALTER TABLE task_delegations
    ADD COLUMN task_id uuid,
    -- Whether the agent's latest response before the close is no abstention. NULL: it has not responded.
    ADD COLUMN has_answered boolean,
    -- The place of that response in the stream.
    ADD COLUMN response_sequence bigint,
    ADD FOREIGN KEY (user_id, task_id) REFERENCES consensus_tasks (user_id, id),
    ADD UNIQUE (user_id, task_id, target_agent_id);

ALTER TABLE agent_responses
    -- Not stated is not the same as a half.
    ALTER COLUMN confidence_score DROP NOT NULL,
    ALTER COLUMN confidence_score DROP DEFAULT,
    ALTER COLUMN processing_time_seconds DROP NOT NULL,
    ADD COLUMN task_id uuid,
    ADD COLUMN claim jsonb,
    ADD COLUMN evidence jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(evidence) = 'array'),
    -- Orders the responses of an agent.
    ADD COLUMN stored_sequence bigint NOT NULL DEFAULT 0,
    -- False for a response that came after the close.
    ADD COLUMN is_counted boolean NOT NULL DEFAULT true,
    -- The vector of the text: floats of 32 bits, little-endian.
    ADD COLUMN embedding bytea CHECK (octet_length(embedding) BETWEEN 4 AND 32768),
    ADD COLUMN embedding_model varchar(100),
    -- Not a foreign key: the event is written in the same transaction.
    ADD COLUMN event_id uuid,
    ADD CHECK ((embedding IS NULL) = (embedding_model IS NULL)),
    ADD FOREIGN KEY (user_id, task_id) REFERENCES consensus_tasks (user_id, id);
CREATE INDEX agent_responses_to_count ON agent_responses (user_id, task_id) WHERE is_counted;

ALTER TABLE consensus_memory_nodes
    ADD COLUMN task_id uuid,
    -- The response whose answer the node has.
    ADD COLUMN response_id uuid,
    -- Rows from before this column are valid since before it.
    ADD COLUMN valid_from timestamptz NOT NULL DEFAULT '1970-01-01 00:00:00+00',
    ADD COLUMN valid_to timestamptz,
    ADD COLUMN superseded_by uuid,
    ADD COLUMN verdict varchar(16) CHECK (verdict IN ('confirmed', 'rejected')),
    ADD COLUMN verdict_by varchar(128),
    ADD COLUMN verdict_reason text,
    ADD COLUMN verdict_at timestamptz,
    ADD COLUMN verdict_sequence bigint,
    ADD COLUMN rules_version integer,
    ADD COLUMN inputs_sha256 char(64),
    ADD CONSTRAINT consensus_memory_nodes_interval CHECK (valid_to >= valid_from),
    ADD CONSTRAINT consensus_memory_nodes_succession CHECK (superseded_by IS NULL OR (valid_to IS NOT NULL AND superseded_by <> id)),
    -- The successor is inserted after its predecessor has made room for it in the index of valid nodes.
    ADD FOREIGN KEY (user_id, superseded_by) REFERENCES consensus_memory_nodes (user_id, id) DEFERRABLE INITIALLY DEFERRED,
    ADD FOREIGN KEY (user_id, task_id) REFERENCES consensus_tasks (user_id, id),
    ADD FOREIGN KEY (user_id, response_id) REFERENCES agent_responses (user_id, id),
    DROP CONSTRAINT consensus_memory_nodes_user_id_node_type_node_key_key;
ALTER TABLE consensus_memory_nodes ALTER COLUMN valid_from SET DEFAULT now();
-- Of one key, one validated node is valid at a time.
CREATE UNIQUE INDEX consensus_memory_nodes_one_valid ON consensus_memory_nodes (user_id, node_type, node_key)
    WHERE validation_status = 'validated' AND valid_to IS NULL;
CREATE INDEX consensus_memory_nodes_by_key ON consensus_memory_nodes (user_id, node_key, node_type);
CREATE INDEX consensus_memory_nodes_by_time ON consensus_memory_nodes (user_id, established_at, id);
-- Enumerations are not compared by leakproof functions, so that under row-level security only its first column was used
-- (docs/adr/0016).
DROP INDEX idx_consensus_validation;

ALTER TABLE consensus_memory_relations
    -- A removed relation keeps its row, so that an older request that comes late does not restore it.
    ADD COLUMN removed_at timestamptz;

-- What a node rests on. The inputs are those of consensus::Inputs without their standing, which changes with verdicts and with
-- succession: the dossier is then computed anew.
CREATE TABLE consensus_dossiers (
    id uuid NOT NULL,
    user_id integer NOT NULL,
    inputs bytea NOT NULL,
    standing jsonb NOT NULL,
    dossier bytea NOT NULL,
    rules_version integer NOT NULL,
    inputs_sha256 char(64) NOT NULL,
    computed_at timestamptz NOT NULL DEFAULT now(),
    request_id uuid,
    -- The node's id.
    PRIMARY KEY (user_id, id),
    FOREIGN KEY (user_id, id) REFERENCES consensus_memory_nodes (user_id, id)
);

-- How often agents were right, as far as the estimate over a user's closed tasks knows, in millionths.
CREATE TABLE agent_records (
    id uuid NOT NULL,
    user_id integer NOT NULL REFERENCES users (id),
    agent_id varchar(128) NOT NULL,
    task_kind varchar(64) NOT NULL,
    right_micro bigint NOT NULL CHECK (right_micro >= 0),
    wrong_micro bigint NOT NULL CHECK (wrong_micro >= 0),
    -- The sum of the confidences that it stated with these answers.
    confidence_micro bigint NOT NULL CHECK (confidence_micro BETWEEN 0 AND right_micro + wrong_micro),
    estimated_at timestamptz NOT NULL DEFAULT now(),
    request_id uuid,
    PRIMARY KEY (user_id, id),
    UNIQUE (user_id, agent_id, task_kind)
);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['consensus_tasks', 'consensus_dossiers', 'agent_records'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY own_rows ON %I USING (user_id = ANY ((SELECT sec.current_user_ids())::integer[]))
            WITH CHECK (user_id = ANY ((SELECT sec.current_user_ids())::integer[]))', name);
        EXECUTE format('CREATE TRIGGER audit_insert AFTER INSERT ON %I REFERENCING NEW TABLE AS new_rows
            FOR EACH STATEMENT EXECUTE FUNCTION audit.audit_trigger_function()', name);
        EXECUTE format('CREATE TRIGGER audit_update AFTER UPDATE ON %I REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
            FOR EACH STATEMENT EXECUTE FUNCTION audit.audit_trigger_function()', name);
        EXECUTE format('CREATE TRIGGER audit_delete AFTER DELETE ON %I REFERENCING OLD TABLE AS old_rows
            FOR EACH STATEMENT EXECUTE FUNCTION audit.audit_trigger_function()', name);
        EXECUTE format('ALTER TABLE %I OWNER TO memfleet_owner', name);
    END LOOP;
END $$;

SELECT sec.grant_worker('w_consensus_builder', '{
    "agent_configurations": ["SELECT", "INSERT", "UPDATE"],
    "agent_profiles": ["SELECT", "INSERT", "UPDATE"],
    "multi_agent_conversations": ["SELECT", "INSERT", "UPDATE"],
    "consensus_tasks": ["SELECT", "INSERT", "UPDATE"],
    "task_delegations": ["SELECT", "INSERT", "UPDATE"],
    "agent_responses": ["SELECT", "INSERT"],
    "consensus_memory_nodes": ["SELECT", "INSERT", "UPDATE"],
    "consensus_memory_relations": ["SELECT", "INSERT", "UPDATE"],
    "consensus_dossiers": ["SELECT", "INSERT", "UPDATE"],
    "agent_records": ["SELECT", "INSERT", "UPDATE"]}');
SELECT sec.grant_worker('w_memory_reader', '{
    "agent_configurations": ["SELECT"], "agent_profiles": ["SELECT"], "multi_agent_conversations": ["SELECT"],
    "consensus_tasks": ["SELECT"], "task_delegations": ["SELECT"], "agent_responses": ["SELECT"],
    "consensus_dossiers": ["SELECT"], "agent_records": ["SELECT"]}', takes_messages => false);

-- The labels stay when this is taken back, so that an earlier migration that runs again may have given them to another role.
DELETE FROM sec.event_writers WHERE event_type ~ '^(agent|expert-conversation|task|response|knowledge|relation|verdict|node|reliability)\.';
INSERT INTO sec.event_writers (role_name, event_type)
SELECT 'w_consensus_builder', label FROM unnest(ARRAY['agent.configured', 'agent.retired', 'agent.profiled',
    'expert-conversation.started', 'expert-conversation.phase-changed', 'expert-conversation.ended', 'task.delegated',
    'task.cancelled', 'response.recorded', 'knowledge.proposed', 'relation.stored', 'relation.removed', 'verdict.given',
    'task.completed', 'node.established', 'node.superseded', 'reliability.estimated']) AS label;

-- Whose tasks are past their deadline.
CREATE FUNCTION sec.due_consensus_close(integer) RETURNS SETOF integer LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT t.user_id FROM public.consensus_tasks t
    WHERE t.state = 'open' AND t.deadline IS NOT NULL AND t.deadline <= now()
    GROUP BY t.user_id ORDER BY min(t.deadline), t.user_id LIMIT $1
$$;
-- Who has closed tasks that no estimate has taken in yet.
CREATE FUNCTION sec.due_consensus_reestimate(integer) RETURNS SETOF integer LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT DISTINCT t.user_id FROM public.consensus_tasks t WHERE t.state = 'closed' AND t.estimated_at IS NULL ORDER BY 1 LIMIT $1
$$;
GRANT SELECT (user_id, state, deadline, estimated_at) ON consensus_tasks TO memfleet_due;
SELECT sec.add_job('consensus-close', 'w_consensus_builder', 'sec.due_consensus_close(integer)');
SELECT sec.add_job('consensus-reestimate', 'w_consensus_builder', 'sec.due_consensus_reestimate(integer)');

-- The times that the worker may write now are bounded as those of other workers are.
DO $$
DECLARE
    target record;
BEGIN
    FOR target IN
        SELECT c.oid::regclass AS name, string_agg(format(
            '%I BETWEEN ''0001-01-01 00:00:00+00''::timestamptz AND ''9999-12-31 23:59:59.999999+00''::timestamptz', a.attname),
            ' AND ' ORDER BY a.attnum) AS bounds
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
            AND a.atttypid = 'timestamptz'::regtype
        WHERE c.oid = ANY (ARRAY['agent_configurations', 'agent_profiles', 'multi_agent_conversations', 'consensus_tasks',
            'task_delegations', 'agent_responses', 'consensus_memory_nodes', 'consensus_memory_relations', 'consensus_dossiers',
            'agent_records']::regclass[])
        GROUP BY c.oid ORDER BY c.oid
    LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT IF EXISTS times_are_bounded', target.name);
        EXECUTE format('ALTER TABLE %s ADD CONSTRAINT times_are_bounded CHECK (%s) NOT VALID', target.name, target.bounds);
    END LOOP;
END $$;
