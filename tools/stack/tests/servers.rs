//! The servers, run for real.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use rustix::process::{Pid, Signal, kill_process};
use stack::{
    Nats, NatsOptions, Places, Postgres, PostgresOptions, Programs, Stack, StackError, StackOptions,
};
use tempfile::TempDir;

const WITHIN: Duration = Duration::from_secs(30);

/// Fast to start, and small: several run at once here.
fn options() -> StackOptions {
    StackOptions { postgres: quick(), ..StackOptions::default() }
}

fn quick() -> PostgresOptions {
    let settings = vec![("shared_buffers".to_owned(), "16MB".to_owned())];
    PostgresOptions { fsync: false, settings, max_connections: 20 }
}

fn programs() -> Programs {
    Programs::find().unwrap()
}

/// A folder that PostgreSQL can reach under root too.
fn folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("memfleet-test-").tempdir_in("/tmp").unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
    folder
}

async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn setting(postgres: &Postgres, name: &str) -> String {
    let client = connect(&postgres.url("memfleet")).await;
    client.query_one(&format!("SHOW {name}"), &[]).await.unwrap().get(0)
}

/// A zombie has ended, once it has no threads left but the one that shows as the zombie.
fn runs(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let zombie = field("State:").is_none_or(|state| state.starts_with('Z') || state.starts_with('X'));
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    !zombie || threads > 1
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + WITHIN;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {WITHIN:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn join(nats: &Nats) -> async_nats::Client {
    let (user, password) = (nats.user().to_owned(), nats.password().to_owned());
    async_nats::ConnectOptions::with_user_and_password(user, password).connect(nats.url()).await.unwrap()
}

async fn publish(nats: &Nats) {
    let context = jetstream::new(join(nats).await);
    let stream = jetstream::stream::Config { name: "KEPT".to_owned(), ..Default::default() };
    context.get_or_create_stream(stream).await.unwrap();
    context.publish("KEPT", "a message".into()).await.unwrap().await.unwrap();
}

async fn stored(nats: &Nats) -> u64 {
    jetstream::new(join(nats).await).get_stream("KEPT").await.unwrap().cached_info().state.messages
}

#[tokio::test]
async fn a_temporary_stack_answers_and_leaves_nothing_behind() {
    let stack = Stack::temporary_with(&programs(), options()).await.unwrap();
    let client = connect(&stack.postgres.url("memfleet")).await;
    let row = client.query_one("SELECT current_user::text, current_database()::text", &[]).await.unwrap();
    assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(1)), ("memfleet", "memfleet"));
    publish(&stack.nats).await;
    assert_eq!(stored(&stack.nats).await, 1);

    let data: String = client.query_one("SHOW data_directory", &[]).await.unwrap().get(0);
    let pids = [stack.nats.pid(), stack.postgres.pid()];
    assert!(pids.into_iter().all(runs));
    stack.stop().await.unwrap();
    assert!(!pids.into_iter().any(runs));
    assert!(!Path::new(&data).exists(), "{data} was left");
}

#[tokio::test]
async fn a_drop_ends_the_servers_and_removes_the_folder() {
    let stack = Stack::temporary_with(&programs(), options()).await.unwrap();
    let data = setting(&stack.postgres, "data_directory").await;
    let pids = [stack.nats.pid(), stack.postgres.pid()];
    drop(stack);
    assert!(!pids.into_iter().any(runs));
    assert!(!Path::new(&data).exists(), "{data} was left");
}

#[tokio::test]
async fn stopping_and_starting_again_keeps_the_data() {
    let dir = folder();
    let dir = dir.path().join("not/there/yet");
    let stack = Stack::start_with(&programs(), &dir, options()).await.unwrap();
    let client = connect(&stack.postgres.url("memfleet")).await;
    client.batch_execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)").await.unwrap();
    publish(&stack.nats).await;
    stack.stop().await.unwrap();

    let stack = Stack::start_with(&programs(), &dir, options()).await.unwrap();
    let client = connect(&stack.postgres.url("memfleet")).await;
    assert_eq!(client.query_one("SELECT n FROM kept", &[]).await.unwrap().get::<_, i32>(0), 7);
    assert_eq!(stored(&stack.nats).await, 1);
    stack.stop().await.unwrap();
}

