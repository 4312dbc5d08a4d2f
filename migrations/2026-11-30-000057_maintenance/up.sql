-- Maintenance: hourly figures of the access log and of refusals, anomalies in them, partitions ahead, and what ages out
-- (docs/adr/0054).
SET LOCAL lock_timeout = '100ms';

ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'anomaly.detected';

-- A figure is written once.
DROP INDEX audit.security_metrics_by_name;
ALTER TABLE audit.security_metrics ADD CONSTRAINT security_metrics_once UNIQUE (metric_name, measured_at, labels);

-- Which users each service has read. A token without its row in audit.subjects stands for nobody.
CREATE TABLE audit.service_subjects (
    service text NOT NULL,
    subject_token uuid NOT NULL,
    first_read timestamptz NOT NULL,
    -- To a day.
    last_read timestamptz NOT NULL,
    PRIMARY KEY (service, subject_token)
);
CREATE INDEX service_subjects_by_use ON audit.service_subjects (last_read);
ALTER TABLE audit.service_subjects OWNER TO memfleet_owner;

-- How far the figures and the search for anomalies are.
CREATE TABLE audit.maintenance_state (
    -- There is one row.
    id boolean PRIMARY KEY DEFAULT true CHECK (id),
    -- The first hour that has figures, and the end of the last one; NULL before there are any.
    rolled_from timestamptz,
    rolled_until timestamptz,
    -- The end of the last hour that was searched for anomalies.
    detected_until timestamptz,
    CHECK ((rolled_from IS NULL) = (rolled_until IS NULL))
);
INSERT INTO audit.maintenance_state DEFAULT VALUES;
ALTER TABLE audit.maintenance_state OWNER TO memfleet_owner;

-- What counts as an anomaly. All constants are here (docs/adr/0054 has what they were measured with).
CREATE FUNCTION audit.anomaly_limits(
    -- Compared with the same hour of so many days before, and its two neighbours: 105 hours. Over a month, so that what happens once a
    -- month is known.
    OUT baseline_days integer,
    -- Nothing is said of a service, or of the deployment, before it has been observed for so long.
    OUT history_days integer,
    -- An hour counts if it is above the median by so many spreads. A spread is 1.5 times the median absolute deviation (which estimates
    -- the standard deviation of a normal distribution), or the square root of the median (that of a Poisson distribution), or 1.
    OUT spreads integer,
    -- And above so many times the greatest value of the baseline: reads come in heaps, for which spreads say little.
    OUT times_greatest integer,
    -- Smaller numbers are none, whatever was usual.
    OUT least_refusals integer,
    OUT least_rows integer,
    OUT least_strangers integer,
    OUT least_uses integer,
    -- A service that was active in fewer hours of the baseline has no usual hours.
    OUT least_active_hours integer,
    -- Rows that have waited for a seal for so long.
    OUT seals_late interval
) LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT 35, 14, 8, 3, 30, 1000, 20, 20, 50, interval '2 hours'
$$;

-- The name under which a service is counted: a claimed one is what a role says, so that only registered names are kept.
CREATE FUNCTION audit.counted_service(service text) RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN service LIKE 'job:%' AND EXISTS (SELECT FROM sec.jobs j WHERE 'job:' || j.job = service) THEN service
        ELSE coalesce((SELECT s.service::text FROM sec.services s WHERE s.service = regexp_replace(counted_service.service, '^claimed:', '')),
            'unregistered') END
$$;

