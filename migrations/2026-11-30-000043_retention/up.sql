-- Retention: policies and legal holds, what they say of each row, and what the job retention-sweep needs (docs/adr/0052).
SET LOCAL lock_timeout = '100ms';

ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'policy.stored' AFTER 'sync.failed';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'policy.removed' AFTER 'policy.stored';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'policy.held' AFTER 'policy.removed';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'retention.swept' AFTER 'policy.held';

-- A removed policy keeps its row with is_active = false, so that an older request that comes late does not restore it.
ALTER TABLE data_retention_policies
    ADD COLUMN access_tier varchar(16) CHECK (access_tier IN ('private', 'shared', 'public', 'consensus')),
    DROP CONSTRAINT data_retention_policies_user_id_table_name_chat_mode_key,
    ADD CONSTRAINT data_retention_policies_one_for_rows UNIQUE NULLS NOT DISTINCT (user_id, table_name, chat_mode, access_tier);
-- What the sweep cannot carry out is no policy, whoever writes it. Streams keep requests for seven days, and what recognizes a late one is
-- kept for longer.
UPDATE data_retention_policies SET is_active = false;
ALTER TABLE data_retention_policies ADD CONSTRAINT can_be_carried_out CHECK (NOT is_active OR (
    (action = 'delete' OR action = 'anonymise' AND table_name = 'router_decision_log')
    AND (keep_days >= 8 OR table_name NOT IN ('blackboard_events', 'tombstones', 'inbox'))));

-- NULLs cover everything: all tables, all chat modes, all tiers. A hold of user 0 covers all users.
CREATE TABLE retention_holds (
    id uuid NOT NULL,
    user_id integer NOT NULL,
    table_name varchar(128),
    chat_mode chat_mode,
    access_tier varchar(16) CHECK (access_tier IN ('private', 'shared', 'public', 'consensus')),
    reason text NOT NULL,
    released_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    request_id uuid,
    PRIMARY KEY (user_id, id)
);
ALTER TABLE retention_holds ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON retention_holds USING (user_id = ANY ((SELECT sec.current_user_ids())::integer[]))
    WITH CHECK (user_id = ANY ((SELECT sec.current_user_ids())::integer[]));
CREATE TRIGGER audit_insert AFTER INSERT ON retention_holds REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION audit.audit_trigger_function();
CREATE TRIGGER audit_delete AFTER DELETE ON retention_holds REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION audit.audit_trigger_function();
CREATE INDEX retention_holds_in_force ON retention_holds (user_id) WHERE released_at IS NULL;
ALTER TABLE retention_holds OWNER TO memfleet_owner;

-- Requests set policies and holds, whose services have tokens for their users. A job has grants of the platform and of all whose rows are
-- due; a role that set the platform's policies under them would make rows of everybody due.
CREATE FUNCTION sec.refuse_jobs() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    services CONSTANT jsonb := sec.context_services();
BEGIN
    IF EXISTS (SELECT FROM sec.worker_privileges w WHERE w.role_name = session_user)
        AND EXISTS (SELECT FROM unnest(ARRAY[NEW.user_id, CASE TG_OP WHEN 'UPDATE' THEN OLD.user_id ELSE NEW.user_id END]) AS u (id)
            WHERE NOT EXISTS (SELECT FROM string_to_table(services ->> u.id::text, ', ') AS s (name) WHERE s.name NOT LIKE 'job:%')) THEN
        RAISE insufficient_privilege USING
            MESSAGE = format('permission denied: %I is changed by requests, and not by jobs', TG_TABLE_NAME);
    END IF;
    RETURN NEW;
END $$;
ALTER FUNCTION sec.refuse_jobs OWNER TO memfleet_owner;
REVOKE EXECUTE ON FUNCTION sec.refuse_jobs FROM PUBLIC;
CREATE TRIGGER refuse_jobs BEFORE INSERT OR UPDATE ON data_retention_policies FOR EACH ROW EXECUTE FUNCTION sec.refuse_jobs();
CREATE TRIGGER refuse_jobs BEFORE INSERT OR UPDATE ON retention_holds FOR EACH ROW EXECUTE FUNCTION sec.refuse_jobs();

-- The policies of the platform. Contexts expire by themselves, too.
INSERT INTO data_retention_policies (id, user_id, table_name, keep_days, action)
SELECT gen_random_uuid(), 0, p.table_name, p.keep_days, 'delete' FROM (VALUES
    ('simple_chat_context', 90), ('agent_context_states', 90), ('chat_mode_sessions', 365), ('router_decision_log', 180),
    ('unified_memory_vectors', 730), ('cross_service_memory_sync', 180), ('blackboard_events', 730), ('tombstones', 30), ('inbox', 8)
) AS p (table_name, keep_days) ON CONFLICT DO NOTHING;

