//! Tables that are partitioned by month.

use diesel::QueryableByName;
use diesel::sql_types::{Integer, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::fault::Fault;

/// The tables, by ranges of ids, which are ranges of time.
pub const TABLES: [&str; 2] = ["blackboard_events", "audit.audit_log"];

/// How many months after this one have their partitions made.
pub const MONTHS_AHEAD: i32 = 3;

/// Makes the partitions of this month and of the next `months` where they are missing, and gives how many it made. It
/// needs the right to make tables. Without it rows go to the default partition, from where the next time moves them.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn create_ahead(connection: &mut AsyncPgConnection, months: i32) -> Result<i32, Fault> {
    const MAKE: &str = "SELECT make_month_partitions($1::regclass, $2) AS made";
    #[derive(QueryableByName)]
    struct Made {
        #[diesel(sql_type = Integer)]
        made: i32,
    }
    let mut made = 0;
    for table in TABLES {
        let rows: Vec<Made> = diesel::sql_query(MAKE)
            .bind::<Text, _>(table)
            .bind::<Integer, _>(months)
            .load(connection)
            .await?;
        made += rows.iter().map(|row| row.made).sum::<i32>();
    }
    Ok(made)
}
