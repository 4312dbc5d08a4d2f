//! The seals as the database has them, and what must be so before another one is added.

use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use store::Fault;
use store::schema::seals;
use trust::PublicKey;
use uuid::Uuid;

use crate::AuditError;
use crate::anchor::Anchors;
use crate::digest::Digest;
use crate::leaf::LEAF_BYTES;
use crate::seal::Statement;
use crate::time::Time;

diesel::define_sql_function! {
    /// The number of bytes.
    #[sql_name = "pg_catalog.octet_length"]
    fn octet_length(bytes: Binary) -> Integer;
}

/// The row of a seal without its leaves and its signature.
#[derive(Queryable, Selectable)]
#[diesel(table_name = seals, check_for_backend(Pg))]
pub(crate) struct Header {
    number: i64,
    previous_hash: Vec<u8>,
    through_transaction: i64,
    through_id: Uuid,
    #[diesel(select_expression = octet_length(seals::leaves))]
    leaf_bytes: i32,
    root: Vec<u8>,
    #[diesel(deserialize_as = Time)]
    sealed_at: DateTime<Utc>,
}

impl From<Header> for Statement {
    fn from(row: Header) -> Self {
        Self {
            number: row.number,
            previous: digest(row.previous_hash),
            through_transaction: row.through_transaction,
            through_id: row.through_id,
            count: usize::try_from(row.leaf_bytes)
                .ok()
                .and_then(|bytes| u32::try_from(bytes / LEAF_BYTES).ok())
                .unwrap_or(u32::MAX),
            root: digest(row.root),
            sealed_at: row.sealed_at,
        }
    }
}

/// A digest from a column of 32 bytes. Another length yields zeros, which do not match any signed statement.
fn digest(bytes: Vec<u8>) -> Digest {
    bytes.try_into().unwrap_or([0; 32])
}

/// The last seal of the database.
pub(crate) async fn last(connection: &mut AsyncPgConnection) -> Result<Option<Statement>, Fault> {
    let last = seals::table.order(seals::number.desc()).select(Header::as_select()).first(connection).await;
    Ok(last.optional()?.map(Statement::from))
}

/// The seal with this number.
pub(crate) async fn by_number(
    connection: &mut AsyncPgConnection,
    number: i64,
) -> Result<Option<Statement>, Fault> {
    let seal = seals::table.find(number).select(Header::as_select()).first(connection).await;
    Ok(seal.optional()?.map(Statement::from))
}

/// How many seals there are from this number on.
pub(crate) async fn count_from(connection: &mut AsyncPgConnection, number: i64) -> Result<i64, Fault> {
    #[derive(diesel::QueryableByName)]
    struct Count {
        #[diesel(sql_type = BigInt)]
        seals: i64,
    }
    const COUNT: &str =
        "SELECT pg_catalog.count(*) AS seals FROM audit.seals s WHERE s.number OPERATOR(pg_catalog.>=) $1";
    let rows: Vec<Count> = diesel::sql_query(COUNT).bind::<BigInt, _>(number).load(connection).await?;
    Ok(rows.into_iter().next().map_or(0, |row| row.seals))
}

/// The last seal before the first one that is not older than a time.
pub(crate) async fn last_before(
    connection: &mut AsyncPgConnection,
    before: DateTime<Utc>,
) -> Result<Option<Statement>, Fault> {
    let younger = seals::table.filter(seals::sealed_at.ge(before)).select(diesel::dsl::min(seals::number));
    let first: Option<i64> = younger.first(connection).await?;
    let older = seals::table.filter(seals::number.lt(first.unwrap_or(i64::MAX)));
    let last = older.order(seals::number.desc()).select(Header::as_select()).first(connection).await;
    Ok(last.optional()?.map(Statement::from))
}

/// What [`last_before`] finds, of seals that are read in their order.
#[derive(Debug)]
pub(crate) struct LastBefore {
    before: DateTime<Utc>,
    is_over: bool,
    pub(crate) seal: Option<Statement>,
}

impl LastBefore {
    pub(crate) fn new(before: DateTime<Utc>) -> Self {
        Self { before, is_over: false, seal: None }
    }

    pub(crate) fn see(&mut self, seal: &Statement) {
        self.is_over |= seal.sealed_at >= self.before;
        if !self.is_over {
            self.seal = Some(seal.clone());
        }
    }
}

/// A seal without its leaves.
#[derive(Queryable, Selectable)]
#[diesel(table_name = seals, check_for_backend(Pg))]
struct Signed {
    #[diesel(embed)]
    header: Header,
    key_name: String,
    signature: Vec<u8>,
}

/// How many seals are read at a time to be anchored.
const PAGE: i64 = 1_000;

/// The seals from a number on, in order, at most [`PAGE`] of them.
async fn page(connection: &mut AsyncPgConnection, from: i64) -> Result<Vec<Signed>, Fault> {
    let seals = seals::table.filter(seals::number.ge(from)).order(seals::number).limit(PAGE);
    Ok(seals.select(Signed::as_select()).load(connection).await?)
}

