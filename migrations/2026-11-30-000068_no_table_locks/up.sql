-- A role that has UPDATE or DELETE on a table may lock it in any mode, and whoever waits for such a lock makes all others wait: with a few
-- connections that take turns, for as long as they like. A right to update columns allows the same statements and no lock that others wait for,
-- and rows are deleted by functions.
SET LOCAL lock_timeout = '100ms';

-- Grants privileges on a table: UPDATE on each of its columns, and instead of DELETE the function sec.delete_rows.
CREATE FUNCTION sec.grant_table(worker name, target regclass, privileges text[]) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    of_table CONSTANT text[] := array_remove(array_remove(privileges, 'UPDATE'), 'DELETE');
BEGIN
    IF of_table <> '{}' THEN
        EXECUTE format('GRANT %s ON %s TO %I', array_to_string(of_table, ', '), target, worker);
    END IF;
    IF 'UPDATE' = ANY (privileges) THEN
        EXECUTE format('GRANT UPDATE (%s) ON %s TO %I', (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum)
            FROM pg_attribute a WHERE a.attrelid = target AND a.attnum > 0 AND NOT a.attisdropped), target, worker);
    END IF;
    IF 'DELETE' = ANY (privileges) THEN
        EXECUTE format('GRANT EXECUTE ON FUNCTION sec.delete_rows TO %I', worker);
    END IF;
END $$;

-- Grants UPDATE on columns that were added to a table to the roles that may update it. For migrations.
CREATE FUNCTION sec.grant_columns(target regclass) RETURNS void LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT sec.grant_table(w.role_name, w.table_name, '{UPDATE}') FROM sec.worker_privileges w
    WHERE w.table_name = target AND 'UPDATE' = ANY (w.privileges)
$$;

-- Deletes rows of a table for a role that may do so by sec.worker_privileges, and gives the keys of those that are gone. Only rows of users of
-- the security context: the policies of the table hold here, too. With a sync go the changes that it noted, and with a session its summaries.
CREATE FUNCTION sec.delete_rows(target regclass, users integer[], ids uuid[]) RETURNS TABLE (user_id integer, id uuid)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    IF NOT EXISTS (SELECT FROM sec.worker_privileges w WHERE w.role_name = session_user AND w.table_name = target
        AND 'DELETE' = ANY (w.privileges)) THEN
        RAISE insufficient_privilege USING MESSAGE = format('permission denied: %I deletes no rows of %s', session_user, target);
    END IF;
    IF (cardinality(users) = cardinality(ids) AND cardinality(users) <= 100000) IS NOT TRUE THEN
        RAISE invalid_parameter_value USING MESSAGE = 'users and ids must be as many as each other, at most 100000';
    END IF;
    IF target = 'public.cross_service_memory_sync'::regclass THEN
        DELETE FROM public.sync_changes h USING unnest(users, ids) AS i (user_id, id)
        WHERE h.user_id = i.user_id AND h.sync_id = i.id;
    ELSIF target = 'public.chat_mode_sessions'::regclass THEN
        DELETE FROM public.chat_session_summary m USING unnest(users, ids) AS i (user_id, id)
        JOIN public.chat_mode_sessions s ON s.user_id = i.user_id AND s.id = i.id
        WHERE m.user_id = s.user_id AND m.session_id = s.session_id;
    END IF;
    RETURN QUERY EXECUTE format('DELETE FROM %s t USING unnest($1, $2) AS i (user_id, id) WHERE t.user_id = i.user_id AND t.id = i.id
        RETURNING t.user_id, t.id', target) USING users, ids;
END $$;

-- Deletes entries of the inbox whose messages were not applied. Of the caller's worker, for users of the security context: the policies of
-- the table hold here, too.
CREATE FUNCTION sec.release_messages(worker text, users integer[], messages uuid[]) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    released integer;
BEGIN
    IF (cardinality(users) = cardinality(messages) AND cardinality(users) <= 10000) IS NOT TRUE THEN
        RAISE invalid_parameter_value USING MESSAGE = 'users and messages must be as many as each other, at most 10000';
    END IF;
    DELETE FROM public.inbox i USING unnest(users, messages) AS m (user_id, message_id)
    WHERE i.worker = release_messages.worker AND i.user_id = m.user_id AND i.message_id = m.message_id;
    GET DIAGNOSTICS released = ROW_COUNT;
    RETURN released;
END $$;

-- Deletes entries of the inbox that are due. The policies hold here, too: no entry goes that is younger than a stream keeps its message.
CREATE FUNCTION sec.forget_inbox(users integer[], at timestamptz, most integer) RETURNS TABLE (user_id integer, policy_id uuid)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY WITH due AS MATERIALIZED (SELECT * FROM sec.due_inbox(users, at, least(most, 10000)))
    DELETE FROM public.inbox i USING due d WHERE i.worker = d.worker AND i.user_id = d.user_id AND i.message_id = d.id
    RETURNING i.user_id, d.policy_id;
END $$;
ALTER FUNCTION sec.delete_rows OWNER TO memfleet_owner;
ALTER FUNCTION sec.release_messages OWNER TO memfleet_owner;
ALTER FUNCTION sec.forget_inbox OWNER TO memfleet_owner;
REVOKE EXECUTE ON FUNCTION sec.grant_table, sec.grant_columns, sec.delete_rows, sec.release_messages, sec.forget_inbox FROM PUBLIC;
GRANT EXECUTE ON FUNCTION sec.forget_inbox TO w_retention_cleaner;

-- A ciphertext goes with its value, and no role deletes one by itself.
ALTER FUNCTION sec.drop_ciphertext SECURITY DEFINER;
ALTER FUNCTION sec.drop_ciphertext_of_user SECURITY DEFINER;
-- And with its row, with the rights of whoever deletes the row: sec.delete_rows, or an administrator, who has no security context.
CREATE FUNCTION sec.drop_ciphertext_of_row() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM public.encrypted_fields
    WHERE user_id = OLD.user_id AND row_id = OLD.id AND table_name = TG_TABLE_NAME::text;
    RETURN NULL;
END $$;
ALTER FUNCTION sec.drop_ciphertext_of_row OWNER TO memfleet_owner;
REVOKE EXECUTE ON FUNCTION sec.drop_ciphertext_of_row FROM PUBLIC;

CREATE OR REPLACE FUNCTION sec.message_privileges() RETURNS jsonb LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT '{"inbox": ["SELECT", "INSERT", "UPDATE"], "blackboard_events": ["SELECT", "INSERT"],
        "session_clocks": ["SELECT", "INSERT", "UPDATE"], "chat_mode_sessions": ["SELECT"]}'::jsonb
