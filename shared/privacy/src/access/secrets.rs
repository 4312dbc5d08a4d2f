//! Encrypted fields of the person, in clear.

use std::time::Duration;

use config::KeySettings;
use contract::UserId;
use keys::{Encrypted, Grants, Keys};
use secrecy::ExposeSecret;
use uuid::Uuid;

use super::plan;
use crate::error::PrivacyError;

/// The time limit for a connection to the key store.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// An encrypted field.
pub(super) struct Cell {
    pub(super) table: String,
    pub(super) column: String,
    pub(super) row: Uuid,
    pub(super) ciphertext: Vec<u8>,
}

/// Decrypts fields of one person. The keys are opened with the first field: a person without any needs no key provider.
pub(super) struct Secrets {
    settings: KeySettings,
    user: UserId,
    keys: Option<Keys>,
    unreadable: u64,
}

impl Secrets {
    pub(super) fn new(settings: &KeySettings, user: UserId) -> Self {
        let mut settings = settings.clone();
        // An operator connects with `keys.url`.
        settings.worker_url = None;
        Self { settings, user, keys: None, unreadable: 0 }
    }

    /// How many fields could not be decrypted.
    pub(super) fn unreadable(&self) -> u64 {
        self.unreadable
    }

    /// `value` and the field in clear; `unreadable` and the reason, if its key was destroyed or it is not what was written; or `left_out` and the
    /// reason.
    pub(super) async fn decrypt(&mut self, cell: Cell) -> Result<(&'static str, String), PrivacyError> {
        if plan::is_left_out(&cell.table, &cell.column) {
            return Ok(("left_out", plan::CREDENTIAL.to_owned()));
        }
        let keys = match self.keys.take() {
            Some(keys) => keys,
            None => Keys::open(&self.settings, "", "privacy", CONNECT_TIMEOUT)?,
        };
        let keys = self.keys.insert(keys);
        let Cell { table, column, row, ciphertext } = cell;
        let field = Encrypted { user: self.user, table, column, row, ciphertext };
        // The key of a version is in the cache after the first field.
        let decrypted = keys.decrypt(std::slice::from_ref(&field), &Grants::new()).await?;
        match decrypted.into_iter().next() {
            Some(Ok(value)) => Ok(("value", value.expose_secret().to_owned())),
            Some(Err(reason)) => {
                self.unreadable += 1;
                Ok(("unreadable", reason))
            }
            None => Err(PrivacyError::Refused("the keys gave no answer for a field".to_owned())),
        }
    }
}
