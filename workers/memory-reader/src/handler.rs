//! Processes a query, from its token to its answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::Utc;
use contract::{Malformed, Query, QueryErrorCode, UserId, header, limit};
use keys::Keys;
use runtime::authorize::{Authorizer, QueryAuthorization};
use runtime::query::{IncomingQuery, QueryRefusal};
use runtime::readiness::probe;
use runtime::{Dependency, ProbeResults, trust_refresh};
use store::security::{self, Violation};
use store::{Fault, FaultKind, Pool};
use trust::Refusal;
use uuid::Uuid;

use crate::access_log::{AccessKind, AccessLog, LogEntry};
use crate::page;
use crate::queries;
use crate::query_context::{Deadline, QueryContext};
use crate::query_failure::QueryFailure;
use crate::refusal_log::{DeniedQuery, RefusalLog};
use crate::service_limits::ServiceLimits;
use crate::validated_query::Access;
use crate::vector_search::VectorSearch;

/// The maximum deadline of a query.
pub const MAX_DEADLINE: Duration = Duration::from_millis(limit::DEADLINE_MS_MAX);

/// Answers queries. It owns what they need: the authorizer, connections, keys and the vector store.
pub struct QueryHandler {
    authorizer: Arc<Authorizer>,
    limits: ServiceLimits,
    read: Pool,
    primary: Pool,
    keys: Keys,
    access_log: AccessLog,
    refusal_log: RefusalLog,
    vector_search: VectorSearch,
}

/// On whose behalf a query reads.
struct Caller {
    grant: Arc<str>,
    user: UserId,
}

impl std::fmt::Debug for QueryHandler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueryHandler").finish_non_exhaustive()
    }
}

impl QueryHandler {
    pub(crate) fn new(
        authorizer: Authorizer,
        limits: ServiceLimits,
        read: Pool,
        primary: Pool,
        keys: Keys,
        vector_search: VectorSearch,
    ) -> Self {
        let access_log = AccessLog::start(primary.clone());
        let refusal_log = RefusalLog::start(primary.clone());
        Self {
            authorizer: Arc::new(authorizer),
            limits,
            read,
            primary,
            keys,
            access_log,
            refusal_log,
            vector_search,
        }
    }

    pub(crate) fn authorizer(&self) -> Arc<Authorizer> {
        Arc::clone(&self.authorizer)
    }

    pub(crate) fn primary(&self) -> Pool {
        self.primary.clone()
    }

    pub(crate) fn key_store(&self) -> Pool {
        self.keys.pool().clone()
    }

    /// Probes the database that queries read. The vector store and the key store are not probed, since most queries
    /// need neither.
    pub(crate) async fn probe(&self) -> ProbeResults {
        vec![probe(Dependency::ReadDatabase, crate::check_read_database(&self.read)).await]
    }

    /// The answer to a query, as JSON.
    ///
    /// # Errors
    /// [`QueryRefusal`], which the sender receives.
    pub async fn handle(&self, incoming: IncomingQuery) -> Result<Bytes, QueryRefusal> {
        self.handle_timed(incoming).await.0
    }

    /// The answer to a query, and how long its transactions on the read database took.
    pub async fn handle_timed(&self, incoming: IncomingQuery) -> (Result<Bytes, QueryRefusal>, Duration) {
        let mut database_time = Duration::ZERO;
        let answer = self.process(&incoming, &mut database_time).await;
        (answer, database_time)
    }

