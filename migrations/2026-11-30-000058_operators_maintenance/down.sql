SET LOCAL lock_timeout = '100ms';

DROP FUNCTION drop_empty_partition, make_missed_partition, uuid7_time;
DROP TABLE maintenance_indexes;
