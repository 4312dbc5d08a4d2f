SET LOCAL lock_timeout = '100ms';

SELECT sec.revoke_worker('w_retention_cleaner', functions => '{"sec.has_due_beside(integer[], integer, integer)"}');
DROP FUNCTION sec.has_due_beside;
