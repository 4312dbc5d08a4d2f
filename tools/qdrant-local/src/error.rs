//! Errors at start, and errors of calls with the status that a Qdrant server returns.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use qdrant_edge::OperationError;
use tonic::Status;

/// Why the program could not start or failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// Another process uses the home folder.
    #[error(
        "{} is in use by another qdrant-local. Stop that process, or choose another folder with --home",
        home.display()
    )]
    InUse {
        /// The folder.
        home: PathBuf,
    },
    /// The address is not available.
    #[error(
        "cannot listen on {address}: {source}. Choose another address with --listen; port 0 selects a free port"
    )]
    Listen {
        /// The requested address.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// The file of the API key is empty.
    #[error("{} is empty: it must contain the API key that clients use", path.display())]
    NoApiKey {
        /// The file.
        path: PathBuf,
    },
    /// The manifest of collections is invalid.
    #[error("{} is not a manifest of collections: {source}. Restore the file, or choose another folder with --home", path.display())]
    Catalog {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A collection on disk cannot be opened.
    #[error("cannot open the collection {name} in {}: {source}. Remove its folder and its entry in catalog.json, or choose another folder with --home", folder.display())]
    Collection {
        /// Its name.
        name: String,
        /// Its folder.
        folder: PathBuf,
        /// The cause.
        source: Box<Problem>,
    },
    /// The gRPC server failed.
    #[error("the server at {address} failed: {reason}")]
    Server {
        /// The address that it listens on.
        address: SocketAddr,
        /// What happened.
        reason: String,
    },
    /// Another error of files or the operating system.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// The operation.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl StartError {
    pub(crate) fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File { action, path: path.to_path_buf(), source }
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    /// There is no such collection.
    #[error("Not found: Collection `{0}` doesn't exist!")]
    NoCollection(String),
    /// There is no such alias.
    #[error("Not found: Alias {0} does not exists!")]
    NoAlias(String),
    /// The name is taken by a collection.
    #[error("Wrong input: Collection `{0}` already exists!")]
    CollectionExists(String),
    /// The request is invalid.
    #[error("Wrong input: {0}")]
    BadInput(String),
    /// The engine returned an error.
    #[error("{}", engine_message(.0))]
    Engine(#[from] OperationError),
    /// A file operation failed.
    #[error("Service internal error: cannot {action} {}: {source}", path.display())]
    File {
        /// The operation.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// An internal error.
    #[error("Service internal error: {0}")]
    Internal(String),
}

impl Problem {
    pub(crate) fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File { action, path: path.to_path_buf(), source }
    }
}

impl From<Problem> for Status {
    fn from(problem: Problem) -> Self {
        let message = problem.to_string();
        match problem {
            Problem::NoCollection(_) | Problem::NoAlias(_) => Self::not_found(message),
            Problem::CollectionExists(_) => Self::already_exists(message),
            Problem::BadInput(_) => Self::invalid_argument(message),
            Problem::Engine(error) => engine_status(&error, message),
            Problem::File { .. } | Problem::Internal(_) => Self::internal(message),
        }
    }
}

/// The class of an engine's error. The message and the status that a Qdrant server answers with follow from it.
enum EngineErrorClass {
    WrongInput,
    NotFound,
    Timeout,
    Internal,
}

impl From<&OperationError> for EngineErrorClass {
    fn from(error: &OperationError) -> Self {
        match error {
            OperationError::WrongVectorDimension { .. }
            | OperationError::VectorNameNotExists { .. }
            | OperationError::TypeError { .. }
            | OperationError::TypeInferenceError { .. }
            | OperationError::ValidationError { .. }
            | OperationError::WrongSparse
            | OperationError::WrongMulti
            | OperationError::MissingRangeIndexForOrderBy { .. }
            | OperationError::MissingMapIndexForFacet { .. }
            | OperationError::VariableTypeError { .. }
            | OperationError::NonFiniteNumber { .. } => Self::WrongInput,
            OperationError::PointIdError { .. } => Self::NotFound,
            OperationError::Timeout { .. } => Self::Timeout,
            OperationError::ServiceError { .. }
            | OperationError::InconsistentStorage { .. }
            | OperationError::OutOfMemory { .. }
            | OperationError::Cancelled { .. } => Self::Internal,
        }
    }
}

/// The message of an engine's error, without the backtrace that a service error holds.
fn engine_message(error: &OperationError) -> String {
    let prefix = match EngineErrorClass::from(error) {
        EngineErrorClass::WrongInput => "Wrong input",
        EngineErrorClass::NotFound => "Not found",
        EngineErrorClass::Timeout | EngineErrorClass::Internal => "Service internal error",
    };
    format!("{prefix}: {error}")
}

fn engine_status(error: &OperationError, message: String) -> Status {
    match EngineErrorClass::from(error) {
        EngineErrorClass::WrongInput => Status::invalid_argument(message),
        EngineErrorClass::NotFound => Status::not_found(message),
        EngineErrorClass::Timeout => Status::deadline_exceeded(message),
        EngineErrorClass::Internal => Status::internal(message),
    }
}
