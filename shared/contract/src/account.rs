//! The account mirror: what memfleet keeps of the platform's own account records. The platform stays their
//! authority; of two records of one key, the one that JetStream stored later wins.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::facts::RequestFacts;
use crate::limit;
use crate::number::Bounded;
use crate::redaction::SecretFields;
use crate::value::{Json, JsonObject, List, Name, Secret, Text};

/// What a user may do on the platform.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UserRole {
    /// Uses it.
    #[default]
    User,
    /// Runs it.
    Admin,
    /// Is a program.
    Service,
}

impl UserRole {
    /// The label of the PostgreSQL enumeration `user_role`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Admin => "admin",
            Self::Service => "service",
        }
    }
}

/// Where an account stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UserStatus {
    /// Not confirmed yet.
    Pending,
    /// In use.
    #[default]
    Active,
    /// Locked.
    Suspended,
    /// Given up.
    Closed,
}

impl UserStatus {
    /// The label of the PostgreSQL enumeration `user_status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Closed => "closed",
        }
    }
}

/// Mirrors a user. The id is the subject's. Everything else of a user needs this first.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UserPut {
    /// The name to log in with.
    pub username: Text<1, { limit::NAME_CHARS }>,
    /// The address.
    pub email: Text<3, 320>,
    /// The password's hash in PHC string format, if the platform wants it mirrored. It is stored encrypted only.
    #[serde(default)]
    pub password_hash: Option<Secret>,
    /// What the user may do.
    #[serde(default)]
    pub role: UserRole,
    /// Where the account stands.
    #[serde(default)]
    pub status: UserStatus,
}

/// Mirrors a user's profile.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProfilePut {
    /// Given name.
    #[serde(default)]
    pub first_name: Option<Text<0, { limit::NAME_CHARS }>>,
    /// Family name.
    #[serde(default)]
    pub last_name: Option<Text<0, { limit::NAME_CHARS }>>,
    /// A name of the IANA time zone database.
    #[serde(default)]
    pub timezone: Option<Text<1, 64>>,
    /// What the user prefers.
    #[serde(default)]
    pub preferences: JsonObject,
}

/// Stores a setting of a user, or of the platform when the subject's user is 0.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SettingPut {
    /// Unique for the user.
    pub setting_key: Name,
    /// The value.
    pub setting_value: Json,
    /// Whether `setting_value` is stored encrypted only, and stands in no event.
    #[serde(default)]
    pub sensitive: bool,
}

/// Removes a setting.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SettingRemove {
    /// The key to remove.
    pub setting_key: Name,
}

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceType {
    /// A computer on a desk.
    Desktop,
    /// A portable computer.
    Laptop,
    /// A telephone.
    Phone,
    /// A tablet.
    Tablet,
    /// A browser that is not bound to a device.
    Browser,
    /// Anything else.
    Other,
}

impl DeviceType {
    /// The label of the PostgreSQL enumeration `device_type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Desktop => "desktop",
            Self::Laptop => "laptop",
            Self::Phone => "phone",
            Self::Tablet => "tablet",
            Self::Browser => "browser",
            Self::Other => "other",
        }
    }
}

/// How far a device is trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SecurityLevel {
    /// Seen, not more.
    #[default]
    Basic,
    /// Confirmed by the user.
    Trusted,
    /// Confirmed with a second factor.
    Verified,
}

impl SecurityLevel {
    /// The label of the PostgreSQL enumeration `security_level`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Basic => "basic",
            Self::Trusted => "trusted",
            Self::Verified => "verified",
        }
    }
}

/// Mirrors a registered device.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DevicePut {
    /// Unique among the devices of its user.
    pub device_id: Uuid,
    /// What the user calls it.
    pub device_name: Text<1, { limit::NAME_CHARS }>,
    /// What it is.
    pub device_type: DeviceType,
    /// How far it is trusted.
    #[serde(default)]
    pub security_level: SecurityLevel,
    /// When it was last used.
    #[serde(default, deserialize_with = "crate::value::time")]
    pub last_seen_at: Option<DateTime<Utc>>,
}

/// Removes a registered device.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceRemove {
    /// The device to remove.
    pub device_id: Uuid,
}

/// How a second factor is proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SecondFactorMethod {
    /// Time-based one-time passwords, RFC 6238.
    Totp,
    /// A code by text message.
    Sms,
    /// A code by mail.
    Email,
}

impl SecondFactorMethod {
    /// The label of the PostgreSQL enumeration `second_factor_method`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Totp => "totp",
            Self::Sms => "sms",
            Self::Email => "email",
        }
    }
}

/// Mirrors a second factor. Its secrets are stored encrypted only, and never appear in an event.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecondFactorPut {
    /// Unique for the user.
    pub method: SecondFactorMethod,
    /// The shared secret.
    pub secret_key: Secret,
    /// Hashes of codes that work once.
    #[serde(default)]
    pub backup_codes: List<Secret, 32>,
    /// Whether it is asked for.
    #[serde(default)]
    pub is_enabled: bool,
}

/// Removes a second factor.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecondFactorRemove {
    /// The method to remove.
    pub method: SecondFactorMethod,
}

/// Mirrors a WebAuthn credential. Its key is stored encrypted only, and never appears in an event.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PasskeyPut {
    /// The credential id in base64url; unique for the user.
    pub credential_id: Text<1, 1400>,
    /// The COSE public key in base64url.
    pub public_key: Secret,
    /// The authenticator's signature counter.
    #[serde(default)]
    pub sign_count: Bounded<0, { u32::MAX as i64 }>,
    /// What the user calls it.
    #[serde(default)]
    pub passkey_name: Option<Text<1, { limit::NAME_CHARS }>>,
}

impl Default for Bounded<0, { u32::MAX as i64 }> {
    fn default() -> Self {
        Self::literal(0)
    }
}

/// Removes a WebAuthn credential.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PasskeyRemove {
    /// The credential to remove.
    pub credential_id: Text<1, 1400>,
}

impl RequestFacts for UserPut {
    fn redact(&mut self, secrets: &mut SecretFields) {
        secrets.take_some("password_hash", &mut self.password_hash);
    }
}

impl RequestFacts for ProfilePut {}

impl RequestFacts for SettingPut {
    fn redact(&mut self, secrets: &mut SecretFields) {
        if self.sensitive {
            secrets.take("setting_value", &mut self.setting_value);
        }
    }
}

impl RequestFacts for SettingRemove {}

impl RequestFacts for DevicePut {}

impl RequestFacts for DeviceRemove {}

impl RequestFacts for SecondFactorPut {
    fn redact(&mut self, secrets: &mut SecretFields) {
        secrets.take("secret_key", &mut self.secret_key);
        secrets.take("backup_codes", &mut self.backup_codes);
    }
}

impl RequestFacts for SecondFactorRemove {}

impl RequestFacts for PasskeyPut {
    fn redact(&mut self, secrets: &mut SecretFields) {
        secrets.take("public_key", &mut self.public_key);
    }
}

impl RequestFacts for PasskeyRemove {}
