SET LOCAL lock_timeout = '100ms';

CREATE OR REPLACE FUNCTION sec.was_revoked_since(users integer[], since timestamptz) RETURNS boolean LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM sec.revoked_grants r LEFT JOIN public.cross_service_auth a ON a.token_id = r.grant_id
            WHERE r.revoked_at > since - interval '10 minutes' AND (a.user_id = ANY (users) OR a.user_id IS NULL))
        OR EXISTS (SELECT FROM sec.services s WHERE s.disabled_at > since - interval '10 minutes')
$$;
DROP TRIGGER trust_changed ON sec.keys;
