//! What services request for a person over NATS: it is filed once, by whoever has the scope, and an operator's process carries it out.

use std::path::{Path, PathBuf};
use std::time::Duration;

use context_writer::ContextWriter;
use contract::{Outcome, OutcomeStatus, header};
use privacy::restriction::Meanwhile;
use serde_json::{Value, json};
use testkit::attack::{assert_refused, attempt, attempt_for, grant, login};
use testkit::{Fixture, RequestMessage, eventually, request, session, set_duplicate_window, token, user};
use trust::Scope;
use uuid::Uuid;

use crate::support::erasure::{self, finish, privacy, privacy_with, rows_of, with_receipts};
use crate::support::exports::{Holder, export, holder, index, opened, refused, rows};
use crate::support::privacy::restrict;
use crate::support::retention::{cleaner, job, with_old_sessions};

const PERSON: i32 = 42;
const OTHER: i32 = 420;
const ROLE: &str = "w_retention_cleaner";

/// The broker forgets the ids of requests at once, as it does after ten minutes.
async fn two_users() -> Fixture {
    let fixture = Fixture::with_topology(|topology| {
        set_duplicate_window(topology, "RETENTION", Duration::from_millis(100));
    })
    .await;
    let accounts = [PERSON, OTHER].into_iter().flat_map(|id| [user(id), session(id, "s")]);
    fixture.process(ContextWriter, accounts.collect::<Vec<_>>()).await;
    fixture
}

fn asks(verb: &str, body: Value) -> RequestMessage {
    request(&format!("privacy.{verb}"), PERSON, body)
}

fn erase() -> RequestMessage {
    asks("erase", json!({ "reason": "a letter" }))
}

/// The requests of the person: `erase pending test a letter`.
async fn requests(fixture: &Fixture) -> Vec<String> {
    let columns = "concat_ws(' ', request_type, request_status, service, reason)";
    fixture
        .lines(&format!("{columns} FROM privacy_requests WHERE user_id = {PERSON} ORDER BY requested_at, id"))
        .await
}

