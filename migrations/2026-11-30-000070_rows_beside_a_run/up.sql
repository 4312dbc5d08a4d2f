-- A run of the sweep has grants of the users whose rows were due when they were minted. Other users of its slice may have due rows, which it does not
-- see: it must not leave the slice then.
SET LOCAL lock_timeout = '100ms';

-- Whether rows of others than these users are due in the slice of users behind one and up to another one.
CREATE FUNCTION sec.has_due_beside(users integer[], behind integer, up_to integer) RETURNS boolean LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM sec.due_users(ARRAY(SELECT u.id FROM public.users u
        WHERE u.id > behind AND u.id <= up_to AND u.id <> ALL (users) ORDER BY u.id LIMIT 200)))
$$;
REVOKE EXECUTE ON FUNCTION sec.has_due_beside FROM PUBLIC;
ALTER FUNCTION sec.has_due_beside OWNER TO memfleet_due;
GRANT EXECUTE ON FUNCTION sec.has_due_beside TO memfleet_owner;
SELECT sec.grant_worker('w_retention_cleaner', functions => '{"sec.has_due_beside(integer[], integer, integer)"}', takes_messages => false);

SELECT sec.hide_plans();
