//! Rows that belong to no seal: those that wait for one, those that none can cover, and users with two subjects.

use diesel::QueryableByName;
use diesel::sql_types::{Integer, Nullable, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use store::Fault;
use uuid::Uuid;

use crate::finding::{Finding, Report};
use crate::leaf::Source;
use crate::row::{self, Reading, Start};

/// How many rows and users are named at most.
const MAX_NAMED: usize = 20;

/// Notes them. The last seal ends where `start` begins.
pub(crate) async fn note(
    connection: &mut AsyncPgConnection,
    start: Start,
    report: &mut Report,
) -> Result<(), Fault> {
    for source in Source::ALL {
        let counts = row::count(connection, source, start).await?;
        report.unsealed += u64::try_from(counts.later).unwrap_or(0);
        let Some(count) = usize::try_from(counts.without_place()).ok().filter(|count| *count > 0) else {
            continue;
        };
        let mut rows: Vec<Option<Uuid>> = without_place(connection, source).await?;
        rows.truncate(count);
        if rows.is_empty() {
            rows.push(None);
        }
        report.added += (count - rows.len()) as u64;
        for row in rows {
            report.note_outside(Finding::without_place(source, row));
        }
    }
    for user in doubled(connection).await? {
        let problem = format!(
            "user {user} has more than one row in audit.subjects: which of them the digests of the user's events were \
             made with is unknown, and some events may be called changed for that reason"
        );
        report.note_outside(Finding::database(problem));
    }
    Ok(())
}

/// Some of the rows whose place is NULL.
async fn without_place(
    connection: &mut AsyncPgConnection,
    source: Source,
) -> Result<Vec<Option<Uuid>>, Fault> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Nullable<SqlUuid>)]
        id: Option<Uuid>,
    }
    let Reading { table, id, .. } = source.reading();
    let query = format!(
        "SELECT t.{id} AS id FROM {table} t WHERE t.transaction_id IS NULL OR t.{id} IS NULL LIMIT {MAX_NAMED}"
    );
    let rows: Vec<Row> = diesel::sql_query(query).load(connection).await?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}

/// Users with several subjects. Nobody has them while the table has its primary key.
async fn doubled(connection: &mut AsyncPgConnection) -> Result<Vec<i32>, Fault> {
    #[derive(QueryableByName)]
    struct User {
        #[diesel(sql_type = Integer)]
        user_id: i32,
    }
    let query = format!(
        "SELECT s.user_id FROM audit.subjects s WHERE s.user_id IS NOT NULL GROUP BY s.user_id
        HAVING pg_catalog.count(*) OPERATOR(pg_catalog.>) 1::pg_catalog.int8 LIMIT {MAX_NAMED}"
    );
    let users: Vec<User> = diesel::sql_query(query).load(connection).await?;
    Ok(users.into_iter().map(|one| one.user_id).collect())
}
