//! How the program is configured, migrates, and runs workers until it is told to stop.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use context_writer::ContextWriter;
use serde_json::json;
use testkit::{DEADLINE, Fixture, eventually, request, token, user};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use trust::GrantKey;

use crate::support::program::{bare, memfleet, output, signal};

async fn fine(command: Command) -> String {
    let output = output(command).await;
    let error = String::from_utf8_lossy(&output.stderr);
    // The server of the tests has databases beside the test's own.
    let unexpected: Vec<&str> =
        error.lines().filter(|line| !line.starts_with("warning: every role may connect")).collect();
    assert_eq!((output.status.code(), unexpected), (Some(0), Vec::new()));
    String::from_utf8(output.stdout).expect("text")
}

/// Its last line on standard error, which says what happened.
async fn failure(command: Command) -> String {
    let output = output(command).await;
    let error = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(!error.contains("panicked"), "{error}");
    error.lines().last().expect("a message").to_owned()
}

fn has_all(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "expected {part:?} in: {message}");
    }
}

fn file(folder: &Path, text: &str) -> String {
    let path = folder.join("memfleet.toml");
    std::fs::write(&path, text).expect("a file");
    path.to_str().expect("a path").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_option_is_refused_by_name_and_source() {
    let folder = tempfile::tempdir().expect("a folder");
    for (text, named) in [
        ("[worker]\nbatchsize = 3", ["batchsize", "batch_size"].as_slice()),
        ("[workers]\nbatch_size = 3", &["workers", "worker"]),
        ("[worker]\nbatch_size = \"many\"", &["worker.batch_size", "many"]),
        ("[worker]\nbatch_size = -1", &["worker.batch_size"]),
        ("[log]\nformat = \"xml\"", &["log.format", "xml", "json"]),
        ("[worker\n", &["line 1"]),
        ("[postgres]\nurl = \"postgres://u:secret@h/d\n", &["line 2"]),
    ] {
        let path = file(folder.path(), text);
        let message = failure(bare(&["--config", &path, "status"])).await;
        assert!(!message.contains("secret"), "{message}");
        has_all(&message, named);
        has_all(&message, &[&path]);
    }
    let missing = folder.path().join("no.toml");
    let missing = missing.to_str().expect("a path");
    let message = failure(bare(&["status", "--config", missing])).await;
    assert_eq!(message, format!("memfleet: there is no configuration file {missing}"));

    for (variable, value, named) in [
        ("MEMFLEET_WORKER__BATCH_SIZE", "many", ["worker.batch_size", "environment"].as_slice()),
        ("MEMFLEET_WORKER__BATCHSIZE", "3", &["batchsize", "environment"]),
        ("MEMFLEET_WORKER__BATCH_SIZE", "0", &["worker.batch_size is 0; it must be from 1 to 1000"]),
        ("MEMFLEET_WORKER__BATCH_SIZE", "1001", &["worker.batch_size is 1001"]),
        ("MEMFLEET_POSTGRES__CONNECT_TIMEOUT_MS", "99", &["postgres.connect_timeout_ms", "100 to 60000"]),
        ("MEMFLEET_LOG__FILTER", "a=b=c", &["log.filter"]),
    ] {
        let mut command = bare(&["status"]);
        command.env(variable, value);
        has_all(&failure(command).await, named);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_wins_over_the_file() {
    let fixture = Fixture::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let (nats, postgres) = (&fixture.settings.nats.url, &fixture.settings.postgres.url);
    let path = file(folder.path(), &format!("nats.url = {nats:?}\npostgres.url = {postgres:?}\n"));
    fine(bare(&["status", "--config", &path])).await;
    let mut command = bare(&["status"]);
    command.env("MEMFLEET_CONFIG", &path);
    fine(command).await;

    let wrong =
        file(folder.path(), "nats.url = \"nats://127.0.0.1:1\"\npostgres.url = \"postgres://127.0.0.1:1/x\"");
    let message = failure(bare(&["status", "--config", &wrong])).await;
    has_all(&message, &["NATS and PostgreSQL unavailable"]);
    fine(memfleet(&fixture, &["status", "--config", &wrong])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_is_gone_is_no_failure() {
    for arguments in [["contract", "asyncapi"].as_slice(), &["contract", "list"], &["--help"]] {
        let mut child =
            bare(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program");
        drop(child.stdout.take());
        let output = timeout(DEADLINE, child.wait_with_output()).await.expect("in time").expect("its end");
        assert_eq!(
            (output.status.code(), output.stderr.as_slice()),
            (Some(0), b"".as_slice()),
            "{arguments:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_of_ones_own_is_not_overwritten() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = file(folder.path(), "# mine\n");
    let directory = folder.path().to_str().expect("a path");
    let message = failure(bare(&["dev", "--dir", directory])).await;
    has_all(&message, &[&path, "was not created by `memfleet dev`", "--dir"]);
    assert_eq!(std::fs::read_to_string(&path).expect("the file"), "# mine\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_grants_is_made_and_taken() {
    let fixture = Fixture::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("grant.key");
    let path = path.to_str().expect("a path");
    let key = fine(memfleet(&fixture, &["security", "key", "generate", "main"])).await;
    // As a shell's redirection leaves it.
    std::fs::write(path, &key).expect("a key file");
    std::fs::set_permissions(path, Permissions::from_mode(0o644)).expect("a mode");
    let message = failure(memfleet(&fixture, &["security", "key", "add", path])).await;
    has_all(
        &message,
        &["accessible to every user of this machine (mode 644)", &format!("chmod o-rwx {path}")],
    );
    std::fs::remove_file(path).expect("a key file");
    let generate = ["security", "key", "generate", "main", "--out", path];
    assert_eq!(fine(memfleet(&fixture, &generate)).await, "");
    assert_eq!(std::fs::metadata(path).expect("a key file").permissions().mode() & 0o777, 0o600);
    let key = std::fs::read_to_string(path).expect("a key file");
    for command in ["security", "token", "audit"] {
        let again = failure(memfleet(&fixture, &[command, "key", "generate", "main", "--out", path])).await;
        has_all(&again, &[path, "exists, and a key is never overwritten"]);
    }
    assert_eq!(std::fs::read_to_string(path).expect("a key file"), key);
    let said = fine(memfleet(&fixture, &["security", "key", "add", path])).await;
    assert_eq!(said, "registered grant key main; the database and the key store accept its grants\n");

    // A token with its grants lets a worker write.
    let token = token::with_grant_key(GrantKey::parse(&key).expect("a key"), "test", 1);
    fixture.process(ContextWriter, [user(1).with_token(&token)]).await;
    assert_eq!(fixture.count("users WHERE id = 1").await, 1);

    let message = failure(memfleet(&fixture, &["security", "key", "generate", "No Name"])).await;
    has_all(&message, &["with a name of 1 to 32 characters out of a-z 0-9 -"]);
    std::fs::write(path, "main secret").expect("a file");
    let message = failure(memfleet(&fixture, &["security", "key", "add", path])).await;
    has_all(&message, &["not a grant key: expected `<name> <64 to 128 hex digits>`"]);
    assert!(!message.contains("secret"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schema_is_listed_taken_back_and_brought_up() {
    let fixture = Fixture::new().await;
    let migrate =
        async |arguments: &[&str]| fine(memfleet(&fixture, &[&["migrate"], arguments].concat())).await;
    let listed = migrate(&["status"]).await;
    let names: Vec<&str> = listed.lines().map(|line| line.strip_prefix("up       ").expect("up")).collect();
    assert!(names.len() >= 4 && names.is_sorted(), "{listed}");
    let latest = *names.last().expect("a migration");

    assert_eq!(migrate(&["up"]).await, "nothing to do: the schema is up to date\n");
    let message = failure(memfleet(&fixture, &["migrate", "down"])).await;
    let consequence = "drops their tables and all data in them permanently; add --yes to confirm";
    has_all(&message, &[&format!("rolling back {latest} {consequence}")]);
    assert_eq!(migrate(&["status"]).await, listed, "nothing is dropped unasked");
    assert_eq!(migrate(&["down", "--yes"]).await.lines().count(), 1);
    let waits: Vec<String> = migrate(&["status"]).await.lines().map(str::to_owned).collect();
    assert_eq!(waits.iter().filter(|line| line.starts_with("pending  ")).count(), 1);
    assert_eq!(*waits.last().expect("a line"), format!("pending  {latest}"));
    let version = latest.split_once('_').expect("a version and a name").0.replace('-', "");
    let newest = format!("__diesel_schema_migrations WHERE version = '{version}'");
    assert_eq!(fixture.count(&newest).await, 0);
    let status = fine(memfleet(&fixture, &["status"])).await;
    let applied =
        format!("{} migrations applied, 1 pending; `memfleet migrate up` applies them: ", names.len() - 1);
    has_all(&status, &[&applied, latest]);

    assert_eq!(migrate(&["up"]).await, format!("up  {latest}\n"));
    assert_eq!(fixture.count(&newest).await, 1);
    assert_eq!(migrate(&["partitions"]).await, "created 0 partitions\n");
    assert_eq!(migrate(&["partitions", "--months", "4"]).await, "created 2 partitions\n");
    assert_eq!(migrate(&["status"]).await, listed);
    assert_eq!(migrate(&["down", "99", "--yes"]).await.lines().count(), names.len());
    assert_eq!(migrate(&["down"]).await, "nothing to do: no migration is applied\n");
    assert_eq!(migrate(&["up"]).await.lines().count(), names.len());

    let mut nowhere = memfleet(&fixture, &["migrate", "up"]);
    nowhere.env("MEMFLEET_POSTGRES__URL", fixture.settings.postgres.url.replace("/test_", "/nothing_"));
    let message = failure(nowhere).await;
    has_all(&message, &["cannot connect to the database to migrate at ", "(postgres.url; ", "nothing_"]);
}

fn run(fixture: &Fixture) -> Child {
    let mut command = memfleet(fixture, &["run", "context-writer"]);
    command
        .env("MEMFLEET_WORKER__BATCH_SIZE", "5")
        .env("MEMFLEET_WORKER__SHUTDOWN_GRACE_S", "20")
        .env("MEMFLEET_LOG__FILTER", "error");
    command.spawn().expect("the program")
}

/// Ends it as a process manager does.
async fn terminate(mut child: Child) -> Option<i32> {
    signal("TERM", child.id().expect("it runs"));
    timeout(DEADLINE, child.wait()).await.expect("it ends in time").expect("a status").code()
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_ends_a_run_in_order_and_the_next_one_finishes() {
    const CONTEXTS: i64 = 3_000;
    let fixture = Fixture::new().await;
    let context = |n: i64| {
        let body = json!({ "session_id": "s", "context_key": format!("k{n}"), "context_value": { "n": n }, "version": 1 });
        request("context.put", 1, body)
    };
    fixture.publish([request("user.put", 1, json!({ "username": "u", "email": "u@example.org" }))]).await;
    fixture.publish([request("session.open", 1, json!({ "session_id": "s", "chat_mode": "simple" }))]).await;
    fixture.publish((0..CONTEXTS).map(context)).await;

    let first = run(&fixture);
    eventually("it works", async || (fixture.count("inbox").await >= 50).then_some(())).await;
    let since = Instant::now();
    assert_eq!(terminate(first).await, Some(0));
    assert!(since.elapsed() < Duration::from_secs(20), "within the grace period: {:?}", since.elapsed());
    let done = fixture.count("inbox").await;
    assert!(done < CONTEXTS + 2, "it was stopped under load");
    assert_eq!(fixture.count("blackboard_events").await, done, "what was begun was finished");
    assert_eq!(fixture.stored("EVENTS").await, u64::try_from(done).expect("a count"), "and told of");

    let second = run(&fixture);
    fixture.drained::<ContextWriter>().await;
    assert_eq!(terminate(second).await, Some(0));
    for table in ["inbox", "blackboard_events"] {
        assert_eq!(fixture.count(table).await, CONTEXTS + 2, "{table}");
    }
    assert_eq!(fixture.count("simple_chat_context").await, CONTEXTS);
    assert_eq!(fixture.stored("EVENTS").await, u64::try_from(CONTEXTS + 2).expect("a count"));
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_cannot_work_says_what_it_lacks() {
    let fixture = Fixture::new().await;
    let unknown = output(memfleet(&fixture, &["run", "context-reader"])).await;
    assert_eq!(unknown.status.code(), Some(2));
    has_all(&String::from_utf8_lossy(&unknown.stderr), &["'context-reader'", "context-writer", "--help"]);

    let run = || {
        let mut command = memfleet(&fixture, &["run", "context-writer"]);
        command.env("MEMFLEET_WORKER__STARTUP_TIMEOUT_S", "1").env("MEMFLEET_LOG__FILTER", "error");
        command
    };
    fine(memfleet(&fixture, &["migrate", "down", "99", "--yes"])).await;
    let message = failure(run()).await;
    has_all(&message, &["context-writer cannot start: not ready after 1 s: ", "`memfleet migrate up`"]);
    fine(memfleet(&fixture, &["migrate", "up"])).await;

    fixture.jetstream.delete_stream("CONTEXT").await.expect("a deletion");
    let message = failure(run()).await;
    has_all(&message, &["context-writer cannot start: not ready after 1 s: ", "`memfleet nats apply`"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_may_be_in_a_file_of_its_role() {
    let fixture = Fixture::new().await;
    let role = format!("test_{}", uuid::Uuid::now_v7().simple());
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join(&role);
    let (_, place) = fixture.settings.postgres.url.rsplit_once('@').expect("a URL with a user");
    let place = place.rsplit_once('/').expect("a database").0;
    let mut settings = fixture.settings.postgres.clone();
    settings.worker_url = Some(format!(
        "postgres://{{role}}@{place}/postgres?password_file={}/{{role}}",
        folder.path().display()
    ));
    let url = settings.url_of(&role);
    fixture.execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'first'")).await;
    fixture.execute(&format!("GRANT CONNECT ON DATABASE postgres TO {role}")).await;
    let refused = store::connect(&url).await.map(drop).expect_err("no file").to_string();
    has_all(&refused, &[&role, "cannot be read: No such file"]);
    std::fs::write(&file, "first\n").expect("a file");
    std::fs::set_permissions(&file, Permissions::from_mode(0o644)).expect("a mode");
    let refused = store::connect(&url).await.map(drop).expect_err("an open file").to_string();
    has_all(&refused, &[&role, "accessible to every user of this machine (mode 644)"]);
    std::fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("a mode");
    store::connect(&url).await.expect("a login");

    // A pool takes a new password without a restart.
    let options = store::PoolOptions {
        name: "test",
        size: 2,
        acquire_timeout: DEADLINE,
        statement_timeout: Duration::ZERO,
        lock_timeout: Duration::ZERO,
    };
    let pool = store::open_pool(&url, &options).expect("a pool");
    let first = store::acquire(&pool).await.expect("a connection");
    fixture.execute(&format!("ALTER ROLE {role} PASSWORD 'second'")).await;
    assert!(store::acquire(&pool).await.is_err(), "the old password");
    std::fs::write(&file, "second").expect("a file");
    let second = store::acquire(&pool).await.expect("a connection");
    drop((first, second, pool));
    fixture
        .execute(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"))
        .await;
    fixture.execute(&format!("REVOKE CONNECT ON DATABASE postgres FROM {role}")).await;
    fixture.execute(&format!("DROP ROLE {role}")).await;
}
