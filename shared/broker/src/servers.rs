//! The servers of the cluster, and connections to them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::{ServerAddr, ServerInfo};
use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// A byte stream to a server, with or without TLS.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// An open connection to a server.
pub(crate) struct Connected {
    pub(crate) stream: Box<dyn Stream>,
    /// What the server has sent so far. It starts with its description of itself.
    pub(crate) received: BytesMut,
}

/// Time limit for connecting to one server.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of servers. The server names the others of its cluster; more than these are ignored.
const MAX_SERVERS: usize = 64;
/// Maximum length of the server's description of itself, in bytes.
const MAX_INFO_BYTES: usize = 256 * 1024;

/// The servers of a cluster. Clones share the same list.
#[derive(Clone)]
pub(crate) struct Servers {
    list: Arc<Mutex<Vec<Server>>>,
    ca_file: Option<Arc<str>>,
}

#[derive(Clone, Debug)]
struct Server {
    address: ServerAddr,
    /// Connection attempts that failed since the last that succeeded.
    failures: u32,
    /// Whether the latest connection was to this server.
    is_latest: bool,
}

impl Server {
    fn new(address: ServerAddr) -> Self {
        Self { address, failures: 0, is_latest: false }
    }
}

impl Servers {
    /// The configured servers. With a CA file, connections require TLS.
    pub(crate) fn new(addresses: Vec<ServerAddr>, ca_file: Option<&str>) -> Self {
        let list = addresses.into_iter().map(Server::new).collect();
        Self { list: Arc::new(Mutex::new(list)), ca_file: ca_file.map(Arc::from) }
    }

    /// Adds the servers that a server names.
    pub(crate) fn discovered(&self, info: &ServerInfo) {
        let mut list = self.lock();
        for address in info.connect_urls.iter().filter_map(|url| url.parse::<ServerAddr>().ok()) {
            let is_known = list.iter().any(|server| is_same(&server.address, &address));
            if list.len() < MAX_SERVERS && !is_known {
                list.push(Server::new(address));
            }
        }
    }

    /// Connects to one of the servers: to another than the latest if possible, because a connection that ends may have
    /// been given up; to those that failed least first.
    ///
    /// # Errors
    /// Why the last server could not be reached.
    pub(crate) async fn connect(&self) -> Result<Connected, String> {
        let mut problem = "no server is configured".to_owned();
        let addresses = self.in_order();
        let is_only_one = addresses.len() == 1;
        for address in addresses {
            let connected = match timeout(CONNECT_TIMEOUT, self.connect_to(&address)).await {
                Ok(connected) => connected,
                Err(_) => Err(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())),
            };
            self.note(&address, connected.is_ok());
            match connected {
                Ok(connected) => return Ok(connected),
                // Whoever reports it names the configured URL, without what may be a password in it.
                Err(failed) if is_only_one => problem = failed,
                Err(failed) => problem = format!("{}:{}: {failed}", address.host(), address.port()),
            }
        }
        Err(problem)
    }

    fn in_order(&self) -> Vec<ServerAddr> {
        let mut servers = self.lock().clone();
        fastrand::shuffle(&mut servers);
        servers.sort_by_key(|server| (server.is_latest, server.failures));
        servers.into_iter().map(|server| server.address).collect()
    }

    fn note(&self, address: &ServerAddr, succeeded: bool) {
        for server in self.lock().iter_mut() {
            let is_this = is_same(&server.address, address);
            match (is_this, succeeded) {
                (true, true) => (server.failures, server.is_latest) = (0, true),
                (true, false) => server.failures = server.failures.saturating_add(1),
                (false, true) => server.is_latest = false,
                (false, false) => {}
            }
        }
    }

    async fn connect_to(&self, address: &ServerAddr) -> Result<Connected, String> {
        let mut last = "its name has no address".to_owned();
        for socket in address.socket_addrs().await.map_err(|error| error.to_string())? {
            match TcpStream::connect(socket).await {
                Ok(stream) => return self.greeted(stream, address).await,
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    }

    /// Reads the server's description of itself, and starts TLS if the server or the configuration requires it.
    async fn greeted(&self, mut stream: TcpStream, address: &ServerAddr) -> Result<Connected, String> {
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let mut received = BytesMut::new();
        let info = loop {
            if let Some(end) = memchr::memmem::find(&received, b"\r\n") {
                break received.strip_prefix(b"INFO ").map(|info| info[..end - 5].to_vec());
            }
            let read = stream.read_buf(&mut received).await.map_err(|error| error.to_string())?;
            if read == 0 || received.len() > MAX_INFO_BYTES {
                break None;
            }
        };
        let info = info.ok_or("it does not answer as a NATS server")?;
        let info: ServerInfo =
            serde_json::from_slice(&info).map_err(|error| format!("cannot read its greeting: {error}"))?;
        let stream: Box<dyn Stream> = if info.tls_required || address.tls_required() || self.ca_file.is_some()
        {
            Box::new(self.encrypted(stream, address).await?)
        } else {
            Box::new(stream)
        };
        Ok(Connected { stream, received })
    }

    async fn encrypted(
        &self,
        stream: TcpStream,
        address: &ServerAddr,
    ) -> Result<TlsStream<TcpStream>, String> {
        let ca_file = self.ca_file.clone();
        let roots = tokio::task::spawn_blocking(move || roots(ca_file.as_deref()));
        let roots = roots.await.map_err(|error| error.to_string())??;
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from(address.host().to_owned()).map_err(|error| error.to_string())?;
        let connector = TlsConnector::from(Arc::new(config));
        connector.connect(name, stream).await.map_err(|error| error.to_string())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Server>> {
        // No code panics while holding the lock, so the list is consistent.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_same(one: &ServerAddr, other: &ServerAddr) -> bool {
    (one.host(), one.port()) == (other.host(), other.port())
}

/// The certificates that are accepted as roots: those of the file, or else those of the system.
fn roots(ca_file: Option<&str>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let Some(file) = ca_file else {
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        return match (roots.is_empty(), system.errors.first()) {
            (true, Some(error)) => Err(format!("cannot read the certificates of the system: {error}")),
            (true, None) | (false, _) => Ok(roots),
        };
    };
    let failed = |error: String| format!("nats.ca_file {file}: {error}");
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| failed(error.to_string()))? {
        let certificate = certificate.map_err(|error| failed(error.to_string()))?;
        roots.add(certificate).map_err(|error| failed(error.to_string()))?;
    }
    Ok(roots)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn another_server_than_the_latest_is_tried_first_then_those_that_failed_least() {
        let address = |port: u16| format!("nats://127.0.0.1:{port}").parse::<ServerAddr>().unwrap();
        let servers = Servers::new(vec![address(1), address(2), address(3)], None);
        servers.note(&address(2), true);
        servers.note(&address(1), false);
        let ports: Vec<u16> = servers.in_order().iter().map(ServerAddr::port).collect();
        assert_eq!(ports, [3, 1, 2]);
        servers.note(&address(3), true);
        assert_eq!(servers.in_order().last().map(ServerAddr::port), Some(3));
    }

    #[test]
    fn servers_that_a_server_names_are_added_once_and_limited() {
        let servers = Servers::new(vec!["nats://127.0.0.1:4222".parse().unwrap()], None);
        let urls: Vec<String> = (4222..4422).map(|port| format!("127.0.0.1:{port}")).collect();
        let info = ServerInfo { connect_urls: urls, ..ServerInfo::default() };
        servers.discovered(&info);
        servers.discovered(&info);
        assert_eq!(servers.in_order().len(), MAX_SERVERS);
    }
}
