-- The policy of a user's rows is evaluated before the conditions of a statement (docs/adr/0060).
--
-- PostgreSQL evaluates a cheap condition that cannot leak, such as content < 'm', before a dearer policy, and finds out whose rows may be
-- read when the first row has satisfied it. When it does so can be observed: by its error if the context is not genuine, and with
-- EXPLAIN (ANALYZE). So a role learned, without any grant, whether anybody has a row that satisfies a condition.
SET LOCAL lock_timeout = '100ms';

-- The users of the context as the keys of an object. A subscript costs nothing by PostgreSQL's estimate, so that no condition is
-- cheaper. In a policy only as (SELECT sec.current_users()), as sec.current_user_ids.
CREATE FUNCTION sec.current_users() RETURNS jsonb LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    keys CONSTANT text := array_to_string(sec.current_user_ids(), '":1,"');
BEGIN
    RETURN (CASE WHEN keys = '' THEN '{}' ELSE '{"' || keys || '":1}' END)::jsonb;
END $$;
ALTER FUNCTION sec.current_users OWNER TO memfleet_owner;
REVOKE EXECUTE ON FUNCTION sec.current_users FROM PUBLIC;

CREATE OR REPLACE FUNCTION sec.worker_functions() RETURNS regprocedure[] LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT ARRAY['sec.open_context(text[], text, text)', 'sec.current_user_ids()', 'sec.current_users()', 'sec.context()',
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
DECLARE
    worker name;
BEGIN
    FOR worker IN SELECT DISTINCT role_name FROM sec.worker_privileges LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION sec.current_users TO %I', worker);
    END LOOP;
END $$;

-- Forces row-level security on a table with users' rows, with the one policy that admits them. Its first condition is what is evaluated
-- before all others, its second one is what indexes are used for. A row that is written was not there before, so that nothing is learned
-- of it. For migrations, also for a table that has the policy already.
CREATE FUNCTION sec.protect_rows(target regclass) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    owner_column CONSTANT text := CASE WHEN target = 'public.users'::regclass THEN 'id' ELSE 'user_id' END;
    own CONSTANT text := format('%I = ANY ((SELECT sec.current_user_ids())::integer[])', owner_column);
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', target);
    EXECUTE format('%s POLICY own_rows ON %s USING (((SELECT sec.current_users())::jsonb)[%I] IS NOT NULL AND %s) WITH CHECK (%s)',
        CASE WHEN EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = target AND p.polname = 'own_rows') THEN 'ALTER' ELSE 'CREATE' END,
        target, owner_column, own, own);
END $$;
REVOKE EXECUTE ON FUNCTION sec.protect_rows FROM PUBLIC;
ALTER FUNCTION sec.protect_rows OWNER TO memfleet_owner;

-- A partition has the policy too, though no role has a privilege on it. Until now those that were added after the migrations had none.
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
        IF EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = parent AND p.polname = 'own_rows') THEN
            PERFORM sec.protect_rows(part::regclass);
        END IF;
        EXECUTE format('ALTER TABLE %s OWNER TO %I', part, parent_owner);
        made := made + 1;
    END LOOP;
    RETURN made;
END $$;

-- Last, because it locks the tables until the end of this transaction; in the order in which a worker's transaction comes by them.
SELECT sec.protect_rows(c.oid) FROM (
    SELECT r.oid FROM pg_class r LEFT JOIN pg_inherits i ON i.inhrelid = r.oid
    WHERE EXISTS (SELECT FROM pg_policy p WHERE p.polrelid IN (r.oid, i.inhparent) AND p.polname = 'own_rows')
    ORDER BY r.relname <> 'inbox', r.oid) AS c;
