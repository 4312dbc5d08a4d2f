-- A label cannot be taken from an enum. Without the next migration nothing has it.
SELECT 1;
