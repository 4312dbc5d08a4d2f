//! Erasures by the program, and all that the stores have of a person.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use testkit::{Fixture, eventually};

use super::archives::{TABLES, archive};
use super::program::{Ended, memfleet, output_within};
use super::retention::{cleaner, sweep_all};

/// How long an erasure may take: it waits for seals, which transactions of other tests hold back.
pub const ERASED_WITHIN: Duration = Duration::from_secs(180);

/// A folder for receipts, which goes with this, and a key that signs them.
pub fn with_receipts(fixture: &mut Fixture) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let key = format!("receipt private {}\n", "e7".repeat(32));
    fixture.settings.privacy.receipt_url = Some(format!("file://{}", folder.path().display()));
    fixture.settings.privacy.receipt_key_file = Some(fixture.key_file("receipt.key", &key));
    folder
}

/// Runs `memfleet privacy`.
pub async fn privacy(fixture: &Fixture, arguments: &[&str]) -> Ended {
    privacy_with(fixture, arguments, &[]).await
}

/// The same with other settings.
pub async fn privacy_with(fixture: &Fixture, arguments: &[&str], environment: &[(&str, &str)]) -> Ended {
    let mut command = memfleet(fixture, &[&["privacy"], arguments].concat());
    command.envs(environment.iter().copied());
    output_within(ERASED_WITHIN, command).await.into()
}

/// The same, and it must succeed and print JSON.
pub async fn json(fixture: &Fixture, arguments: &[&str]) -> Value {
    let ended = privacy(fixture, &[arguments, &["--json"]].concat()).await;
    assert!(ended.is_success(), "{arguments:?}: {}", ended.all());
    serde_json::from_str(ended.out.trim()).expect("JSON")
}

/// Erases a user, and gives the file of the receipt.
pub async fn erase(fixture: &Fixture, receipts: &Path, user: i32) -> PathBuf {
    let user = user.to_string();
    let erased = json(fixture, &["erase", &user, "--reason", "a letter", "--yes", "--wait"]).await;
    assert_eq!(erased["status"], "completed", "{erased}");
    receipts.join(format!("{}.json", erased["request"].as_str().expect("an id")))
}

/// Files an erasure that nobody has begun. Gives its id.
pub async fn file(fixture: &Fixture, user: i32) -> String {
    let user = user.to_string();
    let filed = json(fixture, &["erase", &user, "--reason", "a letter", "--yes"]).await;
    filed["request"].as_str().expect("an id").to_owned()
}

/// Runs the process until it is killed at a point. A run ends by itself if it has to wait, such as for a seal.
pub async fn killed_at(fixture: &Fixture, point: &str) {
    eventually("it is killed", async || {
        let mut command = memfleet(fixture, &["privacy", "run"]);
        command.env("MEMFLEET_CRASH_AT", point).stdout(Stdio::null());
        let mut process = command.stderr(testkit::logs::stderr_for("privacy")).spawn().expect("the process");
        let ended = process.wait().await.expect("its end");
        // The process that died has the request for a minute.
        fixture.execute("UPDATE privacy_requests SET claimed_until = NULL, retry_at = NULL WHERE completed_at IS NULL").await;
        (ended.signal() == Some(9)).then_some(())
    })
    .await;
}

/// Runs the process until this erasure has its receipt.
pub async fn finish(fixture: &Fixture, id: &str) {
    eventually("the erasure is complete", async || {
        fixture.execute("UPDATE privacy_requests SET retry_at = NULL WHERE completed_at IS NULL").await;
        let ran = privacy(fixture, &["run"]).await;
        let shown = json(fixture, &["show", id]).await;
        assert!(!ran.err.contains("panicked"), "{}", ran.err);
        shown["erased"]["receipt"].is_object().then_some(())
    })
    .await;
}

/// Old sessions of these users with a context each, whose text is `canary-of-<user>-old`: retention has put them into archives together.
pub async fn archived(fixture: &Fixture, users: impl Iterator<Item = i32>) {
    let users: Vec<String> = users.map(|user| user.to_string()).collect();
    let users = users.join(", ");
    fixture
        .execute(&format!(
            "INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode, is_active, ended_at)
                 SELECT gen_random_uuid(), n, 'ended', 'simple', false, now() - interval '400 days' FROM unnest(ARRAY[{users}]) AS n;
             INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value)
                 SELECT gen_random_uuid(), n, 'ended', 'old', to_jsonb('canary-of-' || n || '-old') FROM unnest(ARRAY[{users}]) AS n"
        ))
        .await;
    archive(fixture, &TABLES).await;
    let worker = fixture.run(cleaner(fixture));
    sweep_all(fixture).await;
    worker.stop().await.expect("a clean end");
    let shared = format!("archives WHERE user_ids @> ARRAY[{users}]");
    assert!(fixture.count(&shared).await >= 1, "one of all of them");
}

