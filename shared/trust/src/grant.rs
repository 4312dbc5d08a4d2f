use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use contract::{Service, SessionId, UserId};
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretSlice};
use sha2::Sha256;
use uuid::Uuid;

use crate::text::{KeyError, from_hex, is_key_name, to_hex};

/// Permission for a database role to act for a user.
#[derive(Clone, Debug)]
pub struct Grant<'a> {
    /// The user.
    pub user_id: UserId,
    /// The only session it is for. Workers enforce it, the database does not.
    pub session: Option<&'a SessionId>,
    /// The service that the token was issued to.
    pub service: &'a Service,
    /// The only database role that may use it.
    pub role: &'a str,
    /// Its id, for revocation.
    pub id: Uuid,
    /// When it expires, by the clock of the database.
    pub expires_at: SystemTime,
}

/// The length of a key in bytes, up to the block size of SHA-256.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 32..=64;

/// The HMAC key that seals grants. `Debug` shows its name only.
#[derive(Clone)]
pub struct GrantKey {
    name: String,
    key: Arc<SecretSlice<u8>>,
}

impl fmt::Debug for GrantKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrantKey").field("name", &self.name).finish_non_exhaustive()
    }
}

impl GrantKey {
    /// Reads `<name> <hex digits>`.
    ///
    /// # Errors
    /// [`KeyError::Grant`], which quotes nothing of the text.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let (name, digits) = text.trim().split_once(' ').ok_or(KeyError::Grant)?;
        let named = is_key_name(name);
        let key = from_hex(digits).filter(|key| KEY_BYTES.contains(&key.len())).ok_or(KeyError::Grant)?;
        let key = Arc::new(SecretSlice::from(key));
        if named { Ok(Self { name: name.to_owned(), key }) } else { Err(KeyError::Grant) }
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// [`KeyError`] if the file cannot be read or does not contain a key.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        Self::parse(&crate::text::secret_content(path)?)
    }

    /// Generates a key of 366 random bits.
    pub fn generate(name: &str) -> Result<Self, KeyError> {
        let random: Vec<u8> = (0..3).flat_map(|_| Uuid::new_v4().into_bytes()).collect();
        Self::parse(&format!("{name} {}", to_hex(&random)))
    }

    /// Its name, by which the database selects the key.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its bytes. Review every use.
    pub fn expose(&self) -> &[u8] {
        self.key.expose_secret()
    }

    /// The line that [`GrantKey::parse`] reads. Review every use.
    pub fn expose_line(&self) -> String {
        format!("{} {}\n", self.name, to_hex(self.expose()))
    }

    /// Seals a grant: `v1|key|user|session|service|role|id|expiry|HMAC-SHA256 in hex`. No field can contain `|`: names
    /// of keys, services and roles consist of `a-z 0-9 - _`, session ids of `A-Z a-z 0-9 . _ : -`, and the others are
    /// numbers or UUIDs. The session is empty in a grant for all sessions of the user.
    pub fn seal(&self, grant: &Grant<'_>) -> String {
        format!("{}|{}", self.content(grant), to_hex(&self.mac(grant)))
    }

    /// The HMAC alone.
    pub(crate) fn mac(&self, grant: &Grant<'_>) -> Vec<u8> {
        // HMAC accepts a key of any length. The database would reject the empty result.
        Hmac::<Sha256>::new_from_slice(self.expose()).map_or_else(
            |_| Vec::new(),
            |mut mac| {
                mac.update(self.content(grant).as_bytes());
                mac.finalize().into_bytes().to_vec()
            },
        )
    }

    fn content(&self, grant: &Grant<'_>) -> String {
        let Grant { user_id, session, service, role, id, expires_at } = grant;
        let expiry = expires_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        content(&self.name, *user_id, *session, service, role, *id, expiry)
    }
}

/// The part of a sealed grant that its HMAC authenticates.
pub(crate) fn content(
    key: &str,
    user_id: UserId,
    session: Option<&SessionId>,
    service: &Service,
    role: &str,
    id: Uuid,
    expiry: u64,
) -> String {
    let session = session.map_or("", SessionId::as_str);
    format!("v1|{key}|{user_id}|{session}|{service}|{role}|{id}|{expiry}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn debug_output_does_not_show_the_key() {
        let line = format!("dev {}", "0f".repeat(32));
        let key = GrantKey::parse(&line).unwrap();
        assert_eq!((key.name(), key.expose()), ("dev", [0x0f; 32].as_slice()));
        assert_eq!(key.expose_line(), format!("{line}\n"));
        assert_eq!(format!("{key:?}"), "GrantKey { name: \"dev\", .. }");
        let made = GrantKey::generate("made").unwrap();
        assert_eq!(GrantKey::parse(&made.expose_line()).unwrap().expose(), made.expose());
        assert_ne!(made.expose(), GrantKey::generate("made").unwrap().expose());
    }

    #[test]
    fn an_invalid_key_is_rejected_without_being_quoted() {
        for text in [
            "",
            "dev",
            &format!("Dev {}", "0f".repeat(32)),
            &format!("{} {}", "d".repeat(33), "0f".repeat(32)),
            &format!("dev {}", "0f".repeat(31)),
            &format!("dev {}", "0f".repeat(65)),
            &format!("dev {}", "0g".repeat(32)),
            &format!("dev {}0", "0f".repeat(32)),
            &format!("dev {}", "é".repeat(32)),
        ] {
            let refused = GrantKey::parse(text).unwrap_err();
            assert!(matches!(refused, KeyError::Grant) && !refused.to_string().contains("0f0f"), "{text}");
        }
    }

    /// `tests/isolation.rs` shows that the database computes the same HMAC.
    #[test]
    fn the_seal_is_hmac_sha256_of_the_preceding_fields() {
        let key = GrantKey::parse(&format!("dev {}", "6b".repeat(32))).unwrap();
        let grant = Grant {
            user_id: UserId::new(42).unwrap(),
            session: None,
            service: &"simple-chat".parse().unwrap(),
            role: &contract::CONTEXT_WRITER.role(),
            id: Uuid::nil(),
            expires_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        };
        let sealed = key.seal(&grant);
        let (content, seal) = sealed.rsplit_once('|').unwrap();
        let id = "00000000-0000-0000-0000-000000000000";
        assert_eq!(content, format!("v1|dev|42||simple-chat|w_context_writer|{id}|1800000000"));
        assert_eq!(seal, KNOWN_SEAL);
    }

    /// Computed with another implementation.
    const KNOWN_SEAL: &str = "a617871b670c44c51fd6cba955a173c75003e897939c6c08f9f2eedd732baf3d";
}
