//! Issues service tokens and the grants in them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use contract::{
    MEMORY_READER, MEMORY_SYNC, QUERIES, REQUESTS, REVEAL, SYNC_PRIVATE, Service, SessionId, UserId,
    worker_role,
};
use data_encoding::BASE64URL_NOPAD as BASE64;
use uuid::Uuid;

use crate::grant::{Grant, GrantKey};
use crate::key::PrivateKey;
use crate::scope::{MAX_SCOPES, Scope};
use crate::token::{ALGORITHM, Claims, GrantClaim, Header, ISSUER, MAX_TOKEN_LIFETIME, TYPE};

/// How long a grant is valid after its token expires: longer than the seven days that streams keep messages. A token
/// must be valid when JetStream stores the message, its grant when the worker processes it.
pub const GRANT_OUTLIVES_TOKEN: Duration = Duration::from_secs(8 * 86_400);

/// The parameters of a token to issue.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    /// The service.
    pub service: Service,
    /// The user that the token acts for.
    pub user_id: UserId,
    /// The only session that it is for; none for all sessions of the user.
    pub session: Option<SessionId>,
    /// Its scopes, at most [`MAX_SCOPES`].
    pub scopes: Vec<Scope>,
    /// Its lifetime, 1 s to [`MAX_TOKEN_LIFETIME`].
    pub life: Duration,
}

/// A token, and the data that the registry stores about it.
#[derive(Clone, Debug)]
pub struct IssuedToken {
    /// The token, a bearer secret.
    pub token: String,
    /// Its id.
    pub id: Uuid,
    /// The name of the key that signed it.
    pub key_name: String,
    /// The start of its validity.
    pub not_before: SystemTime,
    /// When it expires.
    pub expires: SystemTime,
    /// When its grants expire.
    pub grants_expire: SystemTime,
}

/// Why a token cannot be issued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// The lifetime is out of range.
    #[error("the lifetime of a token must be 1 to {longest} seconds, not {0}", longest = MAX_TOKEN_LIFETIME.as_secs())]
    Lifetime(u64),
    /// There are no scopes, or too many.
    #[error("a token must have 1 to {MAX_SCOPES} scopes, not {0}")]
    Scopes(usize),
    /// A scope matches no request and no query.
    #[error("the scope {0} matches no request and no query{hint}; `memfleet contract list` lists them", hint = suggestion(.0))]
    UnmatchedScope(Scope),
    /// The claims cannot be encoded as JSON.
    #[error("the claims of the token cannot be encoded: {0}")]
    Encoding(String),
}

/// Issues tokens with its signing key and its grant key. `Debug` shows the names of the keys only.
#[derive(Clone, Debug)]
pub struct TokenIssuer {
    signing: PrivateKey,
    grants: GrantKey,
    audience: String,
}

impl TokenIssuer {
    /// An issuer for one deployment.
    pub fn new(signing: PrivateKey, grants: GrantKey, audience: &str) -> Self {
        Self { signing, grants, audience: audience.to_owned() }
    }

    /// The signing key.
    pub fn signing(&self) -> &PrivateKey {
        &self.signing
    }

    /// The deployment that the tokens are for, their `aud`.
    pub fn audience(&self) -> &str {
        &self.audience
    }

    /// Issues a token that is valid from `now` on. The caller must have checked that the service may have it.
    ///
    /// # Errors
    /// [`IssueError`] if a parameter is invalid.
    pub fn issue(&self, request: &TokenRequest, now: SystemTime) -> Result<IssuedToken, IssueError> {
        if !(1..=MAX_TOKEN_LIFETIME.as_secs()).contains(&request.life.as_secs()) {
            return Err(IssueError::Lifetime(request.life.as_secs()));
        }
        if !(1..=MAX_SCOPES).contains(&request.scopes.len()) {
            return Err(IssueError::Scopes(request.scopes.len()));
        }
        let (id, not_before) = (Uuid::now_v7(), now);
        let expires = not_before + Duration::from_secs(request.life.as_secs());
        let grants_expire = expires + GRANT_OUTLIVES_TOKEN;
        let seals = roles(&request.scopes)?
            .into_iter()
            .map(|role| {
                let grant = Grant {
                    user_id: request.user_id,
                    session: request.session.as_ref(),
                    service: &request.service,
                    role: &role,
                    id,
                    expires_at: grants_expire,
                };
                let seal = BASE64.encode(&self.grants.mac(&grant));
                (role, seal)
            })
            .collect::<BTreeMap<String, String>>();
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: self.audience.clone(),
            sub: request.service.to_string(),
            uid: request.user_id.get(),
            sid: request.session.as_ref().map(|session| session.as_str().to_owned()),
            scope: Scope::list(&request.scopes),
            jti: id,
            nbf: seconds(not_before),
            exp: seconds(expires),
            grant: GrantClaim { key: self.grants.name().to_owned(), exp: seconds(grants_expire), seals },
        };
        let token = self.sign(&claims).map_err(|error| IssueError::Encoding(error.to_string()))?;
        let key_name = self.signing.name().to_owned();
        Ok(IssuedToken { token, id, key_name, not_before, expires, grants_expire })
    }

    pub(crate) fn sign(&self, claims: &Claims) -> Result<String, serde_json::Error> {
        let header = Header { alg: ALGORITHM, typ: Some(TYPE), kid: Some(self.signing.name()) };
        let signed = format!(
            "{}.{}",
            BASE64.encode(&serde_json::to_vec(&header)?),
            BASE64.encode(&serde_json::to_vec(claims)?)
        );
        let signature = self.signing.sign(signed.as_bytes());
        Ok(format!("{signed}.{}", BASE64.encode(&signature)))
    }
}

/// The scope that was probably meant, for a message.
fn suggestion(scope: &Scope) -> String {
    let requests = REQUESTS.iter().map(|kind| format!("{}:{}", kind.noun, kind.verb));
    let queries = QUERIES.iter().map(|kind| format!("{}:{}", kind.noun, kind.verb));
    let others = [REVEAL, SYNC_PRIVATE].map(|(noun, verb)| format!("{noun}:{verb}"));
    let known: Vec<String> = requests.chain(queries).chain(others).collect();
    let near = contract::nearest(&scope.to_string(), known.iter().map(String::as_str));
    near.map_or_else(String::new, |near| format!(" (did you mean {near}?)"))
}

/// The database roles of the workers that process the requests and queries of these scopes.
fn roles(scopes: &[Scope]) -> Result<BTreeSet<String>, IssueError> {
    let mut roles = BTreeSet::new();
    for scope in scopes {
        let requests =
            REQUESTS.iter().filter(|kind| scope.allows(kind.noun, kind.verb)).map(|kind| kind.worker);
        let queries =
            QUERIES.iter().filter(|kind| scope.allows(kind.noun, kind.verb)).map(|_| MEMORY_READER.name);
        let reveals = scope.allows(REVEAL.0, REVEAL.1).then_some(MEMORY_READER.name);
        let widens = scope.allows(SYNC_PRIVATE.0, SYNC_PRIVATE.1).then_some(MEMORY_SYNC.name);
        let mut covered = requests.chain(queries).chain(reveals).chain(widens).peekable();
        if covered.peek().is_none() {
            return Err(IssueError::UnmatchedScope(scope.clone()));
        }
        roles.extend(covered.map(worker_role));
    }
    Ok(roles)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}
