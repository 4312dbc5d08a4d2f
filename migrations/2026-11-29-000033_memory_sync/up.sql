-- Syncs of one session's memory into another (docs/adr/0048, docs/adr/0051): what a row keeps of its history beside its value, what
-- a sync did to each key, and which nodes a session refers to.
SET LOCAL lock_timeout = '100ms';

ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'sync.started' AFTER 'reliability.estimated';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'sync.stopped' AFTER 'sync.started';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'sync.undone' AFTER 'sync.stopped';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'sync.carried' AFTER 'sync.undone';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'sync.disputed' AFTER 'sync.carried';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'sync.completed' AFTER 'sync.disputed';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'sync.failed' AFTER 'sync.completed';

-- A row that was there before counts as written once. A program that does not know the column inserts such a row, too.
ALTER TABLE simple_chat_context
    -- How often the session itself has put or removed the key. A sync does not count.
    ADD COLUMN writes bigint NOT NULL DEFAULT 1,
    -- When JetStream stored the last of these. NULL: at updated_at; or never, if writes is 0.
    ADD COLUMN written_at timestamptz,
    -- How many of these sync_state has taken in.
    ADD COLUMN synced_writes bigint NOT NULL DEFAULT 0,
    -- What syncs know of the key, without values (sync::KeyState::without_values). NULL: no sync has read or written it.
    ADD COLUMN sync_state text,
    -- The same with values. NULL: there are none, or they are encrypted as encrypted_fields.sync_values.
    ADD COLUMN sync_values text,
    ADD CONSTRAINT simple_chat_context_syncs CHECK (synced_writes BETWEEN 0 AND writes AND (sync_values IS NULL OR sync_state IS NOT NULL)) NOT VALID;
ALTER TABLE agent_context_states
    ADD COLUMN writes bigint NOT NULL DEFAULT 1,
    ADD COLUMN written_at timestamptz,
    ADD COLUMN synced_writes bigint NOT NULL DEFAULT 0,
    ADD COLUMN sync_state text,
    ADD COLUMN sync_values text,
    ADD CONSTRAINT agent_context_states_syncs CHECK (synced_writes BETWEEN 0 AND writes AND (sync_values IS NULL OR sync_state IS NOT NULL)) NOT VALID;
-- Removals that syncs know of, until all sessions have seen them.
CREATE INDEX simple_chat_context_removals ON simple_chat_context (user_id) WHERE removed_at IS NOT NULL AND sync_state IS NOT NULL;
CREATE INDEX agent_context_states_removals ON agent_context_states (user_id) WHERE removed_at IS NOT NULL AND sync_state IS NOT NULL;

ALTER TABLE cross_service_memory_sync
    -- contract::SyncFilter.
    ADD COLUMN filter jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(filter) = 'object'),
    -- Whether the token that started it had the scope sync:private.
    ADD COLUMN crosses_private boolean NOT NULL DEFAULT false,
    -- Who started it.
    ADD COLUMN service varchar(64) NOT NULL DEFAULT '',
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN end_reason varchar(16)
        CHECK (end_reason IN ('carried', 'stopped', 'source-ended', 'target-ended', 'expired', 'undone')),
    -- How often it has written something.
    ADD COLUMN rounds bigint NOT NULL DEFAULT 0 CHECK (rounds >= 0),
    -- The logical time of the source when all of it was last read. NULL: not yet.
    ADD COLUMN source_clock bigint,
    -- Whether keys are left that the next round goes on with, after the row with this id.
    ADD COLUMN has_more boolean NOT NULL DEFAULT false,
    ADD COLUMN resume_after uuid,
    -- The logical time of the source when the first of these rounds began.
    ADD COLUMN pass_clock bigint,
    -- When the source was last read.
    ADD COLUMN carried_at timestamptz,
    ADD COLUMN updated_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN undone_at timestamptz;
CREATE INDEX cross_service_memory_sync_running ON cross_service_memory_sync (user_id, source_session_id)
    WHERE sync_status = 'in_progress';
CREATE INDEX cross_service_memory_sync_by_time ON cross_service_memory_sync (user_id, created_at, id);

