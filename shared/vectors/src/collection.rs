//! Collections: one per model, dimension and quantization.

use qdrant_client::qdrant::{
    BinaryQuantizationBuilder, CollectionStatus, CreateAliasBuilder, CreateCollectionBuilder,
    CreateFieldIndexCollectionBuilder, Distance, FieldType, HnswConfigDiffBuilder, IntegerIndexParamsBuilder,
    KeywordIndexParamsBuilder, QuantizationType, ScalarQuantizationBuilder, UuidIndexParamsBuilder,
    VectorParamsBuilder, payload_index_params::IndexParams,
    quantization_config::Quantization as QdrantQuantization,
};

use crate::error::VectorError;
use crate::point::{MEMORY, META, SESSION, TENANT, TIME, TYPE, WRITTEN};
use crate::store::VectorStore;
use config::Quantization;

/// The parameters of a collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollectionSpec {
    /// The model.
    pub model: String,
    /// The number of dimensions.
    pub dimension: usize,
    /// How vectors are quantized in memory.
    pub quantization: Quantization,
}

impl CollectionSpec {
    /// The name of the collection behind an alias.
    pub fn name(&self, alias: &str) -> String {
        let model: String = self
            .model
            .chars()
            .map(|char| if char.is_ascii_alphanumeric() { char.to_ascii_lowercase() } else { '-' })
            .take(60)
            .collect();
        format!("{alias}__{model}__{}__{}", self.dimension, self.quantization.as_str())
    }
}

/// The state of a collection, as the vector store reports it.
#[derive(Clone, Copy, Debug)]
pub struct CollectionInfo {
    /// The number of points.
    pub points: u64,
    /// The number of indexed vectors.
    pub indexed: u64,
    /// Whether the optimizer is idle (status green).
    pub is_settled: bool,
}

impl VectorStore {
    /// Creates a collection and its payload indexes unless they exist. Existing ones are not changed.
    ///
    /// # Errors
    /// [`VectorError`].
    pub async fn create_collection(&self, name: &str, spec: &CollectionSpec) -> Result<(), VectorError> {
        if !self.client.collection_exists(name).await? {
            let size = u64::try_from(spec.dimension).unwrap_or(u64::MAX);
            // An HNSW graph per tenant and none across tenants: every search filters by one user.
            let hnsw = HnswConfigDiffBuilder::default().m(0).payload_m(16);
            let vector = VectorParamsBuilder::new(size, Distance::Cosine)
                .on_disk(spec.quantization != Quantization::None)
                .hnsw_config(hnsw);
            let quantization: Option<QdrantQuantization> = match spec.quantization {
                Quantization::None => None,
                Quantization::Int8 => Some(
                    ScalarQuantizationBuilder::default()
                        .r#type(QuantizationType::Int8.into())
                        .quantile(0.99)
                        .always_ram(true)
                        .into(),
                ),
                Quantization::Binary => Some(BinaryQuantizationBuilder::new(true).into()),
            };
            let mut create = CreateCollectionBuilder::new(name).vectors_config(vector);
            if let Some(quantization) = quantization {
                create = create.quantization_config(quantization);
            }
            self.client.create_collection(create).await?;
        }
        // The tenant's index comes first, because graphs are built per tenant. The other indexes build no graphs: every
        // search has a tenant, and a graph per type would take long to build and serve no search.
        let tenant =
            IndexParams::KeywordIndexParams(KeywordIndexParamsBuilder::default().is_tenant(true).build());
        let keyword = KeywordIndexParamsBuilder::default().enable_hnsw(false).build();
        let keyword = || IndexParams::KeywordIndexParams(keyword.clone());
        let number = IntegerIndexParamsBuilder::new(false, true).enable_hnsw(false).build();
        let number = || IndexParams::IntegerIndexParams(number.clone());
        let uuid = UuidIndexParamsBuilder::default().enable_hnsw(false).build();
        let indexes = [
            (TENANT, FieldType::Keyword, tenant),
            (MEMORY, FieldType::Uuid, IndexParams::UuidIndexParams(uuid)),
            (SESSION, FieldType::Keyword, keyword()),
            (TYPE, FieldType::Keyword, keyword()),
            (TIME, FieldType::Integer, number()),
            (META, FieldType::Keyword, keyword()),
            // Used to delete superseded points.
            (WRITTEN, FieldType::Integer, number()),
        ];
        for (field, field_type, params) in indexes {
            let index = CreateFieldIndexCollectionBuilder::new(name, field, field_type)
                .field_index_params(params)
                .wait(true);
            self.client.create_field_index(index).await?;
        }
        Ok(())
    }

    /// Points the alias to a collection.
    ///
    /// # Errors
    /// [`VectorError`].
    pub async fn point_alias(&self, alias: &str, collection: &str) -> Result<(), VectorError> {
        // Qdrant replaces an existing alias atomically.
        self.client.create_alias(CreateAliasBuilder::new(collection, alias)).await?;
        Ok(())
    }

    /// The collection that the alias points to.
    ///
    /// # Errors
    /// [`VectorError`].
    pub async fn alias_target(&self, alias: &str) -> Result<Option<String>, VectorError> {
        let there = self.client.list_aliases().await?;
        Ok(there.aliases.into_iter().find(|one| one.alias_name == alias).map(|one| one.collection_name))
    }

    /// The state of a collection; none if it does not exist.
    ///
    /// # Errors
    /// [`VectorError`].
    pub async fn find_collection(&self, name: &str) -> Result<Option<CollectionInfo>, VectorError> {
        match self.collection_info(name).await {
            Ok(info) => Ok(Some(info)),
            Err(VectorError::NoCollection(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The state of a collection.
    ///
    /// # Errors
    /// [`VectorError`].
    pub async fn collection_info(&self, name: &str) -> Result<CollectionInfo, VectorError> {
        let answer = self.client.collection_info(name).await?;
        let info = answer
            .result
            .ok_or_else(|| VectorError::Unavailable("the response contains no collection info".to_owned()))?;
        Ok(CollectionInfo {
            points: info.points_count.unwrap_or(0),
            indexed: info.indexed_vectors_count.unwrap_or(0),
            is_settled: info.status() == CollectionStatus::Green,
        })
    }

    /// Deletes a collection and all of its points.
    ///
    /// # Errors
    /// [`VectorError`].
    pub async fn drop_collection(&self, name: &str) -> Result<(), VectorError> {
        self.client.delete_collection(name).await?;
        Ok(())
    }
}
