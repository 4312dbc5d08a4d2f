//! All points of a tenant, for the erasure of a user and for the export of what is stored of one. The pseudonym alone is known there, and not
//! the keys of a [`Tenant`](crate::Tenant).

use qdrant_client::qdrant::{
    Condition, CountPointsBuilder, DeletePointsBuilder, Filter, PointId, RetrievedPoint, ScrollPointsBuilder,
    VectorOutput, vector_output::Vector, vectors_output::VectorsOptions,
};
use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::error::VectorError;
use crate::point::{TENANT, point_uuid};
use crate::store::VectorStore;

/// A point with all that the vector store has of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WholePoint {
    /// Its id.
    pub id: Uuid,
    /// All fields of its payload.
    pub payload: Map<String, Value>,
    /// The numbers of its vector, or an object with each of its named vectors. [`Value::Null`] if it has none.
    pub vector: Value,
}

impl WholePoint {
    /// None for a point whose id is no UUID: this program writes none.
    fn new(point: RetrievedPoint) -> Option<Self> {
        let id = point.id.as_ref().and_then(point_uuid)?;
        let payload = point.payload.into_iter().map(|(field, value)| (field, value.into_json())).collect();
        let vector = match point.vectors.and_then(|vectors| vectors.vectors_options) {
            Some(VectorsOptions::Vector(vector)) => numbers(vector),
            Some(VectorsOptions::Vectors(named)) => {
                named.vectors.into_iter().map(|(name, vector)| (name, numbers(vector))).collect()
            }
            None => Value::Null,
        };
        Some(Self { id, payload, vector })
    }
}

fn numbers(vector: VectorOutput) -> Value {
    match vector.into_vector() {
        Vector::Dense(dense) => dense.data.into(),
        Vector::Sparse(sparse) => {
            serde_json::json!({ "indices": sparse.indices, "values": sparse.values })
        }
        Vector::MultiDense(several) => several.vectors.into_iter().map(|one| Value::from(one.data)).collect(),
    }
}

fn of_tenant(tenant: Uuid) -> Filter {
    Filter::must([Condition::matches(TENANT, tenant.to_string())])
}

impl VectorStore {
    /// Deletes all points of a tenant. It returns when no search finds them.
    ///
    /// # Errors
    /// [`VectorError`].
    pub async fn delete_tenant(&self, collection: &str, tenant: Uuid) -> Result<(), VectorError> {
        let delete = DeletePointsBuilder::new(collection).points(of_tenant(tenant)).wait(true);
        self.client.delete_points(delete).await?;
        Ok(())
    }

    /// The exact number of points of a tenant.
    ///
    /// # Errors
    /// [`VectorError`].
    pub async fn count_tenant(&self, collection: &str, tenant: Uuid) -> Result<u64, VectorError> {
        let count = CountPointsBuilder::new(collection).filter(of_tenant(tenant)).exact(true);
        let counted = self.client.count(count).await?.result;
        let counted =
            counted.ok_or_else(|| VectorError::Unavailable("the response contains no count".to_owned()))?;
        Ok(counted.count)
    }

    /// A page of at most `limit` points of a tenant with their payloads and vectors, in the order of their ids, and the id at which the next
    /// page starts.
    ///
    /// # Errors
    /// [`VectorError`].
    pub async fn scroll_tenant(
        &self,
        collection: &str,
        tenant: Uuid,
        from: Option<Uuid>,
        limit: u32,
    ) -> Result<(Vec<WholePoint>, Option<Uuid>), VectorError> {
        let mut request = ScrollPointsBuilder::new(collection)
            .filter(of_tenant(tenant))
            .limit(limit)
            .with_payload(true)
            .with_vectors(true);
        if let Some(from) = from {
            request = request.offset(PointId::from(from.to_string()));
        }
        let answer = self.client.scroll(request).await?;
        let points: Option<Vec<WholePoint>> = answer.result.into_iter().map(WholePoint::new).collect();
        let next = answer.next_page_offset.as_ref().map(|id| point_uuid(id).ok_or(()));
        match (points, next.transpose()) {
            (Some(points), Ok(next)) => Ok((points, next)),
            (None, _) | (_, Err(())) => Err(VectorError::Refused(format!(
                "the collection {collection} has a point whose id is no UUID, which no program of ours writes"
            ))),
        }
    }
}