CREATE SEQUENCE sync_position_sequence;
ALTER SEQUENCE sync_position_sequence OWNER TO memfleet_owner;

-- What a round of a sync did to a key of its target: what it was before, what rules decided, and what lost.
CREATE TABLE sync_changes (
    id uuid NOT NULL,
    user_id integer NOT NULL,
    sync_id uuid NOT NULL,
    source_session_id varchar(128) NOT NULL,
    target_session_id varchar(128) NOT NULL,
    -- Orders the changes of all syncs.
    position bigint NOT NULL DEFAULT nextval('sync_position_sequence'),
    -- Of a memory of an agent.
    agent_id varchar(128),
    memory_tier memorytier,
    context_key varchar(256) NOT NULL,
    -- The node that the target refers to, or the disputed one that was raised.
    node_id uuid,
    effect varchar(16) NOT NULL CHECK (effect IN ('created', 'fast-forward', 'merged', 'failed', 'referenced')),
    -- Why the key cannot be merged.
    reason text,
    -- The cell before (sync::Cell), to take the change back; NULL if the target had no such key, and where it is encrypted.
    before text,
    had_before boolean NOT NULL DEFAULT false,
    -- The digests of the cell before and after, and how often the target itself had written it by then (sync::Applied).
    before_digest char(64),
    after_digest char(64),
    writes bigint NOT NULL DEFAULT 0 CHECK (writes >= 0),
    -- Lists of contract::SyncConflict and contract::SyncCandidate.
    conflicts jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(conflicts) = 'array'),
    disputed jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(disputed) = 'array'),
    -- Whether before, conflicts and disputed are encrypted: they are in encrypted_fields, and markers are in their values' places.
    is_sensitive boolean NOT NULL DEFAULT false,
    changed_at timestamptz NOT NULL DEFAULT now(),
    undone_at timestamptz,
    request_id uuid,
    PRIMARY KEY (user_id, id),
    FOREIGN KEY (user_id, sync_id) REFERENCES cross_service_memory_sync (user_id, id),
    CHECK ((agent_id IS NULL) = (memory_tier IS NULL)),
    CHECK ((effect IN ('created', 'fast-forward', 'merged')) = (after_digest IS NOT NULL))
);
CREATE INDEX sync_changes_by_sync ON sync_changes (user_id, sync_id, position);
CREATE INDEX sync_changes_by_position ON sync_changes (user_id, position);
CREATE INDEX sync_changes_by_target ON sync_changes (user_id, target_session_id, context_key, position);
CREATE INDEX sync_changes_by_source ON sync_changes (user_id, source_session_id, context_key, position);

-- Nodes of the knowledge graph that a session refers to because another session shared them.
CREATE TABLE session_knowledge (
    id uuid NOT NULL,
    user_id integer NOT NULL,
    session_id varchar(128) NOT NULL,
    node_id uuid NOT NULL,
    sync_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    request_id uuid,
    PRIMARY KEY (user_id, id),
    UNIQUE (user_id, session_id, node_id),
    FOREIGN KEY (user_id, session_id) REFERENCES chat_mode_sessions (user_id, session_id),
    FOREIGN KEY (user_id, node_id) REFERENCES consensus_memory_nodes (user_id, id),
    FOREIGN KEY (user_id, sync_id) REFERENCES cross_service_memory_sync (user_id, id)
);
CREATE INDEX session_knowledge_by_sync ON session_knowledge (user_id, sync_id);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['sync_changes', 'session_knowledge'] LOOP
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
CREATE TRIGGER ciphertext_delete AFTER DELETE ON sync_changes FOR EACH ROW WHEN (OLD.is_sensitive)
    EXECUTE FUNCTION sec.drop_ciphertext();

-- Notes that a user's request named a session which the user does not have and another one has: once for a request. What the other
-- one has is not told: not to the publisher, whose request waits for the session and is refused like any other, and not to the role.
-- Session ids are unique within a user, so the same name may be chance; a violation of the severity low says that it happened.
CREATE FUNCTION sec.is_session_of_another(user_id integer, session_id text) RETURNS boolean LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM public.chat_mode_sessions s WHERE s.session_id = $2 AND s.user_id <> $1)
        AND NOT EXISTS (SELECT FROM public.chat_mode_sessions s WHERE s.session_id = $2 AND s.user_id = $1)