/// The outcome of a request.
async fn outcome(fixture: &Fixture, request: RequestMessage) -> Outcome {
    let inbox = format!("_INBOX.test.{}", Uuid::new_v4().simple());
    let mut outcomes = fixture.subscribe(&inbox).await;
    fixture.process(cleaner(fixture), [request.with(header::REPLY_TO, &inbox)]).await;
    let told = testkit::next(&mut outcomes).await;
    serde_json::from_slice(&told.payload).expect("an outcome")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_is_filed_once_and_emits_its_event() {
    let fixture = two_users().await;
    let key = holder(&fixture, "person.key").public;
    let correction = json!({ "table": "users", "column": "email", "value": "ada@example.org" });
    let all = [
        asks("access", json!({ "recipient": key })),
        asks("rectify", json!({ "corrections": [correction], "reason": "a letter" })),
        asks("restrict", json!({ "while": "wait" })),
        erase(),
    ];
    fixture.process(cleaner(&fixture), all.clone()).await;
    assert_eq!(
        requests(&fixture).await,
        [
            "access pending test",
            "rectify pending test a letter",
            "restrict pending test",
            "erase pending test a letter"
        ]
    );
    let known = "privacy_requests r JOIN blackboard_events e ON e.id = r.id AND e.user_id = r.user_id
        AND e.request_id = r.request_id AND r.requested_at <= now() AND r.due_at > now() + interval '27 days'";
    assert_eq!(fixture.count(known).await, 4, "the event of a request has its id");
    let events =
        "event_type FROM blackboard_events WHERE event_type::text LIKE 'privacy.%' ORDER BY event_type";
    let expected =
        ["access", "rectification", "restriction", "erasure"].map(|what| format!("privacy.{what}-requested"));
    assert_eq!(fixture.lines(events).await, expected);
    let told =
        "event_payload::text FROM blackboard_events WHERE event_type = 'privacy.rectification-requested'";
    assert!(!fixture.lines(told).await[0].contains("ada@example.org"), "no subscriber learns the value");

    // Published again with the same ids, and stored again, since the broker has forgotten them.
    eventually("all are stored twice", async || {
        fixture.publish(all.clone()).await;
        (fixture.stored("RETENTION").await >= 8).then_some(())
    })
    .await;
    fixture.process(cleaner(&fixture), []).await;
    assert_eq!(requests(&fixture).await.len(), 4, "the same id files one row");
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outcome_names_the_request_and_a_second_removal_changes_nothing() {
    let fixture = two_users().await;
    let filed = outcome(&fixture, erase()).await;
    assert_eq!(filed.status, OutcomeStatus::Applied);
    let id = filed.event_id.expect("an event");
    assert_eq!(
        fixture.count(&format!("privacy_requests WHERE id = '{id}' AND request_type = 'erase'")).await,
        1
    );
    for verb in ["erase", "anonymise"] {
        let again = outcome(&fixture, asks(verb, json!({ "reason": "another letter" }))).await;
        let reason = Some("an erasure or anonymisation of the user is already requested");
        assert_eq!((again.status, again.reason.as_deref()), (OutcomeStatus::Unchanged, reason), "{verb}");
    }
    assert_eq!(requests(&fixture).await, ["erase pending test a letter"]);
    // Two in one batch, too: the one that JetStream stored first.
    fixture.execute("DELETE FROM privacy_requests").await;
    let anonymise = asks("anonymise", json!({ "reason": "another letter" }));
    fixture.process(cleaner(&fixture), [erase(), anonymise]).await;
    assert_eq!(requests(&fixture).await, ["erase pending test a letter"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_may_request_is_a_dead_letter() {
    let fixture = two_users().await;
    let narrow = {
        let mut wanted = token::request("test", PERSON);
        wanted.scopes = Scope::parse_list("policy:* privacy:access").expect("scopes");
        token::issuer().issue(&wanted, std::time::SystemTime::now()).expect("a token").token
    };
    let key = holder(&fixture, "person.key").public;
    let secret = format!("AGE-SECRET-KEY-1{}", "Q".repeat(58));
    let many: Vec<Value> = vec![json!({ "table": "users", "column": "email", "value": null }); 101];
    let bad = [
        erase().with_token(&narrow),
        request("privacy.erase", 0, json!({ "reason": "a letter" })),
        asks("erase", json!({})),
        asks("access", json!({ "recipient": secret })),
        asks("access", json!({ "recipient": key, "passphrase": "correct horse battery" })),
        asks("rectify", json!({ "corrections": many, "reason": "a letter" })),
        asks("restrict", json!({ "while": "never" })),
        asks("lift", json!({ "reason": "a letter" })),
    ];
    let count = bad.len();
    fixture.process(cleaner(&fixture), bad).await;
    let dead = fixture.dead_letters().await;
    assert_eq!(dead.len(), count, "{dead:?}");
    for reason in [
        "denied: ",
        "user 0 is the platform",
        "reason: ",
        "recipient: is a private key, and must stay with the person",
        "passphrase: ",
        "corrections: ",
        "while: ",
        "no request is named privacy.lift",
    ] {
        assert!(dead.iter().any(|letter| letter.contains(reason)), "{reason}: {dead:?}");
    }
    assert!(dead.iter().all(|letter| !letter.contains("QQQ")), "{dead:?}");
    assert_eq!(requests(&fixture).await, Vec::<String>::new());
    let violations = "concat_ws(' ', role_name, violation_type) FROM audit.security_violations";
    assert_eq!(fixture.lines(violations).await, [format!("{ROLE} token-scope")]);
}

/// It has the right to file what is pending, for the users and services of its context.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_taken_over_files_no_other_request() {
    let fixture = two_users().await;
    let mut worker = login(&fixture, ROLE).await;
    let file = |id: &str, user: i32, kind: &str, service: &str| {
        format!(
            "SELECT sec.file_privacy_requests(ARRAY[1], ARRAY['{id}'::uuid], ARRAY[{user}], ARRAY['{kind}'], ARRAY['{service}'],
                ARRAY['r'], ARRAY['{{}}'], ARRAY[now()], ARRAY[gen_random_uuid()])"
        )
    };
    let id = "0193c0de-0000-7000-8000-000000000001";
    let own = [grant(PERSON, ROLE)];
    assert_eq!(attempt_for(&mut worker, &own, &file(id, PERSON, "erase", "test")).await, Ok(1));
    for (sql, by) in [
        (file(id, OTHER, "erase", "test"), "permission denied"),
        (file(id, 0, "erase", "test"), "permission denied"),
        (file(id, PERSON, "erase", "account"), "permission denied"),
        (file(id, PERSON, "lift", "test"), "a privacy request has a type"),
        ("INSERT INTO privacy_requests (id, user_id, request_type) VALUES (gen_random_uuid(), 42, 'erase')".to_owned(), "permission denied"),
        ("UPDATE privacy_requests SET request_status = 'completed'".to_owned(), "permission denied"),
        ("DELETE FROM privacy_requests".to_owned(), "permission denied"),
        ("SELECT reason FROM privacy_requests".to_owned(), "permission denied"),
    ] {
        assert_refused(attempt_for(&mut worker, &own, &sql).await, by, &sql);
    }
    let sql = file(id, PERSON, "erase", "test");
    assert_refused(attempt(&mut worker, &sql).await, "permission denied", "without a context");
    // Nobody else may file at all.
    let mut writer = login(&fixture, "w_context_writer").await;
    let foreign = attempt_for(&mut writer, &[grant(PERSON, "w_context_writer")], &sql).await;
    assert_refused(foreign, "permission denied", "another role");
}

/// The users of a tick have asked for nothing.
#[tokio::test(flavor = "multi_thread")]
async fn no_job_files_a_request() {
    let fixture = Fixture::new().await;
    with_old_sessions(&fixture, PERSON..=PERSON, 400).await;
    let mut worker = login(&fixture, ROLE).await;
    let minted = store::job_grants::mint(&mut worker, job(), Uuid::now_v7(), 10).await.expect("grants");
    assert!(minted.len() > 1, "the person has rows that are due");
    let minted: Vec<String> = minted.into_iter().map(|grant| grant.grant).collect();
    let sql = format!(
        "SELECT sec.file_privacy_requests(ARRAY[1], ARRAY[gen_random_uuid()], ARRAY[{PERSON}], ARRAY['erase'], ARRAY['job:{}'],
            ARRAY['r'], ARRAY['{{}}'], ARRAY[now()], ARRAY[gen_random_uuid()])",
        job()
    );
    assert_refused(
        attempt_for(&mut worker, &minted, &sql).await,
        "permission denied",
        "under the grants of a job",
    );
}

/// An operator names a request by its id alone.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_has_the_id_of_another_persons_request() {
    let fixture = two_users().await;
    let id = "0193c0de-0000-7000-8000-000000000001";
    fixture
        .execute(&format!(
            "INSERT INTO privacy_requests (id, user_id, request_type) VALUES ('{id}', {OTHER}, 'access')"
        ))
        .await;
    let mut worker = login(&fixture, ROLE).await;
    let sql = format!(
        "SELECT FROM sec.file_privacy_requests(ARRAY[1], ARRAY['{id}'::uuid], ARRAY[{PERSON}], ARRAY['access'], ARRAY['test'],
            ARRAY['r'], ARRAY['{{}}'], ARRAY[now()], ARRAY[gen_random_uuid()]) AS f WHERE f.outcome = 'filed'"
    );
    assert_eq!(attempt_for(&mut worker, &[grant(PERSON, ROLE)], &sql).await, Ok(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_has_a_hundred_open_requests_and_can_still_be_erased() {
    let fixture = two_users().await;
    fixture
        .execute(&format!(
            "INSERT INTO privacy_requests (id, user_id, request_type) SELECT gen_random_uuid(), {PERSON}, 'access' FROM generate_series(1, 99)"
        ))
        .await;
    let hundredth = outcome(&fixture, asks("restrict", json!({}))).await;
    assert_eq!(hundredth.status, OutcomeStatus::Applied);
    let more = outcome(&fixture, asks("restrict", json!({}))).await;
    assert_eq!(more.status, OutcomeStatus::Dead);
    assert!(
        more.reason.as_ref().is_some_and(|reason| reason.contains("100 requests that are open")),
        "{more:?}"
    );
    assert_eq!(outcome(&fixture, erase()).await.status, OutcomeStatus::Applied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restriction_is_carried_out_and_only_an_operator_lifts_it() {
    let fixture = two_users().await;
    fixture
        .process(cleaner(&fixture), [asks("restrict", json!({ "while": "wait", "reason": "a letter" }))])
        .await;
    assert_eq!(fixture.count("sec.restricted_users").await, 0, "a worker files, and restricts nobody");
    eventually("what ran before has ended", async || {
        fixture.execute("UPDATE privacy_requests SET retry_at = NULL").await;
        let ran = privacy(&fixture, &["run"]).await;
        assert!(ran.is_success(), "{}", ran.all());
        (requests(&fixture).await == ["restrict completed test a letter"]).then_some(())
    })
    .await;
    assert_eq!(fixture.lines("concat_ws(' ', user_id, waits) FROM sec.restricted_users").await, ["42 t"]);
    let claimed = "privacy_requests WHERE claimed_by IS NOT NULL OR details ->> 'while' <> 'wait'";
    assert_eq!(fixture.count(claimed).await, 0);
    // From now on no request of the person is processed, also no further one of this kind.
    restrict(&fixture, PERSON, Meanwhile::Refuse).await;
    let refused = outcome(&fixture, erase()).await;
    assert_eq!(refused.status, OutcomeStatus::Dead, "{refused:?}");
    let lifted = privacy(&fixture, &["lift", "42", "--reason", "the person was told"]).await;
    assert!(lifted.is_success(), "{}", lifted.all());
}

/// A second restriction, as another one is in force, changes nothing but its own request.
#[tokio::test(flavor = "multi_thread")]
async fn a_restriction_that_is_in_force_stays_as_it_is() {
    let fixture = two_users().await;
    fixture.process(cleaner(&fixture), [asks("restrict", json!({}))]).await;
    restrict(&fixture, PERSON, Meanwhile::Wait).await;
    let since = fixture.lines("since FROM sec.restricted_users").await;
    eventually("the request is complete", async || {
        fixture.execute("UPDATE privacy_requests SET retry_at = NULL").await;
        assert!(privacy(&fixture, &["run"]).await.is_success());
        let complete = "privacy_requests WHERE service = 'test' AND request_status = 'completed' AND details ->> 'while' = 'wait'";
        (fixture.count(complete).await == 1).then_some(())
    })
    .await;
    assert_eq!(fixture.lines("since FROM sec.restricted_users").await, since);
}

fn parts_of(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

async fn ask_for_export(fixture: &Fixture) -> (Holder, String) {
    let holder = holder(fixture, "person.key");
    let filed =
        outcome(fixture, asks("access", json!({ "recipient": holder.public, "reason": "a letter" }))).await;
    (holder, filed.event_id.expect("an event").to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_waits_for_a_folder_and_is_written_into_one_of_its_own() {
    let fixture = two_users().await;
    let (holder, id) = ask_for_export(&fixture).await;
    let ran = privacy(&fixture, &["run"]).await;
    assert!(ran.is_success(), "to wait is no failure: {}", ran.all());
    let shown = erasure::json(&fixture, &["show", &id]).await;
    assert_eq!(shown["request"]["status"], "pending");
    assert!(
        shown["request"]["last_error"]
            .as_str()
            .is_some_and(|why| why.contains("privacy.export_folder is not set")),
        "{shown}"
    );

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("a path");
    fixture.execute("UPDATE privacy_requests SET retry_at = NULL").await;
    let ran = privacy_with(&fixture, &["run"], &[("MEMFLEET_PRIVACY__EXPORT_FOLDER", path)]).await;
    assert!(ran.is_success() && ran.out.contains("1 exports completed"), "{}", ran.all());
    assert_eq!(requests(&fixture).await, ["access completed test a letter"]);
    let own = folder.path().join(&id);
    let into = folder.path().join("opened");
    opened(&fixture, &parts_of(&own), &holder, &into).await;
    assert_eq!(rows(&index(&into), "postgresql").get("public.users"), Some(&1));
    let noted = format!(
        "audit.data_access_log WHERE access_type = 'export' AND request_id = '{id}' AND service = 'test'"
    );
    assert_eq!(fixture.count(&noted).await, 1);
    let left =
        "privacy_requests WHERE claimed_by IS NOT NULL OR last_error IS NOT NULL OR retry_at IS NOT NULL";
    assert_eq!(fixture.count(left).await, 0);
}

/// Its request was completed before its parts had their names.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_was_killed_is_made_again() {
    let fixture = two_users().await;
    let (holder, id) = ask_for_export(&fixture).await;
    let folder = tempfile::tempdir().expect("a folder");
    let environment = [("MEMFLEET_PRIVACY__EXPORT_FOLDER", folder.path().to_str().expect("a path"))];
    for point in ["access.tables:1", "access.written:1", "access.completed:1"] {
        let crash = [environment[0], ("MEMFLEET_CRASH_AT", point)];
        let killed = privacy_with(&fixture, &["run"], &crash).await;
        assert_eq!(killed.code, None, "{point}: {}", killed.all());
        // The process that died has the request for a minute.
        fixture.execute("UPDATE privacy_requests SET claimed_until = now() - interval '1 second'").await;
    }
    assert_eq!(requests(&fixture).await, ["access completed test a letter"], "and no part has its name");
    // The server may need a moment to give back the lock of a process that was killed.
    eventually("it is made", async || {
        fixture.execute("UPDATE privacy_requests SET retry_at = NULL").await;
        let ran = privacy_with(&fixture, &["run"], &environment).await;
        assert!(!ran.err.contains("panicked"), "{}", ran.all());
        let why = fixture.lines("last_error FROM privacy_requests WHERE last_error IS NOT NULL").await;
        assert!(why.iter().all(|error| error.contains("another export of user")), "{why:?}");
        ran.out.contains("1 exports completed").then_some(())
    })
    .await;
    let parts = parts_of(&folder.path().join(&id));
    assert!(parts.iter().all(|part| part.extension().is_some_and(|ending| ending == "age")), "{parts:?}");
    opened(&fixture, &parts, &holder, &folder.path().join("opened")).await;
    let again = privacy_with(&fixture, &["run"], &environment).await;
    assert!(!again.out.contains("exports completed"), "it is done: {}", again.all());
}

/// Its process may only be slow.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_of_an_operator_leaves_the_request_that_a_process_works_on() {
    let fixture = two_users().await;
    let (holder, _) = ask_for_export(&fixture).await;
    fixture
        .execute(
            "UPDATE privacy_requests SET request_status = 'in_progress', claimed_by = gen_random_uuid(),
                claimed_until = now() + interval '1 minute'",
        )
        .await;
    let folder = tempfile::tempdir().expect("a folder");
    export(&fixture, PERSON, &folder.path().join("out"), &holder, &[]).await;
    let expected = ["access in_progress test a letter", "access completed operator"];
    assert_eq!(requests(&fixture).await, expected);
}

/// It has the form of a key. Nobody could ever open what is encrypted for it.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_for_a_key_that_is_none_fails_for_good() {
    let fixture = two_users().await;
    let wrong = format!("age1{}", "q".repeat(58));
    fixture.process(cleaner(&fixture), [asks("access", json!({ "recipient": wrong }))]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("a path");
    let ran = privacy_with(&fixture, &["run"], &[("MEMFLEET_PRIVACY__EXPORT_FOLDER", path)]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.all());
    let left = fixture.lines("concat_ws(' ', request_status, last_error) FROM privacy_requests").await;
    assert!(left[0].starts_with("failed recipient: not a public key of age"), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_that_a_service_requests_is_carried_out_and_then_nothing_is_filed() {
    let mut fixture = Fixture::new().await;
    let _receipts = with_receipts(&mut fixture);
    let accounts = [PERSON, OTHER].into_iter().flat_map(|id| [user(id), session(id, "s")]);
    fixture.process(ContextWriter, accounts.collect::<Vec<_>>()).await;
    let filed = outcome(&fixture, erase()).await;
    finish(&fixture, &filed.event_id.expect("an event").to_string()).await;
    assert!(rows_of(&fixture, PERSON).await.is_empty(), "{:?}", rows_of(&fixture, PERSON).await);
    for verb in ["erase", "restrict"] {
        let late = outcome(&fixture, asks(verb, json!({ "reason": "a letter" }))).await;
        let said = (late.status, late.reason.as_deref());
        assert_eq!(said, (OutcomeStatus::Unchanged, Some("the user was erased")), "{verb}");
    }
    assert_eq!(requests(&fixture).await, Vec::<String>::new());
    assert!(!rows_of(&fixture, OTHER).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_a_person_who_is_being_erased_stays_and_says_why() {
    let fixture = two_users().await;
    fixture.process(cleaner(&fixture), [asks("restrict", json!({}))]).await;
    let id = fixture.lines("id FROM privacy_requests").await.remove(0);
    fixture
        .execute(&format!(
            "INSERT INTO sec.fenced_users (user_id, request_id) VALUES ({PERSON}, gen_random_uuid())"
        ))
        .await;
    let ran = privacy(&fixture, &["run"]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.all());
    let left = fixture.lines("concat_ws(' ', request_status, last_error) FROM privacy_requests").await;
    assert_eq!(left.len(), 1);
    assert!(left[0].starts_with("pending user 42 is being erased"), "{left:?}");
    assert_eq!(fixture.count("sec.restricted_users").await, 0);
    let rejected = privacy(&fixture, &["reject", &id, "--reason", "the person is erased"]).await;
    assert!(rejected.is_success(), "{}", rejected.all());
    assert!(refused(&fixture, &["reject", &id, "--reason", "again"]).await.contains("is not pending"));
}

/// A person whose id nobody knows: the user may come yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_an_unknown_person_is_filed_when_the_person_is_known() {
    let fixture = Fixture::new().await;
    let worker = fixture.run(cleaner(&fixture));
    fixture.publish([erase()]).await;
    fixture.process(ContextWriter, [user(PERSON)]).await;
    eventually("it is filed", async || {
        (requests(&fixture).await == ["erase pending test a letter"]).then_some(())
    })
    .await;
    worker.stop().await.expect("a clean end");
}

/// As after a kill: it would be made again, and kill its process again.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_no_process_works_on_any_more_can_be_rejected() {
    let fixture = two_users().await;
    let (_, id) = ask_for_export(&fixture).await;
    let taken = async |until: &str| {
        let taken = "UPDATE privacy_requests SET request_status = 'in_progress', claimed_by = gen_random_uuid(), claimed_until = now()";
        fixture.execute(&format!("{taken} {until}")).await;
    };
    let reject = ["reject", &id, "--reason", "it never ends"];
    taken("+ interval '1 minute'").await;
    let said = refused(&fixture, &reject).await;
    assert!(said.contains("a process works on it"), "{said}");
    taken("- interval '1 second'").await;
    let rejected = privacy(&fixture, &reject).await;
    assert!(rejected.is_success(), "{}", rejected.all());
    assert_eq!(requests(&fixture).await, ["access rejected test a letter"]);
}

/// What cannot be carried out keeps no new request waiting.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_were_tried_come_after_new_ones() {
    let fixture = two_users().await;
    let (holder, tried) = ask_for_export(&fixture).await;
    let filed = outcome(&fixture, asks("access", json!({ "recipient": holder.public }))).await;
    let new = filed.event_id.expect("an event").to_string();
    let was_tried =
        format!("UPDATE privacy_requests SET retry_at = now() - interval '1 second' WHERE id = '{tried}'");
    fixture.execute(&was_tried).await;
    // Without a folder, each is looked at and put back.
    assert!(privacy(&fixture, &["run"]).await.is_success());
    assert_eq!(fixture.lines("id FROM privacy_requests ORDER BY updated_at").await, [new, tried]);
}
