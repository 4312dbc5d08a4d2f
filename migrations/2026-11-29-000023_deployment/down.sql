-- The collections of the vector store keep their owner. After another up.sql, the deployment has another id: `memfleet vectors
-- apply --take-over` then records that one.
SET LOCAL lock_timeout = '100ms';

DROP FUNCTION sec.deployment_id;
DROP TABLE sec.deployment;