$$;
CREATE INDEX chat_mode_sessions_by_name ON chat_mode_sessions (session_id);
CREATE FUNCTION audit.note_foreign_session(of_user integer, of_session text, service text, of_request uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF of_user = ANY (sec.current_user_ids()) AND sec.is_session_of_another(of_user, of_session)
        AND NOT EXISTS (SELECT FROM audit.security_violations v
            WHERE v.violation_type = 'foreign-session' AND v.request_id = of_request) THEN
        INSERT INTO audit.security_violations (subject_token, role_name, service, request_id, violation_type, severity, table_name,
            reason)
        VALUES ((SELECT s.token FROM audit.subjects s WHERE s.user_id = of_user), session_user, left(service, 64), of_request,
            'foreign-session', 'low', 'chat_mode_sessions', 'a sync names a session that another user has');
    END IF;
END $$;
REVOKE EXECUTE ON FUNCTION sec.is_session_of_another, audit.note_foreign_session FROM PUBLIC;
ALTER FUNCTION sec.is_session_of_another OWNER TO memfleet_due;
GRANT EXECUTE ON FUNCTION sec.is_session_of_another TO memfleet_owner;
REVOKE EXECUTE ON FUNCTION sec.is_session_of_another FROM memfleet_due;
ALTER FUNCTION audit.note_foreign_session OWNER TO memfleet_owner;

-- Keeps other syncs of these sessions waiting until the transaction ends. A batch may carry a session's keys on after it has written
-- them, so that its rows are not locked in one order; with this lock, syncs do not wait for each other in a circle. Of the two spaces of
-- advisory locks it uses the one that nothing else does.
CREATE FUNCTION sec.lock_synced_sessions(users integer[], sessions text[]) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    key integer;
    locked integer := 0;
BEGIN
    IF NOT users <@ sec.current_user_ids() THEN
        RAISE insufficient_privilege USING MESSAGE = 'sessions are locked for the users of the security context only';
    END IF;
    FOR key IN SELECT DISTINCT hashtext(s.user_id || ' ' || s.session_id) FROM unnest(users, sessions) AS s (user_id, session_id) ORDER BY 1 LOOP
        PERFORM pg_advisory_xact_lock(33, key);
        locked := locked + 1;
    END LOOP;
    RETURN locked;
END $$;
REVOKE EXECUTE ON FUNCTION sec.lock_synced_sessions FROM PUBLIC;
ALTER FUNCTION sec.lock_synced_sessions OWNER TO memfleet_owner;

SELECT sec.grant_worker('w_memory_sync', '{
    "cross_service_memory_sync": ["SELECT", "INSERT", "UPDATE"],
    "sync_changes": ["SELECT", "INSERT", "UPDATE"],
    "session_knowledge": ["SELECT", "INSERT", "DELETE"],
    "simple_chat_context": ["SELECT", "INSERT", "UPDATE", "DELETE"],
    "agent_context_states": ["SELECT", "INSERT", "UPDATE", "DELETE"],
    "encrypted_fields": ["SELECT", "INSERT", "UPDATE", "DELETE"],
    "consensus_tasks": ["SELECT"],
    "consensus_memory_nodes": ["SELECT", "INSERT", "UPDATE"]}',
    functions => '{"audit.note_foreign_session(integer, text, text, uuid)", "sec.lock_synced_sessions(integer[], text[])"}');
GRANT USAGE ON SEQUENCE sync_position_sequence TO w_memory_sync;
SELECT sec.grant_worker('w_memory_reader', '{
    "cross_service_memory_sync": ["SELECT"], "sync_changes": ["SELECT"], "session_knowledge": ["SELECT"]}', takes_messages => false);

DELETE FROM sec.event_writers WHERE event_type ~ '^sync\.';
INSERT INTO sec.event_writers (role_name, event_type)
SELECT 'w_memory_sync', label FROM unnest(ARRAY['sync.started', 'sync.stopped', 'sync.undone', 'sync.carried', 'sync.disputed',
    'sync.completed', 'sync.failed']) AS label;

