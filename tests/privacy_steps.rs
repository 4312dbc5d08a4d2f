//! What happens between two steps of an erasure: a hold that comes late, rows that come or go past the fence, transactions that stay open, and
//! a request that no program can read.

use std::time::{Duration, Instant};

use context_writer::ContextWriter;
use contract::UserId;
use diesel_async::SimpleAsyncConnection as _;
use privacy::process::Stores;
use privacy::request::{self, NewRequest};
use privacy::{Advance, PrivacyError, Removal, Step, process};
use testkit::attack::{assert_refused, attempt_for, grant, login};
use testkit::{Fixture, eventually, requests_for_all_tables};
use uuid::Uuid;

use crate::support::ROLE;
use crate::support::erasure::{
    ERASED_WITHIN, erase, file, json, privacy, privacy_with, rows_of, with_receipts,
};

const PERSON: i32 = 1;

async fn two_users() -> (Fixture, tempfile::TempDir) {
    let mut fixture = Fixture::new().await;
    let receipts = with_receipts(&mut fixture);
    fixture.process(ContextWriter, [PERSON, 2].into_iter().flat_map(requests_for_all_tables)).await;
    (fixture, receipts)
}

/// An erasure that a test takes from step to step.
struct Erasure {
    stores: Stores,
    id: Uuid,
    run: Uuid,
}

impl Erasure {
    async fn file(fixture: &Fixture) -> Self {
        Self::file_of(fixture, PERSON).await
    }

    async fn file_of(fixture: &Fixture, user: i32) -> Self {
        let new = NewRequest {
            removal: Removal::Erase,
            service: "operator".to_owned(),
            reason: "a letter".to_owned(),
        };
        let user = UserId::new(user).expect("a user");
        let id = request::submit(&mut fixture.connection().await, user, new).await.expect("a request").id;
        Self { stores: Stores::open(&fixture.settings).await.expect("stores"), id, run: Uuid::now_v7() }
    }

    /// Goes on until a step stops, or the next one would be this one.
    async fn until(&mut self, next: Option<Step>) -> Result<Advance, PrivacyError> {
        let claimed = request::claim(&mut self.stores.database, self.run, Some(self.id)).await?;
        let mut claimed = claimed.expect("the erasure");
        loop {
            if Some(claimed.step) == next {
                return Ok(Advance::Next(claimed.step));
            }
            match process::advance(&mut self.stores, &mut claimed).await? {
                Advance::Next(_) => {}
                stopped @ (Advance::Done | Advance::Waiting(_) | Advance::Held(_)) => return Ok(stopped),
            }
        }
    }

