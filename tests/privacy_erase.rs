//! The erasure of a person: nothing is left in any store, nothing of others is changed, and the receipt says what was there.

use std::path::PathBuf;
use std::time::Duration;

use context_writer::ContextWriter;
use serde_json::json;
use testkit::{RequestMessage, request, session, user};
use uuid::Uuid;

use crate::support::archives::{files, succeeds, with_target};
use crate::support::erasure::{
    archived, audit_verifies, counted, erase, files_with, messages_of, messages_with, receipt, rows_of,
    rows_of_others, rows_with, with_receipts,
};
use crate::support::memories::{Memories, index, memory};
use crate::support::privacy::fill;
use crate::support::retention::without_schedule;
use crate::support::search::broker_folder;

/// The person who is erased. The id is part of no other id and of no count.
const PERSON: i32 = 77_003;
/// Nine others. Ids that begin or end like the person's are among them.
const OTHERS: [i32; 9] = [1, 2, 3, 77, 7_700, 770_030, 177_003, 77_004, 5_003];

/// What every text of a user has, and of nobody else.
fn canary(user: i32) -> String {
    format!("canary-of-{user}-")
}

fn memory_of(user: i32, number: u64) -> RequestMessage {
    index(user, vec![memory(Uuid::now_v7(), &format!("{} {number}", canary(user)), number)])
}

/// A broker, a database, archives and a vector store with the person and nine others in all of them.
struct Filled {
    memories: Memories,
    receipts: tempfile::TempDir,
    archives: tempfile::TempDir,
}

fn everybody() -> impl Iterator<Item = i32> {
    OTHERS.into_iter().chain([PERSON])
}

impl Filled {
    async fn new() -> Self {
        let mut memories = Memories::with(|_| {}).await;
        let receipts = with_receipts(&mut memories.fixture);
        let archives = with_target(&mut memories.fixture);
        without_schedule(&memories.fixture).await;
        let accounts = everybody().flat_map(|id| [user(id), session(id, "s")]);
        memories.fixture.process(ContextWriter, accounts.collect::<Vec<_>>()).await;
        memories
            .process(everybody().flat_map(|id| [memory_of(id, 1), memory_of(id, 2)]).collect::<Vec<_>>())
            .await;
        archived(&memories.fixture, everybody()).await;
        for id in everybody() {
            fill(&memories.fixture, id, &canary(id)).await;
        }
        // Dead letters: of a body that is refused, and of one that cannot be read.
        let bad = everybody().flat_map(|id| {
            let wrong = json!({ "session_id": "s", "mistake": canary(id) });
            let unreadable = request("context.put", id, json!({})).map_body(|_| format!("{{{}", canary(id)));
            [request("context.put", id, wrong), unreadable]
        });
        memories.fixture.process(ContextWriter, bad.collect::<Vec<_>>()).await;
        Self { memories, receipts, archives }
    }

    /// What the stores have of others, in an order of its own.
    async fn of_others(&self) -> Vec<String> {
        let fixture = &self.memories.fixture;
        let mut all: Vec<String> =
            rows_of_others(fixture, PERSON).await.into_iter().map(|table| format!("{table:?}")).collect();
        for id in OTHERS {
            all.push(format!("messages of {id}: {:?}", messages_of(fixture, id).await));
            let lines = succeeds(fixture, &["query", "--user", &id.to_string(), "--json"]).await;
            let mut archived: Vec<String> = lines
                .lines()
                .map(|line| {
                    let row: serde_json::Value = serde_json::from_str(line).expect("JSON");
                    format!("{} {}", row["table"], row["row"])
                })
                .collect();
            archived.sort();
            all.push(format!("archived of {id}: {archived:?}"));
        }
        all
    }

