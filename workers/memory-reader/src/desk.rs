//! One query and its answer.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::Utc;
use contract::{Malformed, Query, QueryErrorCode, UserId, header, limit};
use diesel_async::AsyncConnection;
use keys::Keys;
use runtime::authorize::{Admission, Authorizer};
use runtime::query::{IncomingQuery, QueryRefusal};
use runtime::readiness::probe;
use runtime::{Dependency, ProbeResults, trust_refresh};
use store::registry::{self, RefusedToken};
use store::security::{self, Violation};
use store::{Fault, FaultKind, Pool};
use tokio::time::timeout;
use trust::Refusal;
use uuid::Uuid;

use crate::access::{Access, AccessLog, VECTOR_SEARCH};
use crate::answer::{self, Found, Wanted};
use crate::searcher::Searcher;
use crate::share::{Shares, Turn};

/// How long it may take at most.
pub const LONGEST_DEADLINE: Duration = Duration::from_millis(limit::DEADLINE_MS_MOST);
/// How much later than the deadline the database itself should have ended a query. Then it is told to.
const GRACE: Duration = Duration::from_millis(50);

/// What is needed to answer.
pub struct Desk {
    authorizer: Arc<Authorizer>,
    shares: Shares,
    read: Pool,
    primary: Pool,
    keys: Keys,
    log: AccessLog,
    searcher: Searcher,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

impl Desk {
    pub(crate) fn new(
        authorizer: Authorizer,
        shares: Shares,
        read: Pool,
        primary: Pool,
        keys: Keys,
        searcher: Searcher,
    ) -> Self {
        let log = AccessLog::start(primary.clone());
        Self { authorizer: Arc::new(authorizer), shares, read, primary, keys, log, searcher }
    }

    pub(crate) fn authorizer(&self) -> Arc<Authorizer> {
        Arc::clone(&self.authorizer)
    }

    pub(crate) fn primary(&self) -> Pool {
        self.primary.clone()
    }

    /// What is there of what answers need. Without a vector store or a key store all but some are answered: they are not among it.
    pub(crate) async fn look_around(&self) -> ProbeResults {
        vec![probe(Dependency::ReadDatabase, crate::readable(&self.read)).await]
    }

    /// The answer to a query, as JSON.
    ///
    /// # Errors
    /// [`QueryRefusal`], which says what the asker is told.
    pub async fn answer(&self, asked: IncomingQuery) -> Result<Bytes, QueryRefusal> {
        self.answer_timed(asked).await.0
    }

    /// The same, and how much of it was reading from the database.
    pub async fn answer_timed(&self, asked: IncomingQuery) -> (Result<Bytes, QueryRefusal>, Duration) {
        let mut read = Duration::ZERO;
        let answer = self.go_through(asked, &mut read).await;
        (answer, read)
    }

    async fn go_through(&self, asked: IncomingQuery, read: &mut Duration) -> Result<Bytes, QueryRefusal> {
        let since = Instant::now();
        let query_id = query_id(&asked)?;
        let deadline = deadline(&asked)?;
        let query = Query::decode(&asked.noun, &asked.verb, &asked.body)?;
        let (grant, user) = self.admit(&asked, &query, query_id).await?;
        let mut wanted = Wanted::new(query, asked.service.as_str())?;
        if wanted.reveals() {
            self.admit_reveal(&asked, &wanted, query_id).await?;
        }
        let turn = self.shares.take(&asked.service).ok_or_else(too_often)?;
        let reading = Instant::now();
        if let Wanted::Ground(_) = &wanted {
            let looked = self.look(&turn, &grant, user, &wanted, deadline).await;
            let found = match looked {
                Ok(found) => found,
                Err(fault) => {
                    return Err(self.judge(&asked, user, query_id, &fault, since, deadline).await);
                }
            };
            wanted = self.searcher.look(wanted, found, deadline.saturating_sub(since.elapsed())).await?;
        }
        let left = deadline.saturating_sub(since.elapsed());
        let looked = self.look(&turn, &grant, user, &wanted, left).await;
        *read = reading.elapsed();
        let found = match looked {
            Ok(found) => found,
            Err(fault) => return Err(self.judge(&asked, user, query_id, &fault, since, deadline).await),
        };
        let found = self.reveal(found).await?;
        self.note(&asked, &grant, (user, query_id), &wanted, &found).await?;
        found.into_body()
    }

    /// Whose memory it may be about.
    async fn admit(
        &self,
        asked: &IncomingQuery,
        query: &Query,
        query_id: Uuid,
    ) -> Result<(Arc<str>, UserId), QueryRefusal> {
        self.admit_as(asked, (&asked.noun, &asked.verb), query.session_id(), query_id).await
    }

