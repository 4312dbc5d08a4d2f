SET LOCAL lock_timeout = '100ms';

-- Ciphertexts stay, and up.sql marks their rows again.
DROP TRIGGER ciphertext_update ON users;
DO $$
DECLARE
    target regclass;
BEGIN
    FOREACH target IN ARRAY ARRAY['system_settings', 'user_two_factor_auth', 'passkey_credentials', 'simple_chat_context',
        'chat_session_summary', 'chat_history', 'chat_messages', 'message_feedback', 'agent_context_states']::regclass[] LOOP
        EXECUTE format('DROP TRIGGER ciphertext_update ON %s', target);
        EXECUTE format('DROP TRIGGER ciphertext_delete ON %s', target);
    END LOOP;
    FOREACH target IN ARRAY ARRAY['system_settings', 'simple_chat_context', 'chat_session_summary', 'chat_history',
        'chat_messages', 'message_feedback', 'agent_context_states']::regclass[] LOOP
        EXECUTE format('ALTER TABLE %s DROP COLUMN is_sensitive', target);
    END LOOP;
END $$;
REVOKE DELETE ON encrypted_fields FROM w_context_writer;
UPDATE sec.worker_privileges SET privileges = array_remove(privileges, 'DELETE')
WHERE role_name = 'w_context_writer' AND table_name = 'encrypted_fields'::regclass;
DROP FUNCTION sec.drop_ciphertext, sec.drop_ciphertext_of_user;
ALTER TABLE encrypted_fields DROP CONSTRAINT encrypted_fields_ciphertext_check;
ALTER TABLE encrypted_fields ADD CONSTRAINT encrypted_fields_ciphertext_check
    CHECK (octet_length(ciphertext) BETWEEN 64 AND 2097152);
