//! Attacks with a worker's login on what others rely on: evidence about others, values that make rows unreadable or keys and
//! sessions unusable, and storage that outlives a security context.

use context_writer::ContextWriter;
use diesel_async::SimpleAsyncConnection;
use testkit::attack::{assert_refused, attempt, attempt_for, grant, login, login_to_key_store, roles};
use testkit::{Fixture, context, lines_on, session, user};

use crate::support::{ROLE, two_users};

/// The roles that may record refusals.
async fn recorders(fixture: &Fixture) -> Vec<String> {
    let mut all = roles(fixture).await;
    all.extend(["w_memory_reader", "w_token_issuer"].map(str::to_owned));
    all.sort();
    all.dedup();
    all
}

/// The services of a context are those of its own grants: neither those of another context of the transaction, nor none.
#[tokio::test(flavor = "multi_thread")]
async fn the_trail_names_the_services_of_the_context() {
    let fixture = two_users().await;
    let mut worker = login(&fixture, ROLE).await;
    let open = |user| format!("SELECT sec.open_context(ARRAY['{}'])", grant(user, ROLE));
    let keep = "SELECT set_config('kept.' || name, current_setting('memfleet.' || name), true)
        FROM (VALUES ('context'), ('services')) AS v (name)";
    let restore = "SELECT set_config('memfleet.services', current_setting('kept.services'), true)";
    let forget = "SELECT set_config('memfleet.services', '', true)";
    let change = "UPDATE users SET username = 'other' WHERE id = 2";
    let restoring = "UPDATE users SET username = 'other' WHERE id = 2 RETURNING
        set_config('memfleet.services', current_setting('kept.services'), true),
        set_config('memfleet.context', current_setting('kept.context'), true)";
    let access = "SELECT audit.log_data_access('read', 'x', '{2}', '{NULL}', '{1}')";
    for (before, attack, by) in [
        (restore, change, "the security context is not genuine"),
        (restore, access, "the security context is not genuine"),
        (forget, change, "names no service for this user"),
        (forget, access, "names no service for this user"),
        ("SELECT 1", restoring, "names no service for this user"),
    ] {
        for statement in ["BEGIN", &open(1), keep, &open(2), before] {
            worker.batch_execute(statement).await.expect(statement);
        }
        assert_refused(attempt(&mut worker, attack).await, by, &format!("{before}; {attack}"));
        worker.batch_execute("ROLLBACK").await.expect("its end");
    }
    assert_eq!(attempt_for(&mut worker, &[grant(2, ROLE)], change).await, Ok(1));
}

/// Accesses of this type are mints of job grants, and what the tables of the trail refuse is refused before: their errors show rows.
#[tokio::test(flavor = "multi_thread")]
async fn no_role_notes_a_mint_or_learns_the_token_of_a_user() {
    let fixture = two_users().await;
    let mut worker = login(&fixture, ROLE).await;
    for (arguments, by) in [
        ("'job-grant', 'x', '{2}', '{NULL}', '{1}'", "only a mint of job grants"),
        ("'read', 'x', '{2}', '{NULL}', '{-1}'", "an amount from 0 to 1000000000"),
        ("'read', 'x', '{2}', '{NULL}', '{NULL}'", "an amount from 0 to 1000000000"),
        ("'read', 'x', '{2}', '{NULL}', '{1000000001}'", "an amount from 0 to 1000000000"),
        ("NULL, 'x', '{2}', '{NULL}', '{1}'", "an access has a type"),
        ("'read', NULL, '{2}', '{NULL}', '{1}'", "an access has a type"),
    ] {
        let access = format!("SELECT audit.log_data_access({arguments})");
        assert_refused(attempt_for(&mut worker, &[grant(2, ROLE)], &access).await, by, arguments);
    }
    let most = "SELECT audit.log_data_access('read', 'x', '{2}', '{NULL}', '{1000000000}')";
    assert_eq!(attempt_for(&mut worker, &[grant(2, ROLE)], most).await, Ok(1));
    for role in recorders(&fixture).await {
        let mut worker = login(&fixture, &role).await;
        let refusal =
            "SELECT audit.record_refused_tokens('{token-missing}', '{NULL}'::text[], '{2}', '{x}', '{NULL}')";
        assert_refused(attempt(&mut worker, refusal).await, "each refusal has a reason", &role);
    }
}

