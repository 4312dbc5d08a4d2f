SET LOCAL lock_timeout = '100ms';

ALTER POLICY own_keys ON data_keys USING (user_id = ANY ((SELECT sec.current_user_ids())::integer[]));
DROP FUNCTION sec.current_users();
