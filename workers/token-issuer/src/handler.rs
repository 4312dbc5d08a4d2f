//! Processes a token query, from its body to the token.

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
const DEFAULT_LIFE_S: u64 = 900;
/// The number of rate limiters above which those of idle services are dropped.
const MAX_RATE_LIMITERS: usize = 1_000;
/// The maximum rate at which a replica issues tokens to one service.
const TOKENS_PER_SECOND: NonZeroU32 = NonZeroU32::MIN.saturating_add(199);

/// Answers token queries.
pub(crate) struct QueryHandler {
    issuer: TokenIssuer,
    pool: Pool,
    rate_limiters: DefaultKeyedRateLimiter<Service>,
}

impl QueryHandler {
    pub(crate) fn new(issuer: TokenIssuer, pool: Pool) -> Self {
        Self { issuer, pool, rate_limiters: RateLimiter::keyed(Quota::per_second(TOKENS_PER_SECOND)) }
    }

    /// The answer to a query, as JSON.
    pub(crate) async fn handle(&self, incoming: IncomingQuery) -> Result<Bytes, QueryRefusal> {
        let IncomingQuery { service, body, .. } = incoming;
        // Decoding comes first, so that malformed queries create no rate limiters.
        let request = decode(service, &body)?;
        if self.rate_limiters.len() > MAX_RATE_LIMITERS {
            self.rate_limiters.retain_recent();
        }
        if self.rate_limiters.check_key(&request.service).is_err() {
            return Err(QueryRefusal::new(
                QueryErrorCode::TooOften,
                "the service requests too many tokens; retry in a second",
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

fn decode(service: Service, body: &[u8]) -> Result<TokenRequest, QueryRefusal> {
    let malformed = |message: String, field| QueryRefusal::new(QueryErrorCode::Malformed, &message, field);
    if body.len() > QUERY_BYTES {
        return Err(malformed(format!("the query has more than {QUERY_BYTES} bytes"), None));
    }
    let query: TokenQuery = serde_json::from_slice(body)
        .map_err(|error| malformed(format!("the query cannot be read: {error}"), None))?;
    let scopes: Vec<Scope> = query
        .scopes
        .iter()
        .map(|scope| scope.parse())
        .collect::<Result<_, trust::ScopeError>>()
        .map_err(|error| malformed(error.to_string(), Some("scopes")))?;
    let life = Duration::from_secs(query.life_s.unwrap_or(DEFAULT_LIFE_S));
    Ok(TokenRequest { service, user_id: query.user_id, session: query.session_id, scopes, life })
}

fn refusal(refused: NotIssued) -> QueryRefusal {
    match refused {
        NotIssued::UnknownService(_) => QueryRefusal::new(QueryErrorCode::Denied, &refused.to_string(), None),
        NotIssued::Scope { .. } => {
            QueryRefusal::new(QueryErrorCode::Denied, &refused.to_string(), Some("scopes"))
        }
        NotIssued::Issue(error) => {
            let field = match error {
                trust::IssueError::Lifetime(_) => Some("life_s"),
                trust::IssueError::Scopes(_) | trust::IssueError::UnmatchedScope(_) => Some("scopes"),
                trust::IssueError::Encoding(_) => None,
            };
            QueryRefusal::new(QueryErrorCode::Malformed, &error.to_string(), field)
        }
        NotIssued::Registry(fault) => {
            tracing::warn!(worker = crate::NAME, %fault, "cannot register a token");
            unavailable()
        }
    }
}

fn unavailable() -> QueryRefusal {
    QueryRefusal::unavailable("the registry of services is unreachable; retry later")
}
