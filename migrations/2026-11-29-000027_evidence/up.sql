-- What a role may say of others is limited and names the role; no time, version or clock that a role writes makes rows unreadable or
-- keeps others from writing; and no role leaves large objects behind (docs/SECURITY.md).
SET LOCAL lock_timeout = '100ms';

-- Records tokens that were refused. One element of each array for one refusal; a user is NULL where nobody knows whose. The database
-- sees none of these tokens: the user and the service are what the role says of them, so the service is marked.
CREATE OR REPLACE FUNCTION audit.record_refused_tokens(kinds text[], reasons text[], users integer[], services text[], requests uuid[])
RETURNS integer LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    recorded integer;
BEGIN
    IF (cardinality(kinds) = cardinality(reasons) AND cardinality(kinds) = cardinality(users)
        AND cardinality(kinds) = cardinality(services) AND cardinality(kinds) = cardinality(requests)
        AND cardinality(kinds) > 0) IS NOT TRUE THEN
        RAISE invalid_parameter_value
            USING MESSAGE = 'kinds, reasons, users, services and requests must be as many as each other, and at least 1';
    END IF;
    IF EXISTS (SELECT FROM unnest(kinds) AS k (kind) WHERE (k.kind ~ '^[a-z0-9-]{1,64}$') IS NOT TRUE) THEN
        RAISE invalid_parameter_value USING MESSAGE = 'a kind of refusal has 1 to 64 lower-case letters, digits and hyphens';
    END IF;
    IF cardinality(kinds) + (SELECT count(*) FROM audit.security_violations v
        WHERE v.transaction_id = pg_current_xact_id()::text::bigint) > 1000 THEN
        RAISE invalid_parameter_value USING MESSAGE = 'a transaction records at most 1000 refusals';
    END IF;
    INSERT INTO audit.security_violations (subject_token, role_name, service, request_id, violation_type, severity, reason)
    SELECT s.token, session_user, 'claimed:' || left(r.service, 64), r.request_id, r.kind,
        (CASE
            WHEN r.kind IN ('token-signature', 'token-algorithm') THEN 'critical'
            WHEN r.kind IN ('token-expired', 'token-not-yet-valid', 'token-missing') THEN 'medium'
            ELSE 'high' END)::audit.severity,
        left(r.reason, 256)
    FROM unnest(kinds, reasons, users, services, requests) AS r (kind, reason, user_id, service, request_id)
    LEFT JOIN audit.subjects s ON s.user_id = r.user_id;
    GET DIAGNOSTICS recorded = ROW_COUNT;
    RETURN recorded;
END $$;

