-- Privileges of workers, given by one function; and job grants, by which a scheduled job acts for the users whose work is due
-- (docs/adr/0031, docs/SECURITY.md).
SET LOCAL lock_timeout = '100ms';

-- A message may cause several events. Their ids follow from the first one, event_id.
ALTER TABLE inbox ADD COLUMN event_count integer NOT NULL DEFAULT 1 CHECK (event_count BETWEEN 0 AND 10000);

-- What every worker that takes messages may do: keep the inbox, append events, and see whether a session is open.
CREATE FUNCTION sec.message_privileges() RETURNS jsonb LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT '{"inbox": ["SELECT", "INSERT", "UPDATE", "DELETE"], "blackboard_events": ["SELECT", "INSERT"],
        "session_clocks": ["SELECT", "INSERT", "UPDATE"], "chat_mode_sessions": ["SELECT"]}'::jsonb
$$;

-- What every worker calls: to open contexts and read them, to check its own role, to verify tokens, to write the audit trail.
CREATE FUNCTION sec.worker_functions() RETURNS regprocedure[] LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT ARRAY['sec.open_context(text[], text, text)', 'sec.current_user_ids()', 'sec.context()',
        'public.set_security_context(integer, text, text)', 'public.get_current_user_id()',
        'public.get_current_session_id()', 'public.get_current_service_name()', 'public.validate_security_context()',
        'sec.excess_privileges()', 'sec.trust_version()', 'sec.trust_state()',
        'sec.note_token_use(uuid[], timestamptz[])',
        'audit.record_refused_tokens(text[], text[], integer[], text[], uuid[])',
        'audit.check_security_violation(text, text, integer, text, uuid)',
        'audit.log_data_access(text, text, integer[], uuid[], bigint[])',
        'audit.log_vector_operation(text, text, integer[], uuid[], bigint[])']::regprocedure[]
$$;

-- Reads {"table": ["SELECT", "INSERT"]}, whose tables are those of the schema public. A partition is refused: privileges on it
-- would bypass the policy of its parent.
CREATE FUNCTION sec.read_privileges(tables jsonb, OUT table_name regclass, OUT privileges text[]) RETURNS SETOF record
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    named record;
BEGIN
    FOR named IN SELECT key, value FROM jsonb_each(tables) LOOP
        SELECT c.oid INTO table_name FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace
            AND c.relname = named.key AND c.relkind IN ('r', 'p') AND NOT c.relispartition;
        privileges := ARRAY(SELECT jsonb_array_elements_text(named.value));
        IF table_name IS NULL THEN
            RAISE invalid_parameter_value USING MESSAGE = format('%L is not a table of the schema public', named.key);
        ELSIF (privileges <> '{}' AND privileges <@ '{SELECT,INSERT,UPDATE,DELETE}') IS NOT TRUE THEN
            RAISE invalid_parameter_value USING MESSAGE = format(
                'privileges on %s are %s; expected some of SELECT, INSERT, UPDATE, DELETE', table_name, named.value);
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;

