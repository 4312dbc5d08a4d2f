SET LOCAL lock_timeout = '100ms';

DO $$
DECLARE
    target record;
BEGIN
    FOR target IN SELECT c.oid::regclass AS name, CASE WHEN c.relname = 'users' THEN 'id' ELSE 'user_id' END AS owner_column
        FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid WHERE p.polname = 'own_rows' ORDER BY c.relname <> 'inbox', c.oid
    LOOP
        EXECUTE format('ALTER POLICY own_rows ON %s USING (%I = ANY ((SELECT sec.current_user_ids())::integer[]))',
            target.name, target.owner_column);
    END LOOP;
END $$;
CREATE OR REPLACE FUNCTION make_month_partitions(parent regclass, months integer) RETURNS integer LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    schema_name name;
    table_name name;
    parent_owner name;
    starts timestamptz;
    lower_id uuid;
    upper_id uuid;
    part text;
    made integer := 0;
BEGIN
    IF months NOT BETWEEN 0 AND 120 THEN
        RAISE 'months is %; it must be from 0 to 120', months;
    END IF;
    SELECT n.nspname, c.relname, pg_get_userbyid(c.relowner) INTO STRICT schema_name, table_name, parent_owner
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = parent;
    FOR step IN 0 .. months LOOP
        starts := (date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => step)) AT TIME ZONE 'UTC';
        lower_id := public.uuid7_at(starts);
        upper_id := public.uuid7_at(
            (starts AT TIME ZONE 'UTC' + make_interval(months => 1)) AT TIME ZONE 'UTC');
        part := format('%I.%I', schema_name, table_name || to_char(starts AT TIME ZONE 'UTC', '_YYYY_MM'));
        CONTINUE WHEN to_regclass(part) IS NOT NULL;
        EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', part, parent);
        EXECUTE format(
            'WITH moved AS (DELETE FROM %I.%I WHERE id >= %L AND id < %L RETURNING *) INSERT INTO %s SELECT * FROM moved',
            schema_name, table_name || '_default', lower_id, upper_id, part);
        EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)',
            parent, part, lower_id, upper_id);
        EXECUTE format('ALTER TABLE %s OWNER TO %I', part, parent_owner);
        made := made + 1;
    END LOOP;
    RETURN made;
END $$;
DROP FUNCTION sec.protect_rows(regclass);

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
DROP FUNCTION sec.current_users();
