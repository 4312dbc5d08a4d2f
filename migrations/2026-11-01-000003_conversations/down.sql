SET LOCAL lock_timeout = '100ms';

DROP TABLE message_feedback, chat_messages, chat_history;
DROP TYPE feedback_type, message_role;
