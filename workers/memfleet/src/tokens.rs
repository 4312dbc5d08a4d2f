//! Service tokens for what this program publishes by itself: given to it, or issued with the keys that it is told of.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use config::{Settings, TrustSettings};
use contract::{RequestSubject, Service, UserId};
use store::Connection;
use store::registry;
use trust::{GrantKey, PrivateKey, TokenIssuer, TokenRequest};

/// How long the tokens that it issues are good.
const LIFE: Duration = Duration::from_secs(3_600);
/// How long one is used again, so that none ends on its way.
const USED_FOR: Duration = Duration::from_secs(1_800);
/// How many are kept. More users than that at a time have theirs issued anew.
const KEPT: usize = 50_000;

/// Where tokens come from.
pub struct Tokens {
    source: Source,
}

enum Source {
    /// One for everything.
    Given(String),
    Issued(Box<Issuing>),
    /// Nothing to issue them with.
    None,
}

struct Issuing {
    issuer: TokenIssuer,
    connection: Connection,
    kept: HashMap<(Service, UserId), (Instant, String)>,
}

/// The issuer of this configuration; none if it names no keys.
///
/// # Errors
/// If only one of the keys is named, or one cannot be read.
pub fn issuer(settings: &TrustSettings) -> anyhow::Result<Option<TokenIssuer>> {
    match (&settings.token_key_file, &settings.grant_key_file) {
        (None, None) => Ok(None),
        (Some(signing), Some(grants)) => {
            let signing = PrivateKey::read(Path::new(signing)).context("trust.token_key_file")?;
            let grants = GrantKey::read(Path::new(grants)).context("trust.grant_key_file")?;
            Ok(Some(TokenIssuer::new(signing, grants, &settings.audience)))
        }
        (Some(_), None) => bail!("trust.grant_key_file is not set; a token carries grants"),
        (None, Some(_)) => bail!("trust.token_key_file is not set; a token is signed with it"),
    }
}

impl Tokens {
    /// Uses a token that was given, or else issues them if the configuration names the keys.
    ///
    /// # Errors
    /// If the keys cannot be read, or the registry cannot be asked.
    pub async fn open(settings: &Settings, given: Option<String>) -> anyhow::Result<Self> {
        if let Some(token) = given {
            return Ok(Self { source: Source::Given(token) });
        }
        let Some(issuer) = issuer(&settings.trust)? else { return Ok(Self { source: Source::None }) };
        let connection = store::connect(&settings.postgres.url)
            .await
            .context("issued tokens are registered in the database that postgres.url names")?;
        let issuing = Issuing { issuer, connection, kept: HashMap::new() };
        Ok(Self { source: Source::Issued(Box::new(issuing)) })
    }

    /// Whether there is nothing to have tokens from.
    pub fn is_none(&self) -> bool {
        matches!(self.source, Source::None)
    }

    /// The token for a request on this subject, issued if need be. None without keys, or for a subject that no token can be
    /// for.
    ///
    /// # Errors
    /// If its service is not registered, or the registry does not take the token.
    pub async fn of(&mut self, subject: &str) -> anyhow::Result<Option<String>> {
        match &mut self.source {
            Source::Given(token) => Ok(Some(token.clone())),
            Source::None => Ok(None),
            Source::Issued(issuing) => match subject.parse::<RequestSubject>() {
                Ok(subject) => issuing.of((subject.service, subject.user_id)).await.map(Some),
                Err(_) => Ok(None),
            },
        }
    }

    /// The token with which a service acts for a user, issued if need be. None without keys.
    ///
    /// # Errors
    /// If the service is not registered, or the registry does not take the token.
    pub async fn of_holder(&mut self, service: Service, user: UserId) -> anyhow::Result<Option<String>> {
        match &mut self.source {
            Source::Given(token) => Ok(Some(token.clone())),
            Source::None => Ok(None),
            Source::Issued(issuing) => issuing.of((service, user)).await.map(Some),
        }
    }
}

impl Issuing {
    async fn of(&mut self, holder: (Service, UserId)) -> anyhow::Result<String> {
        if let Some((since, token)) = self.kept.get(&holder)
            && since.elapsed() < USED_FOR
        {
            return Ok(token.clone());
        }
        let (service, user_id) = holder.clone();
        let request = TokenRequest { service, user_id, session: None, scopes: Vec::new(), life: LIFE };
        let issued = registry::issue(&mut self.connection, &self.issuer, request, SystemTime::now()).await;
        let (_, issued) = issued.context("`memfleet token service` shows and registers services")?;
        if self.kept.len() >= KEPT {
            self.kept.clear();
        }
        self.kept.insert(holder, (Instant::now(), issued.token.clone()));
        Ok(issued.token)
    }
}
