//! The account mirror. Of two records of one key, the one stored later by JetStream wins; a removed one keeps its
//! row without its values, so that an older one arriving late does not bring it back.

use contract::ContextRequest as Request;
use serde::{Serialize, Serializer};
use store::{Connection, Fault};

use super::{Done, Item, record, rounds};

/// A table of the mirror and the statement that writes it.
pub(crate) struct Table {
    sql: &'static str,
}

/// The tables, what others refer to first.
pub(crate) static TABLES: [Table; 6] = [
    Table { sql: USERS },
    Table { sql: PROFILES },
    Table { sql: SETTINGS },
    Table { sql: DEVICES },
    Table { sql: SECOND_FACTORS },
    Table { sql: PASSKEYS },
];

/// A change of one record.
#[derive(Clone, Copy)]
pub(crate) struct Change<'a> {
    request: &'a Request,
    removes: bool,
}

impl Serialize for Change<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.request.serialize(serializer)
    }
}

impl<'a> Change<'a> {
    /// The place of its table in [`TABLES`], and the change; none if the request changes no account.
    pub(crate) fn new(request: &'a Request) -> Option<(usize, Self)> {
        let (table, removes) = match request {
            Request::UserPut(_) => (0, false),
            Request::ProfilePut(_) => (1, false),
            Request::SettingPut(_) => (2, false),
            Request::SettingRemove(_) => (2, true),
            Request::DevicePut(_) => (3, false),
            Request::DeviceRemove(_) => (3, true),
            Request::SecondFactorPut(_) => (4, false),
            Request::SecondFactorRemove(_) => (4, true),
            Request::PasskeyPut(_) => (5, false),
            Request::PasskeyRemove(_) => (5, true),
            Request::SessionOpen(_)
            | Request::SessionClose(_)
            | Request::ContextPut(_)
            | Request::ContextRemove(_)
            | Request::ConversationPut(_)
            | Request::MessageAdd(_)
            | Request::SummaryPut(_)
            | Request::FeedbackPut(_)
            | Request::AgentContextPut(_)
            | Request::AgentContextRemove(_) => return None,
        };
        Some((table, Self { request, removes }))
    }

    /// What is unique for a user.
    fn key(&self) -> String {
        match self.request {
            Request::SettingPut(put) => put.setting_key.to_string(),
            Request::SettingRemove(remove) => remove.setting_key.to_string(),
            Request::DevicePut(put) => put.device_id.to_string(),
            Request::DeviceRemove(remove) => remove.device_id.to_string(),
            Request::SecondFactorPut(put) => put.method.as_str().to_owned(),
            Request::SecondFactorRemove(remove) => remove.method.as_str().to_owned(),
            Request::PasskeyPut(put) => put.credential_id.to_string(),
            Request::PasskeyRemove(remove) => remove.credential_id.to_string(),
            Request::UserPut(_)
            | Request::ProfilePut(_)
            | Request::SessionOpen(_)
            | Request::SessionClose(_)
            | Request::ContextPut(_)
            | Request::ContextRemove(_)
            | Request::ConversationPut(_)
            | Request::MessageAdd(_)
            | Request::SummaryPut(_)
            | Request::FeedbackPut(_)
            | Request::AgentContextPut(_)
            | Request::AgentContextRemove(_) => String::new(),
        }
    }
}

pub(crate) async fn write(
    connection: &mut Connection,
    table: &Table,
    changes: Vec<Item<'_, Change<'_>>>,
    done: &mut [Done],
) -> Result<(), Fault> {
    for round in rounds(changes, |item| (item.message.subject.user_id, item.request.key())) {
        record::write(connection, table.sql, &round, |change| change.removes, done).await?;
    }
    Ok(())
}

const USERS: &str = "
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

const PROFILES: &str = "
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

const SETTINGS: &str = "
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

const DEVICES: &str = "
    WITH input AS (
        SELECT i.* FROM jsonb_to_recordset($1::jsonb) AS i (ordinal integer, user_id integer,
            request_id uuid, stored_at timestamptz, removed boolean, device_id uuid, device_name text, device_type device_type,
            security_level security_level, last_seen_at timestamptz)
        JOIN users u ON u.id = i.user_id
    ), written AS (
        INSERT INTO registered_devices AS t (id, user_id, device_name, device_type, security_level, last_seen_at,
            request_id, created_at, updated_at, removed_at)
        SELECT device_id, user_id, device_name, device_type, security_level, last_seen_at, request_id, stored_at, stored_at,
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

const SECOND_FACTORS: &str = "
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

const PASSKEYS: &str = "
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
