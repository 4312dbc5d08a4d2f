//! Writing, reading, scrolling and counting points.

use qdrant_client::Payload;
use qdrant_client::qdrant::{
    Condition, CountPointsBuilder, DeletePointsBuilder, Distance, Filter, GetPointsBuilder, PointId,
    PointStruct, PointsIdsList, PointsOperationResponse, ScrollPointsBuilder, SetPayloadPointsBuilder,
    UpdateStatus, UpsertPointsBuilder, Vector, Vectors, vector_output, vectors, vectors_output,
};
use qdrant_client::qdrant::{PayloadExcludeSelector, PayloadIncludeSelector};
use qdrant_client::qdrant::{RetrievedPoint, with_payload_selector::SelectorOptions};
use serde_json::{Value, json};
use tonic::Code;
use uuid::Uuid;

use crate::qdrant_local::common::{Fixture, eventually, numbers, point, refusal};

fn payload(point: &RetrievedPoint) -> Value {
    Payload::from(point.payload.clone()).into()
}

fn dense(point: &RetrievedPoint) -> Vec<f32> {
    let vectors = point.vectors.clone().unwrap().vectors_options.unwrap();
    let vectors_output::VectorsOptions::Vector(vector) = vectors else { panic!("named: {vectors:?}") };
    let vector = vector.into_vector();
    let vector_output::Vector::Dense(dense) = vector else { panic!("not dense: {vector:?}") };
    dense.data
}

fn status(response: PointsOperationResponse) -> UpdateStatus {
    UpdateStatus::try_from(response.result.unwrap().status).unwrap()
}

async fn get(fixture: &Fixture, ids: Vec<PointId>) -> Vec<RetrievedPoint> {
    let get = GetPointsBuilder::new(&fixture.name, ids).with_payload(true).with_vectors(true);
    fixture.client.get_points(get).await.unwrap().result
}

#[tokio::test]
async fn points_come_back_as_they_were_written() {
    let fixture = Fixture::with(3, Distance::Dot).await;
    let uuid = Uuid::new_v4().to_string();
    let rich = json!({
        "text": "ä", "integer": -7, "float": 1.5, "yes": true, "nothing": null,
        "list": ["a", "b"], "object": {"deep": {"er": 1}}, "objects": [{"a": 1}, {"a": 2}]
    });
    let points = vec![
        point(u64::MAX, vec![1.0, 2.0, 3.0], rich.clone()),
        point(uuid.clone(), vec![0.5, -0.5, 0.0], json!({})),
    ];
    let upsert = UpsertPointsBuilder::new(&fixture.name, points).wait(true);
    assert_eq!(status(fixture.client.upsert_points(upsert).await.unwrap()), UpdateStatus::Completed);
    let found = get(&fixture, vec![u64::MAX.into(), 5.into()]).await;
    assert_eq!(found.len(), 1, "ids that are not there are left out");
    assert_eq!(found[0].id, Some(u64::MAX.into()));
    assert_eq!(payload(&found[0]), rich);
    assert_eq!(dense(&found[0]), [1.0, 2.0, 3.0]);
    let found = get(&fixture, vec![uuid.clone().into()]).await;
    assert_eq!(found[0].id, Some(uuid.into()));
    assert_eq!(payload(&found[0]), json!({}));
    fixture.end().await;
}

#[tokio::test]
#[expect(deprecated, reason = "older clients send vectors in the deprecated fields")]
async fn vectors_in_the_fields_of_older_clients_are_taken() {
    let fixture = Fixture::with(2, Distance::Dot).await;
    let old = Vector { data: vec![1.0, 2.0], indices: None, vectors_count: None, vector: None };
    let vectors = Vectors { vectors_options: Some(vectors::VectorsOptions::Vector(old)) };
    let point = PointStruct { id: Some(1.into()), payload: Payload::new().into(), vectors: Some(vectors) };
    fixture.upsert(vec![point]).await;
    assert_eq!(dense(&get(&fixture, numbers([1])).await[0]), [1.0, 2.0]);
    fixture.end().await;
}

#[tokio::test]
async fn a_cosine_vector_is_kept_with_length_one() {
    let fixture = Fixture::with(2, Distance::Cosine).await;
    fixture.upsert(vec![point(1, vec![3.0, 4.0], json!({}))]).await;
    let vector = dense(&get(&fixture, numbers([1])).await[0]);
    assert!((vector[0] - 0.6).abs() < 1e-6 && (vector[1] - 0.8).abs() < 1e-6, "{vector:?}");
    fixture.end().await;
}