#[tokio::test]
async fn a_killed_server_resumes_on_its_port_with_what_it_acknowledged() {
    let mut stack = Stack::temporary_with(&programs(), options()).await.unwrap();
    let (nats_url, postgres_url) = (stack.nats.url().to_owned(), stack.postgres.url("memfleet"));
    let client = connect(&postgres_url).await;
    client.batch_execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)").await.unwrap();
    publish(&stack.nats).await;
    let pids = [stack.nats.pid(), stack.postgres.pid()];

    stack.nats.kill().await;
    stack.postgres.kill().await;
    assert!(!pids.into_iter().any(runs));
    assert!(client.query("SELECT 1", &[]).await.is_err());
    stack.nats.resume().await.unwrap();
    stack.postgres.resume().await.unwrap();
    // A second resume has nothing to do.
    stack.postgres.resume().await.unwrap();

    assert_eq!((stack.nats.url(), stack.postgres.url("memfleet")), (nats_url.as_str(), postgres_url.clone()));
    assert_ne!([stack.nats.pid(), stack.postgres.pid()], pids);
    let client = connect(&postgres_url).await;
    assert_eq!(client.query_one("SELECT n FROM kept", &[]).await.unwrap().get::<_, i32>(0), 7);
    assert_eq!(stored(&stack.nats).await, 1);
    stack.stop().await.unwrap();
}

#[tokio::test]
async fn stopping_a_killed_server_is_fine_but_a_server_that_died_by_itself_is_told() {
    let mut stack = Stack::temporary_with(&programs(), options()).await.unwrap();
    stack.nats.kill().await;
    let postgres = stack.postgres.pid();
    let pid = Pid::from_raw(i32::try_from(postgres).unwrap()).unwrap();
    kill_process(pid, Signal::QUIT).unwrap();
    until("PostgreSQL ended", || !runs(postgres)).await;
    let error = stack.stop().await.unwrap_err().to_string();
    assert!(error.starts_with("PostgreSQL ended by itself (exit status: "), "{error}");
    assert!(error.contains("received immediate shutdown request"), "{error}");
}

#[tokio::test]
async fn two_stacks_run_side_by_side() {
    let programs = programs();
    let (one, other) = tokio::join!(
        Stack::temporary_with(&programs, options()),
        Stack::temporary_with(&programs, options())
    );
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_ne!(setting(&one.postgres, "port").await, setting(&other.postgres, "port").await);
    assert_ne!(one.nats.url().rsplit_once(':').unwrap().1, other.nats.url().rsplit_once(':').unwrap().1);
    assert_ne!(
        one.postgres.url("memfleet").rsplit_once('@'),
        other.postgres.url("memfleet").rsplit_once('@')
    );
    let (one, other) = tokio::join!(one.stop(), other.stop());
    one.and(other).unwrap();
}

#[tokio::test]
async fn a_folder_serves_one_server_at_a_time() {
    let dir = folder();
    let programs = programs();
    let first = Nats::start(&programs, dir.path(), NatsOptions::default()).await.unwrap();
    let error = Nats::start(&programs, dir.path(), NatsOptions::default()).await.unwrap_err();
    let expected = format!("{} is in use by pid {}.", dir.path().display(), std::process::id());
    assert!(error.to_string().starts_with(&expected), "{error}");
    // The first still serves.
    join(&first).await;
    first.stop().await.unwrap();
    Nats::start(&programs, dir.path(), NatsOptions::default()).await.unwrap().stop().await.unwrap();
}

