//! All points of a tenant, for the erasure of a user. The pseudonym alone is known there, and not the keys of a [`Tenant`](crate::Tenant).

use qdrant_client::qdrant::{Condition, CountPointsBuilder, DeletePointsBuilder, Filter};
use uuid::Uuid;

use crate::error::VectorError;
use crate::point::TENANT;
use crate::store::VectorStore;

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
}
