-- Seals of the audit trail: batches of its rows as the leaves of Merkle trees (RFC 6962), chained and signed, so that whoever
-- changes, adds or removes a row afterwards is found out (docs/adr/0015). No worker may read or write here.
SET LOCAL lock_timeout = '100ms';

CREATE TABLE audit.seals (
    number bigint PRIMARY KEY CHECK (number > 0),
    -- The hash of the seal before; 32 zero bytes for the first.
    previous_hash bytea NOT NULL CHECK (octet_length(previous_hash) = 32),
    -- It covers all rows after the place of the seal before and up to this one, in the order of transactions and ids.
    through_transaction bigint NOT NULL,
    through_id uuid NOT NULL,
    -- For each row its table (1 byte), id (16 bytes) and SHA-256 (32 bytes), in that order.
    leaves bytea NOT NULL CHECK (octet_length(leaves) BETWEEN 49 AND 490000 AND octet_length(leaves) % 49 = 0),
    root bytea NOT NULL CHECK (octet_length(root) = 32),
    sealed_at timestamptz NOT NULL,
    key_name varchar(32) NOT NULL,
    -- Ed25519 (RFC 8032) over the hash of all of the above but the leaves, which the root stands for.
    signature bytea NOT NULL CHECK (octet_length(signature) = 64)
);
ALTER TABLE audit.seals OWNER TO memfleet_owner;
-- Hashes cannot be compressed; trying would cost time for nothing.
ALTER TABLE audit.seals ALTER COLUMN leaves SET STORAGE EXTERNAL;
