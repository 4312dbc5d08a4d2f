SET LOCAL lock_timeout = '100ms';

DO $$
DECLARE
    taken regprocedure;
BEGIN
    FOR taken IN SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'pg_catalog'::regnamespace AND proname ~ '^(lo_|loread$|lowrite$)'
        AND proname NOT IN ('lo_import', 'lo_export') LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', taken);
    END LOOP;
END $$;
DROP POLICY evidence ON blackboard_events;
CREATE POLICY evidence ON blackboard_events AS RESTRICTIVE FOR INSERT WITH CHECK (
    transaction_id = pg_current_xact_id()::text::bigint AND created_at = transaction_timestamp()
    AND event_sequence = currval('public.blackboard_event_sequence'));
ALTER TABLE session_clocks DROP CONSTRAINT logical_time_is_bounded;
ALTER TABLE agent_context_states DROP CONSTRAINT version_is_bounded;
ALTER TABLE simple_chat_context DROP CONSTRAINT version_is_bounded;
DO $$
DECLARE
    target regclass;
BEGIN
    FOR target IN SELECT conrelid::regclass FROM pg_constraint
        WHERE conname = 'times_are_bounded' AND conparentid = 0 AND coninhcount = 0 ORDER BY conrelid LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT times_are_bounded', target);
    END LOOP;
END $$;
CREATE OR REPLACE FUNCTION audit.log_data_access(access_type text, object_name text, users integer[], requests uuid[], amounts bigint[])
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
CREATE OR REPLACE FUNCTION audit.record_refused_tokens(kinds text[], reasons text[], users integer[], services text[], requests uuid[])
RETURNS integer LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH recorded AS (
        INSERT INTO audit.security_violations (subject_token, role_name, service, request_id, violation_type, severity, reason)
        SELECT s.token, session_user, left(r.service, 64), r.request_id, left(r.kind, 64),
            (CASE
                WHEN r.kind IN ('token-signature', 'token-algorithm') THEN 'critical'
                WHEN r.kind IN ('token-expired', 'token-not-yet-valid', 'token-missing') THEN 'medium'
                ELSE 'high' END)::audit.severity,
            left(r.reason, 256)
        FROM unnest(kinds, reasons, users, services, requests) AS r (kind, reason, user_id, service, request_id)
        LEFT JOIN audit.subjects s ON s.user_id = r.user_id
        RETURNING 1)
    SELECT count(*)::integer FROM recorded
$$;