-- Gives the role of a worker what it may do, and records it in sec.worker_privileges; creates the role if there is none. Beyond
-- what every worker needs, these are privileges on tables ({"table": ["SELECT", "INSERT"]}) and functions of its own. A worker
-- that takes no messages gets none of the privileges of sec.message_privileges. May be called again, also to add privileges.
-- For an administrator, and for migrations.
CREATE FUNCTION sec.grant_worker(worker name, tables jsonb DEFAULT '{}', functions regprocedure[] DEFAULT '{}',
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
        EXECUTE format('GRANT EXECUTE ON FUNCTION public.uuid7_at TO %I', worker);
        -- Whoever appends an event checks that its user exists, and sees no more of the account than that.
        IF NOT has_column_privilege(worker, 'public.users', 'id', 'SELECT') THEN
            EXECUTE format('GRANT SELECT (id) ON public.users TO %I', worker);
        END IF;
    END IF;
END $$;

-- Takes privileges back: those named, where what every worker that takes messages needs stays; or, without tables and functions,
-- all that the role has in this database, with its jobs. The role itself stays, as other databases may use it. For an
-- administrator, and for migrations.
CREATE FUNCTION sec.revoke_worker(worker name, tables jsonb DEFAULT NULL, functions regprocedure[] DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    role_id CONSTANT oid := quote_ident(worker)::regrole;
    takes_messages CONSTANT boolean := EXISTS (SELECT FROM sec.worker_privileges w WHERE w.role_name = worker
        AND w.table_name = 'public.inbox'::regclass AND 'INSERT' = ANY (w.privileges));
    taken record;
BEGIN
    IF tables IS NOT NULL OR functions IS NOT NULL THEN
        FOR taken IN SELECT * FROM sec.read_privileges(coalesce(tables, '{}')) LOOP
            EXECUTE format('REVOKE %s ON %s FROM %I', array_to_string(taken.privileges, ', '), taken.table_name, worker);
            UPDATE sec.worker_privileges w SET privileges = ARRAY(SELECT p
                FROM unnest(w.privileges) WITH ORDINALITY AS u (p, place) WHERE p <> ALL (taken.privileges) ORDER BY place)
            WHERE w.role_name = worker AND w.table_name = taken.table_name;
        END LOOP;
        DELETE FROM sec.worker_privileges w WHERE w.role_name = worker AND w.privileges = '{}';
        FOR taken IN SELECT f AS name FROM unnest(functions) AS f LOOP
            EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM %I', taken.name, worker);
        END LOOP;
        IF takes_messages THEN
            PERFORM sec.grant_worker(worker);
        END IF;
        RETURN;
    END IF;
    PERFORM sec.drop_job(j.job) FROM sec.jobs j WHERE j.role_name = worker;
    DELETE FROM sec.worker_privileges w WHERE w.role_name = worker;
    FOR taken IN
        SELECT format('%s %s', CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, c.oid::regclass) AS name FROM pg_class c
        WHERE c.relnamespace IN ('public'::regnamespace, 'sec'::regnamespace, 'audit'::regnamespace)
        AND (EXISTS (SELECT FROM aclexplode(c.relacl) AS a WHERE a.grantee = role_id) OR EXISTS (
            SELECT FROM pg_attribute t, aclexplode(t.attacl) AS a WHERE t.attrelid = c.oid AND a.grantee = role_id))
        UNION ALL
        SELECT format('FUNCTION %s', p.oid::regprocedure) FROM pg_proc p
        WHERE p.pronamespace IN ('public'::regnamespace, 'sec'::regnamespace, 'audit'::regnamespace)
        AND EXISTS (SELECT FROM aclexplode(p.proacl) AS a WHERE a.grantee = role_id)
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM %I', taken.name, worker);
    END LOOP;
    EXECUTE format('REVOKE ALL ON SCHEMA public, sec, audit FROM %I', worker);
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM %I', current_database(), worker);
END $$;

-- The existing workers that take messages.
SELECT sec.grant_worker(role_name) FROM sec.worker_privileges WHERE table_name = 'inbox'::regclass;

-- Who the functions belong to that determine whose work is due. They read rows of all users, but only the columns that migrations
-- grant to this role one by one, and give user ids alone. Nobody can log in as it.
DO $$
BEGIN
    CREATE ROLE memfleet_due NOLOGIN NOINHERIT NOSUPERUSER BYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL;
END $$;
GRANT USAGE ON SCHEMA public TO memfleet_due;

-- A job of a schedule, and the only role that may act for the users whose work is due.
CREATE TABLE sec.jobs (
    job varchar(48) PRIMARY KEY CHECK (job ~ '^[a-z][a-z0-9-]*$'),
    role_name name NOT NULL,
    -- The function by its name, as format('%I.%I') writes it: pg_upgrade refuses columns of the type regprocedure.
    due_function text NOT NULL
);

-- The mints whose grants are good. A grant is worth nothing without its mint's row. A row is kept for a day, so that a tick which is
-- delivered again finds the events of the users it has served.
CREATE TABLE sec.minted_job_grants (
    mint_id uuid PRIMARY KEY,
    job varchar(48) NOT NULL REFERENCES sec.jobs ON DELETE CASCADE,
    tick uuid NOT NULL,
    role_name name NOT NULL,
    -- The users who were due.
    users integer[] NOT NULL,
    minted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL,
    transaction_id bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint
);
CREATE INDEX minted_job_grants_by_tick ON sec.minted_job_grants (job, tick);

-- Like the key of contexts, the key of job grants never leaves the database.
ALTER TABLE sec.keys DROP CONSTRAINT keys_purpose_check;
ALTER TABLE sec.keys ADD CONSTRAINT keys_purpose_check CHECK (purpose IN ('grant', 'context', 'job'));
SELECT sec.add_key('job', 'job',
    sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())));

