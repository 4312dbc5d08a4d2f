//! Archives: what was written is what is read, and nothing else is believed.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use archive::{ArchiveError, Column, Draft, Keys, Kind, Policy, Rows, Target, Value, Written, read, write};
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use config::ArchiveSettings;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as StoreResult,
};
use trust::{PrivateKey, PublicKey};
use uuid::Uuid;

const WAIT: Duration = Duration::from_secs(10);

fn column(name: &str, sql_type: &str, category: &str) -> Column {
    Column { name: name.to_owned(), sql_type: sql_type.to_owned(), kind: Kind::of(sql_type, category) }
}

/// A column of each kind, beside those that every table has.
fn rows() -> Rows {
    let columns = vec![
        column("id", "uuid", "U"),
        column("user_id", "integer", "N"),
        column("session_id", "character varying", "S"),
        column("created_at", "timestamp with time zone", "D"),
        column("flag", "boolean", "B"),
        column("version", "bigint", "N"),
        column("score", "double precision", "N"),
        column("amount", "numeric", "N"),
        column("mode", "chat_mode", "E"),
        column("value", "jsonb", "U"),
        column("tags", "text[]", "A"),
        column("ciphertext", "bytea", "U"),
    ];
    let mut rows = Rows::new("simple_chat_context", columns);
    let first = [
        "0193c0de-0000-7000-8000-000000000001",
        "7",
        "größe \u{1f43b}\n\"x\"",
        "-62135596800000000",
        "true",
        "-9223372036854775808",
        "0.1",
        "12345678901234567890.123",
        "smart-router",
        r#"{"a": [1, 2.50]}"#,
        r#"["a","b"]"#,
        "00ff",
    ];
    rows.push(first.iter().map(|text| Some((*text).to_owned())).collect()).unwrap();
    let second = ["0193c0de-0000-7000-8000-000000000002", "9", "", "253402300799999999"];
    let empty = (0..8).map(|_| None);
    rows.push(second.iter().map(|text| Some((*text).to_owned())).chain(empty).collect()).unwrap();
    rows
}

fn draft(rows: Rows) -> Draft {
    let policy = Policy {
        id: Uuid::from_u128(5),
        user_id: 0,
        chat_mode: Some("simple".to_owned()),
        access_tier: None,
        keep_days: 90,
    };
    Draft {
        id: Uuid::now_v7(),
        run: Uuid::nil(),
        created_at: Utc::now(),
        policies: vec![policy],
        tables: vec![rows],
    }
}

struct Place {
    folder: tempfile::TempDir,
    target: Target,
    key: PrivateKey,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = Some(format!("file://{}", folder.path().display()));
        let target = Target::open(&ArchiveSettings { url, ..ArchiveSettings::default() }).unwrap();
        Self { folder, target, key: PrivateKey::generate("main").unwrap() }
    }

    fn keys(&self) -> Vec<PublicKey> {
        vec![self.key.public()]
    }

    async fn written(&self) -> Written {
        write(&self.target, &self.key, draft(rows())).await.unwrap()
    }

    fn path(&self, written: &Written, file: &str) -> PathBuf {
        self.folder.path().join(&written.location).join(file)
    }

    /// Why an archive is not believed.
    async fn refusal(&self, written: &Written) -> String {
        match read(&self.target, &self.keys(), &written.location, Some(&written.hash)).await {
            Ok(_) => panic!("it was believed"),
            Err(error) => error.to_string(),
        }
    }
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut content = std::fs::read(path).unwrap();
    change(&mut content);
    std::fs::write(path, content).unwrap();
}

#[tokio::test]
async fn every_value_comes_back_as_it_was() {
    let place = Place::new();
    let written = place.written().await;
    assert_eq!((written.manifest.rows, &written.manifest.users[..]), (2, &[7, 9][..]));
    assert_eq!(
        written.manifest.first_at,
        DateTime::<Utc>::from_timestamp_micros(-62135596800000000).unwrap()
    );
    assert_eq!(written.manifest.policies[0].keep_days, 90);
    let contents = read(&place.target, &place.keys(), &written.location, Some(&written.hash)).await.unwrap();
    assert_eq!(contents.tables, [rows()]);
    assert_eq!(contents.manifest, written.manifest);
    let rows = contents.rows("simple_chat_context").unwrap();
    assert_eq!(*rows.get(0, "version"), Value::Integer(i64::MIN));
    assert_eq!(*rows.get(1, "value"), Value::Null);
    let json = serde_json::Value::Object(rows.to_json(0));
    assert_eq!(json["created_at"], "0001-01-01T00:00:00Z");
    assert_eq!(json["value"], serde_json::json!({ "a": [1, 2.5] }));
    assert_eq!(json["ciphertext"], "00ff");
    // The folder of an archive is named by its table, month and id.
    assert!(written.location.starts_with(&format!("simple_chat_context/{}/", Utc::now().format("%Y-%m"))));
    assert_eq!(place.target.list().await.unwrap().files.len(), 2);
}

