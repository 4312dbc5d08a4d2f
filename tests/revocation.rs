//! Attacks with a worker's login on what an operator takes back, and on what events say of themselves.

use std::time::SystemTime;

use context_writer::ContextWriter;
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use store::registry;
use testkit::attack::{assert_refused, attempt, attempt_for, grant, grant_key, login, login_to_key_store};
use testkit::{Fixture, eventually, token, user};
use uuid::Uuid;

const ROLE: &str = "w_context_writer";

/// The id of a grant, by which it is revoked.
fn id_of(grant: &str) -> Uuid {
    grant.split('|').nth(6).and_then(|id| id.parse().ok()).expect("an id")
}

async fn two_users() -> Fixture {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1), user(2)]).await;
    fixture
}

#[tokio::test(flavor = "multi_thread")]
async fn no_lock_of_a_role_holds_off_a_revocation() {
    let fixture = two_users().await;
    let mut operator = fixture.connection().await;
    operator.batch_execute("SET lock_timeout = '1s'").await.expect("a setting");
    let (_, issued) =
        registry::issue(&mut operator, &token::issuer(), token::request("test", 1), SystemTime::now())
            .await
            .expect("a token");
    let note = format!("SELECT sec.note_token_use(ARRAY['{}'::uuid], ARRAY[now()])", issued.id);

    let mut worker = login(&fixture, ROLE).await;
    let earlier = note.replace("now()", "now() - interval '1 minute'");
    attempt(&mut worker, &earlier).await.expect("a note");
    worker.batch_execute("BEGIN; SET idle_in_transaction_session_timeout = 0").await.expect("its right");
    attempt(&mut worker, &note).await.expect("a note");
    attempt(&mut worker, "SELECT sec.trust_state()").await.expect("the registry");
    // A replica of the same role, and one of another role, note the same use meanwhile.
    for role in [ROLE, "w_router_logger"] {
        let mut other = login(&fixture, role).await;
        other.batch_execute("SET lock_timeout = '1s'").await.expect("a setting");
        attempt(&mut other, &note).await.expect(role);
    }
    assert_eq!(registry::revoke(&mut operator, &[issued.id]).await.expect("no waiting"), 1);
    let service = "test".parse().expect("a service");
    assert!(registry::disable_service(&mut operator, &service).await.expect("no waiting"));
    worker.batch_execute("COMMIT").await.expect("its end");
    let filter = registry::TokenFilter { all: true, limit: 10, ..Default::default() };
    let listed = registry::list(&mut operator, &filter).await.expect("the tokens");
    assert!(listed.iter().any(|one| one.token_id == issued.id && one.last_used_at.is_some()), "{listed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retired_grant_key_ends_the_contexts_that_it_opened() {
    let fixture = two_users().await;
    let mut operator = fixture.connection().await;
    let mut worker = login(&fixture, ROLE).await;
    let held = grant(1, ROLE);
    worker.batch_execute("BEGIN").await.expect("a transaction");
    attempt(&mut worker, &format!("SELECT sec.open_context(ARRAY['{held}'])")).await.expect("a context");
    let key = grant_key();
    assert!(store::security::retire_grant_key(&mut operator, key.name()).await.expect("no waiting"));
    let ended = "the security context has ended";
    assert_refused(attempt(&mut worker, "SELECT FROM users").await, ended, "a read after it");
    worker.batch_execute("ROLLBACK").await.expect("its end");
    assert_refused(
        attempt_for(&mut worker, &[held], "SELECT FROM users").await,
        "unknown key",
        "a new context",
    );
    assert!(
        !store::security::retire_grant_key(&mut operator, "context").await.expect("an answer"),
        "of another purpose"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_ends_the_contexts_that_are_open() {
    let fixture = two_users().await;
    let mut operator = fixture.connection().await;
    let mut worker = login(&fixture, ROLE).await;
    let held = grant(1, ROLE);
    let open = format!("SELECT sec.open_context(ARRAY['{held}'])");
    let (_, of_another) =
        registry::issue(&mut operator, &token::issuer(), token::request("test", 2), SystemTime::now())
            .await
            .expect("a token");

    worker.batch_execute("BEGIN").await.expect("a transaction");
    attempt(&mut worker, &open).await.expect("a context");
    registry::revoke(&mut operator, &[of_another.id]).await.expect("a revocation");
    assert_eq!(attempt(&mut worker, "SELECT FROM users").await, Ok(1), "what another user had is revoked");
    registry::revoke(&mut operator, &[id_of(&held)]).await.expect("a revocation");
    let ended = "the security context has ended";
    assert_refused(attempt(&mut worker, "SELECT FROM users").await, ended, "a read after the revocation");
    worker.batch_execute("ROLLBACK").await.expect("its end");
    assert_refused(attempt_for(&mut worker, &[held], "SELECT FROM users").await, "revoked", "a new context");

    // The same of a service that is disabled.
    worker.batch_execute("BEGIN").await.expect("a transaction");
    let good = grant(2, ROLE);
    attempt(&mut worker, &format!("SELECT sec.open_context(ARRAY['{good}'])")).await.expect("a context");
    registry::disable_service(&mut operator, &"test".parse().unwrap()).await.expect("disabled");
    assert_refused(attempt(&mut worker, "UPDATE users SET id = id").await, ended, "a write afterwards");
    worker.batch_execute("ROLLBACK").await.expect("its end");
    let again = attempt_for(&mut worker, &[good], "SELECT FROM users").await;
    assert_refused(again, "of a disabled service", "a new context");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_is_of_one_transaction_however_it_is_opened() {
    let fixture = two_users().await;
    let logins =
        [(login(&fixture, ROLE).await, "users"), (login_to_key_store(&fixture, ROLE).await, "data_keys")];
    for (mut worker, table) in logins {
        assert_contexts_of_one_transaction(&mut worker, table).await;
    }
}

async fn assert_contexts_of_one_transaction(worker: &mut AsyncPgConnection, table: &str) {
    let open = format!("sec.open_context(ARRAY['{}'])", grant(1, ROLE));
    let keep = "set_config('memfleet.context', current_setting('memfleet.context'), false)";
    for sql in [
        // All of a message begin at the same time, so that the next transaction would look like the first.
        format!(
            "BEGIN; SELECT {open}; SELECT {keep}; COMMIT; BEGIN; SELECT 1 / count(*) FROM {table}; COMMIT"
        ),
        format!(
            "DO $$ BEGIN PERFORM {open}; PERFORM {keep}; COMMIT; PERFORM 1 / count(*) FROM {table}; END $$"
        ),
        format!("PREPARE p AS SELECT {open}"),
    ] {
        let done = worker.batch_execute(&sql).await;
        let done = match done {
            Ok(()) => worker.batch_execute("EXECUTE p").await,
            Err(error) => Err(error),
        };
        let problem = done.expect_err(&sql).to_string();
        assert!(problem.contains("opened by a statement of its own"), "{sql}: {problem}");
        let _ = worker.batch_execute("ROLLBACK").await;
    }
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        worker.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}")).await.expect("a transaction");
        let done = attempt(worker, &format!("SELECT {open}")).await;
        assert_refused(done, "read committed only", level);
        worker.batch_execute("ROLLBACK").await.expect("its end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_events_are_sealed_by_is_not_their_writers_to_choose() {
    let fixture = two_users().await;
    let mut worker = login(&fixture, ROLE).await;
    let insert = |columns: &str, values: &str| {
        format!(
            "INSERT INTO blackboard_events (id, event_type, performative, source_agent_id, user_id, session_id,
             event_payload, request_id{columns})
             SELECT '{}'::uuid, 'user.stored', 'inform', 'test', 1, '_account', '{{}}', '{}'::uuid{values}",
            Uuid::now_v7(),
            Uuid::now_v7()
        )
    };
    let grants = [grant(1, ROLE)];
    assert_eq!(
        attempt_for(&mut worker, &grants, &insert(", logical_timestamp", ", 1000")).await,
        Ok(1),
        "as the database has it"
    );
    for (column, value) in [
        ("transaction_id", "1"),
        ("transaction_id", "9223372036854775807"),
        ("created_at", "now() - interval '1 day'"),
        ("created_at", "'infinity'"),
        ("event_sequence", "9223372036854775807"),
        ("event_sequence", "1"),
        ("logical_timestamp", "9223372036854775807"),
        ("logical_timestamp", "(extract(epoch FROM now() + interval '1 minute') * 1000000)::bigint"),
    ] {
        let clock = if column == "logical_timestamp" { ("", "") } else { (", logical_timestamp", ", 1000") };
        let sql = insert(&format!("{}, {column}", clock.0), &format!("{}, {value}", clock.1));
        let done = attempt_for(&mut worker, &grants, &sql).await;
        assert_refused(done, "row-level security policy \"evidence\"", &format!("{column} {value}"));
    }
}

/// The types that each role may append are those of the catalogue.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_appends_events_of_its_own_types_alone() {
    let fixture = two_users().await;
    for role in fixture.lines("role_name FROM sec.worker_privileges GROUP BY role_name").await {
        let info = contract::WORKERS.iter().find(|worker| worker.role() == role);
        let mut worker = login(&fixture, &role).await;
        let may_append = fixture
            .count(&format!("sec.worker_privileges WHERE role_name = '{role}' AND table_name = 'blackboard_events'::regclass AND 'INSERT' = ANY (privileges)"))
            .await;
        for event in contract::EventType::ALL {
            let sql = format!(
                "INSERT INTO blackboard_events (id, event_type, performative, source_agent_id, user_id, session_id,
                 event_payload, logical_timestamp, request_id)
                 SELECT '{}'::uuid, '{event}', 'inform', 'test', 1, '@account', '{{}}', 1000, '{}'::uuid",
                Uuid::now_v7(),
                Uuid::now_v7()
            );
            let done = attempt_for(&mut worker, &[grant(1, &role)], &sql).await;
            let what = format!("{role}: {event}");
            match info.filter(|info| info.causes(*event)) {
                Some(_) => assert_eq!(done, Ok(1), "{what}"),
                None if may_append == 0 => assert_refused(done, "permission denied", &what),
                None => assert_refused(done, "row-level security policy \"own_types\"", &what),
            }
        }
    }
}

/// What a role writes into an event stops nobody who reads it.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_no_program_can_read_stops_nobody() {
    let fixture = two_users().await;
    let mut worker = login(&fixture, ROLE).await;
    let deep = format!(
        "WITH noted AS (SELECT sec.note_unpublished(1))
        INSERT INTO blackboard_events (id, event_type, performative, source_agent_id, user_id, session_id, event_payload,
            logical_timestamp, request_id)
        SELECT '{}'::uuid, 'user.stored', 'inform', 'test', 1, '@account', (repeat('[', 200) || repeat(']', 200))::jsonb, 1000,
            gen_random_uuid() FROM noted",
        Uuid::now_v7()
    );
    assert_eq!(attempt_for(&mut worker, &[grant(1, ROLE)], &deep).await, Ok(1));
    // The next event of the session comes after it.
    fixture.process(ContextWriter, [user(1), user(2)]).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(fixture.count("sec.unpublished_transactions").await, 0);
}

