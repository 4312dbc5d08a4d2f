//! Tables that are partitioned by month.

use diesel::QueryableByName;
use diesel::sql_types::{Integer, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::fault::Fault;

/// The partitioned tables. They are partitioned by ranges of UUIDv7 ids, which are ranges of time.
pub const TABLES: [&str; 2] = ["blackboard_events", "audit.audit_log"];

/// For how many months after the current one partitions are created.
pub const MONTHS_AHEAD: i32 = 3;

/// Creates the missing partitions of this month and the next `months`, and returns how many it created. It needs the
/// privilege to create tables. Rows of a month without a partition go to the default partition, and the next call moves
/// them.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn create_ahead(connection: &mut AsyncPgConnection, months: i32) -> Result<i32, Fault> {
    const CREATE: &str = "SELECT make_month_partitions($1::regclass, $2) AS created";
    #[derive(QueryableByName)]
    struct Created {
        #[diesel(sql_type = Integer)]
        created: i32,
    }
    let mut created = 0;
    for table in TABLES {
        let rows: Vec<Created> = diesel::sql_query(CREATE)
            .bind::<Text, _>(table)
            .bind::<Integer, _>(months)
            .load(connection)
            .await?;
        created += rows.iter().map(|row| row.created).sum::<i32>();
    }
    Ok(created)
}
