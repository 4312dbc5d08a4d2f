//! The keys that create tokens.

use std::path::Path;

use config::TrustSettings;
use trust::{GrantKey, KeyError, PrivateKey, TokenIssuer};

/// The configuration does not name usable keys.
#[derive(Debug, thiserror::Error)]
pub enum IssuerKeyError {
    /// It names neither of them.
    #[error("trust.token_key_file and trust.grant_key_file are not set")]
    NotSet,
    /// The key that signs tokens is missing.
    #[error("trust.token_key_file is not set; it is needed to sign tokens")]
    NoTokenKey,
    /// The key that seals grants is missing.
    #[error("trust.grant_key_file is not set; it is needed to seal the grants in tokens")]
    NoGrantKey,
    /// The key that signs tokens cannot be used.
    #[error("trust.token_key_file: {0}")]
    TokenKey(KeyError),
    /// The key that seals grants cannot be used.
    #[error("trust.grant_key_file: {0}")]
    GrantKey(KeyError),
}

/// The token issuer of this configuration. `None` if it names no keys.
///
/// # Errors
/// [`IssuerKeyError`] if it names only one of the keys, or one cannot be used.
pub fn issuer(settings: &TrustSettings) -> Result<Option<TokenIssuer>, IssuerKeyError> {
    match (&settings.token_key_file, &settings.grant_key_file) {
        (None, None) => Ok(None),
        (Some(signing), Some(grants)) => {
            let signing = PrivateKey::read(Path::new(signing)).map_err(IssuerKeyError::TokenKey)?;
            let grants = GrantKey::read(Path::new(grants)).map_err(IssuerKeyError::GrantKey)?;
            Ok(Some(TokenIssuer::new(signing, grants, &settings.audience)))
        }
        (Some(_), None) => Err(IssuerKeyError::NoGrantKey),
        (None, Some(_)) => Err(IssuerKeyError::NoTokenKey),
    }
}
