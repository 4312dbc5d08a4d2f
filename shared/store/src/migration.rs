//! Migrations, built into the program and run without libpq.

use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::{Nullable, Text};
use diesel_async::{AsyncMigrationHarness, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use crate::fault::{Fault, FaultKind};

mod schema {
    diesel::table! {
        public.__diesel_schema_migrations (version) {
            version -> Text,
        }
    }
}

/// The migrations of a database.
#[derive(Clone, Copy, Debug)]
pub struct Schema {
    migrations: fn() -> EmbeddedMigrations,
}

const MAIN_MIGRATIONS: EmbeddedMigrations = embed_migrations!("../../migrations");

/// The main database.
pub const MAIN: Schema = Schema::new(|| MAIN_MIGRATIONS);

/// The advisory lock that serializes migrations: "memfleet" in ASCII.
const LOCK: i64 = 0x6d65_6d66_6c65_6574;

/// A migration failed. Those before it stay applied.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct MigrationError(String);

/// A migration and whether it is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationState {
    /// The name of its folder.
    pub name: String,
    /// Whether it is applied.
    pub applied: bool,
}

impl Schema {
    /// A schema of the migrations that `embed_migrations!` has built in.
    pub const fn new(migrations: fn() -> EmbeddedMigrations) -> Self {
        Self { migrations }
    }

    /// Applies the pending migrations, each in a transaction of its own. Returns their names.
    ///
    /// # Errors
    /// [`MigrationError`] with the name of the migration that failed, and the reason.
    pub async fn up(&self, connection: AsyncPgConnection) -> Result<Vec<String>, MigrationError> {
        with_lock(connection, |harness| {
            let mut done = Vec::new();
            while let Some(next) = self.pending(harness)?.into_iter().next() {
                retry_on_lock_timeout(&next, || harness.run_next_migration((self.migrations)()).map(drop))?;
                done.push(next);
            }
            Ok(done)
        })
        .await
    }

    /// Rolls back the latest `count` migrations. Returns their names.
    ///
    /// # Errors
    /// [`MigrationError`] if one fails.
    pub async fn down(
        &self,
        connection: AsyncPgConnection,
        count: usize,
    ) -> Result<Vec<String>, MigrationError> {
        with_lock(connection, |harness| {
            let mut done = Vec::new();
            while done.len() < count
                && let Some(version) = applied(harness)?.into_iter().next()
            {
                // A migration that another version of the program applied has no name here.
                let name =
                    self.names()?.into_iter().find(|name| version_of(name) == version).unwrap_or(version);
                retry_on_lock_timeout(&name, || {
                    harness.revert_last_migration((self.migrations)()).map(drop)
                })?;
                done.push(name);
            }
            Ok(done)
        })
        .await
    }

    /// Every migration of this program, oldest first. It creates nothing, whatever the search path.
    ///
    /// # Errors
    /// [`MigrationError`] if the database cannot be read.
    pub async fn status(
        &self,
        mut connection: AsyncPgConnection,
    ) -> Result<Vec<MigrationState>, MigrationError> {
        let waiting =
            self.missing(&mut connection).await.map_err(|fault| failed("the list of migrations", &fault))?;
        let state = |name: String| MigrationState { applied: !waiting.contains(&name), name };
        Ok(self.names()?.into_iter().map(state).collect())
    }

    /// The migrations of this program that are not applied. It needs only the privilege to read.
    ///
    /// # Errors
    /// A [`Fault`] of the database.
    pub async fn missing(&self, connection: &mut AsyncPgConnection) -> Result<Vec<String>, Fault> {
        // A role that may not read the table lost its privileges when the schema was rolled back.
        const TABLE: &str = "
            SELECT t::text AS name FROM pg_catalog.to_regclass('public.__diesel_schema_migrations') AS t
            WHERE pg_catalog.has_table_privilege(t, 'SELECT')";
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Nullable<Text>)]
            name: Option<String>,
        }
        let table: Vec<Row> = diesel::sql_query(TABLE).load(connection).await?;
        let applied: Vec<String> = if table.iter().any(|row| row.name.is_some()) {
            use schema::__diesel_schema_migrations::dsl::{
                __diesel_schema_migrations as migrations, version,
            };
            migrations.select(version).load(connection).await?
        } else {
            Vec::new()
        };
        let names =
            self.names().map_err(|error| Fault { kind: FaultKind::Permanent, reason: error.to_string() })?;
        let has = |name: &String| applied.contains(&version_of(name));
        Ok(names.into_iter().filter(|name| !has(name)).collect())
    }

    fn names(&self) -> Result<Vec<String>, MigrationError> {
        use diesel::migration::{Migration, MigrationSource};
        let all: Vec<Box<dyn Migration<diesel::pg::Pg>>> =
            (self.migrations)().migrations().map_err(|error| failed("migrations", &*error))?;
        Ok(all.iter().map(|migration| migration.name().to_string()).collect())
    }

    fn pending(&self, harness: &mut Harness) -> Result<Vec<String>, MigrationError> {
        let waiting = harness
            .pending_migrations((self.migrations)())
            .map_err(|error| failed("the list of migrations", &*error))?;
        Ok(waiting.iter().map(|migration| migration.name().to_string()).collect())
    }
}

/// `20261101000001` of `2026-11-01-000001_accounts`.
fn version_of(name: &str) -> String {
    name.split('_').next().unwrap_or(name).replace('-', "")
}

type Harness = AsyncMigrationHarness<AsyncPgConnection>;

async fn with_lock<T>(
    mut connection: AsyncPgConnection,
    work: impl FnOnce(&mut Harness) -> Result<T, MigrationError>,
) -> Result<T, MigrationError> {
    // A lock timeout is recognized by its message. A role that may not set the language has it from the server.
    drop(connection.batch_execute("SET lc_messages = 'C'").await);
    let lock = format!("SET lock_timeout = '60s'; SELECT pg_advisory_lock({LOCK}); RESET lock_timeout");
    connection
        .batch_execute(&lock)
        .await
        .map_err(|error| MigrationError(format!("another migration is running: {error}")))?;
    let mut harness = AsyncMigrationHarness::new(connection);
    // The lock is released when the connection closes, also after an error.
    tokio::task::block_in_place(|| work(&mut harness))
}

/// The maximum number of attempts of a migration that cannot lock a table.
const MAX_TRIES: u32 = 100;
/// The longest pause between two attempts.
const MAX_PAUSE: Duration = Duration::from_millis(200);

/// Retries a migration on a lock timeout. Its lock timeout is short, because all other statements on the table queue
/// behind it.
fn retry_on_lock_timeout(
    name: &str,
    mut migrate: impl FnMut() -> diesel::migration::Result<()>,
) -> Result<(), MigrationError> {
    const BUSY: [&str; 2] = ["canceling statement due to lock timeout", "deadlock detected"];
    let mut tries = 0;
    while let Err(error) = migrate() {
        tries += 1;
        let message = error.to_string();
        if tries == MAX_TRIES || !BUSY.iter().any(|busy| message.contains(busy)) {
            return Err(failed(name, &*error));
        }
        // A random pause, so as not to coincide with a periodic writer again and again.
        std::thread::sleep(MAX_PAUSE.mul_f64(fastrand::f64()));
    }
    Ok(())
}

fn applied(harness: &mut Harness) -> Result<Vec<String>, MigrationError> {
    let versions = harness.applied_migrations().map_err(|error| failed("the list of migrations", &*error))?;
    Ok(versions.iter().map(ToString::to_string).collect())
}

fn failed(what: &str, error: &dyn std::error::Error) -> MigrationError {
    MigrationError(format!("{what}: {error}"))
}
