//! Creates the configured collections if they are missing, and records them in the database.

use ::store::vector::{self, Collection};
use config::{EmbedderKind, EmbedderSettings, Settings};
use vectors::{ALIAS, CollectionSpec, VectorError, VectorStore};

/// A collection cannot be created or used.
#[derive(Debug, thiserror::Error)]
pub enum CollectionError {
    /// No vector store is configured.
    #[error("vectors.url is not set; set it to the gRPC address of Qdrant")]
    NoStore,
    /// An embedder over HTTP lacks an option.
    #[error("{0} is not set")]
    NotSet(&'static str),
    /// Neither an embedder nor `vectors.model` defines the vectors.
    #[error(
        "no embedder is configured; set vectors.model and vectors.dimension to those of the publishers' vectors"
    )]
    NoModel,
    /// The dimension is out of range.
    #[error("{0} dimensions are too many")]
    Dimension(usize),
    /// The active collection is for another model.
    #[error(
        "the collection {name} is for {model} with {dimension} dimensions, but the configuration is for {wanted} with \
         {wanted_dimension}; `memfleet vectors migrate` migrates to it"
    )]
    OtherModel {
        /// The active collection.
        name: String,
        /// Its model.
        model: String,
        /// The length of its vectors.
        dimension: i32,
        /// The model of the configuration.
        wanted: String,
        /// The length of its vectors.
        wanted_dimension: usize,
    },
    /// The vector store.
    #[error(transparent)]
    Vectors(#[from] VectorError),
    /// The database cannot be reached.
    #[error(transparent)]
    Connect(#[from] ::store::PoolError),
    /// The database.
    #[error(transparent)]
    Database(#[from] ::store::Fault),
}

/// The model of the local embedder and its dimension.
pub const LOCAL: (&str, usize) = ("all-MiniLM-L6-v2", 384);

/// The configured vector store.
///
/// # Errors
/// [`CollectionError::NoStore`].
pub fn vectors(settings: &Settings) -> Result<VectorStore, CollectionError> {
    VectorStore::open(&settings.vectors)?.ok_or(CollectionError::NoStore)
}

/// The model, the dimension and the quantization of a collection for an embedder.
///
/// # Errors
/// If neither the embedder nor `vectors.model` defines it.
pub fn spec(settings: &Settings, embedder: &EmbedderSettings) -> Result<CollectionSpec, CollectionError> {
    let (model, dimension) = match embedder.kind {
        EmbedderKind::Local => (LOCAL.0.to_owned(), LOCAL.1),
        EmbedderKind::Http => (
            embedder.model.clone().ok_or(CollectionError::NotSet("embedder.model"))?,
            embedder.dimension.ok_or(CollectionError::NotSet("embedder.dimension"))?,
        ),
        EmbedderKind::None => match (&settings.vectors.model, settings.vectors.dimension) {
            (Some(model), Some(dimension)) => (model.clone(), dimension),
            (None, _) | (_, None) => return Err(CollectionError::NoModel),
        },
    };
    Ok(CollectionSpec { model, dimension, quantization: settings.vectors.quantization })
}

/// The database row of a collection.
///
/// # Errors
/// If its dimension is out of range.
pub fn record(spec: &CollectionSpec, state: &str) -> Result<Collection, CollectionError> {
    Ok(Collection {
        collection_name: spec.name(ALIAS),
        model: spec.model.clone(),
        dimension: i32::try_from(spec.dimension).map_err(|_| CollectionError::Dimension(spec.dimension))?,
        quantization: spec.quantization.as_str().to_owned(),
        state: state.to_owned(),
    })
}

/// Creates the active collection, or the parts of it that are missing.
///
/// # Errors
/// If a store cannot be reached, or the active collection is for another model than the configuration.
pub async fn apply(settings: &Settings) -> Result<Collection, CollectionError> {
    let (vectors, spec) = (vectors(settings)?, spec(settings, &settings.embedder)?);
    let mut connection = ::store::connect(&settings.postgres.url).await?;
    let there = vector::collections(&mut connection, ALIAS, &["active"]).await?.into_iter().next();
    let collection = match there {
        Some(active) => {
            let is_same =
                active.model == spec.model && usize::try_from(active.dimension).ok() == Some(spec.dimension);
            if !is_same {
                return Err(CollectionError::OtherModel {
                    name: active.collection_name,
                    model: active.model,
                    dimension: active.dimension,
                    wanted: spec.model,
                    wanted_dimension: spec.dimension,
                });
            }
            active
        }
        None => record(&spec, "active")?,
    };
    let quantization = config::Quantization::from_name(&collection.quantization).unwrap_or_default();
    let spec = CollectionSpec { quantization, ..spec };
    vectors.create_collection(&collection.collection_name, &spec).await?;
    vectors.point_alias(ALIAS, &collection.collection_name).await?;
    vector::put_collection(&mut connection, ALIAS, &collection).await?;
    Ok(collection)
}