/// Everybody sees the keys of locks, so that nobody may know what they stand for.
#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_a_sessions_lock_tells_nothing() {
    let fixture = two_users().await;
    let mut worker = login(&fixture, "w_memory_sync").await;
    let context = format!(
        "SELECT sec.open_context(ARRAY['{}', '{}'])",
        grant(1, "w_memory_sync"),
        grant(2, "w_memory_sync")
    );
    let lock = "SELECT sec.lock_synced_sessions('{1,2,1}', '{a,a,b}')";
    for statement in ["BEGIN", &context, lock] {
        worker.batch_execute(statement).await.expect(statement);
    }
    let locks =
        "count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory' AND classid = 33";
    let known =
        format!("{locks} AND objid IN (hashtext('1 a')::oid, hashtext('2 a')::oid, hashtext('1 b')::oid)");
    assert_eq!(lines_on(&mut worker, locks).await, ["3"]);
    assert_eq!(lines_on(&mut worker, &known).await, ["0"]);
}

/// What memory-sync's role says of a session that its user does not have names the role; the service is as claimed.
#[tokio::test(flavor = "multi_thread")]
async fn unknown_sessions_that_a_role_reports_are_few_and_name_it() {
    let fixture = two_users().await;
    fixture.process(ContextWriter, [session(2, "theirs")]).await;
    let mut worker = login(&fixture, "w_memory_sync").await;
    let grants = [grant(1, "w_memory_sync")];
    let note = |many: usize| {
        format!(
            "SELECT audit.note_foreign_session(1, 'theirs', 'account', gen_random_uuid()) FROM generate_series(1, {many})"
        )
    };
    let many = attempt_for(&mut worker, &grants, &note(1_001)).await;
    assert_refused(many, "a transaction records at most 1000 unknown sessions", "a flood");
    let context = format!("SELECT sec.open_context(ARRAY['{}'])", grants[0]);
    for statement in ["BEGIN", &context, &note(1), "COMMIT"] {
        worker.batch_execute(statement).await.expect(statement);
    }
    let noted = "concat_ws(' ', role_name, service) FROM audit.security_violations WHERE violation_type = 'unknown-session'";
    assert_eq!(fixture.lines(noted).await, ["w_memory_sync claimed:account"]);
    let locks = "SELECT sec.lock_synced_sessions(array_fill(1, ARRAY[1001]), (SELECT array_agg('s' || n) FROM generate_series(1, 1001) AS n))";
    assert_refused(attempt_for(&mut worker, &grants, locks).await, "at most 1000 sessions", "locks");
    let twice = "SELECT sec.lock_synced_sessions(array_fill(1, ARRAY[600]), (SELECT array_agg(m || 's' || n) FROM generate_series(1, 600) AS n))
        FROM generate_series(1, 2) AS m";
    assert_refused(
        attempt_for(&mut worker, &grants, twice).await,
        "at most 1000 sessions",
        "locks of several calls",
    );
}

/// Neither by what is written nor by what is read.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_does_not_learn_whether_others_have_a_session() {
    let fixture = two_users().await;
    fixture.process(ContextWriter, [session(1, "own"), session(2, "theirs")]).await;
    let mut worker = login(&fixture, "w_memory_sync").await;
    let context = format!("SELECT sec.open_context(ARRAY['{}'])", grant(1, "w_memory_sync"));
    let has_written = "SELECT 1 WHERE pg_current_xact_id_if_assigned() IS NOT NULL";
    for (name, expected) in [("theirs", Ok(1)), ("nobodys", Ok(1)), ("own", Ok(0))] {
        let note = format!("SELECT audit.note_foreign_session(1, '{name}', 'account', gen_random_uuid())");
        for statement in ["BEGIN", &context, &note] {
            worker.batch_execute(statement).await.expect(statement);
        }
        assert_eq!(attempt(&mut worker, has_written).await, expected, "{name}");
        worker.batch_execute("COMMIT").await.expect("its end");
    }
    let rows = "concat_ws(' ', violation_type, count(*), count(DISTINCT length(reason)))
        FROM audit.security_violations GROUP BY violation_type";
    assert_eq!(fixture.lines(rows).await, ["unknown-session 2 1"]);
    let foreign = "concat_ws(' ', user_id, session_id, owners) FROM audit.foreign_sessions()";
    assert_eq!(fixture.lines(foreign).await, ["1 theirs {2}"], "an operator learns it");
    let call = attempt(&mut worker, "SELECT FROM audit.foreign_sessions()").await;
    assert_refused(call, "permission denied for function foreign_sessions", "the role");
}