    /// Whether the token allows to decrypt, which no scope for a query does.
    async fn admit_reveal(
        &self,
        asked: &IncomingQuery,
        wanted: &Wanted,
        query_id: Uuid,
    ) -> Result<(), QueryRefusal> {
        self.admit_as(asked, contract::REVEAL, wanted.session_id(), query_id).await.map(drop)
    }

    async fn admit_as(
        &self,
        asked: &IncomingQuery,
        (noun, verb): (&str, &str),
        session: Option<&str>,
        query_id: Uuid,
    ) -> Result<(Arc<str>, UserId), QueryRefusal> {
        let headers = asked.headers.as_ref();
        let judge = || self.authorizer.admit_query(headers, &asked.service, noun, verb, session, Utc::now());
        let mut admission = judge();
        // A token may have been made a moment ago, under a key or for a service that is new.
        if let Admission::Denied(refusal, _) = admission
            && Authorizer::may_be_stale(refusal)
        {
            let away = |_| QueryRefusal::unavailable("the registry of services cannot be reached; ask again");
            trust_refresh::refresh(&self.authorizer, &self.primary).await.map_err(away)?;
            admission = judge();
        }
        match admission {
            Admission::Granted(grant, user) => Ok((grant, user)),
            Admission::RateLimited => Err(too_often()),
            Admission::Denied(refusal, user) => Err(self.deny(asked, refusal, user, query_id).await),
        }
    }

    /// Records a refusal, which must not be without a trace. The asker learns no more than that.
    async fn deny(
        &self,
        asked: &IncomingQuery,
        refusal: Refusal,
        user: Option<UserId>,
        query_id: Uuid,
    ) -> QueryRefusal {
        let reason = refusal.to_string();
        let refused = RefusedToken {
            kind: refusal.as_str(),
            reason: &reason,
            user_id: user,
            service: &asked.service,
            request_id: query_id,
        };
        let recorded =
            async { registry::record_refused(&mut *store::acquire(&self.primary).await?, &[refused]).await };
        match recorded.await {
            Ok(()) => QueryRefusal::told(QueryErrorCode::Denied, "the token does not allow this query", None),
            Err(fault) => {
                tracing::warn!(worker = crate::NAME, %fault, "a refusal cannot be recorded");
                QueryRefusal::unavailable("the database cannot be reached; ask again")
            }
        }
    }

    /// Reads, in a transaction under the user's context. PostgreSQL ends a statement at the deadline; and what comes to it in
    /// several statements is ended by a request to cancel it.
    async fn look(
        &self,
        turn: &Turn,
        grant: &str,
        user: UserId,
        wanted: &Wanted,
        deadline: Duration,
    ) -> Result<Found, Fault> {
        let late = |reason: &str| Fault { kind: FaultKind::Transient, reason: reason.to_owned() };
        let since = Instant::now();
        let acquired =
            timeout(deadline, async { (turn.read().await, store::acquire(&self.read).await) }).await;
        let (_reading, acquired) = acquired.map_err(|_| late("every connection for reading is busy"))?;
        let mut connection = acquired?;
        // Zero would be no bound at all.
        let left = deadline.saturating_sub(since.elapsed()).max(Duration::from_millis(1));
        let cancel = connection.cancel_token();
        let reading = connection.transaction(async |connection| {
            security::open_context_for(connection, grant, left, wanted.plans()).await?;
            answer::find(connection, user, wanted).await
        });
        let found: Result<Found, Fault> = match timeout(left + GRACE, reading).await {
            Ok(found) => found,
            Err(_) => {
                // The connection is in the middle of something, and goes.
                store::discard(connection);
                let cancelled = timeout(deadline, store::cancel(&cancel)).await;
                tracing::debug!(
                    worker = crate::NAME,
                    cancelled = matches!(cancelled, Ok(Ok(()))),
                    "ended a query"
                );
                return Err(late("the query took too long"));
            }
        };
        if found
            .as_ref()
            .is_err_and(|fault| matches!(fault.kind, FaultKind::Unavailable | FaultKind::ConnectionLost))
        {
            store::discard(connection);
        }
        found
    }

    /// Notes what was read. It is told only after that.
    async fn note(
        &self,
        asked: &IncomingQuery,
        grant: &Arc<str>,
        (user, query_id): (UserId, Uuid),
        wanted: &Wanted,
        found: &Found,
    ) -> Result<(), QueryRefusal> {
        let kind = if wanted.reveals() { "reveal" } else { "read" };
        let tables = found.reads(wanted).into_iter().map(|(table, rows)| (kind, Cow::Borrowed(table), rows));
        let accesses = tables.chain(searched(wanted)).map(|(kind, object, rows)| {
            let (grant, service) = (Arc::clone(grant), asked.service.clone());
            Access { grant, user, service, query_id, kind, object, rows }
        });
        self.log.note(accesses.collect()).await.map_err(|problem| {
            tracing::warn!(worker = crate::NAME, problem, "what was read cannot be noted; it is not told");
            QueryRefusal::unavailable("the access cannot be noted in the audit trail; ask again")
        })
    }

