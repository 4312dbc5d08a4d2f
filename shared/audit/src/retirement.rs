//! Rows whose retention is over. Whoever removes them has the seal key, and states it: verification then knows that they may be gone,
//! and believes nobody else who removed rows (docs/adr/0055).

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Binary, Bool, Integer, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use sha2::{Digest as _, Sha256};
use store::Fault;
use trust::{PrivateKey, PublicKey};

use crate::AuditError;
use crate::anchor::Anchors;
use crate::chain;
use crate::digest::Digest;
use crate::finding::{Finding, Report};
use crate::leaf::Source;
use crate::row;
use crate::seal::Statement;
use crate::verify::verify;

/// The prefix of the hashed bytes, for domain separation from other messages that the key may sign.
const CONTEXT: &[u8] = b"memfleet audit retirement v1\n";

impl Source {
    /// For how many days its rows are kept at least. A statement that names fewer excuses nothing: how long rows are kept stands in the
    /// database, and whoever may change it there must not have fresh rows excused.
    pub const fn least_days(self) -> i32 {
        match self {
            Self::AuditLog | Self::Violations | Self::DataAccess | Self::Subjects => 365,
            Self::Events => 30,
        }
    }
}

/// What is stated: rows of a table under a seal and those before it may be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Retirement {
    number: i64,
    source: Source,
    through_seal: i64,
    seal_hash: Digest,
    keep_days: i32,
    retired_at: DateTime<Utc>,
}

impl Retirement {
    fn hash(&self) -> Digest {
        Sha256::new()
            .chain_update(CONTEXT)
            .chain_update(self.number.to_be_bytes())
            .chain_update([self.source.code()])
            .chain_update(self.through_seal.to_be_bytes())
            .chain_update(self.seal_hash)
            .chain_update(i64::from(self.keep_days).to_be_bytes())
            .chain_update(self.retired_at.timestamp_micros().to_be_bytes())
            .finalize()
            .into()
    }

    /// What speaks against it, beside its signature. `seal` is the one that the database has under this number.
    fn fault(&self, seal: Option<&Statement>) -> Option<String> {
        let least = self.source.least_days();
        if self.keep_days < least {
            return Some(format!(
                "it keeps rows of {} for {} days; {least} are the least",
                self.source.table(),
                self.keep_days
            ));
        }
        let Some(seal) = seal.filter(|seal| seal.hash() == self.seal_hash) else {
            return Some(format!("the database has no such seal {}", self.through_seal));
        };
        let age = self.retired_at - seal.sealed_at;
        (age < TimeDelta::days(i64::from(self.keep_days)))
            .then(|| format!("seal {} was younger than {} days then", seal.number, self.keep_days))
    }
}

/// How far the rows of each table may be gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Retired(Vec<(Source, i64)>);

impl Retired {
    pub(crate) fn covers(&self, source: Source, seal: i64) -> bool {
        self.0.iter().any(|(retired, through)| *retired == source && seal <= *through)
    }

    fn through(&self, source: Source) -> i64 {
        self.0
            .iter()
            .filter(|(retired, _)| *retired == source)
            .map(|(_, through)| *through)
            .max()
            .unwrap_or(0)
    }
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = BigInt)]
    number: i64,
    #[diesel(sql_type = SmallInt)]
    source: i16,
    #[diesel(sql_type = BigInt)]
    through_seal: i64,
    #[diesel(sql_type = Binary)]
    seal_hash: Vec<u8>,
    #[diesel(sql_type = Integer)]
    keep_days: i32,
    #[diesel(sql_type = Timestamptz)]
    retired_at: DateTime<Utc>,
    #[diesel(sql_type = Text)]
    key_name: String,
    #[diesel(sql_type = Binary)]
    signature: Vec<u8>,
}