-- Ends a job, with the grants that were minted for it. For an administrator, and for migrations.
CREATE FUNCTION sec.drop_job(old_job text) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    worker name;
BEGIN
    DELETE FROM sec.jobs j WHERE j.job = old_job RETURNING j.role_name INTO worker;
    IF worker IS NOT NULL AND NOT EXISTS (SELECT FROM sec.jobs j WHERE j.role_name = worker) THEN
        EXECUTE format('REVOKE EXECUTE ON FUNCTION sec.job_grants FROM %I', worker);
    END IF;
END $$;

-- Registers a job, or replaces the one of this name. Its function takes a limit and gives at most so many ids of users whose work
-- is due. It becomes memfleet_due's, and nobody calls it but sec.job_grants. For an administrator, and for migrations.
CREATE FUNCTION sec.add_job(new_job text, worker name, due regprocedure) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    due_function text;
BEGIN
    IF NOT EXISTS (SELECT FROM sec.worker_privileges w WHERE w.role_name = worker) THEN
        RAISE invalid_parameter_value USING MESSAGE = format('%s is not the role of a worker', worker);
    END IF;
    -- STABLE, so that it can write nothing; with the rights of its owner, who is not who calls it.
    SELECT format('%I.%I', n.nspname, p.proname) INTO due_function FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE p.oid = due AND p.prokind = 'f' AND p.pronargs = 1 AND p.proargtypes[0] = 'integer'::regtype
        AND p.prorettype = 'integer'::regtype AND p.proretset AND p.provolatile = 's' AND p.prosecdef
        AND 'search_path=pg_catalog, pg_temp' = ANY (p.proconfig);
    IF due_function IS NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = format('%s does not determine whose work is due', due), HINT =
            'It takes an integer, returns SETOF integer, and is STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp.';
    END IF;
    EXECUTE format('ALTER FUNCTION %s OWNER TO memfleet_due', due);
    EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', due);
    EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO memfleet_owner', due);
    PERFORM sec.drop_job(new_job);
    INSERT INTO sec.jobs (job, role_name, due_function) VALUES (new_job, worker, due_function);
    EXECUTE format('GRANT EXECUTE ON FUNCTION sec.job_grants TO %I', worker);
END $$;