/// A call that records as many refusals of tokens.
fn refusals(many: usize, kind: &str) -> String {
    format!(
        "audit.record_refused_tokens(array_fill('{kind}'::text, ARRAY[{many}]), array_fill(repeat('x', 10000), ARRAY[{many}]),
         array_fill(2, ARRAY[{many}]), array_fill('alpha'::text, ARRAY[{many}]), array_fill(gen_random_uuid(), ARRAY[{many}]))"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_that_a_role_reports_are_few_and_name_it() {
    let fixture = two_users().await;
    let violation = "audit.check_security_violation('42501', 'permission denied for table users', 2, 'alpha', gen_random_uuid())";
    let many = "a transaction records at most 1000 refusals";
    for role in recorders(&fixture).await {
        let mut worker = login(&fixture, &role).await;
        for (sql, by) in [
            (format!("SELECT {}", refusals(1_001, "token-signature")), many),
            (format!("SELECT {} FROM generate_series(1, 3)", refusals(500, "token-signature")), many),
            (format!("SELECT {}", refusals(1, "Nobody is safe")), "a kind of refusal has 1 to 64"),
            (format!("SELECT {}", refusals(1, "anomaly-reads")), "a refusal is no anomaly"),
            (
                "SELECT audit.record_refused_tokens(NULL, NULL, NULL, NULL, NULL)".to_owned(),
                "as many as each other",
            ),
            (
                "SELECT audit.record_refused_tokens('{a,b}', '{r}', '{2}', '{s}', '{NULL}')".to_owned(),
                "as many as each other",
            ),
        ] {
            assert_refused(attempt(&mut worker, &sql).await, by, &role);
        }
        attempt(&mut worker, &format!("SELECT {}", refusals(1, "token-signature"))).await.expect("a refusal");
        let of_none =
            "SELECT audit.record_refused_tokens('{token-missing}', '{none}', '{2}', '{NULL}', '{NULL}')";
        attempt(&mut worker, of_none).await.expect("a refusal without a service");
        // The token issuer runs no statements for users.
        if role != "w_token_issuer" {
            let flood = format!("SELECT {violation} FROM generate_series(1, 1001)");
            assert_refused(attempt(&mut worker, &flood).await, many, &role);
            attempt(&mut worker, &format!("SELECT {violation}")).await.expect("a violation");
        }
    }
    // Nobody takes the word of a role for a fact: each row names it, and the service only as claimed.
    let mut rows = fixture
        .lines("concat_ws(' ', role_name, service, violation_type, length(reason)) FROM audit.security_violations")
        .await;
    let mut expected = Vec::new();
    for role in recorders(&fixture).await {
        if role != "w_token_issuer" {
            expected.push(format!("{role} claimed:alpha no-privilege 27"));
        }
        expected.push(format!("{role} claimed:alpha token-signature 256"));
        expected.push(format!("{role} claimed: token-missing 4"));
    }
    rows.sort();
    expected.sort();
    assert_eq!(rows, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn accesses_that_a_role_notes_are_few_and_of_its_context() {
    let fixture = two_users().await;
    let accesses = |user: &str, many: usize| {
        format!(
            "audit.log_data_access('read', 'sessions', array_fill({user}, ARRAY[{many}]), array_fill(gen_random_uuid(),
             ARRAY[{many}]), array_fill(1::bigint, ARRAY[{many}]))"
        )
    };
    for role in roles(&fixture).await.into_iter().chain(["w_memory_reader".to_owned()]) {
        let mut worker = login(&fixture, &role).await;
        let without = attempt(&mut worker, &format!("SELECT {}", accesses("1", 1))).await;
        assert_refused(without, "not in the security context", &role);
        let grants = [grant(1, &role)];
        for (sql, by) in [
            (format!("SELECT {}", accesses("2", 1)), "not in the security context"),
            (format!("SELECT {}", accesses("NULL::integer", 1)), "not in the security context"),
            (format!("SELECT {}", accesses("1", 10_001)), "must be as many as each other, 1 to 10000"),
            (format!("SELECT {} FROM generate_series(1, 3)", accesses("1", 5_000)), "at most 10000 accesses"),
            (
                "SELECT audit.log_data_access('read', 'sessions', NULL, NULL, NULL)".to_owned(),
                "as many as each other",
            ),
        ] {
            assert_refused(attempt_for(&mut worker, &grants, &sql).await, by, &role);
        }
        attempt_for(&mut worker, &grants, &format!("SELECT {}", accesses("1", 2)))
            .await
            .expect("two accesses");
    }
}

