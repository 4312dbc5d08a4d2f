//! The account mirror. Of two records with the same key, the one that JetStream stored later wins. A removed record
//! keeps its row without values as a tombstone, so that an older record arriving late does not restore it.

use super::table::{Table, Writer};

const fn table(name: &'static str, statement: &'static str) -> Table {
    Table { name, writer: Writer::Records { put: statement, remove: statement } }
}

pub(crate) static USERS: Table = table("users", WRITE_USERS);
pub(crate) static PROFILES: Table = table("user_profiles", WRITE_PROFILES);
pub(crate) static SETTINGS: Table = table("system_settings", WRITE_SETTINGS);
pub(crate) static DEVICES: Table = table("registered_devices", WRITE_DEVICES);
pub(crate) static SECOND_FACTORS: Table = table("user_two_factor_auth", WRITE_SECOND_FACTORS);
pub(crate) static PASSKEYS: Table = table("passkey_credentials", WRITE_PASSKEYS);

const WRITE_USERS: &str = "
    WITH input AS (
        SELECT * FROM jsonb_to_recordset($1::jsonb) AS i (ordinal integer, user_id integer, request_id uuid, stored_at timestamptz,
            username text, email text, password_hash text, role user_role, status user_status)
    ), written AS (
        INSERT INTO users AS t (id, username, email, password_hash, role, status, request_id, created_at, updated_at)
        SELECT user_id, username, email, password_hash, role, status, request_id, stored_at, stored_at
        FROM input ORDER BY user_id
        ON CONFLICT (id) DO UPDATE SET username = excluded.username, email = excluded.email,
            password_hash = excluded.password_hash, role = excluded.role, status = excluded.status,
            request_id = excluded.request_id, updated_at = excluded.updated_at
        WHERE excluded.updated_at >= t.updated_at
        RETURNING id
    )
    SELECT i.ordinal, CASE WHEN w.id IS NOT NULL THEN '00000000-0000-0000-0000-000000000000'::uuid END AS row_id FROM input i LEFT JOIN written w ON w.id = i.user_id";

const WRITE_PROFILES: &str = "
    WITH input AS (
        SELECT i.* FROM jsonb_to_recordset($1::jsonb) AS i (ordinal integer, id uuid, user_id integer,
            request_id uuid, stored_at timestamptz, first_name text, last_name text, timezone text, preferences jsonb)
        JOIN users u ON u.id = i.user_id
    ), written AS (
        INSERT INTO user_profiles AS t (id, user_id, first_name, last_name, timezone, preferences, request_id, created_at,
            updated_at)
        SELECT id, user_id, first_name, last_name, timezone, preferences, request_id, stored_at, stored_at
        FROM input ORDER BY user_id
        ON CONFLICT (user_id) DO UPDATE SET first_name = excluded.first_name, last_name = excluded.last_name,
            timezone = excluded.timezone, preferences = excluded.preferences, request_id = excluded.request_id, updated_at = excluded.updated_at
        WHERE excluded.updated_at >= t.updated_at
        RETURNING user_id, id
    )
    SELECT i.ordinal, w.id AS row_id FROM input i LEFT JOIN written w USING (user_id)";

const WRITE_SETTINGS: &str = "
    WITH input AS (
        SELECT i.* FROM jsonb_to_recordset($1::jsonb) AS i (ordinal integer, id uuid, user_id integer,
            request_id uuid, stored_at timestamptz, removed boolean, setting_key text, setting_value jsonb,
            sensitive boolean)
        JOIN users u ON u.id = i.user_id
    ), written AS (
        INSERT INTO system_settings AS t (id, user_id, setting_key, setting_value, is_sensitive, request_id, created_at, updated_at, removed_at)
        SELECT id, user_id, setting_key, CASE WHEN NOT removed THEN coalesce(setting_value, 'null') END, coalesce(sensitive, false), request_id, stored_at, stored_at,
            CASE WHEN removed THEN stored_at END
        FROM input ORDER BY user_id, setting_key
        ON CONFLICT (user_id, setting_key) DO UPDATE SET setting_value = excluded.setting_value,
            is_sensitive = excluded.is_sensitive,
            request_id = excluded.request_id, updated_at = excluded.updated_at, removed_at = excluded.removed_at
        WHERE excluded.updated_at >= t.updated_at
        RETURNING user_id, id, setting_key
    )
    SELECT i.ordinal, w.id AS row_id
    FROM input i LEFT JOIN written w ON w.user_id = i.user_id AND w.setting_key = i.setting_key";