#[tokio::test]
async fn strangers_are_not_let_in() {
    let stack = Stack::temporary_with(&programs(), options()).await.unwrap();
    let expected = format!("nats://{}:{}@127.0.0.1:", stack.nats.user(), stack.nats.password());
    assert!(stack.nats.url().starts_with(&expected), "{}", stack.nats.url());
    let (_, address) = stack.nats.url().split_once('@').unwrap();
    assert!(async_nats::connect(address).await.is_err());
    let wrong = stack.postgres.url("memfleet").replace("memfleet:", "memfleet:x");
    let error = tokio_postgres::connect(&wrong, tokio_postgres::NoTls).await.err().expect("must be refused");
    assert_eq!(error.code().map(tokio_postgres::error::SqlState::code), Some("28P01"), "{error}");
    stack.stop().await.unwrap();
}

#[tokio::test]
async fn options_reach_the_servers() {
    let nats = NatsOptions {
        max_payload_bytes: 1234,
        sync_always: true,
        server_name: "other-name".to_owned(),
        ..NatsOptions::default()
    };
    let mut postgres = PostgresOptions { fsync: true, max_connections: 33, ..quick() };
    postgres.settings.push(("application_name".to_owned(), "it's = here".to_owned()));
    let stack =
        Stack::temporary_with(&programs(), StackOptions { nats, postgres, vectors: false }).await.unwrap();
    let info = join(&stack.nats).await.server_info();
    assert_eq!((info.max_payload, info.server_name.as_str()), (1234, "other-name"));
    for (name, value) in
        [("fsync", "on"), ("max_connections", "33"), ("application_name", "it's = here"), ("jit", "off")]
    {
        assert_eq!(setting(&stack.postgres, name).await, value, "{name}");
    }
    publish(&stack.nats).await;
    stack.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_that_does_not_start_shows_its_log() {
    let dir = folder();
    let mut options = quick();
    options.settings.push(("shared_buffers".to_owned(), "much".to_owned()));
    let error = Postgres::start(&programs(), dir.path(), options).await.unwrap_err();
    assert!(matches!(error, StackError::Ended { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("invalid value for parameter \"shared_buffers\": \"much\""), "{text}");

    // The failed start holds nothing back.
    Postgres::start(&programs(), dir.path(), quick()).await.unwrap().stop().await.unwrap();
}

#[tokio::test]
async fn an_interrupted_filling_is_done_again() {
    let dir = folder();
    fs::create_dir(dir.path().join("data.new")).unwrap();
    fs::write(dir.path().join("data.new/PG_VERSION"), "18\n").unwrap();
    let postgres = Postgres::start(&programs(), dir.path(), quick()).await.unwrap();
    assert!(!dir.path().join("data.new").exists());
    assert!(!dir.path().join("secret").exists(), "the password file of initdb was left");
    postgres.stop().await.unwrap();
}

#[tokio::test]
async fn data_of_another_version_are_refused_with_a_remedy() {
    let dir = folder();
    fs::create_dir(dir.path().join("data")).unwrap();
    fs::write(dir.path().join("data/PG_VERSION"), "13\n").unwrap();
    let error = Postgres::start(&programs(), dir.path(), quick()).await.unwrap_err().to_string();
    assert!(error.contains("were created by PostgreSQL 13, but the programs are version"), "{error}");
}

#[tokio::test]
async fn servers_outlive_the_thread_that_started_them() {
    let dir = folder();
    let path: PathBuf = dir.path().to_path_buf();
    let start = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(Stack::start_with(&programs(), &path, options())).unwrap()
    };
    let stack = std::thread::spawn(start).join().unwrap();
    connect(&stack.postgres.url("memfleet")).await;
    join(&stack.nats).await;
    stack.stop().await.unwrap();
}

/// Not a test of its own: the program that the next tests run and kill.
#[tokio::test]
#[ignore = "run by the tests that kill it"]
async fn run_until_killed() {
    let dir = PathBuf::from(std::env::var_os("STACK_TEST_DIR").expect("set by the test that runs this"));
    let stack = Stack::start_with(&programs(), &dir, options()).await.unwrap();
    fs::write(dir.join("pids.new"), format!("{} {}", stack.nats.pid(), stack.postgres.pid())).unwrap();
    fs::rename(dir.join("pids.new"), dir.join("pids")).unwrap();
    std::future::pending::<()>().await;
}

/// Runs a stack in another process, sees that its folder is taken, kills that process, and says what servers it had.
async fn leave_servers_behind(dir: &Path) -> Vec<u32> {
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "run_until_killed"])
        .env("STACK_TEST_DIR", dir)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("the other process has started", || {
        assert!(owner.try_wait().unwrap().is_none(), "the other process ended");
        dir.join("pids").exists()
    })
    .await;
    let pids = fs::read_to_string(dir.join("pids")).unwrap();
    let pids: Vec<u32> = pids.split(' ').map(|pid| pid.parse().unwrap()).collect();
    assert!(pids.iter().all(|pid| runs(*pid)));

    let error = Stack::start_with(&programs(), dir, options()).await.unwrap_err().to_string();
    assert!(error.contains(&format!(" is in use by pid {}.", owner.id())), "{error}");
    owner.kill().unwrap();
    owner.wait().unwrap();
    pids
}

