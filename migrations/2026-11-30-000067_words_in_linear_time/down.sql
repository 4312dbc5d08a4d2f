SET LOCAL lock_timeout = '100ms';

CREATE OR REPLACE FUNCTION memory_words(content text) RETURNS tsvector LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT to_tsvector('pg_catalog.english'::regconfig, left(content, 100000))
$$;
DROP FUNCTION searchable_text;
