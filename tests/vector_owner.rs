//! Several deployments on one vector store: none changes what belongs to another.

use config::Settings;
use context_writer::ContextWriter;
use runtime::Readiness;
use serde_json::{Value, json};
use testkit::{DEADLINE, Fixture};
use uuid::Uuid;
use vector_indexer::VectorIndexer;
use vector_indexer::collection::{self, record};
use vectors::{ALIAS, CollectionSpec, VectorStore};

use crate::support::memories::{MODEL, Memories, index, memory, vector};
use crate::support::program::{Ended, memfleet, output_within};
use crate::support::reader::Reader;

/// Another database whose workers are configured for the same vector store.
async fn neighbour_of(memories: &Memories) -> Fixture {
    let mut fixture = Fixture::new().await;
    fixture.settings.vectors = memories.fixture.settings.vectors.clone();
    fixture
}

/// With three memories of user 1.
async fn told() -> Memories {
    let memories = Memories::new().await.with_users(&[1]).await;
    memories.process([index(1, (0..3).map(|n| memory(Uuid::now_v7(), "text", n)).collect())]).await;
    assert_eq!(memories.points().await, 3);
    memories
}

/// Whether `memfleet vectors` succeeds, and what it says.
async fn memfleet_vectors(fixture: &Fixture, arguments: &[&str]) -> (bool, String) {
    let command = memfleet(fixture, &[&["vectors"], arguments].concat());
    let ended: Ended = output_within(2 * DEADLINE, command).await.into();
    (ended.is_success(), ended.all())
}

async fn deployment(fixture: &Fixture) -> Uuid {
    store::vector::deployment(&mut fixture.connection().await).await.unwrap()
}

fn store_of(settings: &Settings) -> VectorStore {
    VectorStore::open(&settings.vectors).unwrap().unwrap()
}

