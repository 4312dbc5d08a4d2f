//! Configuration: a TOML file, overridden by the environment. docs/memfleet.toml shows every option.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::database::same_database;
use crate::embedder::EmbedderSettings;
use crate::keys::KeySettings;
use crate::vectors::VectorSettings;

/// Everything that can be configured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The broker.
    pub nats: NatsSettings,
    /// The database.
    pub postgres: PostgresSettings,
    /// Who may act for whom.
    pub trust: TrustSettings,
    /// Where data keys are, and who wraps them.
    pub keys: KeySettings,
    /// The audit trail's seals.
    pub audit: AuditSettings,
    /// Where vectors are.
    pub vectors: VectorSettings,
    /// Who makes them of texts.
    pub embedder: EmbedderSettings,
    /// Who makes those of another model, while `memfleet vectors migrate` goes over to it.
    pub next_embedder: EmbedderSettings,
    /// How every worker of this process works.
    pub worker: WorkerSettings,
    /// Whom it tells whether it has what it needs.
    pub health: HealthSettings,
    /// What is logged.
    pub log: LogSettings,
}

/// The broker.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NatsSettings {
    /// `nats://[user:password@]host:port`, several separated by commas.
    pub url: String,
    /// A file with the credentials of an nkey or a JWT; none by default.
    pub credentials_file: Option<String>,
    /// A file with the seed of an nkey; `{name}` stands for the worker or service, or for `operator`.
    pub nkey_file: Option<String>,
    /// Under which subjects workers ask the API of JetStream, where their account has none of its own: `STORE.API` with the
    /// accounts that are shipped. `$JS.API` by default.
    pub api_prefix: Option<String>,
    /// A file with the certificates of who signed the server's, in PEM. With it, connections are encrypted or fail.
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

/// The database.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PostgresSettings {
    /// `postgres://user:password@host:port/database`.
    pub url: String,
    /// How workers connect, if not by `url`: `{role}` stands for the database role of the worker.
    pub worker_url: Option<String>,
    /// Where memory-reader reads, if not where it writes: a replica, with `{role}` as in `worker_url`.
    pub read_url: Option<String>,
    /// Connections for reading, 1 to 200.
    pub read_pool_size: usize,
    /// Connections for writing, 1 to 200. Every worker of the process holds one while it writes.
    pub write_pool_size: usize,
    /// How long to wait for a connection, in milliseconds, 100 to 60000.
    pub connect_timeout_ms: u64,
    /// How long a statement may take before the server stops it, in milliseconds, 1000 to 600000.
    pub statement_timeout_ms: u64,
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
    /// How a worker of this role connects.
    pub fn url_of(&self, role: &str) -> String {
        self.worker_url.as_ref().map_or_else(|| self.url.clone(), |url| url.replace("{role}", role))
    }

    /// How a worker of this role connects for reading.
    pub fn read_url_of(&self, role: &str) -> String {
        self.read_url.as_ref().map_or_else(|| self.url_of(role), |url| url.replace("{role}", role))
    }
}

/// Who may act for whom. Workers need none of the files: they take the keys that verify tokens from the database.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrustSettings {
    /// The deployment that tokens are for: a token for another audience is refused.
    pub audience: String,
    /// For issuing tokens: a file with the key that signs them, `<name> private <64 hex digits>`. The registry must know
    /// its public half.
    pub token_key_file: Option<String>,
    /// For issuing tokens: a file with the key that seals the grants in them, `<name> <64 to 128 hex digits>`. The database
    /// must know the same key.
    pub grant_key_file: Option<String>,
    /// For bodies that travel encrypted: a file with the keys of services, `<service>.<version> <64 hex digits>` a line.
    /// Workers need those of all services, a publisher needs its own.
    pub payload_ring_file: Option<String>,
    /// How many requests a second of one service a replica lets through, where the registry says nothing else; 1 to
    /// 1000000.
    pub service_per_second: u32,
    /// The same for one noun and verb of a service.
    pub scope_per_second: u32,
    /// The same for one user of a service.
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
            scope_per_second: 50_000,
            user_per_second: 1_000,
        }
    }
}

