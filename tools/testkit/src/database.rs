use anyhow::Context;
use diesel::QueryableByName;
use diesel::sql_types::{Bool, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use stack::{Postgres, PostgresOptions, Programs};
use store::migration::Schema;
use store::registry::{self, Rates, ServiceEntry};
use tokio::sync::OnceCell;
use trust::{GrantKey, PrivateKey};
use uuid::Uuid;

use crate::secrets::{GRANT_KEY, TOKEN_KEY, WORKER_PASSWORD};

/// The environment variable with the server of the tests' databases: the URL of its database `postgres`.
pub const POSTGRES_VARIABLE: &str = "MEMFLEET_TEST_POSTGRES";

/// The migrated database that others are copied from.
const TEMPLATE: &str = "memfleet_template";
/// The migrated key store that others are copied from.
const KEYS_TEMPLATE: &str = "memfleet_keys_template";

/// The services that are registered in every test's database, with all scopes.
const SERVICES: [&str; 6] = ["test", "account", "simple-chat", "smart-router", "expert-group", "bench"];

/// The advisory lock under which test processes create the templates.
const LOCK: i64 = 0x7465_6d70_6c61_7465;

static OWN: OnceCell<(Postgres, tempfile::TempDir)> = OnceCell::const_new();

#[derive(QueryableByName)]
struct Exists {
    #[diesel(sql_type = Bool)]
    exists: bool,
}

/// As [`create_database`], on another server, of whose database `postgres` this is the URL.
///
/// # Errors
/// If the server cannot be reached, or refuses.
pub async fn create_database_on(server: &str) -> anyhow::Result<String> {
    copy(server, "test", TEMPLATE, "SELECT sec.guard_database()").await
}

/// The setting that allows prepared transactions, which a test of the sealer leaves open for a moment.
pub const PREPARED_TRANSACTIONS: (&str, &str) = ("max_prepared_transactions", "10");

async fn server() -> anyhow::Result<String> {
    if let Ok(url) = std::env::var(POSTGRES_VARIABLE) {
        return Ok(url);
    }
    let (postgres, _) = OWN
        .get_or_try_init(|| async {
            let folder = tempfile::tempdir()?;
            let (name, value) = PREPARED_TRANSACTIONS;
            let settings = vec![(name.to_owned(), value.to_owned())];
            let options = PostgresOptions { fsync: false, settings, ..PostgresOptions::default() };
            let postgres = Postgres::start(&Programs::find()?, folder.path(), options).await?;
            anyhow::Ok((postgres, folder))
        })
        .await?;
    Ok(postgres.url("postgres"))
}

/// Creates a database with the current schema and returns its URL.
///
/// # Errors
/// If the server cannot be reached, or refuses.
pub async fn create_database() -> anyhow::Result<String> {
    create_database_on(&server().await?).await
}

/// Creates an empty key store and returns its URL.
///
/// # Errors
/// If the server cannot be reached, or refuses.
pub async fn create_key_store() -> anyhow::Result<String> {
    copy(&server().await?, "keys", KEYS_TEMPLATE, "SELECT guard_database()").await
}

/// Creates a database from a template. PostgreSQL does not copy privileges on the database itself, so they are set
/// again.
async fn copy(server: &str, prefix: &str, template: &str, guard: &str) -> anyhow::Result<String> {
    let mut connection = store::connect(server).await?;
    create_templates(server, &mut connection).await.context("cannot create the template database")?;
    let name = format!("{prefix}_{}", Uuid::now_v7().simple());
    connection.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE {template}")).await?;
    let url = url_on_same_server(server, &name);
    store::connect(&url).await?.batch_execute(guard).await?;
    Ok(url)
}

/// The URL with which the workers' roles connect to a database.
pub fn worker_url(database: &str) -> String {
    let place = database.rsplit_once('@').map_or(database, |(_, place)| place);
    format!("postgres://{{role}}:{WORKER_PASSWORD}@{place}")
}

fn url_on_same_server(server: &str, database: &str) -> String {
    let base = server.rsplit_once('/').map_or(server, |(base, _)| base);
    format!("{base}/{database}")
}

/// Creates the templates, once on a server. The main one is created last: if it exists, both do.
async fn create_templates(server: &str, connection: &mut AsyncPgConnection) -> anyhow::Result<()> {
    connection.batch_execute(&format!("SELECT pg_advisory_lock({LOCK})")).await?;
    let exists: Vec<Exists> =
        diesel::sql_query("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1) AS exists")
            .bind::<Text, _>(TEMPLATE)
            .load(connection)
            .await?;
    if !exists.iter().any(|row| row.exists) {
        connection.batch_execute(&format!("DROP DATABASE IF EXISTS {KEYS_TEMPLATE}")).await?;
        create_template(server, connection, KEYS_TEMPLATE, keys::SCHEMA, add_grant_key).await?;
        create_template(server, connection, TEMPLATE, store::migration::MAIN, fill).await?;
    }
    connection.batch_execute(&format!("SELECT pg_advisory_unlock({LOCK})")).await?;
    Ok(())
}

/// Creates a database with a schema. It gets its name when it is complete.
async fn create_template(
    server: &str,
    connection: &mut AsyncPgConnection,
    name: &str,
    schema: Schema,
    fill: impl AsyncFnOnce(&mut AsyncPgConnection) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let unfinished = format!("{name}_new");
    connection.batch_execute(&format!("DROP DATABASE IF EXISTS {unfinished}")).await?;
    connection.batch_execute(&format!("CREATE DATABASE {unfinished}")).await?;
    schema.up(store::connect(&url_on_same_server(server, &unfinished)).await?).await?;
    let mut database = store::connect(&url_on_same_server(server, &unfinished)).await?;
    fill(&mut database).await?;
    drop(database);
    // The migration's connection may still be closing, and a database in use cannot be renamed.
    let rename = format!("ALTER DATABASE {unfinished} RENAME TO {name}");
    let drop_others =
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{unfinished}'");
    connection.batch_execute(&drop_others).await?;
    let mut tries = 0;
    while let Err(error) = connection.batch_execute(&rename).await {
        tries += 1;
        anyhow::ensure!(tries < 100, "{error}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn add_grant_key(database: &mut AsyncPgConnection) -> anyhow::Result<()> {
    let key = GrantKey::parse(GRANT_KEY)?;
    Ok(store::security::add_grant_key(database, key.name(), key.expose()).await?)
}

/// Registers the keys and services of every test's main database.
async fn fill(database: &mut AsyncPgConnection) -> anyhow::Result<()> {
    add_grant_key(database).await?;
    registry::add_token_key(database, &PrivateKey::parse(TOKEN_KEY)?.public()).await?;
    for service in SERVICES {
        let entry = ServiceEntry { scopes: vec!["*:*".parse()?], rates: Rates::default() };
        registry::put_service(database, &service.parse()?, &entry).await?;
    }
    // Roles and their passwords belong to the server, so that once is enough.
    store::security::set_worker_passwords(database, |_| WORKER_PASSWORD.to_owned()).await?;
    Ok(())
}
