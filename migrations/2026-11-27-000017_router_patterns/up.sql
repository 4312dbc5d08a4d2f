-- What router-logger needs beside the log itself: what is learnt from decisions, kept by the hour (the reference document's
-- "Smart Router Integration"), so that a day of analytics reads hundreds of rows instead of millions.
SET LOCAL lock_timeout = '100ms';

ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'decision.logged';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'tool.reported';

-- The mode that the session was in when the decision was logged: a session may be opened again in another one, and what was
-- learnt must follow from the log alone.
ALTER TABLE router_decision_log
    ADD COLUMN chat_mode chat_mode NOT NULL DEFAULT 'smart-router',
    ADD COLUMN is_sensitive boolean NOT NULL DEFAULT false;
CREATE TRIGGER ciphertext_delete AFTER DELETE ON router_decision_log FOR EACH ROW WHEN (OLD.is_sensitive)
    EXECUTE FUNCTION sec.drop_ciphertext();

-- The route that a decision took: its text, or the text under "route". What has another shape is a decision too.
CREATE FUNCTION router_route(decision jsonb) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(nullif(left(CASE jsonb_typeof(decision)
        WHEN 'string' THEN decision #>> '{}'
        WHEN 'object' THEN CASE jsonb_typeof(decision -> 'route') WHEN 'string' THEN decision ->> 'route' END
        END, 200), ''), 'unknown')
$$;

-- The names of the tools that were invoked, each once: texts, or the text under "name" or "tool".
CREATE FUNCTION router_tools(invoked jsonb) RETURNS text[] LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(array_agg(DISTINCT coalesce(nullif(left(CASE jsonb_typeof(t)
        WHEN 'string' THEN t #>> '{}'
        WHEN 'object' THEN CASE WHEN jsonb_typeof(t -> 'name') = 'string' THEN t ->> 'name'
            WHEN jsonb_typeof(t -> 'tool') = 'string' THEN t ->> 'tool' END
        END, 200), ''), 'unknown')), '{}')
    FROM jsonb_array_elements(invoked) AS t
$$;

-- Times are counted in buckets, eight to a doubling: of whole buckets a percentile is known to within a tenth of its size.
CREATE FUNCTION router_time_bucket(milliseconds bigint) RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT floor(8 * ln((milliseconds + 1)::double precision) / ln(2::double precision))::integer
$$;

-- Adds up two sets of counts by bucket: {"12": 3, "40": 1}.
CREATE FUNCTION add_counts(one jsonb, other jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(jsonb_object_agg(bucket, amount), '{}') FROM (
        SELECT key AS bucket, sum(value::bigint) AS amount
        FROM (SELECT * FROM jsonb_each_text(one) UNION ALL SELECT * FROM jsonb_each_text(other)) AS both_sets GROUP BY key) AS t
$$;

-- The longest time that falls into a bucket. A percentile is told so: never too short, and at most a tenth too long.
CREATE FUNCTION router_bucket_end(bucket integer) RETURNS double precision LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT ceil(power(2::double precision, (bucket + 1) / 8.0) - 1) - 1
$$;

-- For each hour (UTC) and whatever analytics ask by: what the decisions of the log add up to. Sums are of numeric, which has
-- no rounding that would depend on the order. It follows from the log alone: see docs/adr/0020.
CREATE TABLE router_hourly_patterns (
    user_id integer NOT NULL,
    hour timestamptz NOT NULL,
    chat_mode chat_mode NOT NULL,
    route varchar(200) NOT NULL CHECK (route <> ''),
    -- A row without a tool counts every decision once; a row of a tool those that invoked it.
    tool varchar(200) NOT NULL DEFAULT '',
    -- Empty where the router did not name one.
    model varchar(100) NOT NULL DEFAULT '',
    decisions bigint NOT NULL CHECK (decisions > 0),
    successes bigint NOT NULL CHECK (successes BETWEEN 0 AND decisions),
    -- Those whose time is known; their times in buckets and together.
    timed bigint NOT NULL CHECK (timed BETWEEN 0 AND decisions),
    times jsonb NOT NULL CHECK (jsonb_typeof(times) = 'object'),
    time_ms_sum bigint NOT NULL CHECK (time_ms_sum >= 0),
    tokens_sum bigint NOT NULL CHECK (tokens_sum >= 0),
    complexity_sum numeric NOT NULL CHECK (complexity_sum BETWEEN 0 AND decisions),
    confidence_sum numeric NOT NULL CHECK (confidence_sum BETWEEN 0 AND decisions),
    PRIMARY KEY (user_id, hour, chat_mode, route, tool, model)
);
ALTER TABLE router_hourly_patterns ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON router_hourly_patterns USING (user_id = ANY ((SELECT sec.current_user_ids())::integer[]))
    WITH CHECK (user_id = ANY ((SELECT sec.current_user_ids())::integer[]));
ALTER TABLE router_hourly_patterns OWNER TO memfleet_owner;

INSERT INTO sec.worker_privileges (role_name, table_name, privileges) VALUES
    ('w_router_logger', 'router_decision_log'::regclass, '{SELECT,INSERT}'),
    ('w_router_logger', 'router_hourly_patterns'::regclass, '{SELECT,INSERT,UPDATE}'),
    ('w_router_logger', 'chat_mode_sessions'::regclass, '{SELECT}'),
    ('w_router_logger', 'encrypted_fields'::regclass, '{SELECT,INSERT,UPDATE}');
GRANT SELECT, INSERT ON router_decision_log TO w_router_logger;
GRANT SELECT, INSERT, UPDATE ON router_hourly_patterns TO w_router_logger;
GRANT SELECT ON chat_mode_sessions TO w_router_logger;
GRANT SELECT, INSERT, UPDATE ON encrypted_fields TO w_router_logger;
-- Whoever appends an event looks whether its user is known, and sees no more of the account than that.
GRANT SELECT (id) ON users TO w_router_logger;

DO $$
DECLARE
    made record;
BEGIN
    FOR made IN SELECT p.oid::regprocedure AS name FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace
        AND p.proname IN ('router_route', 'router_tools', 'router_time_bucket', 'add_counts', 'router_bucket_end') LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO memfleet_owner', made.name);
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', made.name);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO w_router_logger', made.name);
    END LOOP;
END $$;
