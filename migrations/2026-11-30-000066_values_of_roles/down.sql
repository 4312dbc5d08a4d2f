SET LOCAL lock_timeout = '100ms';

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
    IF access_type = 'job-grant' THEN
        RAISE insufficient_privilege USING MESSAGE = 'the access is not noted: only a mint of job grants is of the type job-grant';
    END IF;
    -- An error of the table would show its row, with the token of the subject.
    IF (length(access_type) <= 64 AND length(object_name) <= 128 AND array_position(amounts, NULL) IS NULL AND 0 <= ALL (amounts)) IS NOT TRUE THEN
        RAISE invalid_parameter_value USING MESSAGE = 'an access has a type, an object and an amount, which is not negative';
    END IF;
    IF EXISTS (SELECT unnest(users) EXCEPT SELECT unnest(sec.current_user_ids())) THEN
        RAISE insufficient_privilege USING MESSAGE = 'the access is not noted: it is of a user who is not in the security context';
    END IF;
    IF cardinality(users) + (SELECT count(*) FROM audit.data_access_log l
        WHERE l.transaction_id = pg_current_xact_id()::text::bigint) > 10000 THEN
        RAISE invalid_parameter_value USING MESSAGE = 'a transaction notes at most 10000 accesses';
    END IF;
    INSERT INTO audit.data_access_log (subject_token, role_name, service, request_id, access_type, object_name, rows_returned)
    SELECT s.token, session_user, coalesce(services ->> u.id::text, audit.no_service()),
        u.request, log_data_access.access_type, log_data_access.object_name, u.amount
    FROM unnest(users, requests, amounts) AS u (id, request, amount)
    LEFT JOIN audit.subjects s ON s.user_id = u.id;
    GET DIAGNOSTICS noted = ROW_COUNT;
    RETURN noted;
END $$;

CREATE OR REPLACE FUNCTION audit.anomalies_of(hour timestamptz) RETURNS TABLE (kind text, service text, severity audit.severity, observed bigint,
    usual bigint, most bigint) LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH setting AS MATERIALIZED (
        SELECT l.*, s.rolled_from FROM audit.anomaly_limits() AS l, audit.maintenance_state s
        WHERE s.rolled_from <= hour - make_interval(days => l.history_days)
    ), baseline AS MATERIALIZED (
        SELECT hour - make_interval(days => d) + make_interval(hours => h) AS at
        FROM setting s, generate_series(1, s.baseline_days) AS d, generate_series(-1, 1) AS h
        WHERE hour - make_interval(days => d) + make_interval(hours => h) >= s.rolled_from
    ), measured AS MATERIALIZED (
        SELECT f.kind, f.severity, f.least, f.needs_history, m.labels ->> 'service' AS service, m.metric_value::bigint AS observed, m.labels,
            m.metric_name
        FROM setting s CROSS JOIN LATERAL (VALUES
            ('anomaly-refusals', 'refusals', 'high'::audit.severity, s.least_refusals, false),
            ('anomaly-reads', 'reads', 'high', s.least_rows, true),
            ('anomaly-strangers', 'strangers', 'high', s.least_strangers, true),
            ('anomaly-hours', 'uses', 'medium', s.least_uses, true)) AS f (kind, metric, severity, least, needs_history)
        JOIN audit.security_metrics m ON m.metric_name = f.metric AND m.measured_at = hour AND m.metric_value >= f.least
    ), activity AS MATERIALIZED (
        SELECT m.labels ->> 'service' AS service, min(m.measured_at) AS since, count(*) AS hours
        FROM setting s JOIN audit.security_metrics m ON m.metric_name = 'uses' AND m.measured_at < hour
            AND m.measured_at >= hour - make_interval(days => s.baseline_days)
        WHERE EXISTS (SELECT FROM measured d WHERE d.needs_history)
        GROUP BY 1
    ), judged AS (
        SELECT d.*, a.hours, c.median, c.greatest, b.deviation
        FROM measured d CROSS JOIN setting s
        LEFT JOIN activity a ON a.service = d.service AND a.since <= hour - make_interval(days => s.history_days)
        CROSS JOIN LATERAL (SELECT array_agg(coalesce(m.metric_value, 0)::bigint) AS amounts FROM baseline t
            LEFT JOIN audit.security_metrics m ON m.metric_name = d.metric_name AND m.measured_at = t.at AND m.labels = d.labels) AS v
        CROSS JOIN LATERAL (SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY x) AS median, max(x) AS greatest
            FROM unnest(v.amounts) AS x) AS c
        CROSS JOIN LATERAL (SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY abs(x - c.median)) AS deviation
            FROM unnest(v.amounts) AS x) AS b
        WHERE NOT d.needs_history OR a.service IS NOT NULL
    ), bounded AS (
        SELECT j.kind, j.service, j.severity, j.observed, j.median, j.hours, j.greatest, s.least_active_hours, greatest(j.least,
            j.median + s.spreads * ceil(greatest(1.5 * j.deviation, sqrt(j.median), 1))::bigint, s.times_greatest * j.greatest) AS most
        FROM judged j CROSS JOIN setting s
    )
    SELECT b.kind, b.service, b.severity, b.observed, b.median, b.most FROM bounded b WHERE b.kind <> 'anomaly-hours' AND b.observed > b.most
    UNION ALL SELECT b.kind, b.service, b.severity, b.observed, 0, 0 FROM bounded b
    WHERE b.kind = 'anomaly-hours' AND b.greatest = 0 AND b.hours >= b.least_active_hours
