//! What several test modules share.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use context_writer::ContextWriter;
use testkit::{Fixture, RequestMessage, requests_for_all_tables};

pub mod archives;
pub mod broker;
pub mod cluster;
pub mod consensus;
pub mod encryption;
pub mod erasure;
pub mod exports;
pub mod http;
pub mod memories;
pub mod privacy;
pub mod program;
pub mod proof;
pub mod raw_nats;
pub mod reader;
pub mod retention;
pub mod retention_model;
pub mod retention_rows;
pub mod search;
pub mod statements;
pub mod sync;
pub mod sync_history;
pub mod ticks;

/// The database role of context-writer.
pub const ROLE: &str = "w_context_writer";

/// A file or folder of the repository.
pub fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// A folder that PostgreSQL can reach as another user.
pub fn folder() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::Builder::new().prefix("memfleet-test-").tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// The Schema-Guided Dialogue data set beside the checkout, if it is there.
pub fn schema_guided_dialogues() -> Option<PathBuf> {
    let path = in_repository("../shared/data/sgd/dialogues.jsonl.gz");
    if path.is_file() {
        return Some(path);
    }
    skipped(&format!("{} is not there", path.display()));
    None
}

/// Reports that a test was skipped. Not by `println!`, whose output is shown for failed tests only.
pub fn skipped(reason: &str) {
    writeln!(std::io::stderr(), "skipped: {reason}").expect("standard error");
}

/// Two users with a row in every table that context-writer writes.
pub async fn two_users() -> Fixture {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [1, 2].into_iter().flat_map(requests_for_all_tables)).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    fixture
}

/// Publishes as a careful publisher does: again, with the same id, until the broker has stored it.
pub async fn publish_until_stored(fixture: &Fixture, requests: Vec<RequestMessage>) {
    for request in requests {
        loop {
            let sent = fixture.jetstream.publish_with_headers(
                request.subject.clone(),
                request.header_map(),
                request.body.clone().into(),
            );
            let stored = match sent.await {
                Ok(acknowledged) => acknowledged.await.is_ok(),
                Err(_) => false,
            };
            if stored {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
