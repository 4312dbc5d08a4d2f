//! The restriction of a person's data in the database: no role reads or writes them until it is lifted, and everybody else goes on.

use std::time::Duration;

use context_writer::ContextWriter;
use contract::UserId;
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use privacy::restriction::{self, Change, Meanwhile};
use testkit::attack::{assert_refused, attempt, attempt_for, first_error, grant, login, roles, tables};
use testkit::{Fixture, session, user};
use uuid::Uuid;

use crate::support::ROLE;
use crate::support::erasure::{erase, json, privacy, receipt, rows_of, with_receipts};
use crate::support::privacy::{asked, lift, restrict};

const PERSON: i32 = 42;
const OTHER: i32 = 420;
const REFUSED: &str = "the security context is refused: the user is restricted";
const WAITING: &str = "the security context is refused: the user is restricted, and requests wait";

async fn two_users() -> Fixture {
    let fixture = Fixture::new().await;
    fill(&fixture).await;
    fixture
}

async fn fill(fixture: &Fixture) {
    let accounts = [PERSON, OTHER].into_iter().flat_map(|id| [user(id), session(id, "s")]);
    fixture.process(ContextWriter, accounts.collect::<Vec<_>>()).await;
}

fn grants(role: &str, users: &[i32]) -> Vec<String> {
    users.iter().map(|user| grant(*user, role)).collect()
}

fn opening(role: &str, users: &[i32]) -> String {
    let list: Vec<String> = grants(role, users).iter().map(|grant| format!("'{grant}'")).collect();
    format!("SELECT sec.open_context(ARRAY[{}])", list.join(", "))
}

async fn begin(worker: &mut AsyncPgConnection, role: &str, users: &[i32]) {
    worker.batch_execute("BEGIN").await.expect("a transaction");
    attempt(worker, &opening(role, users)).await.expect("a context");
}

async fn every_role(fixture: &Fixture) -> Vec<String> {
    let mut all = roles(fixture).await;
    all.push("w_memory_reader".to_owned());
    all
}

