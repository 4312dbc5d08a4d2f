//! The relay between the client library and the servers: a loopback listener that accepts the connection of the client
//! library and forwards it to one of the servers.
//!
//! The client library logs in at the server through the relay, which knows no credentials. Whoever else connects to the
//! listener can do no more than at the server itself.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::filter::{Filter, FrameError};
use crate::servers::{Connected, Servers};

/// Bytes to read at once.
const READ_BYTES: usize = 64 * 1024;

/// Pause after a connection that could not be accepted, for example because too many files are open.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);

/// The relayed connections of this process.
static CONNECTIONS: LazyLock<TaskTracker> = LazyLock::new(TaskTracker::new);
/// How long to wait for what closed clients have sent.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(2);

/// Waits until what the closed clients of this process have sent has been forwarded to the server, at most 2 s. To be
/// called before the process ends, when its clients are dropped: the client library's `flush` reaches the relay only.
pub async fn forwarded() {
    CONNECTIONS.close();
    if timeout(FORWARD_TIMEOUT, CONNECTIONS.wait()).await.is_err() {
        tracing::debug!("a connection to NATS is still open at the end");
    }
}

/// A running relay.
pub(crate) struct Relay {
    /// Where the client library connects to.
    pub(crate) address: SocketAddr,
    /// Ends the relay. Set when the client library has closed its connection for good.
    pub(crate) closed: CancellationToken,
}

/// Why a relayed connection ended.
#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl Relay {
    /// Connects to a server and starts a relay to it. If the connection breaks, the relay connects again, to any of the
    /// servers, when the client library does.
    ///
    /// # Errors
    /// Why no server can be reached.
    pub(crate) async fn start(servers: Servers) -> Result<Self, String> {
        let first = servers.connect().await?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.map_err(|error| format!("cannot open a local port: {error}"))?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let closed = CancellationToken::new();
        tokio::spawn(closed.clone().run_until_cancelled_owned(accept(listener, servers, first)));
        Ok(Self { address, closed })
    }
}

/// Accepts the connections of the client library, one after another or at the same time.
async fn accept(listener: TcpListener, servers: Servers, first: Connected) {
    let first = Arc::new(Mutex::new(Some(first)));
    loop {
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to NATS, retrying");
                tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                continue;
            }
        };
        let (servers, first) = (servers.clone(), Arc::clone(&first));
        CONNECTIONS.spawn(async move {
            let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
            let connected = match first {
                Some(connected) => Ok(connected),
                None => servers.connect().await,
            };
            match connected {
                Ok(server) => match forward(client, server, &servers).await {
                    Ok(()) => tracing::debug!("the connection to NATS ended"),
                    Err(error) => tracing::debug!(%error, "the connection to NATS broke"),
                },
                // The client library connects again.
                Err(problem) => tracing::warn!(%problem, "NATS is unreachable"),
            }
        });
    }
}

/// Forwards in both directions until one of them ends.
async fn forward(client: TcpStream, server: Connected, servers: &Servers) -> Result<(), RelayError> {
    client.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = tokio::io::split(server.stream);
    tokio::select! {
        ended = copy(from_client, to_server) => ended,
        ended = filtered(from_server, to_client, server.received, servers) => ended,
    }
}

async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> Result<(), RelayError> {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    while from.read_buf(&mut buffer).await? > 0 {
        to.write_all_buf(&mut buffer).await?;
        to.flush().await?;
        buffer.reserve(READ_BYTES);
    }
    to.shutdown().await?;
    Ok(())
}

async fn filtered(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut received: BytesMut,
    servers: &Servers,
) -> Result<(), RelayError> {
    let mut filter = Filter::default();
    loop {
        let mut readable = BytesMut::new();
        filter.pass(&mut received, &mut readable, &mut |info| servers.discovered(info))?;
        to.write_all_buf(&mut readable).await?;
        drop(readable);
        received.reserve(READ_BYTES);
        if from.read_buf(&mut received).await? == 0 {
            return Ok(());
        }
    }
}