/// An event that no broker takes would be published again and again, and everything after it would wait.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_too_large_to_be_published_stops_nobody() {
    let fixture = two_users().await;
    let mut worker = login(&fixture, ROLE).await;
    let insert = |column: &str, value: &str| {
        let payload = if column == "event_payload" { "" } else { ", event_payload" };
        format!(
            "WITH noted AS (SELECT sec.note_unpublished(1))
            INSERT INTO blackboard_events (id, event_type, performative, source_agent_id, user_id, session_id,
                logical_timestamp, request_id, {column}{payload})
            SELECT '{}'::uuid, 'user.stored', 'inform', 'test', 1, '@account', 1000, gen_random_uuid(), {value}{}
            FROM noted",
            Uuid::now_v7(),
            if payload.is_empty() { "" } else { ", '{}'::jsonb" }
        )
    };
    let grants = [grant(1, ROLE)];
    let text = |bytes: usize| format!("to_jsonb(repeat('x', {}))", bytes - 2);
    let most = contract::limit::EVENT_PAYLOAD_BYTES;
    for (column, value) in [
        ("event_payload", text(most + 1)),
        ("semantic_context", text(70_000)),
        ("causality_chain", format!("jsonb_build_array({})", text(10_000))),
    ] {
        let done = attempt_for(&mut worker, &grants, &insert(column, &value)).await;
        assert_refused(done, "\"event_is_bounded\"", column);
    }
    // The largest one that is accepted, and one from before there was a limit.
    worker.batch_execute("BEGIN").await.expect("a transaction");
    attempt(&mut worker, &format!("SELECT sec.open_context(ARRAY['{}'])", grants[0]))
        .await
        .expect("a context");
    assert_eq!(attempt(&mut worker, &insert("event_payload", &text(most))).await, Ok(1));
    worker.batch_execute("COMMIT").await.expect("its end");
    fixture.execute("ALTER TABLE blackboard_events DROP CONSTRAINT event_is_bounded").await;
    worker.batch_execute("BEGIN").await.expect("a transaction");
    attempt(&mut worker, &format!("SELECT sec.open_context(ARRAY['{}'])", grants[0]))
        .await
        .expect("a context");
    assert_eq!(attempt(&mut worker, &insert("event_payload", &text(5_000_000))).await, Ok(1));
    worker.batch_execute("COMMIT").await.expect("its end");
    assert_eq!(fixture.count("sec.unpublished_transactions").await, 2);
    fixture.process(ContextWriter, [user(1), user(2)]).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(fixture.count("sec.unpublished_transactions").await, 0);
}

