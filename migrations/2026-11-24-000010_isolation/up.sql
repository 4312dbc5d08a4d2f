-- Isolation by the database itself: roles, security contexts, row-level security (docs/SECURITY.md).
--
-- A context says for which users the statements of a transaction may act. It is opened from grants, which only an issuer
-- can make, and sealed with a key that only functions of the owner can read: no role can write itself another one.
SET LOCAL lock_timeout = '100ms';

-- Roles are of the whole cluster, so other databases may have them already, and down.sql leaves them.
DO $$
DECLARE
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['memfleet_owner', 'w_context_writer', 'w_router_logger', 'w_consensus_builder',
        'w_vector_indexer', 'w_memory_sync', 'w_retention_cleaner', 'w_gpu_allocator', 'w_memory_reader'] LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I %s NOINHERIT NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION',
                role_name, CASE WHEN role_name = 'memfleet_owner' THEN 'NOLOGIN' ELSE 'LOGIN' END);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END LOOP;
END $$;

CREATE SCHEMA sec;

-- HMAC-SHA256 (RFC 2104) with the key's two pads made beforehand.
CREATE TABLE sec.keys (
    key_id varchar(32) PRIMARY KEY CHECK (key_id ~ '^[a-z0-9-]+$'),
    purpose varchar(16) NOT NULL CHECK (purpose IN ('grant', 'context')),
    inner_pad bytea NOT NULL CHECK (octet_length(inner_pad) = 64),
    outer_pad bytea NOT NULL CHECK (octet_length(outer_pad) = 64),
    created_at timestamptz NOT NULL DEFAULT now(),
    retired_at timestamptz
);

CREATE TABLE sec.revoked_grants (
    grant_id uuid PRIMARY KEY,
    revoked_at timestamptz NOT NULL DEFAULT now()
);

-- What each worker's role may do, and no more.
CREATE TABLE sec.worker_privileges (
    role_name name NOT NULL,
    table_name regclass NOT NULL,
    privileges text[] NOT NULL,
    PRIMARY KEY (role_name, table_name)
);

-- Names every schema instead of setting a path, so that it can be inlined: a batch calls it for each of its users.
CREATE FUNCTION sec.hmac(inner_pad bytea, outer_pad bytea, message bytea) RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT pg_catalog.sha256(outer_pad OPERATOR(pg_catalog.||) pg_catalog.sha256(inner_pad OPERATOR(pg_catalog.||) message))
$$;

-- Adds a key, or replaces the one of this name. For an administrator.
CREATE FUNCTION sec.add_key(new_key_id text, new_purpose text, key bytea) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    padded bytea := key || decode(repeat('00', 64 - octet_length(key)), 'hex');
    inner_pad bytea := padded;
    outer_pad bytea := padded;
BEGIN
    IF octet_length(key) NOT BETWEEN 32 AND 64 THEN
        RAISE 'a key has 32 to 64 bytes, not %', octet_length(key);
    END IF;
    FOR place IN 0 .. 63 LOOP
        inner_pad := set_byte(inner_pad, place, get_byte(padded, place) # 54);
        outer_pad := set_byte(outer_pad, place, get_byte(padded, place) # 92);
    END LOOP;
    INSERT INTO sec.keys AS k (key_id, purpose, inner_pad, outer_pad)
    VALUES (new_key_id, new_purpose, inner_pad, outer_pad)
    ON CONFLICT (key_id) DO UPDATE SET purpose = excluded.purpose, inner_pad = excluded.inner_pad,
        outer_pad = excluded.outer_pad, created_at = now(), retired_at = NULL;
END $$;

-- The key of contexts never leaves the database. Three random UUIDs hold 366 random bits.
SELECT sec.add_key('context', 'context',
    sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())));

-- What a context of this transaction is sealed over: another backend, another transaction and another role make another
-- seal, so a context that was copied is worth nothing there.
CREATE FUNCTION sec.seal(content text) RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT encode(sec.hmac(inner_pad, outer_pad, convert_to(concat_ws('|', content, pg_backend_pid(),
        extract(epoch FROM transaction_timestamp()), session_user), 'UTF8')), 'hex')
    FROM sec.keys WHERE key_id = 'context'
$$;

-- The parts of this transaction's context: users, session, service. NULL without one; an error if it is not genuine.
CREATE FUNCTION sec.context() RETURNS text[] LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    held text := current_setting('memfleet.context', true);
    parts text[];
BEGIN
    IF held IS NULL OR held = '' THEN
        RETURN NULL;
    END IF;
    parts := string_to_array(held, '|');
    IF array_length(parts, 1) IS DISTINCT FROM 4
        OR parts[4] IS DISTINCT FROM sec.seal(concat_ws('|', parts[1], parts[2], parts[3])) THEN
        RAISE insufficient_privilege USING MESSAGE = 'the security context is not genuine';
    END IF;
    RETURN parts;
END $$;