-- How far the sweep is: it takes the users in the order of their ids, and begins anew after the last one. One run at a time locks it.
CREATE TABLE retention_state (
    -- There is one row.
    id boolean PRIMARY KEY DEFAULT true CHECK (id),
    -- The last user of the slice before.
    after_user integer NOT NULL DEFAULT -1,
    -- How many users a slice has. Few while there is much to remove: to find out whose rows are due takes a time for each of them.
    slice_users integer NOT NULL DEFAULT 200 CHECK (slice_users BETWEEN 1 AND 1000),
    -- How many runs in a row have left something in a slice of so many users. It has more of them, and in the end those of one user.
    slice_runs integer NOT NULL DEFAULT 0 CHECK (slice_runs >= 0),
    -- When the pass over all users began, and the one before was completed.
    pass_started_at timestamptz,
    pass_completed_at timestamptz
);
INSERT INTO retention_state DEFAULT VALUES;
ALTER TABLE retention_state OWNER TO memfleet_owner;

-- The runs of scheduled jobs, by their ticks: all that changed something, left something out or failed, and of the others the last one
-- of each job. Nothing of a user. Workers write it by sec.note_job_run alone.
CREATE TABLE job_runs (
    -- The id of the tick.
    id uuid NOT NULL,
    job varchar(48) NOT NULL,
    started_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- How often it was tried: again after a failure.
    tries integer NOT NULL DEFAULT 1 CHECK (tries > 0),
    -- What was due, what of it was changed, and what was left to the next run, since another transaction held it. Of retention-sweep
    -- these are rows; of other jobs, users who had work due, and events.
    examined bigint NOT NULL CHECK (examined >= 0),
    changed bigint NOT NULL CHECK (changed >= 0),
    skipped bigint NOT NULL CHECK (skipped >= 0),
    failure text,
    -- More of what it did, by job.
    details jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(details) = 'object'),
    is_idle boolean NOT NULL GENERATED ALWAYS AS (changed = 0 AND skipped = 0 AND failure IS NULL) STORED,
    -- Not the id alone: a role that knows the ids of another's ticks would note them first.
    PRIMARY KEY (job, id)
);
CREATE INDEX job_runs_by_job ON job_runs (job, started_at);
CREATE UNIQUE INDEX job_runs_idle ON job_runs (job) WHERE is_idle;
ALTER TABLE job_runs OWNER TO memfleet_owner;

