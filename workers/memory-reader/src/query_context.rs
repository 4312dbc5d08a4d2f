//! What a query may use while it is answered.

use std::time::{Duration, Instant};

use contract::{Service, UserId};
use diesel_async::AsyncConnection;
use keys::Keys;
use store::security::{self, PlanCacheMode};
use store::{Connection, Fault, FaultKind, Pool};
use tokio::time::timeout;

use crate::service_limits::Permit;
use crate::vector_search::VectorSearch;

/// How long after the deadline a transaction that PostgreSQL has not ended itself is cancelled.
const CANCEL_GRACE: Duration = Duration::from_millis(50);

/// When a query must be answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    pub(crate) started: Instant,
    pub(crate) timeout: Duration,
}

impl Deadline {
    pub(crate) fn remaining(&self) -> Duration {
        self.timeout.saturating_sub(self.started.elapsed())
    }

    pub(crate) fn has_passed(&self) -> bool {
        self.started.elapsed() >= self.timeout
    }
}

/// What a query may use while it is answered: the data of its user, until its deadline.
pub(crate) struct QueryContext<'a> {
    /// The user of its token.
    pub(crate) user: UserId,
    /// The service that sent it.
    pub(crate) service: &'a Service,
    pub(crate) deadline: Deadline,
    pub(crate) vector_search: &'a VectorSearch,
    pub(crate) keys: &'a Keys,
    /// The grant of its token, which opens the security context of the user.
    pub(crate) grant: &'a str,
    pub(crate) pool: &'a Pool,
    pub(crate) permit: &'a Permit,
    /// The time spent in [`QueryContext::read`].
    pub(crate) database_time: Duration,
}

/// Statements that run on a connection and return `T`.
pub(crate) trait Statements<'c, T>: FnOnce(&'c mut Connection) -> Self::Running + Send {
    type Running: Future<Output = Result<T, Fault>> + Send;
}

impl<'c, T, F, R> Statements<'c, T> for F
where
    F: FnOnce(&'c mut Connection) -> R + Send,
    R: Future<Output = Result<T, Fault>> + Send,
{
    type Running = R;
}

impl QueryContext<'_> {
    /// Whether the token is for one session: `v1|key|user|session|…`. The grant has been made from a token that was verified.
    pub(crate) fn is_for_one_session(&self) -> bool {
        self.grant.split('|').nth(3).is_some_and(|session| !session.is_empty())
    }

    /// Runs statements in a transaction that sees the rows of the user only. PostgreSQL ends each statement at the
    /// deadline; a transaction that exceeds it by several statements is cancelled.
    ///
    /// # Errors
    /// A [`Fault`] of the database; a transient one at the deadline.
    pub(crate) async fn read<T, F>(
        &mut self,
        plan_cache_mode: PlanCacheMode,
        statements: F,
    ) -> Result<T, Fault>
    where
        T: Send,
        for<'c> F: AsyncFnOnce(&'c mut Connection) -> Result<T, Fault> + Statements<'c, T>,
    {
        let started = Instant::now();
        let result = self.transaction(plan_cache_mode, statements).await;
        self.database_time += started.elapsed();
        result
    }

    async fn transaction<T, F>(&self, plan_cache_mode: PlanCacheMode, statements: F) -> Result<T, Fault>
    where
        T: Send,
        F: for<'c> Statements<'c, T>,
    {
        let late = |reason: &str| Fault { kind: FaultKind::Transient, reason: reason.to_owned() };
        let acquiring = async { (self.permit.acquire_read().await, store::acquire(self.pool).await) };
        let acquired = timeout(self.deadline.remaining(), acquiring).await;
        let (_permit, acquired) = acquired.map_err(|_| late("no database connection became free in time"))?;
        let mut connection = acquired?;
        // For PostgreSQL, zero means no timeout.
        let remaining = self.deadline.remaining().max(Duration::from_millis(1));
        let cancel = connection.cancel_token();
        let grant = self.grant;
        let reading = connection.transaction(async |connection| {
            security::open_context_for(connection, grant, remaining, plan_cache_mode).await?;
            statements(connection).await
        });
        let result: Result<T, Fault> = match timeout(remaining + CANCEL_GRACE, reading).await {
            Ok(result) => result,
            Err(_) => {
                // The connection is in the middle of a statement, so the pool must not reuse it.
                store::discard(connection);
                let cancelled = timeout(self.deadline.timeout, store::cancel(&cancel)).await;
                tracing::debug!(
                    worker = crate::NAME,
                    cancelled = matches!(cancelled, Ok(Ok(()))),
                    "query cancelled at its deadline"
                );
                return Err(late("the query exceeded its deadline"));
            }
        };
        store::discard_if_unusable(connection, &result);
        result
    }
}
