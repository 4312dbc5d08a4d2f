//! Every kind of condition, with and without an index.

use qdrant_client::qdrant::r#match::MatchValue;
use qdrant_client::qdrant::{
    Condition, CreateFieldIndexCollectionBuilder, DatetimeRange, Distance, FieldType, Filter, MinShould,
    PointId, Range, RepeatedIntegers, RepeatedStrings, Timestamp, ValuesCount,
};
use serde_json::json;
use uuid::Uuid;

use crate::qdrant_local::common::{Fixture, numbers, point};

const EXTERNAL: &str = "8c3c8f3e-8f0f-4d0b-9c56-0d2c3a6f3b11";

async fn filled() -> Fixture {
    let fixture = Fixture::with(2, Distance::Dot).await;
    let point = |id: u64, payload| point(id, vec![1.0, 0.0], payload);
    fixture
        .upsert(vec![
            point(
                1,
                json!({"word": "a", "number": 1, "yes": true, "real": 0.5, "at": "2026-01-01T00:00:00Z"}),
            ),
            point(
                2,
                json!({"word": "b", "number": 2, "yes": false, "real": 1.5, "at": "2026-02-01T00:00:00Z"}),
            ),
            point(3, json!({"word": ["a", "c"], "number": 3, "external": EXTERNAL})),
            point(4, json!({"word": null, "number": [4, 5], "empty": []})),
            point(
                5,
                json!({"parts": [{"kind": "x", "size": 1}, {"kind": "y", "size": 9}], "deep": {"er": "z"}}),
            ),
        ])
        .await;
    fixture
}

async fn indexed() -> Fixture {
    let fixture = filled().await;
    let fields = [
        ("word", FieldType::Keyword),
        ("number", FieldType::Integer),
        ("yes", FieldType::Bool),
        ("real", FieldType::Float),
        ("at", FieldType::Datetime),
        ("external", FieldType::Uuid),
        ("deep.er", FieldType::Keyword),
    ];
    for (field, kind) in fields {
        let index = CreateFieldIndexCollectionBuilder::new(&fixture.name, field, kind).wait(true);
        fixture.client.create_field_index(index).await.unwrap();
    }
    fixture
}

async fn check(fixture: &Fixture, filter: Filter, expected: &[u64]) {
    let found = fixture.ids(Some(filter.clone())).await;
    assert_eq!(found, numbers(expected.iter().copied()), "{filter:?}");
}

async fn check_all(fixture: Fixture) {
    matches(&fixture).await;
    ranges(&fixture).await;
    lists(&fixture).await;
    absences(&fixture).await;
    nested(&fixture).await;
    fixture.end().await;
}

#[tokio::test]
async fn conditions_without_indexes() {
    check_all(filled().await).await;
}

#[tokio::test]
async fn conditions_with_indexes() {
    check_all(indexed().await).await;
}

async fn matches(fixture: &Fixture) {
    let one = |condition| Filter::must([condition]);
    let strings =
        |strings: &[&str]| RepeatedStrings { strings: strings.iter().map(|&one| one.to_owned()).collect() };
    let integers = |integers: &[i64]| RepeatedIntegers { integers: integers.to_vec() };
    check(fixture, one(Condition::matches("word", "a".to_owned())), &[1, 3]).await;
    check(fixture, one(Condition::matches("word", "none".to_owned())), &[]).await;
    check(fixture, one(Condition::matches("number", 5)), &[4]).await;
    check(fixture, one(Condition::matches("yes", false)), &[2]).await;
    check(fixture, one(Condition::matches("external", EXTERNAL.to_owned())), &[3]).await;
    check(fixture, one(Condition::matches("deep.er", "z".to_owned())), &[5]).await;
    check(fixture, one(Condition::matches("word", MatchValue::Keywords(strings(&["b", "c"])))), &[2, 3])
        .await;
    check(fixture, one(Condition::matches("number", MatchValue::Integers(integers(&[1, 4])))), &[1, 4]).await;
    check(fixture, one(Condition::matches("word", MatchValue::ExceptKeywords(strings(&["a"])))), &[2, 3])
        .await;
    check(fixture, one(Condition::matches("number", MatchValue::ExceptIntegers(integers(&[1, 2])))), &[3, 4])
        .await;
}

async fn ranges(fixture: &Fixture) {
    let one = |condition| Filter::must([condition]);
    let range = Range { gt: Some(1.0), lte: Some(3.0), ..Range::default() };
    check(fixture, one(Condition::range("number", range)), &[2, 3]).await;
    let range = Range { gte: Some(0.5), lt: Some(1.5), ..Range::default() };
    check(fixture, one(Condition::range("real", range)), &[1]).await;
    // The middle of January 2026.
    let after = DatetimeRange {
        gt: Some(Timestamp { seconds: 1_768_435_200, nanos: 0 }),
        ..DatetimeRange::default()
    };
    check(fixture, one(Condition::datetime_range("at", after)), &[2]).await;
    let count = ValuesCount { gte: Some(2), ..ValuesCount::default() };
    check(fixture, one(Condition::values_count("word", count)), &[3]).await;
}

async fn lists(fixture: &Fixture) {
    let word = |word: &str| Condition::matches("word", word.to_owned());
    let number = |number: i64| Condition::matches("number", number);
    check(fixture, Filter::must([word("a"), number(3)]), &[3]).await;
    check(fixture, Filter::should([word("b"), number(4)]), &[2, 4]).await;
    check(fixture, Filter::must_not([word("a")]), &[2, 4, 5]).await;
    let min_should = MinShould { conditions: vec![word("a"), word("c"), number(1)], min_count: 2 };
    check(fixture, Filter { min_should: Some(min_should), ..Filter::default() }, &[1, 3]).await;
    let inner = Filter::should([number(1), number(2)]);
    check(fixture, Filter::must([Condition::from(inner), word("a")]), &[1]).await;
    let mixed = Filter { must_not: vec![number(1)], ..Filter::must([word("a")]) };
    check(fixture, mixed, &[3]).await;
    check(fixture, Filter::default(), &[1, 2, 3, 4, 5]).await;
    check(fixture, Filter::must([Condition::has_id(numbers([2, 5, 77]))]), &[2, 5]).await;
    let unknown = PointId::from(Uuid::nil().to_string());
    check(fixture, Filter::must([Condition::has_id([unknown])]), &[]).await;
}

async fn absences(fixture: &Fixture) {
    check(fixture, Filter::must([Condition::is_empty("word")]), &[4, 5]).await;
    check(fixture, Filter::must([Condition::is_empty("empty")]), &[1, 2, 3, 4, 5]).await;
    check(fixture, Filter::must([Condition::is_null("word")]), &[4]).await;
}

async fn nested(fixture: &Fixture) {
    let kind = |kind: &str| Condition::matches("kind", kind.to_owned());
    let big = Condition::range("size", Range { gt: Some(5.0), ..Range::default() });
    check(fixture, Filter::must([Condition::nested("parts", Filter::must([kind("y"), big.clone()]))]), &[5])
        .await;
    // No single part is both.
    check(fixture, Filter::must([Condition::nested("parts", Filter::must([kind("x"), big]))]), &[]).await;
    check(fixture, Filter::must([Condition::matches("parts[].kind", "x".to_owned())]), &[5]).await;
}
