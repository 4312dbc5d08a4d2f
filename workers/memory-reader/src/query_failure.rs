//! Why a query has no answer.

use contract::Malformed;
use runtime::query::QueryRefusal;
use store::Fault;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum QueryFailure {
    /// A statement failed, or the deadline passed.
    Database(Fault),
    /// The sender receives this.
    Refused(QueryRefusal),
}

impl From<Fault> for QueryFailure {
    fn from(fault: Fault) -> Self {
        Self::Database(fault)
    }
}

impl From<QueryRefusal> for QueryFailure {
    fn from(refusal: QueryRefusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Malformed> for QueryFailure {
    fn from(malformed: Malformed) -> Self {
        Self::Refused(malformed.into())
    }
}
