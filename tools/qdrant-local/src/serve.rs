//! From the arguments to the end of the process.

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
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};

use crate::catalog::Catalog;
use crate::error::StartError;
use crate::files;
use crate::home::Home;
use crate::service::Service;

/// The longest message taken: what qdrant-client sends at most by itself.
const LONGEST_MESSAGE: usize = 64 * 1024 * 1024;
/// How long calls under way have when the program is asked to stop.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// How long the answers to the last calls have to leave.
const LEAVE_WITHIN: Duration = Duration::from_millis(50);
/// How long the program's own first call may take.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// Serves until it is asked to stop. It then ends the process: the engine's optimiser cannot be stopped, and needs not
/// to be, because what was written while it ran is in the journal.
pub(crate) fn run(home: &Path, listen: SocketAddr, port_file: Option<&Path>) -> Result<(), StartError> {
    let home = Home::open(home)?;
    if let Some(path) = port_file {
        // One of an earlier run would lead its reader astray; that there is none is as well.
        let _ = fs::remove_file(path);
    }
    let runtime =
        Runtime::new().map_err(|source| StartError::file("start threads in", Path::new("."), source))?;
    let listening = |source| StartError::Listen { address: listen, source };
    let listener = runtime.block_on(TcpListener::bind(listen)).map_err(listening)?;
    let address = listener.local_addr().map_err(listening)?;
    let catalog = Arc::new(Catalog::open(home)?);
    runtime.block_on(serve(listener, address, Arc::clone(&catalog), port_file))?;
    catalog.flush();
    tracing::info!("stopped");
    process::exit(0);
}

async fn serve(
    listener: TcpListener,
    address: SocketAddr,
    catalog: Arc<Catalog>,
    port_file: Option<&Path>,
) -> Result<(), StartError> {
    let failed = |reason: String| StartError::Server { address, reason };
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| failed(error.to_string()))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| failed(error.to_string()))?;
    let (stop, stopped) = oneshot::channel();
    let service = Service::new(catalog);
    let mut server = start(listener, service.clone(), stopped);
    tokio::select! {
        answered = first_answer(address) => answered?,
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
    // It cannot have ended: then the select above had returned.
    let _ = stop.send(());
    let finish = async {
        service.finish().await;
        // Ends early where all clients have closed their connections.
        let _ = time::timeout(LEAVE_WITHIN, server).await;
    };
    if time::timeout(STOP_WITHIN, finish).await.is_err() {
        tracing::warn!(within = ?STOP_WITHIN, "calls under way did not end and are cut off");
    }
    Ok(())
}

fn start(
    listener: TcpListener,
    service: Service,
    stopped: oneshot::Receiver<()>,
) -> JoinHandle<Result<(), tonic::transport::Error>> {
    let server = Server::builder()
        .add_service(QdrantServer::new(service.clone()))
        .add_service(SnapshotsServer::new(service.clone()))
        .add_service(
            CollectionsServer::new(service.clone())
                .max_decoding_message_size(LONGEST_MESSAGE)
                .max_encoding_message_size(usize::MAX),
        )
        .add_service(
            PointsServer::new(service)
                .max_decoding_message_size(LONGEST_MESSAGE)
                .max_encoding_message_size(usize::MAX),
        );
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::spawn(server.serve_with_incoming_shutdown(incoming, async {
        // Also where the sender is gone, and with it the program.
        let _ = stopped.await;
    }))
}

/// Calls the server as a client does: whoever finds the port file may call at once.
async fn first_answer(address: SocketAddr) -> Result<(), StartError> {
    let failed = |reason: String| StartError::Server { address, reason };
    // An address like 0.0.0.0 is one to listen at, not one to call.
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
    time::timeout(ANSWERS_WITHIN, call)
        .await
        .map_err(|_| failed(format!("no answer to its own call in {ANSWERS_WITHIN:?}")))?
}
