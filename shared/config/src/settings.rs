//! All settings, and how they are read.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use contract::without_password;
use figment::Figment;
use figment::providers::{Format, Serialized, Toml};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::archive::ArchiveSettings;
use crate::database::same_database;
use crate::embedder::EmbedderSettings;
use crate::environment::{ENVIRONMENT_PREFIX, Environment};
use crate::keys::KeySettings;
use crate::privacy::PrivacySettings;
use crate::problem;
use crate::vectors::VectorSettings;

/// The settings of memfleet, one field per section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The NATS server.
    pub nats: NatsSettings,
    /// The main database.
    pub postgres: PostgresSettings,
    /// Tokens, grants and rate limits.
    pub trust: TrustSettings,
    /// The key store and the KEK provider.
    pub keys: KeySettings,
    /// Seals of the audit trail.
    pub audit: AuditSettings,
    /// Archives.
    pub archive: ArchiveSettings,
    /// The erasure of persons.
    pub privacy: PrivacySettings,
    /// The vector store.
    pub vectors: VectorSettings,
    /// The embedder.
    pub embedder: EmbedderSettings,
    /// The embedder of the model that `memfleet vectors migrate` migrates to.
    pub next_embedder: EmbedderSettings,
    /// Batches, retries and timeouts of the workers of this process.
    pub worker: WorkerSettings,
    /// HTTP health endpoints.
    pub health: HealthSettings,
    /// Logging.
    pub log: LogSettings,
}

/// The NATS server.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NatsSettings {
    /// The URL, `nats://[user:password@]host:port`; several are separated by commas.
    pub url: String,
    /// A credentials file with a JWT or an nkey. Default: none.
    pub credentials_file: Option<String>,
    /// A file with an nkey seed. `{name}` is replaced by the name of the worker or service, or by `operator`.
    pub nkey_file: Option<String>,
    /// The subject prefix of the JetStream API for workers whose NATS account imports it: `STORE.API` with the shipped
    /// accounts. Default: `$JS.API`.
    pub api_prefix: Option<String>,
    /// A PEM file with the CA certificates of the server. If it is set, connections require TLS.
    pub ca_file: Option<String>,
}

impl Default for NatsSettings {
    fn default() -> Self {
        Self {
            url: "nats://127.0.0.1:4222".to_owned(),
            credentials_file: None,
            nkey_file: None,
            api_prefix: None,
            ca_file: None,
        }
    }
}

impl std::fmt::Debug for NatsSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsSettings").field("url", &without_password(&self.url)).finish_non_exhaustive()
    }
}

/// The main database.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PostgresSettings {
    /// The URL, `postgres://user:password@host:port/database`.
    pub url: String,
    /// The URL for workers, where `{role}` is replaced by the database role of the worker. Default: `url`.
    pub worker_url: Option<String>,
    /// The URL of a read replica for memory-reader, with `{role}` as in `worker_url`. Default: the primary.
    pub read_url: Option<String>,
    /// The size of the connection pool for reading, 1 to 200.
    pub read_pool_size: usize,
    /// The size of the connection pool for writing, 1 to 200. Every worker of the process uses one connection while it
    /// writes.
    pub write_pool_size: usize,
    /// The timeout for a connection, in milliseconds, 100 to 60000.
    pub connect_timeout_ms: u64,
    /// The `statement_timeout`, in milliseconds, 1000 to 600000.
    pub statement_timeout_ms: u64,
    /// The `lock_timeout` of the transactions that write messages, in milliseconds, 50 to 60000. Messages of a user
    /// whose rows stay locked for longer are set aside, so that they do not hold up other users.
    pub lock_timeout_ms: u64,
}

impl Default for PostgresSettings {
    fn default() -> Self {
        Self {
            url: "postgres://127.0.0.1:5432/memfleet".to_owned(),
            worker_url: None,
            read_url: None,
            read_pool_size: 15,
            write_pool_size: 10,
            connect_timeout_ms: 5_000,
            statement_timeout_ms: 30_000,
            lock_timeout_ms: 500,
        }
    }
}

