//! Dialogues carried through real servers, by the program and by its parts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use config::Settings;
use diesel::QueryableByName;
use diesel::sql_types::{Integer, Jsonb, Text};
use diesel_async::RunQueryDsl;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use fleet::{Fleet, WorkerName};
use playground::Local;
use playground::ingest::{Contents, IngestOptions, Ingested, Source, ingest};
use runtime::broker;
use serde_json::Value;
use stack::StackOptions;

use crate::support::program::{PROGRAM, signal};
use crate::support::{folder, in_repository, schema_guided_dialogues};

const WITHIN: Duration = Duration::from_secs(180);

/// The program while it runs; a test that fails takes it along.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the program with its temporary files, and what it prints and says, in a folder.
fn start(folder: &Path, arguments: &[&str]) -> Running {
    let child = Command::new(PROGRAM)
        .args(arguments)
        .env("TMPDIR", folder)
        .stdout(File::create(printed_in(folder)).unwrap())
        .stderr(File::create(said_in(folder)).unwrap())
        .spawn();
    Running(child.unwrap())
}

fn printed_in(folder: &Path) -> PathBuf {
    folder.join("printed")
}

fn said_in(folder: &Path) -> PathBuf {
    folder.join("said")
}

/// Waits until a condition holds.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + WITHIN;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {} s", WITHIN.as_secs());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How the program ended: its exit code, what it printed and what it said.
struct Ended {
    code: Option<i32>,
    printed: String,
    said: String,
}

fn end(folder: &Path, mut program: Running) -> Ended {
    eventually("the program ends", || program.0.try_wait().unwrap().is_some());
    let take = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        text
    };
    let code = program.0.wait().unwrap().code();
    Ended { code, printed: take(printed_in(folder)), said: take(said_in(folder)) }
}

fn run(folder: &Path, arguments: &[&str]) -> Ended {
    end(folder, start(folder, arguments))
}

/// The processes that have a folder in their command line.
fn processes_in(folder: &Path) -> Vec<String> {
    let name = folder.to_str().unwrap();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(name))
        .collect()
}

fn assert_nothing_left(folder: &Path) {
    assert_eq!(processes_in(folder), Vec::<String>::new());
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(files.is_empty(), "{files:?}");
}

fn sum(counts: &Value) -> u64 {
    counts.as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum()
}

#[test]
fn the_demo_adds_up_and_leaves_nothing_behind() {
    // A request that waits for another one is tried again by itself, and has no effect any more if a later one of the same thing came
    // first. The sample has four such pairs: of a sync, a relation, a policy and a hold.
    const OVERTAKEN: u64 = 4;
    let folder = folder();
    let ended = run(folder.path(), &["demo", "--json"]);
    assert_eq!(ended.code, Some(0), "{}", ended.said);
    assert!(ended.said.contains("starting private NATS, PostgreSQL and vector store"), "{}", ended.said);
    let result: Value = serde_json::from_str(ended.printed.lines().last().unwrap()).unwrap();

    let messages = &result["messages"];
    assert!(messages["message.add"].as_u64().unwrap() >= 300, "{result}");
    assert_eq!(result["rows"]["chat_messages"], messages["message.add"]);
    assert_eq!(result["rows"]["chat_mode_sessions"], messages["session.open"]);
    assert_eq!(result["rows"]["users"], result["users"]);
    assert_eq!(result["stored"].as_u64().unwrap(), sum(messages));
    let applied = result["applied"].as_u64().unwrap();
    assert!(
        (sum(messages) - OVERTAKEN..=sum(messages)).contains(&applied),
        "every request took effect: {result}"
    );
    // Of the sample's tasks two close: the last response to each causes two further events. What is validated is indexed by a
    // job, which a slow machine sees run.
    let caused = applied + 4;
    assert!((caused..=caused + 2).contains(&result["events"].as_u64().unwrap()), "all is told: {result}");
    assert_eq!(result["dead_letters"], 0);
    assert_eq!(result["refused"], 0);
    let delay = &result["publish_to_commit_ms"];
    assert!(
        delay["p50"].as_f64().unwrap() > 0.0 && delay["p99"].as_f64() >= delay["p50"].as_f64(),
        "{result}"
    );
    assert_nothing_left(folder.path());
}

#[test]
fn a_file_that_cannot_be_read_is_named_and_leaves_nothing_behind() {
    let (folder, file) = (folder(), tempfile::NamedTempFile::new().unwrap());
    std::fs::write(file.path(), "no dialogue").unwrap();
    let path = file.path().to_str().unwrap();
    let cases = [("/nowhere", "/nowhere: cannot be opened"), (path, "line 1: invalid dialogue")];
    for (path, expected) in cases {
        let ended = run(folder.path(), &["load", "--format", "sgd", path]);
        assert_eq!(ended.code, Some(1), "{}", ended.said);
        assert!(ended.said.contains(expected), "{}", ended.said);
        assert_nothing_left(folder.path());
    }
}