/// The requests of the person: `restrict completed wait`.
async fn requests(fixture: &Fixture) -> Vec<String> {
    let columns = "concat_ws(' ', request_type, request_status, details ->> 'while')";
    fixture.lines(&format!("{columns} FROM privacy_requests WHERE user_id = {PERSON} ORDER BY id")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_role_opens_a_context_for_the_person_and_all_do_for_others() {
    let fixture = two_users().await;
    let tables = tables(&fixture).await;
    for (meanwhile, expected) in [(Meanwhile::Refuse, REFUSED), (Meanwhile::Wait, WAITING)] {
        restrict(&fixture, PERSON, meanwhile).await;
        for role in every_role(&fixture).await {
            let mut worker = login(&fixture, &role).await;
            for (table, column) in &tables {
                let read = format!("SELECT FROM {table}");
                for users in [vec![PERSON], vec![OTHER, PERSON]] {
                    let done = attempt_for(&mut worker, &grants(&role, &users), &read).await;
                    let what = format!("{role}: {table} of {users:?}");
                    assert!(done.as_ref().is_err_and(|error| error.ends_with(expected)), "{what}: {done:?}");
                }
                // Nor as one of another context.
                let read = format!("SELECT FROM {table} WHERE {column} = {PERSON}");
                let done = attempt_for(&mut worker, &grants(&role, &[OTHER]), &read).await;
                assert!(!done.as_ref().is_ok_and(|rows| *rows > 0), "{role}: {table}: {done:?}");
            }
            let opened = attempt_for(&mut worker, &grants(&role, &[OTHER]), "SELECT 1").await;
            assert_eq!(opened, Ok(1), "{role}: of another user");
            let url = fixture.settings.postgres.url_of(&role);
            let error = first_error(&url, &["BEGIN".to_owned(), opening(&role, &[PERSON])]).await;
            assert_eq!(error, Some(("MF018".to_owned(), expected.to_owned())), "{role}");
        }
    }
    lift(&fixture, PERSON).await;
    for role in every_role(&fixture).await {
        let mut worker = login(&fixture, &role).await;
        let opened = attempt_for(&mut worker, &grants(&role, &[OTHER, PERSON]), "SELECT 1").await;
        assert_eq!(opened, Ok(1), "{role}: after the lift");
    }
    assert_eq!(fixture.count("audit.security_violations").await, 0, "it is nobody's fault");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_comes_before_what_waits() {
    let fixture = two_users().await;
    restrict(&fixture, OTHER, Meanwhile::Wait).await;
    restrict(&fixture, PERSON, Meanwhile::Refuse).await;
    let mut worker = login(&fixture, ROLE).await;
    for users in [[PERSON, OTHER], [OTHER, PERSON]] {
        let done = attempt_for(&mut worker, &grants(ROLE, &users), "SELECT 1").await;
        assert!(done.as_ref().is_err_and(|error| error.ends_with(REFUSED)), "{done:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_that_is_open_ends_and_those_of_others_go_on() {
    let fixture = two_users().await;
    let (mut own, mut neighbour) = (login(&fixture, ROLE).await, login(&fixture, ROLE).await);
    begin(&mut own, ROLE, &[OTHER, PERSON]).await;
    begin(&mut neighbour, ROLE, &[OTHER]).await;
    assert_eq!(attempt(&mut own, "SELECT FROM users").await, Ok(2));
    restrict(&fixture, PERSON, Meanwhile::Refuse).await;
    let ended = "the security context has ended";
    assert_refused(attempt(&mut own, "SELECT FROM users").await, ended, "a read");
    own.batch_execute("ROLLBACK").await.expect("its end");
    assert_eq!(attempt(&mut neighbour, "SELECT FROM users").await, Ok(1));
    let write = "UPDATE users SET username = username";
    assert_eq!(attempt(&mut neighbour, write).await, Ok(1));
    neighbour.batch_execute("COMMIT").await.expect("a commit");
}

/// A job of a test whose users are due in the order of their ids.
async fn with_job(fixture: &Fixture) {
    fixture
        .execute(
            "CREATE FUNCTION sec.due_test(most integer) RETURNS SETOF integer LANGUAGE sql STABLE SECURITY DEFINER
                 SET search_path = pg_catalog, pg_temp AS $$ SELECT u.id FROM public.users u WHERE u.id > 0 ORDER BY 1 LIMIT most $$;
             GRANT SELECT (id) ON users TO memfleet_due;
             GRANT EXECUTE ON FUNCTION sec.has_due TO w_gpu_allocator;
             SELECT sec.grant_worker('w_gpu_allocator', '{\"simple_chat_context\": [\"SELECT\"]}');
             SELECT sec.add_job('test-job', 'w_gpu_allocator', 'sec.due_test(integer)')",
        )
        .await;
}

fn minting(tick: Uuid, most: i32) -> String {
    format!("user_id FROM sec.job_grants('test-job', '{tick}', {most}) WHERE user_id > 0 ORDER BY 1")
}

/// Job grants are for many users together: one who is restricted would keep all of them from their work.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_leave_the_person_out_until_the_lift() {
    let fixture = two_users().await;
    with_job(&fixture).await;
    let mut worker = login(&fixture, "w_gpu_allocator").await;
    let mint = minting(Uuid::now_v7(), 10);
    assert_eq!(testkit::lines_on(&mut worker, &mint).await, ["42", "420"]);
    restrict(&fixture, PERSON, Meanwhile::Wait).await;
    let left = testkit::lines_on(&mut worker, &mint).await;
    assert_eq!(left, ["420"], "nor as one of an earlier mint of the tick");
    lift(&fixture, PERSON).await;
    assert_eq!(testkit::lines_on(&mut worker, &mint).await, ["42", "420"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn restricted_users_take_no_places_of_others_in_a_job() {
    let fixture = two_users().await;
    with_job(&fixture).await;
    let mut worker = login(&fixture, "w_gpu_allocator").await;
    restrict(&fixture, PERSON, Meanwhile::Refuse).await;
    let one = testkit::lines_on(&mut worker, &minting(Uuid::now_v7(), 1)).await;
    assert_eq!(one, ["420"], "though the person comes first");
    let due = "sec.has_due('test-job') FROM (SELECT 1) AS one";
    assert_eq!(testkit::lines_on(&mut worker, due).await, ["true"]);
    restrict(&fixture, OTHER, Meanwhile::Refuse).await;
    assert_eq!(testkit::lines_on(&mut worker, due).await, ["false"]);
    let nobody = testkit::lines_on(&mut worker, &minting(Uuid::now_v7(), 10)).await;
    assert_eq!(nobody, Vec::<String>::new());
}

/// Retention deletes, which is processing as well.
#[tokio::test(flavor = "multi_thread")]
async fn the_sweep_leaves_the_rows_of_the_person() {
    let fixture = two_users().await;
    fixture
        .execute(
            "INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value, expires_at)
             SELECT gen_random_uuid(), u, 's', 'expired', '1', now() - interval '1 day' FROM unnest(ARRAY[42, 420]) AS u",
        )
        .await;
    let due = "u FROM sec.due_users(ARRAY[42, 420]) AS u ORDER BY 1";
    restrict(&fixture, PERSON, Meanwhile::Refuse).await;
    assert_eq!(fixture.lines(due).await, ["420"]);
    lift(&fixture, PERSON).await;
    assert_eq!(fixture.lines(due).await, ["42", "420"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_issued_if_requests_wait_and_not_if_they_are_refused() {
    let fixture = two_users().await;
    fixture.register("test", "*:*").await;
    let mut issuer = login(&fixture, "w_token_issuer").await;
    let token = |user: i32| {
        format!(
            "SELECT sec.register_tokens(jsonb_build_array(jsonb_build_object('token_id', gen_random_uuid(), 'service', 'test',
                 'user_id', {user}, 'scopes', jsonb_build_array('context:put'), 'key_id', 'k', 'issued_at', now(),
                 'expires_at', now() + interval '1 minute', 'grants_expire_at', now() + interval '1 minute')))"
        )
    };
    restrict(&fixture, PERSON, Meanwhile::Refuse).await;
    let by = "the token is refused: the user is restricted";
    assert_refused(attempt(&mut issuer, &token(PERSON)).await, by, "a token");
    assert_eq!(attempt(&mut issuer, &token(OTHER)).await, Ok(1));
    restrict(&fixture, PERSON, Meanwhile::Wait).await;
    assert_eq!(attempt(&mut issuer, &token(PERSON)).await, Ok(1), "what is to wait needs one");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_worker_restricts_or_lifts_and_the_platform_is_not_restricted() {
    let fixture = two_users().await;
    restrict(&fixture, PERSON, Meanwhile::Refuse).await;
    for role in every_role(&fixture).await {
        let mut worker = login(&fixture, &role).await;
        for sql in [
            "INSERT INTO sec.restricted_users (user_id, request_id, waits) VALUES (420, gen_random_uuid(), true)",
            "UPDATE sec.restricted_users SET waits = true",
            "DELETE FROM sec.restricted_users",
            "SELECT FROM sec.restricted_users",
            "SELECT sec.restriction_of(ARRAY[42])",
            "INSERT INTO privacy_requests (id, user_id, request_type) VALUES (gen_random_uuid(), 420, 'lift')",
        ] {
            assert_refused(attempt(&mut worker, sql).await, "permission denied", &format!("{role}: {sql}"));
        }
    }
    let mut superuser = fixture.connection().await;
    let platform =
        "INSERT INTO sec.restricted_users (user_id, request_id, waits) VALUES (0, gen_random_uuid(), true)";
    assert_refused(attempt(&mut superuser, platform).await, "restricted_users_user_id_check", "user 0");
    let touched = attempt(&mut superuser, "UPDATE users SET username = 'u' WHERE id = 42").await;
    assert_eq!(touched, Ok(1), "an operator may");
}

#[tokio::test(flavor = "multi_thread")]
async fn restricting_again_says_since_when_and_may_change_what_becomes_of_requests() {
    let fixture = two_users().await;
    let restricted = json(&fixture, &["restrict", "42", "--reason", "letter of 3 May"]).await;
    assert_eq!(
        (&restricted["while"], &restricted["status"], &restricted["changed"]),
        (&"refuse".into(), &"completed".into(), &true.into())
    );
    let again = privacy(&fixture, &["restrict", "42"]).await;
    assert!(again.is_success() && again.out.contains("already restricted, since 20"), "{}", again.all());
    let again = json(&fixture, &["restrict", "42", "--while", "refuse"]).await;
    assert_eq!((&again["request"], &again["since"]), (&restricted["request"], &restricted["since"]));
    assert_eq!(again["changed"], false);
    assert_eq!(requests(&fixture).await, ["restrict completed refuse"]);

    let changed = json(&fixture, &["restrict", "42", "--while", "wait"]).await;
    assert_eq!((&changed["while"], &changed["since"]), (&"wait".into(), &restricted["since"]));
    let kept = json(&fixture, &["restrict", "42"]).await;
    assert_eq!((&kept["while"], &kept["request"]), (&"wait".into(), &changed["request"]), "it stays");
    let listed = json(&fixture, &["list", "--restricted"]).await;
    assert_eq!(listed["requests"].as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!(
        (&listed["requests"][0]["id"], &listed["requests"][0]["while"]),
        (&changed["request"], &"wait".into())
    );
    let shown = privacy(&fixture, &["show", restricted["request"].as_str().expect("an id")]).await;
    assert!(shown.out.contains("letter of 3 May") && shown.out.contains("refuse"), "{}", shown.all());

    let lifted = privacy(&fixture, &["lift", "42", "--reason", "it is settled"]).await;
    assert!(lifted.is_success() && lifted.out.contains("lifted"), "{}", lifted.all());
    assert_eq!(
        requests(&fixture).await,
        ["restrict completed refuse", "restrict completed wait", "lift completed"]
    );
    assert_eq!(json(&fixture, &["list", "--restricted"]).await["requests"], serde_json::json!([]));
    let lifted = privacy(&fixture, &["lift", "42"]).await;
    assert!(!lifted.is_success() && lifted.err.contains("user 42 is not restricted"), "{}", lifted.all());

    let due = "due_at BETWEEN now() + interval '27 days' AND now() + interval '32 days' FROM privacy_requests WHERE user_id = 42";
    assert_eq!(fixture.lines(due).await, ["true"; 3], "the law gives a month");
    let trail = "o FROM (SELECT DISTINCT l.operation::text AS o FROM audit.audit_log l JOIN audit.subjects s ON s.token = l.subject_token
        WHERE l.table_name = 'privacy_requests' AND s.user_id = 42) AS of_person ORDER BY 1";
    assert_eq!(fixture.lines(trail).await, ["INSERT", "UPDATE"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_restricted_of_whom_there_is_nothing_or_who_is_being_erased() {
    let fixture = two_users().await;
    let says = async |arguments: &[&str]| {
        let ended = privacy(&fixture, arguments).await;
        assert!(!ended.is_success() && !ended.err.contains("panicked"), "{arguments:?}: {}", ended.all());
        ended.err
    };
    for command in ["restrict", "lift"] {
        assert!(says(&[command, "77"]).await.contains("there is no user 77"), "{command}");
        for wrong in ["0", "-1", "x", ""] {
            says(&[command, wrong]).await;
        }
        says(&[command, "42", "--reason", " "]).await;
        says(&[command, "42", "--reason", &"x".repeat(2_049)]).await;
    }
    assert!(says(&["restrict", "42", "--while", "maybe"]).await.contains("possible values: wait, refuse"));
    assert!(says(&["lift", "42"]).await.contains("user 42 is not restricted"));
    let fence = "INSERT INTO sec.fenced_users (user_id, request_id) VALUES (42, gen_random_uuid())";
    fixture.execute(fence).await;
    for command in ["restrict", "lift"] {
        assert!(says(&[command, "42"]).await.contains("user 42 is being erased"), "{command}");
    }
    let person = UserId::new(PERSON).expect("an id");
    privacy::fence::note_erased(&mut fixture.connection().await, person, Uuid::new_v4(), None)
        .await
        .expect("a tombstone");
    for command in ["restrict", "lift"] {
        assert!(says(&[command, "42"]).await.contains("user 42 was erased"), "{command}");
    }
    assert_eq!(fixture.count("sec.restricted_users").await, 0);
    assert_eq!(requests(&fixture).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restriction_is_complete_when_what_ran_before_has_ended() {
    let fixture = two_users().await;
    let (mut db, person) = (fixture.connection().await, UserId::new(PERSON).expect("an id"));
    let short = Duration::from_millis(200);
    for ends in [true, false] {
        let mut worker = login(&fixture, ROLE).await;
        begin(&mut worker, ROLE, &[OTHER]).await;
        let made = restriction::restrict(&mut db, person, None, &asked()).await.expect("a restriction");
        assert_eq!((made.change, made.meanwhile), (Change::Restricted, Meanwhile::Refuse));
        let open = restriction::complete(&mut db, person, made.request, short).await.expect("an answer");
        assert!(open.len() == 1 && open[0].contains(ROLE), "{open:?}");
        assert_eq!(requests(&fixture).await.last().map(String::as_str), Some("restrict in_progress refuse"));
        if ends {
            worker.batch_execute("ROLLBACK").await.expect("its end");
            let again = restriction::restrict(&mut db, person, None, &asked()).await.expect("an answer");
            assert_eq!((again.change, again.request), (Change::Nothing, made.request));
            let open = restriction::complete(&mut db, person, made.request, short).await.expect("an answer");
            assert_eq!(open, Vec::<String>::new());
        }
        let lifted = restriction::lift(&mut db, person, &asked()).await.expect("a lift");
        assert_eq!(lifted.since, made.since);
    }
    assert_eq!(
        requests(&fixture).await,
        ["restrict completed refuse", "lift completed", "restrict rejected refuse", "lift completed"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restricted_person_is_erased_by_an_operator() {
    let mut fixture = Fixture::new().await;
    let receipts = with_receipts(&mut fixture);
    fill(&fixture).await;
    restrict(&fixture, PERSON, Meanwhile::Wait).await;
    restrict(&fixture, OTHER, Meanwhile::Refuse).await;
    let signed = erase(&fixture, receipts.path(), PERSON).await;
    assert_eq!(receipt(&signed)["body"]["kind"], "erase");
    assert_eq!(fixture.lines("user_id FROM sec.restricted_users").await, ["420"], "the other one stays so");
    assert!(rows_of(&fixture, PERSON).await.is_empty());
    let verified = privacy(&fixture, &["verify", signed.to_str().expect("a path"), "--user", "42"]).await;
    assert!(verified.is_success(), "{}", verified.all());
    let mut worker = login(&fixture, ROLE).await;
    let done = attempt_for(&mut worker, &grants(ROLE, &[PERSON]), "SELECT 1").await;
    assert_refused(done, "the security context is refused: the user is erased", "erased, and not restricted");
}
