SET LOCAL lock_timeout = '100ms';

ALTER TABLE unified_memory_vectors DROP COLUMN request_place, DROP COLUMN stored_sequence;
