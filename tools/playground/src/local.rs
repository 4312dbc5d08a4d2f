//! The servers a command works on: a private stack, or the configured servers.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use cli::key_file::write_private;
use cli::services;
use config::{EmbedderKind, KeySettings, Settings};
use contract::UserId;
use diesel::QueryableByName;
use diesel::sql_types::Text;
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use keys::KEK;
use runtime::broker;
use stack::{Places, Stack, StackOptions};
use store::registry;
use tempfile::TempDir;
use topology::Service;
use trust::{CipherKey, GrantKey, KeyRing, PrivateKey};
use uuid::Uuid;
use vector_indexer::collection;
use zeroize::Zeroizing;

/// Servers with the current schema and streams.
pub struct Local {
    /// The settings to connect to them.
    pub settings: Settings,
    stack: Option<Stack>,
    /// The folder of the key files of temporary servers; removed on drop.
    _keys: Option<TempDir>,
}

impl Local {
    /// Starts private servers in a folder that is removed when they stop.
    ///
    /// # Errors
    /// If a server's program is missing, or a server cannot be started or set up.
    pub async fn temporary(settings: &Settings, options: StackOptions) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("cannot create a folder for keys")?;
        let keys = KeyFiles::of(folder.path());
        let stack = Stack::temporary(secured(options, &keys, &[])?).await?;
        let settings = set_up_private(&stack, &with_accounts(settings, &keys), &keys).await?;
        Ok(Self { settings, stack: Some(stack), _keys: Some(folder) })
    }

    /// As [`Local::temporary`], without NATS accounts, encryption at rest and payload encryption: the baseline for
    /// measuring their cost.
    ///
    /// # Errors
    /// As [`Local::temporary`].
    pub async fn unsecured(settings: &Settings) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("cannot create a folder for keys")?;
        let stack = Stack::temporary(StackOptions::default()).await?;
        let mut inner = settings.clone();
        (inner.nats.nkey_file, inner.nats.api_prefix) = (None, None);
        inner.nats.url = stack.nats.url().to_owned();
        let mut settings = set_up_private(&stack, &inner, &KeyFiles::of(folder.path())).await?;
        settings.trust.payload_ring_file = None;
        Ok(Self { settings, stack: Some(stack), _keys: Some(folder) })
    }

    /// Starts private servers in a folder that is kept. Web pages may subscribe to the events of these users.
    ///
    /// # Errors
    /// If a server's program is missing, or a server cannot be started or set up.
    pub async fn kept(
        settings: &Settings,
        folder: &Path,
        mut options: StackOptions,
        listeners: &[UserId],
    ) -> anyhow::Result<Self> {
        let keys = KeyFiles::of(folder);
        options.nats.websocket = !listeners.is_empty();
        let stack = Stack::start(folder, secured(options, &keys, listeners)?).await?;
        let settings = set_up_private(&stack, &with_accounts(settings, &keys), &keys).await?;
        Ok(Self { settings, stack: Some(stack), _keys: None })
    }

    /// Uses the configured servers as they are.
    pub fn running(settings: &Settings) -> Self {
        Self { settings: settings.clone(), stack: None, _keys: None }
    }

    /// The private servers, if they are private.
    pub fn stack(&self) -> Option<&Stack> {
        self.stack.as_ref()
    }

    /// Stops the servers if they are private.
    ///
    /// # Errors
    /// If a server does not stop cleanly.
    pub async fn stop(self) -> anyhow::Result<()> {
        match self.stack {
            Some(stack) => stack.stop().await.context("the private servers did not stop cleanly"),
            None => Ok(()),
        }
    }
}

/// Paths of the key files of private servers.
struct KeyFiles {
    grant: PathBuf,
    token: PathBuf,
    seal: PathBuf,
    /// The key that signs receipts of erasures.
    receipt: PathBuf,
    /// The folder of receipts.
    receipts: PathBuf,
    /// Key-encryption keys.
    kek: PathBuf,
    /// The services' payload keys.
    payload: PathBuf,
    /// The key of JetStream's encryption at rest.
    storage: PathBuf,
    /// The folder with an nkey for each NATS identity.
    nkeys: PathBuf,
    /// The folder with the password of each worker's database role.
    passwords: PathBuf,
}

