//! Stage three: checks that the publisher's token permits the request for the user.
//!
//! Only this stage creates an [`Authorized`] message, and only authorized messages are written. Each request carries
//! the grant from its service token. Without a grant, the database permits no access to the user's rows.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use async_nats::HeaderMap;
use chrono::{DateTime, Utc};
use config::TrustSettings;
use contract::{RequestFacts, RequestSubject, Service, SessionId, UserId, header};
use sha2::{Digest, Sha256};
use store::registry::{Rates, TrustState};
use trust::{Refusal, Scope, Token, verify, worker_role};
use uuid::Uuid;

use crate::delivery::rate::{self, Limits, Use};
use crate::stages::decode::Decoded;
use crate::stages::pull::Delivery;
use crate::worker::{Message, Source, WorkItem};

/// A message that passed authorization.
#[derive(Debug)]
pub struct Authorized<I> {
    message: Message<I>,
    delivery: Delivery,
    authority: Authority,
}

/// The authority to access users' rows in the database.
#[derive(Clone, Debug)]
enum Authority {
    /// The grant of a service token.
    Grant(Arc<str>),
    /// Job grants. The database mints them before the tick is written, for the users with work due.
    Job,
}

impl<I> Authorized<I> {
    /// The message.
    pub fn message(&self) -> &Message<I> {
        &self.message
    }

