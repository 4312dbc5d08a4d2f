//! Service tokens for tests.

#![allow(clippy::expect_used, clippy::missing_panics_doc)]

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use contract::{RequestSubject, Service, UserId};
use trust::{GrantKey, PrivateKey, Scope, TokenIssuer, TokenRequest};

use crate::grant::grant_key;
use crate::secrets::TOKEN_KEY;

static ISSUED: LazyLock<Mutex<HashMap<(Service, UserId), String>>> = LazyLock::new(Mutex::default);

/// An issuer with the keys of every test's database.
pub fn issuer() -> TokenIssuer {
    issuer_with(grant_key())
}

fn issuer_with(grants: GrantKey) -> TokenIssuer {
    TokenIssuer::new(PrivateKey::parse(TOKEN_KEY).expect("the tests' key"), grants, "memfleet")
}

/// The request for a token with all scopes for a user.
pub fn request(service: &str, user: i32) -> TokenRequest {
    TokenRequest {
        service: service.parse().expect("a service"),
        user_id: UserId::new(user).expect("a user"),
        session: None,
        scopes: Scope::parse_list("*:*").expect("a scope"),
        life: Duration::from_secs(3_600),
    }
}

/// A token with all scopes for a user, whose grants are sealed with this key.
pub fn with_grant_key(grants: GrantKey, service: &str, user: i32) -> String {
    issuer_with(grants).issue(&request(service, user), SystemTime::now()).expect("a token").token
}

/// A valid token for the service and user of a subject. It is not in the registry.
pub fn for_subject(subject: &RequestSubject) -> String {
    let mut issued = ISSUED.lock().unwrap_or_else(PoisonError::into_inner);
    let holder = (subject.service.clone(), subject.user_id);
    let make = || with_grant_key(grant_key(), holder.0.as_str(), holder.1.get());
    issued.entry(holder.clone()).or_insert_with(make).clone()
}