-- Whether an error of the database is a violation of security, and if so, a row about it. It is called on a connection of
-- its own, since the transaction of the violation is rolled back. Only the sort of the refusal is kept: a message may repeat
-- what its sender wrote. The user and the service are what the role says.
CREATE OR REPLACE FUNCTION audit.check_security_violation(sql_state text, message text, user_id integer DEFAULT NULL,
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
    IF (SELECT count(*) FROM audit.security_violations v WHERE v.transaction_id = pg_current_xact_id()::text::bigint) >= 1000 THEN
        RAISE invalid_parameter_value USING MESSAGE = 'a transaction records at most 1000 refusals';
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
    VALUES ((SELECT s.token FROM audit.subjects s WHERE s.user_id = user_id), session_user, 'claimed:' || left(service, 64), request_id,
        violation, severity, object, reason);
    RETURN true;
END $$;

-- Notes reads and other uses of users' data that leave no row behind, in the name of the context: what was done to what,
-- for which user, and how many rows or points it was. One element of each array for one use.
CREATE OR REPLACE FUNCTION audit.log_data_access(access_type text, object_name text, users integer[], requests uuid[], amounts bigint[])
RETURNS integer LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    services jsonb := sec.context_services();
    noted integer;
BEGIN
    IF (cardinality(users) = cardinality(requests) AND cardinality(users) = cardinality(amounts)
        AND cardinality(users) BETWEEN 1 AND 10000) IS NOT TRUE THEN
        RAISE invalid_parameter_value USING MESSAGE = 'users, requests and amounts must be as many as each other, 1 to 10000';
    END IF;
    IF EXISTS (SELECT unnest(users) EXCEPT SELECT unnest(sec.current_user_ids())) THEN
        RAISE insufficient_privilege USING MESSAGE = 'the access is not noted: it is of a user who is not in the security context';
    END IF;
    IF cardinality(users) + (SELECT count(*) FROM audit.data_access_log l
        WHERE l.transaction_id = pg_current_xact_id()::text::bigint) > 10000 THEN
        RAISE invalid_parameter_value USING MESSAGE = 'a transaction notes at most 10000 accesses';
    END IF;
    INSERT INTO audit.data_access_log (subject_token, role_name, service, request_id, access_type, object_name, rows_returned)
    SELECT s.token, session_user, CASE jsonb_typeof(services) WHEN 'string' THEN services #>> '{}' ELSE services ->> u.id::text END,
        u.request, log_data_access.access_type, log_data_access.object_name, u.amount
    FROM unnest(users, requests, amounts) AS u (id, request, amount)
    LEFT JOIN audit.subjects s ON s.user_id = u.id;
    GET DIAGNOSTICS noted = ROW_COUNT;
    RETURN noted;
END $$;

-- A time that a role writes is one that programs can read: neither infinite nor of another year than 1 to 9999. Rows from before
-- are not checked, so that nobody waits for it.
DO $$
DECLARE
    target record;
BEGIN
    FOR target IN
        SELECT c.oid::regclass AS name, string_agg(format(
            '%I BETWEEN ''0001-01-01 00:00:00+00''::timestamptz AND ''9999-12-31 23:59:59.999999+00''::timestamptz', a.attname),
            ' AND ' ORDER BY a.attnum) AS bounds
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
            AND a.atttypid = 'timestamptz'::regtype
        WHERE c.oid IN (SELECT w.table_name FROM sec.worker_privileges w WHERE w.privileges && '{INSERT,UPDATE}')
        GROUP BY c.oid ORDER BY c.oid
    LOOP
        EXECUTE format('ALTER TABLE %s ADD CONSTRAINT times_are_bounded CHECK (%s) NOT VALID', target.name, target.bounds);
    END LOOP;
END $$;

-- The greatest version grows with time, so that no key is fixed for good. Workers refuse versions a day ahead; here is room for
-- clocks that differ. What satisfies these checks once does so for ever, also when it is restored.
ALTER TABLE simple_chat_context ADD CONSTRAINT version_is_bounded
    CHECK (version <= extract(epoch FROM clock_timestamp() + interval '2 days') * 1000) NOT VALID;
ALTER TABLE agent_context_states ADD CONSTRAINT version_is_bounded
    CHECK (version <= extract(epoch FROM clock_timestamp() + interval '2 days') * 1000) NOT VALID;
-- The same of logical time, which counts events: never one for each microsecond since 1970.
ALTER TABLE session_clocks ADD CONSTRAINT logical_time_is_bounded
    CHECK (logical_time <= extract(epoch FROM clock_timestamp()) * 1000000) NOT VALID;
DROP POLICY evidence ON blackboard_events;
CREATE POLICY evidence ON blackboard_events AS RESTRICTIVE FOR INSERT WITH CHECK (
    transaction_id = pg_current_xact_id()::text::bigint AND created_at = transaction_timestamp()
    AND event_sequence = currval('public.blackboard_event_sequence')
    AND logical_timestamp <= extract(epoch FROM clock_timestamp()) * 1000000);

-- A large object belongs to no user and no policy protects it: what one transaction leaves there another may read.
DO $$
DECLARE
    taken regprocedure;
BEGIN
    FOR taken IN SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'pg_catalog'::regnamespace AND proname ~ '^(lo_|loread$|lowrite$)' LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', taken);
    END LOOP;
END $$;
