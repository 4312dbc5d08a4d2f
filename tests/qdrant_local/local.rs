//! The behaviour that is specific to this program: rejected features and durability.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use qdrant_client::Qdrant;
use qdrant_client::qdrant::collections_client::CollectionsClient;
use qdrant_client::qdrant::{
    CollectionStatus, ListCollectionsRequest, SetPayloadPointsBuilder, UpdateStatus,
};
use qdrant_client::qdrant::{
    Condition, CountPointsBuilder, CreateAliasBuilder, CreateCollectionBuilder,
    CreateFieldIndexCollectionBuilder, Datatype, DeletePointsBuilder, Distance, FieldType, Filter,
    OptimizersConfigDiffBuilder, OrderByBuilder, PointId, PointsIdsList, PrefetchQueryBuilder,
    ProductQuantizationBuilder, Query, QueryBatchPointsBuilder, QueryPointsBuilder, ScrollPointsBuilder,
    SearchParamsBuilder, SearchPointsBuilder, SparseVectorParamsBuilder, SparseVectorsConfigBuilder,
    UpdateCollectionBuilder, UpsertPointsBuilder, VectorParamsBuilder, VectorsConfigBuilder,
    WalConfigDiffBuilder,
};
use qdrant_client::{Payload, QdrantError};
use serde_json::json;
use tempfile::TempDir;
use tonic::Code;
use tonic::transport::Endpoint;

use super::common::{self, Program, command, eventually, ids, numbers, point, refusal, vector};

const SIZE: usize = 64;

/// A server of this program, regardless of QDRANT_URL.
fn own() -> (TempDir, Program) {
    let folder = TempDir::new().unwrap();
    let program = Program::start(folder.path());
    (folder, program)
}

fn unsupported<T: std::fmt::Debug>(answer: Result<T, QdrantError>, what: &str) {
    let (code, message) = refusal(answer);
    assert_eq!(code, Code::Unimplemented, "{message}");
    assert!(message.starts_with("qdrant-local does not support "), "{message}");
    assert!(message.contains(what), "{message} does not name {what}");
}

async fn create(client: &Qdrant, name: &str) {
    let request = CreateCollectionBuilder::new(name)
        .vectors_config(VectorParamsBuilder::new(SIZE as u64, Distance::Cosine))
        .optimizers_config(OptimizersConfigDiffBuilder::default().indexing_threshold(100));
    client.create_collection(request).await.unwrap();
}

async fn upsert(client: &Qdrant, name: &str, range: std::ops::Range<u64>) {
    let points = range.map(|n| point(n, vector(n, SIZE), json!({"n": n, "tenant": n % 7})));
    client
        .upsert_points(UpsertPointsBuilder::new(name, points.collect::<Vec<_>>()).wait(true))
        .await
        .unwrap();
}