impl Row {
    /// The statement, and what speaks against believing it.
    fn judge(&self, keys: &[PublicKey]) -> Result<Retirement, String> {
        let source = u8::try_from(self.source).ok().and_then(Source::from_code);
        let retirement = Retirement {
            number: self.number,
            source: source.ok_or("it names a table that is not sealed")?,
            through_seal: self.through_seal,
            seal_hash: self.seal_hash.clone().try_into().unwrap_or([0; 32]),
            keep_days: self.keep_days,
            retired_at: self.retired_at,
        };
        let key = keys.iter().find(|key| key.name() == self.key_name).ok_or_else(|| {
            format!("it is signed with the key {}, which is not among the given public keys", self.key_name)
        })?;
        let signature = self.signature.clone().try_into().unwrap_or([0; 64]);
        if key.verifies(&retirement.hash(), &signature) {
            Ok(retirement)
        } else {
            Err(format!("its signature is not a valid signature of the key {}", self.key_name))
        }
    }
}

/// What was stated and is believed. What is not is a finding each, and excuses nothing.
pub(crate) async fn read(
    connection: &mut AsyncPgConnection,
    keys: &[PublicKey],
) -> Result<(Retired, Vec<Finding>), Fault> {
    const READ: &str = "
        SELECT r.number, r.source, r.through_seal, r.seal_hash, r.keep_days, r.retired_at, r.key_name::pg_catalog.text AS key_name,
            r.signature FROM audit.retirements r ORDER BY r.number";
    let (mut retired, mut findings) = (Retired::default(), Vec::new());
    if !exists(connection).await? {
        return Ok((retired, findings));
    }
    let rows: Vec<Row> = diesel::sql_query(READ).load(connection).await?;
    for row in rows {
        let judged = match row.judge(keys) {
            Ok(retirement) => {
                let seal = chain::by_number(connection, retirement.through_seal).await?;
                retirement.fault(seal.as_ref()).map_or(Ok(retirement), Err)
            }
            Err(problem) => Err(problem),
        };
        match judged {
            Ok(Retirement { source, through_seal, .. }) => retired.0.push((source, through_seal)),
            Err(problem) => findings
                .push(Finding::database(format!("retirement {} excuses nothing: {problem}", row.number))),
        }
    }
    Ok((retired, findings))
}

