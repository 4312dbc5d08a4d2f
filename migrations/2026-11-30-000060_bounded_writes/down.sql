SET LOCAL lock_timeout = '100ms';

DROP POLICY own_worker_deletes ON inbox;
DROP POLICY own_worker_changes ON inbox;
DROP POLICY own_worker_adds ON inbox;

DROP POLICY evidence ON blackboard_events;
CREATE POLICY evidence ON blackboard_events AS RESTRICTIVE FOR INSERT WITH CHECK (
    transaction_id = pg_current_xact_id()::text::bigint AND created_at = transaction_timestamp()
    AND logical_timestamp <= extract(epoch FROM clock_timestamp()) * 1000000
    AND CASE WHEN event_sequence = currval('public.blackboard_event_sequence')
        THEN nextval('public.blackboard_event_sequence') > event_sequence ELSE false END);

CREATE OR REPLACE FUNCTION sec.revoke_tokens(token_ids uuid[]) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    revoked integer;
BEGIN
    -- In one order, so that two operators do not wait for each other in a circle.
    PERFORM FROM public.cross_service_auth WHERE token_id = ANY (token_ids) ORDER BY token_id FOR UPDATE;
    UPDATE public.cross_service_auth SET revoked_at = now() WHERE token_id = ANY (token_ids) AND revoked_at IS NULL;
    INSERT INTO sec.revoked_grants (grant_id, expires_at)
    SELECT i.token_id, now() + interval '10 days' FROM (SELECT DISTINCT unnest(token_ids) AS token_id) AS i
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS revoked = ROW_COUNT;
    -- What needs not be known any more.
    DELETE FROM sec.revoked_grants WHERE expires_at < now() - interval '1 day';
    RETURN revoked;
END $$;

CREATE OR REPLACE TRIGGER trust_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON sec.revoked_grants
    FOR EACH STATEMENT EXECUTE FUNCTION sec.trust_changed();
