-- No worker's role takes all connections of the server (000029 of the main database): half of them, unless an administrator has
-- limited them already, or the main database is on the same server and its migrations have.
SET LOCAL lock_timeout = '100ms';

DO $$
DECLARE
    worker name;
BEGIN
    FOR worker IN SELECT r.rolname FROM pg_roles r WHERE r.rolconnlimit = -1
        AND r.rolname IN ('w_context_writer', 'w_router_logger', 'w_memory_reader') LOOP
        BEGIN
            EXECUTE format('ALTER ROLE %I CONNECTION LIMIT %s', worker, greatest(current_setting('max_connections')::integer / 2, 1));
        EXCEPTION
            WHEN insufficient_privilege THEN
                RAISE WARNING 'the connections of % are not limited, since the role that migrates may not do it: %', worker, SQLERRM;
            WHEN internal_error THEN
                IF SQLERRM NOT LIKE 'tuple concurrently %' THEN
                    RAISE;
                END IF;
        END;
    END LOOP;
END $$;
