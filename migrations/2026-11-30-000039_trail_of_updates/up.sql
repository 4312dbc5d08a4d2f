-- The trail of updates, by a function for each table that compares its columns. The function for all tables turned both versions of
-- every row into JSON to find out which columns differ, which took more than half of the trail's time (docs/adr/0056).
SET LOCAL lock_timeout = '100ms';

-- Makes the function of a table, and gives its name.
CREATE FUNCTION audit.make_update_function(target regclass) RETURNS text LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $make$
DECLARE
    is_users CONSTANT boolean := target = 'public.users'::regclass;
    name CONSTANT text := (SELECT 'note_updates_of_' || c.relname FROM pg_class c WHERE c.oid = target);
    columns CONSTANT text := (
        SELECT string_agg(format('CASE WHEN o.%1$I IS DISTINCT FROM n.%1$I THEN %1$L END', a.attname), ', ' ORDER BY a.attnum)
        FROM pg_attribute a WHERE a.attrelid = target AND a.attnum > 0 AND NOT a.attisdropped AND a.attname <> 'request_id');
BEGIN
    EXECUTE format($function$
        CREATE OR REPLACE FUNCTION audit.%1$I() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres'
        SET bytea_output = 'hex' SET extra_float_digits = 1 AS $body$
        DECLARE
            this_transaction bigint := pg_current_xact_id()::text::bigint;
            role text := session_user;
            services jsonb := sec.context_services();
            one_service text := CASE WHEN jsonb_typeof(services) = 'string' THEN services #>> '{}' END;
            -- Ids of version 7 (RFC 9562) that grow within the statement: its time, its share of chance, a count from a
            -- random number on.
            chance text := gen_random_uuid()::text;
            id_start text := lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0');
            id_count bigint := ('x' || right(chance, 11))::bit(44)::bigint;
        BEGIN
            id_start := overlay(id_start || '-7' PLACING '-' FROM 9 FOR 0) || substr(chance, 16, 9);
            INSERT INTO audit.audit_log (id, subject_token, role_name, service, request_id, table_name, operation,
                row_digest_before, row_digest_after, changed_columns, transaction_id, row_id)
            SELECT (id_start || lpad(to_hex(id_count + row_number() OVER ()), 12, '0'))::uuid,
                s.token, role, coalesce(one_service, services ->> w.owner::text), w.request_id, TG_TABLE_NAME,
                (CASE WHEN w.before IS NULL THEN 'INSERT' WHEN w.after IS NULL THEN 'DELETE' ELSE 'UPDATE' END)::audit.operation,
                sha256(coalesce(s.digest_key, '') || sha256(convert_to(w.before, 'UTF8'))),
                sha256(coalesce(s.digest_key, '') || sha256(convert_to(w.after, 'UTF8'))),
                w.changed, this_transaction, w.row_id
            -- A row whose key has changed is one that went and one that came.
            FROM (SELECT coalesce(n.%2$I, o.%2$I) AS owner, %3$s AS row_id, n.request_id, o::text AS before, n::text AS after,
                    CASE WHEN o.id IS NULL OR n.id IS NULL THEN '{}' ELSE array_remove(ARRAY[%4$s], NULL) END AS changed
                FROM (SELECT * FROM old_rows) AS o FULL JOIN (SELECT * FROM new_rows) AS n ON o.%2$I = n.%2$I AND o.id = n.id) AS w
            -- One look into the index for each row, however few subjects the planner believes there are.
            LEFT JOIN LATERAL (SELECT token, digest_key FROM audit.subjects WHERE user_id = w.owner OFFSET 0) AS s ON true;
            RETURN NULL;
        END $body$ $function$,
        name, CASE WHEN is_users THEN 'id' ELSE 'user_id' END, CASE WHEN is_users THEN 'NULL::uuid' ELSE 'coalesce(n.id, o.id)' END, columns);
    EXECUTE format('ALTER FUNCTION audit.%I OWNER TO memfleet_owner', name);
    EXECUTE format('REVOKE EXECUTE ON FUNCTION audit.%I FROM PUBLIC', name);
    RETURN name;
END $make$;
REVOKE EXECUTE ON FUNCTION audit.make_update_function FROM PUBLIC;
ALTER FUNCTION audit.make_update_function OWNER TO memfleet_owner;

-- Makes the function and the trigger of a table. A migration that changes the columns of a table calls it again.
CREATE FUNCTION audit.follow_updates(target regclass) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('CREATE OR REPLACE TRIGGER audit_update AFTER UPDATE ON %s REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
        FOR EACH STATEMENT EXECUTE FUNCTION audit.%I()', target, audit.make_update_function(target));
END $$;
REVOKE EXECUTE ON FUNCTION audit.follow_updates FROM PUBLIC;
ALTER FUNCTION audit.follow_updates OWNER TO memfleet_owner;

-- All functions first: the triggers lock the tables until the end of this transaction.
DO $$
DECLARE
    made text[];
    of_table text;
BEGIN
    made := ARRAY(
        SELECT format('CREATE OR REPLACE TRIGGER audit_update AFTER UPDATE ON %s REFERENCING OLD TABLE AS old_rows
            NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION audit.%I()', c.oid::regclass, audit.make_update_function(c.oid))
        FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid AND NOT c.relispartition
        WHERE t.tgname = 'audit_update' ORDER BY c.relname = 'blackboard_events', c.oid);
    FOREACH of_table IN ARRAY made LOOP
        EXECUTE of_table;
    END LOOP;
END $$;
