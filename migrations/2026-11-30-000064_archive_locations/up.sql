-- An archive is in the place that its table, its month and its id give, whoever writes the row: files in another one are those of no archive.
SET LOCAL lock_timeout = '100ms';

ALTER TABLE archives ADD CONSTRAINT archives_location CHECK (
    location = table_name || '/' || split_part(location, '/', 2) || '/' || id::text
    AND split_part(location, '/', 2) ~ '^[0-9]{4}-(0[1-9]|1[0-2])$') NOT VALID;

-- A row that somebody changed is evidence: it stays, and `memfleet archive verify` names it.
DO $$ BEGIN
    ALTER TABLE archives VALIDATE CONSTRAINT archives_location;
EXCEPTION WHEN check_violation THEN
    RAISE WARNING 'the table archives has an archive in a place where none is written; run `memfleet archive verify`';
END $$;
