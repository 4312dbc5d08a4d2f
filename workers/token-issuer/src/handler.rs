//! Processes a token query, from its body to the token.

use std::num::NonZeroU32;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use contract::{QUERY_BYTES, QueryErrorCode, Service, TokenAnswer, TokenQuery};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use runtime::query::{IncomingQuery, QueryRefusal};
use store::registry::{self, NotIssued};
use store::{Fault, FaultKind, Pool};
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
        if !is_within_rate(&self.rate_limiters, &request.service) {
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

fn is_within_rate(limiters: &DefaultKeyedRateLimiter<Service>, service: &Service) -> bool {
    if limiters.len() > MAX_RATE_LIMITERS {
        limiters.retain_recent();
    }
    limiters.check_key(service).is_ok()
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
        NotIssued::Registry(fault) if fault.kind == FaultKind::Erased => {
            QueryRefusal::new(QueryErrorCode::Denied, "the user was erased", Some("user_id"))
        }
        NotIssued::Registry(fault) if fault.kind == FaultKind::Fenced => {
            QueryRefusal::new(QueryErrorCode::Denied, "the user is being erased", Some("user_id"))
        }
        NotIssued::Registry(Fault { kind: FaultKind::Restricted { .. }, .. }) => QueryRefusal::new(
            QueryErrorCode::Denied,
            "the processing of the user's data is restricted",
            Some("user_id"),
        ),
        NotIssued::Registry(fault) => {
            tracing::warn!(worker = crate::NAME, %fault, "cannot register a token");
            unavailable()
        }
    }
}

fn unavailable() -> QueryRefusal {
    QueryRefusal::unavailable("the registry of services is unreachable; retry later")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_limited_in_size_before_it_is_read() {
        let of = |size: usize| {
            let mut body = br#"{"user_id":1,"scopes":["context:put"]}"#.to_vec();
            body.resize(size, b' ');
            decode("chat".parse().unwrap(), &body).map_err(|refused| format!("{refused:?}"))
        };
        let request = of(QUERY_BYTES).unwrap();
        assert_eq!((request.user_id.get(), request.life), (1, Duration::from_secs(DEFAULT_LIFE_S)));
        let refused = of(QUERY_BYTES + 1).unwrap_err();
        assert!(refused.contains(&format!("more than {QUERY_BYTES} bytes")), "{refused}");
    }

    #[test]
    fn the_rate_of_idle_services_is_forgotten() {
        let limiters = RateLimiter::keyed(Quota::per_second(TOKENS_PER_SECOND));
        for number in 0..MAX_RATE_LIMITERS + 2 {
            assert!(limiters.check_key(&format!("s{number}").parse().unwrap()).is_ok());
        }
        // Each of them is idle after some milliseconds.
        let (busy, began) = ("busy".parse().unwrap(), std::time::Instant::now());
        while limiters.len() > MAX_RATE_LIMITERS {
            is_within_rate(&limiters, &busy);
            assert!(began.elapsed() < Duration::from_secs(20), "{} are kept", limiters.len());
        }
        assert!((0..10_000).any(|_| !is_within_rate(&limiters, &busy)), "there is no limit");
    }
}
