//! Attacks that go around the tables of users, or that need rows to be there: copies of others' rows, functions and paths of
//! one's own, locks, and looking over others' shoulders.

use context_writer::ContextWriter;
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use serde_json::json;
use testkit::attack::{
    SHOW_PLANS, as_planned, assert_refused, assert_untold, attempt, attempt_for, functions_with_plans, grant,
    login, roles, tables, told,
};
use testkit::{Fixture, request, session, user};

use crate::support::two_users;

/// A statement that inserts a row of a user again, changed by an expression of JSON.
async fn copy(fixture: &Fixture, table: &str, owner: &str, change: &str) -> Option<String> {
    let columns = fixture
        .lines(&format!(
            "string_agg(quote_ident(attname), ', ') FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attnum > 0
             AND NOT attisdropped AND attgenerated = ''"
        ))
        .await
        .concat();
    let row =
        fixture.lines(&format!("to_jsonb(t) || {change} FROM {table} AS t WHERE {owner} = 2 LIMIT 1")).await;
    let row = row.first()?;
    Some(format!(
        "INSERT INTO {table} ({columns}) SELECT {columns} FROM jsonb_populate_record(NULL::{table}, $row${row}$row$)"
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_anothers_row_is_refused_in_every_table_and_role() {
    let fixture = two_users().await;
    let mut tried = 0;
    for role in roles(&fixture).await {
        let mut worker = login(&fixture, &role).await;
        for (table, owner) in tables(&fixture).await {
            let Some(same) = copy(&fixture, &table, &owner, "'{}'").await else { continue };
            let fresh = "jsonb_build_object('id', gen_random_uuid())";
            let fresh = if table == "users" { None } else { copy(&fixture, &table, &owner, fresh).await };
            let ways = [
                Some(same.clone()),
                Some(format!("{same} ON CONFLICT DO NOTHING")),
                Some(format!("{same} ON CONFLICT DO NOTHING RETURNING 1")),
                fresh,
            ];
            for way in ways.into_iter().flatten() {
                let done = attempt_for(&mut worker, &[grant(1, &role)], &way).await;
                let error = done.expect_err(&format!("{role}: {way}"));
                let by = error.contains("row-level security policy") || error.contains("permission denied");
                assert!(by, "{role}: {table}: {error}");
                tried += 1;
            }
        }
    }
    assert!(tried > 300, "{tried}");
    assert_eq!(fixture.count("users").await, 3);
}

/// A key that one user has taken tells nothing to another: the same keys are free for everybody.
#[tokio::test(flavor = "multi_thread")]
async fn keys_of_others_cannot_be_probed() {
    let fixture = two_users().await;
    let mut worker = login(&fixture, "w_context_writer").await;
    fixture
        .process(
            ContextWriter,
            [user(3), request("session.open", 3, json!({ "session_id": "other", "chat_mode": "simple" }))],
        )
        .await;
    for (table, owner) in tables(&fixture).await {
        if ["users", "blackboard_events", "inbox", "session_clocks", "router_hourly_patterns"]
            .contains(&table.as_str())
        {
            continue;
        }
        // As user 3's own, with user 2's natural key and another id.
        let change = "jsonb_build_object('id', gen_random_uuid(), 'user_id', 3)";
        let Some(own) = copy(&fixture, &table, &owner, change).await else { continue };
        if let Err(error) = attempt_for(&mut worker, &[grant(3, "w_context_writer")], &own).await {
            // What it refers to is not user 3's; that it exists for user 2 makes no difference.
            let foreign = error.contains("foreign key") && !error.contains("duplicate");
            assert!(foreign, "{table}: {error}");
        }
    }
}

/// PostgreSQL evaluates a cheap condition before a dearer policy, and a context that is not genuine is an error once the policy is
/// evaluated. That a condition holds of somebody's row must not show by it.
#[tokio::test(flavor = "multi_thread")]
async fn no_condition_is_evaluated_before_the_policy() {
    let fixture = two_users().await;
    let mut refused = 0;
    let mut all = roles(&fixture).await;
    all.push("w_memory_reader".to_owned());
    for role in all {
        let mut worker = login(&fixture, &role).await;
        for setting in [
            "memfleet.context = '2||||'",
            "enable_indexscan = off",
            "enable_bitmapscan = off",
            "enable_indexonlyscan = off",
        ] {
            worker.batch_execute(&format!("SET {setting}")).await.expect(setting);
        }
        for (table, owner) in tables(&fixture).await {
            let of_one = attempt(&mut worker, &format!("SELECT FROM {table} WHERE {owner} = 2")).await;
            let of_nobody =
                attempt(&mut worker, &format!("SELECT FROM {table} WHERE {owner} = 2147483647")).await;
            assert_eq!(of_one, of_nobody, "{role} learns of {table}");
            refused += usize::from(of_one.is_err_and(|error| error.contains("not genuine")));
        }
    }
    assert!(refused > 20, "{refused} tables had rows");
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_paths_and_files_lead_nowhere() {
    let fixture = two_users().await;
    for role in roles(&fixture).await {
        let mut worker = login(&fixture, &role).await;
        for (sql, by) in [
            (
                "CREATE FUNCTION pg_temp.current_user_ids() RETURNS integer[] LANGUAGE sql AS 'SELECT ''{2}''::integer[]'",
                "permission denied",
            ),
            (
                "CREATE OPERATOR public.= (leftarg = integer, rightarg = integer, function = int4eq)",
                "permission denied for schema public",
            ),
            ("CREATE EXTENSION dblink", "permission denied"),
            ("COPY users TO '/tmp/users'", "permission denied"),
            ("COPY (SELECT * FROM users) TO PROGRAM 'cat'", "permission denied"),
            ("COPY users FROM PROGRAM 'cat'", "permission denied"),
            ("SELECT pg_read_file('/etc/passwd')", "permission denied for function pg_read_file"),
            ("SELECT pg_ls_dir('.')", "permission denied for function pg_ls_dir"),
            ("SELECT lo_import('/etc/passwd')", "permission denied for function lo_import"),
            (
                "SELECT set_config('session_replication_role', 'replica', true)",
                "permission denied to set parameter",
            ),
            (
                "SELECT set_config('session_authorization', (SELECT rolname FROM pg_roles WHERE rolsuper LIMIT 1), true)",
                "permission denied to set session authorization",
            ),
            ("SET row_security = off; SELECT * FROM users", "would be affected by row-level security policy"),
            (
                "ALTER DEFAULT PRIVILEGES FOR ROLE memfleet_owner GRANT SELECT ON TABLES TO PUBLIC",
                "permission denied",
            ),
            ("ALTER FUNCTION sec.context RESET search_path", "must be owner"),
            ("GRANT w_context_writer TO w_router_logger", "permission denied"),
            ("SELECT sec.open_context(NULL)", "the security context is refused"),
            ("SELECT * FROM pg_statistic", "permission denied"),
            ("SELECT * FROM pg_authid", "permission denied"),
            // Counters tell what a function that a role may call has read and written of others.
            (
                "SELECT pg_stat_get_xact_tuples_inserted('audit.security_violations'::regclass)",
                "permission denied",
            ),
            ("SELECT n_tup_ins FROM pg_stat_all_tables WHERE relname = 'users'", "permission denied"),
            ("SELECT pg_notify('memfleet', 'x')", "permission denied for function pg_notify"),
            ("SELECT pg_logical_emit_message(true, 'memfleet', 'x')", "permission denied for function"),
        ] {
            let done = worker
                .batch_execute(&format!("BEGIN; {sql}"))
                .await
                .map(|()| 0)
                .map_err(|error| error.to_string());
            worker.batch_execute("ROLLBACK").await.expect("its end");
            // A role without any right to the table is refused before anything else is looked at.
            let early = done.as_ref().is_err_and(|error| error.contains("permission denied for table users"));
            if !early {
                assert_refused(done, by, &format!("{role}: {sql}"));
            }
        }
        // A path of one's own changes nothing: policies and functions name what they mean.
        let grants = [grant(1, &role)];
        let shadow = "SELECT set_config('search_path', 'pg_temp, public', true)";
        worker.batch_execute("BEGIN").await.expect("a transaction");
        attempt(&mut worker, shadow).await.expect("a setting");
        worker.batch_execute("ROLLBACK").await.expect("its end");
        let others = "SELECT FROM blackboard_events WHERE user_id <> 1";
        assert_eq!(attempt_for(&mut worker, &grants, others).await, Ok(0), "{role}");
        // The statistics that PostgreSQL shows of columns hold values of rows. Two tables hold none of a user.
        let statistics = "SELECT FROM pg_stats WHERE schemaname = 'public' AND most_common_vals IS NOT NULL
            AND tablename NOT IN ('qdrant_access_control', 'vector_collections')";
        fixture.execute("ANALYZE").await;
        assert_eq!(attempt(&mut worker, statistics).await, Ok(0), "{role}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_worker_can_take_an_advisory_lock() {
    let fixture = Fixture::new().await;
    for role in roles(&fixture).await {
        let mut worker = login(&fixture, &role).await;
        for call in [
            "pg_advisory_lock(1)",
            "pg_try_advisory_lock(1)",
            "pg_advisory_xact_lock(1, 2)",
            "pg_try_advisory_xact_lock_shared(1)",
            "pg_advisory_unlock_all()",
        ] {
            assert_refused(
                attempt(&mut worker, &format!("SELECT {call}")).await,
                "permission denied for function",
                &role,
            );
        }
    }
}

/// A ciphertext is for those alone who may read or write the table of its field.
#[tokio::test(flavor = "multi_thread")]
async fn ciphertexts_are_of_tables_that_a_role_may_touch() {
    let fixture = Fixture::new().await;
    let secret = json!({ "method": "totp", "secret_key": "JBSWY3DPEHPK3PXP", "backup_codes": ["one"] });
    let hidden =
        json!({ "session_id": "s", "context_key": "k", "context_value": 1, "version": 1, "sensitive": true });
    fixture
        .process(
            ContextWriter,
            [
                user(1),
                request("second-factor.put", 1, secret),
                session(1, "s"),
                request("context.put", 1, hidden),
            ],
        )
        .await;
    let of = |table: &str| format!("encrypted_fields WHERE table_name = '{table}'");
    assert_eq!(fixture.count(&of("simple_chat_context")).await, 1);
    let factors = fixture.count(&of("user_two_factor_auth")).await;
    assert!(factors > 0);
    let mut worker = login(&fixture, "w_memory_sync").await;
    let grants = [grant(1, "w_memory_sync")];
    for (sql, rows) in [
        (format!("SELECT FROM {}", of("simple_chat_context")), 1),
        (format!("SELECT FROM {}", of("user_two_factor_auth")), 0),
        ("UPDATE encrypted_fields SET ciphertext = ciphertext || '\\x00' WHERE table_name <> 'simple_chat_context'".to_owned(), 0),
    ] {
        assert_eq!(attempt_for(&mut worker, &grants, &sql).await, Ok(rows), "{sql}");
    }
    let copy = "INSERT INTO encrypted_fields (id, user_id, table_name, column_name, row_id, ciphertext)
        SELECT gen_random_uuid(), user_id, 'user_two_factor_auth', 'secret_key', gen_random_uuid(), ciphertext FROM encrypted_fields";
    assert_refused(attempt_for(&mut worker, &grants, copy).await, "row-level security", "another table");
    let delete = format!("DELETE FROM {}", of("user_two_factor_auth"));
    assert_refused(attempt_for(&mut worker, &grants, &delete).await, "permission denied", &delete);
    assert_eq!(fixture.count(&of("user_two_factor_auth")).await, factors);
}

async fn activity(connection: &mut AsyncPgConnection, text: &str) -> usize {
    let seen =
        format!("SELECT FROM pg_stat_activity WHERE query LIKE '%{text}%' AND pid <> pg_backend_pid()");
    attempt(connection, &seen).await.expect("what is going on")
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_sees_what_others_do() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1)]).await;
    // Somebody of another role: the statement is hidden as a whole.
    let mut other = login(&fixture, "w_router_logger").await;
    let mut writer = login(&fixture, "w_context_writer").await;
    writer.batch_execute("SELECT 'zanzibar'").await.expect("a statement");
    let mut superuser = fixture.connection().await;
    assert_eq!(activity(&mut superuser, "zanzibar").await, 1, "an administrator sees it");
    assert_eq!(activity(&mut other, "zanzibar").await, 0);
    // Of the same role: the statements of a worker hold no value, whatever is written.
    let worker = fixture.run(ContextWriter);
    let mut neighbour = login(&fixture, "w_context_writer").await;
    for round in 0..20 {
        fixture
            .publish([request("profile.put", 1, json!({ "first_name": format!("zanzibar {round}") }))])
            .await;
        assert_eq!(activity(&mut neighbour, "zanzibar ").await, 0);
    }
    fixture.drained::<ContextWriter>().await;
    let mut seen = 0;
    for sql in ["user_profiles", "COMMIT", "sec.trust_version", "sec.note_published"] {
        seen += activity(&mut neighbour, sql).await;
    }
    assert!(seen > 0, "it does see statements");
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.lines("first_name FROM user_profiles").await, ["zanzibar 19"]);
}

/// What each role may call, without a context and with that of user 1.
fn calls(role: &str, jobs: &[String]) -> Vec<String> {
    let id = "gen_random_uuid()";
    let foreign = format!("SELECT audit.note_foreign_session(2, 'x', 'y', {id})");
    let mut calls: Vec<String> =
        jobs.iter().map(|job| format!("SELECT FROM sec.job_grants('{job}', {id}, 10)")).collect();
    calls.extend(jobs.iter().map(|job| {
        format!("SELECT sec.open_context(ARRAY(SELECT grant_text FROM sec.job_grants('{job}', {id}, 10)))")
    }));
    calls.extend([
        foreign.clone(),
        format!("SELECT audit.check_security_violation('42501', 'permission denied', 2, 'x', {id})"),
        format!(
            "SELECT audit.record_refused_tokens(ARRAY['token-expired'], ARRAY['x'], ARRAY[2], ARRAY['s'], ARRAY[{id}])"
        ),
        format!("SELECT sec.note_token_use(ARRAY[{id}], ARRAY[now()])"),
        "SELECT sec.trust_state()".to_owned(),
        "SELECT sec.open_context(ARRAY['v1|context|1||s|r|g|1|00', 'v1|test|1'])".to_owned(),
        "BEGIN".to_owned(),
        format!("SELECT sec.open_context(ARRAY['{}'])", grant(1, role)),
        "SELECT sec.current_user_ids(), sec.current_users(), sec.context(), validate_security_context()".to_owned(),
        format!("SELECT audit.log_data_access('read', 'x', ARRAY[1], ARRAY[{id}], ARRAY[1])"),
    ]);
    // What one role has and another one lacks must not end the transaction.
    let others = [
        foreign.replace("(2,", "(1,"),
        "SELECT FROM sec.vector_tenants()".to_owned(),
        "SELECT sec.lock_synced_sessions(ARRAY[1], ARRAY['s'])".to_owned(),
        "UPDATE simple_chat_context SET priority = 1".to_owned(),
        "UPDATE unified_memory_vectors SET has_points = false".to_owned(),
        "SELECT sec.delete_rows('simple_chat_context', array_agg(user_id), array_agg(id)) FROM simple_chat_context".to_owned(),
        "SELECT sec.forget_inbox(ARRAY[1], now(), 10)".to_owned(),
        "SELECT sec.release_messages('context-writer', array_agg(user_id), array_agg(message_id)) FROM inbox".to_owned(),
    ];
    for call in others {
        calls.extend(["SAVEPOINT part".to_owned(), call, "ROLLBACK TO SAVEPOINT part".to_owned()]);
    }
    calls.push("SELECT sec.current_user_ids()".to_owned());
    calls.push("COMMIT".to_owned());
    calls
}

/// A role may have its plans printed, also those of functions that act with others' rights. Neither a key nor the token of a user is in them,
/// and they are not even printed.
#[tokio::test(flavor = "multi_thread")]
async fn no_key_or_token_is_in_a_plan() {
    let fixture = two_users().await;
    assert_eq!(functions_with_plans(&mut fixture.connection().await).await, Vec::<String>::new());
    let secrets = fixture
        .lines(
            "secret FROM (SELECT encode(inner_pad, 'hex') AS secret FROM sec.keys UNION ALL SELECT encode(outer_pad, 'hex') FROM sec.keys
                UNION ALL SELECT encode(digest_key, 'hex') FROM audit.subjects
                UNION ALL SELECT replace(token::text, '-', '') FROM audit.subjects) AS s",
        )
        .await;
    assert!(secrets.len() >= 8, "{}", secrets.len());
    let jobs = fixture.lines("job FROM sec.jobs ORDER BY job").await;
    let mut all = roles(&fixture).await;
    all.push("w_memory_reader".to_owned());
    for are_hidden in [true, false] {
        let mut mints = 0;
        for role in &all {
            let text = told(&fixture.settings.postgres.url_of(role), &calls(role, &jobs)).await;
            assert_untold(&secrets, &text, role);
            assert!(text.contains("PLANNEDSTMT"), "{role} sees the plans of its own statements");
            mints += usize::from(text.contains("minted_job_grants"));
        }
        assert_eq!(mints == 0, are_hidden, "the plans of functions");
        fixture.execute(SHOW_PLANS).await;
    }
    // It would be seen.
    let shown = told(&fixture.settings.postgres.url, &[format!("SELECT '\\x{}'::bytea", secrets[0])]).await;
    assert!(shown.contains(&as_planned(&secrets[0])), "{shown}");
}