impl KeyFiles {
    fn of(folder: &Path) -> Self {
        let file = |name| folder.join(name);
        Self {
            grant: file("grant.key"),
            token: file("token.key"),
            seal: file("seal.key"),
            receipt: file("receipt.key"),
            receipts: file("receipts"),
            kek: file("kek.ring"),
            payload: file("payload.ring"),
            storage: file("storage.key"),
            nkeys: file("nkeys"),
            passwords: file("passwords"),
        }
    }
}

/// Options for a private broker that authenticates all clients by nkey, as in production, and encrypts its storage.
fn secured(mut options: StackOptions, keys: &KeyFiles, listeners: &[UserId]) -> anyhow::Result<StackOptions> {
    let mut services = Service::shipped()?;
    services.extend(listeners.iter().copied().map(Service::listener));
    let public = topology::make_nkeys(&keys.nkeys, &topology::identities(&services))?;
    options.nats.accounts = Some(topology::render(&services, &public));
    make_key(&keys.storage, || Ok(Zeroizing::new(Uuid::new_v4().simple().to_string())))?;
    let key = std::fs::read_to_string(&keys.storage)
        .with_context(|| format!("cannot read {}", keys.storage.display()))?;
    options.nats.storage_key = Some(key.trim().to_owned());
    Ok(options)
}

/// Settings to connect to a broker with accounts.
fn with_accounts(settings: &Settings, keys: &KeyFiles) -> Settings {
    let mut settings = settings.clone();
    settings.nats.nkey_file = Some(keys.nkeys.join("{name}.nk").display().to_string());
    settings.nats.api_prefix = Some(topology::API_PREFIX.to_owned());
    settings
}

fn is_empty(file: &Path) -> bool {
    std::fs::metadata(file).map_or(0, |file| file.len()) == 0
}

/// Makes the keys that the folder lacks. They are kept with it: its data depends on them, and so do the requests that are
/// in its streams when the servers stop.
fn make_keys(keys: &KeyFiles) -> anyhow::Result<()> {
    make_key(&keys.grant, || Ok(Zeroizing::new(GrantKey::generate("private")?.expose_line())))?;
    for file in [&keys.token, &keys.seal, &keys.receipt] {
        make_key(file, || Ok(Zeroizing::new(PrivateKey::generate("private")?.expose_line())))?;
    }
    make_key(&keys.kek, || Ok(KeyRing::expose_line(KEK, &CipherKey::generate(1)?)))?;
    make_key(&keys.payload, || {
        let line = |service: &Service| Ok(KeyRing::expose_line(&service.service, &CipherKey::generate(1)?));
        let lines: Vec<Zeroizing<String>> =
            Service::shipped()?.iter().map(line).collect::<anyhow::Result<_>>()?;
        Ok(Zeroizing::new(lines.iter().map(|line| line.as_str()).collect()))
    })
}

/// Writes a key, unless the file has one.
fn make_key(file: &Path, line: impl FnOnce() -> anyhow::Result<Zeroizing<String>>) -> anyhow::Result<()> {
    if is_empty(file) { write_key(file, &line()?) } else { Ok(()) }
}

/// Makes a folder that only its owner can read, if it is missing.
fn make_folder(folder: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("cannot create {}", folder.display()))
}

/// Gives the database role of each worker a new password, in a file of its own.
async fn make_passwords(connection: &mut AsyncPgConnection, folder: &Path) -> anyhow::Result<()> {
    make_folder(folder)?;
    let mut made = Vec::new();
    store::security::set_worker_passwords(connection, |role| {
        let password = Uuid::new_v4().simple().to_string();
        made.push((folder.join(role), Zeroizing::new(password.clone())));
        password
    })
    .await?;
    for (file, password) in made {
        write_key(&file, &password)?;
    }
    Ok(())
}

