//! What a worker's role may do: what `sec.grant_worker` gives, and no more.

use diesel_async::SimpleAsyncConnection;
use testkit::Fixture;
use testkit::attack::{self, assert_refused, attempt, attempt_for};

use crate::support::program::{memfleet, output, text};
use crate::validation::validate;

/// What is recorded of workers' privileges but not granted, or granted but not recorded. UPDATE is granted on each column and never on a
/// table, and instead of DELETE a function.
const UNRECORDED: &str = "concat_ws(' ', role, name, privilege) FROM (
    WITH recorded AS (
        SELECT w.role_name AS role, w.table_name AS name, unnest(w.privileges) AS privilege FROM sec.worker_privileges w
    ), granted AS (
        SELECT a.grantee::regrole::name AS role, c.oid::regclass AS name,
            CASE WHEN a.privilege_type IN ('UPDATE', 'DELETE') THEN a.privilege_type || ' of the table' ELSE a.privilege_type END AS privilege
        FROM pg_class c, aclexplode(c.relacl) AS a
        WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND a.grantee::regrole::text LIKE 'w\\_%' AND c.relname <> '__diesel_schema_migrations'
        UNION ALL
        SELECT a.grantee::regrole::name, t.attrelid::regclass, CASE WHEN count(*) = (SELECT count(*) FROM pg_attribute x
            WHERE x.attrelid = t.attrelid AND x.attnum > 0 AND NOT x.attisdropped) THEN 'UPDATE' ELSE 'UPDATE of some columns' END
        FROM pg_attribute t, aclexplode(t.attacl) AS a
        WHERE a.grantee::regrole::text LIKE 'w\\_%' AND a.privilege_type = 'UPDATE' GROUP BY a.grantee, t.attrelid
        UNION ALL
        SELECT w.role_name, w.table_name, 'DELETE' FROM sec.worker_privileges w
        WHERE 'DELETE' = ANY (w.privileges) AND has_function_privilege(w.role_name, 'sec.delete_rows(regclass, integer[], uuid[])', 'EXECUTE')
    )
    (TABLE recorded EXCEPT TABLE granted) UNION ALL (TABLE granted EXCEPT TABLE recorded)
    ) AS d ORDER BY 1";
/// What everybody may do.
const PUBLIC: &str = "what FROM (
    SELECT c.oid::regclass::text AS what FROM pg_class c, aclexplode(c.relacl) AS a
        WHERE c.relnamespace::regnamespace::text IN ('public', 'sec', 'audit') AND a.grantee = 0
    UNION ALL SELECT p.oid::regprocedure::text FROM pg_proc p
        WHERE p.pronamespace::regnamespace::text IN ('public', 'sec', 'audit') AND has_function_privilege('public', p.oid, 'EXECUTE')
    UNION ALL SELECT n.nspname FROM pg_namespace n, aclexplode(n.nspacl) AS a
        WHERE n.nspname IN ('public', 'sec', 'audit') AND a.grantee = 0) AS w";

