-- The order of messages that were sent at the same time: that of their requests in the stream. Among rows that were written
-- before there was this column, the id decides.
SET LOCAL lock_timeout = '100ms';

-- No message was sent later than it was stored. What stands in the future was stored before now.
UPDATE chat_messages SET "timestamp" = now() WHERE "timestamp" > now();
ALTER TABLE chat_messages ADD COLUMN stored_sequence bigint NOT NULL DEFAULT 0;
