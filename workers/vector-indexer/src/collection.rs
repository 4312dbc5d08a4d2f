//! Creates the configured collections if they are missing, and records them in the database.

use ::store::vector::{self, Collection};
use config::{EmbedderKind, EmbedderSettings, Settings};
use uuid::Uuid;
use vectors::{CollectionSpec, Owner, VectorError, VectorStore};

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
    /// A collection with points belongs to nobody, and the database does not name it.
    #[error(
        "the collection {name} has {points} points and is not recorded in this database; set another vectors.alias, or, \
         if the points are of an earlier state of this database, run `memfleet vectors apply --take-over`"
    )]
    Unknown {
        /// The collection.
        name: String,
        /// The number of its points.
        points: u64,
    },
    /// A collection belongs to nobody.
    #[error("the collection {0} has no owner; `memfleet vectors apply` records this deployment as its owner")]
    NoOwner(String),
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
pub fn record(
    alias: &str,
    deployment: Uuid,
    spec: &CollectionSpec,
    state: &str,
) -> Result<Collection, CollectionError> {
    Ok(Collection {
        collection_name: spec.name(alias),
        model: spec.model.clone(),
        dimension: i32::try_from(spec.dimension).map_err(|_| CollectionError::Dimension(spec.dimension))?,
        quantization: spec.quantization.as_str().to_owned(),
        state: state.to_owned(),
        deployment,
    })
}

/// The active collection after [`apply`].
#[derive(Debug)]
pub struct Applied {
    /// The collection.
    pub collection: Collection,
    /// The collections that belong to this deployment only since then.
    pub adopted: Vec<String>,
}

/// Creates the active collection, or the parts of it that are missing, for this deployment.
///
/// # Errors
/// As [`apply_with`].
pub async fn apply(settings: &Settings) -> Result<Collection, CollectionError> {
    Ok(apply_with(settings, false).await?.collection)
}

/// Creates the active collection, or the parts of it that are missing, and records this deployment as the owner of all
/// collections in the database. `take_over`: also of those that belong to another deployment.
///
/// # Errors
/// If a store cannot be reached, the active collection is for another model than the configuration, or a collection or
/// the alias belongs to another deployment. Then nothing is changed.
pub async fn apply_with(settings: &Settings, take_over: bool) -> Result<Applied, CollectionError> {
    let (vectors, spec) = (vectors(settings)?, spec(settings, &settings.embedder)?);
    let alias = vectors.alias();
    let mut connection = ::store::connect(&settings.postgres.url).await?;
    let deployment = vector::deployment(&mut connection).await?;
    let recorded = vector::collections(&mut connection, alias, &["active", "filling", "former"]).await?;
    let collection = match recorded.iter().find(|one| one.is_active()) {
        Some(active) => {
            check_model(active, &spec)?;
            active.clone()
        }
        None => record(alias, deployment, &spec, "active")?,
    };
    let quantization = config::Quantization::from_name(&collection.quantization).unwrap_or_default();
    let spec = CollectionSpec { quantization, ..spec };
    let is_recorded = |name: &str| recorded.iter().any(|one| one.collection_name == name);
    let name = &collection.collection_name;
    let mut names: Vec<String> = recorded.iter().map(|one| one.collection_name.clone()).collect();
    names.extend([name.clone()].into_iter().filter(|name| !is_recorded(name)));
    // What is checked before anything is changed: every collection that the database names, and where the alias points.
    let target = vectors.alias_target(alias).await?.filter(|target| !names.contains(target));
    if !take_over {
        for name in names.iter().chain(&target) {
            check_claim(&vectors, name, deployment, is_recorded(name)).await?;
        }
    }
    vectors.create_collection(name, &spec).await?;
    let mut adopted = Vec::new();
    for name in &names {
        if claim(&vectors, name, deployment, take_over).await? {
            adopted.push(name.clone());
        }
    }
    vectors.point_alias(alias, name).await?;
    vector::put_collection(&mut connection, alias, &collection).await?;
    Ok(Applied { collection, adopted })
}

fn check_model(active: &Collection, spec: &CollectionSpec) -> Result<(), CollectionError> {
    let is_same =
        active.model == spec.model && usize::try_from(active.dimension).ok() == Some(spec.dimension);
    if is_same {
        return Ok(());
    }
    Err(CollectionError::OtherModel {
        name: active.collection_name.clone(),
        model: active.model.clone(),
        dimension: active.dimension,
        wanted: spec.model.clone(),
        wanted_dimension: spec.dimension,
    })
}

/// Checks that this deployment may become the owner of a collection. `is_recorded`: whether the database names it.
///
/// # Errors
/// If it belongs to another deployment, or has points and belongs to nobody, and the database does not name it.
pub async fn check_claim(
    vectors: &VectorStore,
    name: &str,
    deployment: Uuid,
    is_recorded: bool,
) -> Result<(), CollectionError> {
    if vectors.owner(name, deployment).await? == Owner::Us || is_recorded {
        return Ok(());
    }
    match vectors.find_collection(name).await? {
        Some(info) if info.points > 0 => {
            Err(CollectionError::Unknown { name: name.to_owned(), points: info.points })
        }
        Some(_) | None => Ok(()),
    }
}

/// Records this deployment as the owner of a collection. True if it was not before. A collection that does not exist
/// gets no owner.
async fn claim(
    vectors: &VectorStore,
    name: &str,
    deployment: Uuid,
    take_over: bool,
) -> Result<bool, CollectionError> {
    let is_new = !matches!(vectors.owner(name, deployment).await, Ok(Owner::Us));
    if vectors.find_collection(name).await?.is_none() {
        return Ok(false);
    }
    vectors.claim(name, deployment, take_over).await?;
    Ok(is_new)
}

/// Checks that collections belong to this deployment, before a command changes them.
///
/// # Errors
/// If one belongs to another deployment or to nobody. One that does not exist is no error.
pub async fn check_owned<'a>(
    vectors: &VectorStore,
    collections: impl IntoIterator<Item = &'a Collection>,
) -> Result<(), CollectionError> {
    for one in collections {
        let name = &one.collection_name;
        let owner = vectors.owner(name, one.deployment).await?;
        if owner == Owner::Nobody && vectors.find_collection(name).await?.is_some() {
            return Err(CollectionError::NoOwner(name.clone()));
        }
    }
    Ok(())
}