/// Every privilege that a role has in this database.
fn held(role: &str) -> String {
    format!(
        "what FROM (
            SELECT c.oid::regclass || ' ' || a.privilege_type AS what FROM pg_class c, aclexplode(c.relacl) AS a
                WHERE a.grantee = '{role}'::regrole
            UNION ALL SELECT t.attrelid::regclass || '.' || t.attname || ' ' || a.privilege_type
                FROM pg_attribute t, aclexplode(t.attacl) AS a WHERE a.grantee = '{role}'::regrole
            UNION ALL SELECT p.oid::regprocedure::text FROM pg_proc p, aclexplode(p.proacl) AS a WHERE a.grantee = '{role}'::regrole
            UNION ALL SELECT n.nspname || ' ' || a.privilege_type FROM pg_namespace n, aclexplode(n.nspacl) AS a
                WHERE a.grantee = '{role}'::regrole
            UNION ALL SELECT 'the database ' || a.privilege_type FROM pg_database d, aclexplode(d.datacl) AS a
                WHERE d.datname = current_database() AND a.grantee = '{role}'::regrole
            UNION ALL SELECT 'recorded ' || table_name::text FROM sec.worker_privileges WHERE role_name = '{role}') AS h ORDER BY 1"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn one_function_gives_a_worker_what_it_needs_and_no_more() {
    const SCRATCH: &str = "w_scratch_worker";
    let fixture = Fixture::new().await;
    fixture
        .execute(
            "INSERT INTO users (id, username, email) VALUES (1, 'u', 'e'), (2, 'u', 'e');
             INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode)
                 SELECT gen_random_uuid(), n, 's', 'simple' FROM generate_series(1, 2) AS n",
        )
        .await;
    let nothing = Vec::<String>::new();
    assert_eq!(fixture.lines(UNRECORDED).await, nothing, "as it is shipped");
    let call = format!(
        "SELECT sec.grant_worker('{SCRATCH}', '{{\"gpu_resources\": [\"SELECT\", \"UPDATE\"], \"chat_mode_sessions\": [\"INSERT\"]}}',
            '{{router_bucket_end(integer)}}')"
    );
    fixture.execute(&call).await;
    let first = fixture.lines(&held(SCRATCH)).await;
    fixture.execute(&call).await;
    assert_eq!(fixture.lines(&held(SCRATCH)).await, first, "again");
    assert_eq!(fixture.lines(UNRECORDED).await, nothing);
    assert_eq!(fixture.lines(PUBLIC).await, nothing);
    // As a worker that was there before, but for its own tables.
    let own = ["gpu_resources", "router_bucket_end", "chat_mode_sessions INSERT"];
    let base: Vec<String> =
        first.iter().filter(|line| own.iter().all(|name| !line.contains(name))).cloned().collect();
    assert_eq!(fixture.lines(&held("w_gpu_allocator")).await, base);
    // Each column may be updated.
    let columns = fixture
        .lines("count(*) FROM pg_attribute WHERE attrelid = 'gpu_resources'::regclass AND attnum > 0 AND NOT attisdropped")
        .await;
    let columns: usize = columns[0].parse().expect("a number");
    assert_eq!(first.len(), base.len() + 4 + columns, "{first:?}");

    let mut worker = fixture.connection().await;
    worker.batch_execute(&format!("SET SESSION AUTHORIZATION {SCRATCH}")).await.expect("a superuser");
    assert_eq!(store::security::excess_privileges(&mut worker).await.expect("an answer"), nothing);
    let good = attack::grant(1, SCRATCH);
    assert_eq!(
        attempt_for(&mut worker, std::slice::from_ref(&good), "SELECT FROM chat_mode_sessions").await,
        Ok(1)
    );
    assert_eq!(attempt_for(&mut worker, &[good], "SELECT id FROM users").await, Ok(1));
    for sql in [
        "SELECT email FROM users",
        "SELECT FROM chat_messages",
        "DELETE FROM gpu_resources",
        "SET ROLE memfleet_due",
    ] {
        assert_refused(attempt(&mut worker, sql).await, "permission denied", sql);
    }
    // Whatever is given beside the function is found.
    fixture.execute(&format!("GRANT DELETE ON gpu_resources TO {SCRATCH}")).await;
    assert_eq!(
        store::security::excess_privileges(&mut worker).await.expect("an answer"),
        ["may DELETE public.gpu_resources"]
    );
    assert_eq!(fixture.lines(UNRECORDED).await, [format!("{SCRATCH} gpu_resources DELETE of the table")]);
    fixture.execute(&format!("REVOKE DELETE ON gpu_resources FROM {SCRATCH}")).await;
    // Also a right to update all of a table whose columns the role may update, and one to update a column of another table.
    fixture
        .execute(&format!(
            "GRANT UPDATE ON gpu_resources TO {SCRATCH}; GRANT UPDATE (email) ON users TO {SCRATCH}"
        ))
        .await;
    assert_eq!(
        store::security::excess_privileges(&mut worker).await.expect("an answer"),
        ["may UPDATE public.gpu_resources", "may UPDATE the column email of public.users"]
    );
    assert_eq!(
        fixture.lines(UNRECORDED).await,
        [
            format!("{SCRATCH} gpu_resources UPDATE of the table"),
            format!("{SCRATCH} users UPDATE of some columns")
        ]
    );
    fixture
        .execute(&format!(
            "REVOKE UPDATE ON gpu_resources, users FROM {SCRATCH}; SELECT sec.grant_columns('gpu_resources')"
        ))
        .await;
    assert_eq!(fixture.lines(&held(SCRATCH)).await, first);

    // What is named goes, and what every worker needs stays.
    fixture
        .execute(&format!(
            "SELECT sec.revoke_worker('{SCRATCH}', '{{\"gpu_resources\": [\"SELECT\", \"UPDATE\"],
                \"chat_mode_sessions\": [\"SELECT\", \"INSERT\"], \"inbox\": [\"UPDATE\"]}}', '{{router_bucket_end(integer)}}')"
        ))
        .await;
    assert_eq!(fixture.lines(&held(SCRATCH)).await, base);
    assert_eq!(fixture.lines(UNRECORDED).await, nothing);
    fixture.execute(&format!("SELECT sec.revoke_worker('{SCRATCH}')")).await;
    assert_eq!(fixture.lines(&held(SCRATCH)).await, nothing);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_takes_no_messages_gets_no_inbox() {
    let fixture = Fixture::new().await;
    let before = fixture.lines(&held("w_memory_reader")).await;
    fixture.execute("SELECT sec.grant_worker('w_memory_reader', '{}', takes_messages => false)").await;
    assert_eq!(fixture.lines(&held("w_memory_reader")).await, before);
    fixture
        .execute("SELECT sec.grant_worker('w_memory_reader', '{\"users\": [\"SELECT\"]}', takes_messages => false)")
        .await;
    assert_eq!(fixture.lines(&held("w_memory_reader")).await.len(), before.len() + 2);
    fixture.execute("SELECT sec.revoke_worker('w_memory_reader', '{\"users\": [\"SELECT\"]}')").await;
    assert_eq!(fixture.lines(&held("w_memory_reader")).await, before);

    let mut admin = fixture.connection().await;
    for (arguments, by) in [
        ("'postgres'", "is not the name of a worker's role"),
        ("'w_x; DROP TABLE users'", "is not the name of a worker's role"),
        ("'w_memory_reader', '{\"no_such\": [\"SELECT\"]}'", "'no_such' is not a table of the schema public"),
        ("'w_memory_reader', '{\"keys\": [\"SELECT\"]}'", "'keys' is not a table of the schema public"),
        (
            "'w_memory_reader', '{\"blackboard_events_default\": [\"SELECT\"]}'",
            "is not a table of the schema public",
        ),
        (
            "'w_memory_reader', '{\"users\": [\"TRUNCATE\"]}'",
            "expected some of SELECT, INSERT, UPDATE, DELETE",
        ),
        ("'w_memory_reader', '{\"users\": [\"SELECT ON sec.keys TO PUBLIC\"]}'", "expected some of SELECT"),
        ("'w_memory_reader', '{\"users\": []}'", "expected some of SELECT, INSERT, UPDATE, DELETE"),
    ] {
        let call = format!("SELECT sec.grant_worker({arguments}, takes_messages => false)");
        assert_refused(attempt(&mut admin, &call).await, by, arguments);
    }
}

