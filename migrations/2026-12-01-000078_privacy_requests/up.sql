-- Requests of a person that services send (docs/adr/0062): retention-cleaner files them, and an operator's process carries them out.
SET LOCAL lock_timeout = '100ms';

ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'privacy.access-requested' AFTER 'policy.held';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'privacy.rectification-requested' AFTER 'privacy.access-requested';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'privacy.restriction-requested' AFTER 'privacy.rectification-requested';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'privacy.anonymisation-requested' AFTER 'privacy.restriction-requested';
ALTER TYPE eventtype ADD VALUE IF NOT EXISTS 'privacy.erasure-requested' AFTER 'privacy.anonymisation-requested';

-- Operators name a request by its id alone. Whoever files one in a person's name must not name that of another person by it.
CREATE UNIQUE INDEX privacy_requests_by_id ON privacy_requests (id);

-- Files requests. The worker's role has no right to the table: it could set what only the operator's process may, or read why others ask. Each
-- is of a user of the security context, of a service that has given a grant for this user, and pending.
CREATE FUNCTION sec.file_privacy_requests(places integer[], ids uuid[], users integer[], kinds text[], services text[], reasons text[],
    contents text[], stored timestamptz[], requests uuid[]) RETURNS TABLE (place integer, outcome text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    -- For a user: requests that are neither complete nor rejected.
    most_open CONSTANT integer := 100;
    named CONSTANT jsonb := sec.context_services();
    asked record;
    at timestamptz;
BEGIN
    IF (cardinality(ids) BETWEEN 1 AND 1000 AND cardinality(places) = cardinality(ids) AND cardinality(users) = cardinality(ids)
        AND cardinality(kinds) = cardinality(ids) AND cardinality(services) = cardinality(ids) AND cardinality(reasons) = cardinality(ids)
        AND cardinality(contents) = cardinality(ids) AND cardinality(stored) = cardinality(ids)
        AND cardinality(requests) = cardinality(ids)) IS NOT TRUE THEN
        RAISE invalid_parameter_value USING MESSAGE = 'privacy requests are 1 to 1000, each with all its parts';
    END IF;
    FOR asked IN SELECT * FROM unnest(places, ids, users, kinds, services, reasons, contents, stored, requests)
        AS a (place, id, user_id, kind, service, reason, content, stored_at, request_id) LOOP
        IF (asked.user_id > 0 AND asked.user_id = ANY (sec.current_user_ids()) AND EXISTS (
                SELECT FROM string_to_table(named ->> asked.user_id::text, ', ') AS s (name)
                WHERE s.name = asked.service AND s.name NOT LIKE 'job:%')) IS NOT TRUE THEN
            RAISE insufficient_privilege USING
                MESSAGE = 'permission denied: a privacy request is of a user of the security context and of a service that acts for this user';
        END IF;
        IF (asked.kind IN ('access', 'rectify', 'restrict', 'anonymise', 'erase') AND asked.place IS NOT NULL AND asked.id IS NOT NULL
            AND asked.request_id IS NOT NULL AND isfinite(asked.stored_at) AND octet_length(asked.content) <= 2097152) IS NOT TRUE THEN
            RAISE invalid_parameter_value USING MESSAGE = 'a privacy request has a type, an id, a time and a content of at most 2 MiB';
        END IF;
        place := asked.place;
        -- The month of the law begins when the request came, which a backlog may have held up.
        at := least(now(), greatest(asked.stored_at, now() - interval '8 days'));
        IF NOT EXISTS (SELECT FROM public.users u WHERE u.id = asked.user_id) THEN
            outcome := 'unknown';
        ELSIF asked.kind NOT IN ('anonymise', 'erase') AND (SELECT count(*) FROM public.privacy_requests r
            WHERE r.user_id = asked.user_id AND r.request_status IN ('pending', 'held', 'in_progress')) >= most_open THEN
            outcome := 'full';
        ELSE
            -- One erasure or anonymisation of a user is open at a time.
            INSERT INTO public.privacy_requests (id, user_id, request_type, service, reason, details, requested_at, due_at, request_id)
            VALUES (asked.id, asked.user_id, asked.kind::public.privacy_request_type, asked.service, asked.reason, asked.content::jsonb, at,
                at + interval '1 month', asked.request_id)
            ON CONFLICT DO NOTHING;
            outcome := CASE WHEN FOUND THEN 'filed' ELSE 'open' END;
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;
ALTER FUNCTION sec.file_privacy_requests OWNER TO memfleet_owner;
REVOKE EXECUTE ON FUNCTION sec.file_privacy_requests FROM PUBLIC;

SELECT sec.grant_worker('w_retention_cleaner', functions =>
    '{"sec.file_privacy_requests(integer[], uuid[], integer[], text[], text[], text[], text[], timestamptz[], uuid[])"}', takes_messages => false);
INSERT INTO sec.event_writers (role_name, event_type)
SELECT 'w_retention_cleaner', label FROM unnest(ARRAY['privacy.access-requested', 'privacy.rectification-requested',
    'privacy.restriction-requested', 'privacy.anonymisation-requested', 'privacy.erasure-requested']) AS label
ON CONFLICT DO NOTHING;

SELECT sec.hide_plans();
