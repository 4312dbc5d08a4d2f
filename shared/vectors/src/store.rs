//! The connection to Qdrant, and the operations on points.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use qdrant_client::qdrant::{
    Condition, DeletePointsBuilder, Filter, GetPointsBuilder, PayloadIncludeSelector, PointId, PointStruct,
    PointsIdsList, Range, ScrollPointsBuilder, UpsertPointsBuilder, vector_output::Vector,
    vectors_output::VectorsOptions,
};
use qdrant_client::{Payload, Qdrant};
use secrecy::ExposeSecret;
use uuid::Uuid;

use crate::error::VectorError;
use crate::owner_cache::OwnerCache;
use crate::point::{MEMORY, Point, StoredPoint, SupersededPoints, TENANT, WRITTEN, point_uuid};
use config::VectorSettings;

/// The maximum number of points of a call: 32 MiB with the longest vectors.
const POINTS_PER_CALL: usize = 500;

/// A vector store.
#[derive(Clone)]
pub struct VectorStore {
    pub(crate) client: Qdrant,
    pub(crate) oversampling: f64,
    alias: String,
    pub(crate) owner_cache: OwnerCache,
}

impl std::fmt::Debug for VectorStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VectorStore").finish_non_exhaustive()
    }
}

impl VectorStore {
    /// Opens the configured vector store; none if there is no URL. It connects with the first call.
    ///
    /// # Errors
    /// [`VectorError::Refused`] if the settings are invalid.
    pub fn open(settings: &VectorSettings) -> Result<Option<Self>, VectorError> {
        settings.check().map_err(VectorError::Refused)?;
        let Some(url) = &settings.url else { return Ok(None) };
        let timeout = Duration::from_millis(settings.timeout_ms);
        let client = Qdrant::from_url(url)
            .api_key(settings.api_key.as_ref().map(|key| key.expose_secret().to_owned()))
            .timeout(timeout)
            .connect_timeout(timeout)
            .skip_compatibility_check()
            .build()
            .map_err(|error| VectorError::Refused(format!("vectors.url: {error}")))?;
        let (alias, oversampling) = (settings.alias.clone(), settings.oversampling);
        Ok(Some(Self { client, oversampling, alias, owner_cache: OwnerCache::default() }))
    }

    /// The configured alias, with which the names of the collections begin.
    pub fn alias(&self) -> &str {
        &self.alias
    }

    /// Checks that it responds.
    ///
    /// # Errors
    /// [`VectorError`].
    pub async fn check(&self) -> Result<(), VectorError> {
        self.client.health_check().await?;
        Ok(())
    }

    /// Stores points, and replaces points of the same ids. It returns when the points are searchable and durable.
    ///
    /// # Errors
    /// [`VectorError`].
    pub async fn upsert(&self, collection: &str, points: Vec<Point>) -> Result<(), VectorError> {
        let mut points = points.into_iter().map(Point::into_struct).peekable();
        while points.peek().is_some() {
            let some: Vec<_> = points.by_ref().take(POINTS_PER_CALL).collect();
            self.client.upsert_points(UpsertPointsBuilder::new(collection, some).wait(true)).await?;
        }
        Ok(())
    }

    /// Checks that a collection accepts points, with a point that no search finds and that is deleted again.
    ///
    /// # Errors
    /// [`VectorError`].
    pub async fn check_upsert(&self, collection: &str, dimension: usize) -> Result<(), VectorError> {
        let id = Uuid::new_v4();
        let mut vector = vec![0.0; dimension];
        if let Some(first) = vector.first_mut() {
            *first = 1.0;
        }
        let point = PointStruct::new(id.to_string(), vector, Payload::default());
        self.client.upsert_points(UpsertPointsBuilder::new(collection, vec![point]).wait(true)).await?;
        self.delete(collection, &[id]).await
    }

