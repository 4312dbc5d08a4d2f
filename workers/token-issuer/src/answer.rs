//! One query and its answer.

use std::num::NonZeroU32;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use contract::{QUERY_BYTES, QueryErrorCode, Service, TokenAnswer, TokenQuery};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use runtime::query::{IncomingQuery, QueryRefusal};
use store::Pool;
use store::registry::{self, NotIssued};
use trust::{Scope, TokenIssuer, TokenRequest};

/// The default lifetime of a token, in seconds.
const LIFE_S: u64 = 900;
/// The number of rate limiters above which those of inactive services are removed.
const KEPT: usize = 1_000;
/// The most tokens per second that a replica issues to a service.
const TOKENS_PER_SECOND: NonZeroU32 = NonZeroU32::MIN.saturating_add(199);

/// Answers queries.
pub(crate) struct Desk {
    issuer: TokenIssuer,
    pool: Pool,
    rates: DefaultKeyedRateLimiter<Service>,
}

impl Desk {
    pub(crate) fn new(issuer: TokenIssuer, pool: Pool) -> Self {
        Self { issuer, pool, rates: RateLimiter::keyed(Quota::per_second(TOKENS_PER_SECOND)) }
    }

    /// The answer to a query.
    pub(crate) async fn answer(&self, asked: IncomingQuery) -> Result<Bytes, QueryRefusal> {
        let IncomingQuery { service, body, .. } = asked;
        // A decoded query comes first, so that malformed queries create no rate limiters.
        let request = read(service, &body)?;
        if self.rates.len() > KEPT {
            self.rates.retain_recent();
        }
        if self.rates.check_key(&request.service).is_err() {
            return Err(QueryRefusal::told(
                QueryErrorCode::TooOften,
                "too many tokens were asked for; ask again in a second",
                None,
            ));
        }
        let mut connection = store::acquire(&self.pool).await.map_err(|_| unavailable())?;
        let now = SystemTime::now();
        let (request, issued) =
            registry::issue(&mut connection, &self.issuer, request, now).await.map_err(refusal)?;
        let expires = issued.expires.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let answer = TokenAnswer {
            token: issued.token,
            token_id: issued.id,
            scopes: request.scopes.iter().map(ToString::to_string).collect(),
            expires: expires.as_secs(),
        };
        serde_json::to_vec(&answer).map(Bytes::from).map_err(|_| unavailable())
    }
}

fn read(service: Service, body: &[u8]) -> Result<TokenRequest, QueryRefusal> {
    let malformed = |message: String, field| QueryRefusal::told(QueryErrorCode::Malformed, &message, field);
    if body.len() > QUERY_BYTES {
        return Err(malformed(format!("the query has more than {QUERY_BYTES} bytes"), None));
    }
    let ask: TokenQuery = serde_json::from_slice(body)
        .map_err(|error| malformed(format!("the query cannot be read: {error}"), None))?;
    let scopes: Vec<Scope> = ask
        .scopes
        .iter()
        .map(|scope| scope.parse())
        .collect::<Result<_, trust::ScopeError>>()
        .map_err(|error| malformed(error.to_string(), Some("scopes")))?;
    let life = Duration::from_secs(ask.life_s.unwrap_or(LIFE_S));
    Ok(TokenRequest { service, user_id: ask.user_id, session: ask.session_id, scopes, life })
}

fn refusal(refused: NotIssued) -> QueryRefusal {
    match refused {
        NotIssued::UnknownService(_) => {
            QueryRefusal::told(QueryErrorCode::Denied, &refused.to_string(), None)
        }
        NotIssued::Scope { .. } => {
            QueryRefusal::told(QueryErrorCode::Denied, &refused.to_string(), Some("scopes"))
        }
        NotIssued::Issue(error) => {
            let field = match error {
                trust::IssueError::Lifetime(_) => Some("life_s"),
                trust::IssueError::Scopes(_) | trust::IssueError::UnmatchedScope(_) => Some("scopes"),
                trust::IssueError::Encoding(_) => None,
            };
            QueryRefusal::told(QueryErrorCode::Malformed, &error.to_string(), field)
        }
        NotIssued::Registry(fault) => {
            tracing::warn!(worker = crate::NAME, %fault, "a token could not be registered");
            unavailable()
        }
    }
}

fn unavailable() -> QueryRefusal {
    QueryRefusal::unavailable("the registry of services cannot be reached; ask again")
}
