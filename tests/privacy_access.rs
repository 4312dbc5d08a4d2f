//! The export of all that is stored of a person: it has everything of the person from every store, and nothing of anybody else.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use async_nats::HeaderMap;
use context_writer::ContextWriter;
use contract::header;
use privacy::access::{Plan, plan};
use privacy::catalogue::{Entry, KEY_STORE_TABLES, TABLES as CATALOGUE};
use serde_json::{Value, json};
use testkit::{Fixture, RequestMessage, request, session, user};
use uuid::Uuid;

use crate::support::archives::with_target;
use crate::support::erasure::{archived, files_with, messages_of, rows_of};
use crate::support::exports::{Holder, export, holder, index, left_out, lines, opened, parts, rows};
use crate::support::memories::{Memories, index as index_memories, memory};
use crate::support::privacy::fill;
use crate::support::retention::without_schedule;

const PERSON: i32 = 77_003;
/// Others, with ids that begin or end like the person's.
const OTHERS: [i32; 4] = [1, 77, 770_030, 177_003];
/// The ends of the texts of a person: of `tests/support/person.sql`, and of what [`Filled::new`] adds.
const TEXTS: [&str; 26] = [
    "profile",
    "setting",
    "device",
    "credential",
    "context",
    "value",
    "state",
    "summary",
    "history",
    "message",
    "feedback",
    "decision",
    "route",
    "conversation",
    "node",
    "question",
    "delegation",
    "response",
    "relation",
    "inputs",
    "standing",
    "dossier",
    "hold",
    "event",
    "reason",
    "old",
];

/// What every text of a user has, and of nobody else.
fn canary(user: i32) -> String {
    format!("canary-of-{user}-")
}

fn everybody() -> impl Iterator<Item = i32> {
    OTHERS.into_iter().chain([PERSON])
}

fn memory_of(user: i32, number: u64) -> RequestMessage {
    index_memories(user, vec![memory(Uuid::now_v7(), &format!("{}memory {number}", canary(user)), number)])
}

/// A person and others in all stores, and the export of the person, opened.
struct Filled {
    memories: Memories,
    folder: tempfile::TempDir,
    exported: Value,
    holder: Holder,
    _archives: tempfile::TempDir,
}