-- Mints grants by which the role of a job acts for the users whose work is due, at most max_users of them; for the platform
-- (user 0), whose message a tick is; and, if the tick is delivered again, for the users for whom it was minted before, so that its
-- events are found. is_due distinguishes the first from the others; user 0 is due if the job's function gives it. The grants are good
-- for five minutes, and only when this transaction has been committed, and with it who acted for whom: a role that mints and rolls
-- back has nothing.
CREATE FUNCTION sec.job_grants(job text, tick uuid, max_users integer)
RETURNS TABLE (user_id integer, is_due boolean, grant_text text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    mint CONSTANT uuid := gen_random_uuid();
    expiry CONSTANT bigint := extract(epoch FROM clock_timestamp() + interval '5 minutes');
    due_function text;
    due integer[];
    users integer[];
    signing record;
BEGIN
    SELECT j.due_function INTO due_function FROM sec.jobs j WHERE j.job = job_grants.job AND j.role_name = session_user;
    IF due_function IS NULL THEN
        RAISE insufficient_privilege USING MESSAGE = 'the security context is refused: this role has no such job';
    END IF;
    -- With as many of earlier mints and the platform's they are as many as one context may have.
    IF tick IS NULL OR (max_users BETWEEN 1 AND 4999) IS NOT TRUE THEN
        RAISE invalid_parameter_value USING MESSAGE = 'job grants: the tick is missing, or max_users is out of range (1 to 4999)';
    END IF;
    -- An old snapshot would show work as due that has been done since.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE insufficient_privilege
            USING MESSAGE = 'the security context is refused: job grants are minted in read committed only';
    END IF;
    SELECT k.key_id, k.inner_pad, k.outer_pad INTO STRICT signing FROM sec.keys k
    WHERE k.purpose = 'job' AND k.retired_at IS NULL ORDER BY k.created_at DESC LIMIT 1;
    BEGIN
        EXECUTE format('SELECT coalesce(array_agg(DISTINCT u), ''{}'') FROM (SELECT u FROM %s($1) AS u WHERE u >= 0 LIMIT $1) AS d',
            due_function) INTO due USING max_users;
    EXCEPTION WHEN insufficient_privilege OR undefined_function OR undefined_table OR undefined_column THEN
        -- One broken job must not look like an unavailable database, for which its worker would wait.
        RAISE insufficient_privilege USING MESSAGE = format('the security context is refused: %s of the job %s fails (SQLSTATE %s)',
            due_function, job, SQLSTATE), DETAIL = SQLERRM;
    END;
    users := ARRAY(SELECT u FROM (SELECT u, max(m.minted_at) AS latest FROM sec.minted_job_grants m, unnest(m.users) AS u
        WHERE m.job = job_grants.job AND m.tick = job_grants.tick AND m.role_name = session_user AND u <> 0 AND u <> ALL (due)
        GROUP BY u ORDER BY latest DESC LIMIT 4999) AS earlier);

    INSERT INTO sec.minted_job_grants (mint_id, job, tick, role_name, users, expires_at)
    VALUES (mint, job, tick, session_user, due, to_timestamp(expiry));
    -- More than are added, so that they never pile up; not all, so that no tick pays for many.
    DELETE FROM sec.minted_job_grants m WHERE m.mint_id IN (SELECT o.mint_id FROM sec.minted_job_grants o
        WHERE o.expires_at < clock_timestamp() - interval '1 day' LIMIT 100 FOR UPDATE SKIP LOCKED);
    users := array_remove(due, 0) || users;
    -- The platform's row has the number of users.
    INSERT INTO audit.data_access_log (subject_token, role_name, service, request_id, access_type, object_name, rows_returned)
    SELECT s.token, session_user, 'job:' || job, tick, 'job-grant', job, CASE u.id WHEN 0 THEN cardinality(users) ELSE 1 END
    FROM unnest(0 || users) AS u (id) LEFT JOIN audit.subjects s ON s.user_id = u.id;
    RETURN QUERY
    SELECT g.id, g.id = ANY (due),
        g.content || '|' || encode(sec.hmac(signing.inner_pad, signing.outer_pad, convert_to(g.content, 'UTF8')), 'hex')
    FROM (SELECT u.id, concat_ws('|', 'v1', signing.key_id, u.id, '', 'job:' || job, session_user, mint, expiry) AS content
        FROM unnest(0 || users) AS u (id)) AS g;
END $$;

-- Opens the context of this transaction from grants, all of which must be good, and gives the number of users. A grant:
-- v1|key id|user|session|service|role|grant id|expiry in seconds since 1970|HMAC-SHA256 in hex of all before it. The id of a job
-- grant is that of its mint, whose row must have been committed by another transaction.
CREATE OR REPLACE FUNCTION sec.open_context(grants text[], session_id text DEFAULT '', service text DEFAULT '') RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    now_seconds bigint := extract(epoch FROM clock_timestamp());
    users integer[];
    services text[];
    ids uuid[];
    mints uuid[];
    bad text;
    named jsonb;
    content text;
BEGIN
    session_id := coalesce(session_id, '');
    service := coalesce(service, '');
    -- A NULL among the parts would let the next one stand in its place, so that none is let in.
    IF (cardinality(grants) BETWEEN 1 AND 10000) IS NOT TRUE OR session_id ~ '[|]' OR service ~ '[|]' THEN
        RAISE insufficient_privilege USING MESSAGE = 'the security context is refused: it needs 1 to 10000 grants';
    END IF;
    -- MATERIALIZED, or every use of a part would take its grant to pieces anew. What has a good seal was written by an
    -- issuer, so that its parts are what they must be.
    WITH parsed AS MATERIALIZED (
        SELECT g, convert_to(g, 'UTF8') AS b, string_to_array(g, '|') AS p FROM unnest(grants) AS g
    ), judged AS MATERIALIZED (
        SELECT p, k.purpose, CASE
            WHEN g IS NULL OR cardinality(p) <> 9 OR p[1] <> 'v1' THEN 'malformed'
            WHEN k.key_id IS NULL THEN 'unknown key'
            WHEN p[9] IS DISTINCT FROM encode(sec.hmac(k.inner_pad, k.outer_pad,
                substr(b, 1, greatest(octet_length(b) - 65, 0))), 'hex') THEN 'forged'
            WHEN p[6] <> session_user THEN 'of another role'
            WHEN p[8]::bigint <= now_seconds THEN 'expired'
            END AS fault
        FROM parsed LEFT JOIN sec.keys k ON k.key_id = p[2] AND k.purpose IN ('grant', 'job') AND k.retired_at IS NULL
    )
    SELECT array_agg(CASE WHEN fault IS NULL THEN p[3]::integer END), array_agg(p[5]),
        array_agg(CASE WHEN fault IS NULL THEN p[7]::uuid END),
        array_agg(p[7]::uuid) FILTER (WHERE fault IS NULL AND purpose = 'job'), min(fault)
    INTO users, services, ids, mints, bad FROM judged;
    IF bad IS NULL AND EXISTS (SELECT FROM sec.revoked_grants WHERE grant_id = ANY (ids)) THEN
        bad := 'revoked';
    END IF;
    IF bad IS NULL AND mints IS NOT NULL THEN
        SELECT min(CASE WHEN m.mint_id IS NULL THEN 'of no committed mint'
            WHEN m.expires_at <= clock_timestamp() THEN 'expired' END)
        INTO bad FROM unnest(mints) AS g (id) LEFT JOIN sec.minted_job_grants m
            ON m.mint_id = g.id AND m.transaction_id IS DISTINCT FROM pg_current_xact_id_if_assigned()::text::bigint;
    END IF;
    IF bad IS NOT NULL THEN
        RAISE insufficient_privilege USING MESSAGE = format('the security context is refused: a grant is %s', bad);
    END IF;
    IF services[1] = ALL (services) THEN
        named := to_jsonb(services[1]);
    ELSE
        SELECT jsonb_object_agg(u, names) INTO named FROM (
            SELECT u, string_agg(DISTINCT s, ', ') AS names FROM unnest(users, services) AS g (u, s) GROUP BY u) AS by_user;
    END IF;
    PERFORM set_config('memfleet.services', named::text || sec.seal('services|' || named::text), true);
    SELECT array_agg(DISTINCT u) INTO users FROM unnest(users) AS u;
    content := concat_ws('|', array_to_string(users, ','), session_id, service);
    PERFORM set_config('memfleet.context', content || '|' || sec.seal(content), true);
    RETURN cardinality(users);
END $$;

DO $$
DECLARE
    made record;
BEGIN
    ALTER TABLE sec.jobs OWNER TO memfleet_owner;
    ALTER TABLE sec.minted_job_grants OWNER TO memfleet_owner;
    ALTER FUNCTION sec.job_grants OWNER TO memfleet_owner;
    -- The others are for an administrator, and act with the administrator's own rights.
    FOR made IN SELECT p.oid::regprocedure AS name FROM pg_proc p WHERE p.pronamespace = 'sec'::regnamespace
        AND p.proname IN ('message_privileges', 'worker_functions', 'read_privileges', 'grant_worker', 'revoke_worker', 'add_job',
            'drop_job', 'job_grants') LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', made.name);
    END LOOP;
END $$;
