-- The event stream (the reference document's "Event Stream (Blackboard Pattern)") and the inbox.
SET LOCAL lock_timeout = '100ms';

CREATE TYPE eventtype AS ENUM (
    'user.stored',
    'profile.stored',
    'setting.stored',
    'setting.removed',
    'device.stored',
    'device.removed',
    'second-factor.stored',
    'second-factor.removed',
    'passkey.stored',
    'passkey.removed',
    'session.opened',
    'session.closed',
    'context.stored',
    'context.removed',
    'conversation.stored',
    'message.added',
    'summary.stored',
    'feedback.stored',
    'agent-context.stored',
    'agent-context.removed'
);
-- The communicative acts of FIPA SC00037J.
CREATE TYPE performative AS ENUM (
    'accept-proposal',
    'agree',
    'cancel',
    'cfp',
    'confirm',
    'disconfirm',
    'failure',
    'inform',
    'inform-if',
    'inform-ref',
    'not-understood',
    'propagate',
    'propose',
    'proxy',
    'query-if',
    'query-ref',
    'refuse',
    'reject-proposal',
    'request',
    'request-when',
    'request-whenever',
    'subscribe'
);

-- A UUID of version 7 (RFC 9562): 48 bits of milliseconds since 1970, then chance. 48 and 6 are bits and bytes; the bits
-- 52 and 53 make a 7 of the 4 that a random UUID has there.
CREATE FUNCTION uuid7() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
        PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6),
        52, 1), 53, 1), 'hex')::uuid
$$;

-- The least id of a moment. Ids grow with time, so a range of ids is a range of time.
CREATE FUNCTION uuid7_at(moment timestamptz) RETURNS uuid LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT (lpad(to_hex((extract(epoch FROM moment) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$$;

-- Makes the partition of this month (UTC) and those of the next months, where they are missing, and gives their number.
-- Ids that had none until then stand in the default partition and are moved.
CREATE FUNCTION make_month_partitions(parent regclass, months integer) RETURNS integer LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    schema_name name;
    table_name name;
    parent_owner name;
    starts timestamptz;
    lower_id uuid;
    upper_id uuid;
    part text;
    made integer := 0;
BEGIN
    IF months NOT BETWEEN 0 AND 120 THEN
        RAISE 'months is %; it must be from 0 to 120', months;
    END IF;
    SELECT n.nspname, c.relname, pg_get_userbyid(c.relowner) INTO STRICT schema_name, table_name, parent_owner
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = parent;
    FOR step IN 0 .. months LOOP
        starts := (date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => step)) AT TIME ZONE 'UTC';
        lower_id := public.uuid7_at(starts);
        upper_id := public.uuid7_at(
            (starts AT TIME ZONE 'UTC' + make_interval(months => 1)) AT TIME ZONE 'UTC');
        part := format('%I.%I', schema_name, table_name || to_char(starts AT TIME ZONE 'UTC', '_YYYY_MM'));
        CONTINUE WHEN to_regclass(part) IS NOT NULL;
        EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', part, parent);
        EXECUTE format(
            'WITH moved AS (DELETE FROM %I.%I WHERE id >= %L AND id < %L RETURNING *) INSERT INTO %s SELECT * FROM moved',
            schema_name, table_name || '_default', lower_id, upper_id, part);
        EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)',
            parent, part, lower_id, upper_id);
        EXECUTE format('ALTER TABLE %s OWNER TO %I', part, parent_owner);
        made := made + 1;
    END LOOP;
    RETURN made;
END $$;

CREATE SEQUENCE blackboard_event_sequence AS bigint;

CREATE TABLE blackboard_events (
    id uuid PRIMARY KEY,
    event_sequence bigint NOT NULL DEFAULT nextval('blackboard_event_sequence'),
    event_type eventtype NOT NULL,
    performative performative NOT NULL,
    source_agent_id varchar(128) NOT NULL,
    target_agent_id varchar(128),
    user_id integer NOT NULL REFERENCES users (id),
    session_id varchar(128) NOT NULL,
    event_payload jsonb NOT NULL,
    semantic_context jsonb,
    -- Not a foreign key: a batch checks its parents with one statement, which costs less than half as much.
    parent_event_id uuid,
    causality_chain jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(causality_chain) = 'array'),
    logical_timestamp bigint NOT NULL CHECK (logical_timestamp > 0),
    created_at timestamptz NOT NULL DEFAULT now()
) PARTITION BY RANGE (id);
ALTER SEQUENCE blackboard_event_sequence OWNED BY blackboard_events.event_sequence;
CREATE TABLE blackboard_events_default PARTITION OF blackboard_events DEFAULT;
CREATE INDEX blackboard_events_in_order ON blackboard_events (user_id, session_id, event_sequence);

SELECT make_month_partitions('blackboard_events', 3);

-- What has been taken. A message redelivered after its effect was committed finds its row here and has no
-- second one. user_id is part of the key: a request id is chosen by a publisher, and one user's must not
-- hide another's.
CREATE TABLE inbox (
    worker varchar(64) NOT NULL,
    user_id integer NOT NULL,
    message_id uuid NOT NULL,
    -- The event of the effect; no such event exists if the message changed nothing.
    event_id uuid NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (worker, user_id, message_id)
);