#[test]
fn interrupted_it_leaves_nothing_behind() {
    let (folder, mut file) = (folder(), tempfile::NamedTempFile::new().unwrap());
    for number in 0..50_000 {
        let dialogue = r#""services":["S"],"turns":[{"speaker":"USER","utterance":"Hi"}]"#;
        writeln!(file, r#"{{"dialogue_id":"{number}",{dialogue}}}"#).unwrap();
    }
    let path = file.path().to_str().unwrap();
    let program = start(folder.path(), &["load", "--format", "sgd", path]);
    eventually("it publishes", || {
        std::fs::read_to_string(said_in(folder.path())).unwrap().contains("publishing the dialogues")
    });
    signal("INT", program.0.id());
    let ended = end(folder.path(), program);
    assert_eq!(ended.code, Some(1), "{}", ended.said);
    assert!(ended.said.ends_with("memfleet: interrupted\n"), "{}", ended.said);
    assert_nothing_left(folder.path());
}

#[test]
fn dev_runs_until_it_is_told_to_stop_and_can_be_used_meanwhile() {
    use std::os::unix::fs::PermissionsExt;
    let (folder, other) = (folder(), folder());
    let data = folder.path().join("data");
    let program = start(folder.path(), &["dev", "--dir", data.to_str().unwrap()]);
    let file = data.join("memfleet.toml");
    eventually("it writes the configuration", || {
        std::fs::read_to_string(&file).is_ok_and(|content| content.contains("postgres://"))
    });
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    let sample = in_repository("tools/playground/sample/dialogues.jsonl");
    let config = file.to_str().unwrap();
    let load = [
        "--config",
        config,
        "load",
        "--format",
        "sgd",
        "--running",
        "--wait",
        "--json",
        sample.to_str().unwrap(),
    ];
    let [first, second] = [(); 2].map(|()| {
        let ended = run(other.path(), &load);
        assert_eq!(ended.code, Some(0), "{}", ended.said);
        serde_json::from_str::<Value>(&ended.printed).unwrap()
    });
    assert_eq!(first["rows"]["chat_mode_sessions"], 40);
    assert_eq!(second["rows"], first["rows"], "the second time changes nothing");
    assert_eq!(second["stored"], 0);
    // The configuration leads to the keys as well.
    for (keys, told) in [(["keys", "list"], "no data keys"), (["keys", "rotate"], "re-wrapped 0 data keys")] {
        let ended = run(other.path(), &[["--config", config], keys].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.said);
        assert!(ended.printed.contains(told), "{}", ended.printed);
    }

    signal("TERM", program.0.id());
    let ended = end(folder.path(), program);
    assert_eq!(ended.code, Some(0), "{}", ended.said);
    assert!(ended.printed.contains(&format!("/memfleet --config {config}'\n")), "{}", ended.printed);
    assert_eq!(processes_in(folder.path()), Vec::<String>::new());
    assert!(!file.exists(), "it leads nowhere any more");
}

/// User, session and key of a slot, and its values.
type Slots = BTreeMap<(i32, String, String), Value>;

/// What the file holds, read without any of our types.
struct InFile {
    dialogues: u64,
    turns: u64,
    slots: Slots,
}

/// A file with every eighth dialogue: all of them take minutes.
fn eighth_of(path: &Path) -> tempfile::NamedTempFile {
    let mut text = String::new();
    GzDecoder::new(File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    let part = tempfile::NamedTempFile::new().unwrap();
    let mut gzip = GzEncoder::new(part.as_file(), Compression::fast());
    for line in text.lines().step_by(8) {
        writeln!(gzip, "{line}").unwrap();
    }
    gzip.finish().unwrap();
    part
}

fn read(path: &Path, users: i32) -> InFile {
    let mut text = String::new();
    GzDecoder::new(File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    let mut file = InFile { dialogues: 0, turns: 0, slots: Slots::new() };
    for (index, line) in text.lines().enumerate() {
        let dialogue: Value = serde_json::from_str(line).unwrap();
        let user = 1 + i32::try_from(index).unwrap() % users;
        let session = format!("sgd-{}", dialogue["dialogue_id"].as_str().unwrap());
        let turns = dialogue["turns"].as_array().unwrap();
        file.dialogues += 1;
        file.turns += turns.len() as u64;
        // Of each service the latest frame holds its whole state.
        let frames = turns.iter().filter_map(|turn| turn["frames"].as_array()).flatten();
        let latest: BTreeMap<&str, &Value> =
            frames.map(|frame| (frame["service"].as_str().unwrap(), &frame["slot_values"])).collect();
        for (service, values) in latest {
            for (slot, values) in values.as_object().unwrap() {
                file.slots.insert((user, session.clone(), format!("{service}.{slot}")), values.clone());
            }
        }
    }
    file
}

#[derive(QueryableByName)]
struct Slot {
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = Text)]
    session_id: String,
    #[diesel(sql_type = Text)]
    context_key: String,
    #[diesel(sql_type = Jsonb)]
    context_value: Value,
}

async fn slots_in_database(url: &str) -> Slots {
    let mut connection = store::connect(url).await.unwrap();
    let slots: Vec<Slot> = diesel::sql_query(
        "SELECT user_id, session_id::text, context_key::text, context_value FROM simple_chat_context \
         WHERE context_type = 'state' AND removed_at IS NULL",
    )
    .load(&mut connection)
    .await
    .unwrap();
    slots
        .into_iter()
        .map(|slot| ((slot.user_id, slot.session_id, slot.context_key), slot.context_value))
        .collect()
}

/// Makes the stream forget ids at once, so that what comes twice reaches the workers twice.
async fn forget_ids(settings: &Settings) {
    let client = broker::connect_operator(&settings.nats, "test").await.unwrap();
    let jetstream = async_nats::jetstream::new(client);
    let mut config = jetstream.get_stream("CONTEXT").await.unwrap().cached_info().config.clone();
    config.duplicate_window = Duration::from_millis(100);
    jetstream.update_stream(&config).await.unwrap();
}

async fn assert_as_in_file(settings: &Settings, ingested: &Ingested, file: &InFile) -> Contents {
    assert_eq!(ingested.dead_letters(), Vec::<String>::new());
    assert_eq!(ingested.sent.published.refused, 0);
    let contents = Contents::read(&settings.postgres.url).await.unwrap();
    assert_eq!(contents.rows["chat_mode_sessions"], file.dialogues);
    assert_eq!(contents.rows["chat_messages"], file.turns);
    let slots = slots_in_database(&settings.postgres.url).await;
    let wrong: Vec<_> =
        file.slots.iter().filter(|(key, values)| slots.get(key) != Some(values)).take(5).collect();
    assert!(wrong.is_empty(), "in the file, not in the database: {wrong:?}");
    assert_eq!(slots.len(), file.slots.len());
    contents
}

#[tokio::test(flavor = "multi_thread")]
async fn schema_guided_dialogues_arrive_once_however_often_they_are_loaded() {
    let Some(path) = schema_guided_dialogues() else { return };
    let part = eighth_of(&path);
    let path = part.path();
    let local = Local::temporary(&Settings::default(), StackOptions::default()).await.unwrap();
    forget_ids(&local.settings).await;
    let mut fleet = Fleet::start(&WorkerName::of(&local.settings), &local.settings);
    let stats = fleet.stats()[0].1.clone();
    let all: Vec<_> = fleet.stats().iter().map(|(_, stats)| stats.clone()).collect();
    let options =
        IngestOptions { source: Source::File(path.to_owned()), users: 100, wait: true, vectors: false };
    let file = read(path, 100);
    assert_eq!(file.dialogues, 263);
    assert!(file.turns > 4_500, "{}", file.turns);

    let work = async {
        let first = ingest(&local.settings, all.clone(), &options).await.unwrap();
        assert_eq!(first.missing(), Vec::<String>::new());
        let after_first = assert_as_in_file(&local.settings, &first, &file).await;

        let second = ingest(&local.settings, all.clone(), &options).await.unwrap();
        let published = &second.sent.published;
        assert_eq!((published.stored, published.duplicate), (first.sent.published.stored, 0));
        let after_second = assert_as_in_file(&local.settings, &second, &file).await;
        assert_eq!(after_second, after_first, "not a row and not an event more");
        let report = stats.report();
        assert!(report.repeated >= published.stored, "the inbox knew them all: {report:?}");

        let mut admin = store::connect(&local.settings.postgres.url).await.unwrap();
        let (mut events, mut contexts) = (0, 0);
        for user in 1..=100 {
            let user = contract::UserId::new(user).unwrap();
            let replayed = memfleet::replay::replay(&mut admin, user, i64::MAX).await.unwrap();
            assert_eq!(replayed.differences, [], "user {user}");
            events += replayed.events;
            contexts += replayed.contexts["simple_chat_context"];
        }
        assert_eq!(
            (events, contexts),
            (first.stored.unwrap().events, after_first.rows["simple_chat_context"])
        );
    };
    tokio::select! {
        done = tokio::time::timeout(Duration::from_secs(480), work) => done.unwrap(),
        ended = fleet.ended() => panic!("a worker ended: {ended:?}"),
    }
    fleet.stop().await.unwrap();
    local.stop().await.unwrap();
}