-- Notes a run of a job of this role. A job keeps its last 1,000 runs, for 30 days.
--
-- If not even the grants of a retention-sweep can be minted, the next one is of one user, and it passes over this one if that fails, too:
-- nobody's rows keep the sweep from others.
CREATE FUNCTION sec.note_job_run(of_job text, tick uuid, began timestamptz, due bigint, done bigint, left_out bigint, problem text,
    more text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    earlier integer;
BEGIN
    IF NOT EXISTS (SELECT FROM sec.jobs j WHERE j.job = of_job AND j.role_name = session_user) THEN
        RAISE insufficient_privilege USING MESSAGE = 'the security context is refused: this role has no such job';
    END IF;
    DELETE FROM public.job_runs r WHERE r.id = tick AND r.job = of_job RETURNING r.tries INTO earlier;
    INSERT INTO public.job_runs AS r (id, job, started_at, tries, examined, changed, skipped, failure, details)
    VALUES (tick, of_job, began, coalesce(earlier, 0) + 1, due, done, left_out, left(problem, 2000), more::jsonb)
    ON CONFLICT (job) WHERE is_idle DO UPDATE SET id = excluded.id, started_at = excluded.started_at, finished_at = excluded.finished_at,
        tries = excluded.tries, examined = excluded.examined, details = excluded.details;
    -- A few at a time, and more than are added.
    DELETE FROM public.job_runs r WHERE r.job = of_job AND r.id IN (SELECT o.id FROM public.job_runs o WHERE o.job = of_job AND o.started_at < greatest(
            began - interval '30 days', (SELECT n.started_at FROM public.job_runs n WHERE n.job = of_job
                ORDER BY n.started_at DESC OFFSET 1000 LIMIT 1))
        ORDER BY o.started_at LIMIT 10 FOR UPDATE SKIP LOCKED);
    IF of_job = 'retention-sweep' AND problem IS NOT NULL AND due = 0 AND done = 0 THEN
        PERFORM FROM public.retention_state FOR UPDATE SKIP LOCKED;
        IF FOUND THEN
            UPDATE public.retention_state s SET slice_runs = 0, slice_users = 1,
                after_user = CASE WHEN s.slice_users = 1 THEN coalesce(sec.retention_slice(), -1) ELSE s.after_user END;
        END IF;
    END IF;
END $$;
REVOKE EXECUTE ON FUNCTION sec.note_job_run FROM PUBLIC;
ALTER FUNCTION sec.note_job_run OWNER TO memfleet_owner;

-- What every worker may call.
CREATE OR REPLACE FUNCTION sec.worker_functions() RETURNS regprocedure[] LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT ARRAY['sec.open_context(text[], text, text)', 'sec.current_user_ids()', 'sec.context()',
        'public.set_security_context(integer, text, text)', 'public.get_current_user_id()',
        'public.get_current_session_id()', 'public.get_current_service_name()', 'public.validate_security_context()',
        'sec.excess_privileges()', 'sec.end_old_transactions()', 'sec.trust_version()', 'sec.trust_state()',
        'sec.note_token_use(uuid[], timestamptz[])',
        'sec.own_event_types()', 'sec.note_unpublished(integer)', 'sec.note_published(bigint[], uuid[])', 'sec.unpublished()',
        'sec.note_job_run(text, uuid, timestamptz, bigint, bigint, bigint, text, text)',
        'audit.record_refused_tokens(text[], text[], integer[], text[], uuid[])',
        'audit.check_security_violation(text, text, integer, text, uuid)',
        'audit.log_data_access(text, text, integer[], uuid[], bigint[])',
        'audit.log_vector_operation(text, text, integer[], uuid[], bigint[])']::regprocedure[]
$$;
DO $$
BEGIN
    EXECUTE format('GRANT EXECUTE ON FUNCTION sec.note_job_run TO %s',
        (SELECT string_agg(DISTINCT quote_ident(w.role_name), ', ') FROM sec.worker_privileges w));
END $$;

-- What was anonymised keeps its numbers.
ALTER TABLE router_decision_log ADD COLUMN anonymised_at timestamptz;
-- Of a memory that retention removed: points may be left in the vector store.
ALTER TABLE unified_memory_vectors ADD COLUMN has_points boolean NOT NULL DEFAULT false;

-- What the platform's policies and holds say, for whoever acts for other users. Nothing of a user.
CREATE FUNCTION sec.platform_policies(of_table text) RETURNS TABLE (id uuid, chat_mode public.chat_mode, access_tier text, keep_days integer,
    action public.retention_action) LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT p.id, p.chat_mode, p.access_tier::text, p.keep_days, p.action FROM public.data_retention_policies p
    WHERE p.user_id = 0 AND p.table_name = of_table AND p.is_active
$$;
CREATE FUNCTION sec.platform_holds() RETURNS TABLE (table_name text, chat_mode public.chat_mode, access_tier text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT h.table_name::text, h.chat_mode, h.access_tier::text FROM public.retention_holds h WHERE h.user_id = 0 AND h.released_at IS NULL
$$;

-- The kinds of rows of a table: a chat mode, or none, and an access tier, or none.
CREATE FUNCTION sec.kinds_of_rows(of_table text) RETURNS TABLE (chat_mode public.chat_mode, access_tier text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT m.mode, t.tier FROM (SELECT unnest(enum_range(NULL::public.chat_mode)) AS mode UNION ALL SELECT NULL) AS m
    CROSS JOIN (SELECT unnest(ARRAY['private', 'shared', 'public', 'consensus']) AS tier UNION ALL SELECT NULL) AS t
    WHERE t.tier IS NULL OR of_table IN ('simple_chat_context', 'agent_context_states')
$$;

-- The kinds of rows of users that are under a hold. This function and those below read as who calls them: a worker what its context shows.
-- What they cost does not depend on how many holds cover the same kind.
CREATE FUNCTION sec.held_kinds(users integer[], of_table text) RETURNS TABLE (user_id integer, chat_mode public.chat_mode, access_tier text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH held AS MATERIALIZED (
        SELECT o.user_id, o.chat_mode, o.access_tier::text AS access_tier FROM public.retention_holds o
        WHERE o.user_id = ANY (users) AND o.released_at IS NULL AND (o.table_name IS NULL OR o.table_name = of_table)
        UNION SELECT u.id, p.chat_mode, p.access_tier
        FROM (SELECT DISTINCT h.chat_mode, h.access_tier FROM sec.platform_holds() AS h
            WHERE h.table_name IS NULL OR h.table_name = of_table) AS p
        CROSS JOIN (SELECT DISTINCT id FROM unnest(users) AS given (id)) AS u
    )
    SELECT DISTINCT h.user_id, k.chat_mode, k.access_tier FROM held h JOIN sec.kinds_of_rows(of_table) AS k
        ON (h.chat_mode IS NULL OR h.chat_mode = k.chat_mode) AND (h.access_tier IS NULL OR h.access_tier = k.access_tier)
$$;

-- The policy that decides about each kind of rows of users: the most specific one, and none under a hold. Most users have no policies of
-- their own, and what the platform says is found once for all of them.
CREATE FUNCTION sec.retention_rules(users integer[], of_table text) RETURNS TABLE (user_id integer, chat_mode public.chat_mode,
    access_tier text, policy_id uuid, keep_days integer, action public.retention_action)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH own AS MATERIALIZED (
        SELECT o.user_id, o.id, o.chat_mode, o.access_tier::text AS access_tier, o.keep_days, o.action FROM public.data_retention_policies o
        WHERE o.user_id = ANY (users) AND o.user_id <> 0 AND o.table_name = of_table AND o.is_active
    ), asked AS MATERIALIZED (
        SELECT u.id, coalesce(w.user_id, 0) AS of_user FROM (SELECT DISTINCT id FROM unnest(users) AS given (id)) AS u
        LEFT JOIN (SELECT DISTINCT o.user_id FROM own o) AS w ON w.user_id = u.id
    ), rules AS MATERIALIZED (
        SELECT DISTINCT ON (p.of_user, k.chat_mode, k.access_tier) p.of_user, k.chat_mode, k.access_tier, p.id, p.keep_days, p.action
        FROM (SELECT o.user_id AS of_user, true AS is_own, o.id, o.chat_mode, o.access_tier, o.keep_days, o.action FROM own o
            UNION ALL SELECT a.of_user, false, f.* FROM (SELECT DISTINCT of_user FROM asked) AS a
            CROSS JOIN sec.platform_policies(of_table) AS f) AS p
        JOIN sec.kinds_of_rows(of_table) AS k
            ON (p.chat_mode IS NULL OR p.chat_mode = k.chat_mode) AND (p.access_tier IS NULL OR p.access_tier = k.access_tier)
        ORDER BY p.of_user, k.chat_mode, k.access_tier, p.is_own DESC, p.chat_mode IS NOT NULL DESC, p.access_tier IS NOT NULL DESC
    )
    SELECT a.id, r.chat_mode, r.access_tier, r.id, r.keep_days, r.action FROM asked a JOIN rules r ON r.of_user = a.of_user
    WHERE NOT EXISTS (SELECT FROM sec.held_kinds(users, of_table) AS h WHERE h.user_id = a.id
        AND h.chat_mode IS NOT DISTINCT FROM r.chat_mode AND h.access_tier IS NOT DISTINCT FROM r.access_tier)
$$;

-- The rows that are due, by table. Each gives at most so many, with the policy that decides; of those that can be archived, rows with this
-- action, or with any if it is NULL.
CREATE FUNCTION sec.due_expired_contexts(users integer[], at timestamptz, most integer) RETURNS TABLE (user_id integer, id uuid)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.user_id, c.id FROM public.simple_chat_context c
    JOIN public.chat_mode_sessions s ON s.user_id = c.user_id AND s.session_id = c.session_id
    WHERE c.user_id = ANY (users) AND c.removed_at IS NULL AND c.expires_at <= at
        AND NOT EXISTS (SELECT FROM sec.held_kinds(users, 'simple_chat_context') AS h
            WHERE h.user_id = c.user_id AND h.chat_mode = s.chat_mode AND h.access_tier = c.access_level::text)
    LIMIT most
$$;
CREATE FUNCTION sec.due_expired_agent_contexts(users integer[], at timestamptz, most integer) RETURNS TABLE (user_id integer, id uuid)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT a.user_id, a.id FROM public.agent_context_states a
    LEFT JOIN public.chat_mode_sessions s ON s.user_id = a.user_id AND s.session_id = a.session_id
    WHERE a.user_id = ANY (users) AND a.removed_at IS NULL AND a.expires_at <= at
        AND NOT EXISTS (SELECT FROM sec.held_kinds(users, 'agent_context_states') AS h
            WHERE h.user_id = a.user_id AND h.chat_mode IS NOT DISTINCT FROM s.chat_mode AND h.access_tier = a.memory_tier::text)
    LIMIT most
$$;
-- Contexts of sessions that have ended, unless a sync still reads or writes them.
CREATE FUNCTION sec.due_contexts(users integer[], at timestamptz, most integer,
    of_action public.retention_action DEFAULT 'delete') RETURNS TABLE (user_id integer, id uuid, policy_id uuid)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.user_id, c.id, r.policy_id FROM sec.retention_rules(users, 'simple_chat_context') AS r
    JOIN public.chat_mode_sessions s ON s.user_id = r.user_id AND s.chat_mode = r.chat_mode
        AND s.ended_at <= at - make_interval(days => r.keep_days)
    JOIN public.simple_chat_context c ON c.user_id = s.user_id AND c.session_id = s.session_id AND c.access_level::text = r.access_tier
    WHERE (of_action IS NULL OR r.action = of_action) AND NOT c.is_persistent
        AND NOT EXISTS (SELECT FROM public.cross_service_memory_sync y WHERE y.user_id = s.user_id
        AND s.session_id IN (y.source_session_id, y.target_session_id) AND y.sync_status IN ('pending', 'in_progress'))
    LIMIT most
$$;
CREATE FUNCTION sec.due_agent_contexts(users integer[], at timestamptz, most integer,
    of_action public.retention_action DEFAULT 'delete') RETURNS TABLE (user_id integer, id uuid, policy_id uuid)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT a.user_id, a.id, r.policy_id FROM sec.retention_rules(users, 'agent_context_states') AS r
    JOIN public.chat_mode_sessions s ON s.user_id = r.user_id AND s.chat_mode = r.chat_mode
        AND s.ended_at <= at - make_interval(days => r.keep_days)
    JOIN public.agent_context_states a ON a.user_id = s.user_id AND a.session_id = s.session_id AND a.memory_tier::text = r.access_tier
    WHERE (of_action IS NULL OR r.action = of_action)
        AND NOT EXISTS (SELECT FROM public.cross_service_memory_sync y WHERE y.user_id = s.user_id
        AND s.session_id IN (y.source_session_id, y.target_session_id) AND y.sync_status IN ('pending', 'in_progress'))
    LIMIT most
$$;
CREATE FUNCTION sec.due_decisions(users integer[], at timestamptz, most integer,
    of_action public.retention_action DEFAULT 'delete')
RETURNS TABLE (user_id integer, id uuid, policy_id uuid, action public.retention_action)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT d.user_id, d.id, r.policy_id, r.action FROM sec.retention_rules(users, 'router_decision_log') AS r
    JOIN public.chat_mode_sessions s ON s.user_id = r.user_id AND s.chat_mode = r.chat_mode
    JOIN public.router_decision_log d ON d.user_id = s.user_id AND d.session_id = s.session_id
        AND d.created_at <= at - make_interval(days => r.keep_days)
    WHERE r.access_tier IS NULL AND (of_action IS NULL OR r.action = of_action)
        AND (r.action <> 'anonymise' OR d.anonymised_at IS NULL)
    LIMIT most
$$;
CREATE FUNCTION sec.due_memories(users integer[], at timestamptz, most integer)
RETURNS TABLE (user_id integer, id uuid, policy_id uuid, updated_at timestamptz) LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH rules AS MATERIALIZED (SELECT * FROM sec.retention_rules(users, 'unified_memory_vectors') AS r WHERE r.access_tier IS NULL)
    SELECT v.user_id, v.id, r.policy_id, v.updated_at
    FROM (SELECT r.user_id, max(at - make_interval(days => r.keep_days)) AS latest FROM rules r GROUP BY r.user_id) AS u
    JOIN public.unified_memory_vectors v ON v.user_id = u.user_id AND v.updated_at <= u.latest AND v.removed_at IS NULL AND NOT v.is_of_node
    LEFT JOIN public.chat_mode_sessions s ON s.user_id = v.user_id AND s.session_id = v.session_id
    JOIN rules r ON r.user_id = v.user_id AND r.chat_mode IS NOT DISTINCT FROM s.chat_mode
        AND v.updated_at <= at - make_interval(days => r.keep_days)
    LIMIT most
$$;
CREATE FUNCTION sec.due_syncs(users integer[], at timestamptz, most integer) RETURNS TABLE (user_id integer, id uuid, policy_id uuid)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT y.user_id, y.id, r.policy_id FROM sec.retention_rules(users, 'cross_service_memory_sync') AS r
    JOIN public.chat_mode_sessions s ON s.user_id = r.user_id AND s.chat_mode = r.chat_mode
    JOIN public.cross_service_memory_sync y ON y.user_id = s.user_id AND y.source_session_id = s.session_id
        AND y.sync_status IN ('completed', 'failed') AND y.completed_at <= at - make_interval(days => r.keep_days)
    WHERE r.access_tier IS NULL
        AND NOT EXISTS (SELECT FROM public.session_knowledge k WHERE k.user_id = y.user_id AND k.sync_id = y.id)
    LIMIT most
$$;
-- A session goes when nothing refers to it any more but its summary.
CREATE FUNCTION sec.due_sessions(users integer[], at timestamptz, most integer,
    of_action public.retention_action DEFAULT 'delete') RETURNS TABLE (user_id integer, id uuid, policy_id uuid)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.user_id, s.id, r.policy_id FROM sec.retention_rules(users, 'chat_mode_sessions') AS r
    JOIN public.chat_mode_sessions s ON s.user_id = r.user_id AND s.chat_mode = r.chat_mode
        AND s.ended_at <= at - make_interval(days => r.keep_days)
    WHERE r.access_tier IS NULL AND (of_action IS NULL OR r.action = of_action)
        AND NOT EXISTS (SELECT FROM public.simple_chat_context t WHERE t.user_id = s.user_id AND t.session_id = s.session_id)
        AND NOT EXISTS (SELECT FROM public.agent_context_states t WHERE t.user_id = s.user_id AND t.session_id = s.session_id)
        AND NOT EXISTS (SELECT FROM public.router_decision_log t WHERE t.user_id = s.user_id AND t.session_id = s.session_id)
        AND NOT EXISTS (SELECT FROM public.unified_memory_vectors t WHERE t.user_id = s.user_id AND t.session_id = s.session_id)
        AND NOT EXISTS (SELECT FROM public.session_knowledge t WHERE t.user_id = s.user_id AND t.session_id = s.session_id)
        AND NOT EXISTS (SELECT FROM public.cross_service_memory_sync t WHERE t.user_id = s.user_id
            AND s.session_id IN (t.source_session_id, t.target_session_id))
    LIMIT most
$$;
-- Empty rows of what was removed, unless syncs still have to carry the removal.
CREATE FUNCTION sec.due_tombstones(users integer[], at timestamptz, most integer)
RETURNS TABLE (user_id integer, id uuid, policy_id uuid, table_name text) LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH rules AS MATERIALIZED (
        SELECT r.user_id, r.policy_id, at - make_interval(days => r.keep_days) AS before FROM sec.retention_rules(users, 'tombstones') AS r
        WHERE r.chat_mode IS NULL AND r.access_tier IS NULL)
    (SELECT t.user_id, t.id, r.policy_id, 'simple_chat_context' FROM rules r
    JOIN public.simple_chat_context t ON t.user_id = r.user_id AND t.removed_at <= r.before AND t.sync_state IS NULL LIMIT most)
    UNION ALL (SELECT t.user_id, t.id, r.policy_id, 'agent_context_states' FROM rules r
    JOIN public.agent_context_states t ON t.user_id = r.user_id AND t.removed_at <= r.before AND t.sync_state IS NULL LIMIT most)
    UNION ALL (SELECT t.user_id, t.id, r.policy_id, 'unified_memory_vectors' FROM rules r
    JOIN public.unified_memory_vectors t ON t.user_id = r.user_id AND t.removed_at <= r.before AND NOT t.has_points LIMIT most)
$$;
-- Events stand in the order of their sessions, which a user's clocks list. Their ids are their writers' choice, their times are not.
CREATE FUNCTION sec.due_events(users integer[], at timestamptz, most integer,
    of_action public.retention_action DEFAULT 'delete') RETURNS TABLE (user_id integer, id uuid, policy_id uuid)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT k.user_id, e.id, r.policy_id FROM sec.retention_rules(users, 'blackboard_events') AS r
    JOIN public.session_clocks k ON k.user_id = r.user_id
    CROSS JOIN LATERAL (SELECT b.id FROM public.blackboard_events b WHERE b.user_id = k.user_id AND b.session_id = k.session_id
        AND b.id < public.uuid7_at(at - make_interval(days => r.keep_days)) AND b.created_at <= at - make_interval(days => r.keep_days)
        ORDER BY b.event_sequence LIMIT most) AS e
    WHERE r.chat_mode IS NULL AND r.access_tier IS NULL AND (of_action IS NULL OR r.action = of_action)
    LIMIT most
$$;
CREATE FUNCTION sec.inbox_names() RETURNS text[] LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT array_agg(DISTINCT replace(substr(w.role_name::text, 3), '_', '-') || suffix)
    FROM sec.worker_privileges w, unnest(ARRAY['', '-jobs', '-wakes']) AS suffix
$$;
CREATE FUNCTION sec.due_inbox(users integer[], at timestamptz, most integer)
RETURNS TABLE (user_id integer, id uuid, worker text, policy_id uuid) LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT i.user_id, i.message_id, i.worker::text, r.policy_id FROM sec.retention_rules(users, 'inbox') AS r
    JOIN public.inbox i ON i.worker = ANY (sec.inbox_names()) AND i.user_id = r.user_id
        AND i.received_at <= at - make_interval(days => r.keep_days)
    WHERE r.chat_mode IS NULL AND r.access_tier IS NULL
    LIMIT most
$$;

-- Removes events, and clocks of sessions of which nothing is left. The worker's role may not delete them itself: it removes what is due
-- at present, and no more.
CREATE FUNCTION sec.forget_events(most integer) RETURNS TABLE (user_id integer, session_id text, policy_id uuid)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY WITH due AS MATERIALIZED (SELECT * FROM sec.due_events(sec.current_user_ids(), now(), least(most, 10000)))
    DELETE FROM public.blackboard_events b USING due d WHERE b.id = d.id AND b.user_id = d.user_id
    RETURNING b.user_id, b.session_id::text, d.policy_id;
END $$;
CREATE FUNCTION sec.forget_clocks(most integer) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    users integer[];
    sessions text[];
    gone bigint;
BEGIN
    SELECT array_agg(d.user_id), array_agg(d.session_id::text) INTO users, sessions FROM (
        SELECT k.user_id, k.session_id FROM public.session_clocks k
        WHERE k.user_id = ANY (sec.current_user_ids()) AND k.session_id NOT LIKE '@%'
            AND NOT EXISTS (SELECT FROM public.chat_mode_sessions s WHERE s.user_id = k.user_id AND s.session_id = k.session_id)
            AND NOT EXISTS (SELECT FROM public.multi_agent_conversations m WHERE m.user_id = k.user_id AND m.session_id = k.session_id)
            AND NOT EXISTS (SELECT FROM public.blackboard_events b WHERE b.user_id = k.user_id AND b.session_id = k.session_id)
        LIMIT least(most, 10000) FOR UPDATE OF k SKIP LOCKED) AS d;
    -- Another transaction may have committed an event before the lock: the statement above does not see it, this one does.
    DELETE FROM public.session_clocks k USING unnest(users, sessions) AS d (user_id, session_id)
    WHERE k.user_id = d.user_id AND k.session_id = d.session_id
        AND NOT EXISTS (SELECT FROM public.chat_mode_sessions s WHERE s.user_id = k.user_id AND s.session_id = k.session_id)
        AND NOT EXISTS (SELECT FROM public.multi_agent_conversations m WHERE m.user_id = k.user_id AND m.session_id = k.session_id)
        AND NOT EXISTS (SELECT FROM public.blackboard_events b WHERE b.user_id = k.user_id AND b.session_id = k.session_id);
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END $$;

-- The last user of the slice of users that the sweep is at; NULL behind the last one.
CREATE FUNCTION sec.retention_slice() RETURNS integer LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT max(u.id) FROM (SELECT u.id FROM public.users u WHERE u.id > (SELECT s.after_user FROM public.retention_state s)
        ORDER BY u.id LIMIT (SELECT s.slice_users FROM public.retention_state s)) AS u
$$;
-- Whose rows are due, of these users.
CREATE FUNCTION sec.due_users(of_users integer[]) RETURNS SETOF integer LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT DISTINCT d.user_id FROM (
        SELECT d.user_id FROM sec.due_expired_contexts(of_users, now(), 1000) AS d
        UNION ALL SELECT d.user_id FROM sec.due_expired_agent_contexts(of_users, now(), 1000) AS d
        UNION ALL SELECT d.user_id FROM sec.due_contexts(of_users, now(), 1000, NULL) AS d
        UNION ALL SELECT d.user_id FROM sec.due_agent_contexts(of_users, now(), 1000, NULL) AS d
        UNION ALL SELECT d.user_id FROM sec.due_decisions(of_users, now(), 1000, NULL) AS d
        UNION ALL SELECT d.user_id FROM sec.due_memories(of_users, now(), 1000) AS d
        UNION ALL SELECT d.user_id FROM sec.due_syncs(of_users, now(), 1000) AS d
        UNION ALL SELECT d.user_id FROM sec.due_sessions(of_users, now(), 1000, NULL) AS d
        UNION ALL SELECT d.user_id FROM sec.due_tombstones(of_users, now(), 1000) AS d
        UNION ALL SELECT d.user_id FROM sec.due_events(of_users, now(), 1000, NULL) AS d
        UNION ALL SELECT d.user_id FROM sec.due_inbox(of_users, now(), 1000) AS d
        UNION ALL SELECT v.user_id FROM public.unified_memory_vectors v WHERE v.has_points AND v.user_id = ANY (of_users)
    ) AS d WHERE d.user_id <> 0
$$;
-- The first slice with due rows, and whose they are: the one that the sweep is at, or one of the next four, which after the last user are
-- those of the next pass. Without any, the last one that was looked at. So few users, where a run could not begin, are looked at alone.
CREATE FUNCTION sec.next_slice(OUT after_user integer, OUT last_user integer, OUT is_next_pass boolean, OUT due integer[])
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    size integer;
    most integer;
    slice integer[];
BEGIN
    SELECT s.after_user, s.slice_users, false INTO after_user, size, is_next_pass FROM public.retention_state s;
    most := CASE WHEN size < 20 THEN 1 ELSE 5 END;
    FOR looked_at IN 1 .. most LOOP
        slice := ARRAY(SELECT u.id FROM public.users u WHERE u.id > next_slice.after_user ORDER BY u.id LIMIT size);
        last_user := slice[cardinality(slice)];
        due := ARRAY(SELECT d FROM sec.due_users(slice) AS d);
        EXIT WHEN due <> '{}' OR looked_at = most OR last_user IS NULL AND is_next_pass;
        is_next_pass := is_next_pass OR last_user IS NULL;
        after_user := coalesce(last_user, -1);
        size := 200;
    END LOOP;
END $$;
-- The platform's own rows are few, and each run says that it was there.
CREATE FUNCTION sec.due_retention_sweep(integer) RETURNS SETOF integer LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT 0 UNION ALL (SELECT u FROM sec.next_slice() AS s, unnest(s.due) AS u LIMIT greatest($1 - 1, 0))
$$;

GRANT SELECT (id) ON users TO memfleet_due;
GRANT SELECT (after_user, slice_users) ON retention_state TO memfleet_due;
GRANT SELECT (id, user_id, table_name, chat_mode, access_tier, keep_days, action, is_active) ON data_retention_policies TO memfleet_due;
GRANT SELECT (user_id, table_name, chat_mode, access_tier, released_at) ON retention_holds TO memfleet_due;
GRANT SELECT (id, user_id, session_id, access_level, expires_at, removed_at, is_persistent, sync_state) ON simple_chat_context
    TO memfleet_due;
GRANT SELECT (id, user_id, session_id, memory_tier, expires_at, removed_at, sync_state) ON agent_context_states TO memfleet_due;
GRANT SELECT (id, user_id, session_id, chat_mode, ended_at) ON chat_mode_sessions TO memfleet_due;
GRANT SELECT (id, user_id, session_id, created_at, anonymised_at) ON router_decision_log TO memfleet_due;
GRANT SELECT (session_id, has_points) ON unified_memory_vectors TO memfleet_due;
GRANT SELECT (id, user_id, completed_at, source_session_id, target_session_id, sync_status) ON cross_service_memory_sync TO memfleet_due;
GRANT SELECT (user_id, session_id, sync_id) ON session_knowledge TO memfleet_due;
GRANT SELECT (id, user_id, session_id, event_sequence, created_at) ON blackboard_events TO memfleet_due;
GRANT SELECT (worker, user_id, message_id, received_at) ON inbox TO memfleet_due;
GRANT EXECUTE ON FUNCTION uuid7_at TO memfleet_due;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['platform_policies(text)', 'platform_holds()', 'kinds_of_rows(text)', 'held_kinds(integer[], text)',
        'retention_rules(integer[], text)',
        'due_expired_contexts(integer[], timestamptz, integer)', 'due_expired_agent_contexts(integer[], timestamptz, integer)',
        'due_contexts(integer[], timestamptz, integer, public.retention_action)',
        'due_agent_contexts(integer[], timestamptz, integer, public.retention_action)',
        'due_decisions(integer[], timestamptz, integer, public.retention_action)',
        'due_memories(integer[], timestamptz, integer)',
        'due_syncs(integer[], timestamptz, integer)', 'due_sessions(integer[], timestamptz, integer, public.retention_action)',
        'due_tombstones(integer[], timestamptz, integer)', 'due_events(integer[], timestamptz, integer, public.retention_action)',
        'inbox_names()',
        'due_inbox(integer[], timestamptz, integer)', 'forget_events(integer)', 'forget_clocks(integer)', 'retention_slice()',
        'due_users(integer[])', 'next_slice()'] LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION sec.%s FROM PUBLIC', name);
        IF name ~ '^(platform|retention_slice|due_users|next_slice)' THEN
            EXECUTE format('ALTER FUNCTION sec.%s OWNER TO memfleet_due', name);
            EXECUTE format('GRANT EXECUTE ON FUNCTION sec.%s TO memfleet_owner', name);
        ELSE
            EXECUTE format('ALTER FUNCTION sec.%s OWNER TO memfleet_owner', name);
            IF name !~ '^forget' THEN
                EXECUTE format('GRANT EXECUTE ON FUNCTION sec.%s TO memfleet_due', name);
            END IF;
        END IF;
    END LOOP;
END $$;

SELECT sec.grant_worker('w_retention_cleaner', '{
    "data_retention_policies": ["SELECT", "INSERT", "UPDATE"],
    "retention_holds": ["SELECT", "INSERT", "UPDATE"],
    "retention_state": ["SELECT", "UPDATE"],
    "simple_chat_context": ["SELECT", "UPDATE", "DELETE"],
    "agent_context_states": ["SELECT", "UPDATE", "DELETE"],
    "encrypted_fields": ["SELECT", "DELETE"],
    "chat_mode_sessions": ["SELECT", "UPDATE", "DELETE"],
    "chat_session_summary": ["SELECT", "DELETE"],
    "router_decision_log": ["SELECT", "UPDATE", "DELETE"],
    "unified_memory_vectors": ["SELECT", "UPDATE", "DELETE"],
    "vector_collections": ["SELECT"],
    "cross_service_memory_sync": ["SELECT", "UPDATE", "DELETE"],
    "sync_changes": ["SELECT", "DELETE"],
    "session_knowledge": ["SELECT"]}',
    functions => '{"sec.platform_policies(text)", "sec.platform_holds()", "sec.kinds_of_rows(text)", "sec.held_kinds(integer[], text)",
        "sec.retention_rules(integer[], text)",
        "sec.due_expired_contexts(integer[], timestamptz, integer)", "sec.due_expired_agent_contexts(integer[], timestamptz, integer)",
        "sec.due_contexts(integer[], timestamptz, integer, public.retention_action)",
        "sec.due_agent_contexts(integer[], timestamptz, integer, public.retention_action)",
        "sec.due_decisions(integer[], timestamptz, integer, public.retention_action)",
        "sec.due_memories(integer[], timestamptz, integer)",
        "sec.due_syncs(integer[], timestamptz, integer)", "sec.due_sessions(integer[], timestamptz, integer, public.retention_action)",
        "sec.due_tombstones(integer[], timestamptz, integer)", "sec.due_events(integer[], timestamptz, integer, public.retention_action)",
        "sec.inbox_names()",
        "sec.due_inbox(integer[], timestamptz, integer)", "sec.forget_events(integer)", "sec.forget_clocks(integer)",
        "sec.retention_slice()", "sec.next_slice()", "public.memory_length(tsvector)", "sec.vector_tenants()", "sec.deployment_id()", "sec.has_due(text)"}');

INSERT INTO sec.event_writers (role_name, event_type)
SELECT 'w_retention_cleaner', label FROM unnest(ARRAY['policy.stored', 'policy.removed', 'policy.held', 'retention.swept']) AS label
ON CONFLICT DO NOTHING;
SELECT sec.add_job('retention-sweep', 'w_retention_cleaner', 'sec.due_retention_sweep(integer)');

-- The times that the worker may write are bounded as those of other workers are.
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
        WHERE c.oid = ANY (ARRAY['data_retention_policies', 'retention_holds', 'retention_state', 'job_runs',
            'router_decision_log']::regclass[])
        GROUP BY c.oid ORDER BY c.oid
    LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT IF EXISTS times_are_bounded', target.name);
        EXECUTE format('ALTER TABLE %s ADD CONSTRAINT times_are_bounded CHECK (%s) NOT VALID', target.name, target.bounds);
    END LOOP;
END $$;

-- The trail compares columns by name (docs/adr/0056).
SELECT audit.follow_updates(name::regclass) FROM unnest(ARRAY['data_retention_policies', 'retention_holds', 'router_decision_log',
    'unified_memory_vectors']) AS name;

-- What writers wait for comes last.
CREATE INDEX unified_memory_vectors_with_points ON unified_memory_vectors (user_id) WHERE has_points;
CREATE INDEX unified_memory_vectors_by_update ON unified_memory_vectors (user_id, updated_at);
CREATE INDEX agent_context_states_expiring ON agent_context_states (user_id, expires_at)
    WHERE expires_at IS NOT NULL AND removed_at IS NULL;
CREATE INDEX agent_context_states_removed ON agent_context_states (user_id, removed_at) WHERE removed_at IS NOT NULL;
CREATE INDEX simple_chat_context_expiring ON simple_chat_context (user_id, expires_at)
    WHERE expires_at IS NOT NULL AND removed_at IS NULL;
CREATE INDEX simple_chat_context_removed ON simple_chat_context (user_id, removed_at) WHERE removed_at IS NOT NULL;
ALTER TABLE retention_holds ADD FOREIGN KEY (user_id) REFERENCES users (id);