impl std::fmt::Debug for PostgresSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresSettings")
            .field("url", &without_password(&self.url))
            .field("write_pool_size", &self.write_pool_size)
            .finish_non_exhaustive()
    }
}

impl PostgresSettings {
    /// The URL for a worker with this database role.
    pub fn url_of(&self, role: &str) -> String {
        self.worker_url.as_ref().map_or_else(|| self.url.clone(), |url| url.replace("{role}", role))
    }

    /// The URL for reading for a worker with this database role.
    pub fn read_url_of(&self, role: &str) -> String {
        self.read_url.as_ref().map_or_else(|| self.url_of(role), |url| url.replace("{role}", role))
    }
}

/// Tokens, grants and rate limits. Workers need none of the key files except `payload_ring_file`: they read public keys
/// from the database.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrustSettings {
    /// The audience of tokens, which identifies the deployment. Tokens for another audience are rejected.
    pub audience: String,
    /// For issuing tokens: a file with the signing key, `<name> private <64 hex digits>`. Its public key must be
    /// registered in the database.
    pub token_key_file: Option<String>,
    /// For issuing tokens: a file with the grant key, `<name> <64 to 128 hex digits>`. The same key must be registered
    /// in the database and in the key store.
    pub grant_key_file: Option<String>,
    /// For encrypted payloads: a file with the keys of services, one `<service>.<version> <64 hex digits>` per line.
    /// Workers need the keys of all services, a publisher its own.
    pub payload_ring_file: Option<String>,
    /// The maximum number of requests per second of a service that a replica processes, unless the registry sets
    /// another limit; 1 to 1000000.
    pub service_per_second: u32,
    /// The same in KiB per second, 1 to 10000000; what is malformed or denied counts as well.
    pub service_kib_per_second: u32,
    /// The same for each noun and verb of a service.
    pub scope_per_second: u32,
    /// The same for each user of a service.
    pub user_per_second: u32,
}

impl Default for TrustSettings {
    fn default() -> Self {
        Self {
            audience: "memfleet".to_owned(),
            token_key_file: None,
            grant_key_file: None,
            payload_ring_file: None,
            service_per_second: 50_000,
            service_kib_per_second: 65_536,
            scope_per_second: 50_000,
            user_per_second: 1_000,
        }
    }
}

/// Seals of the audit trail.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditSettings {
    /// A file with the signing key of seals, `<name> private <64 hex digits>`.
    pub seal_key_file: Option<String>,
    /// A file with the accepted public keys, one `<name> public <64 hex digits>` per line. Default: the public key of
    /// `seal_key_file`.
    pub public_keys_file: Option<String>,
    /// The interval at which rows are sealed, in seconds, 1 to 3600.
    pub seal_every_s: u64,
}

impl Default for AuditSettings {
    fn default() -> Self {
        Self { seal_key_file: None, public_keys_file: None, seal_every_s: 10 }
    }
}

impl AuditSettings {
    /// See `seal_every_s`.
    pub fn seal_every(&self) -> Duration {
        Duration::from_secs(self.seal_every_s)
    }
}

/// Batches, retries and timeouts of workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerSettings {
    /// The maximum number of messages in one transaction, 1 to 1000.
    pub batch_size: usize,
    /// How long a batch waits for more messages after its first, in milliseconds, 0 to 1000.
    pub batch_wait_ms: u64,
    /// The number of attempts before a message is dead-lettered, 1 to 100.
    pub retry_attempts: u32,
    /// The delay before the first retry, in milliseconds, 1 to 60000. It doubles with every retry.
    pub retry_first_delay_ms: u64,
    /// The longest delay before a retry, in milliseconds, 1 to 3600000.
    pub retry_longest_delay_ms: u64,
    /// How long a message whose prerequisite is missing may wait for the worker that writes the prerequisite and is
    /// behind, in seconds, 0 to 604800. No attempt is counted meanwhile.
    pub prerequisite_wait_s: u64,
    /// How many messages of one service may wait at a time in a replica for another worker, for a locked row or for the
    /// events of another worker, 1 to 1000000. Further ones do not wait.
    pub waiting_per_service: usize,
    /// How long to wait at start for NATS, the database and their schema, in seconds, 1 to 3600.
    pub startup_timeout_s: u64,
    /// How long messages in flight may take to finish after SIGTERM, in seconds, 1 to 600.
    pub shutdown_grace_s: u64,
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self {
            batch_size: 500,
            batch_wait_ms: 5,
            retry_attempts: 12,
            retry_first_delay_ms: 100,
            retry_longest_delay_ms: 30_000,
            prerequisite_wait_s: 86_400,
            waiting_per_service: 15_000,
            startup_timeout_s: 60,
            shutdown_grace_s: 20,
        }
    }
}

