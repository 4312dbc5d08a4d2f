-- The order of the events of a session (docs/adr/0021). Whoever appends events to a session holds its row until the commit, so
-- that numbers become visible in the order in which they were drawn.
SET LOCAL lock_timeout = '100ms';

CREATE TABLE session_clocks (
    user_id integer NOT NULL,
    session_id varchar(128) NOT NULL,
    -- Events up to this one have been published for certain. It lags behind: it is moved by whoever appends next.
    published_sequence bigint NOT NULL DEFAULT 0 CHECK (published_sequence >= 0),
    -- How many events were appended since there is a clock, and the Lamport time of the last one.
    events bigint NOT NULL DEFAULT 0 CHECK (events >= 0),
    logical_time bigint NOT NULL DEFAULT 0 CHECK (logical_time >= events),
    PRIMARY KEY (user_id, session_id)
) WITH (fillfactor = 70);
ALTER TABLE session_clocks ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON session_clocks USING (user_id = ANY ((SELECT sec.current_user_ids())::integer[]))
    WITH CHECK (user_id = ANY ((SELECT sec.current_user_ids())::integer[]));
ALTER TABLE session_clocks OWNER TO memfleet_owner;

DO $$
DECLARE
    worker text;
BEGIN
    FOR worker IN SELECT role_name FROM sec.worker_privileges WHERE table_name = 'blackboard_events'::regclass
        AND 'INSERT' = ANY (privileges) LOOP
        INSERT INTO sec.worker_privileges (role_name, table_name, privileges)
        VALUES (worker, 'session_clocks'::regclass, '{SELECT,INSERT,UPDATE}');
        EXECUTE format('GRANT SELECT, INSERT, UPDATE ON session_clocks TO %I', worker);
        EXECUTE format('GRANT EXECUTE ON FUNCTION uuid7_at TO %I', worker);
    END LOOP;
END $$;
