SET LOCAL lock_timeout = '100ms';

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
        EXECUTE format('GRANT %s ON %s TO %I', array_to_string(given.privileges, ', '), given.table_name, worker);
    END LOOP;
    FOREACH callable IN ARRAY sec.worker_functions() || functions LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', callable, worker);
    END LOOP;
    IF takes_messages THEN
        EXECUTE format('GRANT USAGE ON SEQUENCE public.blackboard_event_sequence TO %I', worker);
        EXECUTE format('GRANT EXECUTE ON FUNCTION public.uuid7_at, sec.last_event_sequence TO %I', worker);
        -- Whoever appends an event checks that its user exists, and sees no more of the account than that.
        IF NOT has_column_privilege(worker, 'public.users', 'id', 'SELECT') THEN
            EXECUTE format('GRANT SELECT (id) ON public.users TO %I', worker);
        END IF;
    END IF;
END $$;

CREATE OR REPLACE FUNCTION sec.message_privileges() RETURNS jsonb LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT '{"inbox": ["SELECT", "INSERT", "UPDATE", "DELETE"], "blackboard_events": ["SELECT", "INSERT"],
        "session_clocks": ["SELECT", "INSERT", "UPDATE"], "chat_mode_sessions": ["SELECT"]}'::jsonb
$$;

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
            WHERE w.role_name = session_user AND w.table_name = c.oid AND acl.privilege_type = ANY (w.privileges))
    UNION ALL
    SELECT format('may make tables in the schema %s', n.nspname) FROM pg_namespace n
    WHERE n.nspname IN ('public', 'sec', 'audit') AND has_schema_privilege(session_user, n.oid, 'CREATE')
    UNION ALL
    SELECT 'may make temporary tables' WHERE has_database_privilege(session_user, current_database(), 'TEMP')
$$;

CREATE OR REPLACE FUNCTION sec.end_old_transactions() RETURNS integer LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    WITH lock AS MATERIALIZED (
        SELECT l.pid, l.locktype, l.database, l.relation, l.mode, l.granted, l.waitstart FROM pg_locks l
    ), held AS MATERIALIZED (
        SELECT a.pid, coalesce(l.locks, 0) AS locks, sum(l.locks) OVER (PARTITION BY a.usename) AS of_role,
            a.xact_start < clock_timestamp() - interval '5 minutes'
                OR a.state LIKE 'idle in transaction%' AND a.state_change < clock_timestamp() - interval '30 seconds' AS is_old,
            a.xact_start < clock_timestamp() - interval '5 seconds' AND EXISTS (
                SELECT FROM lock o JOIN lock w ON w.locktype = 'relation' AND w.database = o.database AND w.relation = o.relation
                WHERE o.pid = a.pid AND o.locktype = 'relation' AND o.granted AND NOT w.granted AND w.pid <> o.pid
                    AND o.mode IN ('AccessExclusiveLock', 'ExclusiveLock', 'ShareRowExclusiveLock', 'ShareLock'))
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

-- As it was: rights on tables.
UPDATE sec.worker_privileges SET privileges = privileges || '{DELETE}'::text[]
WHERE (table_name = 'inbox'::regclass OR table_name = 'encrypted_fields'::regclass AND role_name IN ('w_context_writer', 'w_memory_sync', 'w_retention_cleaner'))
    AND 'DELETE' <> ALL (privileges);
DO $$
DECLARE
    given record;
BEGIN
    FOR given IN SELECT w.role_name, w.table_name, w.privileges FROM sec.worker_privileges w WHERE w.privileges && '{UPDATE,DELETE}' LOOP
        -- Of the columns, too.
        EXECUTE format('REVOKE UPDATE ON %s FROM %I', given.table_name, given.role_name);
        EXECUTE format('GRANT %s ON %s TO %I', array_to_string(given.privileges, ', '), given.table_name, given.role_name);
    END LOOP;
END $$;
DROP FUNCTION sec.delete_rows(regclass, integer[], uuid[]);
DROP FUNCTION sec.release_messages(text, integer[], uuid[]);
DROP FUNCTION sec.forget_inbox(integer[], timestamptz, integer);
DROP FUNCTION sec.grant_columns(regclass);
DROP FUNCTION sec.grant_table(name, regclass, text[]);
ALTER FUNCTION sec.drop_ciphertext SECURITY INVOKER RESET debug_print_parse RESET debug_print_rewritten RESET debug_print_plan
    RESET client_min_messages RESET standard_conforming_strings;
ALTER FUNCTION sec.drop_ciphertext_of_user SECURITY INVOKER RESET debug_print_parse RESET debug_print_rewritten RESET debug_print_plan
    RESET client_min_messages RESET standard_conforming_strings;

SELECT sec.hide_plans();

DROP TRIGGER ciphertext_update ON router_decision_log;
DO $$
DECLARE
    definition text;
BEGIN
    FOR definition IN SELECT pg_get_triggerdef(t.oid) FROM pg_trigger t
        WHERE t.tgname = 'ciphertext_delete' AND NOT t.tgisinternal ORDER BY t.tgrelid
    LOOP
        -- Its schema is left out where it is in the search path.
        EXECUTE regexp_replace(replace(definition, 'CREATE TRIGGER', 'CREATE OR REPLACE TRIGGER'), '(sec\.)?drop_ciphertext_of_row\(\)$', 'sec.drop_ciphertext()');
    END LOOP;
END $$;
DROP FUNCTION sec.drop_ciphertext_of_row;
