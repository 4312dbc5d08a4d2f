-- Values that a worker's role writes, and settings that it chooses: none of them stops a job or a command of operators for everybody else.
SET LOCAL lock_timeout = '100ms';

-- An amount has a limit: the figures of an hour are sums of them.
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
    IF (length(access_type) <= 64 AND length(object_name) <= 128 AND array_position(amounts, NULL) IS NULL AND 0 <= ALL (amounts)
        AND 1000000000 >= ALL (amounts)) IS NOT TRUE THEN
        RAISE invalid_parameter_value USING MESSAGE = 'an access has a type, an object and an amount from 0 to 1000000000';
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

-- A figure of more than 10^15, which rows from before may add up to, counts as 10^15.
CREATE OR REPLACE FUNCTION audit.anomalies_of(hour timestamptz) RETURNS TABLE (kind text, service text, severity audit.severity,
    observed bigint, usual bigint, most bigint) LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH setting AS MATERIALIZED (
        SELECT l.*, s.rolled_from FROM audit.anomaly_limits() AS l, audit.maintenance_state s
        WHERE s.rolled_from <= hour - make_interval(days => l.history_days)
    ), baseline AS MATERIALIZED (
        SELECT hour - make_interval(days => d) + make_interval(hours => h) AS at
        FROM setting s, generate_series(1, s.baseline_days) AS d, generate_series(-1, 1) AS h
        WHERE hour - make_interval(days => d) + make_interval(hours => h) >= s.rolled_from
    ), measured AS MATERIALIZED (
        SELECT f.kind, f.severity, f.least, f.needs_history, m.labels ->> 'service' AS service,
            least(m.metric_value, 1e15)::bigint AS observed, m.labels, m.metric_name
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
        CROSS JOIN LATERAL (SELECT array_agg(least(coalesce(m.metric_value, 0), 1e15)::bigint) AS amounts FROM baseline t
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

-- Names an archive. The worker's role may not write the names itself: one that it forges could only be of the users of its context, and in
-- the place and at the time of a genuine one. Operators read the lists of all archives together, so that one that cannot be read, or is
-- very long, would keep them from all.
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
    IF (array_ndims(users) = 1 AND coalesce(array_ndims(of_policies), 1) = 1 AND coalesce(array_ndims(kept), 1) = 1
        AND cardinality(users) <= 10000 AND cardinality(of_policies) <= 10000 AND cardinality(kept) <= 10000
        AND cardinality(users) = (SELECT count(DISTINCT u) FROM unnest(users) AS u)
        AND NOT EXISTS (SELECT FROM unnest(of_policies || kept) AS one WHERE one IS NULL)) IS NOT TRUE THEN
        RAISE invalid_parameter_value USING MESSAGE = 'the lists of an archive have one dimension, at most 10000 values and no NULL, and name each user once';
    END IF;
    INSERT INTO public.archives (id, table_name, location, manifest_hash, policies, run_id, row_count, byte_count, first_at, last_at, user_ids,
        not_removed, created_at)
    VALUES (archive_id, of_table, at_location, hash, of_policies, of_run, removed, bytes, first_row, last_row, users, kept, now());
END $$;

-- Notes a run of a job of this role. A job keeps its last 1,000 runs, for 30 days.
--
-- If not even the grants of a retention-sweep can be minted, the next one is of one user, and it passes over this one if that fails, too:
-- nobody's rows keep the sweep from others.
--
-- Operators see the run that began last, and the details of many runs together. So none begins in the future: the clock of a worker may be
-- ahead. Details that are long as text are left out, as are those with exponents: a number such as 1e131071 takes 10 bytes in the row.
CREATE OR REPLACE FUNCTION sec.note_job_run(of_job text, tick uuid, began timestamptz, due bigint, done bigint, left_out bigint, problem text,
    more text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    begun CONSTANT timestamptz := least(began, clock_timestamp());
    -- Without its texts, which may have anything.
    has_exponents CONSTANT boolean := regexp_replace(left(more, 262145), '"([^"\\]|\\.)*"', '""', 'g') ~ '[eE][-+]?[0-9]';
    kept CONSTANT jsonb := CASE WHEN octet_length(more) <= 262144 AND NOT has_exponents THEN more::jsonb ELSE '{"left_out": true}' END;
    earlier integer;
BEGIN
    IF NOT EXISTS (SELECT FROM sec.jobs j WHERE j.job = of_job AND j.role_name = session_user) THEN
        RAISE insufficient_privilege USING MESSAGE = 'the security context is refused: this role has no such job';
    END IF;
    DELETE FROM public.job_runs r WHERE r.id = tick AND r.job = of_job RETURNING r.tries INTO earlier;
    INSERT INTO public.job_runs AS r (id, job, started_at, tries, examined, changed, skipped, failure, details)
    VALUES (tick, of_job, begun, coalesce(earlier, 0) + 1, due, done, left_out, left(problem, 2000), kept)
    ON CONFLICT (job) WHERE is_idle DO UPDATE SET id = excluded.id, started_at = excluded.started_at, finished_at = excluded.finished_at,
        tries = excluded.tries, examined = excluded.examined, details = excluded.details;
    -- A few at a time, and more than are added.
    DELETE FROM public.job_runs r WHERE r.job = of_job AND r.id IN (SELECT o.id FROM public.job_runs o WHERE o.job = of_job AND o.started_at < greatest(
            begun - interval '30 days', (SELECT n.started_at FROM public.job_runs n WHERE n.job = of_job
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

-- What was noted before.
DO $$
DECLARE
    run record;
    fits boolean;
BEGIN
    DELETE FROM job_runs WHERE started_at > clock_timestamp();
    FOR run IN SELECT r.job, r.id, r.details FROM job_runs r LOOP
        -- Never as text as a whole, which may be gigabytes. What nests too deeply to be searched is left out, too.
        BEGIN
            fits := pg_column_size(run.details || '{}') <= 262144 AND NOT EXISTS (
                SELECT FROM jsonb_path_query(run.details, 'strict $.**{last}') AS v WHERE jsonb_typeof(v) = 'number' AND octet_length(v::text) > 100);
        EXCEPTION WHEN program_limit_exceeded THEN
            fits := false;
        END;
        IF NOT fits THEN
            UPDATE job_runs r SET details = '{"left_out": true}' WHERE r.job = run.job AND r.id = run.id;
        END IF;
    END LOOP;
END $$;

-- The registry's scopes are texts, and as short as scopes are: operators list the tokens of all services together.
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
    IF EXISTS (SELECT FROM jsonb_to_recordset(tokens) AS t (scopes text[])
        WHERE array_ndims(t.scopes) IS DISTINCT FROM 1
            OR EXISTS (SELECT FROM unnest(t.scopes) AS s WHERE (octet_length(s) <= 128) IS NOT TRUE)) THEN
        RAISE invalid_parameter_value USING MESSAGE = 'the scopes of a token are a list of texts of at most 128 bytes';
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

-- Ends transactions of workers that are open for too long; that hold so many locks that others might get none (an eighth of the server's lock
-- table by one transaction, or a third by those of one role; a batch holds some hundreds); or that are older than five seconds and keep all
-- others, or all that write, from a relation for which somebody waits. No worker holds such a lock for so long. With any lock on a relation,
-- one also keeps an administrator from changing it: it ends when it is 40 seconds old, longer than a statement of a worker takes, and the
-- administrator has waited for as long. What waits with a worker's role does not count.
CREATE OR REPLACE FUNCTION sec.end_old_transactions() RETURNS integer LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    WITH lock AS MATERIALIZED (
        SELECT l.pid, l.locktype, l.database, l.relation, l.mode, l.granted, l.waitstart FROM pg_locks l
    ), held AS MATERIALIZED (
        SELECT a.pid, coalesce(l.locks, 0) AS locks, sum(l.locks) OVER (PARTITION BY a.usename) AS of_role,
            a.xact_start < clock_timestamp() - interval '5 minutes'
                OR a.state LIKE 'idle in transaction%' AND a.state_change < clock_timestamp() - interval '30 seconds' AS is_old,
            a.xact_start < clock_timestamp() - interval '5 seconds' AND EXISTS (
                SELECT FROM lock o JOIN lock w ON w.locktype = 'relation' AND w.database = o.database AND w.relation = o.relation
                WHERE o.pid = a.pid AND o.locktype = 'relation' AND o.granted AND NOT w.granted AND w.pid <> o.pid
                    AND o.mode IN ('AccessExclusiveLock', 'ExclusiveLock', 'ShareRowExclusiveLock', 'ShareLock'))
            OR a.xact_start < clock_timestamp() - interval '40 seconds' AND EXISTS (
                SELECT FROM lock o JOIN lock w ON w.locktype = 'relation' AND w.database = o.database AND w.relation = o.relation
                JOIN pg_stat_activity b ON b.pid = w.pid
                WHERE o.pid = a.pid AND o.locktype = 'relation' AND o.granted AND NOT w.granted AND w.mode = 'AccessExclusiveLock'
                    AND w.waitstart < clock_timestamp() - interval '40 seconds'
                    AND b.usename NOT IN (SELECT p.role_name FROM sec.worker_privileges p)) AS is_waited_for,
            current_setting('max_locks_per_transaction')::bigint
                * (current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint) AS size
        FROM pg_stat_activity a LEFT JOIN (SELECT pid, count(*) AS locks FROM lock GROUP BY pid) AS l ON l.pid = a.pid
        WHERE a.pid <> pg_backend_pid() AND a.usename IN (SELECT w.role_name FROM sec.worker_privileges w)
    )
    SELECT count(*) FILTER (WHERE pg_terminate_backend(h.pid))::integer FROM held h
    WHERE h.is_old OR h.is_waited_for OR h.locks > h.size / 8 OR h.of_role > h.size / 3 AND h.locks > h.size / 128
$$;

-- What they write does not depend on settings of whoever calls them: neither the label of a table, nor the id of an anomaly, nor which hours
-- are compared.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['audit.roll_up_hour(timestamptz)', 'audit.roll_up_until(timestamptz, integer)',
        'audit.anomalies_of(timestamptz)', 'audit.gaps_of_seals(timestamptz)', 'audit.detect_anomalies_until(timestamptz, integer)',
        'audit.measure_tables_at(timestamptz)', 'audit.clean_up_at(timestamptz, integer)', 'sec.partition_alarms_at(timestamptz)',
        'sec.make_partitions_ahead()'] LOOP
        EXECUTE format('ALTER FUNCTION %s SET timezone = ''UTC'' SET datestyle = ''ISO, YMD'' SET intervalstyle = ''postgres''
            SET extra_float_digits = 1 SET quote_all_identifiers = off', name);
    END LOOP;
END $$;

SELECT sec.hide_plans();

-- Syncs that the checks below would refuse, or whose text cannot be measured: the checks would keep memory-sync from ending them. A filter that
-- cannot be read ends its sync, as memory-sync does; counts begin anew.
WITH counted AS MATERIALIZED (
    SELECT s.user_id, s.id, CASE WHEN jsonb_typeof(s.data_transferred) <> 'object' THEN true
        WHEN pg_column_size(s.data_transferred || '{}') > 32768 THEN true
        WHEN EXISTS (SELECT FROM jsonb_each(s.data_transferred) AS e WHERE CASE jsonb_typeof(e.value)
            WHEN 'number' THEN e.value::numeric NOT BETWEEN 0 AND 1e18 OR scale(e.value::numeric) > 0 ELSE true END) THEN true
        ELSE octet_length(s.data_transferred::text) > 65536 END AS is_refused
    FROM cross_service_memory_sync s
), filtered AS MATERIALIZED (
    SELECT s.user_id, s.id, CASE WHEN pg_column_size(s.filter || '{}') > 2031616 THEN true
        WHEN EXISTS (SELECT FROM jsonb_each(s.filter) AS e WHERE jsonb_typeof(e.value) <> 'array' OR EXISTS (
            SELECT FROM jsonb_array_elements(CASE jsonb_typeof(e.value) WHEN 'array' THEN e.value ELSE '[]' END) AS one
            WHERE jsonb_typeof(one) <> 'string')) THEN true
        ELSE octet_length(s.filter::text) > 2031616 END AS is_refused
    FROM cross_service_memory_sync s
)
UPDATE cross_service_memory_sync s SET created_at = least(s.created_at, now()),
    data_transferred = CASE WHEN c.is_refused THEN '{}' ELSE s.data_transferred END,
    filter = CASE WHEN f.is_refused THEN '{}' ELSE s.filter END,
    sync_status = CASE WHEN f.is_refused THEN 'failed' ELSE s.sync_status END,
    has_more = s.has_more AND NOT f.is_refused,
    completed_at = CASE WHEN f.is_refused THEN coalesce(s.completed_at, greatest(now(), s.created_at)) ELSE s.completed_at END
FROM counted c JOIN filtered f ON f.user_id = c.user_id AND f.id = c.id
WHERE s.user_id = c.user_id AND s.id = c.id AND (c.is_refused OR f.is_refused OR s.created_at > clock_timestamp() + interval '2 days');

-- Locks that writers wait for come last. Rows from before are not checked, so that nobody waits for it.

-- As values of contexts (000061).
ALTER TABLE chat_session_summary ADD CONSTRAINT key_topics_are_bounded CHECK (octet_length(key_topics::text) <= 2031616) NOT VALID;
-- Operators list the syncs of all users together, the latest first.
ALTER TABLE cross_service_memory_sync ADD CONSTRAINT values_are_bounded CHECK (octet_length(data_transferred::text) <= 65536
    AND octet_length(filter::text) <= 2031616) NOT VALID,
    ADD CONSTRAINT began_in_the_past CHECK (created_at <= clock_timestamp() + interval '2 days') NOT VALID;
