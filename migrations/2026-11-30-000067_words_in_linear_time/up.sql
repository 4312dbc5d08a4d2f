-- The time in which a text is split into words grows with its length alone, whatever it says.
SET LOCAL lock_timeout = '100ms';

-- What is searched of a text. PostgreSQL reads ahead for a tag, a host, a path or a number, and again from the next character if it was none:
-- characters without a space between them take quadratic time, and so does a `<` that begins no tag. So there is a space after each 100
-- characters that have none, and instead of each `<`. Words, addresses and names between spaces that are shorter
-- stay whole; of a longer run, a word at such a place is cut.
CREATE FUNCTION searchable_text(content text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT regexp_replace(replace(left(content, 100000), '<', ' '), '\S{100}', '\& ', 'g')
$$;
REVOKE EXECUTE ON FUNCTION searchable_text FROM PUBLIC;
ALTER FUNCTION searchable_text OWNER TO memfleet_owner;
GRANT EXECUTE ON FUNCTION searchable_text TO w_vector_indexer, w_memory_reader;

CREATE OR REPLACE FUNCTION memory_words(content text) RETURNS tsvector LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT to_tsvector('pg_catalog.english'::regconfig, public.searchable_text(content))
$$;
