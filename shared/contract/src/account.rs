//! The account mirror: memfleet's copies of the platform's account records. The platform remains authoritative. Of two
//! requests for the same key, the one that JetStream stored later wins.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::facts::RequestFacts;
use crate::json::{Json, JsonObject};
use crate::limit;
use crate::number::Bounded;
use crate::redaction::SecretFields;
use crate::value::{List, Name, Secret, Text};

/// The role of a user on the platform.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UserRole {
    /// An ordinary user.
    #[default]
    User,
    /// An administrator.
    Admin,
    /// A service account.
    Service,
}

impl UserRole {
    /// The label in the PostgreSQL enumeration `user_role`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Admin => "admin",
            Self::Service => "service",
        }
    }
}

/// The state of an account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UserStatus {
    /// Not yet confirmed.
    Pending,
    /// In use.
    #[default]
    Active,
    /// Locked.
    Suspended,
    /// Closed for good.
    Closed,
}

impl UserStatus {
    /// The label in the PostgreSQL enumeration `user_status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Closed => "closed",
        }
    }
}

/// Mirrors a user. The user id is the one in the subject. Every other request of a user requires that the user exists.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UserPut {
    /// The login name.
    pub username: Text<1, { limit::NAME_CHARS }>,
    /// The e-mail address.
    pub email: Text<3, 320>,
    /// The password hash in PHC string format, if the platform mirrors it. It is stored encrypted only.
    #[serde(default)]
    pub password_hash: Option<Secret>,
    /// The role.
    #[serde(default)]
    pub role: UserRole,
    /// The state of the account.
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
    /// The time zone, a name of the IANA time zone database.
    #[serde(default)]
    pub timezone: Option<Text<1, 64>>,
    /// The preferences.
    #[serde(default)]
    pub preferences: JsonObject,
}

/// Stores a setting of a user, or of the platform if the user in the subject is 0.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SettingPut {
    /// The key, unique for the user.
    pub setting_key: Name,
    /// The value.
    pub setting_value: Json,
    /// Whether `setting_value` is stored encrypted only and omitted from events.
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

/// The kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceType {
    /// A desktop computer.
    Desktop,
    /// A laptop.
    Laptop,
    /// A phone.
    Phone,
    /// A tablet.
    Tablet,
    /// A browser.
    Browser,
    /// Anything else.
    Other,
}

impl DeviceType {
    /// The label in the PostgreSQL enumeration `device_type`.
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

/// The trust level of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SecurityLevel {
    /// Known, but not confirmed.
    #[default]
    Basic,
    /// Confirmed by the user.
    Trusted,
    /// Confirmed with a second factor.
    Verified,
}

impl SecurityLevel {
    /// The label in the PostgreSQL enumeration `security_level`.
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
    /// The device id, unique for the user.
    pub device_id: Uuid,
    /// The name that the user gave it.
    pub device_name: Text<1, { limit::NAME_CHARS }>,
    /// The kind of device.
    pub device_type: DeviceType,
    /// The trust level.
    #[serde(default)]
    pub security_level: SecurityLevel,
    /// When it was last used. Later than the time at which JetStream stored the request: that time.
    #[serde(default, deserialize_with = "crate::time::read")]
    pub last_seen_at: Option<DateTime<Utc>>,
}

/// Removes a registered device.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceRemove {
    /// The device to remove.
    pub device_id: Uuid,
}

/// The method of a second factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SecondFactorMethod {
    /// Time-based one-time passwords (RFC 6238).
    Totp,
    /// A code by text message.
    Sms,
    /// A code by e-mail.
    Email,
}

impl SecondFactorMethod {
    /// The label in the PostgreSQL enumeration `second_factor_method`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Totp => "totp",
            Self::Sms => "sms",
            Self::Email => "email",
        }
    }
}

/// Mirrors a second factor. Its secrets are stored encrypted only and omitted from events.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecondFactorPut {
    /// The method, unique for the user.
    pub method: SecondFactorMethod,
    /// The shared secret.
    pub secret_key: Secret,
    /// Hashes of single-use backup codes.
    #[serde(default)]
    pub backup_codes: List<Secret, 32>,
    /// Whether it is required at login.
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

/// Mirrors a WebAuthn credential. Its public key is stored encrypted only and omitted from events.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PasskeyPut {
    /// The credential id in base64url, unique for the user.
    #[serde(deserialize_with = "credential_id")]
    pub credential_id: CredentialId,
    /// The COSE public key in base64url.
    pub public_key: Secret,
    /// The authenticator's signature counter.
    #[serde(default)]
    pub sign_count: Bounded<0, { u32::MAX as i64 }>,
    /// The name that the user gave it.
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
    #[serde(deserialize_with = "credential_id")]
    pub credential_id: CredentialId,
}

/// The length in base64url of the longest credential id of WebAuthn, which has 1023 bytes, and some to spare.
const CREDENTIAL_ID_BYTES: usize = 1_400;

type CredentialId = Text<1, CREDENTIAL_ID_BYTES>;

/// A key of an index must fit into a third of a page of PostgreSQL, whatever its characters.
fn credential_id<'de, D: Deserializer<'de>>(from: D) -> Result<CredentialId, D::Error> {
    let id = CredentialId::deserialize(from)?;
    if id.as_str().len() > CREDENTIAL_ID_BYTES {
        return Err(de::Error::custom(format!("is longer than {CREDENTIAL_ID_BYTES} bytes")));
    }
    Ok(id)
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
