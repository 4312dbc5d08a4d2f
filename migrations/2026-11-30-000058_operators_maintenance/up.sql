-- What `memfleet maintenance run` needs beyond PostgreSQL's own commands (docs/adr/0054). All of it is for an administrator, and acts with
-- the administrator's own rights; a role that row-level security hides rows from gets an error, and takes no partition for empty.
SET LOCAL lock_timeout = '100ms';

-- How large an index was after it was rebuilt. The estimate of what it needs may be wrong: it is rebuilt again when it has grown.
CREATE TABLE maintenance_indexes (
    index_name text PRIMARY KEY,
    rebuilt_at timestamptz NOT NULL DEFAULT now(),
    bytes bigint NOT NULL CHECK (bytes >= 0)
);
ALTER TABLE maintenance_indexes OWNER TO memfleet_owner;

-- The time of a UUID of version 7.
CREATE FUNCTION uuid7_time(id uuid) RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT to_timestamp(('x' || left(replace(id::text, '-', ''), 12))::bit(48)::bigint / 1000.0)
$$;

-- Makes the partition of the earliest past month whose rows stand in the default partition, moves them, and gives its name; NULL if there is
-- none. One month at a time, since writers of rows that have no partition either wait for it.
CREATE FUNCTION make_missed_partition(parent regclass) RETURNS text LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET row_security = off AS $$
DECLARE
    schema_name name;
    table_name name;
    parent_owner name;
    earliest timestamptz;
    starts timestamp;
    lower_id uuid;
    upper_id uuid;
    part text;
BEGIN
    SELECT n.nspname, c.relname, pg_get_userbyid(c.relowner) INTO STRICT schema_name, table_name, parent_owner
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = parent;
    EXECUTE format('SELECT public.uuid7_time(id) FROM %I.%I WHERE id < %L ORDER BY id LIMIT 1', schema_name, table_name || '_default',
        public.uuid7_at(date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC')) INTO earliest;
    starts := date_trunc('month', earliest AT TIME ZONE 'UTC');
    IF starts IS NULL THEN
        RETURN NULL;
    END IF;
    lower_id := public.uuid7_at(starts AT TIME ZONE 'UTC');
    upper_id := public.uuid7_at((starts + make_interval(months => 1)) AT TIME ZONE 'UTC');
    part := format('%I.%I', schema_name, table_name || to_char(starts, '_YYYY_MM'));
    EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', part, parent);
    EXECUTE format('WITH moved AS (DELETE FROM %I.%I WHERE id >= %L AND id < %L RETURNING *) INSERT INTO %s SELECT * FROM moved',
        schema_name, table_name || '_default', lower_id, upper_id, part);
    EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)', parent, part, lower_id, upper_id);
    IF EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = parent AND p.polname = 'own_rows') THEN
        PERFORM sec.protect_rows(part::regclass);
    END IF;
    EXECUTE format('ALTER TABLE %s OWNER TO %I', part, parent_owner);
    RETURN part;
END $$;

-- Drops the oldest empty partition of a month before the last one, and gives its name; NULL if there is none. Whoever writes waits for the
-- look into the partition, which has no rows, and for the drop.
CREATE FUNCTION drop_empty_partition(parent regclass) RETURNS text LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET row_security = off AS $$
DECLARE
    part record;
    has_rows boolean;
    last_month CONSTANT text := to_char(date_trunc('month', now() AT TIME ZONE 'UTC') - interval '1 month', '_YYYY_MM');
BEGIN
    FOR part IN SELECT c.oid::regclass::text AS name FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = parent AND c.relname ~ '_\d{4}_\d{2}$' AND right(c.relname, 8) < last_month ORDER BY right(c.relname, 8)
    LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM %s)', part.name) INTO has_rows;
        CONTINUE WHEN has_rows;
        EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', part.name);
        EXECUTE format('SELECT EXISTS (SELECT FROM %s)', part.name) INTO has_rows;
        CONTINUE WHEN has_rows;
        EXECUTE format('DROP TABLE %s', part.name);
        RETURN part.name;
    END LOOP;
    RETURN NULL;
END $$;

REVOKE EXECUTE ON FUNCTION uuid7_time, make_missed_partition, drop_empty_partition FROM PUBLIC;
