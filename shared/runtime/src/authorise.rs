//! Stage three: may this publisher do this to this user's memory?
//!
//! Only this stage makes an [`Authorised`] message, and only authorised messages are written. Each carries a grant, without
//! which the database lets nobody act for its user.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use contract::{RequestSubject, Service, UserId};
use trust::{Grant, GrantKey, KeyError, role_of};
use uuid::Uuid;

use crate::decode::Decoded;
use crate::settings::TrustSettings;
use crate::worker::Message;

/// A message that may be written.
#[derive(Debug)]
pub struct Authorised<R> {
    message: Message<R>,
    delivery: crate::pull::Delivery,
    grant: Arc<str>,
}

impl<R> Authorised<R> {
    /// The message.
    pub fn message(&self) -> &Message<R> {
        &self.message
    }

    /// How it came, for settling it.
    pub fn delivery(&self) -> &crate::pull::Delivery {
        &self.delivery
    }

    /// Leave to act for the message's user, which the database checks by itself.
    pub fn grant(&self) -> &str {
        &self.grant
    }

    pub(crate) fn into_delivery(self) -> crate::pull::Delivery {
        self.delivery
    }
}

/// Why a message may not be written. The publisher learns the class only.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Denied {
    /// What was refused, for the audit trail and the dead letter.
    pub reason: String,
}

/// There is nothing to issue grants with.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// The option is not set.
    #[error("trust.grant_key_file is not set: it names the key of the grants that a worker writes under")]
    NoKey,
    /// The key cannot be read.
    #[error("trust.grant_key_file: {0}")]
    Key(#[from] KeyError),
}

/// How long a grant is good: longer than its message can be in the stream, so that no outage makes dead letters.
const GOOD_FOR: Duration = Duration::from_secs(8 * 86_400);
/// A grant is used again for this long, so that one user's messages share one.
const USED_FOR: Duration = Duration::from_secs(900);
/// How many grants are kept. More users than that at a time have theirs made anew.
const KEPT: usize = 10_000;

/// Issues a grant for whoever a message's subject names: messages carry no service token, so that the broker's permissions
/// alone say who may publish for whom. It stands in for the issuer of tokens, which then makes the grants.
#[derive(Debug)]
pub struct Issuer {
    key: GrantKey,
    role: String,
    issued: Mutex<HashMap<(Service, UserId), Issued>>,
}

/// A grant, and since when it is used.
#[derive(Debug)]
struct Issued {
    since: Instant,
    grant: Arc<str>,
}

impl Issuer {
    /// An issuer for one worker.
    ///
    /// # Errors
    /// [`IssuerError`] if the settings name no key that can be read.
    pub fn new(settings: &TrustSettings, worker: &str) -> Result<Self, IssuerError> {
        let file = settings.grant_key_file.as_ref().ok_or(IssuerError::NoKey)?;
        let key = GrantKey::read(Path::new(file))?;
        Ok(Self { key, role: role_of(worker), issued: Mutex::default() })
    }

    /// A grant for the user and in the name of the service of a subject.
    pub fn grant(&self, subject: &RequestSubject) -> Arc<str> {
        // Nothing panics under the lock.
        let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        let holder = (subject.service.clone(), subject.user_id);
        if let Some(known) = issued.get(&holder)
            && known.since.elapsed() < USED_FOR
        {
            return Arc::clone(&known.grant);
        }
        if issued.len() >= KEPT {
            issued.clear();
        }
        let grant: Arc<str> = self
            .key
            .seal(&Grant {
                user_id: subject.user_id,
                session: None,
                service: &subject.service,
                role: &self.role,
                id: Uuid::now_v7(),
                expires_at: SystemTime::now() + GOOD_FOR,
            })
            .into();
        issued.insert(holder, Issued { since: Instant::now(), grant: Arc::clone(&grant) });
        grant
    }

    /// Passes every message on with a grant for its user.
    ///
    /// # Errors
    /// None so far; a refusal is a [`Denied`] with the message it concerns.
    pub fn authorise<R>(
        &self,
        decoded: Decoded<R>,
    ) -> Result<Authorised<R>, Box<(crate::pull::Delivery, Denied)>> {
        let Decoded { message, delivery } = decoded;
        let grant = self.grant(&message.subject);
        Ok(Authorised { message, delivery, grant })
    }
}
