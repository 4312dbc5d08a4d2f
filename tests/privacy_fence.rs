//! The fence around a person who is being erased, and the tombstone afterwards: no role writes or reads anything of the person, what ran before
//! is waited for, and nobody else waits.

use std::time::Duration;

use context_writer::ContextWriter;
use contract::UserId;
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use privacy::fence;
use serde_json::json;
use testkit::attack::{
    assert_refused, attempt, attempt_for, grant, login, login_to_key_store, roles, tables,
};
use testkit::{Fixture, RequestMessage, eventually, request, session, user};
use tokio::time::Instant;
use uuid::Uuid;

use crate::support::ROLE;
use crate::validation::validate;

const PERSON: i32 = 42;
const OTHER: i32 = 420;
const BEING_ERASED: &str = "the security context is refused: the user is being erased";
const ERASED: &str = "the security context is refused: the user is erased";
const ENDED: &str = "the security context has ended";

async fn two_users() -> Fixture {
    let fixture = Fixture::new().await;
    let accounts = [PERSON, OTHER].into_iter().flat_map(|id| [user(id), session(id, "s")]);
    fixture.process(ContextWriter, accounts.collect::<Vec<_>>()).await;
    fixture
}

async fn fence(fixture: &Fixture) {
    let fence = "INSERT INTO sec.fenced_users (user_id, request_id) VALUES (42, gen_random_uuid())";
    fixture.execute(fence).await;
}

/// What an erasure leaves of the person: a tombstone instead of the fence.
async fn bury(fixture: &Fixture) -> Vec<u8> {
    let person = UserId::new(PERSON).expect("an id");
    let tombstone = fence::note_erased(&mut fixture.connection().await, person, Uuid::new_v4(), None).await;
    fixture.execute("DELETE FROM sec.fenced_users").await;
    tombstone.expect("a tombstone")
}

fn grants(role: &str, users: &[i32]) -> Vec<String> {
    users.iter().map(|user| grant(*user, role)).collect()
}

async fn begin(worker: &mut AsyncPgConnection, role: &str, users: &[i32]) {
    let list: Vec<String> = grants(role, users).iter().map(|grant| format!("'{grant}'")).collect();
    worker.batch_execute("BEGIN").await.expect("a transaction");
    let open = format!("SELECT sec.open_context(ARRAY[{}])", list.join(", "));
    attempt(worker, &open).await.expect("a context");
}

