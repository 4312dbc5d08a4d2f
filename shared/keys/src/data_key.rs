//! Unwrapped data keys.

use std::collections::HashMap;

use contract::UserId;
use trust::CipherKey;

/// A data key, or the reason why this one cannot be unwrapped.
pub(crate) type Unwrapped = Result<CipherKey, String>;

/// The current data keys of the users of a batch, or for a user whose key cannot be decrypted, the reason. Such a user
/// does not affect the others.
pub type DataKeys = HashMap<UserId, Unwrapped>;

/// A data key from its unwrapped bytes.
pub(crate) fn key_of(version: u32, bytes: &[u8]) -> Unwrapped {
    let mut key =
        <[u8; 32]>::try_from(bytes).map_err(|_| "its plaintext is not a key of 32 bytes".to_owned())?;
    Ok(CipherKey::new(version, &mut key))
}
