//! What protects the database, a line for each thing: roles, settings, tables and their columns, constraints, functions,
//! policies, triggers and privileges.
//!
//! The file `catalog.txt` beside it has the lines that the migrations make. A line that a live database lacks was changed or
//! taken away; one that it has beyond them was added.

use std::collections::BTreeSet;

use diesel::QueryableByName;
use diesel::sql_types::Text;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};

use crate::builtin;
use crate::fault::Fault;

const LINES: &str = include_str!("catalog.sql");

/// What the migrations of one database make.
#[derive(Clone, Copy, Debug)]
pub struct Catalog {
    /// The lines. Written and checked by `tests/schema_file.rs`.
    pub expected: &'static str,
    /// Selects the names of the roles that the migrations make.
    pub roles: &'static str,
    /// Selects lines of what this database alone has.
    pub own_lines: &'static str,
}

/// The main database.
pub const MAIN: Catalog = Catalog {
    expected: include_str!("catalog.txt"),
    roles: "SELECT r.rolname FROM pg_roles r WHERE r.rolname LIKE 'memfleet\\_%'
        UNION SELECT w.role_name FROM sec.worker_privileges w",
    own_lines: "SELECT format('events of the type %s are appended by %s', w.event_type, w.role_name) FROM sec.event_writers w
        UNION ALL SELECT format('job %s acts as %s for users of %s', j.job, j.role_name, j.due_function) FROM sec.jobs j",
};

/// The difference between a database and what the migrations make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// What the migrations make and the database lacks.
    pub missing: Vec<String>,
    /// What the database has beyond that.
    pub unknown: Vec<String>,
}

impl Catalog {
    /// What protects this database, sorted. For a superuser.
    ///
    /// # Errors
    /// A [`Fault`] of the database.
    pub async fn lines(&self, connection: &mut AsyncPgConnection) -> Result<Vec<String>, Fault> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Text)]
            line: String,
        }
        let select = LINES.replace("{roles}", self.roles).replace("{own_lines}", self.own_lines);
        // Names in definitions are written as the search path has them.
        let rows: Vec<Row> = connection
            .transaction(async |connection| {
                connection.batch_execute("SET LOCAL search_path = pg_catalog, pg_temp").await?;
                Ok::<_, Fault>(diesel::sql_query(select).load(connection).await?)
            })
            .await?;
        Ok(rows.into_iter().map(|row| row.line.split_whitespace().collect::<Vec<_>>().join(" ")).collect())
    }

    /// Compares this database with what this program's migrations make. For a superuser. What is not PostgreSQL's own among the catalogs
    /// and functions that the comparison itself uses is unknown too.
    ///
    /// # Errors
    /// A [`Fault`] of the database.
    pub async fn difference(&self, connection: &mut AsyncPgConnection) -> Result<Difference, Fault> {
        let expected: BTreeSet<&str> = self.expected.lines().collect();
        let replaced = builtin::look(connection, &[]).await?.faults;
        let found = self.lines(connection).await?;
        let found: BTreeSet<&str> = found.iter().map(String::as_str).collect();
        let owned = |lines: Vec<&&str>| lines.into_iter().map(|line| (*line).to_owned()).collect();
        let mut unknown = replaced;
        unknown.extend(owned(found.difference(&expected).collect()));
        Ok(Difference { missing: owned(expected.difference(&found).collect()), unknown })
    }
}
