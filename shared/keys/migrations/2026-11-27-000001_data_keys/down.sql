SET LOCAL lock_timeout = '100ms';

-- Without the keys, what they have encrypted is lost for good: they are not thrown away by going back a version.
DO $$
BEGIN
    IF EXISTS (SELECT FROM data_keys) THEN
        RAISE 'data_keys holds keys, and what they have encrypted would be lost; drop the database if that is meant';
    END IF;
END $$;
DROP TABLE data_keys;
DROP FUNCTION guard_database;
GRANT USAGE, CREATE ON SCHEMA public TO PUBLIC;
REVOKE USAGE ON SCHEMA public FROM w_context_writer;
REVOKE SELECT ON __diesel_schema_migrations FROM w_context_writer;
DO $$
BEGIN
    EXECUTE format('GRANT CONNECT, TEMPORARY ON DATABASE %I TO PUBLIC', current_database());
    EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM w_context_writer', current_database());
END $$;
