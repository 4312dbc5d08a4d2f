SET LOCAL lock_timeout = '100ms';

ALTER TABLE chat_messages DROP COLUMN stored_sequence;
