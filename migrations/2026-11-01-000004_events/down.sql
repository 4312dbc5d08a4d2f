SET LOCAL lock_timeout = '100ms';

DROP TABLE inbox, blackboard_events;
DROP FUNCTION make_month_partitions, uuid7_at, uuid7;
DROP TYPE performative, eventtype;
