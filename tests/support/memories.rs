//! A vector store of a test's own, and memories for it.

use contract::VectorType;
use runtime::Readiness;
use serde_json::{Value, json};
use stack::{Programs, Qdrant};
use store::vector::{Collection, Right, put_right};
use testkit::{Fixture, RequestMessage, request};
use uuid::Uuid;
use vector_indexer::VectorIndexer;
use vector_indexer::collection;
use vectors::{ALIAS, VectorStore};

/// The model of vectors that tests bring, of eight numbers.
pub const MODEL: &str = "test-8";

/// A broker, a database and a vector store with a collection.
pub struct Memories {
    pub fixture: Fixture,
    pub qdrant: Qdrant,
    pub collection: Collection,
    _folder: tempfile::TempDir,
}

impl Memories {
    /// With vectors that are brought.
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// With other settings.
    pub async fn with(change: impl FnOnce(&mut config::Settings)) -> Self {
        let mut fixture = Fixture::with_topology(|topology| {
            let brief = std::time::Duration::from_millis(100);
            testkit::set_duplicate_window(topology, "VECTOR", brief);
            // What a dead worker held comes back soon, and often enough for all the deaths.
            let soon = std::time::Duration::from_secs(2);
            testkit::set_redelivery(topology, "vector-indexer", soon, 1_000);
        })
        .await;
        let folder = tempfile::tempdir().unwrap();
        let qdrant = Qdrant::start(&Programs::find().unwrap(), folder.path()).await.unwrap();
        fixture.settings.vectors.url = Some(qdrant.url());
        fixture.settings.vectors.api_key = Some(qdrant.api_key().into());
        fixture.settings.vectors.model = Some(MODEL.to_owned());
        fixture.settings.vectors.dimension = Some(8);
        change(&mut fixture.settings);
        let collection = collection::apply(&fixture.settings).await.unwrap();
        let memories = Self { fixture, qdrant, collection, _folder: folder };
        memories.grant("test", true, true, true).await;
        memories
    }

    /// A client of the vector store itself.
    pub fn client(&self) -> qdrant_client::Qdrant {
        let store = qdrant_client::Qdrant::from_url(&self.qdrant.url()).api_key(self.qdrant.api_key());
        store.skip_compatibility_check().build().unwrap()
    }

    pub async fn grant(&self, service: &str, may_search: bool, may_write: bool, may_delete: bool) {
        for vector_type in VectorType::ALL {
            let (service, vector_type) = (service.to_owned(), vector_type.as_str().to_owned());
            let right = Right { service, vector_type, may_search, may_write, may_delete };
            put_right(&mut self.fixture.connection().await, ALIAS, &right).await.unwrap();
        }
    }

    pub fn vectors(&self) -> VectorStore {
        VectorStore::open(&self.fixture.settings.vectors).unwrap().unwrap()
    }

    pub async fn indexer(&self) -> VectorIndexer {
        VectorIndexer::open(&self.fixture.settings, &Readiness::new(contract::VECTOR_INDEXER.name))
            .await
            .unwrap()
    }

    /// Users with a session `s` each.
    pub async fn with_users(self, users: &[i32]) -> Self {
        let opened = users.iter().flat_map(|&id| [testkit::user(id), testkit::session(id, "s")]);
        self.fixture.process(context_writer::ContextWriter, opened.collect::<Vec<_>>()).await;
        self
    }

    pub async fn process(&self, requests: impl IntoIterator<Item = RequestMessage>) {
        self.fixture.process(self.indexer().await, requests).await;
    }

    /// The points of the collection.
    pub async fn points(&self) -> usize {
        self.points_in(&self.collection.collection_name).await
    }

    pub async fn points_in(&self, collection: &str) -> usize {
        self.vectors().scroll(collection, None, 10_000).await.unwrap().0.len()
    }

    /// Rows that are not removed.
    pub async fn rows(&self) -> i64 {
        self.fixture.count("unified_memory_vectors WHERE removed_at IS NULL").await
    }
}

/// A direction: the same for the same number, and another for another one.
pub fn vector(number: u64) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(number);
    (0..8).map(|_| random.f32() * 2.0 - 1.0).collect()
}

/// A memory with a vector of its own.
pub fn memory(id: Uuid, text: &str, number: u64) -> Value {
    json!({ "memory_id": id, "vector_type": "context", "content_text": text,
        "embedding": { "model": MODEL, "vector": vector(number) } })
}

pub fn index(user: i32, memories: Vec<Value>) -> RequestMessage {
    request("vector.index", user, json!({ "session_id": "s", "memories": memories }))
}

pub fn remove(user: i32, memories: &[Uuid]) -> RequestMessage {
    request("vector.remove", user, json!({ "memory_ids": memories }))
}
