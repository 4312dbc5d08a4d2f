-- The labels of eventtype stay: events may hold them, and up.sql adds only what is missing. Requests that services have filed stay, too.
SET LOCAL lock_timeout = '100ms';

DELETE FROM sec.event_writers WHERE role_name = 'w_retention_cleaner' AND event_type LIKE 'privacy.%';
SELECT sec.revoke_worker('w_retention_cleaner', functions =>
    '{"sec.file_privacy_requests(integer[], uuid[], integer[], text[], text[], text[], text[], timestamptz[], uuid[])"}');
DROP FUNCTION sec.file_privacy_requests;
DROP INDEX privacy_requests_by_id;

SELECT sec.hide_plans();
