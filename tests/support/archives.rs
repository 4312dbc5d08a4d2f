//! A place for archives, and rows that policies archive.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use testkit::Fixture;

use super::program::{Ended, memfleet, output};

/// The tables whose rows can be archived, in the order in which they are restored.
pub const TABLES: [&str; 5] = [
    "chat_mode_sessions",
    "simple_chat_context",
    "agent_context_states",
    "router_decision_log",
    "blackboard_events",
];

/// A folder for archives, which goes with this, and a key that signs them.
pub fn with_target(fixture: &mut Fixture) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let key = format!("archive private {}\n", "a5".repeat(32));
    fixture.settings.archive.url = Some(format!("file://{}", folder.path().display()));
    fixture.settings.archive.signing_key_file = Some(fixture.key_file("archive.key", &key));
    folder
}

/// Has the platform's policies of these tables archive.
pub async fn archive(fixture: &Fixture, tables: &[&str]) {
    let tables = tables.join("', '");
    fixture
        .execute(&format!(
            "UPDATE data_retention_policies SET action = 'archive' WHERE user_id = 0 AND table_name IN ('{tables}')"
        ))
        .await;
}

/// All files of a folder and of its folders, in order.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// Has all files of a folder be of yesterday, old enough for `memfleet archive clean`.
pub fn age(folder: &Path) {
    let old = SystemTime::now() - Duration::from_secs(25 * 3_600);
    for file in files(folder) {
        std::fs::File::options().write(true).open(&file).expect("a file").set_modified(old).expect("a time");
    }
}

/// Runs `memfleet archive`.
pub async fn run(fixture: &Fixture, arguments: &[&str]) -> Ended {
    output(memfleet(fixture, &[&["archive"], arguments].concat())).await.into()
}

/// The same, and it must succeed.
pub async fn succeeds(fixture: &Fixture, arguments: &[&str]) -> String {
    let ended = run(fixture, arguments).await;
    assert!(ended.is_success(), "{arguments:?}: {}", ended.all());
    ended.out
}

/// The ids of the archives of a table, oldest first.
pub async fn ids(fixture: &Fixture, table: &str) -> Vec<String> {
    let listed = succeeds(fixture, &["list", "--json", "--limit", "1000", "--table", table]).await;
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    let archives = listed["archives"].as_array().expect("archives").iter();
    archives.map(|one| one["id"].as_str().expect("an id").to_owned()).collect()
}

/// Restores all archives of these tables, newest first. Gives how many rows.
pub async fn restore(fixture: &Fixture, tables: &[&str]) -> usize {
    let mut restored = 0;
    for table in tables {
        for id in ids(fixture, table).await.iter().rev() {
            let out = succeeds(fixture, &["restore", id]).await;
            let count = out.split_once(' ').expect("a number").0;
            restored += count.parse::<usize>().expect("a number");
        }
    }
    restored
}

/// The rows of a table as PostgreSQL writes them.
pub async fn rows(fixture: &Fixture, table: &str, of: &str) -> Vec<String> {
    fixture.lines(&format!("t::text FROM {table} t WHERE {of} ORDER BY t.user_id, t.id")).await
}