$$;

CREATE OR REPLACE FUNCTION sec.grant_worker(worker name, tables jsonb DEFAULT '{}', functions regprocedure[] DEFAULT '{}',
    takes_messages boolean DEFAULT true) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    given record;
    callable regprocedure;
BEGIN
    IF worker !~ '^w_[a-z0-9_]+$' THEN
        RAISE invalid_parameter_value USING
            MESSAGE = format('%L is not the name of a worker''s role, such as w_memory_sync', worker);
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = worker) THEN
        -- Roles are of the whole cluster: a migration of another database may make this one at the same time.
        BEGIN
            EXECUTE format('CREATE ROLE %I LOGIN NOINHERIT NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION',
                worker);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END IF;
    PERFORM sec.limit_connections(worker);
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), worker);
    EXECUTE format('GRANT USAGE ON SCHEMA public, sec, audit TO %I', worker);
    EXECUTE format('GRANT SELECT ON public.__diesel_schema_migrations TO %I', worker);
    FOR given IN
        SELECT * FROM sec.read_privileges(tables)
        UNION ALL SELECT p.* FROM sec.read_privileges(sec.message_privileges()) AS p WHERE takes_messages
    LOOP
        INSERT INTO sec.worker_privileges AS w (role_name, table_name, privileges)
        VALUES (worker, given.table_name, given.privileges)
        ON CONFLICT (role_name, table_name) DO UPDATE SET privileges = w.privileges
            || ARRAY(SELECT p FROM unnest(excluded.privileges) AS p WHERE p <> ALL (w.privileges));
        PERFORM sec.grant_table(worker, given.table_name, given.privileges);
    END LOOP;
    FOREACH callable IN ARRAY sec.worker_functions() || functions LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', callable, worker);
    END LOOP;
    IF takes_messages THEN
        EXECUTE format('GRANT USAGE ON SEQUENCE public.blackboard_event_sequence TO %I', worker);
        EXECUTE format('GRANT EXECUTE ON FUNCTION public.uuid7_at, sec.last_event_sequence, sec.release_messages TO %I', worker);
        -- Whoever appends an event checks that its user exists, and sees no more of the account than that.
        IF NOT has_column_privilege(worker, 'public.users', 'id', 'SELECT') THEN
            EXECUTE format('GRANT SELECT (id) ON public.users TO %I', worker);
        END IF;
    END IF;
