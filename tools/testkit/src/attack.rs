//! Attacks with a worker's database login.

#![allow(clippy::expect_used, clippy::missing_panics_doc, clippy::unwrap_used)]

use std::fmt::Write as _;
use std::future::poll_fn;

use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use tokio_postgres::error::DbError;
use tokio_postgres::{AsyncMessage, NoTls};

use crate::fixture::{Fixture, lines_on};
pub use crate::grant::{grant, grant_key, grant_with_key};

/// A connection with the login of a worker's role.
pub async fn login(fixture: &Fixture, role: &str) -> AsyncPgConnection {
    store::connect(&fixture.settings.postgres.url_of(role)).await.expect("a login")
}

/// A connection to the key store with the login of a worker's role.
pub async fn login_to_key_store(fixture: &Fixture, role: &str) -> AsyncPgConnection {
    store::connect(&fixture.settings.keys.url_of(role)).await.expect("a login")
}

/// Runs a statement and returns the number of rows that it changed or selected, or the error of the database.
pub async fn attempt(connection: &mut AsyncPgConnection, sql: &str) -> Result<usize, String> {
    // Imported here only, since it gives every type a method `execute`.
    use diesel_async::RunQueryDsl as _;
    diesel::sql_query(sql).execute(connection).await.map_err(|error| error.to_string())
}

/// As [`attempt`], in a transaction with the security context of these grants, which is rolled back.
pub async fn attempt_for(
    connection: &mut AsyncPgConnection,
    grants: &[String],
    sql: &str,
) -> Result<usize, String> {
    let list: Vec<String> = grants.iter().map(|grant| format!("'{grant}'")).collect();
    connection.batch_execute("BEGIN").await.expect("a transaction");
    let opened =
        attempt(connection, &format!("SELECT sec.open_context(ARRAY[{}]::text[])", list.join(","))).await;
    let done = match opened {
        Ok(_) => attempt(connection, sql).await,
        Err(error) => Err(error),
    };
    connection.batch_execute("ROLLBACK").await.expect("its end");
    done
}

/// The settings with which a role has the database send it what it plans.
const CHATTY: &str = "SET client_min_messages = debug5; SET debug_print_parse = on; SET debug_print_rewritten = on; SET debug_print_plan = on;
    SET debug_pretty_print = off; SET plpgsql.print_strict_params = on; SET log_parameter_max_length_on_error = -1";

/// All that the database sends to whoever runs these statements, beside rows: plans, notices and errors, with single spaces. No statement ends the
/// others.
pub async fn told(url: &str, statements: &[String]) -> String {
    let (client, mut connection) = tokio_postgres::connect(url, NoTls).await.expect("a login");
    let notices = tokio::spawn(async move {
        let mut text = String::new();
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notice(notice) = message {
                write(&mut text, &notice);
            }
        }
        text
    });
    client.batch_execute(CHATTY).await.expect("settings that a role may change");
    let mut errors = String::new();
    for statement in statements {
        if let Err(error) = client.batch_execute(statement).await {
            write(&mut errors, error.as_db_error().expect("an error of the database"));
        }
    }
    drop(client);
    let all = notices.await.expect("no panic") + " " + &errors;
    all.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The SQLSTATE and the message of the first of these statements that fails; none if all succeed.
pub async fn first_error(url: &str, statements: &[String]) -> Option<(String, String)> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("a login");
    let open = tokio::spawn(connection);
    let mut first = None;
    for statement in statements {
        if let Err(error) = client.batch_execute(statement).await {
            let error = error.as_db_error().expect("an error of the database");
            first = Some((error.code().code().to_owned(), error.message().to_owned()));
            break;
        }
    }
    drop(client);
    open.await.expect("no panic").expect("a clean end");
    first
}

fn write(text: &mut String, error: &DbError) {
    let parts = [Some(error.message()), error.detail(), error.hint(), error.where_()];
    for part in parts.into_iter().flatten() {
        writeln!(text, "{part}").expect("a string");
    }
}

/// Bytes, given in hexadecimal, as a plan shows them.
pub fn as_planned(hex: &str) -> String {
    let bytes = hex.as_bytes().chunks(2).map(|digits| std::str::from_utf8(digits).expect("digits"));
    let signed =
        bytes.map(|digits| u8::from_str_radix(digits, 16).expect("digits").cast_signed().to_string());
    signed.collect::<Vec<_>>().join(" ")
}

/// Panics if one of these values, given in hexadecimal, is in what the database told.
#[track_caller]
pub fn assert_untold(secrets: &[String], told: &str, whom: &str) {
    let plain = told.replace('-', "");
    for secret in secrets {
        assert!(
            !told.contains(&as_planned(secret)) && !plain.contains(secret.as_str()),
            "{whom} is told a secret"
        );
    }
}

/// The functions that act with the rights of their owner and tell their caller what they plan.
pub async fn functions_with_plans(connection: &mut AsyncPgConnection) -> Vec<String> {
    lines_on(
        connection,
        "p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace::regnamespace::text IN ('public', 'sec', 'audit')
            AND (p.prosecdef OR p.proname = 'add_key') AND (p.proconfig @> ARRAY['debug_print_parse=off', 'debug_print_rewritten=off',
                'debug_print_plan=off', 'client_min_messages=warning']) IS NOT TRUE",
    )
    .await
}

/// Has functions tell their caller what they plan.
pub const SHOW_PLANS: &str = "DO $$ DECLARE hidden regprocedure; BEGIN
    FOR hidden IN SELECT p.oid FROM pg_proc p WHERE 'debug_print_plan=off' = ANY (p.proconfig) LOOP
        EXECUTE format('ALTER FUNCTION %s RESET debug_print_parse RESET debug_print_rewritten RESET debug_print_plan
            RESET client_min_messages', hidden);
    END LOOP; END $$";

/// Panics unless the database refused an attempt with an error that contains `by`.
#[track_caller]
pub fn assert_refused(done: Result<usize, String>, by: &str, what: &str) {
    match done {
        Err(error) => assert!(error.contains(by), "{what}: expected {by:?}, got {error}"),
        Ok(rows) => panic!("{what}: {rows} rows went through"),
    }
}

/// The tables with users' rows, each with the column of the user's id.
pub async fn tables(fixture: &Fixture) -> Vec<(String, String)> {
    let rows = fixture
        .lines(
            "c.relname || ' ' || a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
             AND a.attname = CASE WHEN c.relname = 'users' THEN 'id' ELSE 'user_id' END
             WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
             AND c.relname <> 'cross_service_auth' ORDER BY 1",
        )
        .await;
    rows.iter().map(|row| row.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap()).collect()
}

/// The roles of the workers that act for users. The token issuer acts for none.
pub async fn roles(fixture: &Fixture) -> Vec<String> {
    fixture
        .lines("role_name FROM (SELECT DISTINCT role_name FROM sec.worker_privileges WHERE 'INSERT' = ANY (privileges)) AS r ORDER BY 1")
        .await
}
