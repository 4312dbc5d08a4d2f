SET LOCAL lock_timeout = '100ms';

-- An anonymisation that is not complete becomes an erasure: it is what an earlier program goes on with.
UPDATE privacy_requests SET request_type = 'erase'
    WHERE request_type = 'anonymise' AND request_status IN ('pending', 'held', 'in_progress');
DROP INDEX privacy_requests_one_removal;
DROP FUNCTION anonymize_user_data;
DROP TABLE anonymous_statistics;