/// Brings NATS up to the last seal of the database, and returns that seal. Each seal that has no anchor must follow the
/// last anchored one, and its signature must be of one of these keys: what is anchored once is never taken back, and whoever
/// may write to the database can write seals.
///
/// # Errors
/// [`AuditError::Refused`] if the database does not have the last anchored seal, or has another one behind it that is not
/// genuine. The database or NATS may also fail.
pub(crate) async fn anchored(
    connection: &mut AsyncPgConnection,
    anchors: &Anchors,
    keys: &[PublicKey],
) -> Result<Option<Statement>, AuditError> {
    let known = anchors.last().await?;
    let mut end = None;
    // The last anchored seal itself is read as the first one.
    let (mut number, mut hash) = known.map_or((1, None), |(number, hash)| (number, Some(hash)));
    let mut previous = [0; 32];
    loop {
        let page = page(connection, number).await?;
        let is_last = i64::try_from(page.len()).is_ok_and(|length| length < PAGE);
        for signed in page {
            let Signed { header, key_name, signature } = signed;
            let statement = Statement::from(header);
            match hash.take() {
                Some(hash) => compare(&statement, number, &hash)?,
                None => {
                    check(&statement, number, &previous, keys, &key_name, signature)?;
                    anchors.publish(&statement).await?;
                }
            }
            (number, previous) = (statement.number + 1, statement.hash());
            end = Some(statement);
        }
        if is_last {
            break;
        }
    }
    match hash {
        Some(_) => Err(AuditError::Refused { seal: number, problem: MISSING.to_owned() }),
        None => Ok(end),
    }
}

const MISSING: &str =
    "NATS has its anchor and the database does not have it: seals were removed, or are hidden";

/// Compares the first seal from the last anchored one on with the anchor.
fn compare(statement: &Statement, number: i64, anchored: &Digest) -> Result<(), AuditError> {
    if statement.number != number {
        return Err(AuditError::Refused { seal: number, problem: MISSING.to_owned() });
    }
    if statement.hash() != *anchored {
        return Err(AuditError::other_anchor(number));
    }
    Ok(())
}

/// Whether a seal that is not anchored may be.
fn check(
    statement: &Statement,
    expected: i64,
    previous: &Digest,
    keys: &[PublicKey],
    key_name: &str,
    signature: Vec<u8>,
) -> Result<(), AuditError> {
    let refused = |problem: String| Err(AuditError::Refused { seal: statement.number, problem });
    if statement.number != expected {
        return refused(format!("seal {expected} is missing before it"));
    }
    if statement.previous != *previous {
        return refused("it does not contain the hash of the previous seal".to_owned());
    }
    let Some(key) = keys.iter().find(|key| key.name() == key_name) else {
        return refused(format!(
            "it has no anchor yet and is signed with the key {key_name}, which is neither the key of this sealer nor in \
             audit.public_keys_file"
        ));
    };
    if !key.verifies(&statement.hash(), &signature.try_into().unwrap_or([0; 64])) {
        return refused(format!("its signature is not a valid signature of the key {key_name}"));
    }
    Ok(())
}

/// What is wrong with the end of the chain, without changing anything; for whoever has no keys.
///
/// # Errors
/// The database or NATS may fail.
pub(crate) async fn fault_of_end(
    connection: &mut AsyncPgConnection,
    anchors: &Anchors,
) -> Result<Option<AuditError>, AuditError> {
    let known = anchors.last().await?;
    if let Some((number, hash)) = known {
        let Some(first) = page(connection, number).await?.into_iter().next() else {
            return Ok(Some(AuditError::Refused { seal: number, problem: MISSING.to_owned() }));
        };
        if let Err(error) = compare(&Statement::from(first.header), number, &hash) {
            return Ok(Some(error));
        }
    }
    // The sealer writes no seal before the one before it is anchored. NATS is asked again, as a sealer may be at work.
    let behind =
        |last: Option<Statement>, known: i64| last.map(|last| last.number).filter(|last| *last > known + 1);
    let number = |known: Option<(i64, Digest)>| known.map_or(0, |(number, _)| number);
    if behind(last(connection).await?, number(known)).is_none() {
        return Ok(None);
    }
    let present = last(connection).await?;
    let known = number(anchors.last().await?);
    Ok(behind(present, known).map(|seal| AuditError::Refused {
        seal,
        problem: format!("NATS has anchors up to seal {known} only: it was not written by the sealer"),
    }))
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn no_old_seal_counts_behind_a_younger_one() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap_or_default();
        let found = |ages: &[i64]| {
            let mut last = LastBefore::new(now - TimeDelta::days(365));
            for (number, age) in (1..).zip(ages) {
                last.see(&Statement::new(
                    number,
                    [0; 32],
                    (1, Uuid::nil()),
                    &[],
                    now - TimeDelta::days(*age),
                ));
            }
            last.seal.map(|seal| seal.number)
        };
        assert_eq!(found(&[400, 390, 366, 365, 1]), Some(3));
        assert_eq!(found(&[400, 1, 390]), Some(1));
        assert_eq!(found(&[364, 390]), None);
        assert_eq!(found(&[]), None);
    }
}
