-- The role stays: roles are of the whole cluster.
SET LOCAL lock_timeout = '100ms';

DROP FUNCTION sec.end_old_transactions();
