-- The order of memories that were said at the same time: that of the requests that stored them first, and within a request
-- that of its list. Search gives weight to the memories beside one. Among rows from before these columns the id decides.
SET LOCAL lock_timeout = '100ms';

ALTER TABLE unified_memory_vectors
    ADD COLUMN stored_sequence bigint NOT NULL DEFAULT 0,
    ADD COLUMN request_place integer NOT NULL DEFAULT 0;
