//! Start, serving and shutdown.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process;
use std::sync::Arc;
use std::time::Duration;

use qdrant_client::qdrant::HealthCheckRequest;
use qdrant_client::qdrant::collections_server::CollectionsServer;
use qdrant_client::qdrant::points_server::PointsServer;
use qdrant_client::qdrant::qdrant_client::QdrantClient;
use qdrant_client::qdrant::qdrant_server::QdrantServer;
use qdrant_client::qdrant::snapshots_server::SnapshotsServer;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};

use crate::api_key::ApiKey;
use crate::catalog::Catalog;
use crate::error::StartError;
use crate::files;
use crate::service::Service;
use crate::storage::Storage;

/// The largest message, the default limit of qdrant-client.
const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;
/// How long calls in flight may take to finish at shutdown.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// How long the last responses may take to be sent.
const SEND_TIMEOUT: Duration = Duration::from_millis(50);
/// The timeout of the readiness check at start.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves until SIGTERM or SIGINT, then ends the process. The engine's optimizer cannot be stopped and need not be,
/// because the writes during its run are in the journal.
pub(crate) fn run(
    home: &Path,
    listen: SocketAddr,
    port_file: Option<&Path>,
    api_key: ApiKey,
) -> Result<(), StartError> {
    let storage = Storage::open(home)?;
    if let Some(path) = port_file {
        // The port file of an earlier run would mislead its reader. It may not exist.
        let _ = fs::remove_file(path);
    }
    let runtime =
        Runtime::new().map_err(|source| StartError::file("start threads in", Path::new("."), source))?;
    let listening = |source| StartError::Listen { address: listen, source };
    let listener = runtime.block_on(TcpListener::bind(listen)).map_err(listening)?;
    let address = listener.local_addr().map_err(listening)?;
    let catalog = Arc::new(Catalog::open(storage)?);
    runtime.block_on(serve(listener, address, Arc::clone(&catalog), port_file, api_key))?;
    catalog.flush();
    tracing::info!("stopped");
    process::exit(0);
}

async fn serve(
    listener: TcpListener,
    address: SocketAddr,
    catalog: Arc<Catalog>,
    port_file: Option<&Path>,
    api_key: ApiKey,
) -> Result<(), StartError> {
    let failed = |reason: String| StartError::Server { address, reason };
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| failed(error.to_string()))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| failed(error.to_string()))?;
    let (stop, stopped) = oneshot::channel();
    let service = Service::new(catalog);
    let mut server = start(listener, service.clone(), api_key, stopped);
    tokio::select! {
        answered = wait_until_ready(address) => answered?,
        ended = &mut server => return Err(failed(format!("{ended:?}"))),
    }
    if let Some(path) = port_file {
        files::write_atomically(path, format!("{}\n", address.port()).as_bytes())
            .map_err(|source| StartError::file("write", path, source))?;
    }
    tracing::info!(%address, "serving");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = &mut server => return Err(failed(format!("{ended:?}"))),
    }
    tracing::info!("stopping");
    // The server is still running, or the select above would have returned an error.
    let _ = stop.send(());
    let finish = async {
        service.finish().await;
        // Ends early if all clients have closed their connections.
        let _ = time::timeout(SEND_TIMEOUT, server).await;
    };
    if time::timeout(SHUTDOWN_GRACE, finish).await.is_err() {
        tracing::warn!(within = ?SHUTDOWN_GRACE, "calls in flight did not finish and are aborted");
    }
    Ok(())
}

fn start(
    listener: TcpListener,
    service: Service,
    api_key: ApiKey,
    stopped: oneshot::Receiver<()>,
) -> JoinHandle<Result<(), tonic::transport::Error>> {
    let health = QdrantServer::new(service.clone());
    let snapshots = SnapshotsServer::new(service.clone());
    let collections = CollectionsServer::new(service.clone())
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(usize::MAX);
    let points = PointsServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(usize::MAX);
    let server = Server::builder()
        .add_service(health)
        .add_service(InterceptedService::new(snapshots, api_key.clone()))
        .add_service(InterceptedService::new(collections, api_key.clone()))
        .add_service(InterceptedService::new(points, api_key));
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::spawn(server.serve_with_incoming_shutdown(incoming, async {
        // The sender is dropped only when the program ends.
        let _ = stopped.await;
    }))
}

/// Waits until the server responds to a client, so that it is ready when the port file exists. A health check needs no
/// API key.
async fn wait_until_ready(address: SocketAddr) -> Result<(), StartError> {
    let failed = |reason: String| StartError::Server { address, reason };
    // An unspecified address such as 0.0.0.0 can be listened on, but not connected to.
    let host = if address.ip().is_unspecified() { "127.0.0.1".to_owned() } else { address.ip().to_string() };
    let host = if address.is_ipv6() && !address.ip().is_unspecified() { format!("[{host}]") } else { host };
    let endpoint = Endpoint::from_shared(format!("http://{host}:{}", address.port()));
    let endpoint = endpoint.map_err(|error| failed(error.to_string()))?;
    let call = async {
        let channel = endpoint.connect().await.map_err(|error| failed(error.to_string()))?;
        let mut client = QdrantClient::new(channel);
        client.health_check(HealthCheckRequest {}).await.map_err(|status| failed(status.to_string()))?;
        Ok(())
    };
    time::timeout(READY_TIMEOUT, call)
        .await
        .map_err(|_| failed(format!("it did not respond to a health check within {READY_TIMEOUT:?}")))?
}