#[tokio::test]
async fn a_point_replaces_the_one_of_its_id_wholly() {
    let fixture = Fixture::with(2, Distance::Dot).await;
    fixture.upsert(vec![point(1, vec![1.0, 0.0], json!({"a": 1, "b": 2}))]).await;
    fixture.upsert(vec![point(1, vec![0.0, 1.0], json!({"c": 3}))]).await;
    let found = get(&fixture, numbers([1])).await;
    assert_eq!((dense(&found[0]), payload(&found[0])), (vec![0.0, 1.0], json!({"c": 3})));
    fixture.upsert(vec![point(1, vec![0.0, 1.0], json!({}))]).await;
    assert_eq!(payload(&get(&fixture, numbers([1])).await[0]), json!({}));
    fixture.end().await;
}

#[tokio::test]
async fn a_write_that_is_not_waited_for_arrives() {
    let fixture = Fixture::with(2, Distance::Dot).await;
    let points = vec![point(1, vec![1.0, 0.0], json!({}))];
    let upsert = UpsertPointsBuilder::new(&fixture.name, points).wait(false);
    assert_eq!(status(fixture.client.upsert_points(upsert).await.unwrap()), UpdateStatus::Acknowledged);
    eventually("there", || async { (!fixture.ids(None).await.is_empty()).then_some(()) }).await;
    fixture.end().await;
}

#[tokio::test]
async fn vectors_of_another_length_are_refused() {
    let fixture = Fixture::with(3, Distance::Dot).await;
    let points = vec![point(2, vec![1.0, 2.0], json!({}))];
    let upsert = UpsertPointsBuilder::new(&fixture.name, points).wait(true);
    let (code, message) = refusal(fixture.client.upsert_points(upsert).await);
    assert_eq!(code, Code::InvalidArgument);
    assert!(message.contains("expected dim: 3, got 2"), "{message}");
    fixture.end().await;
}

#[tokio::test]
async fn ids_that_are_none_are_refused() {
    let fixture = Fixture::with(2, Distance::Dot).await;
    let points = vec![point("not-a-uuid".to_owned(), vec![1.0, 2.0], json!({}))];
    let upsert = UpsertPointsBuilder::new(&fixture.name, points).wait(true);
    assert_eq!(refusal(fixture.client.upsert_points(upsert).await).0, Code::InvalidArgument);
    let point =
        PointStruct { id: None, payload: Payload::new().into(), vectors: Some(vec![1.0, 2.0].into()) };
    let upsert = UpsertPointsBuilder::new(&fixture.name, vec![point]).wait(true);
    assert_eq!(refusal(fixture.client.upsert_points(upsert).await).0, Code::InvalidArgument);
    fixture.end().await;
}

#[tokio::test]
async fn points_are_deleted_by_id_and_by_filter() {
    let fixture = Fixture::with(2, Distance::Dot).await;
    let points = (0..10).map(|n| point(n, vec![1.0, 0.0], json!({"odd": n % 2 == 1})));
    fixture.upsert(points.collect()).await;
    let ids = PointsIdsList { ids: numbers([0, 1, 99]) };
    let delete = DeletePointsBuilder::new(&fixture.name).points(ids).wait(true);
    fixture.client.delete_points(delete).await.unwrap();
    assert_eq!(fixture.ids(None).await, numbers(2..10));
    let odd = Filter::must([Condition::matches("odd", true)]);
    let delete = DeletePointsBuilder::new(&fixture.name).points(odd).wait(true);
    fixture.client.delete_points(delete).await.unwrap();
    assert_eq!(fixture.ids(None).await, numbers([2, 4, 6, 8]));
    fixture.end().await;
}

