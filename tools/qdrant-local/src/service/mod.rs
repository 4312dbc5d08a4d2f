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

/// The version of Qdrant whose API this is. Clients compare it with their own.
const VERSION: &str = "1.16.0";
/// Writes of all collections at a time. The engine makes them one by one for each collection; those that wait share a
/// flush.
const WRITES: u32 = 16;

/// Answers all calls; clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    catalog: Arc<Catalog>,
    reads: Arc<Semaphore>,
    /// How many permits for reads there are.
    at_a_time: u32,
    writes: Arc<Semaphore>,
}

impl Service {
    pub(crate) fn new(catalog: Arc<Catalog>) -> Self {
        // The engine computes in the thread of its caller: more of them than cores only wait for each other.
        let cores = thread::available_parallelism().map_or(2, usize::from);
        let at_a_time = u32::try_from(cores * 2).unwrap_or(u32::MAX);
        let reads = Arc::new(Semaphore::new(cores * 2));
        Self { catalog, reads, at_a_time, writes: Arc::new(Semaphore::new(WRITES as usize)) }
    }

    /// Returns when the calls so far are done; later ones are not begun any more. A client that keeps its connection
    /// open need not be waited for.
    pub(crate) async fn finish(&self) {
        // They fail where the semaphores are closed, which nobody does.
        if let (Ok(reads), Ok(writes)) =
            (self.reads.acquire_many(self.at_a_time).await, self.writes.acquire_many(WRITES).await)
        {
            reads.forget();
            writes.forget();
        }
    }

    /// Reads, where the engine may block.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Catalog) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        self.blocking(&self.reads, work).await
    }

    /// Writes, where the engine may block.
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
            // Held until the work is over, also where the caller has gone meanwhile.
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
