//! `memfleet audit retire`: states that rows whose retention is over may be gone, and removes them.

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Binary, Integer, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use store::Fault;
use trust::PrivateKey;

use crate::AuditError;
use crate::anchor::Anchors;
use crate::chain::{self, LastBefore};
use crate::finding::Report;
use crate::leaf::Source;
use crate::retirement::Retirement;
use crate::seal::Statement;
use crate::verify::{Accepted, verify_trail};

/// How long rows of a table are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// The table.
    pub source: Source,
    /// For how many days after they were sealed.
    pub days: i32,
}

impl Keep {
    /// What was sealed before this time is not kept any longer.
    fn before(self, now: DateTime<Utc>) -> DateTime<Utc> {
        let before = now.checked_sub_signed(TimeDelta::days(i64::from(self.days)));
        // PostgreSQL and chrono have no times of so long ago, and nothing was sealed then.
        before.unwrap_or_default().max(DateTime::UNIX_EPOCH)
    }
}

/// What was retired of a table, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetiredRows {
    /// The table.
    pub source: Source,
    /// The last of the seals.
    pub through_seal: i64,
    /// When it was sealed.
    pub sealed_at: DateTime<Utc>,
    /// Partitions that were dropped.
    pub partitions: Vec<String>,
    /// Rows that were removed, also with partitions. Of events there are none: retention removes them.
    pub rows: u64,
}

impl RetiredRows {
    fn under(source: Source, seal: &Statement) -> Self {
        let (through_seal, sealed_at) = (seal.number, seal.sealed_at);
        Self { source, through_seal, sealed_at, partitions: Vec::new(), rows: 0 }
    }
}

/// Retires the rows of tables that were sealed longer ago than they are kept: states it under the seal key, then removes them, whole
/// months where it can. The whole trail is verified first, and nothing is retired while a row of it differs. What is stated and removed is
/// decided by the seals as verification has read them, and not by what the database shows of them later.
///
/// `now` is the present; a test may look ahead. With `is_dry`, it only looks. A call that is interrupted is completed by the next one.
///
/// # Errors
/// [`AuditError::Differs`] if verification finds a difference; otherwise of the database and NATS.
pub async fn retire(
    connection: &mut AsyncPgConnection,
    anchors: &Anchors,
    key: &PrivateKey,
    keys: Accepted<'_>,
    keeps: &[Keep],
    now: DateTime<Utc>,
    is_dry: bool,
) -> Result<Vec<RetiredRows>, AuditError> {
    // PostgreSQL stores microseconds, and the signed time must equal the stored one.
    let now = now.trunc_subsecs(6);
    let mut lasts: Vec<LastBefore> = keeps.iter().map(|keep| LastBefore::new(keep.before(now))).collect();
    let (report, stated) = verify_trail(connection, Some(anchors), keys, &mut lasts).await?;
    if report.of_trail > 0 {
        return Err(AuditError::Differs { findings: first_of_trail(&report) });
    }
    let mut done = Vec::new();
    for (keep, last) in keeps.iter().zip(lasts) {
        let Some(seal) = last.seal else { continue };
        if is_dry {
            done.push(due(connection, keep.source, &seal).await?);
            continue;
        }
        if seal.number > stated.through(keep.source) {
            state(connection, key, *keep, &seal, now).await?;
        }
        let mut retired = RetiredRows::under(keep.source, &seal);
        match keep.source {
            Source::Events | Source::Subjects => {}
            Source::AuditLog | Source::Violations | Source::DataAccess => {
                remove(connection, &seal, &mut retired).await?;
            }
        }
        done.push(retired);
    }
    Ok(done)
}

/// What [`retire`] would remove, as the seals in the database have it: they are not verified. Changes nothing.
///
/// # Errors
/// [`Fault`] of the database.
pub async fn due_rows(
    connection: &mut AsyncPgConnection,
    keeps: &[Keep],
    now: DateTime<Utc>,
) -> Result<Vec<RetiredRows>, Fault> {
    let mut all = Vec::new();
    for keep in keeps {
        if let Some(seal) = chain::last_before(connection, keep.before(now)).await? {
            all.push(due(connection, keep.source, &seal).await?);
        }
    }
    Ok(all)
}

/// What would be removed under a seal.
async fn due(
    connection: &mut AsyncPgConnection,
    source: Source,
    seal: &Statement,
) -> Result<RetiredRows, Fault> {
    let mut due = RetiredRows::under(source, seal);
    due.rows = match source {
        Source::Events | Source::Subjects => 0,
        Source::AuditLog | Source::Violations | Source::DataAccess => {
            rows_through(connection, source, seal).await?
        }
    };
    Ok(due)
}

