//! The server under test: the one that QDRANT_URL names, or this program in a temporary folder.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use qdrant_client::qdrant::{
    CollectionStatus, CreateCollectionBuilder, Distance, GetCollectionInfoResponse, PointId, PointStruct,
    ScrollPointsBuilder, UpsertPointsBuilder, VectorParamsBuilder,
};
use qdrant_client::{Payload, Qdrant, QdrantError};
use serde_json::Value;
use tempfile::TempDir;
use tonic::Code;
use uuid::Uuid;

/// The timeout of every step of a test.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The running program.
#[derive(Debug)]
pub struct Program {
    child: Child,
    pub url: String,
}

impl Program {
    /// Starts it in a folder and waits until it is ready.
    pub fn start(home: &Path) -> Self {
        Self::start_with(home, &[])
    }

    /// As [`Program::start`], with more arguments.
    pub fn start_with(home: &Path, more: &[&OsStr]) -> Self {
        let port_file = home.join("port");
        let _ = fs::remove_file(&port_file);
        let mut child = command(home)
            .args(["--listen", "127.0.0.1:0", "--port-file"])
            .arg(&port_file)
            .args(more)
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(port) = fs::read_to_string(&port_file) {
                return Self { child, url: format!("http://127.0.0.1:{}", port.trim()) };
            }
            assert!(child.try_wait().unwrap().is_none(), "the program ended");
            assert!(Instant::now() < deadline, "the program does not answer");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills it, as a crash would.
    pub fn crash(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to stop.
    pub fn stop(mut self) -> ExitStatus {
        let asked = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(asked.success());
        self.child.wait().unwrap()
    }

    pub fn client(&self) -> Qdrant {
        client(&self.url)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program that `make programs` has built.
fn program() -> PathBuf {
    stack::Programs::find().unwrap().qdrant_local().unwrap()
}

/// The command of the program with this home folder.
pub fn command(home: &Path) -> Command {
    let mut command = Command::new(program());
    command.arg("--home").arg(home.join("home")).stdin(Stdio::null());
    command
}

pub fn client(url: &str) -> Qdrant {
    Qdrant::from_url(url).timeout(PATIENCE).skip_compatibility_check().build().unwrap()
}

/// A server with the name of a collection, which is deleted at the end.
pub struct Fixture {
    pub client: Qdrant,
    pub name: String,
    pub url: String,
    // In this order: the program ends before its folder goes.
    _program: Option<Program>,
    _folder: Option<TempDir>,
}

impl Fixture {
    pub fn new() -> Self {
        let name = format!("conformance-{}", Uuid::new_v4());
        if let Ok(url) = env::var("QDRANT_URL") {
            return Self { client: client(&url), name, url, _program: None, _folder: None };
        }
        let folder = TempDir::new().unwrap();
        let program = Program::start(folder.path());
        Self {
            client: program.client(),
            name,
            url: program.url.clone(),
            _program: Some(program),
            _folder: Some(folder),
        }
    }

    /// Creates the collection with vectors of this size.
    pub async fn with(size: u64, distance: Distance) -> Self {
        let fixture = Self::new();
        fixture.create(&fixture.name, size, distance).await;
        fixture
    }

    pub async fn create(&self, name: &str, size: u64, distance: Distance) {
        let vectors = VectorParamsBuilder::new(size, distance);
        self.client
            .create_collection(CreateCollectionBuilder::new(name).vectors_config(vectors))
            .await
            .unwrap();
    }

    pub async fn upsert(&self, points: Vec<PointStruct>) {
        self.client.upsert_points(UpsertPointsBuilder::new(&self.name, points).wait(true)).await.unwrap();
    }

    /// Waits until the collection is green.
    pub async fn green(&self) -> GetCollectionInfoResponse {
        eventually("green", || async {
            let info = self.client.collection_info(&self.name).await.unwrap();
            let status = info.result.as_ref().unwrap().status;
            (status == i32::from(CollectionStatus::Green)).then_some(info)
        })
        .await
    }

    /// Deletes the collection. Not in `Drop`, which cannot be async; a failing test leaves it behind.
    pub async fn end(self) {
        self.client.delete_collection(&self.name).await.unwrap();
    }

    /// All ids of the collection, in order.
    pub async fn ids(&self, filter: Option<qdrant_client::qdrant::Filter>) -> Vec<PointId> {
        ids(&self.client, &self.name, filter).await
    }
}

pub async fn ids(client: &Qdrant, name: &str, filter: Option<qdrant_client::qdrant::Filter>) -> Vec<PointId> {
    let mut scroll = ScrollPointsBuilder::new(name).limit(10_000);
    if let Some(filter) = filter {
        scroll = scroll.filter(filter);
    }
    let page = client.scroll(scroll).await.unwrap();
    page.result.into_iter().map(|point| point.id.unwrap()).collect()
}

/// Retries until there is a result.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "it never was {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn point(id: impl Into<PointId>, vector: Vec<f32>, payload: Value) -> PointStruct {
    PointStruct::new(id, vector, Payload::try_from(payload).unwrap())
}

pub fn numbers(ids: impl IntoIterator<Item = u64>) -> Vec<PointId> {
    ids.into_iter().map(PointId::from).collect()
}

/// The status of a call that must fail.
pub fn refusal<T: std::fmt::Debug>(answer: Result<T, QdrantError>) -> (Code, String) {
    let error = answer.unwrap_err();
    let QdrantError::ResponseError { status } = error else { panic!("not an answer of the server: {error}") };
    (status.code(), status.message().to_owned())
}

/// A vector of this length that depends on the seed alone.
pub fn vector(seed: u64, size: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    (0..size)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
        })
        .collect()
}