-- The users of the context; none without one. In a policy only as (SELECT sec.current_user_ids()), so that it is called
-- once for a table of a statement and not for each row. It does by itself what sec.context and sec.seal do: every read pays
-- for it, and each function that is called from it would cost it as much again.
CREATE FUNCTION sec.current_user_ids() RETURNS integer[] LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    held text := current_setting('memfleet.context', true);
    genuine boolean;
BEGIN
    IF held IS NULL OR held = '' THEN
        RETURN '{}';
    END IF;
    SELECT right(held, 65) = '|' || encode(sec.hmac(inner_pad, outer_pad, convert_to(concat_ws('|', left(held, -65),
        pg_backend_pid(), extract(epoch FROM transaction_timestamp()), session_user), 'UTF8')), 'hex')
    INTO genuine FROM sec.keys WHERE key_id = 'context';
    IF genuine IS NOT TRUE THEN
        RAISE insufficient_privilege USING MESSAGE = 'the security context is not genuine';
    END IF;
    RETURN string_to_array(split_part(held, '|', 1), ',')::integer[];
END $$;

-- The services in whose name the context acts: one name for all its users, or an object of names by user. NULL without a
-- context; an error if it is not genuine.
CREATE FUNCTION sec.context_services() RETURNS jsonb LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    held text := current_setting('memfleet.services', true);
BEGIN
    IF held IS NULL OR held = '' THEN
        RETURN NULL;
    END IF;
    IF right(held, 64) IS DISTINCT FROM sec.seal('services|' || left(held, -64)) THEN
        RAISE insufficient_privilege USING MESSAGE = 'the security context is not genuine';
    END IF;
    RETURN left(held, -64)::jsonb;
END $$;

-- Opens the context of this transaction from grants, all of which must be good, and gives the number of users. A grant:
-- v1|key id|user|session|service|role|grant id|expiry in seconds since 1970|HMAC-SHA256 in hex of all before it.
CREATE FUNCTION sec.open_context(grants text[], session_id text DEFAULT '', service text DEFAULT '') RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    now_seconds bigint := extract(epoch FROM clock_timestamp());
    users integer[];
    services text[];
    ids uuid[];
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
        SELECT p, CASE
            WHEN g IS NULL OR cardinality(p) <> 9 OR p[1] <> 'v1' THEN 'malformed'
            WHEN k.key_id IS NULL THEN 'unknown key'
            WHEN p[9] IS DISTINCT FROM encode(sec.hmac(k.inner_pad, k.outer_pad,
                substr(b, 1, greatest(octet_length(b) - 65, 0))), 'hex') THEN 'forged'
            WHEN p[6] <> session_user THEN 'of another role'
            WHEN p[8]::bigint <= now_seconds THEN 'expired'
            END AS fault
        FROM parsed LEFT JOIN sec.keys k ON k.key_id = p[2] AND k.purpose = 'grant' AND k.retired_at IS NULL
    )
    SELECT array_agg(CASE WHEN fault IS NULL THEN p[3]::integer END), array_agg(p[5]),
        array_agg(CASE WHEN fault IS NULL THEN p[7]::uuid END), min(fault)
    INTO users, services, ids, bad FROM judged;
    IF bad IS NULL AND EXISTS (SELECT FROM sec.revoked_grants WHERE grant_id = ANY (ids)) THEN
        bad := 'revoked';
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