/// A migration that adds a column gives the roles that update the table the right to update it, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_without_privileges_is_found() {
    let fixture = Fixture::new().await;
    let nothing = Vec::<String>::new();
    fixture.execute("ALTER TABLE chat_history ADD COLUMN forgotten integer").await;
    assert_eq!(
        fixture.lines(UNRECORDED).await,
        ["w_context_writer chat_history UPDATE", "w_context_writer chat_history UPDATE of some columns"]
    );
    fixture.execute("SELECT sec.grant_columns('chat_history')").await;
    assert_eq!(fixture.lines(UNRECORDED).await, nothing);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_role_locks_a_table_against_others() {
    let fixture = Fixture::new().await;
    let tables = fixture
        .lines(
            "c.oid::regclass FROM pg_class c WHERE c.relkind IN ('r', 'p')
             AND c.relnamespace::regnamespace::text IN ('public', 'sec', 'audit') ORDER BY c.oid::regclass::text",
        )
        .await;
    assert!(tables.len() > 70, "{tables:?}");
    for role in fixture.lines("role_name FROM sec.worker_privileges GROUP BY role_name ORDER BY 1").await {
        let mut worker = attack::login(&fixture, &role).await;
        for table in &tables {
            worker.batch_execute("BEGIN").await.expect("a transaction");
            let lock = format!("LOCK TABLE {table} IN SHARE MODE");
            assert_refused(attempt(&mut worker, &lock).await, "permission denied for table", &role);
            worker.batch_execute("ROLLBACK").await.expect("its end");
        }
        // It locks rows that it may update all the same.
        if role == "w_context_writer" {
            let update = "SELECT FROM inbox FOR UPDATE";
            assert_eq!(attempt_for(&mut worker, &[attack::grant(1, &role)], update).await, Ok(0));
        }
    }
}