/// The audit trail's seals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditSettings {
    /// A file with the key that signs seals: `<name> private <64 hex digits>`.
    pub seal_key_file: Option<String>,
    /// A file with the keys whose signatures are good, a line each: `<name> public <64 hex digits>`. Without it, only those of
    /// `seal_key_file` are.
    pub public_keys_file: Option<String>,
    /// How often finished rows are sealed, in seconds, 1 to 3600.
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

/// How a worker works.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerSettings {
    /// The most messages in one transaction, 1 to 1000.
    pub batch_size: usize,
    /// How long a batch waits for more messages after its first, in milliseconds, 0 to 1000.
    pub batch_wait_ms: u64,
    /// How often a message is tried before it becomes a dead letter, 1 to 100.
    pub retry_attempts: u32,
    /// The delay before the second try, in milliseconds, 1 to 60000. It doubles with every further try.
    pub retry_first_delay_ms: u64,
    /// The longest delay between tries, in milliseconds, 1 to 3600000.
    pub retry_longest_delay_ms: u64,
    /// How long to wait for the broker, the database and their set-up at start, in seconds, 1 to 3600.
    pub startup_timeout_s: u64,
    /// How long to finish what is in flight after SIGTERM, in seconds, 1 to 600.
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

    /// See `startup_timeout_s`.
    pub fn startup_timeout(&self) -> Duration {
        Duration::from_secs(self.startup_timeout_s)
    }

    /// See `shutdown_grace_s`.
    pub fn shutdown_grace(&self) -> Duration {
        Duration::from_secs(self.shutdown_grace_s)
    }
}

/// `/healthz` and `/readyz` over HTTP.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthSettings {
    /// The address and port that `run` and `dev` answer on; nobody is answered by default. What is away is told there to whoever
    /// asks, so that it is for an orchestrator and not for everybody.
    pub listen: Option<SocketAddr>,
}

/// What is logged, to standard error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    /// A filter such as `info` or `warn,runtime=debug`. Commands that end by themselves show warnings only,
    /// unless this is set.
    pub filter: String,
    /// `text` or `json`.
    pub format: LogFormat,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { filter: "info,async_nats=warn".to_owned(), format: LogFormat::Text }
    }
}

/// Whether a line may be logged, whatever the filter says: the NATS client tells of whole messages, with their bodies and tokens,
/// to whoever looks for a fault in it.
pub fn may_be_logged(metadata: &tracing::Metadata<'_>) -> bool {
    *metadata.level() <= tracing::Level::INFO || !metadata.target().starts_with("async_nats")
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines, an object a line.
    Json,
}

/// The configuration cannot be used. The message names the option and where it came from.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(String);

/// The prefix of environment variables that are options; `__` separates the section from the option, as in
/// `MEMFLEET_WORKER__BATCH_SIZE`.
pub const ENVIRONMENT_PREFIX: &str = "MEMFLEET_";

impl Settings {
    /// Reads the defaults, the file if there is one, and the environment, each overriding the one before.
    ///
    /// # Errors
    /// [`SettingsError`] for a file that cannot be read, an unknown option, a value of the wrong type, or one
    /// out of bounds.
    pub fn load(file: Option<&Path>) -> Result<Self, SettingsError> {
        let mut figment = Figment::from(Serialized::defaults(Self::default()));
        if let Some(path) = file {
            if !path.is_file() {
                return Err(SettingsError(format!("there is no configuration file {}", path.display())));
            }
            figment = figment.merge(Toml::file_exact(path));
        }
        let environment =
            Env::prefixed(ENVIRONMENT_PREFIX).filter(|key| key.as_str().contains("__")).split("__");
        let settings: Self =
            figment.merge(environment).extract().map_err(|error| SettingsError(describe(&error)))?;
        settings.check()?;
        Ok(settings)
    }