    async fn process(
        &self,
        incoming: &IncomingQuery,
        database_time: &mut Duration,
    ) -> Result<Bytes, QueryRefusal> {
        let started = Instant::now();
        // First of all, so that no service takes more than its share whatever it sends.
        let permit = self.limits.try_acquire(&incoming.service).ok_or_else(rate_limited)?;
        let query_id = query_id(incoming)?;
        let deadline = Deadline { started, timeout: timeout(incoming)? };
        let query = Query::decode(&incoming.noun, &incoming.verb, &incoming.body)?;
        let session = query.session_id().map(str::to_owned);
        let session = session.as_deref();
        let scope = (incoming.noun.as_str(), incoming.verb.as_str());
        let caller = self.authorize(incoming, scope, session, query_id).await?;
        let query = queries::validate(query)?;
        let reveals = query.reveals();
        if reveals {
            self.authorize(incoming, contract::REVEAL, session, query_id).await?;
        }
        let mut context = QueryContext {
            user: caller.user,
            service: &incoming.service,
            deadline,
            vector_search: &self.vector_search,
            keys: &self.keys,
            grant: &caller.grant,
            pool: &self.read,
            permit: &permit,
            database_time: Duration::ZERO,
        };
        let response = query.respond(&mut context).await;
        *database_time = context.database_time;
        match response {
            Ok(response) => {
                self.log_accesses(incoming, &caller, query_id, reveals, response.accesses).await?;
                response.body
            }
            Err(QueryFailure::Refused(refusal)) => Err(refusal),
            Err(QueryFailure::Database(fault)) => {
                Err(self.database_refusal(incoming, caller.user, query_id, &fault, deadline).await)
            }
        }
    }

    /// Checks that the token allows this scope, and for this session if it is bound to one.
    async fn authorize(
        &self,
        incoming: &IncomingQuery,
        (noun, verb): (&str, &str),
        session: Option<&str>,
        query_id: Uuid,
    ) -> Result<Caller, QueryRefusal> {
        let IncomingQuery { headers, service, .. } = incoming;
        let authorize =
            || self.authorizer.authorize_query(headers.as_ref(), service, noun, verb, session, Utc::now());
        let mut authorization = authorize();
        // The key of the token or its service may have been registered since the last refresh.
        if let QueryAuthorization::Denied(refusal, _) = authorization
            && Authorizer::may_be_stale(refusal)
        {
            let refreshed = trust_refresh::refresh(&self.authorizer, &self.primary).await;
            refreshed.map_err(|_| {
                QueryRefusal::unavailable("the registry of services is unreachable; retry later")
            })?;
            authorization = authorize();
        }
        match authorization {
            QueryAuthorization::Authorized(grant, user) => Ok(Caller { grant, user }),
            QueryAuthorization::RateLimited => Err(rate_limited()),
            QueryAuthorization::Denied(refusal, user) => {
                Err(self.deny(incoming, refusal, user, query_id).await)
            }
        }
    }

    /// Records a denied query as a security violation. The sender does not learn the reason.
    async fn deny(
        &self,
        incoming: &IncomingQuery,
        refusal: Refusal,
        user: Option<UserId>,
        query_id: Uuid,
    ) -> QueryRefusal {
        let service = incoming.service.clone();
        match self.refusal_log.record(DeniedQuery { refusal, user, service, query_id }).await {
            Ok(()) => denied(),
            Err(problem) => {
                tracing::warn!(worker = crate::NAME, problem, "cannot record a denied query");
                QueryRefusal::unavailable("the database is unreachable; retry later")
            }
        }
    }

    /// Writes what was read to the access log. The answer must not be sent if this fails.
    async fn log_accesses(
        &self,
        incoming: &IncomingQuery,
        caller: &Caller,
        query_id: Uuid,
        reveals: bool,
        accesses: Vec<Access>,
    ) -> Result<(), QueryRefusal> {
        let entries = accesses.into_iter().map(|Access { kind, object, rows }| LogEntry {
            grant: Arc::clone(&caller.grant),
            user: caller.user,
            service: incoming.service.clone(),
            query_id,
            kind: if reveals && kind == AccessKind::Read { AccessKind::Reveal } else { kind },
            object,
            rows,
        });
        self.access_log.log(entries.collect()).await.map_err(|problem| {
            tracing::warn!(worker = crate::NAME, problem, "cannot write the access log; answer withheld");
            QueryRefusal::unavailable("the access log cannot be written; retry later")
        })
    }

