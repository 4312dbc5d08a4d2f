//! What an attacker with a worker's login to the key store can do: nothing with the data keys of a user whose grant it does
//! not hold, and with that of a user whose grant it holds no more than its worker needs.

use std::collections::BTreeSet;

use context_writer::ContextWriter;
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use serde_json::json;
use testkit::attack::{
    SHOW_PLANS, assert_refused, assert_untold, attempt, attempt_for, functions_with_plans, grant, grant_key,
    grant_with_key, login_to_key_store, roles, told,
};
use testkit::{Fixture, eventually, lines_on, request, user};
use trust::GrantKey;

use crate::support::program::{Ended, memfleet, output};
use crate::support::{ROLE, two_users};
use crate::validation::validate;

/// The roles that the key store admits, and whether each may add keys.
const ROLES: [(&str, bool); 4] = [
    ("w_context_writer", true),
    ("w_memory_reader", false),
    ("w_memory_sync", false),
    ("w_router_logger", true),
];

const POLICY: &str = "row-level security policy";
const PERMISSION: &str = "permission denied for table data_keys";

/// A role may have its plans printed, also those of functions that act with others' rights.
#[tokio::test(flavor = "multi_thread")]
async fn no_key_of_the_key_store_is_in_a_plan() {
    let fixture = Fixture::new().await;
    let mut administrator = administrator(&fixture).await;
    assert_eq!(functions_with_plans(&mut administrator).await, Vec::<String>::new());
    let pads = "secret FROM (SELECT encode(inner_pad, 'hex') AS secret FROM sec.keys UNION ALL SELECT encode(outer_pad, 'hex') FROM sec.keys) AS s";
    let secrets = lines_on(&mut administrator, pads).await;
    assert!(secrets.len() >= 4, "{}", secrets.len());
    for are_hidden in [true, false] {
        for (role, _) in ROLES {
            let statements = [
                "SELECT sec.open_context(ARRAY['v1|test|1||s|r|g|9999999999|00'])".to_owned(),
                "BEGIN".to_owned(),
                format!("SELECT sec.open_context(ARRAY['{}'])", grant(1, role)),
                "SELECT sec.current_user_ids(), sec.current_users()".to_owned(),
                "SELECT * FROM data_keys".to_owned(),
                add(1, 1),
                "COMMIT".to_owned(),
            ];
            let text = told(&fixture.settings.keys.url_of(role), &statements).await;
            assert_untold(&secrets, &text, role);
            assert!(text.contains("PLANNEDSTMT"), "{role} sees the plans of its own statements");
            assert_eq!(text.contains("inner_pad"), !are_hidden, "{role}: the plans of functions");
        }
        administrator.batch_execute(SHOW_PLANS).await.expect("a change");
    }
}

/// The key store's administrator.
async fn administrator(fixture: &Fixture) -> AsyncPgConnection {
    store::connect(&fixture.settings.keys.url).await.expect("the key store")
}

async fn count(fixture: &Fixture, from: &str) -> usize {
    attempt(&mut administrator(fixture).await, &format!("SELECT FROM {from}")).await.expect("a count")
}

fn add(user: i32, version: i32) -> String {
    format!(
        "INSERT INTO data_keys (user_id, version, kek, wrapped)
         VALUES ({user}, {version}, 'ring:kek.1', decode(repeat('00', 64), 'hex'))"
    )
}

