//! Stage three: may this publisher do this to this user's memory?
//!
//! Only this stage makes an [`Authorized`] message, and only authorized messages are written. Each carries the grant out of
//! its service token, without which the database lets nobody act for its user.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use async_nats::HeaderMap;
use chrono::{DateTime, Utc};
use config::TrustSettings;
use contract::{RequestFacts, RequestSubject, Service, SessionId, UserId, header};
use sha2::{Digest, Sha256};
use store::registry::{Rates, TrustState};
use trust::{Refusal, Token, verify, worker_role};
use uuid::Uuid;

use crate::delivery::rate::{self, Limits, Use};
use crate::stages::decode::Decoded;
use crate::stages::pull::Delivery;
use crate::worker::{Message, Source, WorkItem};

/// A message that may be written.
#[derive(Debug)]
pub struct Authorized<I> {
    message: Message<I>,
    delivery: Delivery,
    authority: Authority,
}

/// What lets the database act for users.
#[derive(Clone, Debug)]
enum Authority {
    /// The grant of a service token.
    Grant(Arc<str>),
    /// Job grants, which the database mints when the tick is written, for the users whose work is due.
    Job,
}

impl<I> Authorized<I> {
    /// The message.
    pub fn message(&self) -> &Message<I> {
        &self.message
    }

    /// How it came, for settling it.
    pub fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    /// The grant to act for the message's user, which the database checks by itself; none for a tick.
    pub fn grant(&self) -> Option<&str> {
        match &self.authority {
            Authority::Grant(grant) => Some(grant),
            Authority::Job => None,
        }
    }

    pub(crate) fn into_delivery(self) -> Delivery {
        self.delivery
    }
}

/// A message that may not be written. The publisher learns the class only.
#[derive(Debug)]
pub(crate) struct Denied {
    pub(crate) delivery: Delivery,
    pub(crate) subject: RequestSubject,
    pub(crate) request_id: Uuid,
    pub(crate) refusal: Refusal,
}

impl Denied {
    pub(crate) fn new<I>(decoded: Decoded<I>, subject: RequestSubject, refusal: Refusal) -> Self {
        let Decoded { message, delivery } = decoded;
        Self { delivery, subject, request_id: message.request_id, refusal }
    }
}

/// What becomes of a message.
pub(crate) enum Authorization<I> {
    Authorized(Box<Authorized<I>>),
    Denied(Box<Denied>),
    /// Whether it is allowed, the registry knows, and this replica may not have its latest state.
    Unsure(Box<Decoded<I>>, RequestSubject, Refusal),
    /// Its service publishes too much; it is delivered again after this.
    RateLimited(Box<Delivery>, Duration),
}

/// Whether a query is authorized.
#[derive(Clone, Debug)]
pub enum QueryAuthorization {
    /// It may read the data of this user, under this grant.
    Authorized(Arc<str>, UserId),
    /// Why it may not, and the user, if the token is authentic.
    Denied(Refusal, Option<UserId>),
    /// A rate limit of its service is reached.
    RateLimited,
}

/// How many verified tokens are kept. More of them at a time are verified anew.
const KEPT: usize = 20_000;
/// How many used tokens are kept until they are noted in the registry.
const USED_KEPT: usize = 50_000;

/// Judges the tokens of one worker's messages by what the registry of services says.
#[derive(Debug)]
pub struct Authorizer {
    role: String,
    audience: String,
    /// Where the registry says nothing.
    rates: Rates,
    state: RwLock<Arc<TrustState>>,
    /// By SHA-256 of the token, so that none is kept.
    verified: Mutex<HashMap<[u8; 32], Arc<Token>>>,
    used: Mutex<HashMap<Uuid, DateTime<Utc>>>,
    limits: Limits,
}

