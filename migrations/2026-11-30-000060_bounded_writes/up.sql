-- What a worker's role may hold up or spoil: revocations, the partitions of events, and the inbox of other workers (docs/SECURITY.md).
SET LOCAL lock_timeout = '100ms';

-- A revocation that is deleted has expired, and no replica knows it any more. A role that deletes it and stays in its transaction
-- would hold the one row of the version, for which every revocation waits.
CREATE OR REPLACE TRIGGER trust_changed AFTER INSERT OR UPDATE OR TRUNCATE ON sec.revoked_grants
    FOR EACH STATEMENT EXECUTE FUNCTION sec.trust_changed();

-- Revokes tokens by their ids, also such as were never registered. Gives the number that were not revoked before. From the
-- commit on no statement reads or writes under their grants, and within a second no replica believes them. How long a revocation
-- is remembered depends on nothing that a token's row says. It waits for no row that a clean-up deletes: neither an old token nor an
-- expired revocation.
CREATE OR REPLACE FUNCTION sec.revoke_tokens(token_ids uuid[]) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    revoked integer;
BEGIN
    -- In one order, so that two operators do not wait for each other in a circle. Tokens whose grants ended a month ago are deleted.
    PERFORM FROM public.cross_service_auth WHERE token_id = ANY (token_ids) AND grants_expire_at > now() - interval '29 days'
        ORDER BY token_id FOR UPDATE;
    UPDATE public.cross_service_auth SET revoked_at = now() WHERE token_id = ANY (ARRAY(SELECT a.token_id
        FROM public.cross_service_auth a WHERE a.token_id = ANY (token_ids) AND a.revoked_at IS NULL FOR UPDATE SKIP LOCKED));
    -- An insertion would wait for the end of whoever deletes the same revocation.
    INSERT INTO sec.revoked_grants (grant_id, expires_at)
    SELECT i.token_id, now() + interval '10 days' FROM (SELECT DISTINCT unnest(token_ids) AS token_id) AS i
    WHERE NOT EXISTS (SELECT FROM sec.revoked_grants r WHERE r.grant_id = i.token_id)
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS revoked = ROW_COUNT;
    -- What needs not be known any more.
    DELETE FROM sec.revoked_grants WHERE grant_id IN (
        SELECT r.grant_id FROM sec.revoked_grants r WHERE r.expires_at < now() - interval '1 day' FOR UPDATE SKIP LOCKED);
    RETURN revoked;
END $$;

-- What writers wait for comes last, in the order in which a worker's transaction comes by it.
--
-- A worker adds to its own inbox, changes it and deletes from it: an entry in that of another worker would have a request of its user
-- pass for processed, and without its entry a request takes effect twice. The sweep deletes entries of all workers, which are kept for
-- eight days at least: no stream has their requests any more after seven. Its clock may be another one than the database's.
CREATE POLICY own_worker_adds ON inbox AS RESTRICTIVE FOR INSERT WITH CHECK (
    worker = ANY ((SELECT ARRAY[n, n || '-jobs', n || '-wakes'] FROM replace(substr(session_user::text, 3), '_', '-') AS n)::text[]));
CREATE POLICY own_worker_changes ON inbox AS RESTRICTIVE FOR UPDATE USING (
    worker = ANY ((SELECT ARRAY[n, n || '-jobs', n || '-wakes'] FROM replace(substr(session_user::text, 3), '_', '-') AS n)::text[]));
CREATE POLICY own_worker_deletes ON inbox AS RESTRICTIVE FOR DELETE USING (
    worker = ANY ((SELECT ARRAY[n, n || '-jobs', n || '-wakes'] FROM replace(substr(session_user::text, 3), '_', '-') AS n)::text[])
    OR session_user = 'w_retention_cleaner' AND received_at <= now() - interval '180 hours');

-- As before, and the id of an event has about the time of its transaction: it lies in the partition of this month or of one next to it.
-- A worker makes the id when it takes the message, which may wait there while the database is away.
DROP POLICY evidence ON blackboard_events;
CREATE POLICY evidence ON blackboard_events AS RESTRICTIVE FOR INSERT WITH CHECK (
    transaction_id = pg_current_xact_id()::text::bigint AND created_at = transaction_timestamp()
    AND id >= (SELECT public.uuid7_at(now() - interval '8 days')) AND id < (SELECT public.uuid7_at(now() + interval '1 day'))
    AND logical_timestamp <= extract(epoch FROM clock_timestamp()) * 1000000
    AND CASE WHEN event_sequence = currval('public.blackboard_event_sequence')
        THEN nextval('public.blackboard_event_sequence') > event_sequence ELSE false END);
