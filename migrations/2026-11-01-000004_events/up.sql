-- The event stream (the reference document's "Event Stream (Blackboard Pattern)") and the inbox.
SET LOCAL lock_timeout = '5s';

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
);
ALTER SEQUENCE blackboard_event_sequence OWNED BY blackboard_events.event_sequence;
CREATE INDEX blackboard_events_in_order ON blackboard_events (user_id, session_id, event_sequence);

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
