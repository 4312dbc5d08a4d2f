//! The interface of a type of query, and its result.

use std::borrow::Cow;
use std::pin::Pin;

use bytes::Bytes;
use contract::{Malformed, QueryErrorCode, QueryType, UserId};
use runtime::query::QueryRefusal;
use serde::Serialize;

use crate::access_log::AccessKind;
use crate::query_context::QueryContext;
use crate::query_failure::QueryFailure;
use crate::secret::{self, Secret};

/// A query whose values have been checked, and how it is answered. Each file in `queries/` implements it for the
/// queries of one noun.
pub(crate) trait ValidatedQuery: Sized + Send + 'static {
    /// Its type in the contract.
    type Query: QueryType;

    /// Checks what the types of the fields do not: cursors, and how fields fit together.
    ///
    /// # Errors
    /// [`Malformed`] names the field.
    fn validate(query: Self::Query) -> Result<Self, Malformed>;

    /// Whether it asks for encrypted values in clear, for which the token needs the scope [`contract::REVEAL`] too.
    fn reveals(&self) -> bool {
        false
    }

    /// Reads the answer.
    fn answer(
        self,
        context: &mut QueryContext<'_>,
    ) -> impl Future<Output = Result<Answered<AnswerTo<Self>>, QueryFailure>> + Send;
}

/// The answer to a validated query.
pub(crate) type AnswerTo<V> = <<V as ValidatedQuery>::Query as QueryType>::Answer;

/// What was read for an answer: a table or a collection of the vector store, and the number of rows or points.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) kind: AccessKind,
    pub(crate) object: Cow<'static, str>,
    pub(crate) rows: usize,
}

/// An answer, what was read for it, and its secrets, which are still encrypted.
pub(crate) struct Answered<A> {
    result: Result<A, QueryRefusal>,
    accesses: Vec<Access>,
    secrets: Vec<Secret<A>>,
}

impl<A> Answered<A> {
    /// An answer from rows of a table.
    pub(crate) fn new(answer: A, table: &'static str, rows: usize) -> Self {
        Self { result: Ok(answer), accesses: Vec::new(), secrets: Vec::new() }.and_read(table, rows)
    }

    /// There is no such row in the table. The sender learns so, hence this counts as an access too.
    ///
    /// `what` names the thing that a field of the query asks for, such as `context "k" in session "s"`.
    pub(crate) fn not_found(table: &'static str, field: &str, what: &str, user: UserId) -> Self {
        let message = format!("no {what} of user {user}");
        let refusal = QueryRefusal::new(QueryErrorCode::NotFound, &message, Some(field));
        Self { result: Err(refusal), accesses: Vec::new(), secrets: Vec::new() }.and_read(table, 0)
    }

    /// Rows of another table were read as well.
    pub(crate) fn and_read(mut self, table: &'static str, rows: usize) -> Self {
        self.accesses.push(Access { kind: AccessKind::Read, object: Cow::Borrowed(table), rows });
        self
    }

    /// A collection of the vector store was searched as well.
    pub(crate) fn and_searched(mut self, collection: String, memories: usize) -> Self {
        let object = Cow::Owned(collection);
        self.accesses.push(Access { kind: AccessKind::VectorSearch, object, rows: memories });
        self
    }

    /// The encrypted values to decrypt into the answer.
    pub(crate) fn with_secrets(mut self, secrets: impl IntoIterator<Item = Secret<A>>) -> Self {
        self.secrets.extend(secrets);
        self
    }
}

/// What is sent, and what must be logged before.
pub(crate) struct Response {
    pub(crate) body: Result<Bytes, QueryRefusal>,
    pub(crate) accesses: Vec<Access>,
}

/// A future of a query whose type is not known.
pub(crate) type Responding<'a> = Pin<Box<dyn Future<Output = Result<Response, QueryFailure>> + Send + 'a>>;

/// A [`ValidatedQuery`] of any type, as the query handler processes it.
pub(crate) trait AnyQuery: Send {
    /// See [`ValidatedQuery::reveals`].
    fn reveals(&self) -> bool;

    /// Reads the answer, decrypts its secrets if the query reveals them, and serializes it.
    fn respond<'a>(self: Box<Self>, context: &'a mut QueryContext<'_>) -> Responding<'a>;
}

impl<V: ValidatedQuery> AnyQuery for V {
    fn reveals(&self) -> bool {
        ValidatedQuery::reveals(self)
    }

    fn respond<'a>(self: Box<Self>, context: &'a mut QueryContext<'_>) -> Responding<'a> {
        Box::pin(async move {
            let reveals = ValidatedQuery::reveals(&*self);
            let Answered { result, accesses, secrets } = self.answer(context).await?;
            let body = match result {
                Ok(mut answer) => {
                    if reveals {
                        secret::reveal(context, &mut answer, secrets).await?;
                    }
                    Ok(serialize(&answer)?)
                }
                Err(refusal) => Err(refusal),
            };
            Ok(Response { body, accesses })
        })
    }
}

fn serialize(answer: &impl Serialize) -> Result<Bytes, QueryRefusal> {
    serde_json::to_vec(answer).map(Bytes::from).map_err(|error| {
        tracing::error!(worker = crate::NAME, %error, "cannot serialize an answer");
        QueryRefusal::internal()
    })
}