impl Authorizer {
    /// An authorizer for one worker, which judges by this state until it is told another one.
    pub fn new(settings: &TrustSettings, worker: &str, state: TrustState) -> Self {
        Self {
            role: worker_role(worker),
            audience: settings.audience.clone(),
            rates: Rates {
                of_service: Some(settings.service_per_second),
                of_scope: Some(settings.scope_per_second),
                of_user: Some(settings.user_per_second),
            },
            state: RwLock::new(Arc::new(state)),
            verified: Mutex::default(),
            used: Mutex::default(),
            limits: Limits::default(),
        }
    }

    /// The grant that a request may be written under.
    ///
    /// # Errors
    /// The first [`Refusal`].
    pub fn grant_for(
        &self,
        headers: Option<&HeaderMap>,
        subject: &RequestSubject,
        session: Option<&str>,
        stored_at: DateTime<Utc>,
    ) -> Result<Arc<str>, Refusal> {
        self.admit(headers, subject, session, stored_at).map(|(grant, _)| grant)
    }

    /// Authorizes a query of a service, which is about the user of its token.
    pub fn authorize_query(
        &self,
        headers: Option<&HeaderMap>,
        service: &Service,
        noun: &str,
        verb: &str,
        session: Option<&str>,
        now: DateTime<Utc>,
    ) -> QueryAuthorization {
        let state = self.state();
        let token = match bearer(headers).and_then(|token| self.verified(token, &state)) {
            Ok(token) => token,
            Err(refusal) => return QueryAuthorization::Denied(refusal, None),
        };
        let user_id = token.user_id();
        let (service, noun, verb) = (service.clone(), noun.to_owned(), verb.to_owned());
        let subject = RequestSubject { service, noun, verb, user_id };
        match self.admit_token(&state, &token, &subject, session, now) {
            Ok((grant, rates)) => match self.limits.wait(rates, used(&subject)) {
                Some(_) => QueryAuthorization::RateLimited,
                None => QueryAuthorization::Authorized(grant, user_id),
            },
            Err(refusal) => QueryAuthorization::Denied(refusal, Some(user_id)),
        }
    }

    /// The grant, and how often the service may ask.
    fn admit(
        &self,
        headers: Option<&HeaderMap>,
        subject: &RequestSubject,
        session: Option<&str>,
        stored_at: DateTime<Utc>,
    ) -> Result<(Arc<str>, Rates), Refusal> {
        let state = self.state();
        let token = self.verified(bearer(headers)?, &state)?;
        self.admit_token(&state, &token, subject, session, stored_at)
    }

    fn admit_token(
        &self,
        state: &TrustState,
        token: &Token,
        subject: &RequestSubject,
        session: Option<&str>,
        stored_at: DateTime<Utc>,
    ) -> Result<(Arc<str>, Rates), Refusal> {
        token.check(subject, session, u64::try_from(stored_at.timestamp()).unwrap_or_default())?;
        if state.revoked.contains(&token.id()) {
            return Err(Refusal::Revoked);
        }
        let entry = state.services.get(token.service()).ok_or(Refusal::UnknownService)?;
        if !entry.scopes.iter().any(|scope| scope.allows(&subject.noun, &subject.verb)) {
            return Err(Refusal::ServiceScope);
        }
        let grant = Arc::clone(token.grant(&self.role)?);
        self.note_use(token.id(), stored_at);
        Ok((grant, self.rates_of(entry.rates)))
    }

