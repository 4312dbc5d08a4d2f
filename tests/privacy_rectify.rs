//! Wrong data of a person are corrected: what a service has requested, by an operator who has seen it, and nothing else.

use context_writer::ContextWriter;
use contract::UserId;
use privacy::rectify::NewRectification;
use privacy::restriction::Meanwhile;
use serde_json::{Value, json};
use testkit::{Fixture, RequestMessage, request, session, user};

use crate::support::erasure::{self, privacy as run, rows_of_others};
use crate::support::exports::refused;
use crate::support::privacy::{fill, restrict};
use crate::support::retention::cleaner;

const PERSON: i32 = 42;
const OTHER: i32 = 420;

/// Two users with rows in all tables, and texts of their own.
async fn two_users() -> Fixture {
    let fixture = Fixture::new().await;
    let profile =
        |id: i32| request("profile.put", id, json!({ "first_name": "Adda", "timezone": "Europe/Lisbon" }));
    let accounts = [PERSON, OTHER].into_iter().flat_map(|id| [user(id), session(id, "s"), profile(id)]);
    fixture.process(ContextWriter, accounts.collect::<Vec<_>>()).await;
    for id in [PERSON, OTHER] {
        fill(&fixture, id, &format!("of-{id}-")).await;
    }
    fixture
}

fn correction(table: &str, column: &str, value: Value) -> Value {
    json!({ "table": table, "column": column, "value": value })
}

fn rectify(corrections: &[Value]) -> RequestMessage {
    request("privacy.rectify", PERSON, json!({ "corrections": corrections, "reason": "letter of 3 May" }))
}

/// Has a service file it, and gives its id.
async fn filed(fixture: &Fixture, corrections: &[Value]) -> String {
    fixture.process(cleaner(fixture), [rectify(corrections)]).await;
    let newest =
        "id FROM privacy_requests WHERE request_type = 'rectify' ORDER BY requested_at DESC, id DESC LIMIT 1";
    fixture.lines(newest).await.remove(0)
}

async fn id_of(fixture: &Fixture, row: &str) -> String {
    fixture.lines(&format!("md5('{PERSON} {row}')::uuid FROM (SELECT 1) AS one")).await.remove(0)
}

