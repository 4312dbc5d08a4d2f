SET LOCAL lock_timeout = '5s';

DROP TABLE message_feedback, chat_messages, chat_history;
DROP TYPE feedback_type, message_role;