    /// Authorizes a message. Only the server's scheduler can publish a tick: no service has a permission for its subject, and what
    /// the tick may do, the database decides.
    pub(crate) fn authorize<I: WorkItem>(&self, decoded: Decoded<I>) -> Authorization<I> {
        let Decoded { message, delivery } = decoded;
        let subject = match &message.source {
            Source::Request(subject) => subject,
            Source::Tick(_) => {
                let authority = Authority::Job;
                return Authorization::Authorized(Box::new(Authorized { message, delivery, authority }));
            }
        };
        let headers = delivery.message.headers.as_ref();
        let session = message.request.facts().and_then(RequestFacts::session_id).map(SessionId::as_str);
        match self.admit(headers, subject, session, message.stored_at) {
            Ok((grant, rates)) => match self.delay(rates, subject, delivery.deliveries) {
                Some(delay) => Authorization::RateLimited(Box::new(delivery), delay),
                None => {
                    let authority = Authority::Grant(grant);
                    Authorization::Authorized(Box::new(Authorized { message, delivery, authority }))
                }
            },
            Err(refusal) => {
                let subject = subject.clone();
                let decoded = Decoded { message, delivery };
                match Self::may_be_stale(refusal) {
                    true => Authorization::Unsure(Box::new(decoded), subject, refusal),
                    false => Authorization::Denied(Box::new(Denied::new(decoded, subject, refusal))),
                }
            }
        }
    }

    /// Whether a message that is denied could be allowed by what the registry says by now.
    pub fn may_be_stale(refusal: Refusal) -> bool {
        matches!(refusal, Refusal::UnknownKey | Refusal::UnknownService | Refusal::ServiceScope)
    }

    fn delay(&self, rates: Rates, subject: &RequestSubject, deliveries: i64) -> Option<Duration> {
        let wait = self.limits.wait(rates, used(subject))?;
        rate::delay(wait, deliveries).filter(|delay| self.limits.has_room(*delay))
    }

    /// A service's own rates, and the settings' where it has none.
    fn rates_of(&self, own: Rates) -> Rates {
        Rates {
            of_service: own.of_service.or(self.rates.of_service),
            of_scope: own.of_scope.or(self.rates.of_scope),
            of_user: own.of_user.or(self.rates.of_user),
        }
    }

    fn verified(&self, token: &str, state: &TrustState) -> Result<Arc<Token>, Refusal> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        // Nothing panics under the lock.
        if let Some(known) = self.verified.lock().unwrap_or_else(PoisonError::into_inner).get(&digest) {
            // A token may have come in here while its key was retired.
            let in_use = state.keys.contains_key(known.key_name());
            return if in_use { Ok(Arc::clone(known)) } else { Err(Refusal::UnknownKey) };
        }
        let token = Arc::new(verify(token, &self.audience, |name| state.keys.get(name))?);
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        // Only good tokens come this far, so that nobody can push them out with bad ones.
        if verified.len() >= KEPT {
            verified.clear();
        }
        verified.insert(digest, Arc::clone(&token));
        Ok(token)
    }

    fn note_use(&self, id: Uuid, at: DateTime<Utc>) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.len() < USED_KEPT || used.contains_key(&id) {
            let last = used.entry(id).or_insert(at);
            *last = at.max(*last);
        }
    }

    /// The tokens that were used since this was asked last.
    pub(crate) fn take_used(&self) -> HashMap<Uuid, DateTime<Utc>> {
        std::mem::take(&mut *self.used.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn tidy(&self) {
        self.limits.tidy();
    }

    /// What tokens are authorized by now.
    pub(crate) fn state(&self) -> Arc<TrustState> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Judges by another state from now on.
    pub(crate) fn tell(&self, state: TrustState) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
        // A key may be gone that some were verified by.
        self.verified.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn used(subject: &RequestSubject) -> Use<'_> {
    Use { service: &subject.service, noun: &subject.noun, verb: &subject.verb, user_id: subject.user_id }
}

/// The token of a message (RFC 6750, section 2.1).
fn bearer(headers: Option<&HeaderMap>) -> Result<&str, Refusal> {
    let mut values = headers.into_iter().flat_map(|headers| headers.get_all(header::AUTHORIZATION));
    let value = values.next().ok_or(Refusal::Missing)?;
    match (value.as_str().split_once(' '), values.next()) {
        (Some((scheme, token)), None) if scheme.eq_ignore_ascii_case("Bearer") => Ok(token),
        _ => Err(Refusal::Malformed),
    }
}
