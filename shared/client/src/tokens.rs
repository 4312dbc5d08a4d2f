//! Service tokens: their sources and their cache.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use contract::{Service, TOKEN_ISSUE, TokenAnswer, TokenQuery, UserId};
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::error::ClientError;
use crate::query::request;

/// The name of a token query in errors.
const NAME: &str = "token.issue";
/// The timeout for a token.
const ISSUED_WITHIN: Duration = Duration::from_secs(10);
/// The maximum number of cached tokens. When it is reached, the cache is cleared.
const CACHED: usize = 50_000;

/// Supplies the service token with which a service acts for a user.
pub trait TokenSource: Send + Sync {
    /// A token that remains valid for some time.
    fn token(&self, user: UserId) -> BoxFuture<'_, Result<String, ClientError>>;
}

/// A fixed token for all users.
impl TokenSource for String {
    fn token(&self, _: UserId) -> BoxFuture<'_, Result<String, ClientError>> {
        std::future::ready(Ok(self.clone())).boxed()
    }
}

/// Requests tokens from token-issuer, which issues them to services that the broker has authenticated. A token is used
/// for half of its lifetime, so that it does not expire before its request is stored.
pub struct NatsTokens {
    connection: async_nats::Client,
    service: Service,
    cache: Mutex<HashMap<UserId, Cached>>,
}

struct Cached {
    token: String,
    renew_at: Instant,
}

impl NatsTokens {
    /// Creates a source of tokens for a service, over the service's own connection.
    pub fn new(connection: async_nats::Client, service: Service) -> Self {
        Self { connection, service, cache: Mutex::default() }
    }

    fn cached(&self, user: UserId) -> Option<String> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.get(&user).filter(|cached| Instant::now() < cached.renew_at).map(|cached| cached.token.clone())
    }

    async fn issue(&self, user: UserId) -> Result<String, ClientError> {
        let ask = TokenQuery { user_id: user, session_id: None, scopes: Vec::new(), life_s: None };
        let unwritable = |source| ClientError::Encode { name: NAME.to_owned(), source };
        let body = serde_json::to_vec(&ask).map_err(unwritable)?;
        let subject = format!("{TOKEN_ISSUE}.{}", self.service);
        let message = async_nats::Request::new().payload(body.into()).timeout(Some(ISSUED_WITHIN));
        let issued: TokenAnswer =
            request(&self.connection, subject, message, NAME, &self.service).await.map_err(|error| {
                ClientError::Token(format!(
                    "token-issuer did not issue a token to {} for user {user}: {error}",
                    self.service
                ))
            })?;
        let life = Duration::from_secs(issued.expires).saturating_sub(since_1970());
        let cached = Cached { token: issued.token.clone(), renew_at: Instant::now() + life / 2 };
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHED {
            cache.clear();
        }
        cache.insert(user, cached);
        Ok(issued.token)
    }
}

impl TokenSource for NatsTokens {
    fn token(&self, user: UserId) -> BoxFuture<'_, Result<String, ClientError>> {
        async move {
            match self.cached(user) {
                Some(token) => Ok(token),
                None => self.issue(user).await,
            }
        }
        .boxed()
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO)
}
