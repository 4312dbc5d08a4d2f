//! Writes of points and indexes.

use std::time::Instant;

use qdrant_client::qdrant::{
    CreateFieldIndexCollection, DeleteFieldIndexCollection, DeletePoints, PointsOperationResponse,
    SetPayloadPoints, UpdateMode, UpdateResult, UpdateStatus, UpsertPoints,
};
use qdrant_edge::{
    CreateIndex, FieldIndexOperations, PayloadOps, PointInsertOperations, PointOperations, SetPayloadOp,
    UpdateOperation,
};
use tonic::Status;

use super::{Service, find};
use crate::collection::Collection;
use crate::convert::point::Selected;
use crate::convert::{filter, index, point};
use crate::reject::{invalid, reject_if};
use crate::settings::count;

// All writes ignore the write ordering, because there is a single copy of the data with serialized writes, and
// `timeout`, because the deadline of the client applies.
impl Service {
    pub(super) async fn answer_upsert(
        &self,
        request: UpsertPoints,
        began: Instant,
    ) -> Result<PointsOperationResponse, Status> {
        let UpsertPoints {
            collection_name,
            wait,
            points,
            ordering: _,
            shard_key_selector,
            update_filter,
            timeout: _,
            update_mode,
        } = request;
        reject_if(shard_key_selector.is_some(), "shard keys")?;
        reject_if(update_filter.is_some(), "conditional upserts (update_filter)")?;
        let other_mode = update_mode.is_some_and(|mode| mode != UpdateMode::Upsert as i32);
        reject_if(other_mode, "upserts that only insert or only update (update_mode)")?;
        if points.is_empty() {
            return Err(invalid("Bad request: Empty update request"));
        }
        self.change(collection_name, wait, began, move || {
            let points = points.into_iter().map(point::point).collect::<Result<_, _>>()?;
            let points = PointInsertOperations::PointsList(points);
            Ok(UpdateOperation::PointOperation(PointOperations::UpsertPoints(points)))
        })
        .await
    }

    pub(super) async fn answer_delete(
        &self,
        request: DeletePoints,
        began: Instant,
    ) -> Result<PointsOperationResponse, Status> {
        let DeletePoints { collection_name, wait, points, ordering: _, shard_key_selector, timeout: _ } =
            request;
        reject_if(shard_key_selector.is_some(), "shard keys")?;
        let operation = match point::selected(points)? {
            Selected::Ids(ids) => PointOperations::DeletePoints { ids },
            Selected::Filter(filter) => PointOperations::DeletePointsByFilter(*filter),
        };
        self.change(collection_name, wait, began, || Ok(UpdateOperation::PointOperation(operation))).await
    }

    pub(super) async fn answer_set_payload(
        &self,
        request: SetPayloadPoints,
        began: Instant,
    ) -> Result<PointsOperationResponse, Status> {
        let SetPayloadPoints {
            collection_name,
            wait,
            payload,
            points_selector,
            ordering: _,
            shard_key_selector,
            key,
            timeout: _,
        } = request;
        reject_if(shard_key_selector.is_some(), "shard keys")?;
        let (points, filter) = match point::selected(points_selector)? {
            Selected::Ids(ids) => (Some(ids), None),
            Selected::Filter(filter) => (None, Some(*filter)),
        };
        let key = key.map(|key| filter::path(&key)).transpose()?;
        let operation = SetPayloadOp { payload: point::payload(payload), points, filter, key };
        let operation = UpdateOperation::PayloadOperation(PayloadOps::SetPayload(operation));
        self.change(collection_name, wait, began, || Ok(operation)).await
    }

    pub(super) async fn answer_create_field_index(
        &self,
        request: CreateFieldIndexCollection,
        began: Instant,
    ) -> Result<PointsOperationResponse, Status> {
        let CreateFieldIndexCollection {
            collection_name,
            wait,
            field_name,
            field_type,
            field_index_params,
            ordering: _,
            timeout: _,
        } = request;
        let field_name = filter::path(&field_name)?;
        let field_schema = Some(index::schema(field_type, field_index_params)?);
        let operation = FieldIndexOperations::CreateIndex(CreateIndex { field_name, field_schema });
        self.change(collection_name, wait, began, || Ok(UpdateOperation::FieldIndexOperation(operation)))
            .await
    }

    pub(super) async fn answer_delete_field_index(
        &self,
        request: DeleteFieldIndexCollection,
        began: Instant,
    ) -> Result<PointsOperationResponse, Status> {
        let DeleteFieldIndexCollection { collection_name, wait, field_name, ordering: _, timeout: _ } =
            request;
        let operation = FieldIndexOperations::DeleteIndex(filter::path(&field_name)?);
        self.change(collection_name, wait, began, || Ok(UpdateOperation::FieldIndexOperation(operation)))
            .await
    }

    /// Applies a write. Without `wait`, a Qdrant server responds before it validates the write against the collection:
    /// the same is done here, and a failure is only logged.
    async fn change(
        &self,
        name: String,
        wait: Option<bool>,
        began: Instant,
        operation: impl FnOnce() -> Result<UpdateOperation, Status> + Send + 'static,
    ) -> Result<PointsOperationResponse, Status> {
        let wait = wait.unwrap_or(false);
        let work = move |catalog: &_| {
            let operation = operation()?;
            match write(&*find(catalog, &name)?, operation, wait) {
                Err(status) if !wait => {
                    tracing::warn!(
                        collection = name,
                        error = status.message(),
                        "a write without wait failed"
                    );
                    Ok(())
                }
                done => done,
            }
        };
        self.write(work).await?;
        let status = if wait { UpdateStatus::Completed } else { UpdateStatus::Acknowledged };
        let result = Some(UpdateResult { operation_id: None, status: status.into() });
        Ok(PointsOperationResponse { result, time: began.elapsed().as_secs_f64(), usage: None })
    }
}

fn write(collection: &Collection, operation: UpdateOperation, wait: bool) -> Result<(), Status> {
    if let UpdateOperation::PointOperation(PointOperations::UpsertPoints(
        PointInsertOperations::PointsList(points),
    )) = &operation
    {
        point::check_sizes(points, count(collection.settings.vector.size))?;
    }
    Ok(collection.write(operation, wait)?)
}