const WRITE_DEVICES: &str = "
    WITH input AS (
        SELECT i.* FROM jsonb_to_recordset($1::jsonb) AS i (ordinal integer, user_id integer,
            request_id uuid, stored_at timestamptz, removed boolean, device_id uuid, device_name text, device_type device_type,
            security_level security_level, last_seen_at timestamptz)
        JOIN users u ON u.id = i.user_id
    ), written AS (
        INSERT INTO registered_devices AS t (id, user_id, device_name, device_type, security_level, last_seen_at,
            request_id, created_at, updated_at, removed_at)
        SELECT device_id, user_id, device_name, device_type, security_level,
            CASE WHEN last_seen_at > stored_at THEN stored_at ELSE last_seen_at END, request_id, stored_at, stored_at,
            CASE WHEN removed THEN stored_at END
        FROM input ORDER BY user_id, device_id
        ON CONFLICT (user_id, id) DO UPDATE SET device_name = excluded.device_name,
            device_type = excluded.device_type, security_level = excluded.security_level,
            last_seen_at = excluded.last_seen_at, request_id = excluded.request_id, updated_at = excluded.updated_at, removed_at = excluded.removed_at
        WHERE excluded.updated_at >= t.updated_at
        RETURNING user_id, id
    )
    SELECT i.ordinal, w.id AS row_id
    FROM input i LEFT JOIN written w ON w.user_id = i.user_id AND w.id = i.device_id";

const WRITE_SECOND_FACTORS: &str = "
    WITH input AS (
        SELECT i.* FROM jsonb_to_recordset($1::jsonb) AS i (ordinal integer, id uuid, user_id integer,
            request_id uuid, stored_at timestamptz, removed boolean, method second_factor_method, secret_key text,
            backup_codes jsonb, is_enabled boolean)
        JOIN users u ON u.id = i.user_id
    ), written AS (
        INSERT INTO user_two_factor_auth AS t (id, user_id, method, secret_key, backup_codes, is_enabled, request_id, created_at,
            updated_at, removed_at)
        SELECT id, user_id, method, secret_key, coalesce(backup_codes, '[]'), coalesce(is_enabled, false),
            request_id, stored_at, stored_at, CASE WHEN removed THEN stored_at END
        FROM input ORDER BY user_id, method
        ON CONFLICT (user_id, method) DO UPDATE SET secret_key = excluded.secret_key,
            backup_codes = excluded.backup_codes, is_enabled = excluded.is_enabled,
            request_id = excluded.request_id, updated_at = excluded.updated_at, removed_at = excluded.removed_at
        WHERE excluded.updated_at >= t.updated_at
        RETURNING user_id, id, method
    )
    SELECT i.ordinal, w.id AS row_id
    FROM input i LEFT JOIN written w ON w.user_id = i.user_id AND w.method = i.method";

const WRITE_PASSKEYS: &str = "
    WITH input AS (
        SELECT i.* FROM jsonb_to_recordset($1::jsonb) AS i (ordinal integer, id uuid, user_id integer,
            request_id uuid, stored_at timestamptz, removed boolean, credential_id text, public_key text, sign_count bigint,
            passkey_name text)
        JOIN users u ON u.id = i.user_id
    ), written AS (
        INSERT INTO passkey_credentials AS t (id, user_id, credential_id, public_key, sign_count, passkey_name,
            request_id, created_at, updated_at, removed_at)
        SELECT id, user_id, credential_id, public_key, coalesce(sign_count, 0), passkey_name, request_id, stored_at, stored_at,
            CASE WHEN removed THEN stored_at END
        FROM input ORDER BY user_id, credential_id
        ON CONFLICT (user_id, credential_id) DO UPDATE SET public_key = excluded.public_key,
            sign_count = excluded.sign_count, passkey_name = excluded.passkey_name,
            request_id = excluded.request_id, updated_at = excluded.updated_at, removed_at = excluded.removed_at
        WHERE excluded.updated_at >= t.updated_at
        RETURNING user_id, id, credential_id
    )
    SELECT i.ordinal, w.id AS row_id
    FROM input i LEFT JOIN written w ON w.user_id = i.user_id AND w.credential_id = i.credential_id";
