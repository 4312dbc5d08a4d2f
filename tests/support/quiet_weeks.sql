-- Figures of services that are used as they always are, by a generator that depends on its seed alone.

-- A number from 0 to 1, and one of a bell curve around 0 with the standard deviation 1.
CREATE FUNCTION chance(key text, seed bigint) RETURNS float8 LANGUAGE sql IMMUTABLE AS $$
    SELECT (hashtextextended(key, seed) & 9007199254740991)::float8 / 9007199254740992
$$;
CREATE FUNCTION bell(key text, seed bigint) RETURNS float8 LANGUAGE sql IMMUTABLE AS $$
    SELECT sum(chance(key || n, seed)) - 6 FROM generate_series(1, 12) AS n
$$;

-- People by day, and less at the weekend; an office; a machine; a batch at night, and a large one each month; and now and then a crawl.
-- Days differ from each other, and so do the rows of an hour.
CREATE FUNCTION quiet_weeks(ends timestamptz, weeks integer, seed bigint) RETURNS void LANGUAGE sql AS $$
    WITH hour AS (
        SELECT h, extract(hour FROM h AT TIME ZONE 'UTC') AS clock, extract(isodow FROM h AT TIME ZONE 'UTC') AS day,
            extract(day FROM h AT TIME ZONE 'UTC') AS date, to_char(h AT TIME ZONE 'UTC', 'YYYYMMDD') AS date_key,
            extract(epoch FROM h)::text AS key
        FROM generate_series(ends - make_interval(weeks => weeks), ends - interval '1 hour', interval '1 hour') AS h
    ), expected AS (
        SELECT h.*, v.service, v.uses * exp(0.3 * bell(v.service || h.date_key, seed)) AS uses, v.rows
        FROM hour h CROSS JOIN LATERAL (VALUES
            ('people', 5 + 60 * greatest(0, sin((h.clock - 6) / 24 * 2 * pi())) * CASE WHEN h.day > 5 THEN 0.4 ELSE 1 END, 12),
            ('office', CASE WHEN h.day < 6 AND h.clock BETWEEN 8 AND 17 THEN 15 ELSE 0 END, 60),
            ('machine', 80, 3),
            ('batch', CASE WHEN h.clock <> 3 THEN 0 WHEN h.date = 1 THEN 400 ELSE 30 END, 400),
            ('crawl', CASE WHEN chance('crawl' || h.key, seed) < 0.1 THEN 40 + 400 * chance('size' || h.key, seed) ELSE 0 END, 20)
        ) AS v (service, uses, rows)
    ), used AS (
        SELECT e.*, greatest(0, round(e.uses + sqrt(e.uses) * bell('uses' || e.service || e.key, seed))) AS n FROM expected e
    ), figure AS (
        SELECT u.h, u.service, f.name, greatest(0, round(f.value)) AS value FROM used u CROSS JOIN LATERAL (VALUES
            ('uses', u.n),
            ('reads', u.n * u.rows * exp(0.5 * bell('rows' || u.service || u.key, seed))),
            ('strangers', u.n * 0.03 + sqrt(u.n * 0.03) * bell('new' || u.service || u.key, seed)),
            ('refusals', u.n * 0.02 + sqrt(u.n * 0.02) * bell('refused' || u.service || u.key, seed))) AS f (name, value)
    )
    INSERT INTO audit.security_metrics (measured_at, metric_name, metric_value, labels)
    SELECT h, name, value, jsonb_build_object('service', service) FROM figure WHERE value > 0
$$;