-- Whose syncs that run have something to do (a pending one waits for its own request): keys are left, the source has got events since it was read, a session has ended, or
-- their time is over. Who has waited longest comes first.
CREATE FUNCTION sec.due_sync_carry(integer) RETURNS SETOF integer LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.user_id FROM public.cross_service_memory_sync s
    JOIN public.chat_mode_sessions a ON a.user_id = s.user_id AND a.session_id = s.source_session_id
    JOIN public.chat_mode_sessions b ON b.user_id = s.user_id AND b.session_id = s.target_session_id
    LEFT JOIN public.session_clocks c ON c.user_id = s.user_id AND c.session_id = s.source_session_id
    WHERE s.sync_status = 'in_progress'
        AND (s.has_more OR s.source_clock IS NULL OR c.logical_time > s.source_clock OR s.expires_at <= now()
            OR NOT a.is_active OR NOT b.is_active)
    GROUP BY s.user_id ORDER BY min(coalesce(s.carried_at, s.created_at)), s.user_id LIMIT $1
$$;
-- Who has removed keys that syncs know of. Another order each hour, as most cannot be forgotten yet.
CREATE FUNCTION sec.due_sync_forget(integer) RETURNS SETOF integer LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT r.user_id FROM (
        SELECT c.user_id FROM public.simple_chat_context c WHERE c.removed_at IS NOT NULL AND c.sync_state IS NOT NULL
        UNION SELECT a.user_id FROM public.agent_context_states a WHERE a.removed_at IS NOT NULL AND a.sync_state IS NOT NULL
    ) AS r ORDER BY hashint4extended(r.user_id, extract(epoch FROM date_trunc('hour', now()))::bigint) LIMIT $1
$$;
GRANT SELECT (user_id, source_session_id, target_session_id, sync_status, has_more, source_clock, expires_at, carried_at, created_at)
    ON cross_service_memory_sync TO memfleet_due;
GRANT SELECT (user_id, session_id, is_active) ON chat_mode_sessions TO memfleet_due;
GRANT SELECT (user_id, session_id, logical_time) ON session_clocks TO memfleet_due;
GRANT SELECT (user_id, removed_at, sync_state) ON simple_chat_context, agent_context_states TO memfleet_due;
-- Whether anybody has work due for a job of the role that asks: nobody is named, so nothing is minted.
CREATE FUNCTION sec.has_due(of_job text) RETURNS boolean LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    due_function CONSTANT text := (SELECT j.due_function FROM sec.jobs j WHERE j.job = of_job AND j.role_name = session_user);
    found boolean;
BEGIN
    IF due_function IS NULL THEN
        RAISE insufficient_privilege USING MESSAGE = 'the security context is refused: this role has no such job';
    END IF;
    EXECUTE format('SELECT EXISTS (SELECT FROM %s(1) AS u WHERE u >= 0)', due_function) INTO found;
    RETURN found;
END $$;
REVOKE EXECUTE ON FUNCTION sec.has_due FROM PUBLIC;
ALTER FUNCTION sec.has_due OWNER TO memfleet_owner;
SELECT sec.grant_worker('w_memory_sync', functions => '{sec.has_due(text)}');
SELECT sec.add_job('sync-carry', 'w_memory_sync', 'sec.due_sync_carry(integer)');
SELECT sec.add_job('sync-forget', 'w_memory_sync', 'sec.due_sync_forget(integer)');

-- The times of all that the worker may write are bounded as those of other workers are.
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
        WHERE c.oid = ANY (ARRAY['cross_service_memory_sync', 'sync_changes', 'session_knowledge', 'simple_chat_context',
            'agent_context_states']::regclass[])
        GROUP BY c.oid ORDER BY c.oid
    LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT IF EXISTS times_are_bounded', target.name);
        EXECUTE format('ALTER TABLE %s ADD CONSTRAINT times_are_bounded CHECK (%s) NOT VALID', target.name, target.bounds);
    END LOOP;
END $$;
