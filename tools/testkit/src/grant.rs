//! Grants for tests.

#![allow(clippy::expect_used, clippy::missing_panics_doc)]

use std::time::{Duration, SystemTime};

use contract::UserId;
use trust::{Grant, GrantKey};
use uuid::Uuid;

use crate::secrets::GRANT_KEY;

/// The key that seals the grants of the tests.
pub fn grant_key() -> GrantKey {
    GrantKey::parse(GRANT_KEY).expect("the tests' key")
}

/// A grant that is sealed with this key and valid for `valid_s` seconds. Below zero, it has expired already.
pub fn grant_with_key(key: &GrantKey, user: i32, role: &str, valid_s: i64) -> String {
    let now = SystemTime::now();
    let expires_at = match u64::try_from(valid_s) {
        Ok(seconds) => now + Duration::from_secs(seconds),
        Err(_) => now - Duration::from_secs(valid_s.unsigned_abs()),
    };
    let service = "test".parse().expect("a service");
    key.seal(&Grant {
        user_id: UserId::new(user).expect("a user"),
        session: None,
        service: &service,
        role,
        id: Uuid::now_v7(),
        expires_at,
    })
}

/// A valid grant for a user and a role.
pub fn grant(user: i32, role: &str) -> String {
    grant_with_key(&grant_key(), user, role, 60)
}