impl WorkerSettings {
    /// See `batch_wait_ms`.
    pub fn batch_wait(&self) -> Duration {
        Duration::from_millis(self.batch_wait_ms)
    }

    /// See `retry_first_delay_ms`.
    pub fn retry_first_delay(&self) -> Duration {
        Duration::from_millis(self.retry_first_delay_ms)
    }

    /// See `retry_longest_delay_ms`.
    pub fn retry_longest_delay(&self) -> Duration {
        Duration::from_millis(self.retry_longest_delay_ms)
    }

    /// See `prerequisite_wait_s`.
    pub fn prerequisite_wait(&self) -> Duration {
        Duration::from_secs(self.prerequisite_wait_s)
    }

    /// See `startup_timeout_s`.
    pub fn startup_timeout(&self) -> Duration {
        Duration::from_secs(self.startup_timeout_s)
    }

    /// See `shutdown_grace_s`.
    pub fn shutdown_grace(&self) -> Duration {
        Duration::from_secs(self.shutdown_grace_s)
    }
}

/// The HTTP health endpoints `/healthz` and `/readyz`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthSettings {
    /// The address and port that `run` and `dev` listen on. Default: none. The endpoints report unreachable
    /// dependencies to every client, so make them reachable for the orchestrator only.
    pub listen: Option<SocketAddr>,
}

/// Logging to standard error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    /// The filter, such as `info` or `warn,runtime=debug`. One-shot commands log warnings only, unless this is set.
    pub filter: String,
    /// `text` or `json`.
    pub format: LogFormat,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { filter: "info,async_nats=warn".to_owned(), format: LogFormat::Text }
    }
}

/// Whether an event may be logged, regardless of the filter. At debug level, the NATS client logs whole messages with
/// their bodies and tokens. Its connector reports about the relay in this process, while the relay reports about the
/// servers.
pub fn may_be_logged(metadata: &tracing::Metadata<'_>) -> bool {
    let target = metadata.target();
    let is_about_connections = target == "async_nats::connector";
    !target.starts_with("async_nats") || (*metadata.level() <= tracing::Level::INFO && !is_about_connections)
}

/// The format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text.
    Text,
    /// JSON, one object per line.
    Json,
}

/// The configuration is invalid. The message names the option and its source.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(String);

impl Settings {
    /// Reads the defaults, the file if one is given, and the environment. Each overrides the previous.
    ///
    /// # Errors
    /// [`SettingsError`] for a file that cannot be read, an unknown option, a value of the wrong type, or a value out
    /// of range.
    pub fn load(file: Option<&Path>) -> Result<Self, SettingsError> {
        let mut figment = Figment::from(Serialized::defaults(Self::default()));
        if let Some(path) = file {
            if !path.is_file() {
                return Err(SettingsError(format!("there is no configuration file {}", path.display())));
            }
            figment = figment.merge(Toml::file_exact(path));
        }
        // Lossy: options that are numbers are read from the texts of the environment.
        let settings: Self = figment
            .merge(Environment::new())
            .extract_lossy()
            .map_err(|error| SettingsError(problem::describe(&error)))?;
        settings.check()?;
        Ok(settings)
    }

