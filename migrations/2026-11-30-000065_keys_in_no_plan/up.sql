-- What a role learns of keys and tokens, and whom the knowledge of a key lets it reach (docs/adr/0031); and what events that are published
-- in part cost others (docs/adr/0043).
SET LOCAL lock_timeout = '100ms';

-- Whoever notes events as published meanwhile waits: what is noted after it was read here would be lost.
LOCK TABLE sec.unpublished_transactions IN ACCESS EXCLUSIVE MODE;

-- Users of earlier deliveries of the tick, for whom grants were minted with those of the users whose work is due.
ALTER TABLE sec.minted_job_grants ADD COLUMN earlier integer[] NOT NULL DEFAULT '{}';

-- Each role with a job could read the key of job grants in the plan of sec.job_grants. Grants under the key that is replaced open no
-- context any more.
SELECT sec.add_key('job-2', 'job',
    sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())));
UPDATE sec.keys SET retired_at = now() WHERE purpose = 'job' AND key_id <> 'job-2' AND retired_at IS NULL;

-- A mint counts for a day, also while its row is still there.
CREATE OR REPLACE FUNCTION sec.job_grants(job text, tick uuid, max_users integer)
RETURNS TABLE (user_id integer, is_due boolean, grant_text text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    mint CONSTANT uuid := gen_random_uuid();
    expiry CONSTANT bigint := extract(epoch FROM clock_timestamp() + interval '5 minutes');
    due_function text;
    due integer[];
    users integer[];
BEGIN
    SELECT j.due_function INTO due_function FROM sec.jobs j WHERE j.job = job_grants.job AND j.role_name = session_user;
    IF due_function IS NULL THEN
        RAISE insufficient_privilege USING MESSAGE = 'the security context is refused: this role has no such job';
    END IF;
    -- With as many of earlier mints and the platform's they are as many as one context may have.
    IF tick IS NULL OR (max_users BETWEEN 1 AND 4999) IS NOT TRUE THEN
        RAISE invalid_parameter_value USING MESSAGE = 'job grants: the tick is missing, or max_users is out of range (1 to 4999)';
    END IF;
    -- An old snapshot would show work as due that has been done since.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE insufficient_privilege
            USING MESSAGE = 'the security context is refused: job grants are minted in read committed only';
    END IF;
    BEGIN
        EXECUTE format('SELECT coalesce(array_agg(DISTINCT u), ''{}'') FROM (SELECT u FROM %s($1) AS u WHERE u >= 0 LIMIT $1) AS d',
            due_function) INTO due USING max_users;
    EXCEPTION WHEN insufficient_privilege OR undefined_function OR undefined_table OR undefined_column THEN
        -- One broken job must not look like an unavailable database, for which its worker would wait.
        RAISE insufficient_privilege USING MESSAGE = format('the security context is refused: %s of the job %s fails (SQLSTATE %s)',
            due_function, job, SQLSTATE), DETAIL = SQLERRM;
    END;
    users := ARRAY(SELECT u FROM (SELECT u, max(m.minted_at) AS latest FROM sec.minted_job_grants m, unnest(m.users) AS u
        WHERE m.job = job_grants.job AND m.tick = job_grants.tick AND m.role_name = session_user
            AND m.minted_at > clock_timestamp() - interval '1 day' AND u <> 0 AND u <> ALL (due)
        GROUP BY u ORDER BY latest DESC LIMIT 4999) AS earlier);

    INSERT INTO sec.minted_job_grants (mint_id, job, tick, role_name, users, earlier, expires_at)
    VALUES (mint, job, tick, session_user, due, users, to_timestamp(expiry));
    -- More than are added, so that they never pile up; not all, so that no tick pays for many.
    DELETE FROM sec.minted_job_grants m WHERE m.mint_id IN (SELECT o.mint_id FROM sec.minted_job_grants o
        WHERE o.expires_at < clock_timestamp() - interval '1 day' LIMIT 100 FOR UPDATE SKIP LOCKED);
    users := array_remove(due, 0) || users;
    -- The platform's row has the number of users.
    INSERT INTO audit.data_access_log (subject_token, role_name, service, request_id, access_type, object_name, rows_returned)
    SELECT s.token, session_user, 'job:' || job, tick, 'job-grant', job, CASE u.id WHEN 0 THEN cardinality(users) ELSE 1 END
    FROM unnest(0 || users) AS u (id) LEFT JOIN audit.subjects s ON s.user_id = u.id;
    -- The pads are columns here and nowhere variables: a plan shows the values of variables.
    RETURN QUERY
    SELECT g.id, g.id = ANY (due),
        g.content || '|' || encode(sec.hmac(signing.inner_pad, signing.outer_pad, convert_to(g.content, 'UTF8')), 'hex')
    FROM (SELECT k.key_id, k.inner_pad, k.outer_pad FROM sec.keys k WHERE k.purpose = 'job' AND k.retired_at IS NULL
        ORDER BY k.created_at DESC LIMIT 1) AS signing
    CROSS JOIN LATERAL (SELECT u.id, concat_ws('|', 'v1', signing.key_id, u.id, '', 'job:' || job, session_user, mint, expiry) AS content
        FROM unnest(0 || users) AS u (id)) AS g;
    IF NOT FOUND THEN
        RAISE no_data_found USING MESSAGE = 'there is no key of job grants';
    END IF;
END $$;

-- Opens the context of this transaction from grants, all of which must be good, and gives the number of users. A grant:
-- v1|key id|user|session|service|role|grant id|expiry in seconds since 1970|HMAC-SHA256 in hex of all before it. The id of a job
-- grant is that of its mint, whose row must have been committed by another transaction and names role, job and users; its job must have
-- been there all the time since.
CREATE OR REPLACE FUNCTION sec.open_context(grants text[], session_id text DEFAULT '', service text DEFAULT '') RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    now_seconds bigint := extract(epoch FROM clock_timestamp());
    users integer[];
    services text[];
    ids uuid[];
    mints uuid[];
    minted_users integer[];
    minted_services text[];
    bad text;
    named jsonb;
    content text;
    -- Read first: what is revoked after this is noticed by each statement that uses the context.
    version CONSTANT bigint := (SELECT t.version FROM sec.trust_version t);
BEGIN
    session_id := coalesce(session_id, '');
    service := coalesce(service, '');
    -- A context is of one transaction, which its seal knows by the time at which it began. Several transactions begin at one time
    -- only within one message of the simple protocol, or one DO or CALL: a lone SELECT is in none of them.
    IF (current_query() ~* '^\s*(select|with)\M[^;]*;?\s*$') IS NOT TRUE THEN
        RAISE insufficient_privilege USING
            MESSAGE = 'the security context is refused: it is opened by a statement of its own, a SELECT without semicolons in it';
    END IF;
    -- An old snapshot would not show what was revoked since.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE insufficient_privilege USING MESSAGE = 'the security context is refused: it is opened in read committed only';
    END IF;
    -- A NULL among the parts would let the next one stand in its place, so that none is let in.
    IF (cardinality(grants) BETWEEN 1 AND 10000) IS NOT TRUE OR session_id ~ '[|]' OR service ~ '[|]' THEN
        RAISE insufficient_privilege USING MESSAGE = 'the security context is refused: it needs 1 to 10000 grants';
    END IF;
    -- MATERIALIZED, or every use of a part would take its grant to pieces anew. What has a good seal was written by an
    -- issuer, so that its parts are what they must be.
    WITH parsed AS MATERIALIZED (
        SELECT g, convert_to(g, 'UTF8') AS b, string_to_array(g, '|') AS p FROM unnest(grants) AS g
    ), judged AS MATERIALIZED (
        SELECT p, k.purpose, CASE
            WHEN g IS NULL OR cardinality(p) <> 9 OR p[1] <> 'v1' THEN 'malformed'
            WHEN k.key_id IS NULL THEN 'unknown key'
            WHEN p[9] IS DISTINCT FROM encode(sec.hmac(k.inner_pad, k.outer_pad,
                substr(b, 1, greatest(octet_length(b) - 65, 0))), 'hex') THEN 'forged'
            WHEN p[6] <> session_user THEN 'of another role'
            WHEN p[8]::bigint <= now_seconds THEN 'expired'
            WHEN k.retired_at IS NOT NULL THEN 'replaced'
            END AS fault
        FROM parsed LEFT JOIN sec.keys k ON k.key_id = p[2] AND (k.purpose = 'grant' AND k.retired_at IS NULL OR k.purpose = 'job')
    )
    SELECT array_agg(CASE WHEN fault IS NULL THEN p[3]::integer END), array_agg(p[5]),
        array_agg(CASE WHEN fault IS NULL THEN p[7]::uuid END),
        array_agg(p[7]::uuid) FILTER (WHERE fault IS NULL AND purpose = 'job'),
        array_agg(p[3]::integer) FILTER (WHERE fault IS NULL AND purpose = 'job'),
        array_agg(p[5]) FILTER (WHERE fault IS NULL AND purpose = 'job'), min(fault)
    INTO users, services, ids, mints, minted_users, minted_services, bad FROM judged;
    -- Its tick is tried again, and mints under the key that there is now.
    IF bad = 'replaced' THEN
        RAISE serialization_failure USING MESSAGE = 'the security context has ended: the key of job grants was replaced';
    END IF;
    IF bad IS NULL AND EXISTS (SELECT FROM sec.revoked_grants WHERE grant_id = ANY (ids)) THEN
        bad := 'revoked';
    END IF;
    IF bad IS NULL AND EXISTS (SELECT FROM sec.services s WHERE s.service = ANY (services) AND s.disabled_at IS NOT NULL) THEN
        bad := 'of a disabled service';
    END IF;
    IF bad IS NULL AND mints IS NOT NULL THEN
        -- A good seal alone reaches nobody: what the mint says is what counts.
        WITH given AS MATERIALIZED (
            SELECT * FROM unnest(mints, minted_users, minted_services) AS g (mint_id, user_id, service)
        ), mint AS MATERIALIZED (
            SELECT m.mint_id, m.job, m.role_name, m.expires_at, 0 || m.users || m.earlier AS users FROM sec.minted_job_grants m
            WHERE m.mint_id IN (SELECT g.mint_id FROM given g)
                AND m.transaction_id IS DISTINCT FROM pg_current_xact_id_if_assigned()::text::bigint
                AND EXISTS (SELECT FROM sec.jobs j WHERE j.job = m.job AND j.role_name = m.role_name AND j.added_at <= m.minted_at)
        ), reached AS MATERIALIZED (
            SELECT DISTINCT m.mint_id, u AS user_id FROM mint m, unnest(m.users) AS u
        )
        SELECT min(CASE WHEN m.mint_id IS NULL THEN 'of no committed mint'
            WHEN m.expires_at <= clock_timestamp() THEN 'expired'
            WHEN m.role_name <> session_user THEN 'of a mint of another role'
            WHEN g.service <> 'job:' || m.job THEN 'of another job than its mint'
            WHEN r.mint_id IS NULL THEN 'of a user who is not in its mint' END)
        INTO bad FROM given g LEFT JOIN mint m ON m.mint_id = g.mint_id
            LEFT JOIN reached r ON r.mint_id = g.mint_id AND r.user_id = g.user_id;
    END IF;
    IF bad IS NOT NULL THEN
        RAISE insufficient_privilege USING MESSAGE = format('the security context is refused: a grant is %s', bad);
    END IF;
    -- By user, so that none is named for a user whose grants it does not have.
    SELECT jsonb_object_agg(u, names) INTO named FROM (
        SELECT u, string_agg(DISTINCT s, ', ') AS names FROM unnest(users, services) AS g (u, s) GROUP BY u) AS by_user;
    SELECT array_agg(DISTINCT u) INTO users FROM unnest(users) AS u;
    content := concat_ws('|', array_to_string(users, ','), session_id, service, version);
    content := content || '|' || sec.seal(content);
    PERFORM set_config('memfleet.context', content, true);
    PERFORM set_config('memfleet.services', named::text || sec.seal(concat_ws('|', 'services', content, named::text)), true);
    RETURN cardinality(users);
END $$;

-- Notes that a user's request named a session which the user does not have: once for a request and a session. Whether somebody else has
-- it is not even looked up: a role can observe what a function writes and how many pages it reads. audit.foreign_sessions tells it to
-- an operator. The session is noted as a digest, as the trail has no names of what belongs to users.
CREATE OR REPLACE FUNCTION audit.note_foreign_session(of_user integer, of_session text, service text, of_request uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    content CONSTANT text := format('a sync names a session that its user does not have: %s',
        encode(sha256(convert_to(of_session, 'UTF8')), 'hex'));
BEGIN
    IF (of_user = ANY (sec.current_user_ids())) IS NOT TRUE THEN
        RETURN;
    END IF;
    -- The token of the subject is a column here and nowhere a variable: a plan shows the values of variables.
    IF NOT EXISTS (SELECT FROM public.chat_mode_sessions s WHERE s.user_id = of_user AND s.session_id = of_session)
        AND NOT EXISTS (SELECT FROM audit.security_violations v JOIN audit.subjects s ON s.token = v.subject_token
            WHERE v.violation_type = 'unknown-session' AND v.request_id = of_request AND s.user_id = of_user AND v.reason = content) THEN
        IF (SELECT count(*) FROM audit.security_violations v WHERE v.transaction_id = pg_current_xact_id()::text::bigint) >= 1000 THEN
            RAISE invalid_parameter_value USING MESSAGE = 'a transaction records at most 1000 unknown sessions';
        END IF;
        INSERT INTO audit.security_violations (subject_token, role_name, service, request_id, violation_type, severity, table_name,
            reason)
        VALUES ((SELECT s.token FROM audit.subjects s WHERE s.user_id = of_user), session_user, 'claimed:' || left(service, 64), of_request, 'unknown-session', 'low', 'chat_mode_sessions', content);
    END IF;
END $$;

-- The published events of transactions some of whose events are not published yet. They say nothing of a user.
CREATE TABLE sec.published_events (
    transaction_id bigint NOT NULL,
    event_id uuid NOT NULL,
    PRIMARY KEY (transaction_id, event_id)
);
ALTER TABLE sec.published_events OWNER TO memfleet_owner;
INSERT INTO sec.published_events (transaction_id, event_id)
SELECT DISTINCT u.transaction_id, p FROM sec.unpublished_transactions u, unnest(u.published) AS p WHERE p IS NOT NULL;

CREATE OR REPLACE FUNCTION sec.note_unpublished(event_count integer) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    noted bigint;
    counted integer;
BEGIN
    IF NOT EXISTS (SELECT FROM sec.event_writers w WHERE w.role_name = session_user) THEN
        RAISE insufficient_privilege USING MESSAGE = 'permission denied: this role appends no events';
    END IF;
    -- No more events than some of the largest transactions have: others may have to look at each of them.
    IF (SELECT count(*) >= 10000 OR sum(few.events) >= 100000 FROM (SELECT u.events FROM sec.unpublished_transactions u
        WHERE u.role_name = session_user AND u.since >= now() - interval '1 hour' LIMIT 10000) AS few) THEN
        RAISE configuration_limit_exceeded
            USING MESSAGE = 'too many unpublished transactions of this role';
    END IF;
    IF event_count BETWEEN 1 AND 10000 THEN
        INSERT INTO sec.unpublished_transactions AS u (transaction_id, role_name, since, events)
        VALUES (pg_current_xact_id()::text::bigint, session_user, transaction_timestamp(), event_count)
        ON CONFLICT (transaction_id) DO UPDATE SET events = u.events + excluded.events
        RETURNING transaction_id, events INTO noted, counted;
    END IF;
    IF (counted <= 10000) IS NOT TRUE THEN
        RAISE invalid_parameter_value USING MESSAGE = 'a transaction notes 1 to 10000 events';
    END IF;
    RETURN noted;
END $$;

-- Notes that events are published, each with the transaction of this role that appended it. Those of a transaction are kept until all of
-- them are. What is older than an hour is looked at by nobody, and goes.
CREATE OR REPLACE FUNCTION sec.note_published(transaction_ids bigint[], event_ids uuid[]) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    own bigint[];
    gone bigint[];
BEGIN
    -- In one order, so that two replicas do not wait for each other in a circle. Statements after this one see what another replica has
    -- noted before it let go of these rows.
    own := ARRAY(SELECT u.transaction_id FROM sec.unpublished_transactions u
        WHERE u.transaction_id = ANY (transaction_ids) AND u.role_name = session_user ORDER BY u.transaction_id FOR UPDATE);
    WITH given AS MATERIALIZED (
        SELECT DISTINCT g.transaction_id, g.event_id FROM unnest(transaction_ids, event_ids) AS g (transaction_id, event_id)
        WHERE g.event_id IS NOT NULL AND g.transaction_id = ANY (own)
    ), noted AS (
        SELECT n.transaction_id, count(*) AS published FROM (
            SELECT g.transaction_id, g.event_id FROM given g
            UNION SELECT p.transaction_id, p.event_id FROM sec.published_events p WHERE p.transaction_id = ANY (own)) AS n
        GROUP BY n.transaction_id
    ), done AS (
        SELECT u.transaction_id FROM sec.unpublished_transactions u JOIN noted n ON n.transaction_id = u.transaction_id
        WHERE u.transaction_id = ANY (own) AND n.published >= u.events
    ), kept AS (
        INSERT INTO sec.published_events (transaction_id, event_id)
        SELECT g.transaction_id, g.event_id FROM given g WHERE g.transaction_id NOT IN (SELECT d.transaction_id FROM done d)
        ON CONFLICT DO NOTHING
    )
    SELECT array_agg(d.transaction_id) INTO gone FROM done d;
    gone := gone || ARRAY(SELECT o.transaction_id FROM sec.unpublished_transactions o
        WHERE o.since < now() - interval '2 hours' AND o.transaction_id <> ALL (transaction_ids) LIMIT 10 FOR UPDATE SKIP LOCKED);
    DELETE FROM sec.published_events p WHERE p.transaction_id = ANY (gone);
    DELETE FROM sec.unpublished_transactions u WHERE u.transaction_id = ANY (gone);
END $$;

-- Which of these events, each with its transaction, may not be published yet. Those of the last hour.
CREATE FUNCTION sec.unpublished_of(transaction_ids bigint[], event_ids uuid[]) RETURNS SETOF uuid LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT g.event_id FROM unnest(transaction_ids, event_ids) AS g (transaction_id, event_id)
    JOIN sec.unpublished_transactions u ON u.transaction_id = g.transaction_id AND u.since >= now() - interval '1 hour'
    -- OFFSET 0: one look into the index for each event, however many are published.
    WHERE NOT EXISTS (SELECT FROM sec.published_events p
        WHERE p.transaction_id = g.transaction_id AND p.event_id = g.event_id OFFSET 0)
$$;

-- For workers of before this migration. They compare each event with each of these ids, so that a transaction has few: a worker waits for
-- the others until all of the transaction are published.
CREATE OR REPLACE FUNCTION sec.unpublished() RETURNS TABLE (transaction_id bigint, published uuid[]) LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
    SELECT u.transaction_id, ARRAY(SELECT p.event_id FROM sec.published_events p WHERE p.transaction_id = u.transaction_id LIMIT 100)
    FROM sec.unpublished_transactions u WHERE u.since >= now() - interval '1 hour'
$$;
ALTER TABLE sec.unpublished_transactions DROP COLUMN published;

CREATE OR REPLACE FUNCTION sec.worker_functions() RETURNS regprocedure[] LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT ARRAY['sec.open_context(text[], text, text)', 'sec.current_user_ids()', 'sec.current_users()', 'sec.context()',
        'public.set_security_context(integer, text, text)', 'public.get_current_user_id()',
        'public.get_current_session_id()', 'public.get_current_service_name()', 'public.validate_security_context()',
        'sec.excess_privileges()', 'sec.end_old_transactions()', 'sec.trust_version()', 'sec.trust_state()',
        'sec.note_token_use(uuid[], timestamptz[])',
        'sec.own_event_types()', 'sec.note_unpublished(integer)', 'sec.note_published(bigint[], uuid[])', 'sec.unpublished()',
        'sec.unpublished_of(bigint[], uuid[])',
        'sec.note_job_run(text, uuid, timestamptz, bigint, bigint, bigint, text, text)',
        'audit.record_refused_tokens(text[], text[], integer[], text[], uuid[])',
        'audit.check_security_violation(text, text, integer, text, uuid)',
        'audit.log_data_access(text, text, integer[], uuid[], bigint[])',
        'audit.log_vector_operation(text, text, integer[], uuid[], bigint[])']::regprocedure[]
$$;

DO $$
DECLARE
    worker name;
BEGIN
    ALTER FUNCTION sec.unpublished_of OWNER TO memfleet_owner;
    REVOKE EXECUTE ON FUNCTION sec.unpublished_of FROM PUBLIC;
    FOR worker IN SELECT DISTINCT role_name FROM sec.worker_privileges LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION sec.unpublished_of TO %I', worker);
    END LOOP;
END $$;

-- What a function does with the rights of its owner is printed nowhere: neither its plans, whose constants may be keys, tokens and ids of
-- others, nor what else the server would log to its client. Each role may change these settings for itself; those of a function hold
-- while it runs. For migrations, after the last function that they make or replace.
CREATE FUNCTION sec.hide_plans() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    shown regprocedure;
BEGIN
    FOR shown IN SELECT p.oid FROM pg_proc p WHERE p.pronamespace IN ('public'::regnamespace, 'sec'::regnamespace, 'audit'::regnamespace)
        AND (p.prosecdef OR p.oid = 'sec.add_key(text, text, bytea)'::regprocedure)
        AND (p.proconfig @> ARRAY['debug_print_parse=off', 'debug_print_rewritten=off', 'debug_print_plan=off',
            'client_min_messages=warning', 'standard_conforming_strings=on']) IS NOT TRUE LOOP
        EXECUTE format('ALTER FUNCTION %s SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
            SET client_min_messages = warning SET standard_conforming_strings = on', shown);
    END LOOP;
END $$;
REVOKE EXECUTE ON FUNCTION sec.hide_plans FROM PUBLIC;

-- Makes the function and the trigger of a table. A migration that changes the columns of a table calls it again.
CREATE OR REPLACE FUNCTION audit.follow_updates(target regclass) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('CREATE OR REPLACE TRIGGER audit_update AFTER UPDATE ON %s REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
        FOR EACH STATEMENT EXECUTE FUNCTION audit.%I()', target, audit.make_update_function(target));
    PERFORM sec.hide_plans();
END $$;

SELECT sec.hide_plans();