/// What is tried with a user for whom no context opens is refused for that reason, and tells nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_validation_is_content_while_users_are_fenced_restricted_and_erased() {
    let fixture = two_users().await;
    let fences = "INSERT INTO sec.fenced_users (user_id, request_id) SELECT n, gen_random_uuid() FROM unnest(ARRAY[42]) AS n";
    let restricted =
        "INSERT INTO sec.restricted_users (user_id, request_id, waits) VALUES (420, gen_random_uuid(), true)";
    fixture
        .execute(&format!("SELECT sec.note_erased(1, gen_random_uuid(), NULL); {fences}; {restricted}"))
        .await;
    let mut key_store = store::connect(&fixture.settings.keys.url).await.expect("the key store");
    key_store.batch_execute(&format!("SELECT sec.note_erased(1); {fences}")).await.expect("fences");
    let (is_content, report) = validate(&fixture).await;
    assert!(is_content, "{}", report["findings"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_role_opens_a_context_for_the_person_and_all_do_for_others() {
    let fixture = two_users().await;
    fence(&fixture).await;
    let tables = tables(&fixture).await;
    for expected in [BEING_ERASED, ERASED] {
        for role in roles(&fixture).await {
            let mut worker = login(&fixture, &role).await;
            for (table, _) in &tables {
                for users in [vec![PERSON], vec![OTHER, PERSON]] {
                    let done =
                        attempt_for(&mut worker, &grants(&role, &users), &format!("SELECT FROM {table}"))
                            .await;
                    assert_refused(done, expected, &format!("{role}: {table} of {users:?}"));
                }
            }
            let opened = attempt_for(&mut worker, &grants(&role, &[OTHER]), "SELECT 1").await;
            assert_eq!(opened, Ok(1), "{role}: of another user");
        }
        bury(&fixture).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_that_is_open_ends_and_those_of_others_go_on() {
    let fixture = two_users().await;
    let (mut own, mut neighbour) = (login(&fixture, ROLE).await, login(&fixture, ROLE).await);
    begin(&mut own, ROLE, &[OTHER, PERSON]).await;
    begin(&mut neighbour, ROLE, &[OTHER]).await;
    assert_eq!(attempt(&mut own, "SELECT FROM users").await, Ok(2));
    fence(&fixture).await;
    assert_refused(attempt(&mut own, "SELECT FROM users").await, ENDED, "a read");
    assert_eq!(attempt(&mut neighbour, "SELECT FROM users").await, Ok(1));
    neighbour.batch_execute("COMMIT").await.expect("a commit");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ran_before_the_fence_is_waited_for_and_what_comes_later_is_not() {
    let fixture = two_users().await;
    let mut operator = fixture.connection().await;
    let mut worker = login(&fixture, ROLE).await;
    begin(&mut worker, ROLE, &[PERSON]).await;
    // It has no transaction id before its row is there: only its virtual one shows that it runs.
    let slow = "INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value)
        SELECT gen_random_uuid(), 42, 's', 'slow', '1' FROM (SELECT pg_sleep(2) OFFSET 0) AS waited";
    let since = Instant::now();
    let writing = tokio::spawn(async move {
        let done = attempt(&mut worker, slow).await;
        worker.batch_execute("COMMIT").await.expect("a commit");
        done
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    fence(&fixture).await;
    assert!(since.elapsed() < Duration::from_millis(1500), "the fence waits for nobody");
    let before = fence::running(&mut operator).await.expect("transactions");
    assert!(!before.is_empty());
    let mut later = login(&fixture, ROLE).await;
    begin(&mut later, ROLE, &[OTHER]).await;
    let left = fence::drain(&mut operator, &before, Duration::from_millis(100)).await.expect("an answer");
    assert!(!left.is_empty(), "the insert runs");
    assert_eq!(fixture.count("simple_chat_context WHERE user_id = 42").await, 0);
    let left = fence::drain(&mut operator, &before, Duration::from_secs(60)).await.expect("an answer");
    assert_eq!(left, Vec::<String>::new(), "though a later transaction is open");
    assert_eq!(fixture.count("simple_chat_context WHERE user_id = 42").await, 1, "it is there to be erased");
    assert_eq!(writing.await.expect("no panic"), Ok(1));
}

/// A transaction that nobody ends keeps neither the fence nor another revocation waiting.
#[tokio::test(flavor = "multi_thread")]
async fn fencing_waits_for_no_worker_and_holds_up_no_revocation() {
    let fixture = two_users().await;
    let mut worker = login(&fixture, ROLE).await;
    begin(&mut worker, ROLE, &[PERSON, OTHER]).await;
    attempt(&mut worker, "UPDATE users SET username = username").await.expect("a write");
    let mut operator = fixture.connection().await;
    operator.batch_execute("SET lock_timeout = '1s'").await.expect("a setting");
    let fence = "INSERT INTO sec.fenced_users (user_id, request_id) VALUES (42, gen_random_uuid())";
    assert_eq!(attempt(&mut operator, fence).await, Ok(1));
    let revoked = attempt(&mut operator, "SELECT sec.revoke_tokens(ARRAY[gen_random_uuid()])").await;
    assert_eq!(revoked, Ok(1));
    worker.batch_execute("ROLLBACK").await.expect("its end");
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_other_way_in() {
    let fixture = two_users().await;
    fixture.register("test", "*:*").await;
    fence(&fixture).await;
    for state in ["being erased", "erased"] {
        let mut superuser = fixture.connection().await;
        for insert in [
            "INSERT INTO users (id, username, email) VALUES (42, 'u', 'e')",
            "INSERT INTO users (id, username, email) VALUES (42, 'u', 'e') ON CONFLICT (id) DO UPDATE SET email = 'e'",
            "INSERT INTO users (id, username, email) VALUES (43, 'u', 'e'), (42, 'u', 'e')",
        ] {
            let by = format!("the row is refused: the user is {state}");
            assert_refused(attempt(&mut superuser, insert).await, &by, insert);
        }
        let erased = fixture
            .lines("(sec.is_erased(42)::text || ' ' || sec.is_erased(420)) FROM (SELECT 1) AS one")
            .await;
        assert_eq!(erased, ["true false"], "nothing is restored from archives");
        let mut issuer = login(&fixture, "w_token_issuer").await;
        let token = |user: i32| {
            format!(
                "SELECT sec.register_tokens(jsonb_build_array(jsonb_build_object('token_id', gen_random_uuid(), 'service', 'test',
                     'user_id', {user}, 'scopes', jsonb_build_array('context:put'), 'key_id', 'k', 'issued_at', now(),
                     'expires_at', now() + interval '1 minute', 'grants_expire_at', now() + interval '1 minute')))"
            )
        };
        let by = format!("the token is refused: the user is {state}");
        assert_refused(attempt(&mut issuer, &token(PERSON)).await, &by, "a token");
        assert_eq!(attempt(&mut issuer, &token(OTHER)).await, Ok(1));
        bury(&fixture).await;
    }
}

/// Job grants are for many users together: one who is fenced would keep all of them from their work.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_leave_the_person_out() {
    let fixture = two_users().await;
    fixture
        .execute(
            "CREATE FUNCTION sec.due_test(most integer) RETURNS SETOF integer LANGUAGE sql STABLE SECURITY DEFINER
                 SET search_path = pg_catalog, pg_temp AS $$ SELECT u.id FROM public.users u WHERE u.id IN (42, 420) LIMIT most $$;
             GRANT SELECT (id) ON users TO memfleet_due;
             SELECT sec.grant_worker('w_gpu_allocator', '{\"simple_chat_context\": [\"SELECT\"]}');
             SELECT sec.add_job('test-job', 'w_gpu_allocator', 'sec.due_test(integer)')",
        )
        .await;
    let mut worker = login(&fixture, "w_gpu_allocator").await;
    let tick = Uuid::now_v7();
    let mint = format!("user_id FROM sec.job_grants('test-job', '{tick}', 10) WHERE user_id > 0 ORDER BY 1");
    assert_eq!(testkit::lines_on(&mut worker, &mint).await, ["42", "420"]);
    fence(&fixture).await;
    assert_eq!(
        testkit::lines_on(&mut worker, &mint).await,
        ["420"],
        "nor as one of an earlier mint of the tick"
    );
}

/// The sweep of retention stays at a slice of users while rows are due there. A run has no grant of the person, and would never see them.
#[tokio::test(flavor = "multi_thread")]
async fn the_sweep_waits_for_no_rows_of_the_person() {
    let fixture = two_users().await;
    fixture
        .execute(
            "INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value, expires_at)
             SELECT gen_random_uuid(), u, 's', 'expired', '1', now() - interval '1 day' FROM unnest(ARRAY[42, 420]) AS u",
        )
        .await;
    let due = "u FROM sec.due_users(ARRAY[42, 420]) AS u ORDER BY 1";
    assert_eq!(fixture.lines(due).await, ["42", "420"]);
    fence(&fixture).await;
    assert_eq!(fixture.lines(due).await, ["420"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_worker_fences_anybody_or_reads_who_is_erased_and_the_platform_is_not_fenced() {
    let fixture = two_users().await;
    bury(&fixture).await;
    for role in roles(&fixture).await {
        let mut worker = login(&fixture, &role).await;
        for sql in [
            "INSERT INTO sec.fenced_users (user_id, request_id) VALUES (420, gen_random_uuid())",
            "DELETE FROM sec.fenced_users",
            "SELECT FROM sec.fenced_users",
            "SELECT FROM sec.erased_users",
            "INSERT INTO sec.erased_users (tombstone, key_id, erasure) VALUES (sha256('x'), 'context', gen_random_uuid())",
            "DELETE FROM sec.erased_users",
            "SELECT sec.note_erased(420, gen_random_uuid(), NULL)",
            "SELECT sec.erased_among(ARRAY[42])",
            "SELECT sec.fence_of(ARRAY[42])",
            "SELECT FROM audit.erasures",
            "INSERT INTO privacy_requests (id, user_id, request_type) VALUES (gen_random_uuid(), 420, 'erase')",
        ] {
            assert_refused(attempt(&mut worker, sql).await, "permission denied", &format!("{role}: {sql}"));
        }
    }
    let mut superuser = fixture.connection().await;
    let platform = "INSERT INTO sec.fenced_users (user_id, request_id) VALUES (0, gen_random_uuid())";
    assert_refused(attempt(&mut superuser, platform).await, "fenced_users_user_id_check", "user 0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_is_of_one_user_under_its_key_and_is_known_without_its_bucket() {
    let fixture = two_users().await;
    let tombstone = bury(&fixture).await;
    let among = async || {
        let mut db = fixture.connection().await;
        fence::erased_among(&mut db, &[4, 42, 420, 42 + 65_536]).await.expect("ids")
    };
    assert_eq!(among().await, [PERSON]);
    // Users who share the bucket, which alone says nothing.
    let shared = fixture
        .lines("n FROM generate_series(43, 1000000) AS n WHERE hashint4extended(n, 0) & 65535 = hashint4extended(42, 0) & 65535 LIMIT 5")
        .await;
    let shared: Vec<i32> = shared.iter().map(|id| id.parse().expect("an id")).collect();
    assert!(!shared.is_empty());
    let of_them = fence::erased_among(&mut fixture.connection().await, &shared).await.expect("ids");
    assert_eq!(of_them, Vec::<i32>::new());
    let erasures = fixture.lines("erasure FROM sec.erased_users").await;
    assert_eq!(bury(&fixture).await, tombstone, "noted again");
    let latest = fixture.lines("erasure FROM sec.erased_users").await;
    assert!(latest.len() == 1 && latest != erasures, "it is of the latest erasure: {latest:?}");
    // As one that came from a receipt, which says of nobody whose it is.
    fixture.execute("UPDATE sec.erased_users SET bucket = NULL").await;
    assert_eq!(among().await, [PERSON]);
    let mut worker = login(&fixture, ROLE).await;
    assert_refused(
        attempt_for(&mut worker, &grants(ROLE, &[PERSON]), "SELECT 1").await,
        ERASED,
        "without a bucket",
    );
    // Under a newer key, the earlier tombstone is still known.
    fixture.execute("SELECT sec.add_key('tombstone-next', 'tombstone', sha256('next'))").await;
    assert_eq!(among().await, [PERSON]);
    fixture.execute("UPDATE sec.erased_users SET key_id = 'tombstone-next'").await;
    assert_eq!(among().await, Vec::<i32>::new(), "of another key");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_store_refuses_the_person_and_adds_no_key() {
    let fixture = two_users().await;
    let mut key_store = store::connect(&fixture.settings.keys.url).await.expect("the key store");
    let add = |version: i32| {
        format!(
            "INSERT INTO data_keys (user_id, version, kek, wrapped)
             SELECT u, {version}, 'k', decode(repeat('00', 40), 'hex') FROM unnest(ARRAY[42, 420]) AS u"
        )
    };
    key_store.batch_execute(&add(7)).await.expect("keys");
    let mut worker = login_to_key_store(&fixture, ROLE).await;
    let read = "SELECT FROM data_keys WHERE version = 7";
    assert_eq!(attempt_for(&mut worker, &grants(ROLE, &[PERSON, OTHER]), read).await, Ok(2));
    let fence = "INSERT INTO sec.fenced_users (user_id, request_id) VALUES (42, gen_random_uuid())";
    key_store.batch_execute(fence).await.expect("a fence");
    let refused = "it knows a user as erased";
    assert_refused(attempt_for(&mut worker, &grants(ROLE, &[PERSON, OTHER]), read).await, refused, "fenced");
    assert_eq!(attempt_for(&mut worker, &grants(ROLE, &[OTHER]), read).await, Ok(1));
    assert_eq!(
        attempt(&mut key_store, &add(8)).await,
        Ok(1),
        "an operator's rotation goes on with the others"
    );

    let person = UserId::new(PERSON).expect("an id");
    let before = keys::count(&mut key_store, person).await.expect("a number");
    assert!(before >= 1);
    assert_eq!(keys::destroy(&mut key_store, person).await.expect("destroyed"), before);
    assert_eq!(keys::destroy(&mut key_store, person).await.expect("nothing to do"), 0);
    assert_refused(attempt_for(&mut worker, &grants(ROLE, &[PERSON]), read).await, refused, "erased");
    assert_eq!(attempt(&mut key_store, &add(9)).await, Ok(1));
    assert_eq!(keys::count(&mut key_store, person).await.expect("a number"), 0);
    assert!(!keys::user_ids(&mut key_store).await.expect("ids").contains(&PERSON));
    let fences = testkit::lines_on(&mut key_store, "user_id FROM sec.fenced_users").await;
    assert_eq!(fences, Vec::<String>::new());
}

/// 50 contexts of each of the two, in turns.
fn contexts() -> Vec<RequestMessage> {
    let of = |user: i32| {
        let key = Uuid::new_v4().to_string();
        let body =
            json!({ "session_id": "s", "context_key": key, "context_value": "a canary", "version": 1 });
        request("context.put", user, body)
    };
    (0..50).flat_map(|_| [of(OTHER), of(PERSON)]).collect()
}

/// Messages of the person are acknowledged, and their bodies are stored nowhere; those of others in the same batch are processed.
#[tokio::test(flavor = "multi_thread")]
async fn messages_of_the_person_are_not_stored_and_those_of_others_are() {
    let fixture = two_users().await;
    bury(&fixture).await;
    fixture.process(ContextWriter, contexts().into_iter().chain([user(PERSON)]).collect::<Vec<_>>()).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(fixture.stored("DEAD").await, 0);
    assert_eq!(fixture.count("simple_chat_context WHERE user_id = 420").await, 50);
    assert_eq!(fixture.count("simple_chat_context WHERE user_id = 42").await, 0);
    assert_eq!(fixture.count("audit.security_violations").await, 0, "it is nobody's fault");
}

/// Whether a person is erased is certain when the tombstone is there: until then, an erasure that is cancelled loses no message.
#[tokio::test(flavor = "multi_thread")]
async fn messages_wait_while_the_person_is_being_erased_and_are_processed_if_it_is_cancelled() {
    for is_cancelled in [true, false] {
        let fixture = two_users().await;
        fence(&fixture).await;
        let worker = fixture.run(ContextWriter);
        fixture.publish(contexts()).await;
        let consumer = fixture.consumer("CONTEXT", "context-writer").await;
        eventually("those of the other one are stored, and those of the person wait", async || {
            let waiting = consumer.get_info().await.ok()?.num_ack_pending;
            let stored = fixture.count("simple_chat_context WHERE user_id = 420").await;
            (waiting == 50 && stored == 50).then_some(())
        })
        .await;
        assert_eq!(fixture.count("simple_chat_context WHERE user_id = 42").await, 0);
        if is_cancelled {
            fixture.execute("DELETE FROM sec.fenced_users").await;
        } else {
            bury(&fixture).await;
        }
        fixture.drained::<ContextWriter>().await;
        worker.stop().await.expect("a clean end");
        let stored = fixture.count("simple_chat_context WHERE user_id = 42").await;
        assert_eq!(stored, if is_cancelled { 50 } else { 0 });
        assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
        assert_eq!(fixture.count("audit.security_violations").await, 0, "it is nobody's fault");
    }
}
