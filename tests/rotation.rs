//! Keys are changed while writers write: nothing waits, nothing is lost, and what is interrupted goes on.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use context_writer::ContextWriter;
use diesel_async::SimpleAsyncConnection;
use serde_json::json;
use testkit::{CANARY, DEADLINE, Fixture, RequestMessage, eventually, request, session, user};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::program::{self, Ended, output};
use crate::support::{ROLE, encryption};

fn put(user_id: i32, key: &str, version: i64) -> RequestMessage {
    let value = format!("{CANARY}-{version}");
    let body = json!({ "session_id": "s", "context_key": key, "context_value": value, "version": version, "sensitive": true });
    request("context.put", user_id, body)
}

fn memfleet(fixture: &Fixture, arguments: &[&str]) -> Command {
    let mut command = program::memfleet(fixture, arguments);
    // A rotation of data keys waits for as long as a batch may take.
    command
        .env("MEMFLEET_POSTGRES__CONNECT_TIMEOUT_MS", "1000")
        .env("MEMFLEET_POSTGRES__STATEMENT_TIMEOUT_MS", "1000");
    command
}

/// Runs it to its end and gives what it printed.
async fn run(fixture: &Fixture, arguments: &[&str]) -> (bool, String) {
    let ended: Ended = output(memfleet(fixture, arguments)).await.into();
    (ended.is_success(), ended.all())
}

async fn fine(fixture: &Fixture, arguments: &[&str]) -> String {
    let (good, told) = run(fixture, arguments).await;
    assert!(good, "{arguments:?}: {told}");
    told
}

/// The values of a user's sensitive contexts.
async fn revealed(fixture: &Fixture, user_id: i32) -> Vec<String> {
    let fields = encryption::revealed(fixture, user_id, &["simple_chat_context"]).await;
    fields.into_iter().map(|(_, value)| value.expect("it opens")).collect()
}

async fn key_store(fixture: &Fixture, select: &str) -> Vec<String> {
    let mut store = store::connect(&fixture.settings.keys.url).await.expect("the key store");
    testkit::lines_on(&mut store, select).await
}

/// How many fields each version of data keys has encrypted: a ciphertext says so in its bytes 3 to 6.
async fn fields_by_version(fixture: &Fixture) -> Vec<String> {
    fixture
        .lines("version || ': ' || count(*) FROM (SELECT get_byte(ciphertext, 5) AS version FROM encrypted_fields) AS f GROUP BY version ORDER BY version")
        .await
}

/// Writers that go on until they are told to stop: a version of every key of every user, again and again.
struct Writing {
    stop: Arc<AtomicBool>,
    version: Arc<AtomicI64>,
    task: tokio::task::JoinHandle<()>,
}

const USERS: i32 = 8;
const KEYS: [&str; 4] = ["a", "b", "c", "d"];

impl Writing {
    fn start(fixture: &Arc<Fixture>) -> Self {
        let (stop, version) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(1)));
        let (stopped, current, fixture) = (Arc::clone(&stop), Arc::clone(&version), Arc::clone(fixture));
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::SeqCst) {
                let version = current.fetch_add(1, Ordering::SeqCst) + 1;
                let all = (1..=USERS).flat_map(|user| KEYS.map(|key| put(user, key, version)));
                fixture.publish(all).await;
            }
        });
        Self { stop, version, task }
    }

    /// Waits until so many further rounds have been published.
    async fn rounds(&self, count: i64) {
        let until = self.version.load(Ordering::SeqCst) + count;
        eventually("writers go on", async || (self.version.load(Ordering::SeqCst) >= until).then_some(()))
            .await;
    }

    /// The last version that was published.
    async fn stop(self) -> i64 {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.expect("writers did not panic");
        self.version.load(Ordering::SeqCst)
    }
}

