//! Validated knowledge in searches: made and removed by ticks, in both stores.

use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::Utc;
use config::EmbedderKind;
use contract::Tick;
use diesel_async::AsyncConnection;
use keys::DataKeys;
use runtime::{Ended, ExternalWorker, Message, Source, Verdict, WorkItem};
use serde_json::{Value, json};
use store::{Fault, FaultKind, security};
use testkit::{Fixture, RequestMessage, eventually, request};
use uuid::Uuid;
use vector_indexer::{Job, VectorItem};

use crate::support::consensus::{Task, process, three_families, verdict};
use crate::support::memories::{Memories, remove};
use crate::support::reader::Reader;
use crate::support::ticks;
use crate::vector_embedding::Server;

const THREE: [&str; 3] = ["a", "b", "c"];
const QUESTION: &str = "Which river flows through Lisbon?";
const DIMENSION: usize = 16;

async fn with_embedder(server: &Server) -> Memories {
    let url = server.url.clone();
    let memories = Memories::with(|settings| {
        settings.embedder.kind = EmbedderKind::Http;
        settings.embedder.url = Some(url);
        settings.embedder.model = Some("letters".to_owned());
        settings.embedder.dimension = Some(DIMENSION);
    });
    memories.await.with_users(&[1, 2]).await
}

fn job_name() -> &'static str {
    runtime::Job::name(Job::KnowledgeIndex)
}

async fn tick(memories: &Memories) {
    ticks::tick(&memories.fixture, "vector-indexer", job_name()).await;
}

/// A closed task of user 1 whose three families agree on this answer.
async fn agreed(fixture: &Fixture, key: &str, text: &str) -> (Task, Uuid) {
    let task = Task::of(1);
    let mut requests = three_families(1);
    requests.push(task.delegate(&THREE, 3, json!({ "node_type": "fact", "node_key": key })));
    requests.extend(task.all_say(&THREE, text));
    process(fixture, requests).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    let node = task.node(fixture).await;
    (task, node)
}

/// The nodes that a search of a user finds.
async fn found(reader: &Reader, user: i32, mode: &str) -> Vec<String> {
    let query = json!({ "text": QUESTION, "mode": mode, "vector_types": ["knowledge"] });
    let answer = reader.ask("search.similar", user, query).await.expect("an answer");
    let node = |hit: &Value| hit["memory_node_id"].as_str().expect("a node").to_owned();
    answer["hits"].as_array().expect("hits").iter().map(node).collect()
}

async fn due(memories: &Memories) -> i64 {
    memories.fixture.count("sec.due_knowledge_index(10)").await
}

const ROWS: &str =
    "concat_ws('|', id = memory_node_id, vector_type, content_text, metadata, is_of_node, point_count)
    FROM unified_memory_vectors WHERE removed_at IS NULL";

