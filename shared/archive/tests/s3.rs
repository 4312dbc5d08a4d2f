//! Archives in a real S3-compatible store, if MEMFLEET_TEST_S3_URL names one that has the bucket `memfleet-test`. Credentials are taken from
//! AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.

#![cfg(feature = "s3")]
#![allow(clippy::unwrap_used)]

use std::io::Write as _;

use archive::{Column, Draft, Kind, Rows, Target, read, write};
use chrono::Utc;
use config::ArchiveSettings;
use trust::PrivateKey;
use uuid::Uuid;

fn settings(url: &str, s3_url: Option<String>) -> ArchiveSettings {
    let region = Some("us-east-1".to_owned());
    ArchiveSettings { url: Some(url.to_owned()), s3_url, s3_region: region, ..ArchiveSettings::default() }
}

fn rows() -> Rows {
    let names = [
        ("id", "uuid"),
        ("user_id", "integer"),
        ("created_at", "timestamp with time zone"),
        ("value", "jsonb"),
    ];
    let columns = names.map(|(name, sql_type)| Column {
        name: name.to_owned(),
        sql_type: sql_type.to_owned(),
        kind: Kind::of(sql_type, "U"),
    });
    let mut rows = Rows::new("blackboard_events", columns.to_vec());
    for number in 1..=1_000_u128 {
        let texts = [
            Uuid::from_u128(number).to_string(),
            "1".to_owned(),
            number.to_string(),
            "{\"a\": 1}".to_owned(),
        ];
        rows.push(texts.map(Some).to_vec()).unwrap();
    }
    rows
}

#[tokio::test]
async fn archives_come_back_from_an_s3_server() {
    let Ok(url) = std::env::var("MEMFLEET_TEST_S3_URL") else {
        writeln!(std::io::stderr(), "skipped: MEMFLEET_TEST_S3_URL names no server").unwrap();
        return;
    };
    let prefix = format!("some where/{}", Uuid::now_v7());
    let target = Target::open(&settings(&format!("s3://memfleet-test/{prefix}"), Some(url.clone()))).unwrap();
    let key = PrivateKey::generate("main").unwrap();
    let draft = Draft {
        id: Uuid::now_v7(),
        run: Uuid::nil(),
        created_at: Utc::now(),
        policies: Vec::new(),
        tables: vec![rows()],
    };
    let written = write(&target, &key, draft).await.unwrap();
    let contents = read(&target, &[key.public()], &written.location, Some(&written.hash)).await.unwrap();
    assert_eq!(contents.tables, [rows()]);
    let listed = target.list().await.unwrap().files;
    let paths: Vec<&str> = listed.iter().map(|found| found.path.as_str()).collect();
    let path = |file: &str| format!("{}/{file}", written.location);
    assert_eq!(paths, [path("blackboard_events.parquet"), path("manifest.json")]);
    for path in &paths {
        target.delete(path).await.unwrap();
    }
    assert_eq!(target.list().await.unwrap().files, []);
    let missing = read(&target, &[key.public()], &written.location, None).await.unwrap_err().to_string();
    assert!(missing.ends_with("is missing at the archive target"), "{missing}");
    // A bucket that is not there.
    let other = Target::open(&settings("s3://memfleet-nowhere", Some(url))).unwrap();
    other.list().await.unwrap_err();
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_error_in_time() {
    let mut settings = settings("s3://memfleet-test", Some("http://127.0.0.1:1".to_owned()));
    settings.timeout_ms = 2_000;
    let failed = Target::open(&settings).unwrap().list().await.unwrap_err().to_string();
    assert!(failed.starts_with("cannot list files at the archive target"), "{failed}");
}