#[tokio::test]
async fn many_rows_come_back_and_take_little_space() {
    let place = Place::new();
    let mut many = Rows::new("simple_chat_context", rows().columns().to_vec());
    for number in 0..5_000 {
        let id = Uuid::from_u128(number).to_string();
        let texts =
            [&id, "1", "a session", &number.to_string(), "true", "1", "0.5", "1", "simple", "{}", "[]", "00"];
        many.push(texts.iter().map(|text| Some((*text).to_owned())).collect()).unwrap();
    }
    let written = write(&place.target, &place.key, draft(many.clone())).await.unwrap();
    let contents = read(&place.target, &place.keys(), &written.location, None).await.unwrap();
    assert_eq!(contents.tables, [many]);
    assert!(written.bytes() < 100_000, "{}", written.bytes());
}

#[tokio::test]
async fn a_changed_file_is_not_believed() {
    let place = Place::new();
    let written = place.written().await;
    let file = place.path(&written, "simple_chat_context.parquet");
    let whole = std::fs::read(&file).unwrap();
    // Each byte, also those that no reader needs.
    for at in [0, 4, whole.len() / 2, whole.len() - 9, whole.len() - 1] {
        change(&file, |content| content[at] ^= 1);
        assert!(place.refusal(&written).await.ends_with("its hash is not that of the manifest"));
        std::fs::write(&file, &whole).unwrap();
    }
    change(&file, |content| content.truncate(content.len() - 1));
    let refused = place.refusal(&written).await;
    assert!(refused.contains("it has ") && refused.contains("the manifest says"), "{refused}");
    std::fs::remove_file(&file).unwrap();
    assert!(place.refusal(&written).await.ends_with("is missing at the archive target"));
    std::fs::write(&file, &whole).unwrap();
    read(&place.target, &place.keys(), &written.location, Some(&written.hash)).await.unwrap();
}

#[tokio::test]
async fn a_changed_manifest_is_not_believed() {
    let place = Place::new();
    let (written, other) = (place.written().await, place.written().await);
    let file = place.path(&written, "manifest.json");
    let whole = std::fs::read_to_string(&file).unwrap();
    assert!(whole.contains("\"rows\":2"), "{whole}");
    for (from, to, reason) in [
        ("\"rows\":2", "\"rows\":1", "the signature of its manifest is not of the key \"main\""),
        ("\"signature\":\"", "\"signature\":\"zz", "the signature of its manifest is malformed"),
        ("\"key\":\"main\"", "\"key\":\"other\"", "which archive.public_keys_file does not have"),
        ("{\"manifest\"", "{\"manifesto\"", "it is no manifest"),
    ] {
        std::fs::write(&file, whole.replacen(from, to, 1)).unwrap();
        let refused = place.refusal(&written).await;
        assert!(refused.contains(reason), "{from}: {refused}");
    }
    // A whole archive in the place of another one: signed, and not the one that is meant.
    std::fs::copy(place.path(&other, "manifest.json"), &file).unwrap();
    assert!(place.refusal(&written).await.ends_with("its manifest is not the one that the database names"));
    let refused = read(&place.target, &place.keys(), &written.location, None).await.unwrap_err().to_string();
    assert!(refused.contains(&format!("its manifest is of the archive {}", other.manifest.id)), "{refused}");
}

#[tokio::test]
async fn another_key_of_the_same_name_is_not_believed() {
    let place = Place::new();
    let written = place.written().await;
    let other = PrivateKey::generate("main").unwrap().public();
    let refused = read(&place.target, std::slice::from_ref(&other), &written.location, None)
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("the signature of its manifest is not of the key"), "{refused}");
    let keys = [other, place.key.public()];
    read(&place.target, &keys, &written.location, None).await.unwrap();
}

#[test]
fn a_value_of_another_kind_is_no_row() {
    let mut rows = Rows::new("t", vec![column("id", "uuid", "U"), column("n", "integer", "N")]);
    let refused = rows.push(vec![Some("1".to_owned()), None]).unwrap_err().to_string();
    assert_eq!(refused, "cannot archive rows of t: a value of id is no uuid");
    let refused = rows.push(vec![None]).unwrap_err().to_string();
    assert_eq!(refused, "cannot archive rows of t: a row has 1 values, and not 2");
    assert!(rows.is_empty());
}

