-- The key store: a database of its own, separate from the main database and its backups, so that a copy of either of them
-- reveals nothing.
SET LOCAL lock_timeout = '100ms';

DO $$
BEGIN
    IF to_regclass('public.inbox') IS NOT NULL THEN
        RAISE 'this is the main database; the key store must be another database, so that keys are stored apart from the data';
    END IF;
END $$;

-- The same roles as in the main database. Roles belong to the cluster, which may be the same or another one.
DO $$
DECLARE
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['memfleet_owner', 'w_context_writer'] LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I %s NOINHERIT NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION',
                role_name, CASE WHEN role_name = 'memfleet_owner' THEN 'NOLOGIN' ELSE 'LOGIN' END);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END LOOP;
END $$;

-- The data keys of users. The highest version encrypts; every version decrypts, also fields in backups.
CREATE TABLE data_keys (
    user_id integer NOT NULL CHECK (user_id >= 0),
    -- Incremented by every rotation.
    version integer NOT NULL CHECK (version BETWEEN 1 AND 1000000),
    -- The key-encryption key that wraps it, such as `ring:kek.3`.
    kek varchar(512) NOT NULL,
    wrapped bytea NOT NULL CHECK (octet_length(wrapped) BETWEEN 32 AND 8192),
    created_at timestamptz NOT NULL DEFAULT now(),
    wrapped_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, version)
);
CREATE INDEX data_keys_by_kek ON data_keys (kek);

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO w_context_writer;
GRANT SELECT ON __diesel_schema_migrations TO w_context_writer;
-- A worker creates and reads keys. It cannot change or delete them.
GRANT SELECT, INSERT ON data_keys TO w_context_writer;
ALTER TABLE data_keys OWNER TO memfleet_owner;

-- Only the worker roles may connect. Database privileges are not copied from a template, so a copy must call this again.
CREATE FUNCTION guard_database() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO w_context_writer', current_database());
END $$;
REVOKE EXECUTE ON FUNCTION guard_database FROM PUBLIC;
SELECT guard_database();