    /// The vectors of those of these points that exist.
    ///
    /// # Errors
    /// [`VectorError`].
    pub async fn vectors(
        &self,
        collection: &str,
        ids: &[Uuid],
    ) -> Result<HashMap<Uuid, Vec<f32>>, VectorError> {
        let mut found = HashMap::with_capacity(ids.len());
        for ids in ids.chunks(POINTS_PER_CALL) {
            let ids: Vec<PointId> = ids.iter().map(|id| id.to_string().into()).collect();
            let request = GetPointsBuilder::new(collection, ids).with_vectors(true).with_payload(false);
            for point in self.client.get_points(request).await?.result {
                let vector = match point.vectors.and_then(|vectors| vectors.vectors_options) {
                    Some(VectorsOptions::Vector(vector)) => match vector.into_vector() {
                        Vector::Dense(dense) => dense.data,
                        Vector::Sparse(_) | Vector::MultiDense(_) => continue,
                    },
                    Some(VectorsOptions::Vectors(_)) | None => continue,
                };
                if let Some(id) = point.id.as_ref().and_then(point_uuid) {
                    found.insert(id, vector);
                }
            }
        }
        Ok(found)
    }

    /// The ids of those of these points that exist.
    ///
    /// # Errors
    /// [`VectorError`].
    pub async fn present(&self, collection: &str, ids: &[Uuid]) -> Result<HashSet<Uuid>, VectorError> {
        let mut found = HashSet::with_capacity(ids.len());
        for ids in ids.chunks(POINTS_PER_CALL) {
            let ids: Vec<PointId> = ids.iter().map(|id| id.to_string().into()).collect();
            let request = GetPointsBuilder::new(collection, ids).with_vectors(false).with_payload(false);
            let points = self.client.get_points(request).await?.result;
            found.extend(points.iter().filter_map(|point| point_uuid(point.id.as_ref()?)));
        }
        Ok(found)
    }

    /// Deletes points that later requests superseded.
    ///
    /// # Errors
    /// [`VectorError`].
    pub async fn delete_superseded(
        &self,
        collection: &str,
        superseded: &[SupersededPoints],
    ) -> Result<(), VectorError> {
        for some in superseded.chunks(100) {
            // Microseconds until the year 2255 are whole numbers in a double.
            #[allow(clippy::cast_precision_loss)]
            let condition = |one: &SupersededPoints| {
                let written = Range {
                    gte: Some(one.written.start as f64),
                    lt: Some(one.written.end as f64),
                    ..Range::default()
                };
                Filter::must([
                    Condition::matches(TENANT, one.tenant.token.to_string()),
                    Condition::matches(MEMORY, one.memory.to_string()),
                    Condition::range(WRITTEN, written),
                ])
                .into()
            };
            let filter = Filter::should(some.iter().map(condition));
            self.client.delete_points(DeletePointsBuilder::new(collection).points(filter).wait(true)).await?;
        }
        Ok(())
    }

    /// Deletes points of any tenant by their ids. For the reconciler.
    ///
    /// # Errors
    /// [`VectorError`].
    pub async fn delete(&self, collection: &str, ids: &[Uuid]) -> Result<(), VectorError> {
        for ids in ids.chunks(POINTS_PER_CALL) {
            let ids = PointsIdsList { ids: ids.iter().map(|id| id.to_string().into()).collect() };
            self.client.delete_points(DeletePointsBuilder::new(collection).points(ids).wait(true)).await?;
        }
        Ok(())
    }

    /// A page of the points of all tenants, in the order of their ids, and the id at which the next page starts. For
    /// the reconciler.
    ///
    /// # Errors
    /// [`VectorError`].
    pub async fn scroll(
        &self,
        collection: &str,
        from: Option<Uuid>,
        limit: u32,
    ) -> Result<(Vec<StoredPoint>, Option<Uuid>), VectorError> {
        let fields = [TENANT, MEMORY, WRITTEN].map(str::to_owned).to_vec();
        let mut request = ScrollPointsBuilder::new(collection)
            .limit(limit)
            .with_payload(PayloadIncludeSelector { fields })
            .with_vectors(false);
        if let Some(from) = from {
            request = request.offset(PointId::from(from.to_string()));
        }
        let answer = self.client.scroll(request).await?;
        let points = answer.result.iter().filter_map(StoredPoint::new).collect();
        Ok((points, answer.next_page_offset.as_ref().and_then(point_uuid)))
    }
}