    /// The environment variables that pass these settings to another process.
    ///
    /// # Errors
    /// [`SettingsError`] if a value cannot be serialized, which does not happen.
    pub fn to_environment(&self) -> Result<Vec<(String, String)>, SettingsError> {
        let failed = |error: serde_json::Error| SettingsError(error.to_string());
        let sections: BTreeMap<String, BTreeMap<String, Value>> =
            serde_json::from_value(serde_json::to_value(self).map_err(failed)?).map_err(failed)?;
        let options = sections.into_iter().flat_map(|(section, options)| {
            options.into_iter().map(move |(option, value)| (format!("{section}__{option}"), value))
        });
        Ok(options
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                (format!("{ENVIRONMENT_PREFIX}{}", name.to_uppercase()), text)
            })
            .collect())
    }

    /// Checks the range of every number.
    ///
    /// # Errors
    /// [`SettingsError`] names the first option that is out of range, and the range.
    pub fn check(&self) -> Result<(), SettingsError> {
        let worker = &self.worker;
        let size = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
        let bounds = [
            ("postgres.read_pool_size", size(self.postgres.read_pool_size), 1, 200),
            ("postgres.write_pool_size", size(self.postgres.write_pool_size), 1, 200),
            ("postgres.connect_timeout_ms", self.postgres.connect_timeout_ms, 100, 60_000),
            ("postgres.statement_timeout_ms", self.postgres.statement_timeout_ms, 1_000, 600_000),
            ("postgres.lock_timeout_ms", self.postgres.lock_timeout_ms, 50, 60_000),
            ("trust.service_per_second", self.trust.service_per_second.into(), 1, 1_000_000),
            ("trust.service_kib_per_second", self.trust.service_kib_per_second.into(), 1, 10_000_000),
            ("trust.scope_per_second", self.trust.scope_per_second.into(), 1, 1_000_000),
            ("trust.user_per_second", self.trust.user_per_second.into(), 1, 1_000_000),
            ("keys.cache_s", self.keys.cache_s, 1, 3_600),
            ("audit.seal_every_s", self.audit.seal_every_s, 1, 3_600),
            ("archive.timeout_ms", self.archive.timeout_ms, 100, 300_000),
            ("privacy.every_s", self.privacy.every_s, 1, 3_600),
            ("privacy.streams_parallel", size(self.privacy.streams_parallel), 1, 256),
            ("worker.batch_size", size(worker.batch_size), 1, 1_000),
            ("worker.batch_wait_ms", worker.batch_wait_ms, 0, 1_000),
            ("worker.retry_attempts", worker.retry_attempts.into(), 1, 100),
            ("worker.retry_first_delay_ms", worker.retry_first_delay_ms, 1, 60_000),
            ("worker.retry_longest_delay_ms", worker.retry_longest_delay_ms, 1, 3_600_000),
            ("worker.prerequisite_wait_s", worker.prerequisite_wait_s, 0, 604_800),
            ("worker.waiting_per_service", size(worker.waiting_per_service), 1, 1_000_000),
            ("worker.startup_timeout_s", worker.startup_timeout_s, 1, 3_600),
            ("worker.shutdown_grace_s", worker.shutdown_grace_s, 1, 600),
        ];
        // The URLs of different workers differ in the role only.
        let role = "w";
        let pairs = [
            (self.keys.url.clone(), self.postgres.url.clone()),
            (self.keys.url_of(role), self.postgres.url_of(role)),
        ];
        if pairs.iter().any(|(keys, main)| same_database(keys, main)) {
            return Err(SettingsError(
                "keys.url names the main database; the key store must be another database, so that keys are stored apart from the data"
                    .to_owned(),
            ));
        }
        self.archive.check().map_err(SettingsError)?;
        self.privacy.check().map_err(SettingsError)?;
        self.vectors.check().map_err(SettingsError)?;
        for (section, embedder) in [("embedder", &self.embedder), ("next_embedder", &self.next_embedder)] {
            // The check names options of the section `embedder`.
            embedder
                .check()
                .map_err(|problem| SettingsError(problem.replacen("embedder.", &format!("{section}."), 1)))?;
        }
        match bounds.iter().find(|(_, value, least, most)| value < least || value > most) {
            None => Ok(()),
            Some((name, value, least, most)) => {
                Err(SettingsError(format!("{name} is {value}; it must be from {least} to {most}")))
            }
        }
    }
}
