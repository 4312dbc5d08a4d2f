//! The one search. It cannot be asked without a user.

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

/// Where few memories are enough, so many points are asked for at first for each: texts that are not long have one or two, and what
/// was replaced a moment ago has some.
const POINTS_A_MEMORY: usize = 8;
/// And at least so many.
const FEWEST_POINTS: u64 = 40;

/// What is looked for among the points of a user.
#[derive(Clone, Debug, Default)]
pub struct VectorQuery {
    /// The vector.
    pub vector: Vec<f32>,
    /// Only points of these types; none: of any.
    pub vector_types: Vec<VectorType>,
    /// Only those of this session.
    pub session: Option<SessionId>,
    /// Only what was said in this time, in milliseconds since 1970.
    pub time: Range<Option<i64>>,
    /// Only those that have all of these. See [`metadata_digests`](crate::metadata_digests).
    pub meta: Vec<String>,
    /// Whether every point is compared, by its original vector.
    pub exact: bool,
    /// The most points.
    pub limit: u64,
    /// Where so many memories are enough: fewer points are asked for at first, and all of them only if those are of too few memories.
    pub enough: Option<usize>,
}

/// A memory that was found: that of a point, and how like it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoredMemory {
    /// The memory.
    pub memory: Uuid,
    /// The cosine.
    pub cosine: f32,
}

impl VectorQuery {
    /// Whose it is always comes first: there is no filter without it.
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
    /// The memories of a user that are most like a vector, each once, the most alike first.
    ///
    /// # Errors
    /// [`VectorError`].
    pub async fn search(
        &self,
        tenant: &Tenant,
        collection: &str,
        query: &VectorQuery,
    ) -> Result<Vec<ScoredMemory>, VectorError> {
        let some = |enough: usize| u64::try_from(enough.saturating_mul(POINTS_A_MEMORY)).unwrap_or(u64::MAX);
        let at_first =
            query.enough.map_or(query.limit, |enough| some(enough).max(FEWEST_POINTS).min(query.limit));
        let points = self.points(tenant, collection, query, at_first).await?;
        let is_cut =
            at_first < query.limit && u64::try_from(points.len()).is_ok_and(|count| count >= at_first);
        let found = best_of_each(points);
        if is_cut && query.enough.is_some_and(|enough| found.len() < enough) {
            return Ok(best_of_each(self.points(tenant, collection, query, query.limit).await?));
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

/// Each memory once, by its best point, in the order of these.
fn best_of_each(points: Vec<ScoredPoint>) -> Vec<ScoredMemory> {
    let mut seen = HashSet::new();
    let found = points.into_iter().filter_map(|point| {
        let memory = text(&point.payload, MEMORY)?.parse().ok()?;
        seen.insert(memory).then_some(ScoredMemory { memory, cosine: point.score })
    });
    found.collect()
}
