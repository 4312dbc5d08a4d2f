//! Collections.

use qdrant_client::qdrant::quantization_config::Quantization;
use qdrant_client::qdrant::vectors_config::Config;
use qdrant_client::qdrant::{
    BinaryQuantizationBuilder, CountPointsBuilder, CreateCollectionBuilder, Distance, HnswConfigDiffBuilder,
    OptimizersConfigDiffBuilder, QueryPointsBuilder, ScalarQuantizationBuilder, VectorParams,
    VectorParamsBuilder, VectorsConfig,
};
use tonic::Code;

use crate::qdrant_local::common::{Fixture, refusal};

#[tokio::test]
async fn the_server_says_what_it_is() {
    let fixture = Fixture::new();
    let health = fixture.client.health_check().await.unwrap();
    assert!(!health.title.is_empty());
    let mut version = health.version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    assert!((version.next(), version.next()) >= (Some(1), Some(16)), "{}", health.version);
}

#[tokio::test]
async fn a_collection_is_made_listed_and_deleted() {
    let fixture = Fixture::new();
    let (client, name) = (&fixture.client, &fixture.name);
    assert!(!client.collection_exists(name).await.unwrap());
    fixture.create(name, 4, Distance::Cosine).await;
    assert!(client.collection_exists(name).await.unwrap());
    let listed = client.list_collections().await.unwrap();
    assert!(listed.collections.iter().any(|listed| listed.name == *name));
    let info = fixture.green().await.result.unwrap();
    assert_eq!(info.points_count, Some(0));
    assert!(info.segments_count >= 1);
    assert!(info.payload_schema.is_empty());
    assert!(info.optimizer_status.unwrap().ok);
    assert!(client.delete_collection(name).await.unwrap().result);
    assert!(!client.collection_exists(name).await.unwrap());
    assert!(!client.delete_collection(name).await.unwrap().result);
    // The name is free again, and what was there is not.
    fixture.create(name, 8, Distance::Dot).await;
    assert_eq!(fixture.ids(None).await, []);
    fixture.end().await;
}

#[tokio::test]
async fn what_was_asked_for_is_described() {
    let fixture = Fixture::new();
    let request = CreateCollectionBuilder::new(&fixture.name)
        .vectors_config(VectorParamsBuilder::new(16, Distance::Euclid))
        .hnsw_config(
            HnswConfigDiffBuilder::default().m(0).payload_m(16).ef_construct(64).full_scan_threshold(5000),
        )
        .optimizers_config(OptimizersConfigDiffBuilder::default().indexing_threshold(2000))
        .quantization_config(ScalarQuantizationBuilder::default().quantile(0.99));
    fixture.client.create_collection(request).await.unwrap();
    let config = fixture.green().await.result.unwrap().config.unwrap();
    let vector = params(config.params.unwrap().vectors_config);
    assert_eq!((vector.size, vector.distance), (16, i32::from(Distance::Euclid)));
    let hnsw = config.hnsw_config.unwrap();
    assert_eq!((hnsw.m, hnsw.payload_m, hnsw.ef_construct), (Some(0), Some(16), Some(64)));
    assert_eq!(hnsw.full_scan_threshold, Some(5000));
    assert_eq!(config.optimizer_config.unwrap().indexing_threshold, Some(2000));
    let Some(Quantization::Scalar(scalar)) = config.quantization_config.unwrap().quantization else {
        panic!("not scalar");
    };
    assert_eq!(scalar.quantile, Some(0.99));
    fixture.end().await;
}

#[tokio::test]
async fn settings_of_the_vector_are_described_with_it() {
    let fixture = Fixture::new();
    let vectors = VectorParamsBuilder::new(16, Distance::Manhattan)
        .hnsw_config(HnswConfigDiffBuilder::default().m(8))
        .quantization_config(BinaryQuantizationBuilder::default());
    let request = CreateCollectionBuilder::new(&fixture.name).vectors_config(vectors);
    fixture.client.create_collection(request).await.unwrap();
    let config = fixture.green().await.result.unwrap().config.unwrap();
    // What is not said about the collection is the server's default.
    assert_eq!(config.hnsw_config.unwrap().m, Some(16));
    assert_eq!(config.quantization_config, None);
    let vector = params(config.params.unwrap().vectors_config);
    assert_eq!(vector.hnsw_config.unwrap().m, Some(8));
    let quantization = vector.quantization_config.unwrap().quantization.unwrap();
    assert!(matches!(quantization, Quantization::Binary(_)));
    fixture.end().await;
}

fn params(config: Option<VectorsConfig>) -> VectorParams {
    match config.unwrap().config.unwrap() {
        Config::Params(params) => params,
        Config::ParamsMap(map) => panic!("named: {map:?}"),
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let fixture = Fixture::with(4, Distance::Cosine).await;
    let (client, name) = (&fixture.client, &fixture.name);
    let create = |name: &str, size, distance| {
        let vectors = VectorParamsBuilder::new(size, distance);
        client.create_collection(CreateCollectionBuilder::new(name).vectors_config(vectors))
    };
    let (code, message) = refusal(create(name, 4, Distance::Cosine).await);
    assert_eq!(code, Code::AlreadyExists, "{message}");
    assert!(message.contains(&format!("`{name}` already exists")), "{message}");
    let other = format!("{name}-other");
    assert_eq!(refusal(create(&other, 0, Distance::Cosine).await).0, Code::InvalidArgument);
    assert_eq!(refusal(create(&other, 65_537, Distance::Cosine).await).0, Code::InvalidArgument);
    assert_eq!(refusal(create("", 4, Distance::Cosine).await).0, Code::InvalidArgument);
    assert_eq!(refusal(create("../up", 4, Distance::Cosine).await).0, Code::InvalidArgument);
    assert_eq!(refusal(create(&"x".repeat(256), 4, Distance::Cosine).await).0, Code::InvalidArgument);
    assert!(!client.collection_exists(other).await.unwrap());
    fixture.end().await;
}

#[tokio::test]
async fn an_unknown_collection_is_not_found() {
    let fixture = Fixture::new();
    let (client, name) = (&fixture.client, &fixture.name);
    let (code, message) = refusal(client.collection_info(name).await);
    assert_eq!(code, Code::NotFound);
    assert!(message.contains(&format!("`{name}` doesn't exist")), "{message}");
    assert_eq!(refusal(client.count(CountPointsBuilder::new(name)).await).0, Code::NotFound);
    let query = QueryPointsBuilder::new(name).query(vec![1.0, 0.0]);
    assert_eq!(refusal(client.query(query).await).0, Code::NotFound);
}
