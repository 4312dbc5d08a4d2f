//! Snapshots, which are not supported.

use qdrant_client::qdrant::snapshots_server::Snapshots;
use qdrant_client::qdrant::{
    CreateFullSnapshotRequest, CreateSnapshotRequest, CreateSnapshotResponse, DeleteFullSnapshotRequest,
    DeleteSnapshotRequest, DeleteSnapshotResponse, ListFullSnapshotsRequest, ListSnapshotsRequest,
    ListSnapshotsResponse,
};
use tonic::{Request, Response, Status};

use super::Service;
use crate::reject::unsupported;

#[tonic::async_trait]
impl Snapshots for Service {
    async fn create(
        &self,
        _: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        Err(unsupported("the call Snapshots.Create"))
    }

    async fn list(
        &self,
        _: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        Err(unsupported("the call Snapshots.List"))
    }

    async fn delete(
        &self,
        _: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        Err(unsupported("the call Snapshots.Delete"))
    }

    async fn create_full(
        &self,
        _: Request<CreateFullSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        Err(unsupported("the call Snapshots.CreateFull"))
    }

    async fn list_full(
        &self,
        _: Request<ListFullSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        Err(unsupported("the call Snapshots.ListFull"))
    }

    async fn delete_full(
        &self,
        _: Request<DeleteFullSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        Err(unsupported("the call Snapshots.DeleteFull"))
    }
}