/// A number that two events have would let one of them pass for the other.
#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_an_event_is_used_once() {
    let fixture = two_users().await;
    let mut worker = login(&fixture, ROLE).await;
    let insert = |many: usize| {
        format!(
            "INSERT INTO blackboard_events (id, event_sequence, event_type, performative, source_agent_id, user_id, session_id,
                event_payload, logical_timestamp, request_id)
             SELECT overlay(gen_random_uuid()::text PLACING '{}' FROM 1 FOR 14)::uuid, drawn.number, 'user.stored', 'inform',
                'test', 1, '@account', '{{}}', 1000, gen_random_uuid()
             FROM (SELECT nextval('blackboard_event_sequence') AS number OFFSET 0) AS drawn, generate_series(1, {many})",
            &Uuid::now_v7().to_string()[..14]
        )
    };
    let grants = [grant(1, ROLE)];
    assert_eq!(attempt_for(&mut worker, &grants, &insert(1)).await, Ok(1), "once");
    let twice = attempt_for(&mut worker, &grants, &insert(2)).await;
    assert_refused(twice, "row-level security policy \"evidence\"", "twice");
}

/// A role says only of its own events that they are published, or are not.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_notes_its_own_events_as_published_alone() {
    let fixture = two_users().await;
    let mut worker = login(&fixture, ROLE).await;
    let ids: Vec<Uuid> = (0..3).map(|_| Uuid::now_v7()).collect();
    assert_eq!(attempt(&mut worker, "SELECT sec.note_unpublished(2)").await, Ok(1));
    let unpublished = || {
        fixture.lines(
            "concat_ws(' ', role_name, events, published) FROM (SELECT u.role_name, u.events, count(p.event_id) AS published
             FROM sec.unpublished_transactions u LEFT JOIN sec.published_events p ON p.transaction_id = u.transaction_id GROUP BY 1, 2) AS t",
        )
    };
    assert_eq!(unpublished().await, ["w_context_writer 2 0"]);
    let mut reader = login(&fixture, "w_memory_reader").await;
    let done = attempt(&mut reader, "SELECT sec.note_unpublished(1)").await;
    assert_refused(done, "this role appends no events", "memory-reader");
    let many = "INSERT INTO sec.unpublished_transactions (transaction_id, role_name, since, events)
        SELECT -n, 'w_context_writer', now(), 1 FROM generate_series(1, 10000) AS n";
    fixture.execute(many).await;
    let done = attempt(&mut worker, "SELECT sec.note_unpublished(1)").await;
    assert_refused(done, "too many unpublished transactions", "more than 10000");
    fixture.execute("DELETE FROM sec.unpublished_transactions WHERE transaction_id < -9").await;
    fixture.execute("UPDATE sec.unpublished_transactions SET events = 11111 WHERE transaction_id < 0").await;
    let done = attempt(&mut worker, "SELECT sec.note_unpublished(1)").await;
    assert_refused(done, "too many unpublished transactions", "more than 100000 events");
    fixture.execute("DELETE FROM sec.unpublished_transactions WHERE transaction_id < 0").await;
    let transaction = fixture.lines("transaction_id FROM sec.unpublished_transactions").await.remove(0);
    let note = |ids: &[Uuid]| {
        let ids: Vec<String> = ids.iter().map(|id| format!("'{id}'::uuid")).collect();
        let transactions = vec![transaction.clone(); ids.len()];
        format!(
            "SELECT sec.note_published(ARRAY[{}]::bigint[], ARRAY[{}])",
            transactions.join(","),
            ids.join(",")
        )
    };
    let mut other = login(&fixture, "w_router_logger").await;
    assert_eq!(attempt(&mut other, &note(&ids)).await, Ok(1));
    assert_eq!(unpublished().await, ["w_context_writer 2 0"]);
    for (events, left) in [
        (&ids[..1], vec!["w_context_writer 2 1"]),
        (&ids[..1], vec!["w_context_writer 2 1"]),
        (&ids[1..2], vec![]),
    ] {
        assert_eq!(attempt(&mut worker, &note(events)).await, Ok(1));
        assert_eq!(unpublished().await, left);
    }
    assert_eq!(fixture.count("sec.published_events").await, 0, "they go with their transaction");
    for sql in [
        "SELECT * FROM sec.unpublished_transactions",
        "DELETE FROM sec.unpublished_transactions",
        "SELECT * FROM sec.published_events",
        "DELETE FROM sec.published_events",
        "DELETE FROM sec.event_writers",
    ] {
        assert_refused(attempt(&mut worker, sql).await, "permission denied", sql);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_registration_makes_a_revocation_short() {
    let fixture = two_users().await;
    let mut issuer = login(&fixture, "w_token_issuer").await;
    let register = |id: Uuid, issued: &str, expires: &str, grants: &str| {
        format!(
            "SELECT sec.register_tokens(jsonb_build_array(jsonb_build_object('token_id', '{id}', 'service', 'test',
             'user_id', 1, 'scopes', '[\"*\"]'::jsonb, 'key_id', 'test', 'issued_at', {issued}, 'expires_at', {expires},
             'grants_expire_at', {grants})))"
        )
    };
    let (now, hour, week) = ("now()", "now() + interval '1 hour'", "now() + interval '8 days'");
    attempt(&mut issuer, &register(Uuid::now_v7(), now, hour, week)).await.expect("a token");
    for (issued, expires, grants) in [
        ("now() - interval '10 days'", "now() - interval '9 days'", "now() - interval '9 days'"),
        (now, hour, "'infinity'"),
        (now, "'infinity'", "'infinity'"),
        (now, hour, "now() + interval '11 days'"),
        (now, week, hour),
        (now, "NULL", week),
    ] {
        let done = attempt(&mut issuer, &register(Uuid::now_v7(), issued, expires, grants)).await;
        assert_refused(done, "expire within 10 days", &format!("{issued} {expires} {grants}"));
    }
    let long = format!("[\"{}\"]", "x".repeat(129));
    for scopes in ["[null]", "[\"*\", null]", "[[\"*\"], [\"*\"]]", "[]", long.as_str()] {
        let with = register(Uuid::now_v7(), now, hour, week).replace("[\"*\"]", scopes);
        assert_refused(attempt(&mut issuer, &with).await, "the scopes of a token are a list", scopes);
    }
    // Whatever a row says.
    let held = grant(1, ROLE);
    fixture
        .execute(&format!(
            "INSERT INTO cross_service_auth (token_id, service, user_id, scopes, key_id, issued_at, expires_at,
             grants_expire_at) SELECT '{}', 'test', 1, '{{*}}', 'test', now() - interval '9 days',
             now() - interval '8 days', now() - interval '8 days'",
            id_of(&held)
        ))
        .await;
    let mut operator = fixture.connection().await;
    assert_eq!(registry::revoke(&mut operator, &[id_of(&held)]).await.expect("a revocation"), 1);
    let mut worker = login(&fixture, ROLE).await;
    assert_refused(attempt_for(&mut worker, &[held], "SELECT FROM users").await, "revoked", "the grant");
    // Also of before scopes were checked.
    fixture.execute("UPDATE cross_service_auth SET scopes = '{NULL, a:b}'").await;
    let all = registry::TokenFilter { all: true, limit: 10, ..Default::default() };
    let listed = registry::list(&mut operator, &all).await.expect("the tokens");
    assert!(listed.len() >= 2 && listed.iter().all(|token| token.scopes == ["a:b"]), "{listed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_whose_grants_ended_long_ago_are_forgotten() {
    let fixture = two_users().await;
    fixture
        .execute(
            "INSERT INTO cross_service_auth (token_id, service, user_id, scopes, key_id, issued_at, expires_at,
             grants_expire_at) SELECT gen_random_uuid(), 'test', 1, '{*}', 'test', t, t + interval '1 hour',
             t + interval '9 days' FROM unnest(ARRAY[now() - interval '40 days', now() - interval '38 days']) AS t",
        )
        .await;
    fixture.execute("INSERT INTO sec.token_uses SELECT 'w_x', token_id, now() FROM cross_service_auth").await;
    let before = fixture.count("cross_service_auth WHERE issued_at < now() - interval '30 days'").await;
    assert_eq!(before, 2);
    let mut operator = fixture.connection().await;
    registry::issue(&mut operator, &token::issuer(), token::request("test", 1), SystemTime::now())
        .await
        .expect("a token");
    let left = "cross_service_auth WHERE issued_at < now() - interval '30 days'";
    assert_eq!(fixture.count(left).await, 1, "that of which a grant was good 29 days ago");
    let uses =
        "sec.token_uses u WHERE NOT EXISTS (SELECT FROM cross_service_auth a WHERE a.token_id = u.token_id)";
    assert_eq!(fixture.count(uses).await, 0);
}