#[tokio::test(flavor = "multi_thread")]
async fn a_search_finds_what_is_validated_as_long_as_it_is_valid() {
    let server = Server::start(DIMENSION).await;
    let memories = with_embedder(&server).await;
    let fixture = &memories.fixture;
    let (_, first) = agreed(fixture, "river", "The Tagus").await;
    let disputed = Task::of(1);
    let mut requests = vec![disputed.delegate(&THREE, 3, json!({ "node_key": "other" }))];
    requests.extend(
        THREE.iter().zip(["Rhine", "Tagus", "Douro"]).map(|(id, text)| disputed.respond(id, text, json!({}))),
    );
    process(fixture, requests).await;
    let (worker, reader) = (fixture.run(memories.indexer().await), Reader::start(fixture).await);
    assert_eq!(found(&reader, 1, "hybrid").await, Vec::<String>::new());
    assert_eq!(due(&memories).await, 1);

    tick(&memories).await;
    let text =
        format!("t|knowledge|{QUESTION}\nThe Tagus|{{\"node_key\": \"river\", \"node_type\": \"fact\"}}|t|1");
    assert_eq!(fixture.lines(ROWS).await, [text]);
    assert_eq!((memories.points().await, due(&memories).await), (1, 0));
    for mode in ["hybrid", "vector", "fulltext"] {
        assert_eq!(found(&reader, 1, mode).await, [first.to_string()], "{mode}");
        assert_eq!(found(&reader, 2, mode).await, Vec::<String>::new(), "it is another user's");
    }
    let dossier = reader.ask("node.dossier", 1, json!({ "node_id": first })).await.expect("a dossier");
    assert_eq!(dossier["node"]["validation_status"], "validated", "{dossier}");
    let told = "concat_ws(' ', event_type, source_agent_id, event_payload -> 'memories' -> 0 ->> 'memory_node_id') FROM blackboard_events
        WHERE event_type::text LIKE 'vector.%' ORDER BY event_sequence";
    assert_eq!(fixture.lines(told).await, [format!("vector.indexed job:{} {first}", job_name())]);
    let noted = "concat_ws(' ', access_type, rows_returned) FROM audit.data_access_log WHERE access_type = 'vector-upsert'";
    assert_eq!(fixture.lines(noted).await, ["vector-upsert 1"]);
    tick(&memories).await;
    assert_eq!(fixture.lines(told).await.len(), 1, "nothing was due");

    // A new answer takes its place: the old one is not found any more, the new one is from the next tick on.
    let (_, second) = agreed(fixture, "river", "the TAGUS").await;
    assert_eq!(found(&reader, 1, "hybrid").await, Vec::<String>::new());
    tick(&memories).await;
    assert_eq!(found(&reader, 1, "hybrid").await, [second.to_string()]);
    assert_eq!((memories.points().await, memories.rows().await, due(&memories).await), (1, 1, 0));
    // Nothing is left of the text of the old one.
    let forgotten = "concat_ws('|', content_text, is_of_node, qdrant_point_id) FROM unified_memory_vectors WHERE removed_at IS NOT NULL";
    assert_eq!(fixture.lines(forgotten).await, ["|f"]);

    process(fixture, [verdict(1, second, "reject")]).await;
    assert_eq!(found(&reader, 1, "hybrid").await, Vec::<String>::new());
    tick(&memories).await;
    assert_eq!((memories.points().await, memories.rows().await, due(&memories).await), (0, 0, 0));
    process(fixture, [verdict(1, second, "reopen")]).await;
    tick(&memories).await;
    assert_eq!(found(&reader, 1, "hybrid").await, [second.to_string()]);
    assert_eq!((memories.points().await, due(&memories).await), (1, 0));
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    reader.end().await;
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_service_says_of_a_node_stays_and_what_it_removes_stays_away() {
    let server = Server::start(DIMENSION).await;
    let memories = with_embedder(&server).await;
    let fixture = &memories.fixture;
    let (_, removed) = agreed(fixture, "river", "The Tagus").await;
    let own = Uuid::now_v7();
    let propose = json!({ "node_id": own, "node_type": "fact", "node_key": "own", "title": "Mine", "content": { "answer": "x" } });
    process(fixture, [request("knowledge.propose", 1, propose), verdict(1, own, "confirm")]).await;
    let said = json!({ "memory_id": own, "memory_node_id": own, "vector_type": "knowledge", "content_text": "mine" });
    memories.process([request("vector.index", 1, json!({ "memories": [said] }))]).await;
    let worker = fixture.run(memories.indexer().await);
    tick(&memories).await;
    let texts = "concat_ws(' ', is_of_node, content_text) FROM unified_memory_vectors WHERE removed_at IS NULL ORDER BY 1";
    assert_eq!(fixture.lines(texts).await, ["f mine".to_owned(), format!("t {QUESTION}\nThe Tagus")]);

    fixture.publish([remove(1, &[removed])]).await;
    fixture.drained::<vector_indexer::VectorIndexer>().await;
    assert_eq!(due(&memories).await, 0);
    tick(&memories).await;
    assert_eq!(fixture.lines(texts).await, ["f mine"]);
    assert_eq!(memories.points().await, 1);
    // The service's own memory stays when the node is not valid any more.
    process(fixture, [verdict(1, own, "reject"), verdict(1, removed, "reject")]).await;
    tick(&memories).await;
    assert_eq!((fixture.lines(texts).await, due(&memories).await), (vec!["f mine".to_owned()], 0));
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_the_embedder_refuses_keeps_no_other_away_and_is_left_out() {
    let server = Server::refusing(DIMENSION, Some("unfit")).await;
    let memories = with_embedder(&server).await;
    let fixture = &memories.fixture;
    let nodes = ["first", "unfit", "third"].map(|key| (key, Uuid::now_v7()));
    for (key, id) in nodes {
        let node = json!({ "node_id": id, "node_type": "fact", "node_key": key, "title": key, "content": { "answer": key } });
        process(fixture, [request("knowledge.propose", 1, node), verdict(1, id, "confirm")]).await;
    }
    let worker = fixture.run(memories.indexer().await);
    tick(&memories).await;
    let texts = "concat_ws('|', content_text, removed_at IS NULL) FROM unified_memory_vectors ORDER BY removed_at IS NULL, content_text";
    assert_eq!(fixture.lines(texts).await, ["|f", "first\nfirst|t", "third\nthird|t"]);
    assert_eq!((memories.points().await, due(&memories).await), (2, 0));
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    worker.stop().await.expect("a clean end");
}

/// The requests of a validated node of a user whose key and answer are these.
fn confirmed(user: i32, key: &str, answer: &str) -> [RequestMessage; 2] {
    let id = Uuid::now_v7();
    let node = json!({ "node_id": id, "node_type": "fact", "node_key": key, "title": key, "content": { "answer": answer } });
    [request("knowledge.propose", user, node), verdict(user, id, "confirm")]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_the_database_cannot_store_keeps_no_other_out_and_is_left_out() {
    let server = Server::start(DIMENSION).await;
    let memories = with_embedder(&server).await;
    let fixture = &memories.fixture;
    let nodes = [(1, "first"), (1, "unfit"), (1, "third"), (2, "other")];
    process(fixture, nodes.into_iter().flat_map(|(user, key)| confirmed(user, key, key))).await;
    fixture
        .execute(
            "CREATE OR REPLACE FUNCTION memory_words(content text) RETURNS tsvector LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
             SET search_path = pg_catalog, pg_temp AS $$
             BEGIN
                 IF content LIKE '%unfit%' THEN RAISE 'value out of range'; END IF;
                 RETURN to_tsvector('pg_catalog.english'::regconfig, content);
             END $$",
        )
        .await;
    let worker = fixture.run(memories.indexer().await);
    // The first one ends with what cannot be stored, the second one takes what comes after it.
    for _ in 0..2 {
        tick(&memories).await;
    }
    let texts = "concat_ws('|', content_text, removed_at IS NULL) FROM unified_memory_vectors ORDER BY removed_at IS NULL, content_text";
    assert_eq!(fixture.lines(texts).await, ["|f", "first\nfirst|t", "other\nother|t", "third\nthird|t"]);
    assert_eq!((memories.points().await, due(&memories).await), (3, 0));
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_and_large_nodes_of_a_user_keep_those_of_others_out_of_no_tick() {
    const LARGE: i64 = 9;
    let server = Server::start(DIMENSION).await;
    let memories = with_embedder(&server).await;
    let fixture = &memories.fixture;
    let large = "wide river ".repeat(30_000);
    process(fixture, (0..LARGE).flat_map(|key| confirmed(1, &format!("k{key}"), &large))).await;
    process(fixture, confirmed(2, "river", "The Tagus")).await;
    let worker = fixture.run(memories.indexer().await);
    tick(&memories).await;
    let of = |user: i32| format!("unified_memory_vectors WHERE user_id = {user} AND removed_at IS NULL");
    assert_eq!(fixture.count(&of(1)).await, 4, "256 KiB, of which each counts as 64");
    assert_eq!(fixture.count(&of(2)).await, 1);
    for _ in 0..2 {
        tick(&memories).await;
    }
    assert_eq!((fixture.count(&of(1)).await, due(&memories).await), (LARGE, 0));
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    worker.stop().await.expect("a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_while_the_vector_store_is_away() {
    let server = Server::start(DIMENSION).await;
    let mut memories = with_embedder(&server).await;
    let (_, node) = agreed(&memories.fixture, "river", "The Tagus").await;
    let worker = memories.fixture.run(memories.indexer().await);
    memories.qdrant.kill().await;
    ticks::publish_tick(&memories.fixture, job_name()).await;
    eventually("the worker misses it", async || {
        serde_json::to_string(&worker.readiness.report()).expect("a report").contains("qdrant").then_some(())
    })
    .await;
    memories.qdrant.resume().await.expect("the vector store");
    eventually("the node is found", async || (memories.rows().await == 1).then_some(())).await;
    assert_eq!((memories.points().await, due(&memories).await), (1, 0));
    let row = "id FROM unified_memory_vectors";
    assert_eq!(memories.fixture.lines(row).await, [node.to_string()]);
    worker.stop().await.expect("a clean end");
}

/// Whoever gives no embedder is not searched by meaning: a tick changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn without_an_embedder_a_tick_does_nothing() {
    let memories = Memories::new().await.with_users(&[1]).await;
    agreed(&memories.fixture, "river", "The Tagus").await;
    let worker = memories.fixture.run(memories.indexer().await);
    tick(&memories).await;
    assert_eq!((memories.rows().await, memories.points().await, due(&memories).await), (0, 0, 1));
    assert_eq!(memories.fixture.dead_letters().await, Vec::<String>::new());
    worker.stop().await.expect("a clean end");
}

/// The message of a tick.
fn message() -> Message<VectorItem> {
    let tick = Tick {
        job: job_name().parse().expect("a job"),
        scheduler: String::new(),
        stored_at: Utc::now() + Duration::from_secs(60),
    };
    Message {
        request: VectorItem::from_tick(&tick).expect("a tick"),
        secrets: Vec::new(),
        request_id: Uuid::now_v7(),
        parent_event_id: None,
        stored_at: tick.stored_at,
        source: Source::Tick(tick),
        sequence: 0,
        event_id: Uuid::now_v7(),
        body: bytes::Bytes::new(),
        is_widened: false,
    }
}

/// Only a server that fails several times in a row makes a tick wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_tried_again_when_the_embedder_fails_on_it() {
    let server = Server::start(DIMENSION).await;
    let mut memories = with_embedder(&server).await;
    memories.fixture.settings.embedder.retries = 0;
    agreed(&memories.fixture, "river", "The Tagus").await;
    let (worker, message) = (memories.indexer().await, message());
    let grant = testkit::attack::grant(1, "w_vector_indexer");
    // The first try takes two requests: the server is asked for a harmless text, too. Further ones begin with that.
    server.busy.store(4, Ordering::SeqCst);
    worker.prepare(&[&message], &[&grant]).await.expect("a memory, at the fourth try");
    assert_eq!((server.busy.load(Ordering::SeqCst), memories.points().await), (0, 1));
    server.busy.store(4, Ordering::SeqCst);
    let fault = worker.prepare(&[&message], &[&grant]).await.expect_err("no fifth try");
    assert_eq!(fault.kind, FaultKind::Unavailable);
}

/// A tick reads what is due, and much may happen until it writes.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_between_reading_and_writing_is_not_undone() {
    let server = Server::start(DIMENSION).await;
    let memories = with_embedder(&server).await;
    let fixture = &memories.fixture;
    let [own, rejected, removed, good] =
        ["own", "rejected", "removed", "good"].map(|key| (key, Uuid::now_v7()));
    for (key, id) in [own, rejected, removed, good] {
        let node = json!({ "node_id": id, "node_type": "fact", "node_key": key, "title": key, "content": { "answer": key } });
        process(fixture, [request("knowledge.propose", 1, node), verdict(1, id, "confirm")]).await;
    }
    let worker = memories.indexer().await;
    let message = message();
    let grant = testkit::attack::grant(1, "w_vector_indexer");
    let prepared = worker.prepare(&[&message], &[&grant]).await.expect("four memories");
    assert_eq!(memories.points().await, 4);

    let said = json!({ "memory_id": own.1, "memory_node_id": own.1, "vector_type": "knowledge", "content_text": "mine" });
    memories.process([request("vector.index", 1, json!({ "memories": [said] }))]).await;
    process(fixture, [verdict(1, rejected.1, "reject")]).await;
    fixture
        .execute(&format!(
            "INSERT INTO unified_memory_vectors (id, user_id, vector_type, content_text, embedding_model, point_count, removed_at,
                is_of_node) VALUES ('{}', 1, 'knowledge', '', '', 0, now(), true)",
            removed.1
        ))
        .await;
    let url = fixture.settings.postgres.url_of("w_vector_indexer");
    let mut connection = store::connect(&url).await.expect("a connection");
    let written: Result<Vec<Verdict>, Fault> = connection
        .transaction(async |connection| {
            security::open_context(connection, &[&grant]).await?;
            Ok(worker.write(connection, &[&message], &DataKeys::new(), &prepared).await?.verdicts)
        })
        .await;
    let verdicts = written.expect("a commit");
    let [Verdict::Applied(events)] = verdicts.as_slice() else { panic!("{verdicts:?}") };
    assert_eq!(events.len(), 1, "one of four: {events:?}");
    let texts = "concat_ws('|', content_text, is_of_node) FROM unified_memory_vectors WHERE removed_at IS NULL ORDER BY 1";
    assert_eq!(fixture.lines(texts).await, ["good\ngood|t", "mine|f"]);
    let ended = [Ended { message: &message, committed: true, findings: &[] }];
    worker.clean_up(&ended, &prepared).await.expect("a clean vector store");
    assert_eq!(memories.points().await, 2, "those of the others are deleted");
    assert_eq!(due(&memories).await, 0);
}
