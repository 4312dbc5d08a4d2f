//! Service tokens for the requests and queries of a command: a given token, or tokens issued in this process with the
//! configured keys.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use client::{ClientError, TokenSource};
use config::Settings;
use contract::{RequestSubject, Service, UserId};
use futures::FutureExt;
use futures::future::BoxFuture;
use store::{Connection, registry};
use tokio::sync::Mutex;
use trust::{TokenIssuer, TokenRequest};

use crate::database;

/// How long issued tokens are valid.
const LIFE: Duration = Duration::from_secs(3_600);
/// How long a cached token is reused; shorter than its lifetime, so that it does not expire in transit.
const USED_FOR: Duration = Duration::from_secs(1_800);
/// Maximum number of cached tokens. When it is reached, the cache is cleared.
const CACHED: usize = 50_000;

/// A source of tokens. Clones share the cache.
#[derive(Clone)]
pub struct Tokens {
    source: Source,
}

#[derive(Clone)]
enum Source {
    /// One token for everything.
    Given(String),
    Issued(Arc<Mutex<Issuing>>),
    /// No keys are configured.
    None,
}

struct Issuing {
    issuer: TokenIssuer,
    connection: Connection,
    cache: HashMap<(Service, UserId), (Instant, String)>,
}

impl Tokens {
    /// Uses the given token, or issues tokens if keys are configured.
    ///
    /// # Errors
    /// If the keys cannot be read, or the registry is unreachable.
    pub async fn open(settings: &Settings, given: Option<String>) -> anyhow::Result<Self> {
        if let Some(token) = given {
            return Ok(Self { source: Source::Given(token) });
        }
        let Some(issuer) = token_issuer::issuer(&settings.trust)? else {
            return Ok(Self { source: Source::None });
        };
        let connection =
            database::connect(&settings.postgres.url, "postgres.url", "the token registry").await?;
        let issuing = Issuing { issuer, connection, cache: HashMap::new() };
        Ok(Self { source: Source::Issued(Arc::new(Mutex::new(issuing))) })
    }

    /// Whether no tokens are available: none was given and no keys are configured.
    pub fn is_none(&self) -> bool {
        matches!(self.source, Source::None)
    }

    /// The token for a request on this subject, issued if necessary. `None` without keys, or if issued tokens are used
    /// and the subject is not that of a request.
    ///
    /// # Errors
    /// If the service is not registered, or the registry does not accept the token.
    pub async fn of(&self, subject: &str) -> anyhow::Result<Option<String>> {
        match (&self.source, subject.parse::<RequestSubject>()) {
            (Source::Issued(_), Ok(subject)) => self.of_holder(&subject.service, subject.user_id).await,
            (Source::Issued(_), Err(_)) | (Source::None, _) => Ok(None),
            (Source::Given(token), _) => Ok(Some(token.clone())),
        }
    }

    /// The token with which a service acts for a user, issued if necessary. `None` without keys.
    ///
    /// # Errors
    /// If the service is not registered, or the registry does not accept the token.
    pub async fn of_holder(&self, service: &Service, user: UserId) -> anyhow::Result<Option<String>> {
        match &self.source {
            Source::Given(token) => Ok(Some(token.clone())),
            Source::None => Ok(None),
            Source::Issued(issuing) => issuing.lock().await.of((service.clone(), user)).await.map(Some),
        }
    }

    /// The tokens of one service, for a [`client::Client`].
    pub fn of_service(&self, service: Service) -> impl TokenSource + use<> {
        ServiceTokens { tokens: self.clone(), service }
    }
}

impl Issuing {
    async fn of(&mut self, holder: (Service, UserId)) -> anyhow::Result<String> {
        if let Some((since, token)) = self.cache.get(&holder)
            && since.elapsed() < USED_FOR
        {
            return Ok(token.clone());
        }
        let (service, user_id) = holder.clone();
        let request = TokenRequest { service, user_id, session: None, scopes: Vec::new(), life: LIFE };
        let issued = registry::issue(&mut self.connection, &self.issuer, request, SystemTime::now()).await;
        let (_, issued) = issued
            .context("cannot issue a service token; `memfleet token service` lists and registers services")?;
        if self.cache.len() >= CACHED {
            self.cache.clear();
        }
        self.cache.insert(holder, (Instant::now(), issued.token.clone()));
        Ok(issued.token)
    }
}

struct ServiceTokens {
    tokens: Tokens,
    service: Service,
}

impl TokenSource for ServiceTokens {
    fn token(&self, user: UserId) -> BoxFuture<'_, Result<String, ClientError>> {
        async move {
            let token = self.tokens.of_holder(&self.service, user).await;
            let token = token.map_err(|error| ClientError::Token(format!("{error:#}")))?;
            token.ok_or_else(|| {
                ClientError::Token(
                    "pass --token, or set trust.token_key_file and trust.grant_key_file".to_owned(),
                )
            })
        }
        .boxed()
    }
}