#[tokio::test]
async fn servers_die_with_the_process_that_started_them() {
    if !Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", "true"])
        .status()
        .is_ok_and(|ran| ran.success())
    {
        // Then nothing can tell them, and the next test is what holds.
        return;
    }
    let dir = folder();
    let pids = leave_servers_behind(dir.path()).await;
    until("the servers end", || !pids.iter().any(|pid| runs(*pid))).await;
}

#[tokio::test]
async fn a_start_ends_what_a_killed_process_left_behind() {
    let dir = folder();
    let pids = leave_servers_behind(dir.path()).await;
    let stack = Stack::start_with(&programs(), dir.path(), options()).await.unwrap();
    assert!(!pids.iter().any(|pid| runs(*pid)));
    stack.stop().await.unwrap();
}

#[tokio::test]
async fn data_out_of_reach_of_an_unprivileged_user_lie_outside_and_are_noted() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = folder();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let inside = dir.path().join("postgres");
    let postgres = Postgres::start(&programs(), &inside, quick()).await.unwrap();
    let data = PathBuf::from(setting(&postgres, "data_directory").await);
    let outside = data.parent().unwrap();
    assert!(outside.starts_with("/var/tmp"), "{}", outside.display());
    let client = connect(&postgres.url("memfleet")).await;
    client.batch_execute("CREATE TABLE kept (n int)").await.unwrap();
    postgres.stop().await.unwrap();

    let list = Places::of_this_process().home().join("outside");
    let noted = fs::read_to_string(&list).unwrap();
    assert_eq!(noted.lines().filter(|line| Path::new(line) == outside).count(), 1, "{noted}");
    let postgres = Postgres::start(&programs(), &inside, quick()).await.unwrap();
    let client = connect(&postgres.url("memfleet")).await;
    client.batch_execute("SELECT n FROM kept").await.unwrap();
    postgres.stop().await.unwrap();
    fs::remove_dir_all(outside).unwrap();
    let others = noted.lines().filter(|line| Path::new(line) != outside).map(|line| format!("{line}\n"));
    fs::write(&list, others.collect::<String>()).unwrap();
}

#[tokio::test]
async fn under_root_postgresql_runs_as_the_owner_of_its_data() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = folder();
    let owner = |pid: u32| fs::metadata(format!("/proc/{pid}")).unwrap().uid();
    let postgres = Postgres::start(&programs(), dir.path(), quick()).await.unwrap();
    assert_ne!(owner(postgres.pid()), 0);
    postgres.stop().await.unwrap();

    let data = dir.path().join("data");
    assert!(Command::new("chown").args(["-R", "54321:54321"]).arg(&data).status().unwrap().success());
    let postgres = Postgres::start(&programs(), dir.path(), quick()).await.unwrap();
    assert_eq!(owner(postgres.pid()), 54321);
    postgres.stop().await.unwrap();
}