END $$;

-- What a role has beyond sec.worker_privileges. A right to update a whole table or to delete from it is one: it allows to lock it.
CREATE OR REPLACE FUNCTION sec.excess_privileges() RETURNS SETOF text LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('is %s', attribute)
    FROM pg_roles r, LATERAL (VALUES ('a superuser', r.rolsuper), ('free of row-level security (BYPASSRLS)', r.rolbypassrls),
        ('allowed to make roles (CREATEROLE)', r.rolcreaterole), ('allowed to make databases (CREATEDB)', r.rolcreatedb),
        ('allowed to replicate (REPLICATION)', r.rolreplication)) AS a (attribute, has)
    WHERE r.rolname = session_user AND a.has
    UNION ALL
    SELECT format('is a member of %s', g.rolname)
    FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member JOIN pg_roles g ON g.oid = m.roleid
    WHERE r.rolname = session_user
    UNION ALL
    SELECT format('owns %s', c.oid::regclass)
    FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
    WHERE r.rolname = session_user AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
    UNION ALL
    SELECT format('may %s %s', acl.privilege_type, c.oid::regclass)
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname IN ('public', 'sec', 'audit')
    CROSS JOIN LATERAL aclexplode(c.relacl) AS acl
    JOIN pg_roles r ON r.rolname = session_user AND (acl.grantee = r.oid OR acl.grantee = 0)
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relowner <> r.oid
        AND NOT (c.relname = '__diesel_schema_migrations' AND acl.privilege_type = 'SELECT')
        AND NOT EXISTS (SELECT FROM sec.worker_privileges w
            WHERE w.role_name = session_user AND w.table_name = c.oid AND acl.privilege_type = ANY (w.privileges)
                AND acl.privilege_type NOT IN ('UPDATE', 'DELETE'))
    UNION ALL
    SELECT format('may %s the column %I of %s', acl.privilege_type, t.attname, c.oid::regclass)
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname IN ('public', 'sec', 'audit')
    JOIN pg_attribute t ON t.attrelid = c.oid AND NOT t.attisdropped
    CROSS JOIN LATERAL aclexplode(t.attacl) AS acl
    JOIN pg_roles r ON r.rolname = session_user AND (acl.grantee = r.oid OR acl.grantee = 0)
    WHERE c.relowner <> r.oid
        AND NOT (c.oid = 'public.users'::regclass AND t.attname = 'id' AND acl.privilege_type = 'SELECT')
        AND NOT EXISTS (SELECT FROM sec.worker_privileges w
            WHERE w.role_name = session_user AND w.table_name = c.oid AND acl.privilege_type = ANY (w.privileges))
    UNION ALL
    SELECT format('may make tables in the schema %s', n.nspname) FROM pg_namespace n
    WHERE n.nspname IN ('public', 'sec', 'audit') AND has_schema_privilege(session_user, n.oid, 'CREATE')
    UNION ALL
    SELECT 'may make temporary tables' WHERE has_database_privilege(session_user, current_database(), 'TEMP')
$$;

