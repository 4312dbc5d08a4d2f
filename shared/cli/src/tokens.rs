//! Service tokens for what a command publishes and asks: one that was given, or tokens issued in this process with the keys of
//! the configuration.

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

/// How long issued tokens are valid.
const LIFE: Duration = Duration::from_secs(3_600);
/// How long one is used again, so that none expires on its way.
const USED_FOR: Duration = Duration::from_secs(1_800);
/// How many are cached. With more users at a time than that, the cache starts over.
const CACHED: usize = 50_000;

/// Where tokens come from. Clones share the cache.
#[derive(Clone)]
pub struct Tokens {
    source: Source,
}

#[derive(Clone)]
enum Source {
    /// One for everything.
    Given(String),
    Issued(Arc<Mutex<Issuing>>),
    /// The configuration names no keys.
    None,
}

struct Issuing {
    issuer: TokenIssuer,
    connection: Connection,
    cache: HashMap<(Service, UserId), (Instant, String)>,
}

impl Tokens {
    /// Uses a token that was given, or else issues them if the configuration names the keys.
    ///
    /// # Errors
    /// If the keys cannot be read, or the registry cannot be reached.
    pub async fn open(settings: &Settings, given: Option<String>) -> anyhow::Result<Self> {
        if let Some(token) = given {
            return Ok(Self { source: Source::Given(token) });
        }
        let Some(issuer) = token_issuer::issuer(&settings.trust)? else {
            return Ok(Self { source: Source::None });
        };
        let connection = store::connect(&settings.postgres.url)
            .await
            .context("issued tokens are registered in the database that postgres.url names")?;
        let issuing = Issuing { issuer, connection, cache: HashMap::new() };
        Ok(Self { source: Source::Issued(Arc::new(Mutex::new(issuing))) })
    }

    /// Whether there are no tokens.
    pub fn is_none(&self) -> bool {
        matches!(self.source, Source::None)
    }

    /// The token for a request on this subject, issued if need be. None without keys, or for a subject that is no request's.
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

    /// The token with which a service acts for a user, issued if need be. None without keys.
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
        let (_, issued) = issued.context("`memfleet token service` shows and registers services")?;
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
                    "give one with --token, or set trust.token_key_file and trust.grant_key_file".to_owned(),
                )
            })
        }
        .boxed()
    }
}
