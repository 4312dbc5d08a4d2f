//! Issues service tokens, with the grants in them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use contract::{MEMORY_READER, QUERIES, REQUESTS, REVEAL, Service, SessionId, UserId, role_of};
use data_encoding::BASE64URL_NOPAD as BASE64;
use uuid::Uuid;

use crate::grant::{Grant, GrantKey};
use crate::key::PrivateKey;
use crate::scope::{SCOPES, Scope};
use crate::token::{ALGORITHM, Claims, GrantClaim, Header, ISSUER, LONGEST_LIFE, TYPE};

/// How long after its token a grant is still good: longer than a message stays in its stream, which is seven days. A message
/// is judged by when it was stored, and written when its turn comes.
pub const GRANT_OUTLIVES_TOKEN: Duration = Duration::from_secs(8 * 86_400);

/// What a token shall be.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    /// For which service.
    pub service: Service,
    /// For which user it may act.
    pub user_id: UserId,
    /// For one session only.
    pub session: Option<SessionId>,
    /// What it allows.
    pub scopes: Vec<Scope>,
    /// How long it is good, 1 s to [`LONGEST_LIFE`].
    pub life: Duration,
}

/// A token, and what the registry keeps of it.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The token itself. Whoever holds it may do what it allows.
    pub token: String,
    /// Its id.
    pub id: Uuid,
    /// The key that signed it.
    pub key_name: String,
    /// When it becomes good.
    pub not_before: SystemTime,
    /// When it ends.
    pub expires: SystemTime,
    /// When its grants end.
    pub grants_expire: SystemTime,
}

/// A token that is not issued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// Its life is out of bounds.
    #[error("a token lives for 1 to {longest} seconds, not {0}", longest = LONGEST_LIFE.as_secs())]
    Life(u64),
    /// It would allow nothing, or too many things.
    #[error("a token has 1 to {SCOPES} scopes, not {0}")]
    Scopes(usize),
    /// A scope names no request and no query that there is.
    #[error("the scope {0} covers no request and no query; `memfleet contract list` shows them")]
    Nothing(Scope),
    /// It cannot be written as JSON.
    #[error("the token cannot be written: {0}")]
    Unwritable(String),
}

/// Holds the keys that make tokens. Its `Debug` shows their names only.
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

    /// The key that signs.
    pub fn signing(&self) -> &PrivateKey {
        &self.signing
    }

    /// The deployment that its tokens are for.
    pub fn audience(&self) -> &str {
        &self.audience
    }

    /// Issues a token that is good from now on.
    ///
    /// # Errors
    /// [`IssueError`] if there can be no such token. Whether the service may have it, its caller must know.
    pub fn issue(&self, request: &TokenRequest, now: SystemTime) -> Result<Issued, IssueError> {
        if !(1..=LONGEST_LIFE.as_secs()).contains(&request.life.as_secs()) {
            return Err(IssueError::Life(request.life.as_secs()));
        }
        if !(1..=SCOPES).contains(&request.scopes.len()) {
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
        let token = self.sign(&claims).map_err(|error| IssueError::Unwritable(error.to_string()))?;
        let key_name = self.signing.name().to_owned();
        Ok(Issued { token, id, key_name, not_before, expires, grants_expire })
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

/// The database roles of the workers that take what the scopes allow.
fn roles(scopes: &[Scope]) -> Result<BTreeSet<String>, IssueError> {
    let mut roles = BTreeSet::new();
    for scope in scopes {
        let requests =
            REQUESTS.iter().filter(|kind| scope.allows(kind.noun, kind.verb)).map(|kind| kind.worker);
        let queries =
            QUERIES.iter().filter(|kind| scope.allows(kind.noun, kind.verb)).map(|_| MEMORY_READER.name);
        let reveals = scope.allows(REVEAL.0, REVEAL.1).then_some(MEMORY_READER.name);
        let mut covered = requests.chain(queries).chain(reveals).peekable();
        if covered.peek().is_none() {
            return Err(IssueError::Nothing(scope.clone()));
        }
        roles.extend(covered.map(role_of));
    }
    Ok(roles)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}
