//! The sealer: seals the rows of finished transactions.

use chrono::{DateTime, SubsecRound, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Bool};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use store::Fault;
use store::schema::seals;
use uuid::Uuid;

use crate::AuditError;
use crate::anchor::Anchors;
use crate::digest::Digest;
use crate::leaf::{LEAF_BYTES, Leaf};
use crate::row::{self, Place};
use crate::seal::{Seal, Statement};
use trust::PrivateKey;

/// The maximum number of rows of a seal.
pub const MAX_LEAVES: usize = 10_000;

/// The advisory lock that makes sure that only one sealer is active: "memseals" in ASCII.
const LOCK: i64 = 0x6d65_6d73_6561_6c73;

/// The position before every row, also before one that somebody gave a transaction that cannot be.
pub(crate) const BEGINNING: Place = (i64::MIN, Uuid::nil());

/// Seals every row whose transaction is finished, and anchors every seal that is not anchored yet. Returns the numbers
/// of seals and rows.
///
/// Any number of processes may call it; one of them does the work. An open transaction delays the sealing of all later
/// transactions, because rows with an earlier position may still appear.
///
/// # Errors
/// [`AuditError`] of the database or of NATS. Seals that were written are kept, and are anchored by the next call.
pub async fn seal_all(
    connection: &mut AsyncPgConnection,
    anchors: &Anchors,
    key: &PrivateKey,
) -> Result<(u64, u64), AuditError> {
    row::as_stored(connection).await?;
    let (mut seals, mut rows) = (0, 0);
    loop {
        let step = connection.transaction(async |connection| seal_next(connection, key).await).await;
        match step? {
            Step::Sealed(count) => {
                seals += 1;
                rows += count as u64;
            }
            Step::Nothing => break,
            Step::Behind { sealed, present } => return Err(AuditError::Behind { sealed, present }),
        }
    }
    anchor(connection, anchors).await?;
    Ok((seals, rows))
}

enum Step {
    Sealed(usize),
    /// All finished transactions are sealed, or another process is sealing.
    Nothing,
    Behind {
        sealed: i64,
        present: i64,
    },
}

/// The oldest transaction in progress: no row of an earlier one can still appear. It is read before the rows, in a
/// separate statement, so that the snapshot of the statement that reads the rows includes all of them.
/// An `xid8` has the form of a `bigint`.
const HORIZON: &str = "SELECT pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot()) AS number";

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = BigInt)]
    number: i64,
}

async fn seal_next(connection: &mut AsyncPgConnection, key: &PrivateKey) -> Result<Step, Fault> {
    if !lock(connection).await? {
        return Ok(Step::Nothing);
    }
    let last = read_statements(connection, i64::MAX, 1).await?.pop();
    let horizon: Vec<Number> = diesel::sql_query(HORIZON).load(connection).await?;
    let present = horizon.iter().map(|row| row.number).min().unwrap_or_default();
    let after = last.as_ref().map_or(BEGINNING, |last| (last.through_transaction, last.through_id));
    if after.0 > present {
        return Ok(Step::Behind { sealed: after.0, present });
    }
    let rows = row::read(connection, after, (present, Uuid::nil()), MAX_LEAVES).await?;
    let through = match rows.last() {
        None => return Ok(Step::Nothing),
        Some(last) if rows.len() == MAX_LEAVES => last.place,
        // Earlier transactions can write no more rows: a row that appears there later was backdated.
        Some(_) => (present, Uuid::nil()),
    };
    let leaves: Vec<Leaf> = rows.iter().map(|row| row.leaf).collect();
    let (number, previous) = last.map_or((1, [0; 32]), |last| (last.number + 1, last.hash()));
    // PostgreSQL stores microseconds, and the signed time must equal the stored one.
    let statement = Statement::new(number, previous, through, &leaves, Utc::now().trunc_subsecs(6));
    let signature = key.sign(&statement.hash());
    insert(connection, &Seal { statement, leaves, key_name: key.name().to_owned(), signature }).await?;
    Ok(Step::Sealed(rows.len()))
}

async fn lock(connection: &mut AsyncPgConnection) -> Result<bool, Fault> {
    #[derive(QueryableByName)]
    struct Locked {
        #[diesel(sql_type = Bool)]
        locked: bool,
    }
    let rows: Vec<Locked> = diesel::sql_query("SELECT pg_catalog.pg_try_advisory_xact_lock($1) AS locked")
        .bind::<BigInt, _>(LOCK)
        .load(connection)
        .await?;
    Ok(rows.iter().any(|row| row.locked))
}

/// What the seals cover. The column has no default, so that an older program, which leaves the subjects out, seals nothing.
const FORMAT: i16 = 2;

async fn insert(connection: &mut AsyncPgConnection, seal: &Seal) -> Result<(), Fault> {
    let leaves: Vec<u8> = seal.leaves.iter().flat_map(Leaf::to_bytes).collect();
    let statement = &seal.statement;
    diesel::insert_into(seals::table)
        .values((
            seals::number.eq(statement.number),
            seals::previous_hash.eq(statement.previous.as_slice()),
            seals::through_transaction.eq(statement.through_transaction),
            seals::through_id.eq(statement.through_id),
            seals::leaves.eq(leaves),
            seals::root.eq(statement.root.as_slice()),
            seals::sealed_at.eq(statement.sealed_at),
            seals::key_name.eq(&seal.key_name),
            seals::signature.eq(seal.signature.as_slice()),
            seals::format.eq(FORMAT),
        ))
        .execute(connection)
        .await?;
    Ok(())
}

/// How many seals are read at a time to be anchored.
const ANCHOR_PAGE: i64 = 1_000;

/// Anchors the seals that are not anchored yet, in order.
async fn anchor(connection: &mut AsyncPgConnection, anchors: &Anchors) -> Result<(), AuditError> {
    let mut known = anchors.last().await?;
    loop {
        let mut next = read_statements(connection, known + ANCHOR_PAGE, ANCHOR_PAGE).await?;
        next.retain(|statement| statement.number > known);
        if next.is_empty() {
            return Ok(());
        }
        for statement in next {
            anchors.publish(statement.number, &statement.hash()).await?;
            known = statement.number;
        }
    }
}

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

/// The last `limit` statements with numbers up to `through`, in order.
async fn read_statements(
    connection: &mut AsyncPgConnection,
    through: i64,
    limit: i64,
) -> Result<Vec<Statement>, Fault> {
    let rows = seals::table
        .filter(seals::number.le(through))
        .order(seals::number.desc())
        .limit(limit)
        .select(Header::as_select())
        .load(connection)
        .await?;
    Ok(rows.into_iter().rev().map(Statement::from).collect())
}
