-- A grant key that is retired ends the open contexts, as the revocation of a token does (docs/adr/0042). Until now they lasted as
-- long as their transactions.
SET LOCAL lock_timeout = '100ms';

-- Not when a key is added: `memfleet security validate` does that in a transaction, and nobody should wait for it.
CREATE TRIGGER trust_changed AFTER UPDATE ON sec.keys
    FOR EACH ROW WHEN (old.retired_at IS NULL AND new.retired_at IS NOT NULL) EXECUTE FUNCTION sec.trust_changed();

CREATE OR REPLACE FUNCTION sec.was_revoked_since(users integer[], since timestamptz) RETURNS boolean LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM sec.revoked_grants r LEFT JOIN public.cross_service_auth a ON a.token_id = r.grant_id
            WHERE r.revoked_at > since - interval '10 minutes' AND (a.user_id = ANY (users) OR a.user_id IS NULL))
        OR EXISTS (SELECT FROM sec.services s WHERE s.disabled_at > since - interval '10 minutes')
        OR EXISTS (SELECT FROM sec.keys k WHERE k.purpose = 'grant' AND k.retired_at > since - interval '10 minutes')
$$;