/// Each column with a time of the tables that a role may write.
async fn times(fixture: &Fixture) -> Vec<(String, String)> {
    let rows = fixture
        .lines(
            "w.table_name || ' ' || quote_ident(a.attname) FROM sec.worker_privileges w JOIN pg_attribute a ON a.attrelid = w.table_name
             AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypid = 'timestamptz'::regtype
             WHERE w.privileges && '{INSERT,UPDATE}' GROUP BY 1 ORDER BY 1",
        )
        .await;
    rows.iter().map(|row| row.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_role_writes_a_time_that_programs_cannot_read() {
    let fixture = two_users().await;
    let mut superuser = fixture.connection().await;
    let (mut columns, mut tried) = (0, 0);
    for (table, column) in times(&fixture).await {
        let bounded = format!(
            "pg_constraint WHERE conrelid = '{table}'::regclass AND conname = 'times_are_bounded'
             AND pg_get_constraintdef(oid) LIKE '%{column} <= %'"
        );
        assert_eq!(fixture.count(&bounded).await, 1, "{table}.{column}");
        columns += 1;
        if fixture.count(&table).await == 0 {
            continue;
        }
        for time in
            ["infinity", "-infinity", "10000-01-01 00:00:00+00", "0001-12-31 00:00:00+00 BC", "294276-01-01"]
        {
            let sql = format!("UPDATE {table} SET {column} = '{time}'");
            // Some columns have another check that fails first.
            assert_refused(attempt(&mut superuser, &sql).await, "violates check constraint", &sql);
            tried += 1;
        }
    }
    assert!(columns > 40 && tried > 100, "{columns} {tried}");
    // A role is stopped as well.
    let mut worker = login(&fixture, ROLE).await;
    let sql = "UPDATE simple_chat_context SET expires_at = 'infinity'";
    assert_refused(attempt_for(&mut worker, &[grant(1, ROLE)], sql).await, "\"times_are_bounded\"", sql);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_version_or_clock_that_a_role_writes_is_the_last_one() {
    let fixture = Fixture::new().await;
    fixture.process(ContextWriter, [user(1), session(1, "s"), context(1, "s", "k", 1)]).await;
    let mut worker = login(&fixture, ROLE).await;
    let grants = [grant(1, ROLE)];
    for (table, column, most) in [
        (
            "simple_chat_context",
            "version",
            "extract(epoch FROM clock_timestamp() + interval '2 days 1 minute') * 1000",
        ),
        (
            "session_clocks",
            "logical_time",
            "extract(epoch FROM clock_timestamp() + interval '1 minute') * 1000000",
        ),
    ] {
        for value in ["9223372036854775807", most] {
            let sql = format!("UPDATE {table} SET {column} = ({value})::bigint");
            let refused = attempt_for(&mut worker, &grants, &sql).await;
            assert_refused(refused, &format!("\"{column}_is_bounded\""), &sql);
        }
    }
    // What is not there yet is not published.
    for (value, by) in [
        ("1::bigint << 62", Some("row-level security policy \"published\"")),
        ("sec.last_event_sequence() + 1", Some("row-level security policy \"published\"")),
        ("sec.last_event_sequence()", None),
    ] {
        let sql = format!("UPDATE session_clocks SET published_sequence = {value}");
        let done = attempt_for(&mut worker, &grants, &sql).await;
        match by {
            Some(by) => assert_refused(done, by, &sql),
            None => assert_eq!(done, Ok(2), "{sql}"),
        }
    }
    let bounded =
        "pg_constraint WHERE conname = 'version_is_bounded' AND conrelid = 'agent_context_states'::regclass";
    assert_eq!(fixture.count(bounded).await, 1);
    // A session whose clock is as far ahead as a role can set it goes on, and so does a cause of other sessions. A mark from
    // before there was a limit is brought back.
    fixture
        .execute(
            "UPDATE session_clocks SET logical_time = (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
             published_sequence = 1::bigint << 62",
        )
        .await;
    fixture.process(ContextWriter, [context(1, "s", "k", 2), context(1, "s", "k2", 1)]).await;
    let ahead = "session_clocks WHERE session_id = 's' AND published_sequence > (SELECT last_value FROM blackboard_event_sequence)";
    assert_eq!(fixture.count(ahead).await, 0);
    assert_eq!(fixture.dead_letters().await, Vec::<String>::new());
    assert_eq!(fixture.lines("version FROM simple_chat_context ORDER BY context_key").await, ["2", "1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_role_leaves_a_large_object_for_another() {
    let fixture = Fixture::new().await;
    let calls = [
        "lo_create(0)",
        "lo_creat(-1)",
        "lo_from_bytea(0, 'a secret')",
        "lo_put(1, 0, 'a secret')",
        "lo_get(1)",
        "lo_open(1, 131072)",
        "lowrite(0, 'a secret')",
        "loread(0, 1)",
        "lo_truncate64(0, 0)",
        "lo_unlink(1)",
    ];
    let users = ["w_context_writer", "w_router_logger", "w_memory_reader"];
    for role in recorders(&fixture).await {
        let mut connections = vec![login(&fixture, &role).await];
        if users.contains(&role.as_str()) {
            connections.push(login_to_key_store(&fixture, &role).await);
        }
        for worker in &mut connections {
            for call in calls {
                let done = attempt(worker, &format!("SELECT {call}")).await;
                assert_refused(done, "permission denied for function", &format!("{role}: {call}"));
            }
        }
    }
    assert_eq!(fixture.count("pg_largeobject_metadata").await, 0);
}
