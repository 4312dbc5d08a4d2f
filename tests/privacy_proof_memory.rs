//! What a worker has in its memory of a person who was erased.

use std::cell::Cell;

use context_writer::ContextWriter;
use contract::UserId;
use secrecy::SecretString;
use serde_json::json;
use testkit::{DEADLINE, Fixture, KEK_RING, RequestMessage, eventually, lines_on, request, session, user};
use tokio::process::Child;
use tokio::time::timeout;
use trust::{AssociatedData, KeyRing};

use crate::support::erasure::{erase, with_receipts};
use crate::support::program::{signal, start_worker};
use crate::support::search::{bytes, memory_has};

const PERSON: i32 = 77_003;
/// The first of the others, of whom there are as many as it takes.
const OTHER: i32 = 100_000;

/// A person with a session, and a place for receipts.
async fn one_person(mut fixture: Fixture) -> (Fixture, tempfile::TempDir) {
    let receipts = with_receipts(&mut fixture);
    fixture.process(ContextWriter, [user(PERSON), session(PERSON, "s")]).await;
    (fixture, receipts)
}

/// What every text of a user has, and of nobody else.
fn canary(user: i32) -> String {
    format!("canary-of-{user}-")
}

fn context(user: i32, number: i64, is_sensitive: bool) -> RequestMessage {
    let body = json!({ "session_id": "s", "context_key": format!("k{number}"), "context_value": canary(user).repeat(100),
        "version": number, "sensitive": is_sensitive });
    request("context.put", user, body)
}

fn worker(fixture: &Fixture) -> (Child, u32) {
    let worker = start_worker(fixture, "context-writer", None, &[]);
    let pid = worker.id().expect("it runs");
    (worker, pid)
}

/// Has the worker write values of a user until its memory has these bytes.
async fn assert_comes_into(pid: u32, fixture: &Fixture, user: i32, wanted: &[u8], is_sensitive: bool) {
    let number = Cell::new(0);
    eventually("the memory has it", async || {
        number.set(number.get() + 1);
        fixture.publish([context(user, number.get(), is_sensitive)]).await;
        fixture.drained::<ContextWriter>().await;
        memory_has(pid, wanted).then_some(())
    })
    .await;
}

/// The bytes of the data key of the person, which the key store has under the key of keys of the tests.
async fn data_key(fixture: &Fixture) -> Vec<u8> {
    let mut key_store = store::connect(&fixture.settings.keys.url).await.expect("the key store");
    let select = format!("encode(wrapped, 'hex') FROM data_keys WHERE user_id = {PERSON} AND version = 1");
    let digits = lines_on(&mut key_store, &select).await.remove(0);
    let wrapped = bytes(&digits);
    let ring = KeyRing::parse(&SecretString::from(KEK_RING)).expect("a ring");
    let aad = AssociatedData::DataKey { user: UserId::new(PERSON).expect("an id"), version: 1 };
    ring.get("kek", 1).expect("a key").open(&wrapped, aad).expect("the data key").to_vec()
}

/// The worker goes on, and asks the key store for keys of others: then it wipes those that it had longer than `keys.cache_s`.
#[tokio::test(flavor = "multi_thread")]
async fn the_data_key_of_an_erased_person_goes_from_the_memory_of_a_worker() {
    let mut fixture = Fixture::new().await;
    fixture.settings.keys.cache_s = 1;
    let (fixture, receipts) = one_person(fixture).await;
    fixture.process(ContextWriter, [context(PERSON, 1, true)]).await;
    let key = data_key(&fixture).await;
    let (_worker, pid) = worker(&fixture);
    assert_comes_into(pid, &fixture, PERSON, &key, true).await;
    erase(&fixture, receipts.path(), PERSON).await;
    let others = Cell::new(OTHER);
    eventually("the memory has the key no more", async || {
        let other = others.get() + 1;
        others.set(other);
        fixture.publish([user(other), session(other, "s"), context(other, 1, true)]).await;
        fixture.drained::<ContextWriter>().await;
        (!memory_has(pid, &key)).then_some(())
    })
    .await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
}

/// A body that was written is not wiped, but no worker reads it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_started_after_an_erasure_has_nothing_of_the_person_in_its_memory() {
    let (fixture, receipts) = one_person(Fixture::new().await).await;
    let (mut before, pid) = worker(&fixture);
    let text = canary(PERSON);
    assert_comes_into(pid, &fixture, PERSON, text.as_bytes(), false).await;
    erase(&fixture, receipts.path(), PERSON).await;
    signal("TERM", pid);
    let ended = timeout(DEADLINE, before.wait()).await.expect("it ends in time");
    assert!(ended.expect("a status").success());

    let (_after, pid) = worker(&fixture);
    // Of the person, without a body that has the canary: it is refused.
    fixture.publish([user(OTHER), session(OTHER, "s"), session(PERSON, "late")]).await;
    assert_comes_into(pid, &fixture, OTHER, canary(OTHER).as_bytes(), false).await;
    assert!(!memory_has(pid, text.as_bytes()), "of the erased person");
}
