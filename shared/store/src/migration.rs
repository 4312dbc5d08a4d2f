//! Schemas' migrations, built into the program and run without libpq.

use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::{Nullable, Text};
use diesel_async::{AsyncMigrationHarness, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use crate::fault::{Fault, FaultKind};

mod schema {
    diesel::table! {
        __diesel_schema_migrations (version) {
            version -> Text,
        }
    }
}

/// The migrations of one database.
#[derive(Clone, Copy, Debug)]
pub struct Schema {
    migrations: fn() -> EmbeddedMigrations,
}

const OF_MAIN: EmbeddedMigrations = embed_migrations!("../../migrations");

/// The main database.
pub const MAIN: Schema = Schema::new(|| OF_MAIN);

/// The advisory lock that two programs migrating at once queue at: "memfleet" in ASCII.
const LOCK: i64 = 0x6d65_6d66_6c65_6574;

/// A migration failed. The ones before it stay.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct MigrationError(String);

/// One migration and whether the database has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationState {
    /// Its folder's name.
    pub name: String,
    /// Whether it has run.
    pub applied: bool,
}

impl Schema {
    /// Those that `embed_migrations!` has made a constant of.
    pub const fn new(migrations: fn() -> EmbeddedMigrations) -> Self {
        Self { migrations }
    }

    /// Runs what has not run yet, each migration in a transaction of its own. Gives the names.
    ///
    /// # Errors
    /// [`MigrationError`] names the migration that failed, and why.
    pub async fn up(&self, connection: AsyncPgConnection) -> Result<Vec<String>, MigrationError> {
        with_lock(connection, |harness| {
            let mut done = Vec::new();
            while let Some(next) = self.pending(harness)?.into_iter().next() {
                patiently(&next, || harness.run_next_migration((self.migrations)()).map(drop))?;
                done.push(next);
            }
            Ok(done)
        })
        .await
    }

    /// Takes back the latest `count` migrations. Gives the names.
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
                // One that another version of the program has applied has no name here.
                let name =
                    self.names()?.into_iter().find(|name| version_of(name) == version).unwrap_or(version);
                patiently(&name, || harness.revert_last_migration((self.migrations)()).map(drop))?;
                done.push(name);
            }
            Ok(done)
        })
        .await
    }

    /// Every migration of this program, oldest first.
    ///
    /// # Errors
    /// [`MigrationError`] if the database cannot be asked.
    pub async fn status(&self, connection: AsyncPgConnection) -> Result<Vec<MigrationState>, MigrationError> {
        let mut harness = AsyncMigrationHarness::new(connection);
        tokio::task::block_in_place(|| {
            let waiting = self.pending(&mut harness)?;
            Ok(self
                .names()?
                .into_iter()
                .map(|name| MigrationState { applied: !waiting.contains(&name), name })
                .collect())
        })
    }

    /// The migrations of this program that the database lacks, asked for without any right but to read.
    ///
    /// # Errors
    /// A [`Fault`] of the database.
    pub async fn missing(&self, connection: &mut AsyncPgConnection) -> Result<Vec<String>, Fault> {
        // A role that may not read it has lost its rights with the schema.
        const TABLE: &str = "
            SELECT t::text AS name FROM to_regclass('__diesel_schema_migrations') AS t
            WHERE has_table_privilege(t, 'SELECT')";
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
    let lock = format!("SET lock_timeout = '60s'; SELECT pg_advisory_lock({LOCK}); RESET lock_timeout");
    connection
        .batch_execute(&lock)
        .await
        .map_err(|error| MigrationError(format!("another migration is running: {error}")))?;
    let mut harness = AsyncMigrationHarness::new(connection);
    // The lock goes with the connection, however this ends.
    tokio::task::block_in_place(|| work(&mut harness))
}

/// How often a migration is tried that cannot lock a table.
const TRIES: u32 = 100;
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// A migration waits for no lock for long, since everybody else waits behind it: it gives up, lets them pass, and tries again.
fn patiently(
    name: &str,
    mut migrate: impl FnMut() -> diesel::migration::Result<()>,
) -> Result<(), MigrationError> {
    const BUSY: [&str; 2] = ["canceling statement due to lock timeout", "deadlock detected"];
    let mut tries = 0;
    while let Err(error) = migrate() {
        tries += 1;
        let message = error.to_string();
        if tries == TRIES || !BUSY.iter().any(|busy| message.contains(busy)) {
            return Err(failed(name, &*error));
        }
        // Chance keeps it from meeting the same busy moment of a regular writer again.
        std::thread::sleep(LONGEST_PAUSE.mul_f64(fastrand::f64()));
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
