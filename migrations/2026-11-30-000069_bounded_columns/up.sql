-- Columns that a worker's role writes and another one reads: each has a limit, as it is written as text. A JSON number such as 1e131071 takes 10
-- bytes in a row, and a text of one letter a hundredth of its size.
SET LOCAL lock_timeout = '100ms';

-- The id of an anomaly, which is written once.
CREATE FUNCTION audit.anomaly_id(kind text, service text, hour timestamptz) RETURNS uuid LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT (left(public.uuid7_at(hour)::text, 14) || '7' || substr(m.hash, 1, 3) || '-8' || substr(m.hash, 4, 3) || '-'
        || substr(m.hash, 7, 12))::uuid
    FROM (SELECT md5(concat_ws('|', kind, service, to_char(hour AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'))) AS hash) AS m
$$;
ALTER FUNCTION audit.anomaly_id OWNER TO memfleet_owner;
REVOKE EXECUTE ON FUNCTION audit.anomaly_id FROM PUBLIC;

-- A figure of more than 10^15, which rows from before may add up to, counts as 10^15. An hour that was an anomaly itself is none of those that
-- a later one must exceed: one burst would hide all others for 35 days. It counts in the median and the deviation, so that what stays as it is
-- becomes usual.
CREATE OR REPLACE FUNCTION audit.anomalies_of(hour timestamptz) RETURNS TABLE (kind text, service text, severity audit.severity,
    observed bigint, usual bigint, most bigint) LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC' SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres' SET extra_float_digits = 1 SET quote_all_identifiers = off AS $$
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
        SELECT d.*, a.hours, c.median, v.greatest, b.deviation
        FROM measured d CROSS JOIN setting s
        LEFT JOIN activity a ON a.service = d.service AND a.since <= hour - make_interval(days => s.history_days)
        CROSS JOIN LATERAL (SELECT array_agg(a.x) AS amounts, coalesce(max(a.x) FILTER (WHERE d.kind = 'anomaly-hours' OR a.x < d.least
                OR NOT EXISTS (SELECT FROM audit.security_violations w
                    WHERE w.id = audit.anomaly_id(d.kind, d.service, a.at) AND w.violation_type = d.kind)), 0) AS greatest
            FROM (SELECT t.at, least(coalesce(m.metric_value, 0), 1e15)::bigint AS x FROM baseline t LEFT JOIN audit.security_metrics m
                ON m.metric_name = d.metric_name AND m.measured_at = t.at AND m.labels = d.labels) AS a) AS v
        CROSS JOIN LATERAL (SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY x) AS median FROM unnest(v.amounts) AS x) AS c
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

-- Searches the hours that have figures and were not searched yet, at most so many, and the seals. An anomaly is written once: its id
-- follows from its kind, its service and its hour; for seals, the day. Gives those that were written now.
CREATE OR REPLACE FUNCTION audit.detect_anomalies_until(at timestamptz, most integer) RETURNS TABLE (id uuid, kind text, service text,
    hour timestamptz, severity text, observed bigint, usual bigint, expected_at_most bigint) LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC' SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres' SET extra_float_digits = 1 SET quote_all_identifiers = off AS $$
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
        SELECT DISTINCT ON (n.id) n.* FROM (SELECT f.*, audit.anomaly_id(f.kind, f.service, f.hour) AS id FROM found f) AS n ORDER BY n.id
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

-- Locks that writers wait for come last. Rows from before are not checked, so that nobody waits for it.

-- Most have the limit of an event, which has all that a request stores (000061). The state of a key has 4 MiB at most, as the rules of syncs
-- say. What a sync keeps of a key for an undo is its state, its value and a few attributes; its conflicts hold parts of its state several
-- times. A dossier has the answers to a task, with what they rest on.
ALTER TABLE chat_mode_sessions ADD CONSTRAINT columns_are_bounded CHECK (octet_length(configuration::text) <= 2031616
    AND octet_length(session_metadata::text) <= 2031616) NOT VALID;
ALTER TABLE simple_chat_context ADD CONSTRAINT columns_are_bounded CHECK (octet_length(sync_state) <= 4194304
    AND octet_length(sync_values) <= 4194304) NOT VALID;
ALTER TABLE agent_context_states ADD CONSTRAINT columns_are_bounded CHECK (octet_length(sync_state) <= 4194304
    AND octet_length(sync_values) <= 4194304) NOT VALID;
ALTER TABLE chat_session_summary ADD CONSTRAINT columns_are_bounded CHECK (octet_length(summary) <= 2031616) NOT VALID;
ALTER TABLE chat_history ADD CONSTRAINT columns_are_bounded CHECK (octet_length(summary) <= 2031616
    AND octet_length(metadata::text) <= 2031616) NOT VALID;
ALTER TABLE chat_messages ADD CONSTRAINT columns_are_bounded CHECK (octet_length(content) <= 2031616) NOT VALID;
ALTER TABLE router_decision_log ADD CONSTRAINT columns_are_bounded CHECK (octet_length(user_request) <= 2031616
    AND octet_length(routing_decision::text) <= 2031616 AND octet_length(tools_invoked::text) <= 2031616
    AND octet_length(error_details::text) <= 2031616) NOT VALID;
ALTER TABLE router_hourly_patterns ADD CONSTRAINT columns_are_bounded CHECK (octet_length(times::text) <= 2031616) NOT VALID;
ALTER TABLE unified_memory_vectors ADD CONSTRAINT columns_are_bounded CHECK (octet_length(content_text) <= 2031616
    AND octet_length(preceding_text) <= 2031616 AND octet_length(metadata::text) <= 2031616) NOT VALID;
ALTER TABLE agent_configurations ADD CONSTRAINT columns_are_bounded CHECK (octet_length(system_prompt) <= 2031616
    AND octet_length(constraints::text) <= 2031616 AND octet_length(capabilities::text) <= 2031616) NOT VALID;
ALTER TABLE agent_profiles ADD CONSTRAINT columns_are_bounded CHECK (octet_length(description) <= 2031616
    AND octet_length(expertise_areas::text) <= 2031616 AND octet_length(performance_metrics::text) <= 2031616) NOT VALID;
ALTER TABLE multi_agent_conversations ADD CONSTRAINT columns_are_bounded CHECK (octet_length(participating_agents::text) <= 2031616) NOT VALID;
ALTER TABLE consensus_tasks ADD CONSTRAINT columns_are_bounded CHECK (octet_length(question) <= 2031616
    AND octet_length(semantic_tags::text) <= 2031616 AND octet_length(options::text) <= 2031616 AND octet_length(voters::text) <= 2031616) NOT VALID;
ALTER TABLE task_delegations ADD CONSTRAINT columns_are_bounded CHECK (octet_length(task_description) <= 2031616) NOT VALID;
ALTER TABLE agent_responses ADD CONSTRAINT columns_are_bounded CHECK (octet_length(response_text) <= 2031616
    AND octet_length(claim::text) <= 2031616 AND octet_length(evidence::text) <= 2031616) NOT VALID;
ALTER TABLE consensus_memory_nodes ADD CONSTRAINT columns_are_bounded CHECK (octet_length(verdict_reason) <= 2031616) NOT VALID;
ALTER TABLE consensus_dossiers ADD CONSTRAINT columns_are_bounded CHECK (octet_length(inputs) <= 67108864
    AND octet_length(dossier) <= 67108864 AND octet_length(standing::text) <= 67108864) NOT VALID;
ALTER TABLE sync_changes ADD CONSTRAINT columns_are_bounded CHECK (octet_length(reason) <= 2031616 AND octet_length(before) <= 6291456
    AND octet_length(conflicts::text) <= 33554432 AND octet_length(disputed::text) <= 33554432) NOT VALID;
ALTER TABLE retention_holds ADD CONSTRAINT columns_are_bounded CHECK (octet_length(reason) <= 2031616) NOT VALID;
