use trust::KeyError;

/// An archive cannot be written or read, or is not what was written.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The settings name no target that can be used.
    #[error("{0}")]
    Settings(String),
    /// A key cannot be read.
    #[error("{option}: {problem}")]
    Key {
        /// The option that names its file.
        option: &'static str,
        /// Why.
        problem: KeyError,
    },
    /// The target refused or failed to do something.
    #[error("cannot {action} {path} at the archive target: {problem}")]
    Target {
        /// What was to be done, as a verb.
        action: &'static str,
        /// The path in the target.
        path: String,
        /// The error of the operating system or the store.
        problem: String,
    },
    /// A file is missing.
    #[error("{0} is missing at the archive target")]
    Missing(String),
    /// A file is not what was written, or its manifest is not signed with a known key.
    #[error("{path} is not as it was written: {problem}")]
    Changed {
        /// The path in the target.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The rows cannot be put into a file.
    #[error("cannot archive rows of {table}: {problem}")]
    Rows {
        /// The table.
        table: String,
        /// Why.
        problem: String,
    },
}

impl ArchiveError {
    /// A file that is not as it was written.
    pub(crate) fn changed(path: impl ToString, problem: impl ToString) -> Self {
        Self::Changed { path: path.to_string(), problem: problem.to_string() }
    }
}
