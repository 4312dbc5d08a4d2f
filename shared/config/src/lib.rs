//! Settings: a TOML file, overridden by the environment. docs/memfleet.toml shows every option.
//!
//! Everything that can be configured is here, with its bounds, so that whoever needs a section depends on nothing that the
//! other sections are for.

mod database;
mod embedder;
mod keys;
mod settings;
mod vectors;

pub use embedder::{EmbedderKind, EmbedderSettings, missing as missing_embedder_option};
pub use keys::{KeySettings, ProviderName};
pub use settings::{
    AuditSettings, ENVIRONMENT_PREFIX, HealthSettings, LogFormat, LogSettings, NatsSettings,
    PostgresSettings, Settings, SettingsError, TrustSettings, WorkerSettings, may_be_logged,
    without_password,
};
pub use vectors::{Quantization, VectorSettings};
