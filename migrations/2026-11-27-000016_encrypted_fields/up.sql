-- Encrypted fields: which rows have them, and that a ciphertext goes with the value it stands for.
SET LOCAL lock_timeout = '100ms';

-- A row that a message has marked: its values are in encrypted_fields, and a marker is in their place.
ALTER TABLE system_settings ADD COLUMN is_sensitive boolean NOT NULL DEFAULT false;
ALTER TABLE simple_chat_context ADD COLUMN is_sensitive boolean NOT NULL DEFAULT false;
ALTER TABLE chat_session_summary ADD COLUMN is_sensitive boolean NOT NULL DEFAULT false;
ALTER TABLE chat_history ADD COLUMN is_sensitive boolean NOT NULL DEFAULT false;
ALTER TABLE chat_messages ADD COLUMN is_sensitive boolean NOT NULL DEFAULT false;
ALTER TABLE message_feedback ADD COLUMN is_sensitive boolean NOT NULL DEFAULT false;
ALTER TABLE agent_context_states ADD COLUMN is_sensitive boolean NOT NULL DEFAULT false;

-- The shortest ciphertext holds an empty text: header, salt, commitment and tag.
ALTER TABLE encrypted_fields DROP CONSTRAINT encrypted_fields_ciphertext_check;
ALTER TABLE encrypted_fields ADD CONSTRAINT encrypted_fields_ciphertext_check
    CHECK (octet_length(ciphertext) BETWEEN 86 AND 2097152);

-- Deletes the ciphertexts of a row whose values are gone, with the rights of whoever changes or deletes the row.
CREATE FUNCTION sec.drop_ciphertext() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- As text, or the comparison is not one that the index knows.
    DELETE FROM public.encrypted_fields
    WHERE user_id = OLD.user_id AND row_id = OLD.id AND table_name = TG_TABLE_NAME::text;
    RETURN NULL;
END $$;
-- The one column of users that is encrypted. The row's key is the user's own, and the nil UUID stands for it.
CREATE FUNCTION sec.drop_ciphertext_of_user() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM public.encrypted_fields
    WHERE user_id = OLD.id AND table_name = 'users' AND column_name = 'password_hash';
    RETURN NULL;
END $$;
ALTER FUNCTION sec.drop_ciphertext OWNER TO memfleet_owner;
ALTER FUNCTION sec.drop_ciphertext_of_user OWNER TO memfleet_owner;
REVOKE EXECUTE ON FUNCTION sec.drop_ciphertext, sec.drop_ciphertext_of_user FROM PUBLIC;
UPDATE sec.worker_privileges SET privileges = privileges || '{DELETE}'::text[]
WHERE role_name = 'w_context_writer' AND table_name = 'encrypted_fields'::regclass;
GRANT DELETE ON encrypted_fields TO w_context_writer;

-- Where this migration had been taken back, rows with ciphertexts are there that nothing marks any more: those that still hold
-- the marker are marked, and the ciphertexts of values that were replaced meanwhile go.
DO $$
DECLARE
    target record;
BEGIN
    IF row_security_active('encrypted_fields') AND pg_relation_size('encrypted_fields') > 0 THEN
        RAISE 'there are encrypted fields, and row-level security hides them from this role; migrate as one that it does not stop';
    END IF;
    FOR target IN
        SELECT t.name, t.holds, t.flag FROM (VALUES
            ('system_settings', $q$t.setting_value = '"$encrypted"'$q$, true),
            ('simple_chat_context', $q$t.context_value = '"$encrypted"'$q$, true),
            ('chat_session_summary', $q$t.summary = '$encrypted'$q$, true),
            ('chat_history', $q$t.metadata = '{"$encrypted": true}'$q$, true),
            ('chat_messages', $q$t.content = '$encrypted'$q$, true),
            ('message_feedback', $q$t.comment = '$encrypted'$q$, true),
            ('agent_context_states', $q$t.context_value = '"$encrypted"'$q$, true),
            ('user_two_factor_auth', $q$t.secret_key = '$encrypted'$q$, false),
            ('passkey_credentials', $q$t.public_key = '$encrypted'$q$, false)) AS t (name, holds, flag)
    LOOP
        IF target.flag THEN
            EXECUTE format('UPDATE %1$I AS t SET is_sensitive = true WHERE %2$s AND EXISTS (SELECT FROM encrypted_fields e
                WHERE e.table_name = %1$L AND e.user_id = t.user_id AND e.row_id = t.id)', target.name, target.holds);
        END IF;
        EXECUTE format('DELETE FROM encrypted_fields e WHERE e.table_name = %1$L AND NOT EXISTS (SELECT FROM %1$I AS t
            WHERE t.user_id = e.user_id AND t.id = e.row_id AND %2$s)', target.name, target.holds);
    END LOOP;
    DELETE FROM encrypted_fields e WHERE e.table_name = 'users' AND NOT EXISTS (SELECT FROM users u
        WHERE u.id = e.user_id AND u.password_hash = '$encrypted');
END $$;

DO $$
DECLARE
    target record;
BEGIN
    -- In the order in which a worker's transaction comes by them.
    FOR target IN
        SELECT format('%I', t.name) AS name, t.was, t.has FROM (VALUES
            (1, 'system_settings', 'OLD.is_sensitive', 'NEW.is_sensitive'),
            (2, 'user_two_factor_auth', 'OLD.removed_at IS NULL', 'NEW.removed_at IS NULL'),
            (3, 'passkey_credentials', 'OLD.removed_at IS NULL', 'NEW.removed_at IS NULL'),
            (4, 'simple_chat_context', 'OLD.is_sensitive', 'NEW.is_sensitive'),
            (5, 'chat_session_summary', 'OLD.is_sensitive', 'NEW.is_sensitive'),
            (6, 'chat_history', 'OLD.is_sensitive',
                'NEW.is_sensitive AND (OLD.summary IS NULL OR NEW.summary IS NOT NULL)'),
            (7, 'chat_messages', 'OLD.is_sensitive', 'NEW.is_sensitive'),
            (8, 'message_feedback', 'OLD.is_sensitive',
                'NEW.is_sensitive AND (OLD.comment IS NULL OR NEW.comment IS NOT NULL)'),
            (9, 'agent_context_states', 'OLD.is_sensitive', 'NEW.is_sensitive')) AS t (place, name, was, has)
        ORDER BY t.place
    LOOP
        -- Also where one of two values is gone: what the row still holds is written anew by whoever changes it.
        -- A condition that does not hold costs next to nothing: the function is not even called.
        EXECUTE format('CREATE TRIGGER ciphertext_update AFTER UPDATE ON %s FOR EACH ROW WHEN (%s AND NOT (%s))
            EXECUTE FUNCTION sec.drop_ciphertext()', target.name, target.was, target.has);
        EXECUTE format('CREATE TRIGGER ciphertext_delete AFTER DELETE ON %s FOR EACH ROW WHEN (%s)
            EXECUTE FUNCTION sec.drop_ciphertext()', target.name, target.was);
    END LOOP;
END $$;
CREATE TRIGGER ciphertext_update AFTER UPDATE ON users FOR EACH ROW
    WHEN (OLD.password_hash IS NOT NULL AND NEW.password_hash IS NULL) EXECUTE FUNCTION sec.drop_ciphertext_of_user();
