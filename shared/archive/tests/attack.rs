//! Archives under attack: by whoever writes to the folder, and by whoever holds a key that signs manifests.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use archive::{ArchiveError, Column, Draft, Kind, Rows, Signed, Target, Written, read, write};
use chrono::Utc;
use config::ArchiveSettings;
use trust::PrivateKey;
use uuid::Uuid;

/// The folder of an archive that nobody wrote.
const FORGED: &str = "blackboard_events/2026-01/0193c0de-0000-7000-8000-00000000000f";

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

    async fn write(&self, tables: Vec<Rows>) -> Result<Written, ArchiveError> {
        let draft = Draft {
            id: Uuid::now_v7(),
            run: Uuid::nil(),
            created_at: Utc::now(),
            policies: Vec::new(),
            tables,
        };
        write(&self.target, &self.key, draft).await
    }

    async fn refusal(&self, location: &str) -> String {
        let known = [self.key.public()];
        let reading = read(&self.target, &known, location, None);
        let read = tokio::time::timeout(Duration::from_secs(10), reading).await.expect("an answer");
        read.expect_err("it was accepted").to_string()
    }

    async fn paths(&self) -> Vec<String> {
        self.target.list().await.unwrap().files.into_iter().map(|found| found.path).collect()
    }
}

/// Rows of users.
fn rows(table: &str, users: &[i32]) -> Rows {
    let column = |name: &str, sql_type: &str, category: &str| Column {
        name: name.to_owned(),
        sql_type: sql_type.to_owned(),
        kind: Kind::of(sql_type, category),
    };
    let columns = vec![
        column("id", "uuid", "U"),
        column("user_id", "integer", "N"),
        column("created_at", "timestamp with time zone", "D"),
    ];
    let mut rows = Rows::new(table, columns);
    for user in users {
        rows.push(vec![Some(Uuid::now_v7().to_string()), Some(user.to_string()), Some("0".to_owned())])
            .unwrap();
    }
    rows
}

fn contexts() -> Vec<Rows> {
    vec![rows("simple_chat_context", &[7, 9])]
}