impl Filled {
    async fn new() -> Self {
        let mut memories = Memories::new().await;
        let archives = with_target(&mut memories.fixture);
        without_schedule(&memories.fixture).await;
        let sealed = |id: i32| {
            let value = format!("{}sealed", canary(id));
            json!({ "session_id": "s", "context_key": "k", "context_value": value, "version": 1, "sensitive": true })
        };
        let accounts =
            everybody().flat_map(|id| [user(id), session(id, "s"), request("context.put", id, sealed(id))]);
        memories.fixture.process(ContextWriter, accounts.collect::<Vec<_>>()).await;
        memories
            .process(everybody().flat_map(|id| [memory_of(id, 1), memory_of(id, 2)]).collect::<Vec<_>>())
            .await;
        archived(&memories.fixture, everybody()).await;
        for id in everybody() {
            fill(&memories.fixture, id, &canary(id)).await;
        }
        let bad = everybody().flat_map(|id| {
            let wrong = json!({ "session_id": "s", "mistake": format!("{}wrong", canary(id)) });
            let unreadable =
                request("context.put", id, json!({})).map_body(|_| format!("{{{}torn", canary(id)));
            [request("context.put", id, wrong), unreadable]
        });
        memories.fixture.process(ContextWriter, bad.collect::<Vec<_>>()).await;
        for id in everybody() {
            letter(&memories.fixture, id).await;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let holder = holder(&memories.fixture, "person.key");
        let out = folder.path().join("out");
        let exported = export(&memories.fixture, PERSON, &out, &holder, &["--reason", "a letter"]).await;
        opened(&memories.fixture, &parts(&out, &exported), &holder, &folder.path().join("opened")).await;
        Self { memories, folder, exported, holder, _archives: archives }
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    fn opened(&self) -> PathBuf {
        self.folder.path().join("opened")
    }
}

/// Stores a letter about a message whose subject is no request's: only its header names the user.
async fn letter(fixture: &Fixture, of: i32) {
    let mut headers = HeaderMap::new();
    headers.insert(header::DEAD_SUBJECT, format!("memory.req.test.mistake.put.{of}").as_str());
    let body = format!("{}letter", canary(of));
    let sent =
        fixture.jetstream.publish_with_headers("memory.dead.context-writer.unknown", headers, body.into());
    sent.await.expect("a publish").await.expect("an acknowledged publish");
}

/// Every table of a catalogue is either exported, or named as left out with its reason.
fn covers(index: &Value, store: &str, catalogue: &[Entry]) {
    let (exported, left_out) = (rows(index, store), left_out(index, store));
    for entry in catalogue {
        let name = entry.name();
        match plan(entry) {
            Plan::Rows(columns) => {
                assert!(exported.contains_key(&name), "{name} is missing in the export");
                for column in columns {
                    let named = left_out.get(&format!("{name} {}", column.name));
                    assert_eq!(named.map(String::as_str), Some(column.reason), "{name}");
                }
            }
            Plan::LeftOut(reason) => {
                assert_eq!(left_out.get(&name).map(String::as_str), Some(reason), "{name}");
                assert!(!exported.contains_key(&name), "{name}");
            }
        }
    }
    assert!(exported.keys().all(|name| catalogue.iter().any(|entry| entry.name() == *name)), "{exported:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_has_everything_of_one_person_and_nothing_of_another() {
    let filled = Filled::new().await;
    let (fixture, folder) = (&filled.memories.fixture, filled.opened());
    let index = index(&folder);
    assert_eq!(index["user"], PERSON);
    covers(&index, "postgresql", CATALOGUE);
    covers(&index, "key-store", KEY_STORE_TABLES);
    let exported = rows(&index, "postgresql");
    for (table, count) in rows_of(fixture, PERSON).await {
        assert_eq!(exported.get(&format!("public.{table}")), Some(&count), "{table}");
    }
    for table in
        ["sec.token_uses", "sec.minted_job_grants", "public.archives", "audit.audit_log", "audit.subjects"]
    {
        assert!(exported[table] > 0, "{table}: {exported:?}");
    }
    for text in TEXTS {
        let text = format!("{}{text}", canary(PERSON));
        assert!(!files_with(&folder, &text).is_empty(), "{text} is not in the export");
    }
    for id in OTHERS {
        assert_eq!(files_with(&folder, &canary(id)), Vec::<PathBuf>::new(), "of user {id}");
    }
    fields(&folder, &index);
    points(&folder, &index);
    messages(fixture, &folder, &index).await;
    archives(&folder);
    secrets(&filled).await;
    noted(&filled).await;
    modes(&filled);
}

/// Encrypted fields are there in clear. One of the fixture is no ciphertext, and says so.
fn fields(folder: &Path, index: &Value) {
    let fields = lines(folder, "postgresql/public.encrypted_fields.jsonl");
    let sealed = format!("{}sealed", canary(PERSON));
    let is_sealed = |field: &Value| field["value"].as_str().is_some_and(|value| value.contains(&sealed));
    assert!(fields.iter().any(is_sealed), "{fields:?}");
    assert!(fields.iter().all(|field| field.get("ciphertext").is_none()), "{fields:?}");
    let unreadable = fields.iter().filter(|field| field["unreadable"].is_string()).count();
    assert_eq!(index["unreadable_fields"].as_u64(), u64::try_from(unreadable).ok());
    assert_eq!(unreadable, 1, "{fields:?}");
    assert_eq!(lines(folder, "key-store/public.data_keys.jsonl").len(), 1);
}

fn points(folder: &Path, index: &Value) {
    assert_eq!(rows(index, "qdrant").values().sum::<i64>(), 2);
    let points = lines(folder, "qdrant/collection-1.jsonl");
    assert_eq!(points.len(), 2);
    for point in points {
        assert_eq!(point["vector"].as_array().map(Vec::len), Some(8), "{point}");
        assert_eq!(point["payload"]["type"], "context", "{point}");
    }
}

async fn messages(fixture: &Fixture, folder: &Path, index: &Value) {
    let exported = rows(index, "nats");
    // And the letter that only its header names.
    let stored = messages_of(fixture, PERSON).await.len() + 1;
    assert_eq!(exported.values().sum::<i64>(), i64::try_from(stored).expect("a small number"));
    let body = |file: &str, text: &str| {
        let text = format!("{}{text}", canary(PERSON));
        let has = |message: &Value| message["body"].as_str().is_some_and(|body| body.contains(&text));
        assert!(lines(folder, file).iter().any(has), "{file}: {text}");
    };
    body("nats/CONTEXT.jsonl", "sealed");
    body("nats/DEAD.jsonl", "letter");
    for message in lines(folder, "nats/CONTEXT.jsonl") {
        let headers = message["headers"].as_object().expect("headers");
        assert!(!headers.is_empty() && headers.keys().all(|name| name != "Authorization"), "{message}");
        assert!(message["stored_at"].is_string(), "{message}");
    }
}

fn archives(folder: &Path) {
    let rows = lines(folder, "archives/rows.jsonl");
    assert!(rows.iter().all(|line| line["row"]["user_id"] == PERSON), "{rows:?}");
    let old = format!("{}old", canary(PERSON));
    assert!(rows.iter().any(|line| line["row"]["context_value"] == old.as_str()), "{rows:?}");
    for archive in lines(folder, "postgresql/public.archives.jsonl") {
        assert_eq!(archive["user_ids"], json!([PERSON]), "of others nothing is said: {archive}");
        assert!(archive.get("not_removed").is_none(), "{archive}");
    }
    for mint in lines(folder, "postgresql/sec.minted_job_grants.jsonl") {
        for users in [&mint["users"], &mint["earlier"]] {
            assert!(*users == json!([PERSON]) || *users == json!([]), "{mint}");
        }
    }
}

/// No key and no token is in the export, and nothing of the person is readable in its parts.
async fn secrets(filled: &Filled) {
    let fixture = &filled.memories.fixture;
    let mut secrets = fixture
        .lines(&format!("encode(digest_key, 'hex') FROM audit.subjects WHERE user_id = {PERSON}"))
        .await;
    let mut key_store = store::connect(&fixture.settings.keys.url).await.expect("the key store");
    let wrapped = format!("encode(wrapped, 'hex') FROM data_keys WHERE user_id = {PERSON}");
    secrets.extend(testkit::lines_on(&mut key_store, &wrapped).await);
    assert_eq!(secrets.len(), 2);
    secrets.push("Bearer ".to_owned());
    for secret in secrets {
        assert_eq!(files_with(&filled.opened(), &secret), Vec::<PathBuf>::new());
    }
    assert_eq!(files_with(&filled.out(), &canary(PERSON)), Vec::<PathBuf>::new(), "it is encrypted");
}

/// The request has the hashes of the parts, and the trail has the access.
async fn noted(filled: &Filled) {
    let fixture = &filled.memories.fixture;
    let request = filled.exported["request"].as_str().expect("an id");
    let details =
        format!("details FROM privacy_requests WHERE id = '{request}' AND request_status = 'completed'");
    let details: Value = serde_json::from_str(&fixture.lines(&details).await[0]).expect("JSON");
    assert_eq!(details["parts"], filled.exported["parts"]);
    assert_eq!(details["rows"]["postgresql public.users"], 1);
    let access = format!(
        "concat_ws(' ', l.access_type, l.object_name, l.rows_returned, s.user_id) FROM audit.data_access_log l
         JOIN audit.subjects s ON s.token = l.subject_token WHERE l.request_id = '{request}'"
    );
    assert_eq!(
        fixture.lines(&access).await,
        [format!("export all stores {} {PERSON}", filled.exported["rows"])]
    );
}

fn modes(filled: &Filled) {
    let mode = |path: &Path| std::fs::metadata(path).expect("a file").permissions().mode() & 0o777;
    assert_eq!(mode(&filled.out()), 0o700);
    for part in parts(&filled.out(), &filled.exported) {
        assert_eq!(mode(&part), 0o600);
    }
    assert_eq!(mode(&filled.opened()), 0o700);
    assert_eq!(mode(&filled.opened().join("index.txt")), 0o600);
    assert!(filled.holder.public.starts_with("age1"));
}
