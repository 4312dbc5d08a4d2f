//! Queries for the nearest vectors.

use qdrant_client::Payload;
use qdrant_client::qdrant::{
    Condition, Distance, Filter, QuantizationSearchParamsBuilder, QueryPointsBuilder, QueryResponse,
    SearchParamsBuilder,
};
use serde_json::{Value, json};
use tonic::Code;

use crate::qdrant_local::common::{Fixture, numbers, point, refusal};

/// Points 1 to 6, each more to the right.
async fn fan(distance: Distance) -> Fixture {
    let fixture = Fixture::with(2, distance).await;
    let points = (1..=6_u16).map(|n| {
        let angle = f32::from(n) / 10.0;
        point(u64::from(n), vec![angle.cos(), angle.sin()], json!({"n": n, "odd": n % 2 == 1}))
    });
    fixture.upsert(points.collect()).await;
    fixture
}

fn query(fixture: &Fixture) -> QueryPointsBuilder {
    QueryPointsBuilder::new(&fixture.name)
        .query(vec![1.0, 0.0])
        .params(SearchParamsBuilder::default().exact(true))
}

fn found(response: &QueryResponse) -> Vec<qdrant_client::qdrant::PointId> {
    response.result.iter().map(|point| point.id.clone().unwrap()).collect()
}

#[tokio::test]
async fn the_nearest_come_first_by_every_distance() {
    for (distance, best) in [
        (Distance::Cosine, 0.1_f32.cos()),
        (Distance::Dot, 0.1_f32.cos()),
        (Distance::Euclid, 2.0 * 0.05_f32.sin()),
        (Distance::Manhattan, 1.0 - 0.1_f32.cos() + 0.1_f32.sin()),
    ] {
        let fixture = fan(distance).await;
        let answer = fixture.client.query(query(&fixture).limit(3)).await.unwrap();
        assert_eq!(found(&answer), numbers([1, 2, 3]), "{distance:?}");
        assert!((answer.result[0].score - best).abs() < 1e-5, "{distance:?}: {}", answer.result[0].score);
        assert!(answer.result.iter().all(|point| point.payload.is_empty() && point.vectors.is_none()));
        fixture.end().await;
    }
}

#[tokio::test]
async fn filters_limits_offsets_and_thresholds_hold() {
    let fixture = fan(Distance::Cosine).await;
    let odd = Filter::must([Condition::matches("odd", true)]);
    let answer = fixture.client.query(query(&fixture).filter(odd.clone()).limit(2)).await.unwrap();
    assert_eq!(found(&answer), numbers([1, 3]));
    let answer = fixture.client.query(query(&fixture).filter(odd).limit(2).offset(1)).await.unwrap();
    assert_eq!(found(&answer), numbers([3, 5]));
    let answer = fixture.client.query(query(&fixture).score_threshold(0.25_f32.cos())).await.unwrap();
    assert_eq!(found(&answer), numbers([1, 2]));
    let answer = fixture.client.query(query(&fixture).limit(2).offset(100)).await.unwrap();
    assert_eq!(found(&answer), []);
    fixture.end().await;
    let fixture = fan(Distance::Euclid).await;
    let near = 2.0 * 0.125_f32.sin();
    let answer = fixture.client.query(query(&fixture).score_threshold(near)).await.unwrap();
    assert_eq!(found(&answer), numbers([1, 2]), "with a distance, a threshold is the most");
    fixture.end().await;
}

#[tokio::test]
async fn payload_and_vectors_come_where_asked_for() {
    let fixture = fan(Distance::Dot).await;
    let asked = query(&fixture).limit(1).with_payload(true).with_vectors(true);
    let point = fixture.client.query(asked).await.unwrap().result.remove(0);
    assert_eq!(Value::from(Payload::from(point.payload)), json!({"n": 1, "odd": true}));
    assert!(point.vectors.is_some());
    fixture.end().await;
}

#[tokio::test]
async fn search_parameters_are_taken() {
    let fixture = fan(Distance::Dot).await;
    let quantization =
        QuantizationSearchParamsBuilder::default().ignore(false).rescore(true).oversampling(2.0);
    let params = SearchParamsBuilder::default().hnsw_ef(32).exact(false).quantization(quantization);
    let asked = QueryPointsBuilder::new(&fixture.name).query(vec![1.0, 0.0]).limit(1).params(params);
    assert_eq!(found(&fixture.client.query(asked).await.unwrap()), numbers([1]));
    fixture.end().await;
}

#[tokio::test]
async fn queries_that_make_no_sense_are_refused() {
    let fixture = fan(Distance::Dot).await;
    let wrong = QueryPointsBuilder::new(&fixture.name).query(vec![1.0, 0.0, 0.0]);
    let (code, message) = refusal(fixture.client.query(wrong).await);
    assert_eq!(code, Code::InvalidArgument);
    assert!(message.contains("expected dim: 2, got 3"), "{message}");
    let none = query(&fixture).limit(0);
    assert_eq!(refusal(fixture.client.query(none).await).0, Code::InvalidArgument);
    fixture.end().await;
}
