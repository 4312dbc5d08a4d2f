-- A value of an enum cannot be used in the transaction that adds it, so that what uses this one comes with the next migration.
SET LOCAL lock_timeout = '100ms';

-- An erasure that a hold keeps from beginning.
ALTER TYPE privacy_request_status ADD VALUE IF NOT EXISTS 'held' AFTER 'pending';
