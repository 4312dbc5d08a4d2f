//! The audit trail: every effect leaves a row that tells who, what and whose, and nothing of what a user wrote.

use std::collections::BTreeSet;

use context_writer::ContextWriter;
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use serde_json::{Value, json};
use testkit::{Fixture, RequestMessage, context, eventually, requests_for_all_tables, session, user};
use testkit::{attack, token};
use trust::GrantKey;
use uuid::Uuid;

/// What the trail says of a table, a line each, in order.
async fn told(fixture: &Fixture, columns: &str, table: &str) -> Vec<String> {
    let from =
        format!("concat_ws(' ', {columns}) FROM audit.audit_log WHERE table_name = '{table}' ORDER BY id");
    fixture.lines(&from).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_table_of_a_user_is_watched() {
    let fixture = Fixture::new().await;
    let watched = |event: &str| {
        let function = if event == "UPDATE" {
            "note_updates_of_' || event_object_table || '"
        } else {
            "audit_trigger_function"
        };
        format!(
            "event_object_table FROM information_schema.triggers WHERE event_manipulation = '{event}'
             AND action_statement LIKE '%audit.{function}()' AND action_orientation = 'STATEMENT' ORDER BY 1"
        )
    };
    let mut tables: Vec<String> =
        attack::tables(&fixture).await.into_iter().map(|(table, _)| table).collect();
    // Deliveries, the clocks of sessions, and what follows from rows that are watched themselves.
    tables.retain(|table| !["inbox", "session_clocks", "router_hourly_patterns"].contains(&table.as_str()));
    assert!(tables.len() >= 28, "{tables:?}");
    assert_eq!(fixture.lines(&watched("UPDATE")).await, tables);
    assert_eq!(fixture.lines(&watched("DELETE")).await, tables);
    // What is written once and says itself who did it is sealed as it stands.
    tables.retain(|table| table != "blackboard_events");
    assert_eq!(fixture.lines(&watched("INSERT")).await, tables);
}

/// A migration that changes the columns of a table has to make the function of its updates anew.
#[tokio::test(flavor = "multi_thread")]
async fn the_trail_of_updates_compares_all_columns() {
    let fixture = Fixture::new().await;
    let functions = "concat_ws(' ', proname, md5(prosrc)) FROM pg_proc WHERE proname LIKE 'note\\_updates\\_of\\_%' ORDER BY 1";
    let before = fixture.lines(functions).await;
    assert!(before.len() >= 30, "{before:?}");
    let remake = "DO $$ BEGIN PERFORM audit.follow_updates(t.tgrelid) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
        WHERE t.tgname = 'audit_update' AND NOT c.relispartition; END $$";
    fixture.execute(remake).await;
    assert_eq!(fixture.lines(functions).await, before);
    fixture.execute(&format!("ALTER TABLE chat_messages ADD COLUMN mood text; {remake}")).await;
    assert_ne!(fixture.lines(functions).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_written_leaves_one_with_its_own_request() {
    let fixture = Fixture::new().await;
    let requests: Vec<RequestMessage> = [1, 2].into_iter().flat_map(requests_for_all_tables).collect();
    let ids: BTreeSet<String> = requests.iter().map(|request| request.id.to_string()).collect();
    fixture.process(ContextWriter, requests).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());

    for table in
        ["users", "simple_chat_context", "chat_messages", "passkey_credentials", "agent_context_states"]
    {
        let owner = if table == "users" { "id" } else { "user_id" };
        let rows = fixture.lines(&format!("request_id FROM {table} WHERE {owner} > 0 ORDER BY 1")).await;
        assert_eq!(rows.len(), 2, "{table}");
        let mut noted = told(&fixture, "request_id", table).await;
        noted.sort();
        assert_eq!(noted, rows, "{table}");
    }
    // The policies of the platform come with the migrations.
    let other = "audit.audit_log WHERE table_name <> 'data_retention_policies'";
    let requests = fixture.lines(&format!("request_id FROM {other} GROUP BY 1 ORDER BY 1")).await;
    assert_eq!(BTreeSet::from_iter(requests), ids, "each request has its rows, and there are no others");
    let events = fixture.lines("request_id FROM blackboard_events ORDER BY 1").await;
    assert_eq!(BTreeSet::from_iter(events), ids);
    let who = fixture
        .lines(&format!("concat_ws(' ', operation, role_name, service) FROM {other} GROUP BY 1 ORDER BY 1"))
        .await;
    assert_eq!(who, ["INSERT w_context_writer test"]);
    let whose = "audit.audit_log l JOIN audit.subjects s ON s.token = l.subject_token
        JOIN blackboard_events e ON e.request_id = l.request_id WHERE e.user_id <> s.user_id";
    assert_eq!(fixture.count(whose).await, 0, "each row is its own user's");
    assert_eq!(fixture.count("audit.audit_log WHERE row_id IS NULL AND table_name <> 'users'").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_tells_what_changed_and_from_what() {
    let fixture = Fixture::new().await;
    let put = |version| context(1, "s", "k", version);
    let (first, second) = (put(1), put(2));
    let ids = [first.id.to_string(), second.id.to_string()];
    fixture.process(ContextWriter, [user(1), session(1, "s"), first, second, put(1)]).await;
    let columns = "operation, request_id, changed_columns";
    assert_eq!(
        told(&fixture, columns, "simple_chat_context").await,
        [
            format!("INSERT {} {{}}", ids[0]),
            format!("UPDATE {} {{context_value,version,updated_at,writes,written_at}}", ids[1])
        ]
    );
    let chained = "audit.audit_log a JOIN audit.audit_log b ON a.row_digest_after = b.row_digest_before
        AND a.row_id = b.row_id AND b.operation = 'UPDATE' WHERE a.operation = 'INSERT'";
    assert_eq!(fixture.count(chained).await, 1, "the row before is the one that was written");

    // By hand, a deletion, and a row that changes hands.
    fixture.execute("DELETE FROM simple_chat_context").await;
    fixture
        .execute("INSERT INTO users (id, username, email) VALUES (2, 'u', 'e'); UPDATE chat_mode_sessions SET user_id = 2")
        .await;
    let told = async |table: &str| {
        let from = format!(
            "concat_ws(' ', operation, s.user_id) FROM audit.audit_log l JOIN audit.subjects s ON s.token = l.subject_token
             WHERE l.table_name = '{table}' ORDER BY l.id"
        );
        fixture.lines(&from).await
    };
    assert_eq!(told("simple_chat_context").await, ["INSERT 1", "UPDATE 1", "DELETE 1"]);
    let mut hands = told("chat_mode_sessions").await;
    hands.sort();
    assert_eq!(hands, ["DELETE 1", "INSERT 1", "INSERT 2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_told_of_what_did_not_happen() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1), session(1, "s")]).await;
    let before = fixture.count("audit.audit_log").await;
    let mut connection = fixture.connection().await;
    let write = "UPDATE users SET username = 'x'; DELETE FROM chat_mode_sessions;";
    connection.batch_execute(&format!("BEGIN; {write} ROLLBACK")).await.expect("statements");
    connection.batch_execute("UPDATE users SET username = 'x' WHERE id = 9").await.expect("a statement");
    // Its session is not there, so that the message waits and has no effect.
    fixture.publish([context(1, "nowhere", "k", 1)]).await;
    let worker = fixture.run(ContextWriter);
    eventually("it was tried", async || {
        (fixture.consumer("CONTEXT", "context-writer").await.cached_info().num_redelivered > 0).then_some(())
    })
    .await;
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.count("audit.audit_log").await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trail_holds_no_user_and_no_value() {
    let fixture = Fixture::new().await;
    let (id, secret) = (1_234_567, "Zanzibar-Secret-42");
    let requests = requests_for_all_tables(id).into_iter().map(|mut request| {
        let mut body: Value = serde_json::from_slice(&request.body).expect("JSON");
        for field in
            ["username", "first_name", "setting_value", "secret_key", "context_value", "content", "summary"]
        {
            if let Some(value) = body.get_mut(field) {
                *value = json!(secret);
            }
        }
        request.body = body.to_string().into_bytes();
        request
    });
    fixture.process(ContextWriter, requests).await;
    assert!(fixture.count("audit.audit_log").await >= 13);
    assert!(
        fixture.count(&format!("blackboard_events WHERE event_payload::text LIKE '%{secret}%'")).await > 0
    );
    for table in ["audit_log", "security_violations", "data_access_log", "security_metrics", "seals"] {
        let told = format!("audit.{table} AS t WHERE t::text LIKE '%{secret}%' OR t::text ~ '\\m{id}\\M'");
        assert_eq!(fixture.count(&told).await, 0, "{table}");
    }
    // Without the subject there is nothing that leads from a row to the user, nor a key to try a guess with.
    let digest = "encode(row_digest_after, 'hex') FROM audit.audit_log WHERE table_name = 'users' ORDER BY id DESC LIMIT 1";
    let keyed = fixture.lines(digest).await;
    let guess = "encode(sha256(convert_to(u::text, 'UTF8')), 'hex') FROM users u ORDER BY id DESC LIMIT 1";
    assert_ne!(fixture.lines(guess).await, keyed);
    let with_key = "encode(sha256(s.digest_key || sha256(convert_to(u::text, 'UTF8'))), 'hex') FROM users u
        JOIN audit.subjects s ON s.user_id = u.id ORDER BY u.id DESC LIMIT 1";
    let mut connection = fixture.connection().await;
    connection.batch_execute("SET timezone = 'UTC'").await.expect("a setting");
    assert_eq!(
        testkit::lines_on(&mut connection, with_key).await,
        keyed,
        "the digest can be recomputed with the key"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_those_of_the_grants() {
    let fixture = Fixture::new().await;
    for service in ["alpha", "beta", "gamma"] {
        fixture.register(service, "user:put session:open").await;
    }
    let of = |service: &str, mut request: RequestMessage| {
        request.subject = request.subject.replacen(".test.", &format!(".{service}."), 1);
        request
    };
    fixture
        .publish([
            of("alpha", user(1)),
            of("beta", user(2)),
            of("alpha", session(1, "s")),
            of("beta", session(1, "t")),
        ])
        .await;
    fixture.process(ContextWriter, []).await;
    // One batch has all of it, so that user 1 acts through both.
    let named = async |table: &str| {
        let from = format!(
            "concat_ws(' ', service, s.user_id) FROM audit.audit_log l JOIN audit.subjects s ON s.token = l.subject_token
             WHERE l.table_name = '{table}' ORDER BY l.id"
        );
        fixture.lines(&from).await
    };
    assert_eq!(named("users").await, ["alpha, beta 1", "beta 2"]);
    fixture.process(ContextWriter, [of("gamma", session(2, "s"))]).await;
    assert_eq!(named("chat_mode_sessions").await.last().map(String::as_str), Some("gamma 2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_recorded_although_its_transaction_is_gone() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1), session(1, "s")]).await;
    let token = token::with_grant_key(GrantKey::generate("other").expect("a key"), "test", 1);
    let refused =
        [context(1, "s", "k", 1), context(1, "s", "l", 1)].map(|request| request.with_token(&token));
    let ids: Vec<String> = refused.iter().map(|request| request.id.to_string()).collect();
    fixture.process(ContextWriter, refused).await;
    let letters = fixture.dead_letters().await;
    assert!(letters.len() == 2 && letters.iter().all(|letter| letter.starts_with("denied: ")), "{letters:?}");
    let columns = "concat_ws('|', request_id, role_name, service, violation_type, severity, reason)";
    let recorded =
        fixture.lines(&format!("{columns} FROM audit.security_violations ORDER BY request_id")).await;
    let line = |id: &String| {
        format!(
            "{id}|w_context_writer|claimed:test|grant-refused|high|the security context is refused: a grant is unknown key"
        )
    };
    assert_eq!(recorded, ids.iter().map(line).collect::<Vec<_>>());
    let whose = "audit.security_violations JOIN audit.subjects ON token = subject_token WHERE user_id = 1";
    assert_eq!(fixture.count(whose).await, 2);
    assert_eq!(fixture.count("simple_chat_context").await, 0);
}

/// A worker's login with the context of a user, in a transaction.
async fn acting_for(fixture: &Fixture, id: i32) -> AsyncPgConnection {
    let mut worker = attack::login(fixture, "w_vector_indexer").await;
    let open = format!("SELECT sec.open_context(ARRAY['{}'])", attack::grant(id, "w_vector_indexer"));
    worker.batch_execute("BEGIN").await.expect("a transaction");
    worker.batch_execute(&open).await.expect("a context");
    worker
}

#[tokio::test(flavor = "multi_thread")]
async fn uses_of_data_are_noted_in_the_name_of_the_context() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1), user(2)]).await;
    let request = Uuid::now_v7();
    for (call, refused) in [
        (
            format!(
                "audit.log_vector_operation('search', 'unified_memory', ARRAY[1], ARRAY['{request}'::uuid], ARRAY[5])"
            ),
            None,
        ),
        (
            format!(
                "audit.log_data_access('query', 'sessions', ARRAY[1, 1], ARRAY['{request}', '{request}']::uuid[], ARRAY[3, 4])"
            ),
            None,
        ),
        (
            format!(
                "audit.log_data_access('query', 'sessions', ARRAY[1, 2], ARRAY['{request}', '{request}']::uuid[], ARRAY[3, 4])"
            ),
            Some("a user who is not in the security context"),
        ),
        (
            format!(
                "audit.log_data_access('query', 'sessions', ARRAY[1], ARRAY['{request}', '{request}']::uuid[], ARRAY[3])"
            ),
            Some("must be as many as each other"),
        ),
        (
            "audit.log_vector_operation('drop', 'c', ARRAY[1], ARRAY[NULL::uuid], ARRAY[1])".to_owned(),
            Some("'drop' is no vector operation"),
        ),
        (
            "audit.log_vector_operation('search', 'c', ARRAY[1], ARRAY[NULL::uuid], ARRAY[-1])".to_owned(),
            Some("an amount from 0 to 1000000000"),
        ),
    ] {
        let mut worker = acting_for(&fixture, 1).await;
        let done = worker.batch_execute(&format!("SELECT {call}; COMMIT")).await;
        match refused {
            None => done.expect("it is noted"),
            Some(by) => assert!(done.expect_err(&call).to_string().contains(by), "{call}"),
        }
    }
    let columns =
        "concat_ws(' ', user_id, access_type, object_name, rows_returned, role_name, service, request_id)";
    let noted = fixture
        .lines(&format!("{columns} FROM audit.data_access_log JOIN audit.subjects ON token = subject_token ORDER BY rows_returned"))
        .await;
    let line = |what: &str| format!("1 {what} w_vector_indexer test {request}");
    assert_eq!(
        noted,
        [line("query sessions 3"), line("query sessions 4"), line("vector-search unified_memory 5")]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_worker_can_touch_the_trail() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1)]).await;
    let mut worker = acting_for(&fixture, 1).await;
    worker.batch_execute("COMMIT").await.expect("its end");
    for table in
        ["audit_log", "audit_log_default", "subjects", "security_violations", "data_access_log", "seals"]
    {
        for statement in [
            format!("SELECT FROM audit.{table}"),
            format!("INSERT INTO audit.{table} DEFAULT VALUES"),
            format!("DELETE FROM audit.{table}"),
            format!("TRUNCATE audit.{table}"),
            format!("COPY audit.{table} TO STDOUT"),
            format!("ALTER TABLE audit.{table} DISABLE TRIGGER ALL"),
        ] {
            let error = worker.batch_execute(&statement).await.expect_err(&statement).to_string();
            assert!(
                error.contains("permission denied") || error.contains("must be owner"),
                "{statement}: {error}"
            );
        }
    }
    for statement in [
        "SELECT audit.audit_trigger_function()",
        "SELECT audit.follow_updates('users')",
        "SET session_replication_role = replica",
        "ALTER TABLE users DISABLE TRIGGER audit_insert",
        "DROP TRIGGER audit_update ON users",
    ] {
        worker.batch_execute(statement).await.expect_err(statement);
    }
}
