SET LOCAL lock_timeout = '100ms';

DROP FUNCTION audit.record_refused_tokens, sec.revoke_tokens, sec.register_tokens, sec.note_token_use, sec.trust_state,
    sec.trust_version();
DROP TABLE sec.services, sec.token_keys, sec.trust_version;
DROP TRIGGER trust_changed ON sec.revoked_grants;
DROP FUNCTION sec.trust_changed;
ALTER TABLE sec.revoked_grants DROP COLUMN expires_at;
-- The role stays, as those of the workers do, without a right in this database.
DELETE FROM sec.worker_privileges WHERE role_name = 'w_token_issuer';
REVOKE SELECT ON cross_service_auth, __diesel_schema_migrations FROM w_token_issuer;
REVOKE USAGE ON SCHEMA public, sec, audit FROM w_token_issuer;
REVOKE EXECUTE ON FUNCTION sec.excess_privileges FROM w_token_issuer;
DO $$
BEGIN
    EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM w_token_issuer', current_database());
END $$;
