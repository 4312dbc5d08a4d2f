//! The services of the API.

mod collections;
mod points;
mod reads;
mod snapshots;
mod writes;

use std::sync::Arc;
use std::thread;

use qdrant_client::qdrant::qdrant_server::Qdrant;
use qdrant_client::qdrant::{HealthCheckReply, HealthCheckRequest};
use tokio::sync::Semaphore;
use tokio::task;
use tonic::{Request, Response, Status};

use crate::catalog::Catalog;
use crate::collection::Collection;

/// The Qdrant version of this API. Clients compare it with their own.
const VERSION: &str = "1.16.0";
/// The most concurrent writes of all collections. The engine serializes the writes of a collection, and writes that
/// wait share a flush.
const WRITES: u32 = 16;

/// The gRPC services. Clones share their state.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    catalog: Arc<Catalog>,
    reads: Arc<Semaphore>,
    /// The number of read permits.
    read_permits: u32,
    writes: Arc<Semaphore>,
}

impl Service {
    pub(crate) fn new(catalog: Arc<Catalog>) -> Self {
        // The engine computes on the thread of its caller: many more threads than cores would only wait for each other.
        let cores = thread::available_parallelism().map_or(2, usize::from);
        let read_permits = u32::try_from(cores * 2).unwrap_or(u32::MAX);
        let reads = Arc::new(Semaphore::new(cores * 2));
        Self { catalog, reads, read_permits, writes: Arc::new(Semaphore::new(WRITES as usize)) }
    }

    /// Waits for the calls in flight and starts no further ones. Clients may keep their connections open.
    pub(crate) async fn finish(&self) {
        // The semaphores are never closed.
        if let (Ok(reads), Ok(writes)) =
            (self.reads.acquire_many(self.read_permits).await, self.writes.acquire_many(WRITES).await)
        {
            reads.forget();
            writes.forget();
        }
    }

    /// Runs a read on a blocking thread.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Catalog) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        self.blocking(&self.reads, work).await
    }

    /// Runs a write on a blocking thread.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Catalog) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        self.blocking(&self.writes, work).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        bound: &Arc<Semaphore>,
        work: impl FnOnce(&Catalog) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let permit = Arc::clone(bound).acquire_owned().await;
        let permit = permit.map_err(|_| Status::unavailable("qdrant-local is stopping"))?;
        let catalog = Arc::clone(&self.catalog);
        let done = task::spawn_blocking(move || {
            let done = work(&catalog);
            // Held until the work is done, even if the call was cancelled.
            drop(permit);
            done
        });
        done.await
            .map_err(|error| Status::internal(format!("Service internal error: a call failed: {error}")))?
    }
}

fn find(catalog: &Catalog, name: &str) -> Result<Arc<Collection>, Status> {
    Ok(catalog.find(name)?)
}

#[tonic::async_trait]
impl Qdrant for Service {
    async fn health_check(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckReply>, Status> {
        let reply =
            HealthCheckReply { title: "qdrant-local".to_owned(), version: VERSION.to_owned(), commit: None };
        Ok(Response::new(reply))
    }
}