    /// What the asker is told of a fault.
    async fn judge(
        &self,
        asked: &IncomingQuery,
        user: UserId,
        query_id: Uuid,
        fault: &Fault,
        since: Instant,
        deadline: Duration,
    ) -> QueryRefusal {
        if since.elapsed() >= deadline && fault.kind == FaultKind::Transient {
            let message = format!("there was no answer within {} ms", deadline.as_millis());
            return QueryRefusal::told(QueryErrorCode::Deadline, &message, None);
        }
        match fault.kind {
            FaultKind::Denied => {
                let violation = Violation {
                    message: &fault.reason,
                    user_id: user.get(),
                    service: asked.service.as_str(),
                    request_id: query_id,
                };
                let recorded = async {
                    security::record_violation(&mut *store::acquire(&self.primary).await?, &violation).await
                };
                if let Err(problem) = recorded.await {
                    tracing::warn!(worker = crate::NAME, %problem, "a violation cannot be recorded");
                }
                QueryRefusal::told(QueryErrorCode::Denied, "the token does not allow this query", None)
            }
            FaultKind::Transient | FaultKind::Unavailable | FaultKind::ConnectionLost => {
                tracing::warn!(worker = crate::NAME, %fault, "a query cannot be answered");
                QueryRefusal::unavailable("the database cannot answer now; ask again")
            }
            FaultKind::Permanent | FaultKind::MissingPrerequisite => {
                tracing::error!(worker = crate::NAME, %fault, "a query cannot be answered");
                QueryRefusal::told(QueryErrorCode::Failed, "the query cannot be answered", None)
            }
        }
    }

    /// Decrypts what the answer shall tell.
    async fn reveal(&self, mut found: Found) -> Result<Found, QueryRefusal> {
        let encrypted = found.take_encrypted();
        if !encrypted.is_empty() {
            let plain = self.keys.reveal(&encrypted).await.map_err(|error| {
                tracing::warn!(worker = crate::NAME, %error, "secrets cannot be revealed");
                QueryRefusal::unavailable("the key store cannot be reached; ask again, or without reveal")
            })?;
            for (field, plain) in encrypted.iter().zip(plain) {
                let plain = plain.map_err(|reason| {
                    tracing::error!(worker = crate::NAME, table = field.table, row = %field.row, reason, "a secret cannot be revealed");
                    QueryRefusal::told(QueryErrorCode::Failed, "a value cannot be decrypted; ask without reveal", None)
                })?;
                found.put_back(field, &plain);
            }
        }
        Ok(found)
    }
}

/// The collection that was searched, and how many memories of the user it told of.
fn searched(wanted: &Wanted) -> Option<(&'static str, Cow<'static, str>, usize)> {
    let Wanted::Search(search) = wanted else { return None };
    let collection = search.collection.as_ref()?;
    Some((VECTOR_SEARCH, Cow::Owned(collection.collection_name.clone()), search.by_meaning.len()))
}

fn too_often() -> QueryRefusal {
    QueryRefusal::told(QueryErrorCode::TooOften, "the service asks too often; ask again later", None)
}

/// The id under which the query is found in the audit trail: the asker's, or one of its own.
fn query_id(asked: &IncomingQuery) -> Result<Uuid, Malformed> {
    match value(asked, header::MESSAGE_ID) {
        None => Ok(Uuid::now_v7()),
        Some(text) => Uuid::try_parse(text)
            .map_err(|error| Malformed::new(header::MESSAGE_ID, format!("is no UUID: {error}"))),
    }
}

fn deadline(asked: &IncomingQuery) -> Result<Duration, Malformed> {
    let (least, most) = (limit::DEADLINE_MS_LEAST, limit::DEADLINE_MS_MOST);
    let Some(text) = value(asked, header::DEADLINE_MS) else {
        return Ok(Duration::from_millis(limit::DEADLINE_MS_USUAL));
    };
    let asked = text.parse().ok().filter(|asked| (least..=most).contains(asked)).map(Duration::from_millis);
    asked.ok_or_else(|| {
        Malformed::new(
            header::DEADLINE_MS,
            format!("must be a number of milliseconds from {least} to {most}"),
        )
    })
}

fn value<'a>(asked: &'a IncomingQuery, name: &str) -> Option<&'a str> {
    asked.headers.as_ref()?.get(name).map(async_nats::HeaderValue::as_str)
}