    /// Its delivery, which is needed to settle it.
    pub fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    /// The grant to act for the message's user, which the database verifies again. `None` for a tick.
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

/// What a token allows.
struct Admitted {
    grant: Arc<str>,
    /// The rates of its service.
    rates: Rates,
    /// Whether it has the scope that widens what the request does.
    is_widened: bool,
}

/// A message that failed authorization. The publisher receives the class only.
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

/// The result of authorizing a message.
pub(crate) enum Authorization<I> {
    Authorized(Box<Authorized<I>>),
    Denied(Box<Denied>),
    /// Refused under this replica's registry state, which may be outdated.
    MaybeStale(Box<Decoded<I>>, RequestSubject, Refusal),
    /// Over a rate limit; redelivered after this delay.
    RateLimited(Box<Delivery>, Duration),
}

/// The result of authorizing a query.
#[derive(Clone, Debug)]
pub enum QueryAuthorization {
    /// It may read the data of this user, under this grant.
    Authorized(Arc<str>, UserId),
    /// The reason for the refusal, and the user if the token is authentic.
    Denied(Refusal, Option<UserId>),
    /// Over a rate limit of its service.
    RateLimited,
}

/// Capacity of the cache of verified tokens. A full cache is cleared.
const MAX_VERIFIED: usize = 20_000;
/// Maximum number of used tokens that are held until their use is recorded in the registry.
const MAX_USED: usize = 50_000;

/// Authorizes the messages of one worker, using the registry of services.
#[derive(Debug)]
pub struct Authorizer {
    role: String,
    audience: String,
    /// Default rates, where the registry sets none.
    rates: Rates,
    state: RwLock<Arc<TrustState>>,
    /// Keyed by the SHA-256 of the encoded token, so that the token itself is not kept.
    verified: Mutex<HashMap<[u8; 32], Arc<Token>>>,
    used: Mutex<HashMap<Uuid, DateTime<Utc>>>,
    limits: Limits,
}

impl Authorizer {
    /// Creates the authorizer of one worker, with the registry state at startup.
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
            limits: Limits::new(NonZeroU32::new(settings.service_kib_per_second).unwrap_or(NonZeroU32::MIN)),
        }
    }

    /// Returns the grant under which a request may be written.
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
        self.admit(headers, subject, session, stored_at, None).map(|admitted| admitted.grant)
    }

    /// How long a message of its service must be delayed because the service is over its rate limits. It counts before
    /// anything else is known of it.
    pub(crate) fn delay_of_service(&self, delivery: &Delivery) -> Option<Duration> {
        let wait = self.wait_of_service(delivery.sender.0.as_ref()?, delivery.message.length)?;
        self.reserved(wait, delivery.deliveries)
    }

    /// `None` for a service that is not registered: its messages are denied anyway.
    fn wait_of_service(&self, service: &Service, bytes: usize) -> Option<Duration> {
        let rates = self.state().services.get(service).map(|entry| entry.rates)?;
        self.limits.wait_of_service(self.rates_of(rates), service, bytes)
    }

    /// Authorizes a query of a service. It reads the data of the token's user.
    pub fn authorize_query(
        &self,
        headers: Option<&HeaderMap>,
        service: &Service,
        noun: &str,
        verb: &str,
        session: Option<&str>,
        now: DateTime<Utc>,
    ) -> QueryAuthorization {
        // Queries with bad tokens count as well. Their size is limited, and nothing of it is stored.
        if self.wait_of_service(service, 0).is_some() {
            return QueryAuthorization::RateLimited;
        }
        let state = self.state();
        let token = match bearer(headers).and_then(|token| self.verified(token, &state)) {
            Ok(token) => token,
            Err(refusal) => return QueryAuthorization::Denied(refusal, None),
        };
        let user_id = token.user_id();
        let (service, noun, verb) = (service.clone(), noun.to_owned(), verb.to_owned());
        let subject = RequestSubject { service, noun, verb, user_id };
        match self.admit_token(&state, &token, &subject, session, now, None) {
            Ok(Admitted { grant, rates, .. }) => match self.limits.wait(rates, used(&subject)) {
                Some(_) => QueryAuthorization::RateLimited,
                None => QueryAuthorization::Authorized(grant, user_id),
            },
            Err(refusal) => QueryAuthorization::Denied(refusal, Some(user_id)),
        }
    }

    fn admit(
        &self,
        headers: Option<&HeaderMap>,
        subject: &RequestSubject,
        session: Option<&str>,
        stored_at: DateTime<Utc>,
        widening: Option<(&str, &str)>,
    ) -> Result<Admitted, Refusal> {
        let state = self.state();
        let token = self.verified(bearer(headers)?, &state)?;
        self.admit_token(&state, &token, subject, session, stored_at, widening)
    }

    fn admit_token(
        &self,
        state: &TrustState,
        token: &Token,
        subject: &RequestSubject,
        session: Option<&str>,
        stored_at: DateTime<Utc>,
        widening: Option<(&str, &str)>,
    ) -> Result<Admitted, Refusal> {
        token.check(subject, session, u64::try_from(stored_at.timestamp()).unwrap_or_default())?;
        if state.revoked.contains(&token.id()) {
            return Err(Refusal::Revoked);
        }
        let entry = state.services.get(token.service()).ok_or(Refusal::UnknownService)?;
        let allow =
            |scopes: &[Scope], noun: &str, verb: &str| scopes.iter().any(|scope| scope.allows(noun, verb));
        if !allow(&entry.scopes, &subject.noun, &subject.verb) {
            return Err(Refusal::ServiceScope);
        }
        let is_widened = widening.is_some_and(|(noun, verb)| {
            allow(token.scopes(), noun, verb) && allow(&entry.scopes, noun, verb)
        });
        let grant = Arc::clone(token.grant(&self.role)?);
        self.add_use(token.id(), stored_at);
        Ok(Admitted { grant, rates: self.rates_of(entry.rates), is_widened })
    }

    /// Authorizes a message. A tick needs no token: only the server's scheduler may publish on its subject, and the
    /// database decides what a tick may do.
    pub(crate) fn authorize<I: WorkItem>(&self, decoded: Decoded<I>) -> Authorization<I> {
        let Decoded { mut message, delivery } = decoded;
        let subject = match &message.source {
            Source::Request(subject) => subject,
            Source::Tick(_) => {
                let authority = Authority::Job;
                return Authorization::Authorized(Box::new(Authorized { message, delivery, authority }));
            }
        };
        let headers = delivery.message.headers.as_ref();
        let facts = message.request.facts();
        let session = facts.and_then(RequestFacts::session_id).map(SessionId::as_str);
        let widening = facts.and_then(RequestFacts::widening_scope);
        match self.admit(headers, subject, session, message.stored_at, widening) {
            Ok(Admitted { grant, rates, is_widened }) => {
                match self.delay(rates, subject, delivery.deliveries) {
                    Some(delay) => Authorization::RateLimited(Box::new(delivery), delay),
                    None => {
                        let authority = Authority::Grant(grant);
                        message.is_widened = is_widened;
                        Authorization::Authorized(Box::new(Authorized { message, delivery, authority }))
                    }
                }
            }
            Err(refusal) => {
                let subject = subject.clone();
                let decoded = Decoded { message, delivery };
                match Self::may_be_stale(refusal) {
                    true => Authorization::MaybeStale(Box::new(decoded), subject, refusal),
                    false => Authorization::Denied(Box::new(Denied::new(decoded, subject, refusal))),
                }
            }
        }
    }

    /// Whether a message with this refusal could be allowed under the latest registry state.
    pub fn may_be_stale(refusal: Refusal) -> bool {
        matches!(refusal, Refusal::UnknownKey | Refusal::UnknownService | Refusal::ServiceScope)
    }

    fn delay(&self, rates: Rates, subject: &RequestSubject, deliveries: i64) -> Option<Duration> {
        let wait = self.limits.wait(rates, used(subject))?;
        self.reserved(wait, deliveries)
    }

    fn reserved(&self, wait: Duration, deliveries: i64) -> Option<Duration> {
        rate::delay(wait, deliveries).filter(|delay| self.limits.reserve(*delay))
    }

    /// The service's own rates, with the default for each one that it lacks.
    fn rates_of(&self, own: Rates) -> Rates {
        Rates {
            of_service: own.of_service.or(self.rates.of_service),
            of_scope: own.of_scope.or(self.rates.of_scope),
            of_user: own.of_user.or(self.rates.of_user),
        }
    }

    fn verified(&self, token: &str, state: &TrustState) -> Result<Arc<Token>, Refusal> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        // No code panics while holding the lock.
        if let Some(known) = self.verified.lock().unwrap_or_else(PoisonError::into_inner).get(&digest) {
            // The token may have been cached just as its key was retired.
            let in_use = state.keys.contains_key(known.key_name());
            return if in_use { Ok(Arc::clone(known)) } else { Err(Refusal::UnknownKey) };
        }
        let token = Arc::new(verify(token, &self.audience, |name| state.keys.get(name))?);
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        // Only valid tokens are cached, so that invalid ones cannot evict them.
        if verified.len() >= MAX_VERIFIED {
            verified.clear();
        }
        verified.insert(digest, Arc::clone(&token));
        Ok(token)
    }

    fn add_use(&self, id: Uuid, at: DateTime<Utc>) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.len() < MAX_USED || used.contains_key(&id) {
            let last = used.entry(id).or_insert(at);
            *last = at.max(*last);
        }
    }

    /// Returns the tokens used since the last call, each with its latest use.
    pub(crate) fn take_used(&self) -> HashMap<Uuid, DateTime<Utc>> {
        std::mem::take(&mut *self.used.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn prune(&self) {
        self.limits.prune();
    }

    /// The current registry state.
    pub(crate) fn state(&self) -> Arc<TrustState> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the registry state.
    pub(crate) fn set_state(&self, state: TrustState) {
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
        // The key that verified some cached tokens may have been retired.
        self.verified.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn used(subject: &RequestSubject) -> Use<'_> {
    Use { service: &subject.service, noun: &subject.noun, verb: &subject.verb, user_id: subject.user_id }
}

/// The bearer token of a message (RFC 6750, section 2.1).
fn bearer(headers: Option<&HeaderMap>) -> Result<&str, Refusal> {
    let mut values = headers.into_iter().flat_map(|headers| headers.get_all(header::AUTHORIZATION));
    let value = values.next().ok_or(Refusal::Missing)?;
    match (value.as_str().split_once(' '), values.next()) {
        (Some((scheme, token)), None) if scheme.eq_ignore_ascii_case("Bearer") => Ok(token),
        _ => Err(Refusal::Malformed),
    }
}