    /// The points of the collection with their vectors, without those of the person's pseudonym.
    async fn points(&self) -> Vec<Uuid> {
        let collection = &self.memories.collection.collection_name;
        let mut points: Vec<Uuid> = self
            .memories
            .vectors()
            .scroll(collection, None, 10_000)
            .await
            .expect("points")
            .0
            .into_iter()
            .map(|point| point.id)
            .collect();
        points.sort();
        points
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_one_person_is_left_and_nine_others_are_as_they_were() {
    let filled = Filled::new().await;
    let fixture = &filled.memories.fixture;
    let before = filled.of_others().await;
    let points = filled.points().await;
    let rows_before = rows_of(fixture, PERSON).await;
    assert!(rows_before.len() >= 25, "the person has rows in most tables: {rows_before:?}");
    let letters = messages_with(fixture, &canary(PERSON)).await;
    assert!(letters.iter().any(|message| message.starts_with("DEAD")), "{letters:?}");
    assert!(!files_with(&broker_folder(fixture.nats.pid()), &canary(PERSON)).is_empty(), "the test can fail");
    assert_ne!(rows_with(fixture, &canary(PERSON)).await, Vec::<String>::new());

    let file = erase(fixture, filled.receipts.path(), PERSON).await;

    assert_eq!(rows_with(fixture, &canary(PERSON)).await, Vec::<String>::new());
    assert!(rows_of(fixture, PERSON).await.is_empty(), "{:?}", rows_of(fixture, PERSON).await);
    assert_eq!(messages_with(fixture, &canary(PERSON)).await, Vec::<String>::new());
    assert_eq!(messages_of(fixture, PERSON).await, Vec::<String>::new());
    assert_eq!(files_with(&broker_folder(fixture.nats.pid()), &canary(PERSON)), Vec::<PathBuf>::new());
    let archived = succeeds(fixture, &["query", "--user", &PERSON.to_string(), "--json"]).await;
    assert_eq!(archived, "");
    assert_eq!(fixture.count(&format!("archives WHERE {PERSON} = ANY (user_ids)")).await, 0);
    succeeds(fixture, &["verify"]).await;
    assert_eq!(succeeds(fixture, &["list", "--orphans"]).await, "no files without an archive\n");
    assert!(!files(filled.archives.path()).is_empty(), "archives of others are there");
    assert_eq!(filled.of_others().await, before, "nothing of others is changed");
    let left = filled.points().await;
    assert_eq!(left.len(), 2 * OTHERS.len(), "{left:?}");
    assert_eq!(points.len(), left.len() + 2);
    assert!(left.iter().all(|point| points.contains(point)));
    audit_verifies(fixture).await;

    let signed = receipt(&file);
    let mut counted = counted(&signed);
    counted.retain(|table, _| rows_before.contains_key(table));
    // The request of the erasure itself came after the test had counted.
    let mut expected = rows_before;
    counted.remove("privacy_requests");
    expected.remove("privacy_requests");
    assert_eq!(counted, expected);
    let words = signed.to_string();
    let mut words = words.split(|c: char| !c.is_ascii_alphanumeric());
    assert!(words.all(|word| word != PERSON.to_string()), "the receipt names nobody: {signed}");
    assert_eq!(fixture.count("sec.erased_users").await, 1);
    assert_eq!(fixture.count("sec.fenced_users").await, 0);
}

/// While the person is erased, publishers send and workers write for the person and for others.
#[tokio::test(flavor = "multi_thread")]
async fn messages_that_come_meanwhile_bring_nothing_back_and_others_wait_for_nobody() {
    let mut memories = Memories::new().await.with_users(&[1, 2, PERSON]).await;
    let receipts = with_receipts(&mut memories.fixture);
    let fixture = &memories.fixture;
    let worker = fixture.run(ContextWriter);
    let erased = erase(fixture, receipts.path(), PERSON);
    let publish = async {
        let mut number = 0_u32;
        loop {
            number += 1;
            let body = |user: i32| json!({ "session_id": "s", "context_key": format!("k{number}"), "context_value": canary(user), "version": 1 });
            fixture.publish([1, 2, PERSON].map(|user| request("context.put", user, body(user)))).await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let file = tokio::select! {
        file = erased => file,
        () = publish => unreachable!("it goes on"),
    };
    // A publisher that knows of nothing.
    fixture.publish([user(PERSON), session(PERSON, "s")]).await;
    fixture.drained::<ContextWriter>().await;
    worker.stop().await.expect("a clean end");
    assert!(rows_of(fixture, PERSON).await.is_empty(), "{:?}", rows_of(fixture, PERSON).await);
    assert_eq!(rows_with(fixture, &canary(PERSON)).await, Vec::<String>::new());
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert!(receipt(&file)["signature"].is_string());
    for other in [1, 2] {
        let published = messages_of(fixture, other).await;
        let contexts = published.iter().filter(|subject| subject.contains(".context.put.")).count();
        let stored = fixture.count(&format!("simple_chat_context WHERE user_id = {other}")).await;
        assert_eq!(stored, i64::try_from(contexts).expect("a small number"), "of user {other}");
    }
    audit_verifies(fixture).await;
}

/// The person has nothing but an account.
#[tokio::test(flavor = "multi_thread")]
async fn a_person_with_nothing_is_erased_too_and_the_id_is_gone_for_ever() {
    let mut memories = Memories::new().await;
    let receipts = with_receipts(&mut memories.fixture);
    let fixture = &memories.fixture;
    fixture
        .execute(&format!(
            "INSERT INTO users (id, username, email) VALUES ({PERSON}, 'u', 'e'), (1, 'v', 'f')"
        ))
        .await;
    erase(fixture, receipts.path(), PERSON).await;
    assert_eq!(fixture.count("users WHERE id > 0").await, 1);
    let mut superuser = fixture.connection().await;
    let again = format!("INSERT INTO users (id, username, email) VALUES ({PERSON}, 'u', 'e')");
    let refused = testkit::attack::attempt(&mut superuser, &again).await.expect_err("a refusal");
    assert!(refused.contains("the user is erased"), "{refused}");
}