    /// Goes on until it has come to this, however often it has to wait.
    async fn comes_to(&mut self, next: Option<Step>, end: Advance) {
        let since = Instant::now();
        loop {
            let advanced = self.until(next).await.expect("no failure");
            if advanced == end {
                return;
            }
            assert!(since.elapsed() < ERASED_WITHIN, "{advanced:?} instead of {end:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn reaches(&mut self, next: Step) {
        self.comes_to(Some(next), Advance::Next(next)).await;
    }

    async fn completes(&mut self, fixture: &Fixture) {
        self.comes_to(None, Advance::Done).await;
        assert!(rows_of(fixture, PERSON).await.is_empty(), "{:?}", rows_of(fixture, PERSON).await);
    }
}

async fn fences(fixture: &Fixture) -> (i64, i64) {
    let mut key_store = store::connect(&fixture.settings.keys.url).await.expect("the key store");
    let of_keys = testkit::lines_on(&mut key_store, "count(*) FROM sec.fenced_users").await.remove(0);
    (fixture.count("sec.fenced_users").await, of_keys.parse().expect("a number"))
}

const HOLD: &str = "INSERT INTO retention_holds (id, user_id, reason)
    VALUES ('0193c0de-0000-7000-8000-00000000000a', 1, 'court order')";

/// Its transaction ran when the fence came, so that the erasure has waited for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_hold_that_is_committed_after_the_fence_takes_it_away() {
    let (fixture, _receipts) = two_users().await;
    let before = rows_of(&fixture, PERSON).await;
    let mut erasure = Erasure::file(&fixture).await;
    erasure.reaches(Step::Count).await;
    assert_eq!(fences(&fixture).await, (1, 1));
    fixture.execute(HOLD).await;
    let stopped = erasure.until(None).await.expect("no failure");
    assert!(matches!(stopped, Advance::Held(ref hold) if hold.reason == "court order"), "{stopped:?}");
    assert_eq!(fences(&fixture).await, (0, 0), "the person goes on meanwhile");
    let mut left = rows_of(&fixture, PERSON).await;
    assert_eq!((left.remove("privacy_requests"), left.remove("retention_holds")), (Some(1), Some(1)));
    assert_eq!(left, before);
    fixture.execute("UPDATE retention_holds SET released_at = now()").await;
    erasure.completes(&fixture).await;
}

/// Workers note when a token was used, whether its user is fenced or not.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_noted_between_counting_and_deleting_stops_nothing() {
    let (fixture, _receipts) = two_users().await;
    fixture.execute(TOKEN).await;
    let mut erasure = Erasure::file(&fixture).await;
    erasure.reaches(Step::Rows).await;
    fixture
        .execute("INSERT INTO sec.token_uses (token_id, role_name, used_at) VALUES ('0193c0de-0000-7000-8000-00000000000b', 'w_context_writer', now())")
        .await;
    erasure.completes(&fixture).await;
    assert_eq!(fixture.count("sec.token_uses").await, 0);
}

const TOKEN: &str = "INSERT INTO cross_service_auth (token_id, service, user_id, scopes, key_id, issued_at, expires_at, grants_expire_at)
    VALUES ('0193c0de-0000-7000-8000-00000000000b', 'test', 1, '{context:put}', 'k', now(), now() + interval '1 hour', now() + interval '1 hour');";
const NOTE: &str =
    "BEGIN; SELECT sec.note_token_use(ARRAY['0193c0de-0000-7000-8000-00000000000b'::uuid], ARRAY[now()])";