async fn start_of_indexer(fixture: &Fixture) -> Result<VectorIndexer, String> {
    let mut settings = fixture.settings.clone();
    settings.worker.startup_timeout_s = 1;
    let opened = VectorIndexer::open(&settings, &Readiness::new(contract::VECTOR_INDEXER.name)).await;
    opened.map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_deployment_is_refused_and_changes_nothing() {
    let memories = told().await;
    let mut second = neighbour_of(&memories).await;
    let refused = format!(
        "belongs to the deployment {}, but this database is of the deployment {}",
        deployment(&memories.fixture).await,
        deployment(&second).await
    );
    let is_refused = |(fine, told): (bool, String)| {
        assert!(!fine && told.contains(&refused), "{refused} is not in {told}");
        assert!(told.contains("vectors.alias") && told.contains("vectors apply --take-over"), "{told}");
    };
    is_refused(memfleet_vectors(&second, &["apply"]).await);
    // With another model it would create another collection, and point the alias to it.
    second.settings.vectors.model = Some("another".to_owned());
    is_refused(memfleet_vectors(&second, &["apply"]).await);
    let first_store = memories.vectors();
    let name = &memories.collection.collection_name;
    assert_eq!(first_store.alias_target(ALIAS).await.unwrap().as_deref(), Some(&**name));
    second.settings.vectors.model = Some(MODEL.to_owned());

    // Its database names the collections, as after an `apply` of an earlier version.
    let spec = |quantization| CollectionSpec { model: MODEL.to_owned(), dimension: 8, quantization };
    let (int8, binary) = (spec(config::Quantization::Int8), spec(config::Quantization::Binary));
    let (fine, told) = memfleet_vectors(
        &memories.fixture,
        &["migrate", "--grace", "0", "--quantization", "binary", "--model", MODEL],
    )
    .await;
    assert!(!fine, "vectors that were brought cannot be made anew: {told}");
    let mut connection = second.connection().await;
    for (spec, state) in [(&int8, "active"), (&binary, "former")] {
        let record = record(ALIAS, deployment(&second).await, spec, state).unwrap();
        store::vector::put_collection(&mut connection, ALIAS, &record).await.unwrap();
    }
    is_refused(memfleet_vectors(&second, &["apply"]).await);
    is_refused(memfleet_vectors(&second, &["reconcile", "--repair", "--grace", "0"]).await);
    is_refused(memfleet_vectors(&second, &["drop", &binary.name(ALIAS)]).await);
    let migrate = ["migrate", "--grace", "0", "--quantization", "binary", "--model", MODEL];
    is_refused(memfleet_vectors(&second, &migrate).await);
    let told = start_of_indexer(&second).await.unwrap_err();
    assert!(told.contains(&refused), "{told}");
    let reader = Reader::start(&second).await;
    let search = json!({ "embedding": { "model": MODEL, "vector": vector(1) }, "mode": "vector" });
    second.process(ContextWriter, [testkit::user(1)]).await;
    let (mut connection, right) = (second.connection().await, |vector_type: &str| store::vector::Right {
        service: "test".to_owned(),
        vector_type: vector_type.to_owned(),
        may_search: true,
        may_write: true,
        may_delete: true,
    });
    store::vector::put_right(&mut connection, ALIAS, &right("context")).await.unwrap();
    let (code, told) = reader.ask("search.similar", 1, search).await.unwrap_err();
    assert_eq!(code, "503", "{told}");
    assert!(told.to_string().contains("belongs to another deployment"), "{told}");
    reader.end().await;

    assert_eq!(memories.points().await, 3);
    assert_eq!(memories.points_in(&binary.name(ALIAS)).await, 0);
    let (fine, told) = memfleet_vectors(&memories.fixture, &["reconcile", "--grace", "0"]).await;
    assert!(fine, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_deployments_live_beside_each_other_under_two_aliases() {
    let memories = told().await;
    let mut second = neighbour_of(&memories).await;
    second.settings.vectors.alias = "staging".to_owned();
    let (fine, told) = memfleet_vectors(&second, &["apply"]).await;
    assert!(fine && told.contains("staging__test-8__8__int8 is active"), "{told}");
    let (fine, told) = memfleet_vectors(&second, &["grant", "test", "--search", "--write", "--delete"]).await;
    assert!(fine, "{told}");
    second.process(ContextWriter, [testkit::user(1), testkit::session(1, "s")]).await;
    second
        .process(
            start_of_indexer(&second).await.unwrap(),
            [index(1, vec![memory(Uuid::now_v7(), "other", 1)])],
        )
        .await;
    assert_eq!(second.dead_letters().await, Vec::<String>::new());
    let theirs = store_of(&second.settings).scroll("staging__test-8__8__int8", None, 10).await.unwrap().0;
    assert_eq!((theirs.len(), memories.points().await), (1, 3));
    for fixture in [&second, &memories.fixture] {
        let (fine, told) = memfleet_vectors(fixture, &["reconcile", "--repair", "--grace", "0"]).await;
        assert!(fine && told.contains("0 points without a memory"), "{told}");
    }
    assert_eq!(memories.points().await, 3);
    for (fixture, text) in [(&second, "other"), (&memories.fixture, "text")] {
        let reader = Reader::start(fixture).await;
        let search = json!({ "embedding": { "model": MODEL, "vector": vector(1) }, "mode": "vector" });
        let found: Value = reader.ask("search.similar", 1, search).await.unwrap();
        assert_eq!(found["hits"][0]["content_text"], text);
        reader.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_of_services_are_listed() {
    let fixture = Fixture::new().await;
    let rights = async || {
        let (fine, told) = memfleet_vectors(&fixture, &["rights", "--json"]).await;
        assert!(fine, "{told}");
        told.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect::<Vec<Value>>()
    };
    let shipped = rights().await;
    assert!(shipped.iter().all(|right| right["service"] != "test"), "{shipped:?}");
    for more in [&["--search"][..], &["--type", "query", "--delete"]] {
        let (fine, told) = memfleet_vectors(&fixture, &[&["grant", "test"], more].concat()).await;
        assert!(fine && told.lines().count() >= 4, "{told}");
    }
    let right = |vector_type: &str| {
        let is_last = vector_type == "query";
        json!({ "service": "test", "type": vector_type, "search": !is_last, "write": false, "delete": is_last })
    };
    let granted = ["context", "knowledge", "query", "response"].map(right);
    // `test` is the last one.
    assert_eq!(rights().await, [shipped, granted.to_vec()].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_may_take_over_from_another_one() {
    let memories = told().await;
    let second = neighbour_of(&memories).await;
    let (fine, told) = memfleet_vectors(&second, &["apply", "--take-over"]).await;
    let name = &memories.collection.collection_name;
    let said = format!("{name} now belongs to this deployment, {}", deployment(&second).await);
    assert!(fine && told.contains(&said), "{told}");
    let (fine, told) = memfleet_vectors(&second, &["apply"]).await;
    assert!(fine && !told.contains("now belongs"), "{told}");
    drop(start_of_indexer(&second).await.unwrap());
    let told = start_of_indexer(&memories.fixture).await.unwrap_err();
    assert!(told.contains(&format!("belongs to the deployment {}", deployment(&second).await)), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_of_an_earlier_version_belongs_to_the_database_that_names_it() {
    let memories = told().await;
    let name = &memories.collection.collection_name;
    let client = memories.client();
    for alias in client.list_collection_aliases(name.as_str()).await.unwrap().aliases {
        if alias.alias_name != ALIAS {
            client.delete_alias(alias.alias_name.as_str()).await.unwrap();
        }
    }
    let second = neighbour_of(&memories).await;
    let (fine, told) = memfleet_vectors(&second, &["apply"]).await;
    assert!(!fine && told.contains("has 3 points and is not recorded in this database"), "{told}");
    let (fine, told) = memfleet_vectors(&memories.fixture, &["reconcile", "--repair"]).await;
    assert!(!fine && told.contains("has no owner; `memfleet vectors apply` records"), "{told}");
    // The fleet works before that.
    memories.process([index(1, vec![memory(Uuid::now_v7(), "text", 4)])]).await;
    assert_eq!(memories.points().await, 4);
    let (fine, told) = memfleet_vectors(&memories.fixture, &["apply"]).await;
    assert!(fine && told.contains("now belongs to this deployment"), "{told}");
    let (fine, told) = memfleet_vectors(&memories.fixture, &["reconcile", "--repair", "--grace", "0"]).await;
    assert!(fine, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_claim_a_collection_at_once_at_most_one_gets_it() {
    let memories = Memories::new().await;
    let spec =
        CollectionSpec { model: MODEL.to_owned(), dimension: 8, quantization: config::Quantization::None };
    for round in 0..6 {
        let (store, name) = (memories.vectors(), format!("claimed-{round}"));
        store.create_collection(&name, &spec).await.unwrap();
        let claims = [Uuid::now_v7(), Uuid::now_v7()];
        let (one, other) =
            tokio::join!(store.claim(&name, claims[0], false), store.claim(&name, claims[1], false));
        assert!(one.is_err() || other.is_err());
        if let Some(winner) = [one, other].iter().position(Result::is_ok) {
            assert_eq!(store.owner(&name, claims[winner]).await.unwrap(), vectors::Owner::Us);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_take_over_stops_a_worker_that_runs() {
    let memories = told().await;
    let second = neighbour_of(&memories).await;
    let worker = memories.fixture.run(memories.indexer().await);
    collection::apply_with(&second.settings, true).await.unwrap();
    let foreign = testkit::eventually("it says so", async || {
        let missing = worker.readiness.report().missing;
        missing.into_iter().find(|one| one.problem.contains("belongs to the deployment"))
    });
    foreign.await;
    memories.fixture.publish([index(1, vec![memory(Uuid::now_v7(), "text", 5)])]).await;
    collection::apply_with(&memories.fixture.settings, true).await.unwrap();
    tokio::time::timeout(2 * DEADLINE, memories.fixture.drained::<VectorIndexer>()).await.unwrap();
    worker.stop().await.unwrap();
    assert_eq!((memories.rows().await, memories.fixture.dead_letters().await.len()), (4, 0));
    assert_eq!(memories.points().await, 4);
}
