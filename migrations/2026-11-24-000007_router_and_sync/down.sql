SET LOCAL lock_timeout = '100ms';
DROP TABLE cross_service_memory_sync, router_decision_log;
DROP TYPE sync_type, sync_status;