async fn green(client: &Qdrant, name: &str) {
    eventually("green", || async {
        let info = client.collection_info(name).await.unwrap().result.unwrap();
        (info.status == i32::from(CollectionStatus::Green)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn collections_of_other_kinds_are_refused() {
    let (_folder, program) = own();
    let client = program.client();
    let plain = || VectorParamsBuilder::new(4, Distance::Dot);
    let base = || CreateCollectionBuilder::new("x").vectors_config(plain());
    let refused = async |request: CreateCollectionBuilder, what: &str| {
        unsupported(client.create_collection(request).await, what);
    };
    let mut named = VectorsConfigBuilder::default();
    named.add_named_vector_params("name", plain());
    refused(CreateCollectionBuilder::new("x").vectors_config(named), "named vectors").await;
    refused(CreateCollectionBuilder::new("x"), "without vectors").await;
    let half = plain().datatype(Datatype::Float16);
    refused(CreateCollectionBuilder::new("x").vectors_config(half), "float32").await;
    let mut sparse = SparseVectorsConfigBuilder::default();
    sparse.add_named_vector_params("name", SparseVectorParamsBuilder::default());
    refused(base().sparse_vectors_config(sparse), "sparse vectors").await;
    refused(base().quantization_config(ProductQuantizationBuilder::new(1)), "product quantization").await;
    refused(base().shard_number(2), "more shards").await;
    refused(base().replication_factor(2), "more replicas").await;
    refused(base().wal_config(WalConfigDiffBuilder::default().wal_capacity_mb(1_u64)), "wal_config").await;
    let flush = OptimizersConfigDiffBuilder::default().flush_interval_sec(1);
    refused(base().optimizers_config(flush), "flush_interval_sec").await;
    assert!(!client.collection_exists("x").await.unwrap());
}

#[tokio::test]
async fn other_calls_and_options_are_refused() {
    let (_folder, program) = own();
    let client = program.client();
    create(&client, "x").await;
    upsert(&client, "x", 0..3).await;
    let query = || QueryPointsBuilder::new("x").query(vector(0, SIZE));
    unsupported(client.query(query().using("name")).await, "named vectors");
    unsupported(client.query(query().add_prefetch(PrefetchQueryBuilder::default())).await, "prefetches");
    unsupported(client.query(QueryPointsBuilder::new("x")).await, "name no vector");
    let by_id = Query::new_nearest(PointId::from(1));
    unsupported(client.query(QueryPointsBuilder::new("x").query(by_id)).await, "id of a point");
    let by_field = Query::new_order_by(OrderByBuilder::new("n"));
    unsupported(client.query(QueryPointsBuilder::new("x").query(by_field)).await, "order_by");
    let text = Filter::must([Condition::matches_text("n", "word")]);
    unsupported(client.query(query().filter(text.clone())).await, "match text");
    unsupported(client.count(CountPointsBuilder::new("x").filter(text)).await, "match text");
    let has = Filter::must([Condition::has_vector("name")]);
    unsupported(client.query(query().filter(has)).await, "has_vector");
    let ordered = ScrollPointsBuilder::new("x").order_by(OrderByBuilder::new("n"));
    unsupported(client.scroll(ordered).await, "an order other than by id");
    let params = SearchParamsBuilder::default().acorn(qdrant_client::qdrant::AcornSearchParams::default());
    unsupported(client.query(query().params(params)).await, "acorn");
    let geo = CreateFieldIndexCollectionBuilder::new("x", "n", FieldType::Geo);
    unsupported(client.create_field_index(geo).await, "geographic");
    let batch = QueryBatchPointsBuilder::new("x", vec![query().build()]);
    unsupported(client.query_batch(batch).await, "Points.QueryBatch");
    let search = SearchPointsBuilder::new("x", vector(0, SIZE), 1);
    unsupported(client.search_points(search).await, "Points.Search");
    let update = UpdateCollectionBuilder::new("x");
    unsupported(client.update_collection(update).await, "Collections.Update");
    unsupported(client.list_snapshots("x").await, "Snapshots.List");
}

#[tokio::test]
async fn a_write_that_nobody_waits_for_fails_silently() {
    let (_folder, program) = own();
    let client = program.client();
    create(&client, "x").await;
    let wrong = || vec![point(1, vec![1.0], json!({}))];
    let late = client.upsert_points(UpsertPointsBuilder::new("x", wrong()).wait(false)).await.unwrap();
    assert_eq!(late.result.unwrap().status, i32::from(UpdateStatus::Acknowledged));
    let now = client.upsert_points(UpsertPointsBuilder::new("x", wrong()).wait(true)).await;
    assert_eq!(refusal(now).0, Code::InvalidArgument);
    assert_eq!(ids(&client, "x", None).await, []);
}

#[tokio::test]
async fn acknowledged_writes_survive_a_crash() {
    let (folder, program) = own();
    let client = program.client();
    create(&client, "x").await;
    client.create_alias(CreateAliasBuilder::new("x", "alias")).await.unwrap();
    let index = CreateFieldIndexCollectionBuilder::new("x", "tenant", FieldType::Integer).wait(true);
    client.create_field_index(index).await.unwrap();
    for first in (0..100).step_by(10) {
        upsert(&client, "x", first..first + 10).await;
    }
    let delete = DeletePointsBuilder::new("x").points(PointsIdsList { ids: numbers(0..5) }).wait(true);
    client.delete_points(delete).await.unwrap();
    program.crash();
    let program = Program::start(folder.path());
    let client = program.client();
    assert_eq!(ids(&client, "alias", None).await, numbers(5..100));
    let schema = client.collection_info("x").await.unwrap().result.unwrap().payload_schema;
    assert!(schema.contains_key("tenant"));
    // The engine takes new operations for newer than those before.
    upsert(&client, "x", 0..10).await;
    assert_eq!(ids(&client, "x", None).await, numbers(0..100));
}

/// Replaces, changes and deletes points while the optimizer runs, and crashes meanwhile.
#[tokio::test]
async fn writes_survive_a_crash_of_the_optimiser() {
    const ADDED: u64 = 8000;
    let folder = TempDir::new().unwrap();
    let mut program = Program::start(folder.path());
    create(&program.client(), "x").await;
    let mut cut_short = 0;
    for round in 0..4_u64 {
        let client = program.client();
        let end = (round + 1) * ADDED;
        upsert(&client, "x", end - ADDED..end).await;
        eventually("optimising", || async { journal(folder.path()).map(drop) }).await;
        for step in 0..10 {
            let gone = round * 100 + step * 10;
            let gone = PointsIdsList { ids: numbers(gone..gone + 10) };
            client.delete_points(DeletePointsBuilder::new("x").points(gone).wait(true)).await.unwrap();
            let payload = json!({"round": round, "step": step});
            let changed = vec![point(end - 1, vector(round, SIZE), payload)];
            client.upsert_points(UpsertPointsBuilder::new("x", changed).wait(true)).await.unwrap();
            let mark = Payload::try_from(json!({"mark": step})).unwrap();
            let last = Filter::must([Condition::has_id(numbers([end - 2]))]);
            let mark = SetPayloadPointsBuilder::new("x", mark).points_selector(last).wait(true);
            client.set_payload(mark).await.unwrap();
        }
        program.crash();
        cut_short += u32::from(journal(folder.path()).is_some_and(|length| length > 0));
        program = Program::start(folder.path());
        let client = program.client();
        let gone = (round + 1) * 100;
        let count = client.count(CountPointsBuilder::new("x").exact(true)).await.unwrap();
        assert_eq!(count.result.unwrap().count, end - gone, "round {round}");
        let first = ScrollPointsBuilder::new("x").limit(1);
        assert_eq!(client.scroll(first).await.unwrap().result[0].id, Some(gone.into()));
        let newest =
            Filter::must([Condition::matches("step", 9), Condition::matches("round", round.cast_signed())]);
        assert_eq!(ids(&client, "x", Some(newest)).await, numbers([end - 1]));
        let marked = ids(&client, "x", Some(Filter::must([Condition::matches("mark", 9)]))).await;
        assert_eq!(marked, numbers((0..=round).map(|round| (round + 1) * ADDED - 2)));
    }
    assert!(cut_short > 0, "no crash fell into the work of the optimiser");
    green(&program.client(), "x").await;
}

/// The length of the journal of the only collection, while the optimizer runs.
fn journal(folder: &Path) -> Option<u64> {
    let collections = fs::read_dir(folder.join("home/collections")).unwrap();
    let mut journals = collections.map(|found| found.unwrap().path().join("journal.jsonl"));
    journals.find_map(|journal| fs::metadata(journal).ok()).map(|journal| journal.len())
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let (folder, program) = own();
    let client = program.client();
    create(&client, "x").await;
    create(&client, "gone").await;
    client.create_alias(CreateAliasBuilder::new("x", "alias")).await.unwrap();
    let index = CreateFieldIndexCollectionBuilder::new("x", "tenant", FieldType::Integer).wait(true);
    client.create_field_index(index).await.unwrap();
    upsert(&client, "x", 0..2000).await;
    // Nobody waits for this one.
    let late = vec![point(5000, vector(1, SIZE), json!({}))];
    client.upsert_points(UpsertPointsBuilder::new("x", late).wait(false)).await.unwrap();
    client.delete_collection("gone").await.unwrap();
    green(&client, "x").await;
    let before = client.collection_info("x").await.unwrap().result.unwrap();
    assert!(before.indexed_vectors_count.unwrap() >= 1000);
    assert_eq!(program.stop().code(), Some(0));

    let program = Program::start(folder.path());
    let client = program.client();
    green(&client, "x").await;
    let after = client.collection_info("alias").await.unwrap().result.unwrap();
    assert_eq!((after.points_count, after.config), (Some(2001), before.config));
    assert!(after.indexed_vectors_count.unwrap() >= 1000);
    assert!(after.payload_schema.contains_key("tenant"));
    assert!(!client.collection_exists("gone").await.unwrap());
    let left = fs::read_dir(folder.path().join("home/collections")).unwrap().count();
    assert_eq!(left, 1, "the folder of a deleted collection goes");
}

#[tokio::test]
async fn writes_and_reads_go_on_while_the_optimiser_runs() {
    let (_folder, program) = own();
    let client = program.client();
    create(&client, "x").await;
    upsert(&client, "x", 0..3000).await;
    let mut seen_yellow = false;
    let mut end = 3000;
    loop {
        let info = client.collection_info("x").await.unwrap().result.unwrap();
        if seen_yellow && info.status == i32::from(CollectionStatus::Green) {
            break;
        }
        seen_yellow |= info.status == i32::from(CollectionStatus::Yellow);
        if end < 3200 {
            upsert(&client, "x", end..end + 20).await;
            end += 20;
        }
        let exact = SearchParamsBuilder::default().exact(true);
        let query = QueryPointsBuilder::new("x").query(vector(end - 1, SIZE)).limit(1).params(exact);
        assert_eq!(client.query(query).await.unwrap().result[0].id, Some((end - 1).into()));
    }
    let count = client.count(CountPointsBuilder::new("x").exact(true)).await.unwrap();
    assert_eq!(count.result.unwrap().count, end);
}

#[tokio::test]
async fn many_writers_share_the_flushes() {
    let (folder, program) = own();
    let client = program.client();
    create(&client, "x").await;
    let writers: Vec<_> = (0..40_u64)
        .map(|n| {
            let url = program.url.clone();
            tokio::spawn(async move { upsert(&common::client(&url), "x", n * 10..n * 10 + 10).await })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    program.crash();
    let program = Program::start(folder.path());
    assert_eq!(ids(&program.client(), "x", None).await, numbers(0..400));
}

#[tokio::test]
async fn a_second_process_in_the_same_home_is_refused() {
    let (folder, program) = own();
    let second =
        command(folder.path()).args(["--listen", "127.0.0.1:0"]).stdout(Stdio::null()).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8(second.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("is in use by another qdrant-local"), "{said}");
    assert_eq!(program.stop().code(), Some(0));
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let (_folder, program) = own();
    let other = TempDir::new().unwrap();
    let address = program.url.trim_start_matches("http://").to_owned();
    let second = command(other.path()).args(["--listen", &address]).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(said.contains(&format!("cannot listen on {address}")), "{said}");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn with_an_api_key_every_call_but_the_health_check_needs_it() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("key");
    fs::write(&file, "a key\n").unwrap();
    let program = Program::start_with(folder.path(), &["--api-key-file".as_ref(), file.as_ref()]);
    assert_eq!(mode(&folder.path().join("home")), 0o700);
    let with =
        |key: &str| Qdrant::from_url(&program.url).api_key(key).skip_compatibility_check().build().unwrap();
    for (client, code) in [
        (program.client(), Code::Unauthenticated),
        (with("a ke"), Code::PermissionDenied),
        (with("another key"), Code::PermissionDenied),
    ] {
        client.health_check().await.unwrap();
        assert_eq!(refusal(client.list_collections().await).0, code);
        assert_eq!(refusal(client.create_full_snapshot().await).0, code);
        let points = UpsertPointsBuilder::new("x", vec![point(1, vector(1, SIZE), json!({}))]);
        assert_eq!(refusal(client.upsert_points(points).await).0, code);
    }
    create(&with("a key"), "x").await;
    upsert(&with("a key"), "x", 0..3).await;
    let channel = Endpoint::from_shared(program.url.clone()).unwrap().connect().await.unwrap();
    let mut call = tonic::Request::new(ListCollectionsRequest {});
    call.metadata_mut().insert("authorization", "Bearer a key".parse().unwrap());
    CollectionsClient::new(channel).list(call).await.unwrap();

    fs::write(&file, "\n").unwrap();
    let other = TempDir::new().unwrap();
    let empty = command(other.path()).arg("--api-key-file").arg(&file).output().unwrap();
    assert_eq!(empty.status.code(), Some(1));
    assert!(String::from_utf8(empty.stderr).unwrap().contains("is empty: it must contain the API key"));
}

/// The vector store of `memfleet dev` and of tests.
#[tokio::test]
async fn a_private_vector_store_answers_nobody_without_its_key() {
    let folder = TempDir::new().unwrap();
    let home = folder.path().join("qdrant");
    let store = stack::Qdrant::start(&stack::Programs::find().unwrap(), &home).await.unwrap();
    assert_eq!((mode(&home), mode(&home.join("api-key"))), (0o700, 0o600));
    let stranger = common::client(&store.url());
    assert_eq!(refusal(stranger.list_collections().await).0, Code::Unauthenticated);
    let key = store.api_key().to_owned();
    assert_eq!(key.len(), 32);
    let owner =
        Qdrant::from_url(&store.url()).api_key(key.clone()).skip_compatibility_check().build().unwrap();
    owner.list_collections().await.unwrap();
    store.stop().await.unwrap();
    // It stays the same, so that clients of an earlier start go on.
    let again = stack::Qdrant::start(&stack::Programs::find().unwrap(), &home).await.unwrap();
    assert_eq!(again.api_key(), key);
    again.stop().await.unwrap();
}
