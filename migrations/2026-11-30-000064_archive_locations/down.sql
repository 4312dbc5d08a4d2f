SET LOCAL lock_timeout = '100ms';

ALTER TABLE archives DROP CONSTRAINT archives_location;