$$;

CREATE OR REPLACE FUNCTION sec.record_archive(archive_id uuid, of_table text, at_location text, hash bytea, of_policies uuid[], of_run uuid,
    removed integer, bytes bigint, first_row timestamptz, last_row timestamptz, users integer[], kept uuid[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    of_month CONSTANT text := split_part(at_location, '/', 2);
BEGIN
    IF (cardinality(users) > 0 AND users <@ sec.current_user_ids()) IS NOT TRUE THEN
        RAISE insufficient_privilege USING MESSAGE = 'archives are named of the users of the security context only';
    END IF;
    IF (of_table IN ('simple_chat_context', 'agent_context_states', 'chat_mode_sessions', 'router_decision_log', 'blackboard_events'))
        IS NOT TRUE THEN
        RAISE invalid_parameter_value USING MESSAGE = 'rows of this table are not archived';
    END IF;
    IF (of_month ~ '^[0-9]{4}-(0[1-9]|1[0-2])$' AND at_location = concat_ws('/', of_table, of_month, archive_id)) IS NOT TRUE THEN
        RAISE invalid_parameter_value USING MESSAGE = 'the location of an archive is its table, its month and its id';
    END IF;
    INSERT INTO public.archives (id, table_name, location, manifest_hash, policies, run_id, row_count, byte_count, first_at, last_at, user_ids,
        not_removed, created_at)
    VALUES (archive_id, of_table, at_location, hash, of_policies, of_run, removed, bytes, first_row, last_row, users, kept, now());
END $$;

CREATE OR REPLACE FUNCTION sec.note_job_run(of_job text, tick uuid, began timestamptz, due bigint, done bigint, left_out bigint, problem text,
    more text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    earlier integer;
BEGIN
    IF NOT EXISTS (SELECT FROM sec.jobs j WHERE j.job = of_job AND j.role_name = session_user) THEN
        RAISE insufficient_privilege USING MESSAGE = 'the security context is refused: this role has no such job';
    END IF;
    DELETE FROM public.job_runs r WHERE r.id = tick AND r.job = of_job RETURNING r.tries INTO earlier;
    INSERT INTO public.job_runs AS r (id, job, started_at, tries, examined, changed, skipped, failure, details)
    VALUES (tick, of_job, began, coalesce(earlier, 0) + 1, due, done, left_out, left(problem, 2000), more::jsonb)
    ON CONFLICT (job) WHERE is_idle DO UPDATE SET id = excluded.id, started_at = excluded.started_at, finished_at = excluded.finished_at,
        tries = excluded.tries, examined = excluded.examined, details = excluded.details;
    -- A few at a time, and more than are added.
    DELETE FROM public.job_runs r WHERE r.job = of_job AND r.id IN (SELECT o.id FROM public.job_runs o WHERE o.job = of_job AND o.started_at < greatest(
            began - interval '30 days', (SELECT n.started_at FROM public.job_runs n WHERE n.job = of_job
                ORDER BY n.started_at DESC OFFSET 1000 LIMIT 1))
        ORDER BY o.started_at LIMIT 10 FOR UPDATE SKIP LOCKED);
    IF of_job = 'retention-sweep' AND problem IS NOT NULL AND due = 0 AND done = 0 THEN
        PERFORM FROM public.retention_state FOR UPDATE SKIP LOCKED;
        IF FOUND THEN
            UPDATE public.retention_state s SET slice_runs = 0, slice_users = 1,
                after_user = CASE WHEN s.slice_users = 1 THEN coalesce(sec.retention_slice(), -1) ELSE s.after_user END;
        END IF;
    END IF;
END $$;

CREATE OR REPLACE FUNCTION sec.register_tokens(tokens jsonb) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    unknown text;
    registered integer;
    forgotten uuid[];
BEGIN
    SELECT t.service INTO unknown FROM jsonb_to_recordset(tokens) AS t (service text)
    WHERE NOT EXISTS (SELECT FROM sec.services s WHERE s.service = t.service AND s.disabled_at IS NULL) LIMIT 1;
    IF unknown IS NOT NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = format('the service %s is not registered or is disabled', unknown);
    END IF;
    IF EXISTS (SELECT FROM jsonb_to_recordset(tokens) AS t (issued_at timestamptz, expires_at timestamptz, grants_expire_at timestamptz)
        WHERE (isfinite(t.issued_at) AND t.issued_at BETWEEN now() - interval '1 day' AND now() + interval '1 day'
            AND t.expires_at <= t.issued_at + interval '10 days'
            AND t.grants_expire_at BETWEEN t.expires_at AND t.issued_at + interval '10 days') IS NOT TRUE) THEN
        RAISE invalid_parameter_value
            USING MESSAGE = 'a token is issued now, and it and its grants expire within 10 days, the token first';
    END IF;
    INSERT INTO public.cross_service_auth (token_id, service, user_id, session_id, scopes, key_id, issued_at, expires_at,
        grants_expire_at)
    SELECT token_id, service, user_id, session_id, scopes, key_id, issued_at, expires_at, grants_expire_at
    FROM jsonb_to_recordset(tokens) AS t (token_id uuid, service text, user_id integer, session_id text, scopes text[],
        key_id text, issued_at timestamptz, expires_at timestamptz, grants_expire_at timestamptz);
    GET DIAGNOSTICS registered = ROW_COUNT;
    -- More than are added, so that they never pile up; not all, so that nobody pays for many.
    forgotten := ARRAY(SELECT a.token_id FROM public.cross_service_auth a WHERE a.grants_expire_at < now() - interval '30 days'
        ORDER BY a.grants_expire_at LIMIT 2 * registered + 100 FOR UPDATE SKIP LOCKED);
    DELETE FROM public.cross_service_auth a WHERE a.token_id = ANY (forgotten);
    DELETE FROM sec.token_uses u WHERE (u.token_id, u.role_name) IN (
        SELECT f.token_id, f.role_name FROM sec.token_uses f WHERE f.token_id = ANY (forgotten) FOR UPDATE SKIP LOCKED);
    RETURN registered;
END $$;

CREATE OR REPLACE FUNCTION sec.end_old_transactions() RETURNS integer LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    WITH lock AS MATERIALIZED (
        SELECT l.pid, l.locktype, l.database, l.relation, l.mode, l.granted FROM pg_locks l
    ), held AS MATERIALIZED (
        SELECT a.pid, coalesce(l.locks, 0) AS locks, sum(l.locks) OVER (PARTITION BY a.usename) AS of_role,
            a.xact_start < clock_timestamp() - interval '5 minutes'
                OR a.state LIKE 'idle in transaction%' AND a.state_change < clock_timestamp() - interval '30 seconds' AS is_old,
            a.xact_start < clock_timestamp() - interval '5 seconds' AND EXISTS (
                SELECT FROM lock o JOIN lock w ON w.locktype = 'relation' AND w.database = o.database AND w.relation = o.relation
                WHERE o.pid = a.pid AND o.locktype = 'relation' AND o.granted AND NOT w.granted AND w.pid <> o.pid
                    AND o.mode IN ('AccessExclusiveLock', 'ExclusiveLock', 'ShareRowExclusiveLock', 'ShareLock')) AS is_waited_for,
            current_setting('max_locks_per_transaction')::bigint
                * (current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint) AS size
        FROM pg_stat_activity a LEFT JOIN (SELECT pid, count(*) AS locks FROM lock GROUP BY pid) AS l ON l.pid = a.pid
        WHERE a.pid <> pg_backend_pid() AND a.usename IN (SELECT w.role_name FROM sec.worker_privileges w)
    )
    SELECT count(*) FILTER (WHERE pg_terminate_backend(h.pid))::integer FROM held h
    WHERE h.is_old OR h.is_waited_for OR h.locks > h.size / 8 OR h.of_role > h.size / 3 AND h.locks > h.size / 128
$$;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['audit.roll_up_hour(timestamptz)', 'audit.roll_up_until(timestamptz, integer)',
        'audit.anomalies_of(timestamptz)', 'audit.gaps_of_seals(timestamptz)', 'audit.detect_anomalies_until(timestamptz, integer)',
        'audit.measure_tables_at(timestamptz)', 'audit.clean_up_at(timestamptz, integer)', 'sec.partition_alarms_at(timestamptz)',
        'sec.make_partitions_ahead()'] LOOP
        EXECUTE format('ALTER FUNCTION %s RESET timezone RESET datestyle RESET intervalstyle RESET extra_float_digits
            RESET quote_all_identifiers', name);
    END LOOP;
END $$;

SELECT sec.hide_plans();

-- Locks that writers wait for come last.
ALTER TABLE chat_session_summary DROP CONSTRAINT key_topics_are_bounded;
ALTER TABLE cross_service_memory_sync DROP CONSTRAINT values_are_bounded, DROP CONSTRAINT began_in_the_past;
