//! Settings of the embedder.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use config::{EmbedderKind, EmbedderSettings};
use embed::{EmbedError, Embedder};
use serde_json::json;

fn read(settings: serde_json::Value) -> EmbedderSettings {
    serde_json::from_value(settings).unwrap()
}

#[tokio::test]
async fn there_is_no_embedder_by_default() {
    assert!(Embedder::open(&EmbedderSettings::default()).await.unwrap().is_none());
    assert_eq!(read(json!({"kind": "none"})), EmbedderSettings::default());
}

#[test]
fn the_token_is_handed_on_and_shown_nowhere() {
    let settings = read(json!({"kind": "http", "token": "hush"}));
    assert!(!format!("{settings:?}").contains("hush"));
    assert_eq!(serde_json::to_value(&settings).unwrap()["token"], "hush");
    assert_ne!(settings, read(json!({"kind": "http", "token": "other"})));
    assert!(serde_json::from_value::<EmbedderSettings>(json!({"tokens": "hush"})).is_err());
}

#[tokio::test]
async fn what_is_missing_or_out_of_bounds_is_named() {
    let http = json!({"kind": "http", "url": "http://a/v1", "model": "m", "dimension": 3});
    assert_eq!(read(http.clone()).kind, EmbedderKind::Http);
    assert!(Embedder::open(&read(http.clone())).await.unwrap().is_some());
    for (option, value) in [
        ("url", json!(null)),
        ("url", json!("a/v1")),
        ("model", json!(null)),
        ("dimension", json!(null)),
        ("dimension", json!(0)),
        ("token", json!("two\nlines")),
        ("batch", json!(257)),
        ("timeout_ms", json!(99)),
        ("retries", json!(11)),
        ("requests_per_second", json!(0)),
        ("threads", json!(65)),
        ("chunk_tokens", json!(15)),
        ("chunk_overlap", json!(101)),
        ("chunk_limit", json!(0)),
    ] {
        let mut wrong = http.clone();
        wrong[option] = value;
        let error = Embedder::open(&read(wrong)).await.unwrap_err();
        assert!(matches!(&error, EmbedError::Misconfigured(_)), "{error}");
        assert!(error.to_string().contains(&format!("embedder.{option} ")), "{option}: {error}");
    }
    let told = |settings| async move { Embedder::open(&read(settings)).await.unwrap_err().to_string() };
    assert!(told(json!({"kind": "local"})).await.contains("embedder.weights is not set"));
    let error = told(json!({"kind": "local", "weights": "/nowhere"})).await;
    assert!(error.contains("/nowhere/config.json cannot be read") && error.contains("make setup"), "{error}");
    let error = told(json!({"kind": "local", "weights": "/nowhere", "chunk_tokens": 255})).await;
    assert!(error.contains("embedder.chunk_tokens is 255; it must be from 16 to 254"), "{error}");
}
