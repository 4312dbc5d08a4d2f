//! Indexes of payload fields, and what the optimiser builds.

use qdrant_client::qdrant::payload_index_params::IndexParams;
use qdrant_client::qdrant::quantization_config::Quantization;
use qdrant_client::qdrant::{
    BinaryQuantizationBuilder, Condition, CreateCollectionBuilder, CreateFieldIndexCollectionBuilder,
    DeleteFieldIndexCollectionBuilder, DeletePointsBuilder, Distance, FieldType, Filter,
    HnswConfigDiffBuilder, IntegerIndexParamsBuilder, KeywordIndexParamsBuilder, OptimizersConfigDiffBuilder,
    PayloadSchemaType, QuantizationSearchParamsBuilder, QueryPointsBuilder, ScalarQuantizationBuilder,
    SearchParamsBuilder, VectorParamsBuilder,
};
use serde_json::json;
use tonic::Code;

use crate::qdrant_local::common::{Fixture, numbers, point, refusal, vector};

const SIZE: usize = 64;
const POINTS: u64 = 4000;
const TENANTS: u64 = 8;

#[tokio::test]
async fn indexes_of_fields_are_made_described_and_deleted() {
    let fixture = Fixture::with(2, Distance::Dot).await;
    let (client, name) = (&fixture.client, &fixture.name);
    let points = (0..4).map(|n| point(n, vec![1.0, 0.0], json!({"tenant": "t", "n": n})));
    fixture.upsert(points.collect()).await;
    let keyword = KeywordIndexParamsBuilder::default().is_tenant(true);
    let index = CreateFieldIndexCollectionBuilder::new(name, "tenant", FieldType::Keyword);
    client.create_field_index(index.field_index_params(keyword).wait(true)).await.unwrap();
    let integer = IntegerIndexParamsBuilder::new(true, false);
    let index = CreateFieldIndexCollectionBuilder::new(name, "n", FieldType::Integer);
    client.create_field_index(index.field_index_params(integer).wait(true)).await.unwrap();
    // Making it again changes nothing.
    let again = CreateFieldIndexCollectionBuilder::new(name, "late", FieldType::Uuid).wait(true);
    client.create_field_index(again.clone()).await.unwrap();
    client.create_field_index(again).await.unwrap();

    let schema = fixture.green().await.result.unwrap().payload_schema;
    assert_eq!(schema["tenant"].data_type, i32::from(PayloadSchemaType::Keyword));
    assert_eq!(schema["tenant"].points, Some(4));
    let Some(IndexParams::KeywordIndexParams(params)) = schema["tenant"].params.clone().unwrap().index_params
    else {
        panic!("not of keywords");
    };
    assert_eq!(params.is_tenant, Some(true));
    assert_eq!(schema["n"].data_type, i32::from(PayloadSchemaType::Integer));
    assert_eq!(schema["late"].data_type, i32::from(PayloadSchemaType::Uuid));
    client.delete_field_index(DeleteFieldIndexCollectionBuilder::new(name, "n").wait(true)).await.unwrap();
    let schema = fixture.green().await.result.unwrap().payload_schema;
    assert!(!schema.contains_key("n") && schema.contains_key("tenant"));
    fixture.end().await;
}

#[tokio::test]
async fn an_index_of_an_unknown_collection_is_refused() {
    let fixture = Fixture::new();
    let index = CreateFieldIndexCollectionBuilder::new(&fixture.name, "n", FieldType::Integer).wait(true);
    assert_eq!(refusal(fixture.client.create_field_index(index).await).0, Code::NotFound);
}

/// Enough points for the optimiser, with a threshold of 100 KB.
async fn big(quantization: Option<Quantization>) -> Fixture {
    let fixture = Fixture::new();
    let mut create = CreateCollectionBuilder::new(&fixture.name)
        .vectors_config(VectorParamsBuilder::new(SIZE as u64, Distance::Cosine))
        .hnsw_config(HnswConfigDiffBuilder::default().m(8).ef_construct(64).full_scan_threshold(10))
        .optimizers_config(OptimizersConfigDiffBuilder::default().indexing_threshold(100));
    if let Some(quantization) = quantization {
        create = create.quantization_config(quantization);
    }
    fixture.client.create_collection(create).await.unwrap();
    let index = CreateFieldIndexCollectionBuilder::new(&fixture.name, "tenant", FieldType::Keyword);
    let tenant = KeywordIndexParamsBuilder::default().is_tenant(true);
    fixture.client.create_field_index(index.field_index_params(tenant).wait(true)).await.unwrap();
    for first in (0..POINTS).step_by(1000) {
        let points = (first..first + 1000)
            .map(|n| point(n, vector(n, SIZE), json!({"tenant": format!("t{}", n % TENANTS)})));
        fixture.upsert(points.collect()).await;
    }
    fixture
}

/// The optimiser has indexed most, and the nearest are found by way of what it built.
async fn check(fixture: Fixture) {
    let info = fixture.green().await.result.unwrap();
    assert!(info.indexed_vectors_count.unwrap() >= POINTS / 2, "{info:?}");
    assert_eq!(info.payload_schema["tenant"].data_type, i32::from(PayloadSchemaType::Keyword));
    let mut hits = 0;
    for n in 0..50 {
        let tenant = Filter::must([Condition::matches("tenant", format!("t{}", n % TENANTS))]);
        let quantization = QuantizationSearchParamsBuilder::default().rescore(true).oversampling(4.0);
        let params = SearchParamsBuilder::default().hnsw_ef(128).quantization(quantization);
        let query = QueryPointsBuilder::new(&fixture.name).query(vector(n, SIZE)).filter(tenant).limit(5);
        let found = fixture.client.query(query.params(params).with_payload(true)).await.unwrap().result;
        hits += u32::from(found.first().is_some_and(|point| point.id == Some(n.into())));
        assert!(found.iter().all(|point| point.payload["tenant"] == format!("t{}", n % TENANTS).into()));
    }
    assert!(hits >= 45, "{hits} of 50 vectors find themselves");
    // What lies in the index can be deleted and replaced.
    let first = Filter::must([Condition::has_id(numbers(0..10))]);
    let delete = DeletePointsBuilder::new(&fixture.name).points(first).wait(true);
    fixture.client.delete_points(delete).await.unwrap();
    fixture.upsert(vec![point(10, vector(999_999, SIZE), json!({"tenant": "moved"}))]).await;
    let exact = SearchParamsBuilder::default().exact(true);
    let query = QueryPointsBuilder::new(&fixture.name).query(vector(999_999, SIZE)).limit(1).params(exact);
    assert_eq!(fixture.client.query(query).await.unwrap().result[0].id, Some(10.into()));
    let moved = Filter::must([Condition::matches("tenant", "moved".to_owned())]);
    assert_eq!(fixture.ids(Some(moved)).await, numbers([10]));
    assert_eq!(fixture.ids(Some(Filter::must([Condition::has_id(numbers(0..12))]))).await, numbers([10, 11]));
    fixture.end().await;
}

#[tokio::test]
async fn a_big_collection_is_indexed() {
    check(big(None).await).await;
}

#[tokio::test]
async fn a_big_collection_is_indexed_with_scalar_quantization() {
    let scalar = ScalarQuantizationBuilder::default().quantile(0.99);
    check(big(Some(Quantization::Scalar(scalar.build()))).await).await;
}

#[tokio::test]
async fn a_big_collection_is_indexed_with_binary_quantization() {
    check(big(Some(Quantization::Binary(BinaryQuantizationBuilder::default().build()))).await).await;
}