/// Entries of the inbox and ciphertexts are deleted by functions, under the same policies.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_deletes_entries_of_its_own_inbox_and_users_alone() {
    let fixture = Fixture::new().await;
    fixture
        .execute(
            "INSERT INTO users (id, username, email) VALUES (1, 'u', 'e'), (2, 'u', 'e');
             INSERT INTO inbox (worker, user_id, message_id, event_id, received_at)
                 SELECT w, u, md5(w || u)::uuid, gen_random_uuid(), now() - interval '9 days'
                 FROM unnest(ARRAY['context-writer', 'router-logger']) AS w, generate_series(1, 2) AS u",
        )
        .await;
    let mut worker = attack::login(&fixture, "w_context_writer").await;
    let grants = [attack::grant(1, "w_context_writer")];
    let all = "concat_ws(' ', worker, user_id) FROM inbox ORDER BY 1";
    let release = |worker: &str, user: i32| {
        format!("SELECT sec.release_messages('{worker}', ARRAY[{user}], ARRAY[md5('{worker}{user}')::uuid])")
    };
    for (of, user) in [("router-logger", 1), ("context-writer", 2), ("context-writer", 1)] {
        worker.batch_execute("BEGIN").await.expect("a transaction");
        let open = format!("SELECT sec.open_context(ARRAY['{}'])", grants[0]);
        worker.batch_execute(&open).await.expect("a context");
        worker.batch_execute(&release(of, user)).await.expect("its right");
        worker.batch_execute("COMMIT").await.expect("a commit");
    }
    assert_eq!(fixture.lines(all).await, ["context-writer 2", "router-logger 1", "router-logger 2"]);
    let none = "SELECT sec.release_messages('context-writer', ARRAY[1], ARRAY[]::uuid[])";
    assert_refused(attempt_for(&mut worker, &grants, none).await, "as many as each other", none);
    for denied in
        ["SELECT sec.forget_inbox(ARRAY[1], now(), 10)", "DELETE FROM inbox", "DELETE FROM encrypted_fields"]
    {
        assert_refused(attempt_for(&mut worker, &grants, denied).await, "permission denied", denied);
    }
    // Old entries go by the policy, and none that is younger, whatever the time is said to be.
    fixture
        .execute("UPDATE inbox SET received_at = now() - interval '7 days' WHERE worker = 'context-writer'")
        .await;
    let mut cleaner = attack::login(&fixture, "w_retention_cleaner").await;
    let grants = [1, 2, 0].map(|user| attack::grant(user, "w_retention_cleaner"));
    let forget = "SELECT sec.forget_inbox(ARRAY[1, 2], now() + interval '50 days', 10)";
    assert_eq!(attempt_for(&mut cleaner, &grants, forget).await, Ok(2));
    let most = "SELECT sec.forget_inbox(ARRAY[1, 2], now(), 1)";
    assert_eq!(attempt_for(&mut cleaner, &grants, most).await, Ok(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_deletes_rows_of_its_own_tables_and_users_alone() {
    const ROLE: &str = "w_retention_cleaner";
    let fixture = Fixture::new().await;
    fixture
        .execute(
            "INSERT INTO users (id, username, email) VALUES (1, 'u', 'e'), (2, 'u', 'e');
             INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode)
                 SELECT md5('s' || n)::uuid, n, 's', 'simple' FROM generate_series(1, 2) AS n;
             INSERT INTO router_decision_log (id, user_id, session_id, user_request, routing_decision, is_sensitive)
                 SELECT md5('d' || n)::uuid, n, 's', 'x', '{}', true FROM generate_series(1, 2) AS n;
             INSERT INTO encrypted_fields (id, user_id, table_name, column_name, row_id, ciphertext)
                 SELECT gen_random_uuid(), n, 'router_decision_log', 'x', md5('d' || n)::uuid, repeat('x', 100)::bytea
                 FROM generate_series(1, 2) AS n",
        )
        .await;
    let mut worker = attack::login(&fixture, ROLE).await;
    let own = [attack::grant(1, ROLE)];
    let delete = |table: &str, row: &str| {
        format!(
            "SELECT sec.delete_rows('{table}', ARRAY[1, 2], ARRAY[md5('{row}1')::uuid, md5('{row}2')::uuid])"
        )
    };
    assert_eq!(attempt_for(&mut worker, &own, &delete("router_decision_log", "d")).await, Ok(1), "its user");
    let both = [attack::grant(1, ROLE), attack::grant(2, ROLE)];
    assert_eq!(attempt_for(&mut worker, &both, &delete("router_decision_log", "d")).await, Ok(2));
    assert_eq!(attempt(&mut worker, &delete("router_decision_log", "d")).await, Ok(0), "no context");
    for table in ["users", "inbox", "encrypted_fields", "sec.keys", "audit.audit_log"] {
        let sql = delete(table, "d");
        assert_refused(attempt_for(&mut worker, &own, &sql).await, "deletes no rows of", &sql);
    }
    let sql = "SELECT sec.delete_rows('router_decision_log', ARRAY[1], ARRAY[]::uuid[])";
    assert_refused(attempt_for(&mut worker, &own, sql).await, "as many as each other", sql);
    let mut other = attack::login(&fixture, "w_router_logger").await;
    let sql = delete("router_decision_log", "d");
    assert_refused(attempt(&mut other, &sql).await, "permission denied for function delete_rows", &sql);

    // A ciphertext goes with its row, and with the mark that there is one.
    let left = "concat_ws(' ', user_id, table_name) FROM encrypted_fields ORDER BY 1";
    let open = format!("SELECT sec.open_context(ARRAY['{}', '{}'])", both[0], both[1]);
    let unmark = "UPDATE router_decision_log SET is_sensitive = false WHERE user_id = 1";
    for sql in ["BEGIN", open.as_str(), unmark, "COMMIT"] {
        worker.batch_execute(sql).await.expect("its right");
    }
    assert_eq!(fixture.lines(left).await, ["2 router_decision_log"]);
    let delete = delete("router_decision_log", "d");
    for sql in ["BEGIN", open.as_str(), delete.as_str(), "COMMIT"] {
        worker.batch_execute(sql).await.expect("its right");
    }
    assert_eq!(fixture.lines(left).await, Vec::<String>::new());
    assert_eq!(fixture.count("router_decision_log").await, 0);
}

/// `memfleet security validate --json`: what it finds of a kind.
async fn found(fixture: &Fixture, kind: &str) -> Vec<String> {
    let (_, report) = validate(fixture).await;
    let findings = report["findings"].as_array().expect("findings");
    findings
        .iter()
        .filter(|one| one["kind"] == kind)
        .map(|one| one["role"].as_str().unwrap_or_default().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_role_takes_all_connections() {
    const KIND: &str = "role without a limit of connections";
    let fixture = Fixture::new().await;
    assert_eq!(found(&fixture, KIND).await, Vec::<String>::new(), "as it is shipped");
    // Roles are of the whole server, so a role of this test alone.
    let role = format!("w_scratch_{}", uuid::Uuid::now_v7().simple());
    let grant = format!(
        "SELECT sec.grant_worker('{role}', '{{\"gpu_resources\": [\"SELECT\"]}}', takes_messages => false)"
    );
    fixture.execute(&grant).await;
    let limit = format!("rolconnlimit FROM pg_roles WHERE rolname = '{role}'");
    let half = "current_setting('max_connections')::integer / 2 FROM (VALUES (1)) AS one";
    assert_eq!(fixture.lines(&limit).await, fixture.lines(half).await);
    for unlimited in ["-1", "500"] {
        fixture.execute(&format!("ALTER ROLE {role} CONNECTION LIMIT {unlimited}")).await;
        assert_eq!(found(&fixture, KIND).await, std::slice::from_ref(&role), "{unlimited}");
    }
    // What an administrator has set stays.
    let url = fixture.settings.postgres.url_of(&role);
    let password = url.split(['@', ':']).nth(2).expect("a password").to_owned();
    fixture.execute(&format!("ALTER ROLE {role} CONNECTION LIMIT 2 PASSWORD '{password}'")).await;
    fixture.execute(&grant).await;
    assert_eq!(fixture.lines(&limit).await, ["2"]);
    assert_eq!(found(&fixture, KIND).await, Vec::<String>::new());
    let connections = (attack::login(&fixture, &role).await, attack::login(&fixture, &role).await);
    let refused = store::connect(&url).await.err().expect("a third one is refused");
    assert!(refused.to_string().contains("too many connections for role"), "{refused}");
    drop(connections);
    fixture.execute(&format!("SELECT sec.revoke_worker('{role}'); DROP ROLE {role}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_databases_that_are_open_to_workers_roles_are_reported() {
    let fixture = Fixture::new().await;
    let name = format!("open_{}", uuid::Uuid::now_v7().simple());
    let warned = async || {
        let (fine, report) = validate(&fixture).await;
        let warnings = report["warnings"].as_array().expect("warnings").clone();
        let ours = warnings.iter().filter_map(|one| one.as_str()).filter(|one| one.contains(&name)).count();
        let printed = output(memfleet(&fixture, &["migrate", "up"])).await;
        assert!(printed.status.success(), "{printed:?}");
        (fine, ours, text(&printed.stderr).matches(&format!("DATABASE \"{name}\" FROM PUBLIC")).count())
    };
    fixture.execute(&format!("CREATE DATABASE {name}")).await;
    let open = warned().await;
    fixture.execute(&format!("REVOKE CONNECT ON DATABASE {name} FROM PUBLIC")).await;
    let closed = warned().await;
    fixture.execute(&format!("DROP DATABASE {name}")).await;
    assert_eq!((open, closed), ((true, 1, 1), (true, 0, 0)));
    // Those of a private server are closed.
    let shut = "pg_database WHERE datname IN ('postgres', 'template1') AND NOT EXISTS (
        SELECT FROM aclexplode(datacl) AS a WHERE a.grantee = 0 AND a.privilege_type = 'CONNECT')";
    assert_eq!(fixture.count(shut).await, 2);
}