    /// The environment variables under which another process has these settings.
    ///
    /// # Errors
    /// [`SettingsError`] if a value has no text, which none has.
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

    /// Checks the bounds of every number.
    ///
    /// # Errors
    /// [`SettingsError`] names the first option out of bounds, and the bounds.
    pub fn check(&self) -> Result<(), SettingsError> {
        let worker = &self.worker;
        let size = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
        let bounds = [
            ("postgres.read_pool_size", size(self.postgres.read_pool_size), 1, 200),
            ("postgres.write_pool_size", size(self.postgres.write_pool_size), 1, 200),
            ("postgres.connect_timeout_ms", self.postgres.connect_timeout_ms, 100, 60_000),
            ("postgres.statement_timeout_ms", self.postgres.statement_timeout_ms, 1_000, 600_000),
            ("trust.service_per_second", self.trust.service_per_second.into(), 1, 1_000_000),
            ("trust.scope_per_second", self.trust.scope_per_second.into(), 1, 1_000_000),
            ("trust.user_per_second", self.trust.user_per_second.into(), 1, 1_000_000),
            ("keys.cache_s", self.keys.cache_s, 1, 3_600),
            ("audit.seal_every_s", self.audit.seal_every_s, 1, 3_600),
            ("worker.batch_size", size(worker.batch_size), 1, 1_000),
            ("worker.batch_wait_ms", worker.batch_wait_ms, 0, 1_000),
            ("worker.retry_attempts", worker.retry_attempts.into(), 1, 100),
            ("worker.retry_first_delay_ms", worker.retry_first_delay_ms, 1, 60_000),
            ("worker.retry_longest_delay_ms", worker.retry_longest_delay_ms, 1, 3_600_000),
            ("worker.startup_timeout_s", worker.startup_timeout_s, 1, 3_600),
            ("worker.shutdown_grace_s", worker.shutdown_grace_s, 1, 600),
        ];
        // Those of workers differ in the role only.
        let role = "w";
        let pairs = [
            (self.keys.url.clone(), self.postgres.url.clone()),
            (self.keys.url_of(role), self.postgres.url_of(role)),
        ];
        if pairs.iter().any(|(keys, main)| same_database(keys, main)) {
            return Err(SettingsError(
                "keys.url names the main database; the key store must be another one, or its keys lie with what they encrypt"
                    .to_owned(),
            ));
        }
        self.vectors.check().map_err(SettingsError)?;
        for (section, embedder) in [("embedder", &self.embedder), ("next_embedder", &self.next_embedder)] {
            // Its options are named as those of the section `embedder`.
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

fn describe(error: &figment::Error) -> String {
    let option = error.path.join(".");
    let source = error.metadata.as_ref().map_or_else(String::new, |metadata| {
        let place = metadata.source.as_ref().map_or_else(|| metadata.name.to_string(), ToString::to_string);
        format!(" (from {place})")
    });
    let named = if option.is_empty() { "the configuration".to_owned() } else { option };
    // A file that is no TOML is quoted between the first line and the last, and the line may hold a password.
    let problem = error.kind.to_string();
    let (mut lines, last) = (problem.lines(), problem.lines().last().unwrap_or_default());
    let problem = match lines.next() {
        Some(first) if first != last => format!("{first}: {last}"),
        Some(_) | None => last.to_owned(),
    };
    format!("{named}: {problem}{source}")
}

/// A URL fit for a log: whatever stands between `://` and the last `@` is replaced, and so are the parameters, where
/// PostgreSQL takes a password too.
pub fn without_password(url: &str) -> String {
    let (start, place) = match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme + 3 <= at => (format!("{}***", &url[..scheme + 3]), &url[at..]),
        _ => (String::new(), url),
    };
    match place.find(['?', '&']) {
        Some(end) => format!("{start}{}?***", &place[..end]),
        None => format!("{start}{place}"),
    }
}
