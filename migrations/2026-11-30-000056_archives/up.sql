-- Archives: rows that retention takes out of the database are in files, which this table names (docs/adr/0053).
SET LOCAL lock_timeout = '100ms';

-- Rows of other tables cannot be archived: a policy of this kind would have no effect on them, or delete them.
ALTER TABLE data_retention_policies ADD CONSTRAINT data_retention_policies_archive CHECK (action <> 'archive'
    OR table_name IN ('simple_chat_context', 'agent_context_states', 'chat_mode_sessions', 'router_decision_log', 'blackboard_events'));

ALTER TABLE data_retention_policies DROP CONSTRAINT can_be_carried_out, ADD CONSTRAINT can_be_carried_out CHECK (NOT is_active OR (
    (action IN ('delete', 'archive') OR action = 'anonymise' AND table_name = 'router_decision_log')
    AND (keep_days >= 8 OR table_name NOT IN ('blackboard_events', 'tombstones', 'inbox'))));

-- The archives. One is named here in the transaction that removes its rows. A file that no row names is what a run left that was killed
-- before: its rows are still there.
CREATE TABLE archives (
    id uuid PRIMARY KEY,
    table_name varchar(128) NOT NULL,
    -- Its folder at the archive target.
    location text NOT NULL,
    -- What its manifest is signed with, and about.
    manifest_hash bytea NOT NULL CHECK (octet_length(manifest_hash) = 32),
    -- The policies that the rows were archived by, and the tick of the run.
    policies uuid[] NOT NULL,
    run_id uuid NOT NULL,
    row_count integer NOT NULL CHECK (row_count > 0),
    byte_count bigint NOT NULL CHECK (byte_count > 0),
    -- When its first and its last row were created.
    first_at timestamptz NOT NULL,
    last_at timestamptz NOT NULL CHECK (last_at >= first_at),
    -- Whose rows it has.
    user_ids integer[] NOT NULL,
    -- Rows in its files that were not removed, since they had changed meanwhile or were held. What the files have of them counts for nothing.
    not_removed uuid[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX archives_by_table ON archives (table_name, created_at);
CREATE INDEX archives_by_user ON archives USING gin (user_ids);
ALTER TABLE archives OWNER TO memfleet_owner;

-- What operators restored, by user: the trail of a user tells it, also of events, whose insertion it does not follow.
CREATE TABLE archive_restores (
    id uuid NOT NULL,
    user_id integer NOT NULL REFERENCES users (id),
    archive_id uuid NOT NULL,
    table_name varchar(128) NOT NULL,
    restored integer NOT NULL CHECK (restored > 0),
    restored_by text NOT NULL DEFAULT session_user,
    created_at timestamptz NOT NULL DEFAULT now(),
    request_id uuid,
    PRIMARY KEY (user_id, id)
);
SELECT sec.protect_rows('archive_restores');
CREATE TRIGGER audit_insert AFTER INSERT ON archive_restores REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION audit.audit_trigger_function();
CREATE TRIGGER audit_delete AFTER DELETE ON archive_restores REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION audit.audit_trigger_function();
ALTER TABLE archive_restores OWNER TO memfleet_owner;

-- Whether any policy archives.
CREATE FUNCTION sec.has_archive_policies() RETURNS boolean LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM public.data_retention_policies p WHERE p.action = 'archive' AND p.is_active)
$$;
ALTER FUNCTION sec.has_archive_policies OWNER TO memfleet_due;
REVOKE EXECUTE ON FUNCTION sec.has_archive_policies FROM PUBLIC;
GRANT EXECUTE ON FUNCTION sec.has_archive_policies TO memfleet_owner;

-- Removes events that are in an archive. The worker's role may not delete them itself: it removes what is due to be archived at present,
-- and no more.
CREATE FUNCTION sec.forget_archived_events(ids uuid[]) RETURNS TABLE (user_id integer, id uuid)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY DELETE FROM public.blackboard_events b USING sec.retention_rules(sec.current_user_ids(), 'blackboard_events') AS r
    WHERE b.id = ANY (ids) AND b.user_id = r.user_id AND r.chat_mode IS NULL AND r.access_tier IS NULL AND r.action = 'archive'
        AND b.id < public.uuid7_at(now() - make_interval(days => r.keep_days)) AND b.created_at <= now() - make_interval(days => r.keep_days)
    RETURNING b.user_id, b.id;
END $$;
ALTER FUNCTION sec.forget_archived_events OWNER TO memfleet_owner;
REVOKE EXECUTE ON FUNCTION sec.forget_archived_events FROM PUBLIC;

-- Names an archive. The worker's role may not write the names itself: one that it forges could only be of the users of its context, and in
-- the place and at the time of a genuine one.
CREATE FUNCTION sec.record_archive(archive_id uuid, of_table text, at_location text, hash bytea, of_policies uuid[], of_run uuid,
    removed integer, bytes bigint, first_row timestamptz, last_row timestamptz, users integer[], kept uuid[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    of_month CONSTANT text := split_part(at_location, '/', 2);
BEGIN
    IF (cardinality(users) > 0 AND users <@ sec.current_user_ids()) IS NOT TRUE THEN
        RAISE insufficient_privilege USING MESSAGE = 'archives are named of the users of the security context only';
    END IF;
    IF (of_table IN ('simple_chat_context', 'agent_context_states', 'chat_mode_sessions', 'router_decision_log', 'blackboard_events'))
        IS NOT TRUE THEN
        RAISE invalid_parameter_value USING MESSAGE = 'rows of this table are not archived';
    END IF;
    IF (of_month ~ '^[0-9]{4}-(0[1-9]|1[0-2])$' AND at_location = concat_ws('/', of_table, of_month, archive_id)) IS NOT TRUE THEN
        RAISE invalid_parameter_value USING MESSAGE = 'the location of an archive is its table, its month and its id';
    END IF;
    INSERT INTO public.archives (id, table_name, location, manifest_hash, policies, run_id, row_count, byte_count, first_at, last_at, user_ids,
        not_removed, created_at)
    VALUES (archive_id, of_table, at_location, hash, of_policies, of_run, removed, bytes, first_row, last_row, users, kept, now());
END $$;
ALTER FUNCTION sec.record_archive OWNER TO memfleet_owner;
REVOKE EXECUTE ON FUNCTION sec.record_archive FROM PUBLIC;

-- Whether a user was erased: nothing of the user is restored then. An erasure destroys the user's subject with its key.
CREATE FUNCTION sec.is_erased(of_user integer) RETURNS boolean LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT NOT EXISTS (SELECT FROM public.users u WHERE u.id = of_user)
        OR NOT EXISTS (SELECT FROM audit.subjects s WHERE s.user_id = of_user)
$$;
ALTER FUNCTION sec.is_erased OWNER TO memfleet_owner;
REVOKE EXECUTE ON FUNCTION sec.is_erased FROM PUBLIC;

-- Summaries are not changed, but locked while their archive is compared with them.
SELECT sec.grant_worker('w_retention_cleaner', '{"chat_session_summary": ["UPDATE"]}',
    functions => '{"sec.has_archive_policies()", "sec.forget_archived_events(uuid[])",
        "sec.record_archive(uuid, text, text, bytea, uuid[], uuid, integer, bigint, timestamptz, timestamptz, integer[], uuid[])"}',
    takes_messages => false);

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
        WHERE c.oid = ANY (ARRAY['archives', 'archive_restores']::regclass[])
        GROUP BY c.oid ORDER BY c.oid
    LOOP
        EXECUTE format('ALTER TABLE %s ADD CONSTRAINT times_are_bounded CHECK (%s) NOT VALID', target.name, target.bounds);
    END LOOP;
END $$;

SELECT audit.follow_updates('archive_restores');