/// Makes what is half a minute otherwise no time at all, in databases where no other test is.
async fn count_every_idle_transaction_as_old(fixture: &Fixture, databases: &[&str]) {
    let own: Vec<String> = databases.iter().map(|name| format!("''{name}''")).collect();
    fixture
        .execute(&format!(
            "DO $$ BEGIN EXECUTE replace(replace(pg_get_functiondef('sec.end_old_transactions'::regproc), '30 seconds',
             '0 seconds'), 'a.pid <> pg_backend_pid()', 'a.pid <> pg_backend_pid() AND a.datname IN ({})'); END $$",
            own.join(", ")
        ))
        .await;
}

async fn database(fixture: &Fixture) -> String {
    fixture.lines("current_database() FROM (VALUES (1)) AS one").await.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn others_end_a_transaction_that_a_role_keeps_open() {
    let fixture = two_users().await;
    others_end(&fixture, &fixture).await;
}

/// A transaction holds back the seals of all databases of its server.
#[tokio::test(flavor = "multi_thread")]
async fn others_end_a_transaction_that_a_role_keeps_open_in_another_database() {
    others_end(&two_users().await, &Fixture::new().await).await;
}

/// Asserts that a worker of one database ends what a role keeps open in another one.
async fn others_end(fixture: &Fixture, kept_in: &Fixture) {
    let mut worker = login(kept_in, ROLE).await;
    let mut other = login(fixture, "w_router_logger").await;
    worker
        .batch_execute("SET idle_in_transaction_session_timeout = 0; BEGIN; SELECT 1")
        .await
        .expect("begun");
    let end = "SELECT sec.end_old_transactions()";
    attempt(&mut other, end).await.expect("its right");
    assert_eq!(attempt(&mut worker, "SELECT 1").await, Ok(1), "it is not old yet");
    let databases = [database(fixture).await, database(kept_in).await];
    count_every_idle_transaction_as_old(fixture, &databases.each_ref().map(String::as_str)).await;
    attempt(&mut other, end).await.expect("its right");
    let problem = attempt(&mut worker, "SELECT 1").await.expect_err("its connection was ended");
    assert!(problem.contains("terminating connection") || problem.contains("closed"), "{problem}");
}

/// Each open savepoint that has written takes a place in the server's one table of locks. Without a free place nobody can do anything.
#[tokio::test(flavor = "multi_thread")]
async fn others_end_a_transaction_with_a_great_part_of_all_locks() {
    let fixture = two_users().await;
    let mut worker = login(&fixture, ROLE).await;
    let mut other = login(&fixture, "w_router_logger").await;
    let end = "SELECT sec.end_old_transactions()";
    let places = "current_setting('max_locks_per_transaction')::integer
        * (current_setting('max_connections')::integer + current_setting('max_prepared_transactions')::integer) FROM (VALUES (1)) AS one";
    let places: usize = fixture.lines(places).await[0].parse().expect("a number");
    worker.batch_execute("BEGIN").await.expect("begun");
    let context = format!("SELECT sec.open_context(ARRAY['{}'])", grant(1, ROLE));
    worker.batch_execute(&context).await.expect("a context");
    for number in 0..places / 8 + 10 {
        if number == 200 {
            attempt(&mut other, end).await.expect("its right");
            assert_eq!(attempt(&mut worker, "SELECT 1").await, Ok(1), "as many as a batch may hold");
        }
        let write = format!(
            "SAVEPOINT s; INSERT INTO session_clocks (user_id, session_id, logical_time) VALUES (1, 'z{number}', 1)"
        );
        worker.batch_execute(&write).await.expect("a savepoint");
    }
    attempt(&mut other, end).await.expect("its right");
    let problem = attempt(&mut worker, "SELECT 1").await.expect_err("its connection was ended");
    assert!(problem.contains("terminating connection") || problem.contains("closed"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_worker_ends_what_others_keep_open() {
    let fixture = two_users().await;
    count_every_idle_transaction_as_old(&fixture, &[&database(&fixture).await]).await;
    let mut held = login(&fixture, "w_router_logger").await;
    held.batch_execute("SET idle_in_transaction_session_timeout = 0; BEGIN; SELECT 1").await.expect("begun");
    let sessions = "pg_stat_activity WHERE datname = current_database() AND usename = 'w_router_logger'";
    assert_eq!(fixture.count(sessions).await, 1);
    let worker = fixture.run(ContextWriter);
    eventually("the worker ends it", async || (fixture.count(sessions).await == 0).then_some(())).await;
    worker.stop().await.expect("a clean end");
}