-- The figures of one hour. reads: rows that a service read. uses: how often it read. strangers: users whom it read for the first time,
-- although they have been there for a day. refusals: what was refused to it. Ids grow with time, so a range of them is an hour.
CREATE FUNCTION audit.roll_up_hour(hour timestamptz) RETURNS void LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH used AS MATERIALIZED (
        SELECT a.service, a.subject_token, count(*) AS uses, sum(a.rows_returned) AS rows FROM audit.data_access_log a
        WHERE a.id >= public.uuid7_at(hour) AND a.id < public.uuid7_at(hour + interval '1 hour')
            AND a.access_type IN ('read', 'reveal', 'vector-search')
        GROUP BY a.service, a.subject_token
    ), named AS MATERIALIZED (
        SELECT n.service, audit.counted_service(n.service) AS counted FROM (SELECT DISTINCT u.service FROM used u) AS n
    ), read AS MATERIALIZED (
        SELECT n.counted AS service, u.subject_token, sum(u.uses) AS uses, sum(u.rows) AS rows
        FROM used u JOIN named n ON n.service IS NOT DISTINCT FROM u.service GROUP BY 1, 2
    ), stranger AS (
        SELECT r.service, count(*) AS users FROM read r JOIN audit.subjects s ON s.token = r.subject_token
        WHERE s.created_at < hour - interval '1 day' AND NOT EXISTS (
            SELECT FROM audit.service_subjects k WHERE k.service = r.service AND k.subject_token = r.subject_token)
        GROUP BY r.service
    ), known AS (
        INSERT INTO audit.service_subjects AS k (service, subject_token, first_read, last_read)
        SELECT r.service, r.subject_token, hour, hour FROM read r
        -- What is known to a day is not even locked.
        WHERE r.subject_token IS NOT NULL AND NOT EXISTS (SELECT FROM audit.service_subjects s
            WHERE s.service = r.service AND s.subject_token = r.subject_token AND s.last_read >= hour - interval '1 day')
        ON CONFLICT (service, subject_token) DO UPDATE SET last_read = greatest(k.last_read, excluded.last_read)
    ), refusal AS (
        SELECT audit.counted_service(f.service) AS service, sum(f.refusals) AS refusals FROM (
            SELECT v.service, count(*) AS refusals FROM audit.security_violations v
            WHERE v.id >= public.uuid7_at(hour) AND v.id < public.uuid7_at(hour + interval '1 hour')
                AND v.violation_type NOT LIKE 'anomaly-%' GROUP BY v.service) AS f
        GROUP BY 1
    ), figure AS (
        SELECT 'uses' AS name, r.service, sum(r.uses) AS value FROM read r GROUP BY r.service
        UNION ALL SELECT 'reads', r.service, sum(r.rows) FROM read r GROUP BY r.service
        UNION ALL SELECT 'strangers', s.service, s.users FROM stranger s
        UNION ALL SELECT 'refusals', f.service, f.refusals FROM refusal f
    )
    INSERT INTO audit.security_metrics (measured_at, metric_name, metric_value, labels)
    SELECT hour, f.name, f.value, jsonb_build_object('service', f.service) FROM figure f WHERE f.value > 0
    ON CONFLICT DO NOTHING
$$;

-- Rolls up the hours that are over, at most so many, and gives their number. A busy hour takes seconds. Transactions of workers end within five minutes
-- (sec.end_old_transactions), so that ten minutes later an hour gets no more rows.
CREATE FUNCTION audit.roll_up_until(at timestamptz, most integer) RETURNS integer LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    state audit.maintenance_state;
    ends CONSTANT timestamptz := date_trunc('hour', at - interval '10 minutes', 'UTC');
    earliest timestamptz;
    rolled integer := 0;
BEGIN
    SELECT * INTO state FROM audit.maintenance_state FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    IF state.rolled_until IS NULL THEN
        SELECT date_trunc('hour', min(l.occurred_at), 'UTC') INTO earliest
        FROM (SELECT a.occurred_at FROM audit.data_access_log a ORDER BY a.id LIMIT 1) AS l;
        -- Nothing was observed before the first access.
        state.rolled_from := least(ends, greatest(coalesce(earliest, ends), ends - make_interval(days => (audit.anomaly_limits()).baseline_days)));
        state.rolled_until := state.rolled_from;
    END IF;
    WHILE state.rolled_until < ends AND rolled < most LOOP
        PERFORM audit.roll_up_hour(state.rolled_until);
        state.rolled_until := state.rolled_until + interval '1 hour';
        rolled := rolled + 1;
    END LOOP;
    UPDATE audit.maintenance_state m SET rolled_from = state.rolled_from, rolled_until = state.rolled_until;
    RETURN rolled;
END $$;