-- Ends transactions of workers that are open for too long; that hold so many locks that others might get none (an eighth of the server's lock
-- table by one transaction, or a third by those of one role; a batch holds some hundreds); or that are older than five seconds and keep all
-- others, or all that write, from a relation for which somebody waits. No worker holds such a lock for so long. However young, all go that hold
-- or want such a lock, if somebody has waited there for nearly as long as the default lock_timeout lets a worker wait, or if somebody waits and
-- there are several of them: one after the other they would let nobody in. Workers take such locks in functions that create partitions alone, one
-- worker at a time. With any lock on a relation, one also keeps an administrator from changing it: it ends when it is 40 seconds old, longer than a
-- statement of a worker takes, and the administrator has waited for as long. What waits with a worker's role does not count.
CREATE OR REPLACE FUNCTION sec.end_old_transactions() RETURNS integer LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    WITH lock AS MATERIALIZED (
        SELECT l.pid, l.locktype, l.database, l.relation, l.mode, l.granted, l.waitstart, l.locktype = 'relation'
            AND l.mode IN ('AccessExclusiveLock', 'ExclusiveLock', 'ShareRowExclusiveLock', 'ShareLock') AS is_strong FROM pg_locks l
    ), contended AS MATERIALIZED (
        SELECT l.database, l.relation FROM lock l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
            AND a.usename IN (SELECT w.role_name FROM sec.worker_privileges w)
        WHERE l.locktype = 'relation' GROUP BY l.database, l.relation
        HAVING bool_or(NOT l.granted AND NOT l.is_strong AND l.waitstart < clock_timestamp() - interval '400 milliseconds')
            OR bool_or(NOT l.granted AND NOT l.is_strong) AND count(DISTINCT a.pid) FILTER (WHERE l.is_strong) > 1
    ), held AS MATERIALIZED (
        SELECT a.pid, coalesce(l.locks, 0) AS locks, sum(l.locks) OVER (PARTITION BY a.usename) AS of_role,
            a.xact_start < clock_timestamp() - interval '5 minutes'
                OR a.state LIKE 'idle in transaction%' AND a.state_change < clock_timestamp() - interval '30 seconds' AS is_old,
            a.xact_start < clock_timestamp() - interval '5 seconds' AND EXISTS (
                SELECT FROM lock o JOIN lock w ON w.locktype = 'relation' AND w.database = o.database AND w.relation = o.relation
                WHERE o.pid = a.pid AND o.is_strong AND o.granted AND NOT w.granted AND w.pid <> o.pid)
            OR EXISTS (SELECT FROM lock o JOIN contended c ON c.database = o.database AND c.relation = o.relation
                WHERE o.pid = a.pid AND o.is_strong)
            OR a.xact_start < clock_timestamp() - interval '40 seconds' AND EXISTS (
                SELECT FROM lock o JOIN lock w ON w.locktype = 'relation' AND w.database = o.database AND w.relation = o.relation
                JOIN pg_stat_activity b ON b.pid = w.pid
                WHERE o.pid = a.pid AND o.locktype = 'relation' AND o.granted AND NOT w.granted AND w.mode = 'AccessExclusiveLock'
                    AND w.waitstart < clock_timestamp() - interval '40 seconds'
                    AND b.usename NOT IN (SELECT p.role_name FROM sec.worker_privileges p)) AS is_waited_for,
            current_setting('max_locks_per_transaction')::bigint
                * (current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint) AS size
        FROM pg_stat_activity a LEFT JOIN (SELECT pid, count(*) AS locks FROM lock GROUP BY pid) AS l ON l.pid = a.pid
        WHERE a.pid <> pg_backend_pid() AND a.usename IN (SELECT w.role_name FROM sec.worker_privileges w)
    )
    SELECT count(*) FILTER (WHERE pg_terminate_backend(h.pid))::integer FROM held h
    WHERE h.is_old OR h.is_waited_for OR h.locks > h.size / 8 OR h.of_role > h.size / 3 AND h.locks > h.size / 128
$$;

UPDATE sec.worker_privileges SET privileges = array_remove(privileges, 'DELETE') WHERE table_name IN ('inbox'::regclass, 'encrypted_fields'::regclass);
DO $$
DECLARE
    given record;
BEGIN
    FOR given IN SELECT w.role_name, w.table_name, w.privileges FROM sec.worker_privileges w LOOP
        EXECUTE format('REVOKE UPDATE, DELETE ON %s FROM %I', given.table_name, given.role_name);
        PERFORM sec.grant_table(given.role_name, given.table_name, given.privileges);
    END LOOP;
END $$;
SELECT sec.grant_worker(role_name) FROM sec.worker_privileges WHERE table_name = 'inbox'::regclass AND 'INSERT' = ANY (privileges);

SELECT sec.hide_plans();

-- Locks that writers wait for come last.

CREATE TRIGGER ciphertext_update AFTER UPDATE ON router_decision_log FOR EACH ROW WHEN (OLD.is_sensitive AND NOT NEW.is_sensitive)
    EXECUTE FUNCTION sec.drop_ciphertext();
DO $$
DECLARE
    definition text;
BEGIN
    FOR definition IN SELECT pg_get_triggerdef(t.oid) FROM pg_trigger t
        WHERE t.tgname = 'ciphertext_delete' AND NOT t.tgisinternal ORDER BY t.tgrelid
    LOOP
        -- Its schema is left out where it is in the search path.
        EXECUTE regexp_replace(replace(definition, 'CREATE TRIGGER', 'CREATE OR REPLACE TRIGGER'), '(sec\.)?drop_ciphertext\(\)$', 'sec.drop_ciphertext_of_row()');
    END LOOP;
END $$;