/// A store whose disk is full, or that keeps something else than it is given.
#[derive(Debug)]
struct Faulty {
    store: InMemory,
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// No file can be written.
    Full,
    /// The manifest cannot be written.
    FullForManifest,
    /// Files lose their last byte.
    Torn,
    /// Files are kept for nobody.
    Lost,
}

impl std::fmt::Display for Faulty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("faulty")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        location: &object_store::path::Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> StoreResult<PutResult> {
        let is_manifest = location.as_ref().ends_with("manifest.json");
        let full = || object_store::Error::Generic {
            store: "faulty",
            source: std::io::Error::from(std::io::ErrorKind::StorageFull).into(),
        };
        let payload = match self.fault {
            Fault::Full => return Err(full()),
            Fault::FullForManifest if is_manifest => return Err(full()),
            Fault::Torn if !is_manifest => {
                let whole = bytes::Bytes::from(payload);
                PutPayload::from(whole.slice(..whole.len() - 1))
            }
            Fault::Lost if !is_manifest => {
                let elsewhere = object_store::path::Path::from("elsewhere");
                return self.store.put_opts(&elsewhere, payload, options).await;
            }
            Fault::FullForManifest | Fault::Torn | Fault::Lost => payload,
        };
        self.store.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &object_store::path::Path,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(location, options).await
    }

    async fn get_opts(
        &self,
        location: &object_store::path::Path,
        options: GetOptions,
    ) -> StoreResult<GetResult> {
        self.store.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, StoreResult<object_store::path::Path>>,
    ) -> BoxStream<'static, StoreResult<object_store::path::Path>> {
        self.store.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&object_store::path::Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.store.list(prefix)
    }

    async fn list_with_delimiter(
        &self,
        prefix: Option<&object_store::path::Path>,
    ) -> StoreResult<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &object_store::path::Path,
        to: &object_store::path::Path,
        options: CopyOptions,
    ) -> StoreResult<()> {
        self.store.copy_opts(from, to, options).await
    }
}

#[tokio::test]
async fn an_archive_that_is_not_safely_there_is_an_error() {
    let key = PrivateKey::generate("main").unwrap();
    for (fault, reason) in [
        (Fault::Full, "cannot write simple_chat_context/"),
        (Fault::FullForManifest, "manifest.json at the archive target"),
        (Fault::Torn, "bytes, and the manifest says"),
        (Fault::Lost, "is missing at the archive target"),
    ] {
        let target = Target::with_store(Arc::new(Faulty { store: InMemory::new(), fault }), WAIT);
        let refused = write(&target, &key, draft(rows())).await.unwrap_err().to_string();
        assert!(refused.contains(reason), "{fault:?}: {refused}");
    }
    let target = Target::with_store(Arc::new(InMemory::new()), WAIT);
    write(&target, &key, draft(rows())).await.unwrap();
    let empty = Rows::new("simple_chat_context", rows().columns().to_vec());
    assert!(matches!(write(&target, &key, draft(empty)).await, Err(ArchiveError::Rows { .. })));
}

#[tokio::test]
async fn files_are_listed_and_deleted() {
    let target = Target::with_store(Arc::new(InMemory::new()), WAIT);
    let written = write(&target, &PrivateKey::generate("main").unwrap(), draft(rows())).await.unwrap();
    let listed = target.list().await.unwrap().files;
    let paths: Vec<&str> = listed.iter().map(|found| found.path.as_str()).collect();
    let path = |file: &str| format!("{}/{file}", written.location);
    assert_eq!(paths, [path("manifest.json"), path("simple_chat_context.parquet")]);
    target.delete(&path("manifest.json")).await.unwrap();
    assert_eq!(target.list().await.unwrap().files.len(), 1);
}

#[test]
fn a_target_that_cannot_be_used_says_why() {
    let open = |url: Option<&str>| {
        let settings = ArchiveSettings { url: url.map(str::to_owned), ..ArchiveSettings::default() };
        Target::open(&settings).unwrap_err().to_string()
    };
    assert!(open(None).starts_with("archive.url is not set"));
    let missing = open(Some("file:///nowhere/archives"));
    assert!(
        missing.starts_with("archive.url names the folder /nowhere/archives, which cannot be used"),
        "{missing}"
    );
    if cfg!(not(feature = "s3")) {
        assert!(open(Some("s3://bucket")).contains("this build is without the feature s3"));
    }
    let none = Keys::public(&ArchiveSettings::default()).unwrap_err().to_string();
    assert!(none.starts_with("archive.public_keys_file is not set"), "{none}");
    let none = Keys::signing(&ArchiveSettings::default()).unwrap_err().to_string();
    assert!(none.starts_with("archive.signing_key_file is not set"), "{none}");
}
