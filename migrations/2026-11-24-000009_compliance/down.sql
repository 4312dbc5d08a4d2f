SET LOCAL lock_timeout = '100ms';
DROP TABLE cross_service_auth, privacy_requests, encrypted_fields, qdrant_access_control, data_retention_policies;
DROP TYPE retention_action, privacy_request_type, privacy_request_status;
