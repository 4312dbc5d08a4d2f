//! What an attacker with a worker's login to the database can do: nothing for a user whose grant it does not hold.
//!
//! Tables, roles and partitions come from the catalogue, so that a new one cannot be forgotten.

use context_writer::ContextWriter;
use diesel_async::SimpleAsyncConnection;
use runtime::{NotReady, RunError};
use testkit::attack::{
    self, assert_refused, attempt, attempt_for, grant_key, grant_with_key, login, roles, tables,
};
use testkit::{Fixture, requests_for_all_tables, token};
use trust::GrantKey;
use uuid::Uuid;

use crate::support::{ROLE, two_users};

fn grant(user: i32) -> String {
    attack::grant(user, ROLE)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_table_of_a_user_forces_its_policy_and_has_the_user_in_its_keys() {
    let fixture = Fixture::new().await;
    let tables = tables(&fixture).await;
    assert!(tables.len() >= 29, "{tables:?}");
    for (table, column) in &tables {
        let from =
            format!("pg_class WHERE oid = '{table}'::regclass AND relrowsecurity AND relforcerowsecurity");
        assert_eq!(fixture.count(&from).await, 1, "{table} has no forced row-level security");
        let policies = fixture
            .lines(&format!("concat_ws(' ', cmd, permissive, roles, with_check, qual) FROM pg_policies WHERE tablename = '{table}'
                AND permissive = 'PERMISSIVE'"))
            .await;
        let own =
            format!("({column} = ANY (( SELECT sec.current_user_ids() AS current_user_ids)::integer[]))");
        let first = format!("((( SELECT sec.current_users() AS current_users))[{column}] IS NOT NULL)");
        let only = format!("ALL PERMISSIVE {{public}} {own} ({first} AND {own})");
        assert_eq!(policies, [only], "{table}");
    }
    // A key without the user would let one user's row collide with another's, or tell that it is there.
    let without = fixture
        .lines(
            "conrelid::regclass || ' ' || conname FROM pg_constraint c WHERE contype IN ('u', 'f', 'p')
             AND connamespace = 'public'::regnamespace AND conparentid = 0 AND confrelid <> 'gpu_resources'::regclass
             AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.conrelid AND a.attname = 'user_id')
             AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.conrelid AND a.attname = 'user_id'
                AND a.attnum = ANY (c.conkey)) ORDER BY 1",
        )
        .await;
    // Primary keys are made by memfleet, by chance; no publisher can name them.
    let made: Vec<&String> = without.iter().filter(|line| !line.ends_with("_pkey")).collect();
    assert_eq!(made, Vec::<&String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_are_what_the_list_says_and_no_more() {
    let fixture = Fixture::new().await;
    let roles = roles(&fixture).await;
    assert_eq!(roles.len(), 7, "{roles:?}");
    for role in &roles {
        let mut worker = login(&fixture, role).await;
        let excess = store::security::excess_privileges(&mut worker).await.expect("an answer");
        assert_eq!(excess, Vec::<String>::new(), "{role}");
        for other in roles.iter().filter(|other| *other != role).chain([&"memfleet_owner".to_owned()]) {
            assert_refused(
                attempt(&mut worker, &format!("SET ROLE {other}")).await,
                "permission denied",
                role,
            );
        }
        for (sql, by) in [
            ("CREATE TABLE public.mine (x integer)", "permission denied for schema public"),
            ("CREATE TEMP TABLE mine (x integer)", "permission denied to create temporary tables"),
            (
                "CREATE FUNCTION public.mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
                "permission denied for schema public",
            ),
            ("CREATE SCHEMA mine", "permission denied for database"),
            ("SELECT * FROM sec.keys", "permission denied for table keys"),
            ("SELECT * FROM sec.revoked_grants", "permission denied for table revoked_grants"),
            ("SELECT sec.add_key('mine', 'grant', sha256('x'))", "permission denied for function add_key"),
            ("SELECT sec.seal('1||')", "permission denied for function seal"),
            ("SELECT sec.hmac('', '', '')", "permission denied for function hmac"),
            (
                "SELECT make_month_partitions('blackboard_events', 1)",
                "permission denied for function make_month_partitions",
            ),
            ("ALTER TABLE users DISABLE ROW LEVEL SECURITY", "must be owner of table users"),
            ("DROP POLICY own_rows ON users", "must be owner of relation users"),
            ("INSERT INTO audit.audit_log DEFAULT VALUES", "permission denied for table audit_log"),
            ("TRUNCATE blackboard_events", "permission denied for table blackboard_events"),
            (
                "UPDATE blackboard_events SET event_payload = '{}'",
                "permission denied for table blackboard_events",
            ),
            ("DELETE FROM blackboard_events", "permission denied for table blackboard_events"),
            ("COPY users FROM '/etc/passwd'", "permission denied"),
            ("SET session_replication_role = replica", "permission denied to set parameter"),
        ] {
            assert_refused(attempt(&mut worker, sql).await, by, &format!("{role}: {sql}"));
        }
    }
    assert_eq!(fixture.count("pg_roles WHERE rolname = 'memfleet_owner' AND NOT rolcanlogin").await, 1);
    let owned = "pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
        AND relowner <> 'memfleet_owner'::regrole AND relname <> '__diesel_schema_migrations'";
    assert_eq!(fixture.count(owned).await, 0, "every table belongs to a role that cannot log in");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_cannot_be_reached_past_its_parent() {
    let fixture = two_users().await;
    let partitions = fixture
        .lines(
            "inhrelid::regclass FROM pg_inherits WHERE inhparent = 'blackboard_events'::regclass ORDER BY 1",
        )
        .await;
    assert!(partitions.len() >= 5, "{partitions:?}");
    let mut worker = login(&fixture, ROLE).await;
    for partition in partitions {
        for verb in [format!("SELECT * FROM {partition}"), format!("DELETE FROM {partition}")] {
            assert_refused(attempt_for(&mut worker, &[grant(1)], &verb).await, "permission denied", &verb);
        }
    }
    let events = attempt_for(&mut worker, &[grant(1)], "SELECT FROM blackboard_events").await.expect("rows");
    assert_eq!(events, 13, "one user's events through the parent");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_role_sees_or_touches_a_row_without_its_users_grant() {
    let fixture = two_users().await;
    let tables = tables(&fixture).await;
    for role in roles(&fixture).await {
        let mut worker = login(&fixture, &role).await;
        let of = |user: i32| vec![grant_with_key(&grant_key(), user, &role, 60)];
        for (table, column) in &tables {
            let may = async |privilege: &str| {
                // Roles update columns, so that they cannot lock tables.
                let kind = if privilege == "UPDATE" { "any_column" } else { "table" };
                let held = format!("has_{kind}_privilege('{role}', '{table}', '{privilege}')");
                fixture.count(&format!("(SELECT 1) AS one WHERE {held}")).await == 1
            };
            if !may("SELECT").await {
                let seen = attempt(&mut worker, &format!("SELECT FROM {table}")).await;
                let any_column = format!("has_any_column_privilege('{role}', '{table}', 'SELECT')");
                if fixture.count(&format!("(SELECT 1) AS one WHERE {any_column}")).await == 1 {
                    // Some know which of the batch's users there are, and nothing else of an account.
                    assert_eq!((table.as_str(), seen), ("users", Ok(0)), "{role}");
                    assert_refused(
                        attempt(&mut worker, "SELECT email FROM users").await,
                        "permission denied",
                        &role,
                    );
                } else {
                    assert_refused(seen, "permission denied", table);
                }
                continue;
            }
            let all = format!("SELECT FROM {table}");
            assert_eq!(attempt(&mut worker, &all).await, Ok(0), "{role} reads {table} without a context");
            let own = attempt_for(&mut worker, &of(1), &all).await.expect("rows");
            let both = attempt_for(&mut worker, &[of(1), of(2)].concat(), &all).await.expect("rows");
            assert_eq!(both, own * 2, "{role} reads {table}");
            let foreign = format!("SELECT FROM {table} WHERE {column} = 2");
            assert_eq!(
                attempt_for(&mut worker, &of(1), &foreign).await,
                Ok(0),
                "{role} reads another's {table}"
            );
            if may("UPDATE").await {
                let touch = format!("UPDATE {table} SET {column} = {column} WHERE {column} = 2");
                assert_eq!(
                    attempt_for(&mut worker, &of(1), &touch).await,
                    Ok(0),
                    "{role} updates another's {table}"
                );
                let give = format!("UPDATE {table} SET {column} = 2 WHERE {column} = 1");
                let given = attempt_for(&mut worker, &of(1), &give).await;
                // Some rows are of other workers, and are not touched.
                assert_eq!(given.unwrap_or(0), 0, "{role} gives a row of {table} away");
            }
            let deletes = format!(
                "sec.worker_privileges WHERE role_name = '{role}' AND table_name = '{table}'::regclass
                 AND 'DELETE' = ANY (privileges)"
            );
            if fixture.count(&deletes).await == 1 {
                let rows = fixture.lines(&format!("id FROM {table} WHERE {column} = 2")).await;
                let delete = format!(
                    "SELECT sec.delete_rows('{table}', array_fill(2, ARRAY[{}]), '{{{}}}')",
                    rows.len(),
                    rows.join(",")
                );
                assert_eq!(
                    attempt_for(&mut worker, &of(1), &delete).await,
                    Ok(0),
                    "{role} deletes another's {table}"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_row_can_be_written_for_another_user_by_any_way() {
    let fixture = two_users().await;
    let mut worker = login(&fixture, ROLE).await;
    let policy = "row-level security policy";
    let nil = Uuid::nil();
    for (sql, by) in [
        ("INSERT INTO users (id, username, email) VALUES (2, 'x', 'x')".to_owned(), policy),
        ("INSERT INTO users (id, username, email) VALUES (3, 'x', 'x')".to_owned(), policy),
        (
            "INSERT INTO users (id, username, email) VALUES (2, 'x', 'x')
             ON CONFLICT (id) DO UPDATE SET username = 'x'"
                .to_owned(),
            policy,
        ),
        (
            format!(
                "INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value)
                VALUES ('{nil}', 2, 's', 'k', '1') ON CONFLICT (user_id, session_id, context_key)
                DO UPDATE SET context_value = '2'"
            ),
            policy,
        ),
        ("COPY users FROM STDIN".to_owned(), "COPY FROM not supported with row-level security"),
        (
            // The session of another user is no session of one's own.
            format!(
                "INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value)
                VALUES ('{nil}', 1, 'no-such', 'k', '1')"
            ),
            "violates foreign key constraint",
        ),
    ] {
        assert_refused(attempt_for(&mut worker, &[grant(1)], &sql).await, by, &sql);
    }
    // What is another's key is free for oneself, so that nobody learns of it.
    let taken = fixture.lines("id FROM chat_messages WHERE user_id = 2").await[0].clone();
    let probe = format!(
        "INSERT INTO chat_messages (id, user_id, history_id, role, content, \"timestamp\")
         SELECT '{taken}', 1, id, 'user', 'x', now() FROM chat_history"
    );
    assert_eq!(attempt_for(&mut worker, &[grant(1)], &probe).await, Ok(1), "another's id is no conflict");
    let history = fixture.lines("id FROM chat_history WHERE user_id = 2").await[0].clone();
    let refer = format!(
        "INSERT INTO chat_messages (id, user_id, history_id, role, content, \"timestamp\")
         VALUES ('{nil}', 1, '{history}', 'user', 'x', now())"
    );
    assert_refused(
        attempt_for(&mut worker, &[grant(1)], &refer).await,
        "violates foreign key constraint",
        "a foreign reference",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_context_can_be_made_or_kept_without_a_grant() {
    let fixture = two_users().await;
    let mut worker = login(&fixture, ROLE).await;
    let other = GrantKey::generate("test").expect("a key");
    let unknown = GrantKey::generate("unknown").expect("a key");
    let good = grant(1);
    let swapped = good.replacen("|1||", "|2||", 1);
    let longer = {
        let mut parts: Vec<&str> = good.split('|').collect();
        parts[7] = "9999999999";
        parts.join("|")
    };
    let revoked = grant(1);
    let id = revoked.split('|').nth(6).expect("its id");
    fixture.execute(&format!("INSERT INTO sec.revoked_grants (grant_id) VALUES ('{id}')")).await;
    for (bad, why) in [
        (grant_with_key(&other, 1, ROLE, 60), "forged"),
        (swapped, "forged"),
        (longer, "forged"),
        (format!("{good}0"), "forged"),
        (good[..good.len() - 1].to_owned(), "forged"),
        (grant_with_key(&unknown, 1, ROLE, 60), "unknown key"),
        (grant_with_key(&grant_key(), 1, "w_router_logger", 60), "of another role"),
        (grant_with_key(&grant_key(), 1, ROLE, -1), "expired"),
        (revoked.clone(), "revoked"),
        (String::new(), "malformed"),
        ("v1|test|1".to_owned(), "malformed"),
        (good.replacen("v1|", "v2|", 1), "malformed"),
        (good.replacen("|1||", "|99999999999||", 1), "forged"),
    ] {
        let by = format!("the security context is refused: a grant is {why}");
        assert_refused(
            attempt_for(&mut worker, std::slice::from_ref(&bad), "SELECT FROM users").await,
            &by,
            &bad,
        );
        // One bad grant spoils a batch: nothing is done for the users of the others.
        assert_refused(
            attempt_for(&mut worker, &[good.clone(), bad.clone()], "SELECT FROM users").await,
            &by,
            &bad,
        );
    }
    let none = "the security context is refused: it needs 1 to 10000 grants";
    for nothing in ["NULL", "NULL, '2', 'x'", "'{}', '2', 'x'", "ARRAY[]::text[], '1,2', 'x'"] {
        assert_refused(
            attempt(&mut worker, &format!("SELECT sec.open_context({nothing})")).await,
            none,
            nothing,
        );
    }
    for missing in ["NULL, 'x'", "'s', NULL", "NULL, NULL"] {
        worker.batch_execute("BEGIN").await.expect("a transaction");
        attempt(&mut worker, &format!("SELECT sec.open_context(ARRAY['{good}'], {missing})"))
            .await
            .expect("a context");
        assert_eq!(attempt(&mut worker, "SELECT FROM users WHERE id = 1").await, Ok(1), "{missing}");
        assert_eq!(attempt(&mut worker, "SELECT FROM users").await, Ok(1), "{missing}");
        worker.batch_execute("ROLLBACK").await.expect("its end");
    }
    assert_refused(attempt_for(&mut worker, &[], "SELECT FROM users").await, none, "no grant");

    // Written by hand, or changed, or copied from another transaction of the same connection: the seal is wrong.
    let held = "current_setting('memfleet.context')";
    for forged in [
        "'1|||'".to_owned(),
        "'1,2|||00'".to_owned(),
        "'rubbish'".to_owned(),
        format!("replace({held}, '1|', '1,2|')"),
        format!("replace({held}, '1|', '2|')"),
    ] {
        let list = format!("SELECT sec.open_context(ARRAY['{good}'])");
        worker.batch_execute("BEGIN").await.expect("a transaction");
        attempt(&mut worker, &list).await.expect("a context");
        attempt(&mut worker, &format!("SELECT set_config('memfleet.context', {forged}, true)"))
            .await
            .expect("a setting");
        let done = attempt(&mut worker, "SELECT FROM users").await;
        worker.batch_execute("ROLLBACK").await.expect("its end");
        assert_refused(done, "the security context is not genuine", &forged);
    }
    worker.batch_execute("BEGIN").await.expect("a transaction");
    attempt(&mut worker, &format!("SELECT sec.open_context(ARRAY['{good}'])")).await.expect("a context");
    worker
        .batch_execute(&format!("SELECT set_config('memfleet.kept', {held}, false); COMMIT"))
        .await
        .expect("a context that is kept");
    assert_eq!(
        attempt(&mut worker, "SELECT FROM users").await,
        Ok(0),
        "the context ended with its transaction"
    );
    worker
        .batch_execute("BEGIN; SELECT set_config('memfleet.context', current_setting('memfleet.kept'), true)")
        .await
        .expect("a setting");
    assert_refused(
        attempt(&mut worker, "SELECT FROM users").await,
        "not genuine",
        "a context of another transaction",
    );
    worker.batch_execute("ROLLBACK").await.expect("its end");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documents_functions_open_and_tell_the_context() {
    let fixture = two_users().await;
    let mut worker = login(&fixture, ROLE).await;
    let ask = "concat_ws(' ', get_current_user_id(), get_current_session_id(), get_current_service_name(), validate_security_context())";
    let telling =
        |expected: &str| format!("SELECT FROM (SELECT {ask} AS told) AS t WHERE told = '{expected}'");
    assert_eq!(attempt(&mut worker, &telling("f")).await, Ok(1), "no context");
    let good = grant(1);
    for (arguments, fine) in [("1, 's', 'test'", true), ("2, 's', 'test'", false), ("1, 's', 'other'", false)]
    {
        worker
            .batch_execute(&format!("BEGIN; SELECT set_config('memfleet.grant', '{good}', true)"))
            .await
            .expect("a grant");
        let opened = attempt(&mut worker, &format!("SELECT set_security_context({arguments})")).await;
        if fine {
            assert_eq!(opened, Ok(1));
            assert_eq!(attempt(&mut worker, &telling("1 s test t")).await, Ok(1));
            assert_eq!(attempt(&mut worker, "SELECT FROM users").await, Ok(1));
        } else {
            assert_refused(opened, "holds no grant for it", arguments);
        }
        worker.batch_execute("ROLLBACK").await.expect("its end");
    }
    assert_refused(
        attempt(&mut worker, "SELECT set_security_context(1, 's', 'test')").await,
        "holds no grant",
        "no grant",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_too_much_or_too_little_refuses_to_start() {
    let fixture = Fixture::new().await;
    let problem =
        async |settings: config::Settings| match fixture.run_with(ContextWriter, settings).failure().await {
            Err(RunError::Startup(NotReady { problem, .. })) => problem,
            Err(other) => other.to_string(),
            Ok(()) => panic!("it started"),
        };
    let mut short = fixture.settings.clone();
    short.worker.startup_timeout_s = 1;

    let mut administrator = short.clone();
    administrator.postgres.worker_url = None;
    let told = problem(administrator).await;
    assert!(
        told.contains("is a superuser") && told.contains("run context-writer as w_context_writer"),
        "{told}"
    );

    let mut other = short.clone();
    other.postgres.worker_url = Some(short.postgres.url_of("w_router_logger"));
    let told = problem(other).await;
    assert!(told.contains("w_router_logger") && told.contains("it must run as w_context_writer"), "{told}");

    fixture.execute("GRANT DELETE ON users TO w_context_writer").await;
    let told = problem(short.clone()).await;
    assert!(
        told.contains(
            "the database role w_context_writer may DELETE public.users, which context-writer must not"
        ),
        "{told}"
    );
    fixture.execute("REVOKE DELETE ON users FROM w_context_writer").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_the_database_refuses_is_a_denied_message() {
    let fixture = Fixture::new().await;
    // An issuer of tokens that has no key of grants that the database knows.
    let token = token::with_grant_key(GrantKey::generate("stolen").expect("a key"), "test", 1);
    let stolen = requests_for_all_tables(1).into_iter().map(|request| request.with_token(&token));
    fixture.process(ContextWriter, stolen).await;
    let letters = fixture.dead_letters().await;
    assert_eq!(letters.len(), 13);
    assert!(
        letters
            .iter()
            .all(|letter| letter == "denied: the security context is refused: a grant is unknown key"),
        "{letters:?}"
    );
    assert_eq!(fixture.count("inbox").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_issuer_of_tokens_registers_them_and_does_nothing_else() {
    let fixture = two_users().await;
    let mut issuer = login(&fixture, "w_token_issuer").await;
    assert_eq!(
        store::security::excess_privileges(&mut issuer).await.expect("an answer"),
        Vec::<String>::new()
    );
    for (table, _) in tables(&fixture).await {
        assert_refused(
            attempt(&mut issuer, &format!("SELECT FROM {table}")).await,
            "permission denied",
            &table,
        );
    }
    for sql in [
        "SELECT sec.open_context('{}')",
        "SELECT sec.revoke_tokens('{}')",
        "SELECT * FROM sec.services",
        "SELECT * FROM sec.keys",
        "INSERT INTO sec.token_keys (key_id, public_key) VALUES ('mine', sha256('x'))",
        "UPDATE cross_service_auth SET revoked_at = NULL",
        "INSERT INTO cross_service_auth (token_id) VALUES (uuid7())",
        "DELETE FROM sec.revoked_grants",
        "SET ROLE memfleet_owner",
    ] {
        assert_refused(attempt(&mut issuer, sql).await, "permission denied", sql);
    }
    let foreign = r#"SELECT sec.register_tokens('[{"service": "nobody"}]')"#;
    assert_refused(attempt(&mut issuer, foreign).await, "the service nobody is not registered", foreign);
    // And no worker registers or revokes one.
    for role in roles(&fixture).await {
        let mut worker = login(&fixture, &role).await;
        for sql in [
            "SELECT sec.register_tokens('[]')",
            "SELECT sec.revoke_tokens('{}')",
            "SELECT * FROM cross_service_auth",
            "SELECT * FROM sec.services",
            "SELECT * FROM sec.token_keys",
            "UPDATE sec.trust_version SET version = 0",
        ] {
            assert_refused(attempt(&mut worker, sql).await, "permission denied", &format!("{role}: {sql}"));
        }
    }
}
