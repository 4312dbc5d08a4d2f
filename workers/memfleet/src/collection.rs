//! Collections of vectors: made, filled, switched.

use anyhow::{Context, bail, ensure};
use config::{EmbedderKind, EmbedderSettings, Settings};
use store::vector::{self, Collection};
use vectors::{ALIAS, CollectionSpec, VectorStore};

/// The model of the local embedder, and the length of its vectors.
pub const LOCAL: (&str, usize) = ("all-MiniLM-L6-v2", 384);

/// The vector store that is configured.
///
/// # Errors
/// If there is none.
pub fn vectors(settings: &Settings) -> anyhow::Result<VectorStore> {
    VectorStore::open(&settings.vectors)?
        .context("vectors.url is not set; it names the gRPC address of Qdrant")
}

/// What a collection for an embedder is made for.
///
/// # Errors
/// If neither the embedder nor `vectors.model` says it.
pub fn spec(settings: &Settings, embedder: &EmbedderSettings) -> anyhow::Result<CollectionSpec> {
    let (model, dimension) = match embedder.kind {
        EmbedderKind::Local => (LOCAL.0.to_owned(), LOCAL.1),
        EmbedderKind::Http => (
            embedder.model.clone().context("embedder.model is not set")?,
            embedder.dimension.context("embedder.dimension is not set")?,
        ),
        EmbedderKind::None => match (&settings.vectors.model, settings.vectors.dimension) {
            (Some(model), Some(dimension)) => (model.clone(), dimension),
            _ => bail!(
                "no embedder is configured, so vectors.model and vectors.dimension must say what vectors there will be"
            ),
        },
    };
    Ok(CollectionSpec { model, dimension, quantization: settings.vectors.quantization })
}

/// What the database keeps of a collection.
///
/// # Errors
/// If its dimension is out of bounds.
pub fn record(spec: &CollectionSpec, state: &str) -> anyhow::Result<Collection> {
    Ok(Collection {
        collection_name: spec.name(ALIAS),
        model: spec.model.clone(),
        dimension: i32::try_from(spec.dimension)?,
        quantization: spec.quantization.as_str().to_owned(),
        state: state.to_owned(),
    })
}

/// Makes the collection that is searched, if there is none yet, and what is missing of the one there is.
///
/// # Errors
/// If a store cannot be reached, or the collection is for another model than the configuration.
pub async fn apply(settings: &Settings) -> anyhow::Result<Collection> {
    let (vectors, spec) = (vectors(settings)?, spec(settings, &settings.embedder)?);
    let mut connection = store::connect(&settings.postgres.url).await?;
    let there = vector::collections(&mut connection, ALIAS, &["active"]).await?.into_iter().next();
    let collection = match there {
        Some(active) => {
            ensure!(
                active.model == spec.model && usize::try_from(active.dimension).ok() == Some(spec.dimension),
                "the collection {} is for {} with {} numbers, and the configuration is for {} with {}; \
                 `memfleet vectors migrate` goes over to it",
                active.collection_name,
                active.model,
                active.dimension,
                spec.model,
                spec.dimension
            );
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