async fn with_users() -> Arc<Fixture> {
    let mut fixture = Fixture::new().await;
    fixture.settings.keys.cache_s = 1;
    let users = (1..=USERS).flat_map(|id| [user(id), session(id, "s")]);
    let puts = (1..=USERS).flat_map(|id| KEYS.map(|key| put(id, key, 1)));
    fixture.process(ContextWriter, users.chain(puts)).await;
    Arc::new(fixture)
}

/// Everything that was published last is there and can be read.
async fn check(fixture: &Fixture, version: i64) {
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    for user_id in 1..=USERS {
        assert_eq!(revealed(fixture, user_id).await, vec![format!("\"{CANARY}-{version}\""); KEYS.len()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn key_encryption_keys_are_changed_while_writers_write() {
    let fixture = with_users().await;
    let workers = [fixture.run(ContextWriter), fixture.run(ContextWriter)];
    let writing = Writing::start(&fixture);
    let ring = fixture.settings.keys.ring_file.clone().expect("a ring");
    writing.rounds(2).await;
    let made = fine(&fixture, &["keys", "generate"]).await;
    assert!(made.contains("added key kek.2 to ") && made.contains("`memfleet keys rotate`"), "{made}");
    // A user that comes now has the new one at once.
    fixture.publish([user(100), session(100, "s"), put(100, "k", 1)]).await;
    eventually("the new key wraps", async || {
        let keks = key_store(&fixture, "kek FROM data_keys WHERE user_id = 100").await;
        (keks == ["ring:kek.2"]).then_some(())
    })
    .await;
    let rotated = fine(&fixture, &["keys", "rotate"]).await;
    assert!(rotated.contains("re-wrapped 8 data keys"), "{rotated}");
    assert!(fine(&fixture, &["keys", "rotate"]).await.contains("re-wrapped 0 data keys"));
    writing.rounds(2).await;
    // The old key can go: nobody needs it.
    let lines = std::fs::read_to_string(&ring).expect("the ring");
    let new = lines.lines().find(|line| line.starts_with("kek.2 ")).expect("the new key");
    std::fs::write(&ring, format!("{new}\n")).expect("the ring");
    writing.rounds(2).await;
    let version = writing.stop().await;
    fixture.drained::<ContextWriter>().await;
    for worker in workers {
        worker.stop().await.expect("a clean end");
    }
    check(&fixture, version).await;
    let listed = fine(&fixture, &["keys", "list", "--json"]).await;
    assert!(
        listed.contains(r#""data_keys":9"#)
            && listed.contains(r#""kek":"ring:kek.2""#)
            && listed.lines().count() == 1,
        "{listed}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn data_keys_are_changed_while_writers_write() {
    let fixture = with_users().await;
    let workers = [fixture.run(ContextWriter), fixture.run(ContextWriter)];
    let writing = Writing::start(&fixture);
    writing.rounds(2).await;
    let rotated = fine(&fixture, &["keys", "rotate", "--data"]).await;
    assert!(rotated.contains("created 8 new data keys"), "{rotated}");
    // Of rows that writers have not written since, none is left under the old key.
    let version = writing.stop().await;
    fixture.drained::<ContextWriter>().await;
    for worker in workers {
        worker.stop().await.expect("a clean end");
    }
    assert_eq!(fields_by_version(&fixture).await, ["2: 32"]);
    check(&fixture, version).await;
    // The old ones stay, for what is in backups.
    assert_eq!(
        key_store(&fixture, "version || ': ' || count(*) FROM data_keys GROUP BY version ORDER BY version")
            .await,
        ["1: 8", "2: 8"]
    );
    let one = fine(&fixture, &["keys", "rotate", "--data", "--user", "3"]).await;
    assert!(one.contains("created 1 new data keys") && one.contains("re-encrypted 4 fields\n"), "{one}");
    assert_eq!(fields_by_version(&fixture).await, ["2: 28", "3: 4"]);
    check(&fixture, version).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_that_was_killed_goes_on_where_it_was() {
    let fixture = with_users().await;
    let many: Vec<RequestMessage> =
        (1..=USERS).flat_map(|id| (0..200).map(move |at| put(id, &format!("k{at:03}"), 1))).collect();
    fixture.process(ContextWriter, many).await;
    let all = fixture.count("encrypted_fields").await;
    assert_eq!(all, i64::from(USERS) * 204);
    // It is stopped in the middle by a lock on the second half of the fields.
    let mut holder = fixture.connection().await;
    holder
        .batch_execute("BEGIN; SELECT FROM encrypted_fields WHERE user_id > 4 FOR UPDATE")
        .await
        .expect("a lock");
    let mut rotation = memfleet(&fixture, &["keys", "rotate", "--data"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program");
    let mut told = BufReader::new(rotation.stderr.take().expect("its errors")).lines();
    let hint = timeout(DEADLINE, told.next_line()).await.expect("in time").expect("a line").expect("a hint");
    let before = hint.rsplit_once("--before ").expect("how to go on").1.to_owned();
    eventually("the first half is done", async || {
        let done = fixture.count("encrypted_fields WHERE user_id <= 4 AND get_byte(ciphertext, 5) = 2").await;
        (done > 0).then_some(())
    })
    .await;
    rotation.kill().await.expect("it can be killed");
    holder.batch_execute("ROLLBACK").await.expect("no lock");
    let half = fields_by_version(&fixture).await;
    assert_eq!(half.len(), 2, "some are done and some are not: {half:?}");
    for user_id in [1, USERS] {
        assert_eq!(revealed(&fixture, user_id).await.len(), 204, "all can be read in between");
    }
    let rotated = fine(&fixture, &["keys", "rotate", "--data", "--before", &before]).await;
    assert!(rotated.contains("created 0 new data keys"), "{rotated}");
    assert_eq!(fields_by_version(&fixture).await, [format!("2: {all}")]);
    assert_eq!(revealed(&fixture, USERS).await, vec![format!("\"{CANARY}-1\""); 204]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_rotated_is_named_and_stays() {
    let fixture = with_users().await;
    fixture
        .execute("UPDATE encrypted_fields e SET ciphertext = o.ciphertext FROM encrypted_fields o WHERE e.user_id = 1 AND o.user_id = 2")
        .await;
    let (good, told) = run(&fixture, &["keys", "rotate", "--data"]).await;
    assert!(!good, "{told}");
    assert!(
        told.contains("4 could not be decrypted and are unchanged")
            && told.contains("of user 1: it cannot be decrypted"),
        "{told}"
    );
    let stayed = fixture.count("encrypted_fields WHERE get_byte(ciphertext, 5) = 1").await;
    assert_eq!(stayed, 4);

    // A role that sees no rows would find nothing to do.
    let restricted = ("MEMFLEET_POSTGRES__URL", fixture.settings.postgres.url_of(ROLE));
    let told = refused(&fixture, &restricted, &["keys", "rotate", "--data"]).await;
    assert!(told.contains("names a role that does not bypass row-level security"), "{told}");
    let restricted = ("MEMFLEET_KEYS__URL", fixture.settings.keys.url_of(ROLE));
    for arguments in [&["keys", "list"][..], &["keys", "rotate"], &["keys", "rotate", "--data"]] {
        let told = refused(&fixture, &restricted, arguments).await;
        assert!(told.contains(&format!("keys.url names the role {ROLE}, which does not bypass")), "{told}");
    }
    // A ring that has lost a key says which.
    let lost = fixture.key_file("lost.ring", &testkit::KEK_RING.replace("kek.1", "kek.9"));
    let told = refused(&fixture, &("MEMFLEET_KEYS__RING_FILE", lost), &["keys", "rotate"]).await;
    assert!(told.contains("16 could not be decrypted"), "{told}");
    assert!(
        told.contains("lacks the key-encryption key kek.1; copy its line from a replica or a backup"),
        "{told}"
    );
    // Nobody is given a key by a rotation.
    let told = refused(
        &fixture,
        &("MEMFLEET_LOG__FORMAT", "text".to_owned()),
        &["keys", "rotate", "--data", "--user", "9999"],
    )
    .await;
    assert!(told.contains("user 9999 has no data key"), "{told}");
    assert_eq!(key_store(&fixture, "count(*) FROM data_keys WHERE user_id = 9999").await, ["0"]);
}

/// What the program says that fails with one other variable.
async fn refused(fixture: &Fixture, variable: &(&str, String), arguments: &[&str]) -> String {
    let mut command = memfleet(fixture, arguments);
    command.env(variable.0, &variable.1);
    let ended: Ended = output(command).await.into();
    assert!(!ended.is_success(), "{arguments:?}: {}", ended.err);
    ended.err
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_generated_into_the_ring_they_belong_to() {
    let fixture = Fixture::new().await;
    let ring = fixture.settings.keys.ring_file.clone().expect("a ring");
    // A last line without an end, as an editor may leave it.
    std::fs::write(&ring, testkit::KEK_RING.trim_end()).expect("the ring");
    fine(&fixture, &["keys", "generate"]).await;
    let text = std::fs::read_to_string(&ring).expect("the ring");
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(
        text.starts_with(testkit::KEK_RING) && text.lines().nth(1).expect("a line").starts_with("kek.2 ")
    );

    let made = fine(&fixture, &["keys", "generate", "--name", "test"]).await;
    assert!(
        made.contains("added key test.2 to ") && made.contains("\nDistribute the file to every worker"),
        "{made}"
    );
    let payload = std::fs::read_to_string(fixture.settings.trust.payload_ring_file.clone().expect("a ring"));
    assert!(payload.expect("the ring").contains("\ntest.2 "));
    assert!(!std::fs::read_to_string(&ring).expect("the ring").contains("test"));

    let new = fixture.key_file("new.ring", "");
    std::fs::remove_file(&new).expect("no file");
    fine(&fixture, &["keys", "generate", &new]).await;
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&new).expect("a file").permissions());
    assert_eq!(mode & 0o777, 0o600);
    let (good, told) = run(&fixture, &["keys", "generate", "--name", "Not A Name"]).await;
    assert!(!good && told.contains("is not a valid key name"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_store_is_migrated_and_never_the_main_database() {
    let mut fixture = with_users_of_its_own().await;
    let up = fine(&fixture, &["keys", "migrate"]).await;
    assert_eq!(up, "nothing to do: the key store is up to date\n");
    // Its keys are not thrown away by going back a version; without keys it goes and comes.
    let store = async || store::connect(&fixture.settings.keys.url).await.expect("the key store");
    let all = keys::SCHEMA.status(store().await).await.expect("migrations").len();
    let refused = keys::SCHEMA.down(store().await, all).await.expect_err("there are keys");
    assert!(refused.to_string().contains("data_keys holds keys"), "{refused}");
    store().await.batch_execute("DELETE FROM data_keys").await.expect("no keys");
    keys::SCHEMA.up(store().await).await.expect("up again");
    assert_eq!(keys::SCHEMA.down(store().await, 1).await.expect("down").len(), 1);
    let up = fine(&fixture, &["keys", "migrate"]).await;
    assert!(up.starts_with("up  ") && up.lines().count() == 1, "{up}");
    let mut settings = fixture.settings.clone();
    settings.worker.startup_timeout_s = 1;
    assert_eq!(keys::SCHEMA.down(store().await, 1).await.expect("down").len(), 1);
    let waits = fixture.run_with(ContextWriter, settings).failure().await.expect_err("no key store");
    assert!(waits.to_string().contains("`memfleet keys migrate` applies it"), "{waits}");
    // Under another spelling, the configuration cannot see that it is the main database; the migration does.
    let main = fixture.settings.postgres.url.clone();
    fixture.settings.keys.url = format!("{main}?hostaddr=127.0.0.1");
    let (good, told) = run(&fixture, &["keys", "migrate"]).await;
    assert!(!good && told.contains("this is the main database"), "{told}");
}

async fn with_users_of_its_own() -> Fixture {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1), session(1, "s"), put(1, "a", 1)]).await;
    fixture
}
