//! Data keys for values that are stored encrypted, unwrapped before the transaction opens.
//!
//! Most syncs carry nothing that is encrypted, and the key store is another server. So a transaction that comes upon an encrypted value
//! without its key notes which one it is; its message is delivered again at once, and the key is there. Only requests have the grants
//! for that: job grants open no data keys (docs/adr/0040).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use ::store::{Fault, FaultKind};
use contract::UserId;
use keys::{Grants, KeyError, Keys, OpenKeys};

use crate::{Message, SyncItem};

/// The most users whose keys are noted. More are noted anew when they are needed.
const MAX_USERS: usize = 10_000;

/// Which data keys syncs of users need.
#[derive(Debug, Default)]
pub(crate) struct WantedKeys(Mutex<BTreeMap<UserId, BTreeSet<u32>>>);

impl WantedKeys {
    /// Notes keys for the next delivery.
    pub(crate) fn note(&self, keys: impl IntoIterator<Item = (UserId, u32)>) {
        let mut wanted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if wanted.len() >= MAX_USERS {
            wanted.clear();
        }
        for (user, version) in keys {
            wanted.entry(user).or_default().insert(version);
        }
    }

    fn of(&self, users: &BTreeSet<UserId>) -> BTreeSet<(UserId, u32)> {
        let wanted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_user = |user: &UserId| {
            let versions = wanted.get(user).into_iter().flatten();
            versions.map(|version| (*user, *version)).collect::<Vec<_>>()
        };
        users.iter().flat_map(of_user).collect()
    }
}

/// Unwraps the data keys that syncs of the batch's users have needed so far.
pub(crate) async fn prepare(
    keys: &Keys,
    wanted: &WantedKeys,
    batch: &[&Message],
    grants: &[&str],
) -> Result<OpenKeys, Fault> {
    let is_request = |message: &&&Message| matches!(message.request, SyncItem::Request(_));
    let users: BTreeSet<UserId> = batch.iter().filter(is_request).map(|message| message.user_id()).collect();
    let wanted = wanted.of(&users);
    if wanted.is_empty() {
        return Ok(OpenKeys::default());
    }
    let grants: Grants<'_> = grants.iter().filter_map(|grant| Some((user_of(grant)?, *grant))).collect();
    keys.open_keys(&wanted, &grants).await.map_err(|error| match error {
        KeyError::Denied(reason) => Fault { kind: FaultKind::Denied, reason },
        // One of the users is erased. The others go on.
        KeyError::Blocked(reason) => Fault { kind: FaultKind::Blocked, reason },
        KeyError::Store(_) | KeyError::Main(_) | KeyError::Provider(_) | KeyError::Settings(_) => {
            Fault { kind: FaultKind::Unavailable, reason: error.to_string() }
        }
    })
}

/// The user of a grant, which the key store verifies: `v1|key id|user|…`.
fn user_of(grant: &str) -> Option<UserId> {
    UserId::new(grant.split('|').nth(2)?.parse().ok()?).ok()
}