fn fill(folder: &Path, files: &[&str]) {
    for file in files {
        let path = folder.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
}

fn pipe(path: &Path) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[tokio::test]
async fn links_are_neither_followed_nor_deleted() {
    let (place, elsewhere) = (Place::new(), tempfile::tempdir().unwrap());
    let written = place.write(contexts()).await.unwrap();
    let before = place.paths().await;
    assert_eq!(before.len(), 2);
    let (manifest, file) = (format!("{FORGED}/manifest.json"), format!("{FORGED}/blackboard_events.parquet"));
    fill(elsewhere.path(), &[manifest.as_str(), file.as_str()]);
    let root = place.folder.path();
    symlink(".", root.join("loop")).unwrap();
    symlink(elsewhere.path().join("blackboard_events"), root.join("blackboard_events")).unwrap();
    let inner = root.join(&written.location);
    symlink(elsewhere.path().join(&file), inner.join("chat_session_summary.parquet")).unwrap();
    symlink(elsewhere.path(), inner.parent().unwrap().join("0193c0de-0000-7000-8000-00000000000e")).unwrap();

    let listing = place.target.list().await.unwrap();
    let found: Vec<&str> = listing.files.iter().map(|found| found.path.as_str()).collect();
    assert_eq!(found, before);
    assert_eq!(listing.links.len(), 4, "{:?}", listing.links);
    for path in [&manifest, &format!("{}/chat_session_summary.parquet", written.location)] {
        let refused = place.target.delete(path).await.unwrap_err().to_string();
        assert!(refused.contains("is a link, and links are not followed"), "{refused}");
    }
    assert!(elsewhere.path().join(&manifest).exists() && elsewhere.path().join(&file).exists());
    assert!(inner.join("chat_session_summary.parquet").is_symlink());
    assert!(place.refusal(FORGED).await.contains("is a link, and links are not followed"));
    // Nothing is written by way of a link.
    let refused = place.write(vec![rows("blackboard_events", &[7])]).await.unwrap_err().to_string();
    assert!(refused.contains("cannot write ") && refused.contains("is a link"), "{refused}");
    assert_eq!(fs::read_dir(elsewhere.path().join("blackboard_events")).unwrap().count(), 1);
}

#[tokio::test]
async fn files_that_are_not_named_as_those_of_archives_stay() {
    let place = Place::new();
    let others = [
        "notes.txt",
        "simple_chat_context/2026-01/notes.parquet",
        "users/2026-01/0193c0de-0000-7000-8000-00000000000f/manifest.json",
        "blackboard_events/2026/0193c0de-0000-7000-8000-00000000000f/manifest.json",
        "blackboard_events/2026-01/latest/manifest.json",
        "blackboard_events/2026-01/0193c0de-0000-7000-8000-00000000000f/notes.txt",
        "blackboard_events/2026-01/0193c0de-0000-7000-8000-00000000000f/more/manifest.json",
    ];
    fill(place.folder.path(), &others);
    let named = format!("{FORGED}/blackboard_events.parquet");
    fill(place.folder.path(), &[named.as_str()]);
    pipe(&place.folder.path().join(FORGED).join("manifest.json"));
    assert_eq!(place.paths().await, std::slice::from_ref(&named));
    for path in others {
        let refused = place.target.delete(path).await.unwrap_err().to_string();
        assert!(refused.contains("it is not named as files of archives are"), "{path}: {refused}");
    }
    let refused = place.target.delete(&format!("{FORGED}/manifest.json")).await.unwrap_err().to_string();
    assert!(refused.contains("it is no regular file"), "{refused}");
    place.target.delete(&named).await.unwrap();
    assert_eq!(place.paths().await, Vec::<String>::new());
    assert!(others.iter().all(|path| place.folder.path().join(path).is_file()));
}

/// To open a pipe waits for its writer, without end.
#[tokio::test]
async fn a_pipe_in_the_place_of_a_file_is_an_error() {
    let place = Place::new();
    for file in ["manifest.json", "simple_chat_context.parquet"] {
        let written = place.write(contexts()).await.unwrap();
        let path = place.folder.path().join(&written.location).join(file);
        fs::remove_file(&path).unwrap();
        pipe(&path);
        let refused = place.refusal(&written.location).await;
        assert!(refused.ends_with("it is no regular file"), "{refused}");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let refused = place.refusal(&written.location).await;
        assert!(refused.ends_with("it is no regular file"), "{refused}");
    }
}

/// A path may name the same file in several ways, and files are known by one of them.
#[tokio::test]
async fn an_archive_is_read_from_its_own_place_only() {
    let place = Place::new();
    let location = place.write(contexts()).await.unwrap().location;
    let other = format!("/{location}");
    assert!(place.refusal(&other).await.ends_with(&format!("which is in {location}")));
}

#[tokio::test]
async fn files_of_other_tables_are_refused_whoever_signed_them() {
    let place = Place::new();
    for (tables, reason) in [
        (
            vec![rows("data_retention_policies", &[7])],
            "rows of the table \"data_retention_policies\" are not archived",
        ),
        (vec![rows("encrypted_fields", &[7])], "rows of the table \"encrypted_fields\" are not archived"),
        (
            vec![rows("simple_chat_context", &[7]), rows("chat_session_summary", &[7])],
            "\"chat_session_summary\" does not belong to simple_chat_context",
        ),
        (
            vec![rows("blackboard_events", &[7]), rows("encrypted_fields", &[7])],
            "\"encrypted_fields\" does not belong to blackboard_events",
        ),
        (
            vec![rows("chat_mode_sessions", &[7]), rows("chat_mode_sessions", &[7])],
            "\"chat_mode_sessions\" does not belong to chat_mode_sessions",
        ),
        (
            vec![rows("simple_chat_context", &[7]), rows("encrypted_fields", &[7, 8])],
            "rows of users whom it does not name",
        ),
    ] {
        let refused = place.write(tables).await.unwrap_err().to_string();
        assert!(refused.contains(reason), "{refused}");
    }
    let sessions = ["chat_mode_sessions", "chat_session_summary", "encrypted_fields"];
    place.write(sessions.map(|table| rows(table, &[7, 9])).to_vec()).await.unwrap();
}

#[tokio::test]
async fn rows_of_users_whom_a_manifest_does_not_name_are_refused() {
    let place = Place::new();
    let written = place.write(contexts()).await.unwrap();
    let mut manifest = written.manifest.clone();
    manifest.users = vec![7];
    let signed = Signed::new(&manifest, &place.key).unwrap();
    let path = place.folder.path().join(&written.location).join("manifest.json");
    fs::write(path, serde_json::to_vec(&signed).unwrap()).unwrap();
    let refused = place.refusal(&written.location).await;
    assert!(refused.ends_with("its files have rows of users whom it does not name"), "{refused}");
}