/// A password hash is always encrypted.
fn secret(user: i32) -> testkit::RequestMessage {
    let body = json!({ "username": "u", "email": "u@example.org", "password_hash": testkit::CANARY });
    request("user.put", user, body)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_roles_that_need_it_may_enter_and_every_table_of_users_forces_its_policy() {
    let fixture = Fixture::new().await;
    let admitted = ROLES.map(|(role, _)| role);
    for role in roles(&fixture).await {
        let entered = store::connect(&fixture.settings.keys.url_of(&role)).await;
        assert_eq!(entered.is_ok(), admitted.contains(&role.as_str()), "{role}");
    }
    let tables = "pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
        AND relname <> '__diesel_schema_migrations'";
    assert_eq!(count(&fixture, tables).await, 1);
    let forced = format!(
        "{tables} AND relrowsecurity AND relforcerowsecurity AND relowner = 'memfleet_owner'::regrole"
    );
    assert_eq!(count(&fixture, &forced).await, 1);
    let policies = lines_on(
        &mut administrator(&fixture).await,
        "concat_ws(' ', cmd, coalesce(qual, with_check)) FROM pg_policies ORDER BY cmd",
    )
    .await;
    let own = "(user_id = ANY (( SELECT sec.current_user_ids() AS current_user_ids)::integer[]))";
    let next = "(version <= sec.next_key_version(user_id))";
    let first = "((( SELECT sec.current_users() AS current_users))[user_id] IS NOT NULL)";
    assert_eq!(policies, [format!("INSERT ({own} AND {next})"), format!("SELECT ({first} AND {own})")]);
}

/// As in the main database: whether a condition holds of somebody's key must not show by when the policy is evaluated.
#[tokio::test(flavor = "multi_thread")]
async fn no_condition_on_keys_is_evaluated_before_the_policy() {
    let fixture = two_users().await;
    for (role, _) in ROLES {
        let mut worker = login_to_key_store(&fixture, role).await;
        for setting in [
            "memfleet.context = '2|1|'",
            "enable_indexscan = off",
            "enable_bitmapscan = off",
            "enable_indexonlyscan = off",
        ] {
            worker.batch_execute(&format!("SET {setting}")).await.expect(setting);
        }
        for user in [2, i32::MAX] {
            let found = attempt(&mut worker, &format!("SELECT FROM data_keys WHERE user_id = {user}")).await;
            assert_refused(found, "the security context is not genuine", &format!("{role}: {user}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_grant_no_role_reads_adds_changes_or_deletes_a_key() {
    let fixture = two_users().await;
    assert_eq!(count(&fixture, "data_keys").await, 2);
    for (role, may_add) in ROLES {
        let mut worker = login_to_key_store(&fixture, role).await;
        assert_eq!(attempt(&mut worker, "SELECT FROM data_keys").await, Ok(0), "{role}");
        for sql in [add(1, 1), add(1, 2), add(3, 1), format!("{} ON CONFLICT DO NOTHING", add(1, 1))] {
            let by = if may_add { POLICY } else { PERMISSION };
            assert_refused(attempt(&mut worker, &sql).await, by, &format!("{role}: {sql}"));
        }
        for sql in CHANGES {
            assert_refused(attempt(&mut worker, sql).await, PERMISSION, &format!("{role}: {sql}"));
        }
    }
}

/// What is an operator's alone, with or without a grant.
const CHANGES: [&str; 5] = [
    "UPDATE data_keys SET wrapped = wrapped",
    "UPDATE data_keys SET version = version + 1 WHERE user_id = 1",
    "DELETE FROM data_keys",
    "TRUNCATE data_keys",
    "SELECT FROM data_keys FOR UPDATE",
];

#[tokio::test(flavor = "multi_thread")]
async fn with_a_grant_of_one_user_only_that_users_next_key_is_in_reach() {
    let fixture = two_users().await;
    for (role, may_add) in ROLES {
        let mut worker = login_to_key_store(&fixture, role).await;
        let of = |user: i32| vec![grant(user, role)];
        for (grants, sql, rows) in [
            (of(1), "SELECT FROM data_keys", 1),
            (of(1), "SELECT FROM data_keys WHERE user_id = 2", 0),
            (of(3), "SELECT FROM data_keys", 0),
            ([of(1), of(2)].concat(), "SELECT FROM data_keys", 2),
        ] {
            assert_eq!(attempt_for(&mut worker, &grants, sql).await, Ok(rows), "{role}: {sql}");
        }
        // The key of another, and of oneself any but the next one: with the highest number taken, nobody could add another.
        let refused = if may_add { POLICY } else { PERMISSION };
        for (user, sql) in [
            (1, add(2, 1)),
            (1, add(2, 2)),
            (1, add(3, 1)),
            (1, format!("{} ON CONFLICT DO NOTHING", add(2, 1))),
            (1, format!("{} ON CONFLICT DO NOTHING RETURNING wrapped", add(2, 1))),
            (1, add(1, 3)),
            (1, add(1, i32::MAX)),
            (3, add(3, 2)),
        ] {
            let what = format!("{role}, user {user}: {sql}");
            assert_refused(attempt_for(&mut worker, &of(user), &sql).await, refused, &what);
        }
        // Its time and its origin, by which a rotation goes, are nobody's to write.
        for (column, value) in
            [("created_at", "infinity"), ("wrapped_at", "infinity"), ("added_by", "postgres")]
        {
            let dated = format!(
                "INSERT INTO data_keys (user_id, version, kek, wrapped, {column})
                 VALUES (3, 1, 'ring:kek.1', decode(repeat('00', 64), 'hex'), '{value}')"
            );
            assert_refused(attempt_for(&mut worker, &of(3), &dated).await, PERMISSION, role);
        }
        let update = format!("{} ON CONFLICT (user_id, version) DO UPDATE SET wrapped = ''", add(1, 1));
        for sql in CHANGES.into_iter().chain([update.as_str()]) {
            assert_refused(
                attempt_for(&mut worker, &of(1), sql).await,
                PERMISSION,
                &format!("{role}: {sql}"),
            );
        }
        // What the worker itself does.
        if may_add {
            assert_eq!(attempt_for(&mut worker, &of(3), &add(3, 1)).await, Ok(1), "{role}");
            assert_eq!(attempt_for(&mut worker, &of(1), &add(1, 2)).await, Ok(1), "{role}: if none opens");
            let again = format!("{} ON CONFLICT DO NOTHING", add(1, 1));
            assert_eq!(attempt_for(&mut worker, &of(1), &again).await, Ok(0), "{role}: the first one stays");
        }
    }
    assert_eq!(count(&fixture, "data_keys WHERE version = 1").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_context_of_the_key_store_can_be_made_or_kept_without_a_grant() {
    let fixture = two_users().await;
    let mut admin = administrator(&fixture).await;
    let retired = GrantKey::generate("retired").expect("a key");
    store::security::add_grant_key(&mut admin, retired.name(), retired.expose()).await.expect("a key");
    admin
        .batch_execute("UPDATE sec.keys SET retired_at = now() WHERE key_id = 'retired'")
        .await
        .expect("a retired key");
    let other = GrantKey::generate(grant_key().name()).expect("a key");
    let unknown = GrantKey::generate("unknown").expect("a key");
    let context = GrantKey::generate("context").expect("a key");
    let good = grant(1, ROLE);
    let mut later: Vec<&str> = good.split('|').collect();
    later[7] = "9999999999";
    let refused = |why: &str| format!("the security context is refused: a grant is {why}");
    let lacks = |key: &str| format!("it lacks the grant key {key}; `memfleet security key add` registers it");
    let mut worker = login_to_key_store(&fixture, ROLE).await;
    for (bad, by) in [
        (grant_with_key(&other, 1, ROLE, 60), refused("forged")),
        (good.replacen("|1||", "|2||", 1), refused("forged")),
        (later.join("|"), refused("forged")),
        (format!("{good}0"), refused("forged")),
        (good[..good.len() - 1].to_owned(), refused("forged")),
        (grant_with_key(&grant_key(), 1, "w_router_logger", 60), refused("of another role")),
        (grant_with_key(&grant_key(), 1, ROLE, -1), refused("expired")),
        (grant_with_key(&unknown, 1, ROLE, -1), refused("expired")),
        (grant_with_key(&retired, 1, ROLE, 60), refused("of a retired key")),
        (grant_with_key(&unknown, 1, ROLE, 60), lacks("unknown")),
        (grant_with_key(&context, 1, ROLE, 60), lacks("context")),
        (String::new(), refused("malformed")),
        ("v1|test|1".to_owned(), refused("malformed")),
        (good.replacen("v1|", "v2|", 1), refused("malformed")),
        (good.replacen("|1||", "|99999999999||", 1), refused("forged")),
    ] {
        for grants in [vec![bad.clone()], vec![good.clone(), bad.clone()]] {
            let done = attempt_for(&mut worker, &grants, "SELECT FROM data_keys").await;
            assert_refused(done, &by, &bad);
        }
    }
    for nothing in ["NULL", "'{}'", "ARRAY[]::text[]"] {
        let done = attempt(&mut worker, &format!("SELECT sec.open_context({nothing})")).await;
        assert_refused(done, "the security context is refused: it needs 1 to 10000 grants", nothing);
    }
    // Written by hand, changed, or copied from another transaction, also one of the main database.
    let held = "current_setting('memfleet.context')";
    let open = format!("SELECT sec.open_context(ARRAY['{good}'])");
    for forged in ["'1,2'", "'1,2|00'", "'rubbish'", &format!("replace({held}, '1|', '1,2|')")] {
        worker.batch_execute("BEGIN").await.expect("a transaction");
        worker.batch_execute(&open).await.expect("a context");
        let set = format!("SELECT set_config('memfleet.context', {forged}, true)");
        attempt(&mut worker, &set).await.expect("a setting");
        let done = attempt(&mut worker, "SELECT FROM data_keys").await;
        worker.batch_execute("ROLLBACK").await.expect("its end");
        assert_refused(done, "the security context is not genuine", forged);
    }
    let keep = format!("SELECT set_config('memfleet.kept', {held}, false)");
    for sql in ["BEGIN", &open, &keep, "COMMIT"] {
        worker.batch_execute(sql).await.expect("a context that is kept");
    }
    assert_eq!(attempt(&mut worker, "SELECT FROM data_keys").await, Ok(0), "it ends with its transaction");
    worker
        .batch_execute("BEGIN; SELECT set_config('memfleet.context', current_setting('memfleet.kept'), true)")
        .await
        .expect("a setting");
    let done = attempt(&mut worker, "SELECT FROM data_keys").await;
    assert_refused(done, "the security context is not genuine", "a context that was kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_way_leads_around_the_policies_of_the_key_store() {
    let fixture = two_users().await;
    for (role, _) in ROLES {
        let mut worker = login_to_key_store(&fixture, role).await;
        for (sql, by) in [
            ("SELECT FROM sec.keys", "permission denied for table keys"),
            ("UPDATE sec.keys SET retired_at = now()", "permission denied for table keys"),
            ("SELECT sec.add_key('mine', 'grant', sha256('x'))", "permission denied for function add_key"),
            ("SELECT sec.seal('1')", "permission denied for function seal"),
            ("SELECT sec.hmac('', '', '')", "permission denied for function hmac"),
            ("SELECT FROM sec.revoked_grants", "permission denied for table revoked_grants"),
            ("DELETE FROM sec.revoked_grants", "permission denied for table revoked_grants"),
            (
                "INSERT INTO sec.disabled_services VALUES ('test')",
                "permission denied for table disabled_services",
            ),
            ("UPDATE sec.trust_version SET version = 1", "permission denied for table trust_version"),
            ("SELECT sec.trust_changed()", "permission denied for function trust_changed"),
            ("SELECT guard_database()", "permission denied for function guard_database"),
            ("SET ROLE memfleet_owner", "permission denied to set role"),
            ("ALTER TABLE data_keys DISABLE ROW LEVEL SECURITY", "must be owner of table data_keys"),
            ("ALTER TABLE data_keys NO FORCE ROW LEVEL SECURITY", "must be owner of table data_keys"),
            ("DROP POLICY own_keys ON data_keys", "must be owner of relation data_keys"),
            ("CREATE POLICY mine ON data_keys USING (true)", "must be owner of table data_keys"),
            ("CREATE TABLE public.mine (x integer)", "permission denied for schema public"),
            ("CREATE TEMP TABLE mine (x integer)", "permission denied to create temporary tables"),
            ("CREATE SCHEMA mine", "permission denied for database"),
            (
                "CREATE FUNCTION sec.current_user_ids(integer) RETURNS integer[] LANGUAGE sql AS 'SELECT ''{2}''::integer[]'",
                "permission denied for schema sec",
            ),
            ("COPY data_keys FROM '/etc/passwd'", "permission denied"),
            ("COPY data_keys TO '/tmp/keys'", "permission denied"),
            ("SELECT pg_advisory_lock(1)", "permission denied for function"),
            ("SELECT pg_try_advisory_xact_lock(1)", "permission denied for function"),
            ("SET session_replication_role = replica", "permission denied to set parameter"),
        ] {
            assert_refused(attempt(&mut worker, sql).await, by, &format!("{role}: {sql}"));
        }
        worker.batch_execute("SET row_security = off").await.expect("a setting");
        let done = attempt(&mut worker, "SELECT FROM data_keys").await;
        assert_refused(done, "would be affected by row-level security policy", role);
        worker.batch_execute("SET row_security = on").await.expect("a setting");
        administrator(&fixture).await.batch_execute("ANALYZE").await.expect("statistics");
        let statistics = "SELECT FROM pg_stats WHERE tablename = 'data_keys'";
        assert_eq!(attempt(&mut worker, statistics).await, Ok(0), "{role}");
    }
}

/// Waits until context-writer holds a message.
async fn is_held(fixture: &Fixture) {
    eventually("the message is held", async || {
        let info = fixture.consumer("CONTEXT", "context-writer").await.cached_info().num_ack_pending;
        (info > 0).then_some(())
    })
    .await;
}

/// A key that an operator forgot is no fault of a message: it waits, as it does while the key store is away.
#[tokio::test(flavor = "multi_thread")]
async fn without_its_grant_key_secrets_wait_and_under_a_retired_one_they_are_refused() {
    let fixture = Fixture::new().await;
    let mut admin = administrator(&fixture).await;
    admin.batch_execute("DELETE FROM sec.keys WHERE purpose = 'grant'").await.expect("no key");
    let worker = fixture.run(ContextWriter);
    fixture.publish([secret(1)]).await;
    is_held(&fixture).await;
    assert_eq!(fixture.count("users WHERE id = 1").await, 0);
    let key = grant_key();
    store::security::add_grant_key(&mut admin, key.name(), key.expose()).await.expect("a key");
    fixture.drained::<ContextWriter>().await;
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(fixture.count("encrypted_fields WHERE user_id = 1").await, 1);

    admin
        .batch_execute("UPDATE sec.keys SET retired_at = now() WHERE purpose = 'grant'")
        .await
        .expect("a retired key");
    // Another message of the batch, without secrets, asks the key store for nothing.
    fixture.process(ContextWriter, [secret(2), user(3)]).await;
    let letters = fixture.dead_letters().await;
    assert_eq!(letters, ["denied: the security context is refused: a grant is of a retired key"]);
    assert_eq!(fixture.lines("id FROM users WHERE id > 0 ORDER BY 1").await, ["1", "3"]);
    assert_eq!(fixture.count("audit.security_violations").await, 1);
}

/// Keeps a key of user 1 uncommitted, as a router-logger that was taken over may while it holds a grant of this user.
async fn keep_a_key_open(fixture: &Fixture) -> AsyncPgConnection {
    let mut holder = login_to_key_store(fixture, "w_router_logger").await;
    let context = format!("SELECT sec.open_context(ARRAY['{}'])", grant(1, "w_router_logger"));
    for sql in ["SET idle_in_transaction_session_timeout = 0", "BEGIN", &context, &add(1, 1)] {
        holder.batch_execute(sql).await.expect(sql);
    }
    holder
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_kept_uncommitted_holds_up_its_user_alone() {
    let fixture = Fixture::new().await;
    let mut holder = keep_a_key_open(&fixture).await;
    let worker = fixture.run(ContextWriter);
    fixture.publish([secret(1), secret(2)]).await;
    eventually("the other user is written", async || {
        (fixture.count("users WHERE id = 2").await == 1).then_some(())
    })
    .await;
    let report = eventually("the blocked user is reported", async || {
        let report = worker.readiness.report();
        (!report.blocked.is_empty()).then_some(report)
    })
    .await;
    assert!(report.ready, "other users' messages are written");
    assert_eq!(report.blocked.iter().map(|one| one.user_id).collect::<Vec<_>>(), [Some(1)]);
    assert!(report.blocked[0].held_by.contains("in the key store"), "{}", report.blocked[0].held_by);
    assert_eq!(fixture.count("users WHERE id = 1").await, 0);
    holder.batch_execute("ROLLBACK").await.expect("its end");
    fixture.drained::<ContextWriter>().await;
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.count("users WHERE id = 1").await, 1);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_end_what_a_role_keeps_open_in_the_key_store() {
    let fixture = Fixture::new().await;
    let mut holder = keep_a_key_open(&fixture).await;
    let mut other = login_to_key_store(&fixture, "w_memory_reader").await;
    attempt(&mut other, "SELECT sec.end_old_transactions()").await.expect("its right");
    assert_eq!(attempt(&mut holder, "SELECT 1").await, Ok(1), "it is not old yet");
    let at_once =
        "DO $$ BEGIN EXECUTE replace(pg_get_functiondef('sec.end_old_transactions'::regproc), '30 seconds',
        '0 seconds'); END $$";
    administrator(&fixture).await.batch_execute(at_once).await.expect("a changed function");
    let worker = fixture.run(ContextWriter);
    let sessions = "pg_stat_activity WHERE datname = current_database() AND usename = 'w_router_logger'";
    eventually("a worker ends it", async || (count(&fixture, sessions).await == 0).then_some(())).await;
    worker.stop().await.expect("a clean end");
}

/// Runs the program. Whether it succeeded, and what it printed.
async fn operate(fixture: &Fixture, arguments: &[&str]) -> (bool, String) {
    let ended: Ended = output(memfleet(fixture, arguments)).await.into();
    (ended.is_success(), ended.all())
}

/// Reads under a grant, and adds a key if the role may.
async fn refused_under(worker: &mut AsyncPgConnection, grant: &str, user: i32, by: &str) {
    for sql in ["SELECT FROM data_keys".to_owned(), add(user, 2)] {
        assert_refused(attempt_for(worker, &[grant.to_owned()], &sql).await, by, &sql);
    }
}

/// Rotates data keys, without a long wait for replicas that have older keys in their caches.
async fn rotate(fixture: &Fixture, arguments: &[&str]) -> (bool, String) {
    let mut command = memfleet(fixture, &[&["keys", "rotate", "--data"], arguments].concat());
    for variable in ["MEMFLEET_POSTGRES__CONNECT_TIMEOUT_MS", "MEMFLEET_POSTGRES__STATEMENT_TIMEOUT_MS"] {
        command.env(variable, "1000");
    }
    command.env("MEMFLEET_KEYS__CACHE_S", "1");
    let ended: Ended = output(command).await.into();
    (ended.is_success(), ended.all())
}

fn id_of(grant: &str) -> String {
    grant.split('|').nth(6).expect("an id").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_revoked_is_refused_by_the_key_store_also_where_it_is_in_use() {
    let fixture = two_users().await;
    let mut worker = login_to_key_store(&fixture, ROLE).await;
    let read = "SELECT FROM data_keys";
    for (revoke, by, restore) in [
        (vec!["token", "revoke"], "it knows a grant as revoked", None),
        (
            vec!["token", "service", "disable", "test"],
            "it knows the service of a grant as disabled",
            Some(vec!["token", "service", "put", "test", "--scope", "*:*"]),
        ),
        (vec!["security", "key", "retire", grant_key().name()], "a grant is of a retired key", None),
    ] {
        let (held, other) = (grant(1, ROLE), grant(2, ROLE));
        assert_eq!(attempt_for(&mut worker, std::slice::from_ref(&held), read).await, Ok(1), "{by}");
        // A transaction that stays open, from before.
        worker.batch_execute("BEGIN").await.expect("a transaction");
        worker.batch_execute(&format!("SELECT sec.open_context(ARRAY['{held}'])")).await.expect("a context");
        assert_eq!(attempt(&mut worker, read).await, Ok(1));
        let id = id_of(&held);
        let mut arguments = revoke.clone();
        if arguments.last() == Some(&"revoke") {
            arguments.push(&id);
        }
        // A token with an id that nobody registered is revoked all the same, and the program says so.
        let (_, told) = operate(&fixture, &arguments).await;
        let ended = "the security context has ended: something was revoked meanwhile";
        assert_refused(attempt(&mut worker, read).await, ended, &told);
        worker.batch_execute("ROLLBACK").await.expect("its end");
        refused_under(&mut worker, &held, 1, by).await;
        if restore.is_none() && by.ends_with("revoked") {
            assert_eq!(attempt_for(&mut worker, &[other], read).await, Ok(1), "another grant");
        } else {
            refused_under(&mut worker, &other, 2, by).await;
        }
        assert!(validate(&fixture).await.0, "both know the same");
        if let Some(restore) = restore {
            let (fine, told) = operate(&fixture, &restore).await;
            assert!(fine, "{told}");
            assert_eq!(attempt_for(&mut worker, &[held], read).await, Ok(1), "{told}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_store_that_is_away_holds_up_no_revocation_and_is_told_of_it_later() {
    let fixture = two_users().await;
    let held = grant(1, ROLE);
    let name = fixture.settings.keys.url.rsplit('/').next().expect("a name").to_owned();
    let allow = async |allowed: bool| {
        let sql = format!("ALTER DATABASE {name} ALLOW_CONNECTIONS {allowed}");
        fixture.connection().await.batch_execute(&sql).await.expect("a statement");
    };
    allow(false).await;
    let (fine, told) = operate(&fixture, &["token", "revoke", &id_of(&held)]).await;
    assert!(!fine && told.contains("but not the key store yet; run `memfleet security sync`"), "{told}");
    let mut main = testkit::attack::login(&fixture, ROLE).await;
    assert_refused(
        attempt_for(&mut main, std::slice::from_ref(&held), "SELECT FROM users").await,
        "revoked",
        "the main database",
    );
    let (_, status) = operate(&fixture, &["status"]).await;
    assert!(status.contains("it is unknown whether the key store knows what was revoked"), "{status}");

    allow(true).await;
    let mut worker = login_to_key_store(&fixture, ROLE).await;
    let read = attempt_for(&mut worker, std::slice::from_ref(&held), "SELECT FROM data_keys").await;
    assert_eq!(read, Ok(1), "it does not know yet");
    let (_, status) = operate(&fixture, &["status"]).await;
    assert!(
        status.contains("the key store does not know of 1 revoked tokens; `memfleet security sync` tells it"),
        "{status}"
    );
    let (fine, report) = validate(&fixture).await;
    let findings = report["findings"].as_array().expect("findings");
    assert!(
        !fine && findings.iter().all(|one| one["kind"] == "revocation unknown to the key store"),
        "{findings:?}"
    );

    // What the key store has remembered for long enough goes with it.
    administrator(&fixture)
        .await
        .batch_execute("INSERT INTO sec.revoked_grants VALUES (gen_random_uuid(), now() - interval '2 days')")
        .await
        .expect("an old one");
    let (fine, told) = operate(&fixture, &["security", "sync"]).await;
    assert!(fine && told.contains("the key store was told of 1 revoked tokens"), "{told}");
    refused_under(&mut worker, &held, 1, "it knows a grant as revoked").await;
    assert_eq!(count(&fixture, "sec.revoked_grants").await, 1);
    let (fine, told) = operate(&fixture, &["security", "sync"]).await;
    assert!(fine && told.starts_with("nothing to do"), "{told}");
    let (_, status) = operate(&fixture, &["status"]).await;
    assert!(!status.contains("the key store"), "{status}");
}

/// The main database decides whether a message is refused: what the key store alone refuses waits, and is not lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_the_key_store_alone_knows_as_disabled_waits() {
    let fixture = Fixture::new().await;
    let mut admin = administrator(&fixture).await;
    admin.batch_execute("INSERT INTO sec.disabled_services VALUES ('test')").await.expect("a service");
    let worker = fixture.run(ContextWriter);
    fixture.publish([secret(1)]).await;
    is_held(&fixture).await;
    assert_eq!(fixture.count("encrypted_fields").await, 0);
    let (fine, told) = operate(&fixture, &["security", "sync"]).await;
    assert!(fine && told.contains("the service that was enabled again, test"), "{told}");
    fixture.drained::<ContextWriter>().await;
    worker.stop().await.expect("a clean end");
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(fixture.count("encrypted_fields WHERE user_id = 1").await, 1);
}

/// Stores keys of a user that do not open, one after the other, as a worker that was taken over may.
async fn poison(fixture: &Fixture, user: i32, versions: std::ops::RangeInclusive<i32>, kek: &str) {
    let mut worker = login_to_key_store(fixture, "w_router_logger").await;
    for version in versions {
        let open = format!("SELECT sec.open_context(ARRAY['{}'])", grant(user, "w_router_logger"));
        for sql in ["BEGIN", &open, &add(user, version).replace("ring:kek.1", kek), "COMMIT"] {
            worker.batch_execute(sql).await.expect(sql);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_do_not_open_keep_no_user_from_secrets_and_nobody_else_either() {
    let fixture = Fixture::new().await;
    // Of a KEK that is here, of one that may come yet, of providers that are not configured, of none, and many of them.
    let keks =
        ["ring:kek.1", "ring:kek.99", "ring:kek.0", "vault:secrets/transit/fleet.1", "aws-kms:arn:x", "mine"];
    let poisoned = || 1..=i32::try_from(keks.len()).expect("a few");
    for (user, kek) in poisoned().zip(keks) {
        poison(&fixture, user, 1..=user, kek).await;
    }
    poison(&fixture, 7, 1..=20, "ring:kek.1").await;
    let all = || poisoned().chain([7, 8]);
    let highest = "user_id || ' ' || max(version) FROM data_keys GROUP BY user_id ORDER BY user_id";
    fixture.process(ContextWriter, all().map(secret)).await;
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(fixture.count("encrypted_fields").await, 8);
    let added = lines_on(&mut administrator(&fixture).await, highest).await;
    assert_eq!(added, ["1 2", "2 3", "3 4", "4 5", "5 6", "6 7", "7 21", "8 1"]);

    // What comes later is passed over: the same keys are used on.
    for user in all() {
        let next = if user == 7 {
            22
        } else if user == 8 {
            2
        } else {
            user + 2
        };
        poison(&fixture, user, next..=next, "ring:kek.99").await;
    }
    let before = count(&fixture, "data_keys").await;
    fixture.process(ContextWriter, all().map(secret)).await;
    assert_eq!(count(&fixture, "data_keys").await, before, "none was added");
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    // Neither does it keep an operator from rotating, who is told of it.
    let (fine, told) = rotate(&fixture, &[]).await;
    assert!(fine && told.contains("created 8 new data keys"), "{told}");
    let (_, told) = operate(&fixture, &["keys", "list"]).await;
    assert!(
        told.contains(" data keys of 8 users were added by workers because an earlier one did not open"),
        "{told}"
    );
    let used =
        "array_agg(DISTINCT get_byte(ciphertext, 5) - user_id) FROM encrypted_fields WHERE user_id < 7";
    assert_eq!(fixture.lines(used).await, ["{3}"], "the operator's");
}

/// The time of a key that a worker adds while an operator rotates is later than the rotation's.
#[tokio::test(flavor = "multi_thread")]
async fn no_worker_keeps_a_user_from_being_rotated() {
    let fixture = two_users().await;
    let before = chrono::Utc::now().to_rfc3339();
    poison(&fixture, 1, 2..=2, "ring:kek.1").await;
    let (fine, told) = rotate(&fixture, &["--before", &before]).await;
    assert!(fine && told.contains("created 2 new data keys"), "{told}");
    let (fine, told) = rotate(&fixture, &["--before", &before]).await;
    assert!(fine && told.contains("created 0 new data keys"), "once is enough: {told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_validation_attacks_the_key_store_too() {
    let fixture = two_users().await;
    let mut administrator = administrator(&fixture).await;
    let broken = [
        (
            "GRANT UPDATE ON data_keys TO w_memory_reader",
            "REVOKE UPDATE ON data_keys FROM w_memory_reader",
            "data keys without a grant",
        ),
        (
            "CREATE POLICY leak ON data_keys FOR SELECT USING (sec.current_user_ids() <> '{}')",
            "DROP POLICY leak ON data_keys",
            "data keys of others",
        ),
        (
            "ALTER TABLE data_keys NO FORCE ROW LEVEL SECURITY",
            "ALTER TABLE data_keys FORCE ROW LEVEL SECURITY",
            "table without forced RLS",
        ),
        (
            "CREATE FUNCTION pg_catalog.mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
            "DROP FUNCTION pg_catalog.mine",
            "object added to PostgreSQL's own schemas in the key store",
        ),
    ];
    for (break_it, ..) in broken {
        administrator.batch_execute(break_it).await.expect("a change");
    }
    let (fine, report) = validate(&fixture).await;
    let findings = report["findings"].as_array().expect("findings");
    let kinds: BTreeSet<&str> = findings.iter().filter_map(|one| one["kind"].as_str()).collect();
    let mut expected = BTreeSet::from(broken.map(|(_, _, finding)| finding));
    expected.insert("key store differs from its migrations");
    assert!(!fine && kinds == expected, "{findings:?}");
    for (_, mend, _) in broken {
        administrator.batch_execute(mend).await.expect("a change");
    }
    assert!(validate(&fixture).await.0, "all is mended");
    assert_eq!(count(&fixture, "sec.keys WHERE key_id = 'validate'").await, 0, "it left nothing");
}
