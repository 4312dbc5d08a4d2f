SET LOCAL lock_timeout = '5s';

DROP TABLE inbox, blackboard_events;
DROP TYPE performative, eventtype;
