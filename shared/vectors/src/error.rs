use qdrant_client::QdrantError;
use tonic::Code;
use uuid::Uuid;

/// An error of the vector store. No message quotes a vector or a payload.
#[derive(Clone, Debug, thiserror::Error)]
pub enum VectorError {
    /// A transient failure: it is unreachable, starting or overloaded.
    #[error("the vector store is unavailable: {0}")]
    Unavailable(String),
    /// The collection does not exist.
    #[error("the vector store has no such collection: {0}; `memfleet vectors apply` creates it")]
    NoCollection(String),
    /// The collection belongs to the deployment of another database.
    #[error(
        "the collection {collection} belongs to the deployment {owner}, but this database is of the deployment \
         {deployment}; give one of them another vectors.alias, or, if this database replaces the other one, run \
         `memfleet vectors apply --take-over`"
    )]
    Foreign {
        /// The collection.
        collection: String,
        /// The deployment that it belongs to.
        owner: Uuid,
        /// The deployment of this database.
        deployment: Uuid,
    },
    /// It rejects the call permanently.
    #[error("the vector store rejected the call: {0}")]
    Refused(String),
}

impl VectorError {
    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::NoCollection(_) | Self::Foreign { .. } => true,
            Self::Refused(_) => false,
        }
    }
}

impl From<QdrantError> for VectorError {
    fn from(error: QdrantError) -> Self {
        let status = match error {
            QdrantError::ResponseError { status } => status,
            QdrantError::ResourceExhaustedError { status, .. } => {
                return Self::Unavailable(truncated(status.message()));
            }
            other @ (QdrantError::ConversionError(_)
            | QdrantError::InvalidUri(_)
            | QdrantError::NoSnapshotFound(_)
            | QdrantError::Io(_)
            | QdrantError::JsonToPayload(_)
            | QdrantError::PayloadDeserialization(_)) => return Self::Refused(truncated(&other.to_string())),
        };
        let message = truncated(status.message());
        match status.code() {
            Code::NotFound => Self::NoCollection(message),
            Code::InvalidArgument | Code::AlreadyExists | Code::OutOfRange => Self::Refused(message),
            // A proxy's status 404, or a server without the call.
            Code::Unimplemented => Self::Unavailable(format!(
                "Unimplemented: {message}; vectors.url must be the gRPC address of Qdrant 1.16 or newer"
            )),
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::ResourceExhausted
            | Code::Aborted
            // Such as a collection without a shard for the points.
            | Code::FailedPrecondition
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => Self::Unavailable(format!("{:?}: {message}", status.code())),
        }
    }
}

/// A message of the server, truncated.
fn truncated(message: &str) -> String {
    message.chars().take(300).collect()
}
