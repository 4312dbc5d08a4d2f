//! SHA-256.

/// A SHA-256 digest.
pub type Digest = [u8; 32];
