//! Memories: in both stores or in neither, whoever dies when.

use std::time::Duration;

use context_writer::ContextWriter;
use fleet::health;
use runtime::Readiness;
use serde_json::{Value, json};
use testkit::{RequestMessage, eventually, request, session};
use uuid::Uuid;
use vector_indexer::VectorIndexer;
use vector_indexer::reconcile::{Findings, Reconciler};

use crate::support::http;
use crate::support::memories::{MODEL, Memories, index, memory, remove, vector};
use crate::support::program::start_worker;

async fn reconcile(memories: &Memories, repair: bool) -> Findings {
    let vectors = memories.vectors();
    let reconciler = Reconciler {
        vectors: &vectors,
        collection: &memories.collection,
        embedder: None,
        repair,
        grace: Duration::ZERO,
    };
    reconciler.run(&mut memories.fixture.connection().await).await.unwrap()
}

/// As many points as memories, and neither without the other.
async fn assert_agreement(memories: &Memories) {
    let found = reconcile(memories, false).await;
    assert_eq!((found.orphans, found.gaps), (0, 0), "{found:?}");
    assert_eq!(i64::try_from(found.memories).unwrap(), memories.rows().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_is_in_both_stores_and_its_text_in_one() {
    let memories = Memories::new().await.with_users(&[1_903_657_241]).await;
    let id = Uuid::now_v7();
    let mut one = memory(id, "The cormorant dives at dawn", 1);
    one["speaker"] = "Ada".into();
    one["metadata"] = json!({ "place": "the pier" });
    one["occurred_at"] = "2026-03-01T10:00:00Z".into();
    let mut heard = memories.fixture.subscribe("memory.event.vector.indexed.1903657241").await;
    memories.process([index(1_903_657_241, vec![one])]).await;
    assert_eq!(memories.fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(
        memories
            .fixture
            .lines("concat_ws('|', content_text, speaker, embedding_model, point_count, metadata, qdrant_point_id IS NOT NULL, content_words @@ 'cormor & ada & march') FROM unified_memory_vectors")
            .await,
        [format!("The cormorant dives at dawn|Ada|{MODEL}|1|{{\"place\": \"the pier\"}}|t|t")]
    );
    assert_eq!(
        memories
            .fixture
            .lines("concat_ws('|', id = node_key::uuid, node_type, title) FROM consensus_memory_nodes")
            .await,
        ["t|memory|context"]
    );
    let event: Value = serde_json::from_slice(&testkit::next(&mut heard).await.payload).unwrap();
    assert_eq!(event["payload"]["memories"][0]["content_text"], "The cormorant dives at dawn");
    assert_eq!(event["payload"]["memories"][0]["embedding"], Value::Null);
    assert_agreement(&memories).await;

    // What stands in the vector store says nothing by itself.
    let client = memories.client();
    let scroll = qdrant_client::qdrant::ScrollPointsBuilder::new(&memories.collection.collection_name)
        .with_payload(true);
    let stored = format!("{:?}", client.scroll(scroll).await.unwrap().result);
    assert!(stored.contains("tenant") && stored.contains(&id.to_string()), "{stored}");
    for secret in ["cormorant", "Ada", "pier", "place", "1903657241", "\"s\""] {
        assert!(!stored.contains(secret), "{secret} is in {stored}");
    }
    let noted = "concat_ws('|', access_type, object_name, rows_returned) FROM audit.data_access_log";
    assert_eq!(
        memories.fixture.lines(noted).await,
        [format!("vector-upsert|{}|1", memories.collection.collection_name)]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_indexed_is_refused_by_its_field() {
    let memories = Memories::new().await.with_users(&[1, 2]).await;
    memories.fixture.process(ContextWriter, [session(2, "theirs")]).await;
    let id = Uuid::now_v7();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut one = memory(id, "text", 1);
        change(&mut one);
        index(1, vec![one])
    };
    let embedding = |text: &str| {
        index(1, vec![memory(id, "text", 1)]).map_body(|body| {
            let vector = json!(vector(1)).to_string();
            body.replace(&vector, text)
        })
    };
    let cases: Vec<(RequestMessage, &str)> = vec![
        (
            embedding("[1,2,3]"),
            "permanent: memories[0].embedding.vector: has 3 dimensions, but the collection has 8",
        ),
        (embedding("[0,0,0,0,0,0,0,0]"), "malformed: memories[0].embedding.vector: has no direction"),
        (embedding("[NaN,0,0,0,0,0,0,0]"), "malformed: memories[0].embedding.vector"),
        (embedding("[1e39,0,0,0,0,0,0,0]"), "malformed: memories[0].embedding.vector"),
        (embedding("[]"), "malformed: memories[0].embedding.vector: has 0 numbers"),
        (
            with(&|one| one["embedding"]["model"] = "other".into()),
            "permanent: memories[0].embedding.model: is other, but the collection has vectors of test-8",
        ),
        (with(&|one| one["content_text"] = "".into()), "malformed: memories[0].content_text: is empty"),
        (
            with(&|one| one["content_text"] = " \n".into()),
            "malformed: memories[0].content_text: contains only white space",
        ),
        (
            with(&|one| one["content_text"] = "x".repeat(1_000_000).into()),
            "malformed: memories[0].content_text: is longer than 262144 characters",
        ),
        (
            with(&|one| {
                one.as_object_mut().unwrap().remove("embedding");
            }),
            "permanent: memories[0].embedding: is required, since no embedder is configured for test-8",
        ),
        (
            with(&|one| one["memory_node_id"] = json!(Uuid::nil())),
            "missing-prerequisite: memories[0].memory_node_id: user 1 has no node",
        ),
        (
            request(
                "vector.index",
                1,
                json!({ "session_id": "theirs", "memories": [memory(id, "text", 1)] }),
            ),
            "missing-prerequisite: session_id: user 1 has opened no session theirs",
        ),
        (
            index(1, vec![memory(id, "text", 1), memory(id, "text", 1)]),
            "permanent: memories[1].memory_id: occurs twice",
        ),
        (index(1, vec![]), "malformed: memories: is empty"),
        (remove(1, &[]), "malformed: memory_ids: is empty"),
    ];
    let (requests, expected): (Vec<_>, Vec<_>) = cases.into_iter().unzip();
    memories.process(requests).await;
    let letters = memories.fixture.dead_letters().await;
    for expected in &expected {
        assert!(
            letters.iter().any(|letter| letter.starts_with(expected)),
            "{expected} is not among {letters:#?}"
        );
    }
    assert_eq!(letters.len(), expected.len());
    assert_eq!((memories.rows().await, memories.points().await), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_later_request_wins_and_a_removed_memory_stays_away() {
    let memories = Memories::new().await.with_users(&[1]).await;
    let ids: Vec<Uuid> = (0..4).map(|_| Uuid::now_v7()).collect();
    // In one batch.
    memories
        .process([
            index(1, vec![memory(ids[0], "first", 1), memory(ids[1], "stays", 2)]),
            index(1, vec![memory(ids[0], "second", 3)]),
            index(1, vec![memory(ids[2], "goes", 4)]),
            remove(1, &[ids[2], ids[3]]),
        ])
        .await;
    let texts = "content_text FROM unified_memory_vectors WHERE removed_at IS NULL ORDER BY 1";
    assert_eq!(memories.fixture.lines(texts).await, ["second", "stays"]);
    assert_agreement(&memories).await;
    assert_eq!(memories.points().await, 2);
    // And one after the other.
    memories.process([index(1, vec![memory(ids[0], "third", 5)])]).await;
    memories.process([remove(1, &[ids[1]])]).await;
    assert_eq!(memories.fixture.lines(texts).await, ["third"]);
    assert_agreement(&memories).await;
    assert_eq!(memories.points().await, 1);
    // Nothing of what is removed is kept, and what was published before it brings nothing back.
    let kept = "concat(content_text, metadata, speaker, content_words) FROM unified_memory_vectors WHERE removed_at IS NOT NULL";
    assert_eq!(memories.fixture.lines(kept).await, ["{}", "{}", "{}"]);
    memories.fixture.execute("UPDATE unified_memory_vectors SET updated_at = now() + interval '1 hour' WHERE removed_at IS NOT NULL").await;
    memories
        .process([index(1, vec![memory(ids[3], "late", 6)]), index(1, vec![memory(ids[1], "late", 7)])])
        .await;
    assert_eq!(memories.fixture.lines(texts).await, ["third"]);
    assert_eq!(memories.points().await, 1, "what came late has left no point");
    let nodes = format!("consensus_memory_nodes WHERE id = '{}'", ids[3]);
    assert_eq!(memories.fixture.count(&nodes).await, 0, "and no node");
    assert_eq!(memories.fixture.dead_letters().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_indexes_and_removes_what_it_has_a_right_to() {
    let memories = Memories::new().await.with_users(&[1]).await;
    let (kept, foreign) = (Uuid::now_v7(), Uuid::now_v7());
    memories.process([index(1, vec![memory(kept, "kept", 1)])]).await;
    memories.grant("test", true, false, false).await;
    memories.process([index(1, vec![memory(foreign, "foreign", 2)]), remove(1, &[kept])]).await;
    let mut letters = memories.fixture.dead_letters().await;
    letters.sort();
    assert_eq!(
        letters,
        [
            "denied: test may not index context vectors in unified_memory",
            "denied: test may remove no vectors from unified_memory"
        ]
    );
    assert_eq!(memories.fixture.count("audit.security_violations").await, 2);
    assert_eq!((memories.rows().await, memories.points().await), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_vector_store_is_away_the_stream_waits_and_the_fleet_goes_on() {
    let mut memories = Memories::new().await.with_users(&[1]).await;
    let indexer = memories.fixture.run(memories.indexer().await);
    let (address, listener) = http::listen().await;
    let _answering = health::serve(listener, vec![indexer.readiness.clone()]);
    let is = async |status: u16| {
        let (answered, body) = http::get(address, "/readyz").await;
        (answered == status).then_some(body)
    };
    eventually("vector-indexer is ready", async || is(200).await).await;
    memories.qdrant.kill().await;
    let told = eventually("it says what is away", async || is(503).await).await;
    let missing = &told["workers"][0]["missing"][0];
    assert_eq!((&told["ready"], &missing["dependency"]), (&json!(false), &json!("qdrant")), "{told}");
    assert!(missing["problem"].as_str().unwrap().starts_with("the vector store is unavailable"), "{told}");
    assert_eq!(http::get(address, "/healthz").await, (200, json!({ "alive": true })));
    let ids: Vec<Uuid> = (0..20).map(|_| Uuid::now_v7()).collect();
    memories.fixture.publish(ids.iter().map(|&id| index(1, vec![memory(id, "text", 1)]))).await;
    memories.fixture.process(ContextWriter, [session(1, "meanwhile")]).await;
    assert_eq!(memories.fixture.count("chat_mode_sessions WHERE session_id = 'meanwhile'").await, 1);
    assert_eq!(memories.rows().await, 0);
    memories.qdrant.resume().await.unwrap();
    memories.fixture.drained::<VectorIndexer>().await;
    eventually("vector-indexer is ready again", async || is(200).await).await;
    indexer.stop().await.unwrap();
    assert_eq!(memories.fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(memories.rows().await, 20);
    assert_agreement(&memories).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_dies_when_both_stores_agree() {
    let memories = Memories::new().await.with_users(&[1, 2, 3]).await;
    let ids: Vec<Uuid> = (0..30).map(|_| Uuid::now_v7()).collect();
    let mut requests = Vec::new();
    for round in 0..10_u64 {
        for (place, &id) in ids.iter().enumerate() {
            let owner = i32::try_from(place % 3).unwrap() + 1;
            let number = u64::try_from(place).unwrap() + round * 100;
            requests.push(match (number + round) % 7 {
                0 => remove(owner, &[id]),
                _ => index(owner, vec![memory(id, &format!("round {round}"), number)]),
            });
        }
    }
    // A request that is published again counts as later than what came between, if the second one is carried out first: so only
    // of the last round.
    let again: Vec<RequestMessage> = requests.iter().skip(270).step_by(5).cloned().collect();
    let points = [
        "Pulled:2",
        "Taken:1",
        "Written:1",
        "Committed:1",
        "Committed:2",
        "EventsPublished:1",
        "Acknowledging:3",
    ];
    let half = requests.len() / 2;
    let rest = requests.split_off(half);
    memories.fixture.publish(requests).await;
    for point in points {
        let mut dying = start_worker(
            &memories.fixture,
            "vector-indexer",
            Some(point),
            &[("MEMFLEET_WORKER__BATCH_SIZE", "20")],
        );
        let ended =
            tokio::time::timeout(testkit::DEADLINE, dying.wait()).await.expect("it dies in time").unwrap();
        assert!(!ended.success(), "{point}");
    }
    memories.fixture.publish(rest).await;
    memories.fixture.publish(again).await;
    memories.process([]).await;
    assert_eq!(memories.fixture.dead_letters().await, Vec::<String>::new());
    assert_agreement(&memories).await;
    assert_eq!(i64::try_from(memories.points().await).unwrap(), memories.rows().await);
    // The last round says what there is.
    let expected = (0..30_u64).filter(|place| (place + 900 + 9) % 7 != 0).count();
    assert_eq!(memories.rows().await, i64::try_from(expected).unwrap());
    assert_eq!(
        memories
            .fixture
            .count("unified_memory_vectors WHERE removed_at IS NULL AND content_text <> 'round 9'")
            .await,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reconciler_finds_orphans_and_gaps() {
    let memories = Memories::new().await.with_users(&[1]).await;
    let ids: Vec<Uuid> = (0..5).map(|_| Uuid::now_v7()).collect();
    memories.process([index(1, ids.iter().map(|&id| memory(id, "text", 1)).collect())]).await;
    memories.fixture.execute(&format!("DELETE FROM unified_memory_vectors WHERE id = '{}'", ids[0])).await;
    let point = format!("qdrant_point_id FROM unified_memory_vectors WHERE id = '{}'", ids[1]);
    let point: Uuid = memories.fixture.lines(&point).await[0].parse().unwrap();
    memories.vectors().delete(&memories.collection.collection_name, &[point]).await.unwrap();
    let found = reconcile(&memories, false).await;
    assert_eq!((found.points, found.memories, found.orphans, found.gaps), (4, 4, 1, 1));
    let found = reconcile(&memories, true).await;
    assert_eq!((found.repaired, found.lost), (1, 1), "a vector that was brought cannot be made anew");
    let found = reconcile(&memories, false).await;
    assert_eq!((found.points, found.orphans, found.gaps), (3, 0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collection_the_worker_says_what_to_do() {
    let memories = Memories::new().await;
    memories.fixture.execute("DELETE FROM vector_collections").await;
    let mut settings = memories.fixture.settings.clone();
    settings.worker.startup_timeout_s = 1;
    let error = VectorIndexer::open(&settings, &Readiness::new(contract::VECTOR_INDEXER.name))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("`memfleet vectors apply` creates it"), "{error}");
    settings.vectors.url = Some("http://127.0.0.1:1".to_owned());
    let error = VectorIndexer::open(&settings, &Readiness::new(contract::VECTOR_INDEXER.name))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("vectors.url"), "{error}");
    settings.vectors.url = None;
    let error = VectorIndexer::open(&settings, &Readiness::new(contract::VECTOR_INDEXER.name))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("vectors.url is not set"), "{error}");
}

/// Users beside each other, with the same memory id, text and vector.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_memory_of_two_users_is_two() {
    let memories = Memories::new().await.with_users(&[1, 2]).await;
    let id = Uuid::now_v7();
    memories.process([index(1, vec![memory(id, "same", 1)]), index(2, vec![memory(id, "same", 1)])]).await;
    assert_eq!((memories.rows().await, memories.points().await), (2, 2));
    memories.process([remove(1, &[id])]).await;
    assert_eq!((memories.rows().await, memories.points().await), (1, 1));
    assert_agreement(&memories).await;
}
