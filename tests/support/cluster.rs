//! Three NATS servers from the files in `nats/cluster`, each at an address of its own of the loopback network.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use async_nats::jetstream;
use config::NatsSettings;
use runtime::broker;
use testkit::{Fixture, eventually, logs};
use tokio::process::{Child, Command};
use topology::{API_PREFIX, INCLUDED_NKEYS, Service, identities};

use crate::support::in_repository;
use crate::support::program::signal;

const NODES: [usize; 3] = [1, 2, 3];
const PORTS: [u16; 4] = [4222, 6222, 8222, 8443];

/// The servers. Dropping it kills them.
pub struct Cluster {
    program: PathBuf,
    /// The first three numbers of their addresses.
    network: String,
    nodes: Vec<Option<Child>>,
    folder: tempfile::TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for number in NODES {
            logs::keep_file("nats", &self.path(&format!("n{number}.log")));
        }
    }
}

impl Cluster {
    /// Starts three servers with the accounts that are shipped, and waits until they are a cluster with JetStream.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder for the servers");
        let program = stack::Programs::find().expect("the servers' programs").nats_server;
        let nodes = NODES.iter().map(|_| None).collect();
        let mut cluster = Self { program, network: free_network(), nodes, folder };
        let services = Service::shipped().expect("the shipped services");
        let public = topology::make_nkeys(&cluster.path("nkeys"), &identities(&services)).expect("keys");
        let hosts: Vec<String> = NODES.iter().map(|number| cluster.address(*number)).collect();
        topology::make_certificates(cluster.folder.path(), &hosts, Duration::from_secs(3_600))
            .expect("certificates");
        let shipped = std::fs::read_to_string(in_repository("nats/cluster/server.conf")).expect("the file");
        let accounts = topology::render(&services, INCLUDED_NKEYS);
        for (name, content) in [
            ("server.conf", shipped.as_str()),
            ("accounts.conf", accounts.as_str()),
            ("nkeys.conf", public.as_str()),
            ("storage.conf", "key: \"a-key-for-the-disk\"\n"),
        ] {
            std::fs::write(cluster.path(name), content).expect("a file");
        }
        for number in NODES {
            cluster.resume(number);
        }
        let settings = cluster.settings();
        eventually("the cluster has a leader", async || {
            let client = broker::connect_operator(&settings, "test").await.ok()?;
            jetstream::new(client).query_account().await.ok()
        })
        .await;
        cluster
    }

    /// A fixture whose broker is this cluster, without streams.
    pub async fn fixture(&self) -> Fixture {
        let mut fixture = Fixture::secured().await;
        fixture.settings.nats = self.settings();
        let client = broker::connect_operator(&fixture.settings.nats, "test").await.expect("a connection");
        fixture.jetstream = jetstream::new(client);
        fixture
    }

    /// How clients connect.
    pub fn settings(&self) -> NatsSettings {
        let text = |path: PathBuf| path.to_str().expect("a path").to_owned();
        let urls: Vec<String> =
            NODES.iter().map(|number| format!("tls://{}:4222", self.address(*number))).collect();
        NatsSettings {
            url: urls.join(","),
            nkey_file: Some(text(self.path("nkeys/{name}.nk"))),
            api_prefix: Some(API_PREFIX.to_owned()),
            ca_file: Some(text(self.path("ca.pem"))),
            ..Default::default()
        }
    }

    /// The folder of a server's data.
    pub fn data(&self, number: usize) -> PathBuf {
        self.path(&format!("data{number}"))
    }

    /// Ends a server at once, with SIGKILL.
    pub async fn kill(&mut self, number: usize) {
        let mut killed = self.nodes[number - 1].take().expect("a running server");
        killed.start_kill().expect("SIGKILL");
        killed.wait().await.expect("a status");
    }

    /// Starts a server with the data that it has.
    pub fn resume(&mut self, number: usize) {
        let own = |port: u16| format!("{}:{port}", self.address(number));
        let mut server = Command::new(&self.program);
        server.arg("-c").arg(self.path("server.conf")).arg("-l").arg(self.path(&format!("n{number}.log")));
        server.env("MEMFLEET_SERVER_NAME", format!("n{number}")).env("MEMFLEET_JS_DIR", self.data(number));
        for (variable, port) in [
            ("LISTEN", 4222),
            ("CLUSTER_LISTEN", 6222),
            ("CLUSTER_ADVERTISE", 6222),
            ("HTTP_LISTEN", 8222),
            ("WS_LISTEN", 8443),
        ] {
            server.env(format!("MEMFLEET_{variable}"), own(port));
        }
        for other in NODES {
            server.env(format!("MEMFLEET_ROUTE_{other}"), format!("tls://{}:6222", self.address(other)));
        }
        for (variable, file) in [("CERT", "server.pem"), ("KEY", "server.key"), ("CA", "ca.pem")] {
            server.env(format!("MEMFLEET_TLS_{variable}"), self.path(file));
        }
        server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        self.nodes[number - 1] = Some(server.spawn().expect("a server"));
    }

    /// Cuts a server off: its connections stay open, and it answers nothing.
    pub fn cut_off(&self, number: usize) {
        signal("STOP", self.pid(number));
    }

    /// Lets a server that was cut off go on.
    pub fn reconnect(&self, number: usize) {
        signal("CONT", self.pid(number));
    }

    fn pid(&self, number: usize) -> u32 {
        self.nodes[number - 1].as_ref().and_then(Child::id).expect("a running server")
    }

    fn address(&self, number: usize) -> String {
        format!("{}.{number}", self.network)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// A part of the loopback network where all ports of all servers are free. They must be known before the start, because
/// the servers are told of each other.
fn free_network() -> String {
    loop {
        let network = format!("127.{}.{}", fastrand::u8(16..240), fastrand::u8(1..250));
        let is_free = |number: &usize| {
            PORTS.iter().all(|port| TcpListener::bind(format!("{network}.{number}:{port}")).is_ok())
        };
        if NODES.iter().all(is_free) {
            return network;
        }
    }
}

/// The server that leads a stream, and whether the others have everything that it has.
pub async fn leader(fixture: &Fixture, stream: &str) -> Option<(usize, bool)> {
    let stream = fixture.jetstream.get_stream(stream).await.ok()?;
    let cluster = stream.cached_info().cluster.clone()?;
    let number = cluster.leader?.strip_prefix('n')?.parse().ok()?;
    let others = cluster.replicas.iter().filter(|peer| peer.current && !peer.offline).count();
    Some((number, others == NODES.len() - 1))
}