/// It needs no context for that, so that the fence does not keep it from it; and it does not commit.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_keeps_a_row_of_the_person_locked_is_ended() {
    let (fixture, _receipts) = two_users().await;
    let noted = "INSERT INTO sec.token_uses (token_id, role_name, used_at)
        VALUES ('0193c0de-0000-7000-8000-00000000000b', 'w_context_writer', now() - interval '1 minute')";
    fixture.execute(&format!("{TOKEN} {noted}")).await;
    let mut erasure = Erasure::file(&fixture).await;
    erasure.reaches(Step::Rows).await;
    let mut worker = login(&fixture, ROLE).await;
    worker.batch_execute(NOTE).await.expect("a note");
    // Busy, so that no timeout for those that do nothing ends it.
    let busy = tokio::spawn(async move {
        worker.batch_execute("SET LOCAL statement_timeout = 0; SELECT pg_sleep(120)").await
    });
    erasure.completes(&fixture).await;
    assert!(busy.await.expect("no panic").is_err(), "its connection is gone");
    assert_eq!(fixture.count("sec.token_uses").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_note_that_is_committed_after_its_token_went_does_not_stay() {
    let (fixture, _receipts) = two_users().await;
    fixture.execute(TOKEN).await;
    let mut erasure = Erasure::file(&fixture).await;
    erasure.reaches(Step::Rows).await;
    let mut worker = login(&fixture, ROLE).await;
    worker.batch_execute(NOTE).await.expect("a note");
    erasure.reaches(Step::Seal).await;
    worker.batch_execute("COMMIT").await.expect("a late note");
    assert_eq!(fixture.count("sec.token_uses").await, 1);
    erasure.completes(&fixture).await;
    let ran = privacy(&fixture, &["run"]).await;
    assert!(ran.is_success(), "{}", ran.all());
    assert_eq!(fixture.count("sec.token_uses").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_takes_long_keeps_no_other_person_waiting() {
    let (fixture, _receipts) = two_users().await;
    for user in [PERSON, 2] {
        Erasure::file_of(&fixture, user).await.reaches(Step::Rows).await;
    }
    fixture.execute("UPDATE privacy_requests SET claimed_until = NULL").await;
    // An operator's, whom nothing ends.
    let mut operator = fixture.connection().await;
    let lock = "BEGIN; SELECT FROM simple_chat_context WHERE user_id = 1 FOR UPDATE";
    operator.batch_execute(lock).await.expect("a lock");
    let others = eventually("the other one has come to its seal", async || {
        let sealed = fixture.count("privacy_requests WHERE user_id = 2 AND step = 'seal'").await;
        (sealed == 1).then_some(())
    });
    let other = async {
        others.await;
        let in_its_first_try = "privacy_requests WHERE user_id = 1 AND step = 'rows' AND last_error IS NULL";
        assert_eq!(fixture.count(in_its_first_try).await, 1);
        operator.batch_execute("ROLLBACK").await.expect("no lock");
    };
    let (ran, ()) = tokio::join!(privacy(&fixture, &["run"]), other);
    assert!(!ran.err.contains("panicked"), "{}", ran.err);
    assert_eq!(fixture.count("privacy_requests WHERE user_id = 1 AND step = 'rows'").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_that_is_requested_while_another_one_takes_long_begins() {
    let (fixture, _receipts) = two_users().await;
    Erasure::file(&fixture).await.reaches(Step::Rows).await;
    fixture.execute("UPDATE privacy_requests SET claimed_until = NULL").await;
    let mut operator = fixture.connection().await;
    let lock = "BEGIN; SELECT FROM simple_chat_context WHERE user_id = 1 FOR UPDATE";
    operator.batch_execute(lock).await.expect("a lock");
    let running = privacy_with(&fixture, &["run"], &[("MEMFLEET_PRIVACY__EVERY_S", "1")]);
    let later = async {
        let waits = "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'DELETE FROM public.%'";
        eventually("it waits for the row", async || (fixture.count(waits).await == 1).then_some(())).await;
        file(&fixture, 2).await;
        let begun = "privacy_requests WHERE user_id = 2 AND step = 'drain'";
        eventually("the other one begins", async || (fixture.count(begun).await == 1).then_some(())).await;
        operator.batch_execute("ROLLBACK").await.expect("no lock");
    };
    let (ran, ()) = tokio::join!(running, later);
    assert!(!ran.err.contains("panicked"), "{}", ran.err);
}

/// A superuser can do so. It is reported, and the next attempt goes on with what there is.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_come_or_go_past_the_fence_are_reported_once() {
    let (fixture, _receipts) = two_users().await;
    let mut erasure = Erasure::file(&fixture).await;
    erasure.reaches(Step::Rows).await;
    fixture
        .execute(
            "SET session_replication_role = replica;
             DELETE FROM simple_chat_context WHERE id = (SELECT id FROM simple_chat_context WHERE user_id = 1 LIMIT 1)",
        )
        .await;
    let failed = erasure.until(None).await.expect_err("the numbers differ");
    assert!(
        matches!(failed, PrivacyError::Left { ref table, .. } if table == "simple_chat_context"),
        "{failed}"
    );
    let shown = json(&fixture, &["show", &erasure.id.to_string()]).await;
    assert!(shown["request"]["last_error"].to_string().contains("simple_chat_context"), "{shown}");
    erasure.completes(&fixture).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_prepared_meanwhile_is_waited_for_and_who_keeps_it_open_is_named() {
    let (fixture, _receipts) = two_users().await;
    let mut erasure = Erasure::file(&fixture).await;
    let mut writer = fixture.connection().await;
    writer
        .batch_execute("BEGIN; INSERT INTO session_clocks (user_id, session_id) VALUES (1, 'late')")
        .await
        .expect("a row");
    let open = erasure.until(Some(Step::Count)).await.expect("no failure");
    assert!(matches!(open, Advance::Waiting(ref why) if why.contains("process ")), "{open:?}");
    let shown = json(&fixture, &["show", &erasure.id.to_string()]).await;
    assert!(shown["request"]["last_error"].to_string().contains("of the role memfleet"), "{shown}");
    let name = Uuid::new_v4().simple().to_string();
    writer.batch_execute(&format!("PREPARE TRANSACTION '{name}'")).await.expect("it is prepared");
    let prepared = erasure.until(Some(Step::Count)).await.expect("no failure");
    assert!(matches!(prepared, Advance::Waiting(ref why) if why.contains(&name)), "{prepared:?}");
    writer.batch_execute(&format!("COMMIT PREPARED '{name}'")).await.expect("it is committed");
    erasure.completes(&fixture).await;
    assert_eq!(fixture.count("session_clocks WHERE user_id = 1").await, 0);
}

/// From the first deletion on, it cannot be cancelled: messages of the person are not kept waiting for days then.
#[tokio::test(flavor = "multi_thread")]
async fn once_it_deletes_the_person_counts_as_erased() {
    let (fixture, _receipts) = two_users().await;
    let mut erasure = Erasure::file(&fixture).await;
    let mut worker = login(&fixture, ROLE).await;
    let grants = [grant(PERSON, ROLE)];
    erasure.reaches(Step::Count).await;
    let refused = attempt_for(&mut worker, &grants, "SELECT 1").await;
    assert_refused(refused, "the user is being erased", "before it deletes");
    erasure.reaches(Step::Rows).await;
    let refused = attempt_for(&mut worker, &grants, "SELECT 1").await;
    assert_refused(refused, "the user is erased", "while it deletes");
    // Without a grant, a role learns nothing.
    let insert = "INSERT INTO users (id, username, email) VALUES (1, 'u', 'e')";
    let refused = testkit::attack::attempt(&mut worker, insert).await;
    assert_refused(refused, "row-level security", "an id that it tries");
    erasure.reaches(Step::Seal).await;
    assert_eq!(fences(&fixture).await, (0, 0), "the tombstone refuses the person");
    erasure.completes(&fixture).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_no_program_can_read_holds_up_no_other() {
    let (fixture, _receipts) = two_users().await;
    let unreadable = file(&fixture, PERSON).await;
    let other = file(&fixture, 2).await;
    let spoil =
        format!("UPDATE privacy_requests SET progress = '{{\"before\": 7}}' WHERE id = '{unreadable}'");
    fixture.execute(&spoil).await;
    eventually("the other one is complete", async || {
        let ran = privacy(&fixture, &["run"]).await;
        assert!(!ran.err.contains("panicked"), "{}", ran.err);
        let shown = json(&fixture, &["show", &other]).await;
        shown["erased"]["receipt"].is_object().then_some(())
    })
    .await;
    let shown = json(&fixture, &["show", &unreadable]).await;
    assert!(shown["request"]["last_error"].to_string().contains("its progress"), "{shown}");
}

/// A signature is of bytes, which JSON of a database does not keep.
#[tokio::test(flavor = "multi_thread")]
async fn the_receipt_in_the_database_verifies() {
    let (fixture, receipts) = two_users().await;
    let signed = erase(&fixture, receipts.path(), PERSON).await;
    let kept = fixture.lines("receipt FROM sec.erased_users").await.remove(0);
    let written = std::fs::read_to_string(&signed).expect("a receipt");
    assert_eq!(kept.trim_end(), written.trim_end());
    let id = signed.file_stem().and_then(|name| name.to_str()).expect("a name").to_owned();
    let shown = privacy(&fixture, &["show", &id, "--json"]).await.out;
    let (_, receipt) = shown.split_once("\"receipt\":").expect("a receipt");
    let receipt = receipt.trim_end().strip_suffix("}}").expect("the end of the line");
    std::fs::write(&signed, receipt).expect("a file");
    let ended = privacy(&fixture, &["verify", signed.to_str().expect("a path")]).await;
    assert!(ended.is_success(), "{}", ended.all());
}