-- Opens the context of one user from the grant in the setting memfleet.grant (the reference document's function).
CREATE FUNCTION set_security_context(user_id integer, session_id text, service text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    given text := current_setting('memfleet.grant', true);
    parts text[] := string_to_array(given, '|');
BEGIN
    IF parts IS NULL OR parts[3] IS DISTINCT FROM user_id::text OR parts[5] IS DISTINCT FROM service
        OR (parts[4] <> '' AND parts[4] IS DISTINCT FROM session_id) THEN
        RAISE insufficient_privilege
            USING MESSAGE = 'the security context is refused: the setting memfleet.grant holds no grant for it';
    END IF;
    PERFORM sec.open_context(ARRAY[given], coalesce(session_id, ''), service);
END $$;

-- The user of the context, if it is of one user.
CREATE FUNCTION get_current_user_id() RETURNS integer LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN cardinality(ids) = 1 THEN ids[1] END FROM sec.current_user_ids() AS ids
$$;
CREATE FUNCTION get_current_session_id() RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT nullif((sec.context())[2], '')
$$;
CREATE FUNCTION get_current_service_name() RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT nullif((sec.context())[3], '')
$$;
-- Whether there is a genuine context; never an error.
CREATE FUNCTION validate_security_context() RETURNS boolean LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN sec.context() IS NOT NULL;
EXCEPTION WHEN insufficient_privilege THEN
    RETURN false;
END $$;

-- Row-level security on every table that holds a user's rows: a table that is forgotten here is found by the test that
-- looks for columns named user_id.
DO $$
DECLARE
    target record;
BEGIN
    FOR target IN
        SELECT c.oid::regclass AS name, a.attname AS owner_column
        FROM pg_class c
        JOIN pg_attribute a ON a.attrelid = c.oid AND NOT a.attisdropped
            AND a.attname = CASE WHEN c.relname = 'users' THEN 'id' ELSE 'user_id' END
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND c.relname <> 'cross_service_auth'
        -- In the order in which a worker's transaction comes by them, so that neither waits for the other in a circle.
        ORDER BY c.relname <> 'inbox', c.oid
    LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', target.name);
        EXECUTE format('CREATE POLICY own_rows ON %s USING (%2$I = ANY ((SELECT sec.current_user_ids())::integer[]))
            WITH CHECK (%2$I = ANY ((SELECT sec.current_user_ids())::integer[]))', target.name, target.owner_column);
    END LOOP;
END $$;

INSERT INTO sec.worker_privileges (role_name, table_name, privileges)
SELECT 'w_context_writer', name::regclass, '{SELECT,INSERT,UPDATE}'::text[] FROM unnest(ARRAY['users', 'user_profiles',
    'system_settings', 'registered_devices', 'user_two_factor_auth', 'passkey_credentials', 'chat_mode_sessions',
    'simple_chat_context', 'chat_history', 'chat_messages', 'chat_session_summary', 'message_feedback',
    'agent_context_states', 'encrypted_fields']) AS name
UNION ALL SELECT role, name::regclass, '{SELECT,INSERT}'::text[] FROM
    unnest(ARRAY['w_context_writer', 'w_router_logger', 'w_consensus_builder', 'w_vector_indexer', 'w_memory_sync',
    'w_retention_cleaner', 'w_gpu_allocator']) AS role, unnest(ARRAY['blackboard_events']) AS name
UNION ALL SELECT role, 'inbox'::regclass, '{SELECT,INSERT,DELETE}'::text[] FROM
    unnest(ARRAY['w_context_writer', 'w_router_logger', 'w_consensus_builder', 'w_vector_indexer', 'w_memory_sync',
    'w_retention_cleaner', 'w_gpu_allocator']) AS role;

REVOKE ALL ON SCHEMA public FROM PUBLIC;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA public, sec FROM PUBLIC;
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

-- The rights themselves, which are those of the table and no others.
DO $$
DECLARE
    given record;
BEGIN
    FOR given IN SELECT role_name, table_name, array_to_string(privileges, ', ') AS privileges FROM sec.worker_privileges LOOP
        EXECUTE format('GRANT %s ON %s TO %I', given.privileges, given.table_name, given.role_name);
    END LOOP;
    FOR given IN SELECT DISTINCT role_name FROM sec.worker_privileges LOOP
        EXECUTE format('GRANT USAGE ON SCHEMA public, sec TO %I', given.role_name);
        EXECUTE format('GRANT USAGE ON SEQUENCE blackboard_event_sequence TO %I', given.role_name);
        EXECUTE format('GRANT SELECT ON __diesel_schema_migrations TO %I', given.role_name);
        EXECUTE format('GRANT EXECUTE ON FUNCTION sec.open_context, sec.current_user_ids, sec.context, set_security_context,
            get_current_user_id, get_current_session_id, get_current_service_name, validate_security_context TO %I',
            given.role_name);
    END LOOP;
END $$;

-- Who comes from nowhere may not even connect, nor make temporary tables. It is for this database, and not copied with
-- it when it is a template.
CREATE FUNCTION sec.guard_database() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    worker text;
BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    FOR worker IN SELECT DISTINCT role_name FROM sec.worker_privileges LOOP
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), worker);
    END LOOP;
END $$;
SELECT sec.guard_database();

-- What the role of this connection may do beyond what its worker needs, a line each.
CREATE FUNCTION sec.excess_privileges() RETURNS SETOF text LANGUAGE sql STABLE SECURITY DEFINER
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
REVOKE EXECUTE ON FUNCTION sec.guard_database, sec.excess_privileges FROM PUBLIC;

DO $$
DECLARE
    worker text;
    owned record;
BEGIN
    FOR worker IN SELECT DISTINCT role_name FROM sec.worker_privileges LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION sec.excess_privileges TO %I', worker);
    END LOOP;
    -- The owner cannot log in, so nobody is it; and as every table forces its policies, it sees no row either.
    FOR owned IN SELECT c.oid::regclass AS name, c.relkind FROM pg_class c
        WHERE c.relnamespace IN ('public'::regnamespace, 'sec'::regnamespace, 'audit'::regnamespace)
        AND c.relkind IN ('r', 'p') AND c.relname <> '__diesel_schema_migrations' LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO memfleet_owner', owned.name);
    END LOOP;
    FOR owned IN SELECT p.oid::regprocedure AS name FROM pg_proc p
        WHERE p.pronamespace IN ('public'::regnamespace, 'sec'::regnamespace, 'audit'::regnamespace)
        -- These are for an administrator, and act with the administrator's own rights.
        AND p.proname NOT IN ('make_month_partitions', 'guard_database', 'add_key') LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO memfleet_owner', owned.name);
    END LOOP;
END $$;
GRANT USAGE ON SCHEMA public, sec, audit TO memfleet_owner;