#[tokio::test]
async fn payload_is_set_beside_what_is_there() {
    let fixture = Fixture::with(2, Distance::Dot).await;
    let points = (1..=3).map(|n| point(n, vec![1.0, 0.0], json!({"n": n})));
    fixture.upsert(points.collect()).await;
    let set =
        |payload: Value| SetPayloadPointsBuilder::new(&fixture.name, Payload::try_from(payload).unwrap());
    let by_id = set(json!({"a": 1})).points_selector(PointsIdsList { ids: numbers([1]) }).wait(true);
    fixture.client.set_payload(by_id).await.unwrap();
    let filter = Filter::must([Condition::matches("n", 2)]);
    fixture.client.set_payload(set(json!({"n": 20})).points_selector(filter).wait(true)).await.unwrap();
    let found = get(&fixture, numbers(1..=3)).await;
    let payloads: Vec<Value> = found.iter().map(payload).collect();
    assert_eq!(payloads, [json!({"n": 1, "a": 1}), json!({"n": 20}), json!({"n": 3})]);
    fixture.end().await;
}

#[tokio::test]
async fn payload_comes_in_part_or_not_at_all() {
    let fixture = Fixture::with(2, Distance::Dot).await;
    fixture.upsert(vec![point(1, vec![1.0, 0.0], json!({"a": 1, "b": {"c": 2, "d": 3}}))]).await;
    let wanted = |selector: SelectorOptions| {
        let get =
            GetPointsBuilder::new(&fixture.name, numbers([1])).with_payload(selector).with_vectors(false);
        fixture.client.get_points(get)
    };
    let include = PayloadIncludeSelector { fields: vec!["b.c".to_owned()] };
    let found = wanted(SelectorOptions::Include(include)).await.unwrap().result;
    assert_eq!(payload(&found[0]), json!({"b": {"c": 2}}));
    assert_eq!(found[0].vectors, None);
    let exclude = PayloadExcludeSelector { fields: vec!["b".to_owned()] };
    let found = wanted(SelectorOptions::Exclude(exclude)).await.unwrap().result;
    assert_eq!(payload(&found[0]), json!({"a": 1}));
    let found = wanted(SelectorOptions::Enable(false)).await.unwrap().result;
    assert_eq!(payload(&found[0]), json!({}));
    fixture.end().await;
}

#[tokio::test]
async fn scrolling_goes_through_all_points_in_the_order_of_ids() {
    let fixture = Fixture::with(2, Distance::Dot).await;
    let points = (0..25).map(|n| point(n * 3 % 25, vec![1.0, 0.0], json!({"even": (n * 3 % 25) % 2 == 0})));
    fixture.upsert(points.collect()).await;
    let (mut seen, mut pages, mut offset) = (Vec::new(), 0, None);
    loop {
        let mut scroll = ScrollPointsBuilder::new(&fixture.name).limit(10).with_payload(false);
        if let Some(offset) = offset {
            scroll = scroll.offset::<PointId>(offset);
        }
        let page = fixture.client.scroll(scroll).await.unwrap();
        assert!(page.result.iter().all(|point| point.payload.is_empty() && point.vectors.is_none()));
        seen.extend(page.result.into_iter().map(|point| point.id.unwrap()));
        pages += 1;
        offset = page.next_page_offset;
        if offset.is_none() {
            break;
        }
    }
    assert_eq!((seen, pages), (numbers(0..25), 3));
    let even = Filter::must([Condition::matches("even", true)]);
    let scroll = ScrollPointsBuilder::new(&fixture.name).filter(even).limit(2).with_vectors(true);
    let page = fixture.client.scroll(scroll).await.unwrap();
    assert_eq!(page.next_page_offset, Some(4.into()));
    assert_eq!(dense(&page.result[1]), [1.0, 0.0]);
    let none = ScrollPointsBuilder::new(&fixture.name).limit(0);
    assert_eq!(refusal(fixture.client.scroll(none).await).0, Code::InvalidArgument);
    fixture.end().await;
}

#[tokio::test]
async fn points_are_counted() {
    let fixture = Fixture::with(2, Distance::Dot).await;
    let points = (0..30).map(|n| point(n, vec![1.0, 0.0], json!({"third": n % 3})));
    fixture.upsert(points.collect()).await;
    let filter = Filter::must([Condition::matches("third", 1)]);
    let count = CountPointsBuilder::new(&fixture.name).filter(filter).exact(true);
    assert_eq!(fixture.client.count(count).await.unwrap().result.unwrap().count, 10);
    let count = CountPointsBuilder::new(&fixture.name).exact(true);
    assert_eq!(fixture.client.count(count).await.unwrap().result.unwrap().count, 30);
    let estimate = CountPointsBuilder::new(&fixture.name).exact(false);
    assert!(fixture.client.count(estimate).await.unwrap().result.unwrap().count <= 60);
    fixture.end().await;
}
