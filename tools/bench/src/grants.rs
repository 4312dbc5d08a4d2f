//! Grants for rows that a benchmark writes directly to the database.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use config::TrustSettings;
use contract::RequestSubject;
use trust::{Grant, GrantKey, worker_role};
use uuid::Uuid;

const VALID_FOR: Duration = Duration::from_secs(86_400);

/// Issues grants for the role of one worker.
pub(super) struct Grants {
    key: GrantKey,
    role: String,
    expires_at: SystemTime,
}

impl Grants {
    pub(super) fn open(settings: &TrustSettings, worker: &str) -> anyhow::Result<Self> {
        let file = settings.grant_key_file.as_ref().context("trust.grant_key_file is not set")?;
        let key = GrantKey::read(Path::new(file)).context("trust.grant_key_file")?;
        Ok(Self { key, role: worker_role(worker), expires_at: SystemTime::now() + VALID_FOR })
    }

    /// A grant for the user and service of a subject.
    pub(super) fn of(&self, subject: &RequestSubject) -> Arc<str> {
        let grant = Grant {
            user_id: subject.user_id,
            session: None,
            service: &subject.service,
            role: &self.role,
            // One id for each user, so that one user's messages share one grant.
            id: Uuid::new_v5(&Uuid::NAMESPACE_OID, subject.user_id.to_string().as_bytes()),
            expires_at: self.expires_at,
        };
        self.key.seal(&grant).into()
    }
}
