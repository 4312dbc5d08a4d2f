SET LOCAL lock_timeout = '100ms';
DROP TABLE audit.seals;
