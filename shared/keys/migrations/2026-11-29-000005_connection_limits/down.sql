-- Roles are of the whole cluster: other databases rely on their limits.
SET LOCAL lock_timeout = '100ms';