async fn value(fixture: &Fixture, select: &str) -> String {
    fixture.lines(select).await.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_waits_for_an_operator_and_keeps_no_value() {
    let fixture = two_users().await;
    let others = rows_of_others(&fixture, PERSON).await;
    let (device, feedback) = (id_of(&fixture, "device").await, id_of(&fixture, "feedback").await);
    let of_row = |row: &str, table: &str, column: &str, value: Value| {
        let mut one = correction(table, column, value);
        one["row"] = row.into();
        one
    };
    let mut email = correction("users", "email", json!("ada@example.org"));
    email["was"] = json!("user42@example.org");
    let all = [
        email,
        correction("user_profiles", "first_name", json!("Ada")),
        correction("user_profiles", "timezone", Value::Null),
        correction("user_profiles", "preferences", json!({ "language": "pt" })),
        of_row(&device, "registered_devices", "device_name", json!("Ada's phone")),
        of_row(&feedback, "message_feedback", "rating", json!(5)),
    ];
    let id = filed(&fixture, &all).await;
    let ran = run(&fixture, &["run"]).await;
    assert!(ran.is_success(), "{}", ran.all());
    assert_eq!(
        value(&fixture, "email FROM users WHERE id = 42").await,
        "user42@example.org",
        "nobody has decided"
    );
    let shown = run(&fixture, &["show", &id]).await.out;
    for part in [
        "users.email: \"ada@example.org\", instead of \"user42@example.org\"",
        "letter of 3 May",
        "test",
        &device,
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(refused(&fixture, &["rectify", &id]).await.contains("add --yes to confirm"));

    let done = erasure::json(&fixture, &["rectify", &id, "--yes"]).await;
    assert_eq!(done["request"], id.as_str());
    assert_eq!(done["corrected"][0]["before"], "user42@example.org");
    let person =
        "concat_ws('|', u.email, p.first_name, p.timezone, p.preferences, d.device_name, f.rating, f.comment)
        FROM users u JOIN user_profiles p ON p.user_id = u.id JOIN registered_devices d ON d.user_id = u.id
        JOIN message_feedback f ON f.user_id = u.id WHERE u.id = 42";
    assert_eq!(
        value(&fixture, person).await,
        "ada@example.org|Ada|{\"language\": \"pt\"}|Ada's phone|5|of-42-feedback"
    );
    let request = value(
        &fixture,
        &format!("concat_ws(' ', request_status, details) FROM privacy_requests WHERE id = '{id}'"),
    )
    .await;
    assert!(request.starts_with("completed ") && request.contains("\"column\": \"email\""), "{request}");
    for gone in ["ada@example.org", "Ada", "language"] {
        assert!(!request.contains(gone), "{request}");
    }
    assert_eq!(rows_of_others(&fixture, PERSON).await, others, "nobody else's rows were touched");
    let trail = "audit.audit_log l JOIN audit.subjects s ON s.token = l.subject_token
        WHERE s.user_id = 42 AND l.operation = 'UPDATE' AND l.table_name = 'users' AND 'email' = ANY (l.changed_columns)";
    assert_eq!(
        fixture.count(&format!("{trail} AND l.request_id = '{id}'")).await,
        1,
        "the trail names the request"
    );
    assert!(refused(&fixture, &["rectify", &id, "--yes"]).await.contains("is not pending; it is completed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_rectified_is_refused_and_says_what_corrects_it() {
    let fixture = two_users().await;
    let person = rows_of_person(&fixture).await;
    fixture
        .execute(&format!(
            "INSERT INTO encrypted_fields (id, user_id, table_name, column_name, row_id, ciphertext)
             VALUES (gen_random_uuid(), {PERSON}, 'message_feedback', 'comment', md5('{PERSON} feedback')::uuid, decode(repeat('ab', 100), 'hex'));
             UPDATE passkey_credentials SET public_key = NULL, removed_at = now() WHERE user_id = {PERSON}"
        ))
        .await;
    let (feedback, passkey) = (id_of(&fixture, "feedback").await, id_of(&fixture, "passkey").await);
    let foreign = value(&fixture, &format!("md5('{OTHER} device')::uuid FROM (SELECT 1) AS one")).await;
    for (arguments, says) in [
        (
            vec!["--table", "simple_chat_context", "--set", "context_value=1"],
            "`context.put` with a higher version",
        ),
        (vec!["--table", "chat_messages", "--set", "content=\"x\""], "record what has happened"),
        (vec!["--table", "users", "--set", "role=\"admin\""], "of users these can be: username, email"),
        (vec!["--table", "users", "--set", "password_hash=\"x\""], "must be put again by its service"),
        (
            vec!["--table", "users; DROP TABLE users", "--set", "email=\"a@b.c\""],
            "no table with data of a person",
        ),
        (vec!["--table", "users", "--set", "email=ada@example.org"], "the value is JSON"),
        (vec!["--table", "users", "--set", "email=null"], "must be a text of 3 to 320 characters"),
        (vec!["--table", "user_profiles", "--set", "preferences=[]"], "must be an object"),
        (
            vec!["--table", "users", "--set", "email=\"a@b.c\"", "--set", "email=\"c@d.e\""],
            "is corrected twice",
        ),
        (vec!["--table", "registered_devices", "--set", "device_name=\"x\""], "name the row by its id"),
        (
            vec!["--table", "registered_devices", "--row", &foreign, "--set", "device_name=\"x\""],
            "user 42 has no such row",
        ),
        (
            vec!["--table", "passkey_credentials", "--row", &passkey, "--set", "passkey_name=\"x\""],
            "or it was removed",
        ),
        (
            vec!["--table", "message_feedback", "--row", &feedback, "--set", "comment=\"x\""],
            "the value is encrypted",
        ),
    ] {
        let all = [&["rectify", "42"], arguments.as_slice(), &["--reason", "a letter", "--yes"]].concat();
        let said = refused(&fixture, &all).await;
        assert!(said.contains(says), "{arguments:?}: {said}");
    }
    assert_eq!(rows_of_person(&fixture).await, person, "nothing was changed");
    assert_eq!(fixture.count("privacy_requests WHERE request_type = 'rectify'").await, 0, "nor filed");
}

async fn rows_of_person(fixture: &Fixture) -> Vec<String> {
    fixture
        .lines(&format!(
            "line FROM (SELECT u::text AS line FROM users u WHERE u.id = {PERSON} UNION ALL SELECT p::text FROM user_profiles p WHERE p.user_id = {PERSON}
                UNION ALL SELECT f::text FROM message_feedback f WHERE f.user_id = {PERSON}
                UNION ALL SELECT d::text FROM registered_devices d WHERE d.user_id IN ({PERSON}, {OTHER})
                UNION ALL SELECT c::text FROM simple_chat_context c WHERE c.user_id = {PERSON}) AS l ORDER BY 1"
        ))
        .await
}

/// All of a request, or nothing.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_corrected_if_another_value_is_stored_than_the_one_said_to_be_wrong() {
    let fixture = two_users().await;
    let mut stale = correction("users", "email", json!("ada@example.org"));
    stale["was"] = json!("somebody@example.org");
    let id = filed(&fixture, &[correction("user_profiles", "first_name", json!("Ada")), stale]).await;
    let said = refused(&fixture, &["rectify", &id, "--yes"]).await;
    assert!(said.contains("users.email: the value is not the one that is said to be wrong"), "{said}");
    let stored = "concat_ws('|', u.email, p.first_name) FROM users u JOIN user_profiles p ON p.user_id = u.id WHERE u.id = 42";
    assert_eq!(value(&fixture, stored).await, "user42@example.org|Adda");
    let shown = erasure::json(&fixture, &["show", &id]).await;
    assert_eq!(shown["request"]["status"], "pending");

    let rejected = run(&fixture, &["reject", &id, "--reason", "the person was somebody else"]).await;
    assert!(rejected.is_success(), "{}", rejected.all());
    let left = value(
        &fixture,
        &format!(
            "concat_ws(' ', request_status, last_error, details) FROM privacy_requests WHERE id = '{id}'"
        ),
    )
    .await;
    assert!(left.starts_with("rejected rejected: the person was somebody else"), "{left}");
    assert!(
        left.contains("\"email\"") && !left.contains("example.org") && !left.contains("Ada"),
        "no value is left: {left}"
    );
    assert!(refused(&fixture, &["rectify", &id, "--yes"]).await.contains("it is rejected"));
    assert!(refused(&fixture, &["reject", &id, "--reason", "again"]).await.contains("is not pending"));
    let erasure = erasure::file(&fixture, PERSON).await;
    assert!(refused(&fixture, &["reject", &erasure, "--reason", "no"]).await.contains("privacy cancel"));
    assert!(refused(&fixture, &["rectify", &erasure, "--yes"]).await.contains("is no rectification"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_corrects_a_restricted_person_and_nobody_who_is_erased() {
    let fixture = two_users().await;
    let id = filed(&fixture, &[correction("users", "email", json!("ada@example.org"))]).await;
    restrict(&fixture, PERSON, Meanwhile::Refuse).await;
    let rectify = ["rectify", "42", "--table", "users", "--set", "username=\"ada\"", "--reason", "a letter"];
    let done = run(&fixture, &[&rectify[..], &["--yes"]].concat()).await;
    assert!(
        done.is_success() && done.out.contains("users.username: \"user42\" -> \"ada\""),
        "{}",
        done.all()
    );
    assert_eq!(value(&fixture, "username FROM users WHERE id = 42").await, "ada");
    let row = "concat_ws(' ', request_status, reason) FROM privacy_requests WHERE service = 'operator' AND request_type = 'rectify'";
    assert_eq!(value(&fixture, row).await, "completed a letter");

    let says = async |user: &str| {
        let mut arguments = rectify.to_vec();
        arguments[1] = user;
        refused(&fixture, &[arguments.as_slice(), &["--yes"]].concat()).await
    };
    assert!(says("77").await.contains("there is no user 77"));
    assert!(says("0").await.contains("user 0 is the platform, and cannot be rectified"));
    fixture
        .execute(&format!(
            "INSERT INTO sec.fenced_users (user_id, request_id) VALUES ({PERSON}, gen_random_uuid())"
        ))
        .await;
    assert!(says("42").await.contains("user 42 is being erased"));
    assert!(refused(&fixture, &["rectify", &id, "--yes"]).await.contains("user 42 is being erased"));
    // Also whoever had looked at it before.
    let new = NewRectification {
        user: UserId::new(PERSON).expect("an id"),
        service: "operator".to_owned(),
        reason: "a letter".to_owned(),
        corrections: vec![
            serde_json::from_value(correction("users", "username", json!("eda"))).expect("a correction"),
        ],
    };
    let done = privacy::rectify::rectify(&mut fixture.connection().await, &new).await;
    assert!(done.as_ref().is_err_and(|error| error.to_string().contains("is being erased")), "{done:?}");
    let person = UserId::new(PERSON).expect("an id");
    privacy::fence::note_erased(&mut fixture.connection().await, person, uuid::Uuid::new_v4(), None)
        .await
        .expect("a tombstone");
    assert!(says("42").await.contains("user 42 was erased"));
}

/// What a service published before must not bring the old value back; what it publishes afterwards may.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_published_before_does_not_undo_a_rectification() {
    let fixture = two_users().await;
    fixture.publish([user(PERSON)]).await;
    let rectify = [
        "rectify",
        "42",
        "--table",
        "users",
        "--set",
        "email=\"ada@example.org\"",
        "--reason",
        "a letter",
        "--yes",
    ];
    let done = run(&fixture, &rectify).await;
    assert!(done.is_success(), "{}", done.all());
    assert!(done.err.contains("the platform's own record must be corrected"), "{}", done.err);
    assert!(done.err.contains("1 events have an old value"), "{}", done.err);
    fixture.process(ContextWriter, []).await;
    assert_eq!(value(&fixture, "email FROM users WHERE id = 42").await, "ada@example.org");
    fixture.process(ContextWriter, [user(PERSON)]).await;
    assert_eq!(value(&fixture, "email FROM users WHERE id = 42").await, "user42@example.org");
}

/// The text of a memory is computed into vectors, and stays.
#[tokio::test(flavor = "multi_thread")]
async fn the_operator_is_warned_of_memories_and_archives() {
    const ARCHIVE: &str = "0193c0de-0000-7000-8000-00000000000c";
    let fixture = two_users().await;
    fixture
        .execute(&format!(
            "UPDATE unified_memory_vectors SET content_text = 'Adda lives in Lisbon' WHERE user_id = {PERSON};
             INSERT INTO archives (id, table_name, location, manifest_hash, policies, run_id, row_count, byte_count, first_at, last_at, user_ids, not_removed)
                 VALUES ('{ARCHIVE}', 'blackboard_events', 'blackboard_events/2026-01/{ARCHIVE}', sha256('x'), '{{}}', gen_random_uuid(), 1, 1, now(), now(), ARRAY[{PERSON}], '{{}}')"
        ))
        .await;
    let rectify = [
        "rectify",
        "42",
        "--table",
        "user_profiles",
        "--set",
        "first_name=\"Ada\"",
        "--reason",
        "a letter",
        "--yes",
    ];
    let done = run(&fixture, &rectify).await;
    assert!(done.is_success(), "{}", done.all());
    for warning in ["the texts of 1 memories have an old value", "1 archives have rows of the person"] {
        assert!(done.err.contains(warning), "{}", done.err);
    }
}