/// Whether the table is there: the trail may be of an earlier version.
async fn exists(connection: &mut AsyncPgConnection) -> Result<bool, Fault> {
    #[derive(QueryableByName)]
    struct Exists {
        #[diesel(sql_type = Bool)]
        exists: bool,
    }
    let query = "SELECT pg_catalog.to_regclass('audit.retirements') IS NOT NULL AS exists";
    let rows: Vec<Exists> = diesel::sql_query(query).load(connection).await?;
    Ok(rows.iter().any(|row| row.exists))
}

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
        now - TimeDelta::days(i64::from(self.days))
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
/// months where it can. The whole trail is verified first, and nothing is retired while a row of it differs.
///
/// `now` is the present; a test may look ahead. With `is_dry`, it only looks. A call that is interrupted is completed by the next one.
///
/// # Errors
/// [`AuditError::Differs`] if verification finds a difference; otherwise of the database and NATS.
pub async fn retire(
    connection: &mut AsyncPgConnection,
    anchors: &Anchors,
    key: &PrivateKey,
    keys: &[PublicKey],
    keeps: &[Keep],
    now: DateTime<Utc>,
    is_dry: bool,
) -> Result<Vec<RetiredRows>, AuditError> {
    row::as_stored(connection).await?;
    let report = verify(connection, Some(anchors), keys).await?;
    if report.of_trail > 0 {
        return Err(AuditError::Differs { findings: first_of_trail(&report) });
    }
    let (known, _) = read(connection, keys).await?;
    // PostgreSQL stores microseconds, and the signed time must equal the stored one.
    let now = now.trunc_subsecs(6);
    if is_dry {
        return Ok(due_rows(connection, keeps, now).await?);
    }
    let mut done = Vec::new();
    for keep in keeps {
        let Some(seal) = chain::last_before(connection, keep.before(now)).await? else { continue };
        if seal.number > known.through(keep.source) {
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
    let mut due = Vec::new();
    for keep in keeps {
        let Some(seal) = chain::last_before(connection, keep.before(now)).await? else { continue };
        let mut retired = RetiredRows::under(keep.source, &seal);
        retired.rows = match keep.source {
            Source::Events | Source::Subjects => 0,
            Source::AuditLog | Source::Violations | Source::DataAccess => {
                rows_through(connection, keep.source, &seal).await?
            }
        };
        due.push(retired);
    }
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
) -> Result<(), Fault> {
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
    let next: Vec<Next> = diesel::sql_query(NEXT).load(connection).await?;
    let retirement = Retirement {
        number: next.as_slice().first().map_or(1, |next| next.number),
        source: keep.source,
        through_seal: seal.number,
        seal_hash: seal.hash(),
        keep_days: keep.days,
        retired_at: now,
    };
    diesel::sql_query(STATE)
        .bind::<BigInt, _>(retirement.number)
        .bind::<SmallInt, _>(i16::from(retirement.source.code()))
        .bind::<BigInt, _>(retirement.through_seal)
        .bind::<Binary, _>(retirement.seal_hash.to_vec())
        .bind::<Integer, _>(retirement.keep_days)
        .bind::<Timestamptz, _>(retirement.retired_at)
        .bind::<Text, _>(key.name())
        .bind::<Binary, _>(key.sign(&retirement.hash()).to_vec())
        .execute(connection)
        .await?;
    Ok(())
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

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn retirement(seal: &Statement, days: i64) -> Retirement {
        Retirement {
            number: 1,
            source: Source::AuditLog,
            through_seal: seal.number,
            seal_hash: seal.hash(),
            keep_days: 400,
            retired_at: seal.sealed_at + TimeDelta::days(days),
        }
    }

    #[test]
    fn only_old_rows_of_the_named_seal_are_retired() {
        let at = DateTime::from_timestamp(1_800_000_000, 0).unwrap_or_default();
        let seal = Statement::new(3, [0; 32], (7, Uuid::nil()), &[], at);
        let other = Statement::new(3, [1; 32], (7, Uuid::nil()), &[], at);
        assert_eq!(retirement(&seal, 400).fault(Some(&seal)), None);
        assert!(retirement(&seal, 399).fault(Some(&seal)).is_some());
        assert!(retirement(&seal, 400).fault(Some(&other)).is_some());
        assert!(retirement(&seal, 400).fault(None).is_some());
        let retired = Retired(vec![(Source::AuditLog, 3)]);
        assert!(retired.covers(Source::AuditLog, 3) && retired.covers(Source::AuditLog, 1));
        assert!(!retired.covers(Source::AuditLog, 4) && !retired.covers(Source::Violations, 3));
    }

    #[test]
    fn no_statement_excuses_rows_that_must_be_kept() {
        let at = DateTime::from_timestamp(1_800_000_000, 0).unwrap_or_default();
        let seal = Statement::new(3, [0; 32], (7, Uuid::nil()), &[], at);
        for (source, least) in [
            (Source::AuditLog, 365),
            (Source::Violations, 365),
            (Source::DataAccess, 365),
            (Source::Subjects, 365),
            (Source::Events, 30),
        ] {
            let of = |keep_days| Retirement { source, keep_days, ..retirement(&seal, 400) };
            assert_eq!(of(least).fault(Some(&seal)), None, "{source:?}");
            let fault = of(least - 1).fault(Some(&seal)).unwrap_or_default();
            assert!(fault.ends_with(&format!("{least} are the least")), "{source:?}: {fault}");
        }
    }

    #[test]
    fn each_field_is_signed() {
        let at = DateTime::from_timestamp(1_800_000_000, 0).unwrap_or_default();
        let seal = Statement::new(3, [0; 32], (7, Uuid::nil()), &[], at);
        let one = retirement(&seal, 400);
        for other in [
            Retirement { number: 2, ..one },
            Retirement { source: Source::Violations, ..one },
            Retirement { through_seal: 4, ..one },
            Retirement { seal_hash: [9; 32], ..one },
            Retirement { keep_days: 399, ..one },
            Retirement { retired_at: at, ..one },
        ] {
            assert_ne!(one.hash(), other.hash(), "{other:?}");
        }
    }
}
