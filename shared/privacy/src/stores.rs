//! The stores that an erasure works on. All but the main database are opened by the step that needs them: one that is away stops that step
//! only.

use std::path::Path;

use ::vectors::VectorStore;
use async_nats::jetstream;
use audit::anchor::Anchors;
use config::Settings;
use diesel_async::SimpleAsyncConnection;
use runtime::broker;
use store::{Connection, Fault};
use trust::{KeyError, PrivateKey, PublicKey};

use crate::error::{PrivacyError, Store};

/// The stores, under an operator's rights.
pub struct Stores {
    /// The main database.
    pub database: Connection,
    pub(crate) settings: Settings,
    key_store: Option<Connection>,
    jetstream: Option<jetstream::Context>,
}

impl std::fmt::Debug for Stores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stores").finish_non_exhaustive()
    }
}

fn away(store: Store, problem: impl ToString) -> PrivacyError {
    PrivacyError::Away { store, reason: problem.to_string() }
}

impl Stores {
    /// Connects to the main database.
    ///
    /// # Errors
    /// [`PrivacyError::Connection`] if it cannot be reached.
    pub async fn open(settings: &Settings) -> Result<Self, PrivacyError> {
        let database = operator(&settings.postgres.url).await?;
        Ok(Self { database, settings: settings.clone(), key_store: None, jetstream: None })
    }

    /// The main database, and the key store.
    pub(crate) async fn databases(&mut self) -> Result<(&mut Connection, &mut Connection), PrivacyError> {
        let Self { database, settings, key_store, .. } = self;
        let opened = match key_store.take() {
            Some(opened) => opened,
            None => operator(&settings.keys.url).await.map_err(|error| away(Store::KeyStore, error))?,
        };
        Ok((database, key_store.insert(opened)))
    }

    /// The broker.
    pub(crate) async fn jetstream(&mut self) -> Result<jetstream::Context, PrivacyError> {
        if let Some(jetstream) = &self.jetstream {
            return Ok(jetstream.clone());
        }
        let client = broker::connect_operator(&self.settings.nats, "privacy").await;
        let jetstream = jetstream::new(client.map_err(|error| away(Store::Broker, error))?);
        self.jetstream = Some(jetstream.clone());
        Ok(jetstream)
    }

    /// The vector store; none if this deployment has none.
    pub(crate) fn vectors(&self) -> Result<Option<VectorStore>, PrivacyError> {
        Ok(VectorStore::open(&self.settings.vectors)?)
    }

    /// The anchors of seals.
    pub(crate) async fn anchors(&mut self) -> Result<Anchors, PrivacyError> {
        Ok(Anchors::new(self.jetstream().await?))
    }
}

/// The key that signs seals; none if another process seals.
pub(crate) fn seal_key(settings: &Settings) -> Result<Option<PrivateKey>, PrivacyError> {
    let failed = |error: KeyError| PrivacyError::Settings(format!("audit.seal_key_file: {error}"));
    let file = settings.audit.seal_key_file.as_ref();
    file.map(|file| PrivateKey::read(Path::new(file)).map_err(failed)).transpose()
}

/// The keys that seals may be signed with; none if none is configured.
pub(crate) fn seal_keys(settings: &Settings) -> Result<Vec<PublicKey>, PrivacyError> {
    match &settings.audit.public_keys_file {
        Some(file) => PublicKey::read_all(Path::new(file))
            .map_err(|error| PrivacyError::Settings(format!("audit.public_keys_file: {error}"))),
        None => Ok(seal_key(settings)?.iter().map(PrivateKey::public).collect()),
    }
}

/// A connection that sees the rows of everybody. With a role that does not, each statement about rows of users is an error. Whoever keeps rows
/// locked holds up one erasure and no other.
pub(crate) async fn operator(url: &str) -> Result<Connection, PrivacyError> {
    let mut connection = store::connect(url).await?;
    connection
        .batch_execute("SET row_security = off; SET lock_timeout = '30s'")
        .await
        .map_err(Fault::from)?;
    Ok(connection)
}
