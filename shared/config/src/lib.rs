//! Settings: a TOML file, overridden by environment variables. docs/memfleet.toml documents every option.
//!
//! All options and their limits are in this crate, so that a crate that needs one section does not depend on the crates
//! that the other sections configure.

mod archive;
mod database;
mod embedder;
mod environment;
mod keys;
mod privacy;
mod problem;
mod settings;
mod vectors;

pub use archive::ArchiveSettings;
pub use contract::without_password;
pub use embedder::{EmbedderKind, EmbedderSettings, missing as missing_embedder_option};
pub use environment::ENVIRONMENT_PREFIX;
pub use keys::{KeySettings, ProviderName};
pub use privacy::PrivacySettings;
pub use settings::{
    AuditSettings, HealthSettings, LogFormat, LogSettings, NatsSettings, PostgresSettings, Settings,
    SettingsError, TrustSettings, WorkerSettings, may_be_logged,
};
pub use vectors::{Quantization, VectorSettings};
