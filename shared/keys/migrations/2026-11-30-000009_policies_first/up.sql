-- The policy of the data keys is evaluated before the conditions of a statement (000050 of the main database, docs/adr/0060).
SET LOCAL lock_timeout = '100ms';

-- The users of the context as the keys of an object. A subscript costs nothing by PostgreSQL's estimate, so that no condition is
-- cheaper. In a policy only as (SELECT sec.current_users()), as sec.current_user_ids.
CREATE FUNCTION sec.current_users() RETURNS jsonb LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    keys CONSTANT text := array_to_string(sec.current_user_ids(), '":1,"');
BEGIN
    RETURN (CASE WHEN keys = '' THEN '{}' ELSE '{"' || keys || '":1}' END)::jsonb;
END $$;
ALTER FUNCTION sec.current_users OWNER TO memfleet_owner;
REVOKE EXECUTE ON FUNCTION sec.current_users FROM PUBLIC;
GRANT EXECUTE ON FUNCTION sec.current_users TO w_context_writer, w_router_logger, w_memory_reader, w_memory_sync;

ALTER POLICY own_keys ON data_keys USING (((SELECT sec.current_users())::jsonb)[user_id] IS NOT NULL
    AND user_id = ANY ((SELECT sec.current_user_ids())::integer[]));
