//! The one search. It cannot be asked without a user.

use std::collections::HashMap;
use std::ops::Range;

use contract::{SessionId, VectorType};
use qdrant_client::qdrant::{
    Condition, Filter, PayloadIncludeSelector, QuantizationSearchParamsBuilder, QueryPointsBuilder,
    Range as QdrantRange, SearchParamsBuilder,
};
use uuid::Uuid;

use crate::error::VectorError;
use crate::point::{MEMORY, META, SESSION, TENANT, TIME, TYPE, Tenant, text};
use crate::vectors::Vectors;

/// What is looked for among the points of a user.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// The vector.
    pub vector: Vec<f32>,
    /// Only points of these types; none: of any.
    pub vector_types: Vec<VectorType>,
    /// Only those of this session.
    pub session: Option<SessionId>,
    /// Only what was said in this time, in milliseconds since 1970.
    pub time: Range<Option<i64>>,
    /// Only those that have all of these. See [`meta_digests`](crate::meta_digests).
    pub meta: Vec<String>,
    /// Whether every point is compared, by its original vector.
    pub exact: bool,
    /// The most points.
    pub limit: u64,
}

/// A memory that was found: that of a point, and how like it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// The memory.
    pub memory: Uuid,
    /// The cosine.
    pub cosine: f32,
}

impl Query {
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

impl Vectors {
    /// The memories of a user that are most like a vector, each once, the most alike first.
    ///
    /// # Errors
    /// [`VectorError`].
    pub async fn search(
        &self,
        tenant: &Tenant,
        collection: &str,
        query: &Query,
    ) -> Result<Vec<Found>, VectorError> {
        let quantization =
            QuantizationSearchParamsBuilder::default().rescore(true).oversampling(self.oversampling);
        let params = SearchParamsBuilder::default().exact(query.exact).quantization(quantization);
        let request = QueryPointsBuilder::new(collection)
            .query(query.vector.clone())
            .filter(query.filter(tenant))
            .params(params)
            .limit(query.limit)
            .with_payload(PayloadIncludeSelector { fields: vec![MEMORY.to_owned()] });
        let answer = self.client.query(request).await?;
        let mut best: HashMap<Uuid, usize> = HashMap::new();
        let mut found: Vec<Found> = Vec::with_capacity(answer.result.len());
        for point in answer.result {
            let Some(memory) = text(&point.payload, MEMORY).and_then(|id| id.parse().ok()) else { continue };
            // A long text has several points; its best one comes first.
            best.entry(memory).or_insert_with(|| {
                found.push(Found { memory, cosine: point.score });
                found.len()
            });
        }
        Ok(found)
    }
}