-- Anomalies of the hour, from its figures and those of the same hour on the days before, where an hour without a figure has zero.
-- It reads figures alone.
CREATE FUNCTION audit.anomalies_of(hour timestamptz) RETURNS TABLE (kind text, service text, severity audit.severity, observed bigint,
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

-- Whether seals are missing, or rows wait for one for too long. Nothing is said where nothing was ever sealed.
CREATE FUNCTION audit.gaps_of_seals(at timestamptz) RETURNS TABLE (observed bigint, usual bigint, problem text) LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    WITH last AS MATERIALIZED (
        SELECT s.number, s.through_transaction, s.sealed_at, (SELECT count(*) FROM audit.seals) AS seals FROM audit.seals s
        ORDER BY s.number DESC LIMIT 1
    )
    SELECT l.number - l.seals, 0::bigint, 'seals are missing' FROM last l WHERE l.seals <> l.number
    UNION ALL
    SELECT extract(epoch FROM at - l.sealed_at)::bigint / 3600, 0::bigint, 'hours since the last seal, and rows wait for one' FROM last l
    WHERE l.sealed_at < at - (audit.anomaly_limits()).seals_late AND (
        EXISTS (SELECT FROM audit.data_access_log a WHERE a.transaction_id > l.through_transaction
            AND a.occurred_at < at - (audit.anomaly_limits()).seals_late)
        OR EXISTS (SELECT FROM audit.audit_log a WHERE a.transaction_id > l.through_transaction
            AND a.occurred_at < at - (audit.anomaly_limits()).seals_late))
$$;

-- Searches the hours that have figures and were not searched yet, at most so many, and the seals. An anomaly is written once: its id
-- follows from its kind, its service and its hour; for seals, the day. Gives those that were written now.
CREATE FUNCTION audit.detect_anomalies_until(at timestamptz, most integer) RETURNS TABLE (id uuid, kind text, service text,
    hour timestamptz, severity text, observed bigint, usual bigint, expected_at_most bigint) LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    state audit.maintenance_state;
    ends timestamptz;
BEGIN
    SELECT * INTO state FROM audit.maintenance_state FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    state.detected_until := coalesce(state.detected_until, state.rolled_from);
    ends := least(state.rolled_until, state.detected_until + make_interval(hours => most));
    RETURN QUERY WITH found AS MATERIALIZED (
        SELECT a.kind, a.service, h.hour, a.severity, a.observed, a.usual, a.most,
            format('%s in the hour from %s; usual are %s, and at most %s were expected', a.observed,
                to_char(h.hour AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI"Z"'), a.usual, a.most) AS reason
        FROM generate_series(state.detected_until, ends - interval '1 hour', interval '1 hour') AS h (hour),
            LATERAL audit.anomalies_of(h.hour) AS a
        UNION ALL
        SELECT 'anomaly-seals', NULL, date_trunc('day', at, 'UTC'), 'critical'::audit.severity, g.observed, g.usual, 0,
            format('%s %s', g.observed, g.problem) FROM audit.gaps_of_seals(at) AS g
    ), named AS MATERIALIZED (
        SELECT DISTINCT ON (n.id) n.* FROM (SELECT f.*, (left(public.uuid7_at(f.hour)::text, 14) || '7' || substr(m.hash, 1, 3) || '-8' || substr(m.hash, 4, 3) || '-'
            || substr(m.hash, 7, 12))::uuid AS id
        FROM found f CROSS JOIN LATERAL (SELECT md5(concat_ws('|', f.kind, f.service, f.hour AT TIME ZONE 'UTC')) AS hash) AS m) AS n
        ORDER BY n.id
    ), written AS (
        INSERT INTO audit.security_violations (id, role_name, service, violation_type, severity, table_name, reason)
        SELECT n.id, session_user, n.service, n.kind, n.severity,
            CASE n.kind WHEN 'anomaly-seals' THEN 'audit.seals' WHEN 'anomaly-refusals' THEN 'audit.security_violations'
                ELSE 'audit.data_access_log' END, n.reason
        FROM named n ON CONFLICT DO NOTHING RETURNING security_violations.id
    )
    SELECT n.id, n.kind, n.service, n.hour, n.severity::text, n.observed, n.usual, n.most FROM named n JOIN written w ON w.id = n.id
    ORDER BY n.hour, n.kind, n.service;
    UPDATE audit.maintenance_state m SET detected_until = ends;
END $$;

-- Sizes of tables once a day, so that their growth can be seen. Partitions count as their table. toast has values of more than 2 kB, which
-- are mostly JSON.
CREATE FUNCTION audit.measure_tables_at(at timestamptz) RETURNS integer LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    day CONSTANT timestamptz := date_trunc('day', at, 'UTC');
    measured integer;
BEGIN
    IF EXISTS (SELECT FROM audit.security_metrics m WHERE m.metric_name = 'table-bytes' AND m.measured_at = day) THEN
        RETURN 0;
    END IF;
    WITH size AS MATERIALIZED (
        SELECT coalesce(i.inhparent, c.oid)::regclass::text AS name, sum(pg_relation_size(c.oid)) AS heap,
            sum(coalesce(pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0)) AS toast, sum(pg_indexes_size(c.oid)) AS indexes
        FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
        WHERE c.relnamespace IN ('public'::regnamespace, 'audit'::regnamespace, 'sec'::regnamespace) AND c.relkind = 'r' GROUP BY 1
    )
    INSERT INTO audit.security_metrics (measured_at, metric_name, metric_value, labels)
    SELECT day, 'table-bytes', p.bytes, jsonb_build_object('table', regexp_replace(s.name, '^public\.', ''), 'part', p.part) FROM size s
    CROSS JOIN LATERAL (VALUES ('heap', s.heap), ('toast', s.toast), ('indexes', s.indexes)) AS p (part, bytes)
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS measured = ROW_COUNT;
    RETURN measured;
END $$;

-- Deletes what has aged out, at most so many rows of each sort, and gives how many: figures and who read whom after 400 days, so that the
-- months of two years can be compared; tokens whose grants ended a month ago, as their registration does when others come; revocations that
-- no grant outlives.
CREATE FUNCTION audit.clean_up_at(at timestamptz, most integer) RETURNS TABLE (what text, removed bigint) LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    forgotten uuid[];
BEGIN
    what := 'security_metrics';
    DELETE FROM audit.security_metrics m WHERE m.id IN (SELECT o.id FROM audit.security_metrics o
        WHERE o.measured_at < at - interval '400 days' AND o.id < public.uuid7_at(at - interval '365 days') ORDER BY o.id LIMIT most);
    GET DIAGNOSTICS removed = ROW_COUNT;
    RETURN NEXT;
    what := 'service_subjects';
    DELETE FROM audit.service_subjects k WHERE (k.service, k.subject_token) IN (SELECT o.service, o.subject_token
        FROM audit.service_subjects o WHERE o.last_read < at - interval '400 days' ORDER BY o.last_read LIMIT most);
    GET DIAGNOSTICS removed = ROW_COUNT;
    RETURN NEXT;
    what := 'cross_service_auth';
    forgotten := ARRAY(SELECT a.token_id FROM public.cross_service_auth a WHERE a.grants_expire_at < at - interval '30 days'
        ORDER BY a.grants_expire_at LIMIT most FOR UPDATE SKIP LOCKED);
    DELETE FROM public.cross_service_auth a WHERE a.token_id = ANY (forgotten);
    GET DIAGNOSTICS removed = ROW_COUNT;
    DELETE FROM sec.token_uses u WHERE (u.token_id, u.role_name) IN (
        SELECT f.token_id, f.role_name FROM sec.token_uses f WHERE f.token_id = ANY (forgotten) FOR UPDATE SKIP LOCKED);
    RETURN NEXT;
    what := 'revoked_grants';
    -- An operator who deletes the same ones is not waited for.
    DELETE FROM sec.revoked_grants r WHERE r.grant_id IN (SELECT o.grant_id FROM sec.revoked_grants o
        WHERE o.expires_at < at - interval '1 day' ORDER BY o.expires_at LIMIT most FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS removed = ROW_COUNT;
    RETURN NEXT;
END $$;

-- Whether events stand outside of all months. Row-level security hides them from the owner.
CREATE FUNCTION sec.has_events_outside() RETURNS boolean LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM public.blackboard_events_default)
$$;
GRANT SELECT (id) ON public.blackboard_events_default TO memfleet_due;
ALTER FUNCTION sec.has_events_outside OWNER TO memfleet_due;
REVOKE EXECUTE ON FUNCTION sec.has_events_outside FROM PUBLIC;
GRANT EXECUTE ON FUNCTION sec.has_events_outside TO memfleet_owner;
CREATE FUNCTION sec.has_rows_outside(parent text) RETURNS boolean LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE parent WHEN 'public.blackboard_events' THEN sec.has_events_outside() ELSE EXISTS (SELECT FROM audit.audit_log_default) END
$$;

-- What an operator has to know of the partitions: months without one, and rows outside of all of them.
CREATE FUNCTION sec.partition_alarms_at(at timestamptz) RETURNS SETOF text LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    parent text;
    month timestamp;
BEGIN
    FOREACH parent IN ARRAY ARRAY['public.blackboard_events', 'audit.audit_log'] LOOP
        FOR step IN 0 .. 1 LOOP
            month := date_trunc('month', at AT TIME ZONE 'UTC') + make_interval(months => step);
            IF to_regclass(parent || to_char(month, '_YYYY_MM')) IS NULL THEN
                RETURN NEXT format('%s has no partition for %s; run `memfleet maintenance run`', parent, to_char(month, 'YYYY-MM'));
            END IF;
        END LOOP;
        IF sec.has_rows_outside(parent) THEN
            RETURN NEXT format('%s has rows of months without a partition; run `memfleet maintenance run`', parent);
        END IF;
    END LOOP;
END $$;

-- What the job maintenance calls: all of it is as of now, and bounded.
CREATE FUNCTION sec.make_partitions_ahead() RETURNS integer LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET lock_timeout = '100ms' AS $$
DECLARE
    parent text;
    made integer := 0;
BEGIN
    FOREACH parent IN ARRAY ARRAY['public.blackboard_events', 'audit.audit_log'] LOOP
        -- To move rows takes a time for each of them, in which writers would wait: that is for an operator.
        IF NOT sec.has_rows_outside(parent) THEN
            made := made + public.make_month_partitions(parent::regclass, 3);
        END IF;
    END LOOP;
    RETURN made;
END $$;
CREATE FUNCTION sec.partition_alarms() RETURNS SETOF text LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT a FROM sec.partition_alarms_at(now()) AS a
$$;
CREATE FUNCTION audit.roll_up_metrics() RETURNS integer LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT audit.roll_up_until(now(), 1)
$$;
CREATE FUNCTION audit.measure_tables() RETURNS integer LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT audit.measure_tables_at(now())
$$;
CREATE FUNCTION audit.cleanup_old_data() RETURNS TABLE (what text, removed bigint) LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms' AS $$
    SELECT * FROM audit.clean_up_at(now(), 1000)
$$;
CREATE FUNCTION audit.detect_security_anomalies() RETURNS TABLE (id uuid, kind text, service text, hour timestamptz, severity text,
    observed bigint, usual bigint, expected_at_most bigint) LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT * FROM audit.detect_anomalies_until(now(), 24)
$$;
-- The platform's grant alone: the job acts for no user.
CREATE FUNCTION sec.due_maintenance(integer) RETURNS SETOF integer LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT 0
$$;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['audit.anomaly_limits()', 'audit.counted_service(text)', 'audit.roll_up_hour(timestamptz)',
        'audit.roll_up_until(timestamptz, integer)', 'audit.anomalies_of(timestamptz)', 'audit.gaps_of_seals(timestamptz)',
        'audit.detect_anomalies_until(timestamptz, integer)', 'audit.measure_tables_at(timestamptz)',
        'audit.clean_up_at(timestamptz, integer)', 'sec.has_rows_outside(text)', 'sec.partition_alarms_at(timestamptz)', 'sec.make_partitions_ahead()',
        'sec.partition_alarms()', 'audit.roll_up_metrics()', 'audit.measure_tables()', 'audit.cleanup_old_data()',
        'audit.detect_security_anomalies()'] LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', name);
        EXECUTE format('ALTER FUNCTION %s OWNER TO memfleet_owner', name);
    END LOOP;
END $$;
GRANT CREATE ON SCHEMA public, audit TO memfleet_owner;
GRANT EXECUTE ON FUNCTION public.make_month_partitions TO memfleet_owner;

SELECT sec.grant_worker('w_retention_cleaner', functions => '{"sec.make_partitions_ahead()", "sec.partition_alarms()",
    "audit.roll_up_metrics()", "audit.measure_tables()", "audit.cleanup_old_data()", "audit.detect_security_anomalies()"}');
INSERT INTO sec.event_writers (role_name, event_type) VALUES ('w_retention_cleaner', 'anomaly.detected') ON CONFLICT DO NOTHING;
SELECT sec.add_job('maintenance', 'w_retention_cleaner', 'sec.due_maintenance(integer)');