/// Sets up private servers. The passwords of the workers' roles are new each time.
async fn set_up_private(stack: &Stack, settings: &Settings, keys: &KeyFiles) -> anyhow::Result<Settings> {
    let mut settings = settings.clone();
    let url = stack.postgres.url("memfleet");
    settings.nats.url = stack.nats.url().to_owned();
    settings.nats.credentials_file = None;
    settings.nats.ca_file = None;
    settings.postgres.url = url.clone();
    settings.keys = KeySettings { url: stack.postgres.url(KEY_STORE), ..KeySettings::default() };
    create_key_store(&settings).await?;
    set_up(&settings).await?;
    if let Some(qdrant) = &stack.qdrant {
        settings.vectors.url = Some(qdrant.url());
        settings.vectors.api_key = Some(qdrant.api_key().into());
        embed_here(&mut settings);
        collection::apply(&settings).await?;
    }

    make_keys(keys)?;
    let key = GrantKey::read(&keys.grant)?;
    let token_key = PrivateKey::read(&keys.token)?;
    let mut connection = store::connect(&url).await?;
    for database in [&mut connection, &mut store::connect(&settings.keys.url).await?] {
        store::security::add_grant_key(database, key.name(), key.expose()).await?;
    }
    anyhow::ensure!(
        registry::add_token_key(&mut connection, &token_key.public()).await?,
        "the key in {} differs from the one registered in the database under its name",
        keys.token.display()
    );
    services::register(&mut connection, Service::shipped()?).await?;
    make_passwords(&mut connection, &keys.passwords).await?;
    let place = url.rsplit_once('@').map_or(url.as_str(), |(_, place)| place);
    let server = place.rsplit_once('/').map_or(place, |(server, _)| server);
    let password = format!("password_file={}", keys.passwords.join("{role}").display());
    settings.postgres.worker_url = Some(format!("postgres://{{role}}@{place}?{password}"));
    // Roles belong to the server, so the key store has the same ones.
    settings.keys.worker_url = Some(format!("postgres://{{role}}@{server}/{KEY_STORE}?{password}"));
    settings.keys.ring_file = Some(keys.kek.display().to_string());
    settings.trust.payload_ring_file = Some(keys.payload.display().to_string());
    settings.trust.grant_key_file = Some(keys.grant.display().to_string());
    settings.trust.token_key_file = Some(keys.token.display().to_string());
    settings.audit.seal_key_file = Some(keys.seal.display().to_string());
    settings.audit.public_keys_file = None;
    make_folder(&keys.receipts)?;
    settings.privacy.receipt_key_file = Some(keys.receipt.display().to_string());
    settings.privacy.public_keys_file = None;
    settings.privacy.receipt_url = Some(format!("file://{}", keys.receipts.display()));
    Ok(settings)
}

/// If no embedder is configured, embeds texts in this process, provided that `make setup` has downloaded the model.
/// Otherwise, publishers must supply vectors.
fn embed_here(settings: &mut Settings) {
    if settings.embedder.kind != EmbedderKind::None {
        return;
    }
    let (model, dimension) = collection::LOCAL;
    let weights = Places::of_this_process().home().join("models").join(model);
    if settings.vectors.model.is_none() && weights.join("model.safetensors").is_file() {
        settings.embedder.kind = EmbedderKind::Local;
        settings.embedder.weights = Some(weights);
    } else {
        settings.vectors.model.get_or_insert_with(|| model.to_owned());
        settings.vectors.dimension.get_or_insert(dimension);
    }
}

fn write_key(file: &Path, line: &str) -> anyhow::Result<()> {
    write_private(file, line).with_context(|| format!("cannot write {}", file.display()))
}

/// The key store of private servers: a separate database on the same PostgreSQL server.
const KEY_STORE: &str = "memfleet_keys";

/// Creates the key store's database, if it does not exist.
async fn create_key_store(settings: &Settings) -> anyhow::Result<()> {
    #[derive(QueryableByName)]
    struct Name {
        #[diesel(sql_type = Text)]
        #[allow(dead_code, reason = "only the row's existence matters")]
        name: String,
    }
    let mut connection = store::connect(&settings.postgres.url).await?;
    let query = diesel::sql_query("SELECT datname::text AS name FROM pg_database WHERE datname = $1");
    let existing: Vec<Name> = query.bind::<Text, _>(KEY_STORE).load(&mut connection).await?;
    if existing.is_empty() {
        connection.batch_execute(&format!("CREATE DATABASE {KEY_STORE}")).await?;
    }
    Ok(())
}

/// Migrates the database and the key store, and creates streams and consumers.
async fn set_up(settings: &Settings) -> anyhow::Result<()> {
    let url = &settings.postgres.url;
    store::migration::MAIN.up(store::connect(url).await?).await?;
    keys::SCHEMA.up(store::connect(&settings.keys.url).await?).await?;
    // A kept folder may be months old and lack current partitions.
    store::partition::create_ahead(&mut store::connect(url).await?, store::partition::MONTHS_AHEAD).await?;
    let client = broker::connect_operator(&settings.nats, "provision").await?;
    let jetstream = async_nats::jetstream::new(client);
    topology::apply(&jetstream, &topology::Topology::shipped()?).await?;
    Ok(())
}
