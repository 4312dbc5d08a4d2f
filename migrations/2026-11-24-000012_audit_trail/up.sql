-- The audit trail: statement-level triggers write a row for every row of a user that is inserted, updated or deleted, in the
-- transaction of the effect (docs/adr/0014, docs/SECURITY.md).
SET LOCAL lock_timeout = '100ms';

-- Digests are keyed with the subject's own key. Erasing a user erases token and key: what stays says no more whose it was,
-- and no guess at a value can be tried against it.
ALTER TABLE audit.subjects ADD COLUMN digest_key bytea NOT NULL
    DEFAULT sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))
    CHECK (octet_length(digest_key) = 32);
-- Before anything is locked that writers need; and once more at the end, for those who came meanwhile.
INSERT INTO audit.subjects (user_id) SELECT id FROM users ON CONFLICT DO NOTHING;

-- Sealing takes rows in the order of their transactions, of which the finished ones are known; ids have no such order. A
-- user may act through several services in one transaction, so that there is no bound to their names together; and a text is
-- shorter than a name, which always takes 64 bytes.
DO $$
DECLARE
    log text;
BEGIN
    FOREACH log IN ARRAY ARRAY['audit_log', 'security_violations', 'data_access_log'] LOOP
        EXECUTE format('ALTER TABLE audit.%I ALTER COLUMN service TYPE text, ALTER COLUMN role_name TYPE text,
            ADD COLUMN transaction_id bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint', log);
    END LOOP;
END $$;
-- The row that changed; NULL for a row of users, whose key is the user.
ALTER TABLE audit.audit_log ADD COLUMN row_id uuid;
-- In this order rows are sealed, and no other key is paid for: nothing refers to a row of the trail.
ALTER TABLE audit.audit_log DROP CONSTRAINT audit_log_pkey, ADD PRIMARY KEY (transaction_id, id);
CREATE INDEX security_violations_in_order ON audit.security_violations (transaction_id, id);
CREATE INDEX security_violations_by_subject ON audit.security_violations (subject_token, id);
CREATE INDEX data_access_log_in_order ON audit.data_access_log (transaction_id, id);

-- Writes the trail of one statement. Every row becomes one of the trail, with the digest of its text before and after.
--
-- The statements differ only in where the rows come from: six of them, since the transition tables of a trigger depend on
-- its operation, and the table users names its owner otherwise. They are made here from one text.
DO $make$
DECLARE
    write CONSTANT text := $$
        INSERT INTO audit.audit_log (id, subject_token, role_name, service, request_id, table_name, operation,
            row_digest_before, row_digest_after, changed_columns, transaction_id, row_id)
        SELECT (id_start || lpad(to_hex(id_count + row_number() OVER ()), 12, '0'))::uuid,
            s.token, role, coalesce(one_service, services ->> w.owner::text), w.request_id, TG_TABLE_NAME,
            (CASE WHEN w.before IS NULL THEN 'INSERT' WHEN w.after IS NULL THEN 'DELETE' ELSE 'UPDATE' END)::audit.operation,
            sha256(coalesce(s.digest_key, '') || sha256(convert_to(w.before, 'UTF8'))),
            sha256(coalesce(s.digest_key, '') || sha256(convert_to(w.after, 'UTF8'))),
            w.changed, this_transaction, w.row_id
        FROM (%s) AS w
        -- One look into the index for each row, however few subjects the planner believes there are.
        LEFT JOIN LATERAL (SELECT token, digest_key FROM audit.subjects WHERE user_id = w.owner OFFSET 0) AS s ON true;
        $$;
    inserted CONSTANT text := $$
        SELECT %1$s AS owner, %2$s AS row_id, request_id, NULL::text AS before, n::text AS after, '{}'::text[] AS changed FROM new_rows AS n$$;
    -- A row whose key has changed is one that went and one that came. OFFSET 0 has its JSON made once for all columns.
    updated CONSTANT text := $$
        SELECT p.owner, p.row_id, p.request_id, p.before, p.after, CASE WHEN p.before IS NULL OR p.after IS NULL THEN '{}' ELSE (
            SELECT coalesce(array_agg(c.key), '{}') FROM jsonb_each(p.values_before) AS c
            WHERE c.value IS DISTINCT FROM p.values_after -> c.key AND c.key <> 'request_id') END AS changed
        FROM (SELECT coalesce(n.%1$s, o.%1$s) AS owner, %2$s AS row_id, n.request_id, o::text AS before, n::text AS after,
                to_jsonb(o) AS values_before, to_jsonb(n) AS values_after
            FROM (SELECT * FROM old_rows) AS o FULL JOIN (SELECT * FROM new_rows) AS n ON o.%1$s = n.%1$s AND o.id = n.id
            OFFSET 0) AS p$$;
    -- The row's own request is the one that wrote it last; of a deletion nothing is known but the context.
    deleted CONSTANT text := $$
        SELECT %1$s AS owner, %2$s AS row_id, NULL::uuid AS request_id, o::text AS before, NULL::text AS after, '{}'::text[] AS changed FROM old_rows AS o$$;
BEGIN
    EXECUTE format($function$
        CREATE FUNCTION audit.audit_trigger_function() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
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
            IF TG_TABLE_NAME = 'users' THEN
                IF TG_OP = 'INSERT' THEN
                    INSERT INTO audit.subjects (user_id) SELECT id FROM new_rows ORDER BY id ON CONFLICT DO NOTHING;
                    %s
                ELSIF TG_OP = 'UPDATE' THEN %s
                ELSE %s
                END IF;
            ELSIF TG_OP = 'INSERT' THEN %s
            ELSIF TG_OP = 'UPDATE' THEN %s
            ELSE %s
            END IF;
            RETURN NULL;
        END $body$ $function$,
        format(write, format(inserted, 'id', 'NULL::uuid')), format(write, format(updated, 'id', 'NULL::uuid')), format(write, format(deleted, 'id', 'NULL::uuid')),
        format(write, format(inserted, 'user_id', 'id')), format(write, format(updated, 'user_id', 'coalesce(n.id, o.id)')), format(write, format(deleted, 'user_id', 'id')));
END $make$;

-- Every table with a user's rows has the triggers, except: the inbox, which holds ids of deliveries and nothing of a user;
-- and, for insertions, the events (see below).
DO $$
DECLARE
    target record;
BEGIN
    FOR target IN
        SELECT c.oid::regclass AS name, c.relname = 'blackboard_events' AS seals_insertions
        FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid AND NOT c.relispartition
        WHERE p.polname = 'own_rows' AND c.oid <> 'inbox'::regclass ORDER BY c.relname = 'blackboard_events', c.oid
    LOOP
        IF NOT target.seals_insertions THEN
            EXECUTE format('CREATE TRIGGER audit_insert AFTER INSERT ON %s REFERENCING NEW TABLE AS new_rows
                FOR EACH STATEMENT EXECUTE FUNCTION audit.audit_trigger_function()', target.name);
        END IF;
        EXECUTE format('CREATE TRIGGER audit_update AFTER UPDATE ON %s REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
            FOR EACH STATEMENT EXECUTE FUNCTION audit.audit_trigger_function()', target.name);
        EXECUTE format('CREATE TRIGGER audit_delete AFTER DELETE ON %s REFERENCING OLD TABLE AS old_rows
            FOR EACH STATEMENT EXECUTE FUNCTION audit.audit_trigger_function()', target.name);
    END LOOP;
END $$;

-- An event is written once and says itself who did what: it is sealed as it stands and needs no second row. Only its change
-- or removal has one.
ALTER TABLE blackboard_events ADD COLUMN transaction_id bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint;
-- A foreign key is checked row by row, for a third of the time of an event; the statement that appends events joins their
-- users instead.
ALTER TABLE blackboard_events DROP CONSTRAINT blackboard_events_user_id_fkey;
CREATE INDEX blackboard_events_to_seal ON blackboard_events (transaction_id, id);

INSERT INTO audit.subjects (user_id) SELECT id FROM users ON CONFLICT DO NOTHING;

-- Whether an error of the database is a violation of security, and if so, a row about it. It is called on a connection of
-- its own, since the transaction of the violation is rolled back. Only the sort of the refusal is kept: a message may repeat
-- what its sender wrote.
CREATE FUNCTION audit.check_security_violation(sql_state text, message text, user_id integer DEFAULT NULL,
    service text DEFAULT NULL, request_id uuid DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    violation text;
    severity audit.severity;
    object text := substring(message FROM 'for (?:table|schema|function|sequence|relation|view) "?([A-Za-z0-9_.]{1,128})"?');
    reason text;
BEGIN
    IF sql_state IS DISTINCT FROM '42501' THEN
        RETURN false;
    END IF;
    SELECT v.* INTO violation, severity, reason FROM (VALUES
        ('context-not-genuine', 'critical'::audit.severity, 'the security context is not genuine'),
        ('grant-refused', 'high', substring(message FROM 'the security context is refused[a-z0-9: .]{0,100}')),
        ('foreign-row', 'critical', substring(message FROM 'row violates row-level security policy')),
        ('no-privilege', 'high', substring(message FROM '(?:permission denied|must be owner)(?: (?:for|of) (?:table|schema|function|sequence|relation|view))?')),
        ('refused', 'medium', 'insufficient privilege')
    ) AS v (violation, severity, reason)
    WHERE v.reason IS NOT NULL AND (v.violation <> 'context-not-genuine' OR position(v.reason IN message) > 0) LIMIT 1;
    INSERT INTO audit.security_violations (subject_token, role_name, service, request_id, violation_type, severity,
        table_name, reason)
    VALUES ((SELECT s.token FROM audit.subjects s WHERE s.user_id = user_id), session_user, left(service, 64), request_id,
        violation, severity, object, reason);
    RETURN true;
END $$;

-- Notes reads and other uses of users' data that leave no row behind, in the name of the context: what was done to what,
-- for which user, and how many rows or points it was. One element of each array for one use.
CREATE FUNCTION audit.log_data_access(access_type text, object_name text, users integer[], requests uuid[], amounts bigint[])
RETURNS integer LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    services jsonb := sec.context_services();
    noted integer;
BEGIN
    IF cardinality(users) <> cardinality(requests) OR cardinality(users) <> cardinality(amounts)
        OR cardinality(users) NOT BETWEEN 1 AND 10000 THEN
        RAISE invalid_parameter_value USING MESSAGE = 'users, requests and amounts must be as many as each other, 1 to 10000';
    END IF;
    IF EXISTS (SELECT unnest(users) EXCEPT SELECT unnest(sec.current_user_ids())) THEN
        RAISE insufficient_privilege USING MESSAGE = 'the access is not noted: it is of a user who is not in the security context';
    END IF;
    INSERT INTO audit.data_access_log (subject_token, role_name, service, request_id, access_type, object_name, rows_returned)
    SELECT s.token, session_user, CASE jsonb_typeof(services) WHEN 'string' THEN services #>> '{}' ELSE services ->> u.id::text END,
        u.request, log_data_access.access_type, log_data_access.object_name, u.amount
    FROM unnest(users, requests, amounts) AS u (id, request, amount)
    LEFT JOIN audit.subjects s ON s.user_id = u.id;
    GET DIAGNOSTICS noted = ROW_COUNT;
    RETURN noted;
END $$;

-- The same of a vector store: operation is search, upsert or delete.
CREATE FUNCTION audit.log_vector_operation(operation text, collection text, users integer[], requests uuid[], points bigint[])
RETURNS integer LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF operation NOT IN ('search', 'upsert', 'delete') THEN
        RAISE invalid_parameter_value USING MESSAGE = format('%L is no vector operation: it is search, upsert or delete', operation);
    END IF;
    RETURN audit.log_data_access('vector-' || operation, collection, users, requests, points);
END $$;

DO $$
DECLARE
    worker text;
    made record;
BEGIN
    FOR made IN SELECT p.oid::regprocedure AS name, p.proname <> 'audit_trigger_function' AS for_workers FROM pg_proc p
        WHERE p.pronamespace = 'audit'::regnamespace LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO memfleet_owner', made.name);
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', made.name);
        FOR worker IN SELECT DISTINCT role_name FROM sec.worker_privileges LOOP
            EXECUTE format('GRANT USAGE ON SCHEMA audit TO %I', worker);
            IF made.for_workers THEN
                EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', made.name, worker);
            END IF;
        END LOOP;
    END LOOP;
END $$;