/// The content of a receipt.
pub fn receipt(file: &Path) -> Value {
    let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    serde_json::from_str(&text).expect("JSON")
}

/// `before` of each table of PostgreSQL that a receipt counts, without those that had no row.
pub fn counted(receipt: &Value) -> BTreeMap<String, i64> {
    let stores = receipt["body"]["stores"].as_array().expect("stores").iter();
    let tables = stores.filter(|line| line["store"] == "postgresql").map(|line| {
        assert_eq!(line["after"], 0, "{line}");
        (line["name"].as_str().expect("a name").to_owned(), line["before"].as_i64().expect("a number"))
    });
    tables.filter(|(_, before)| *before > 0).collect()
}

/// The tables with a column of the person's id, and the column. Partitions are counted with their table.
pub async fn tables(fixture: &Fixture) -> Vec<(String, String)> {
    let found = fixture
        .lines(
            "concat_ws(' ', n.nspname || '.' || c.relname, a.attname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
             WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') AND NOT c.relispartition
                 AND (a.attname = 'user_id' OR c.relname = 'users' AND a.attname = 'id') ORDER BY 1",
        )
        .await;
    let split = |line: String| {
        let (table, column) = line.split_once(' ').expect("two words");
        (table.trim_start_matches("public.").to_owned(), column.to_owned())
    };
    found.into_iter().map(split).collect()
}

/// How many rows each of these tables has of a user, without those that have none.
pub async fn rows_of(fixture: &Fixture, user: i32) -> BTreeMap<String, i64> {
    let mut rows = BTreeMap::new();
    for (table, column) in tables(fixture).await {
        let count = fixture.count(&format!("{table} WHERE {column} = {user}")).await;
        if count > 0 {
            rows.insert(table, count);
        }
    }
    rows
}

/// Every row of every table of everybody but this user, by table.
pub async fn rows_of_others(fixture: &Fixture, user: i32) -> BTreeMap<String, Vec<String>> {
    let mut rows = BTreeMap::new();
    for (table, column) in tables(fixture).await {
        let select = format!("t::text FROM {table} t WHERE {column} <> {user} ORDER BY t::text");
        rows.insert(table, fixture.lines(&select).await);
    }
    rows
}

/// Where a text stands in the databases: each table, and how many of its rows have it, as a text or as bytes. All tables of all schemas of this
/// program, the audit trail among them.
pub async fn rows_with(fixture: &Fixture, text: &str) -> Vec<String> {
    const TABLES: &str = "c.oid::regclass FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind = 'r' AND n.nspname IN ('public', 'audit', 'sec') ORDER BY 1";
    // A row as text shows bytes as digits.
    let digits: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    let mut found = Vec::new();
    for url in [&fixture.settings.postgres.url, &fixture.settings.keys.url] {
        let mut connection = store::connect(url).await.expect("a database");
        for table in testkit::lines_on(&mut connection, TABLES).await {
            let has = |text: &str| format!("position('{text}' IN t::text) > 0");
            let select = format!("count(*) FROM {table} t WHERE {} OR {}", has(text), has(&digits));
            let count = testkit::lines_on(&mut connection, &select).await.remove(0);
            if count != "0" {
                found.push(format!("{table}: {count}"));
            }
        }
    }
    found
}

/// The subjects of the messages whose subject, headers or body have a text, in all streams.
pub async fn messages_with(fixture: &Fixture, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for stream in contract::WORKERS.iter().filter_map(|worker| worker.stream).chain(["EVENTS", "DEAD"]) {
        for message in fixture.messages(stream).await {
            let headers = format!("{:?}", message.headers);
            let body = String::from_utf8_lossy(&message.payload).into_owned();
            if [message.subject.as_str(), &headers, &body].iter().any(|part| part.contains(text)) {
                found.push(format!("{stream}: {}", message.subject));
            }
        }
    }
    found
}

/// The subjects of the messages of a user, in all streams.
pub async fn messages_of(fixture: &Fixture, user: i32) -> Vec<String> {
    let end = format!(".{user}");
    let mut found = Vec::new();
    for stream in contract::WORKERS.iter().filter_map(|worker| worker.stream).chain(["EVENTS", "DEAD"]) {
        let messages = fixture.messages(stream).await;
        found.extend(
            messages
                .iter()
                .map(|message| message.subject.to_string())
                .filter(|subject| subject.ends_with(&end)),
        );
    }
    found
}

/// The files of a folder that have a text.
pub fn files_with(folder: &Path, text: &str) -> Vec<PathBuf> {
    super::search::files_with(folder, text.as_bytes())
}

/// Runs `memfleet audit verify`, which must find nothing.
pub async fn audit_verifies(fixture: &Fixture) -> Value {
    let ended: Ended =
        output_within(ERASED_WITHIN, memfleet(fixture, &["audit", "verify", "--json"])).await.into();
    assert!(ended.is_success(), "{}", ended.all());
    serde_json::from_str(ended.out.trim()).expect("JSON")
}
