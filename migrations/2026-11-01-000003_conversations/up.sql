-- Conversations, messages and feedback (the reference document's "Traditional Chat Storage").
SET LOCAL lock_timeout = '100ms';

CREATE TYPE message_role AS ENUM ('user', 'assistant', 'system', 'tool');
CREATE TYPE feedback_type AS ENUM ('rating', 'correction', 'report');

CREATE TABLE chat_history (
    id uuid NOT NULL,
    user_id integer NOT NULL REFERENCES users (id),
    conversation_id varchar(128) NOT NULL,
    summary text,
    metadata jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, id),
    UNIQUE (user_id, conversation_id)
);

CREATE TABLE chat_messages (
    id uuid NOT NULL,
    user_id integer NOT NULL,
    history_id uuid NOT NULL,
    role message_role NOT NULL,
    content text NOT NULL,
    "timestamp" timestamptz NOT NULL,
    PRIMARY KEY (user_id, id),
    FOREIGN KEY (user_id, history_id) REFERENCES chat_history (user_id, id)
);
CREATE INDEX chat_messages_in_order ON chat_messages (user_id, history_id, "timestamp");

CREATE TABLE message_feedback (
    id uuid PRIMARY KEY,
    message_id uuid NOT NULL,
    user_id integer NOT NULL,
    feedback_type feedback_type NOT NULL,
    rating integer CHECK (rating BETWEEN -5 AND 5),
    comment text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (user_id, message_id, feedback_type),
    FOREIGN KEY (user_id, message_id) REFERENCES chat_messages (user_id, id)
);
