use qdrant_client::QdrantError;
use tonic::Code;

/// What the vector store says instead of an answer. No reason quotes a vector or a payload.
#[derive(Clone, Debug, thiserror::Error)]
pub enum VectorError {
    /// Not now: it cannot be reached, is starting, or is overloaded.
    #[error("the vector store is away: {0}")]
    Unavailable(String),
    /// The collection is not there.
    #[error("the vector store has no such collection: {0}; `memfleet vectors apply` makes it")]
    NoCollection(String),
    /// It does not take what it was given, however often it is tried.
    #[error("the vector store refuses: {0}")]
    Refused(String),
}

impl VectorError {
    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::NoCollection(_) => true,
            Self::Refused(_) => false,
        }
    }
}

impl From<QdrantError> for VectorError {
    fn from(error: QdrantError) -> Self {
        let status = match error {
            QdrantError::ResponseError { status } => status,
            QdrantError::ResourceExhaustedError { status, .. } => {
                return Self::Unavailable(told(status.message()));
            }
            other @ (QdrantError::ConversionError(_)
            | QdrantError::InvalidUri(_)
            | QdrantError::NoSnapshotFound(_)
            | QdrantError::Io(_)
            | QdrantError::JsonToPayload(_)
            | QdrantError::PayloadDeserialization(_)) => return Self::Refused(told(&other.to_string())),
        };
        let message = told(status.message());
        match status.code() {
            Code::NotFound => Self::NoCollection(message),
            Code::InvalidArgument
            | Code::Unimplemented
            | Code::FailedPrecondition
            | Code::AlreadyExists
            | Code::OutOfRange => Self::Refused(message),
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => Self::Unavailable(format!("{:?}: {message}", status.code())),
        }
    }
}

/// A message of the server, bounded.
fn told(message: &str) -> String {
    message.chars().take(300).collect()
}
