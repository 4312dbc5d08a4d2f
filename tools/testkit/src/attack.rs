//! Attacks with a worker's database login.

#![allow(clippy::expect_used, clippy::missing_panics_doc, clippy::unwrap_used)]

use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};

use crate::fixture::Fixture;
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