fn first_of_trail(report: &Report) -> String {
    let finding = report.findings.iter().find(|finding| finding.is_of_trail());
    finding.map_or_else(|| format!("{} findings", report.of_trail), ToString::to_string)
}

async fn state(
    connection: &mut AsyncPgConnection,
    key: &PrivateKey,
    keep: Keep,
    seal: &Statement,
    now: DateTime<Utc>,
) -> Result<(), AuditError> {
    #[derive(QueryableByName)]
    struct Next {
        #[diesel(sql_type = BigInt)]
        number: i64,
    }
    const NEXT: &str = "SELECT coalesce(max(number), 0) + 1 AS number FROM audit.retirements";
    // The primary key refuses a number that another process has taken meanwhile.
    const STATE: &str = "
        INSERT INTO audit.retirements (number, source, through_seal, seal_hash, keep_days, retired_at, key_name, signature)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    let next: Vec<Next> = diesel::sql_query(NEXT).load(connection).await.map_err(Fault::from)?;
    let retirement = Retirement {
        number: next.as_slice().first().map_or(1, |next| next.number),
        source: keep.source,
        through_seal: seal.number,
        seal_hash: seal.hash(),
        keep_days: keep.days,
        retired_at: now,
    };
    let written = diesel::sql_query(STATE)
        .bind::<BigInt, _>(retirement.number)
        .bind::<SmallInt, _>(i16::from(retirement.source.code()))
        .bind::<BigInt, _>(retirement.through_seal)
        .bind::<Binary, _>(retirement.seal_hash.to_vec())
        .bind::<Integer, _>(retirement.keep_days)
        .bind::<Timestamptz, _>(retirement.retired_at)
        .bind::<Text, _>(key.name())
        .bind::<Binary, _>(key.sign(&retirement.hash()).to_vec())
        .execute(connection)
        .await
        .map_err(Fault::from)?;
    // A trigger may keep a row from being written. What is removed without a statement is missing for good.
    if written == 1 { Ok(()) } else { Err(AuditError::NotStated { retirement: retirement.number }) }
}

/// How many rows one statement removes.
const BATCH: i64 = 5_000;

async fn remove(
    connection: &mut AsyncPgConnection,
    seal: &Statement,
    retired: &mut RetiredRows,
) -> Result<(), Fault> {
    #[derive(QueryableByName)]
    struct Dropped {
        #[diesel(sql_type = Text)]
        name: String,
        #[diesel(sql_type = BigInt)]
        dropped: i64,
    }
    const DROP: &str = "SELECT name, dropped FROM audit.drop_retired_partition($1, $2)";
    if retired.source == Source::AuditLog {
        loop {
            let dropped: Vec<Dropped> = diesel::sql_query(DROP)
                .bind::<BigInt, _>(seal.through_transaction)
                .bind::<SqlUuid, _>(seal.through_id)
                .load(connection)
                .await?;
            let Some(dropped) = dropped.into_iter().next() else { break };
            retired.rows += dropped.dropped.unsigned_abs();
            retired.partitions.push(dropped.name);
        }
    }
    let table = retired.source.reading().table;
    let delete = format!(
        "WITH old AS MATERIALIZED (
            SELECT t.transaction_id, t.id FROM {table} t WHERE (t.transaction_id, t.id) <= ($1, $2)
            ORDER BY t.transaction_id, t.id LIMIT {BATCH})
        DELETE FROM {table} t USING old o WHERE t.transaction_id = o.transaction_id AND t.id = o.id"
    );
    loop {
        let removed = diesel::sql_query(&delete)
            .bind::<BigInt, _>(seal.through_transaction)
            .bind::<SqlUuid, _>(seal.through_id)
            .execute(connection)
            .await?;
        retired.rows += u64::try_from(removed).unwrap_or(0);
        if removed == 0 {
            return Ok(());
        }
    }
}

async fn rows_through(
    connection: &mut AsyncPgConnection,
    source: Source,
    seal: &Statement,
) -> Result<u64, Fault> {
    #[derive(QueryableByName)]
    struct Count {
        #[diesel(sql_type = BigInt)]
        rows: i64,
    }
    let table = source.reading().table;
    let count = format!("SELECT count(*) AS rows FROM {table} t WHERE (t.transaction_id, t.id) <= ($1, $2)");
    let rows: Vec<Count> = diesel::sql_query(count)
        .bind::<BigInt, _>(seal.through_transaction)
        .bind::<SqlUuid, _>(seal.through_id)
        .load(connection)
        .await?;
    Ok(rows.as_slice().first().map_or(0, |count| count.rows.unsigned_abs()))
}
