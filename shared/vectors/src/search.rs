//! Search. A query without a tenant cannot be expressed.

use std::collections::HashSet;
use std::ops::Range;

use contract::{SessionId, VectorType};
use qdrant_client::qdrant::{
    Condition, Filter, PayloadIncludeSelector, QuantizationSearchParamsBuilder, QueryPointsBuilder,
    Range as QdrantRange, ScoredPoint, SearchParamsBuilder,
};
use uuid::Uuid;

use crate::error::VectorError;
use crate::point::{MEMORY, META, SESSION, TENANT, TIME, TYPE, Tenant, text};
use crate::store::VectorStore;

/// How many points are requested per memory at first if few memories are enough: short texts have one or two points,
/// and superseded points may not be deleted yet.
const POINTS_PER_MEMORY: usize = 8;
/// The fewest points that are requested at first.
const MIN_POINTS: u64 = 40;

/// A search among the points of a user.
#[derive(Clone, Debug, Default)]
pub struct VectorQuery {
    /// The vector.
    pub vector: Vec<f32>,
    /// The types to search; empty for all.
    pub vector_types: Vec<VectorType>,
    /// The session to search; none for all.
    pub session: Option<SessionId>,
    /// The range of times to search, in milliseconds since 1970.
    pub time: Range<Option<i64>>,
    /// The metadata values that a memory must have, all of them. See [`metadata_digests`](crate::metadata_digests).
    pub meta: Vec<String>,
    /// Whether to compare every point by its original vector, without the index and quantization.
    pub exact: bool,
    /// The maximum number of points to read.
    pub limit: u64,
    /// How many memories are enough. Fewer points are read at first, and `limit` points only if the first ones belong
    /// to too few memories.
    pub enough: Option<usize>,
}

/// A memory with the score of its best point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoredMemory {
    /// The memory.
    pub memory: Uuid,
    /// The cosine similarity.
    pub cosine: f32,
}

impl VectorQuery {
    /// The filter. The tenant is always its first condition.
    fn filter(&self, tenant: &Tenant) -> Filter {
        let mut must = vec![Condition::matches(TENANT, tenant.token.to_string())];
        if !self.vector_types.is_empty() {
            let types: Vec<String> = self.vector_types.iter().map(|one| one.as_str().to_owned()).collect();
            must.push(Condition::matches(TYPE, types));
        }
        if let Some(session) = &self.session {
            must.push(Condition::matches(SESSION, tenant.session(session)));
        }
        if self.time.start.is_some() || self.time.end.is_some() {
            // Milliseconds until the year 287396 are whole numbers in a double.
            #[allow(clippy::cast_precision_loss)]
            let bound = |time: Option<i64>| time.map(|time| time as f64);
            let range = QdrantRange {
                gte: bound(self.time.start),
                lt: bound(self.time.end),
                ..QdrantRange::default()
            };
            must.push(Condition::range(TIME, range));
        }
        must.extend(self.meta.iter().map(|digest| Condition::matches(META, digest.clone())));
        Filter::must(must)
    }
}

impl VectorStore {
    /// The memories of a user that are most similar to a vector, each once, most similar first.
    ///
    /// # Errors
    /// [`VectorError`].
    pub async fn search(
        &self,
        tenant: &Tenant,
        collection: &str,
        query: &VectorQuery,
    ) -> Result<Vec<ScoredMemory>, VectorError> {
        let some =
            |enough: usize| u64::try_from(enough.saturating_mul(POINTS_PER_MEMORY)).unwrap_or(u64::MAX);
        let at_first =
            query.enough.map_or(query.limit, |enough| some(enough).max(MIN_POINTS).min(query.limit));
        let points = self.points(tenant, collection, query, at_first).await?;
        let is_cut =
            at_first < query.limit && u64::try_from(points.len()).is_ok_and(|count| count >= at_first);
        let found = best_per_memory(points);
        if is_cut && query.enough.is_some_and(|enough| found.len() < enough) {
            return Ok(best_per_memory(self.points(tenant, collection, query, query.limit).await?));
        }
        Ok(found)
    }

    async fn points(
        &self,
        tenant: &Tenant,
        collection: &str,
        query: &VectorQuery,
        limit: u64,
    ) -> Result<Vec<ScoredPoint>, VectorError> {
        let quantization =
            QuantizationSearchParamsBuilder::default().rescore(true).oversampling(self.oversampling);
        let params = SearchParamsBuilder::default().exact(query.exact).quantization(quantization);
        let request = QueryPointsBuilder::new(collection)
            .query(query.vector.clone())
            .filter(query.filter(tenant))
            .params(params)
            .limit(limit)
            .with_payload(PayloadIncludeSelector { fields: vec![MEMORY.to_owned()] });
        Ok(self.client.query(request).await?.result)
    }
}

/// Each memory once, by its best point, in the order of the points.
fn best_per_memory(points: Vec<ScoredPoint>) -> Vec<ScoredMemory> {
    let mut seen = HashSet::new();
    let found = points.into_iter().filter_map(|point| {
        let memory = text(&point.payload, MEMORY)?.parse().ok()?;
        seen.insert(memory).then_some(ScoredMemory { memory, cosine: point.score })
    });
    found.collect()
}