    /// What the sender receives after a failed transaction. A denial by the database is recorded as a security
    /// violation.
    async fn database_refusal(
        &self,
        incoming: &IncomingQuery,
        user: UserId,
        query_id: Uuid,
        fault: &Fault,
        deadline: Deadline,
    ) -> QueryRefusal {
        if deadline.has_passed() && matches!(fault.kind, FaultKind::Transient | FaultKind::Blocked) {
            let message = format!("there was no answer within {} ms", deadline.timeout.as_millis());
            return QueryRefusal::new(QueryErrorCode::Deadline, &message, None);
        }
        if let Some(refusal) = page::refusal_of(fault) {
            return refusal;
        }
        match fault.kind {
            FaultKind::Denied => {
                let violation = Violation {
                    message: &fault.reason,
                    user_id: user.get(),
                    service: incoming.service.as_str(),
                    request_id: query_id,
                };
                let recorded = async {
                    security::record_violation(&mut *store::acquire(&self.primary).await?, &violation).await
                };
                if let Err(problem) = recorded.await {
                    tracing::warn!(worker = crate::NAME, %problem, "cannot record a security violation");
                }
                denied()
            }
            FaultKind::Erased => QueryRefusal::new(QueryErrorCode::Denied, "the user was erased", None),
            FaultKind::Fenced => QueryRefusal::new(QueryErrorCode::Denied, "the user is being erased", None),
            FaultKind::Restricted { .. } => QueryRefusal::new(QueryErrorCode::Denied, RESTRICTED, None),
            FaultKind::Transient
            | FaultKind::Blocked
            | FaultKind::Unavailable
            | FaultKind::ConnectionLost => {
                tracing::warn!(worker = crate::NAME, %fault, "query failed");
                QueryRefusal::unavailable("the database is unavailable; retry later")
            }
            FaultKind::Permanent | FaultKind::MissingPrerequisite => {
                tracing::error!(worker = crate::NAME, %fault, "query failed");
                QueryRefusal::internal()
            }
        }
    }
}

/// What the sender receives while the user's data are restricted.
const RESTRICTED: &str = "the processing of the user's data is restricted";

fn denied() -> QueryRefusal {
    QueryRefusal::new(QueryErrorCode::Denied, "the token does not allow this query", None)
}

fn rate_limited() -> QueryRefusal {
    QueryRefusal::new(QueryErrorCode::TooOften, "the service sends too many queries; retry later", None)
}

/// The id of the query in the audit trail: the one in its header, or a new one.
fn query_id(incoming: &IncomingQuery) -> Result<Uuid, Malformed> {
    match header_value(incoming, header::MESSAGE_ID) {
        None => Ok(Uuid::now_v7()),
        Some(text) => Uuid::try_parse(text)
            .map_err(|error| Malformed::new(header::MESSAGE_ID, format!("is not a UUID: {error}"))),
    }
}

fn timeout(incoming: &IncomingQuery) -> Result<Duration, Malformed> {
    let (min, max) = (limit::DEADLINE_MS_MIN, limit::DEADLINE_MS_MAX);
    let Some(text) = header_value(incoming, header::DEADLINE_MS) else {
        return Ok(Duration::from_millis(limit::DEADLINE_MS_DEFAULT));
    };
    let timeout = text.parse().ok().filter(|ms| (min..=max).contains(ms)).map(Duration::from_millis);
    timeout.ok_or_else(|| {
        let problem = format!("must be a number of milliseconds from {min} to {max}");
        Malformed::new(header::DEADLINE_MS, problem)
    })
}

fn header_value<'a>(incoming: &'a IncomingQuery, name: &str) -> Option<&'a str> {
    incoming.headers.as_ref()?.get(name).map(async_nats::HeaderValue::as_str)
}
