//! The sealer: seals the rows of finished transactions.

use chrono::{SubsecRound, Utc};
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use store::schema::seals;
use store::{Fault, FaultKind};
use trust::{PrivateKey, PublicKey};
use uuid::Uuid;

use crate::AuditError;
use crate::anchor::Anchors;
use crate::leaf::Leaf;
use crate::row::{self, Start};
use crate::seal::{Seal, Statement};
use crate::{chain, form, holder};

/// The maximum number of rows of a seal.
pub const MAX_LEAVES: usize = 10_000;

/// The advisory lock that makes sure that only one sealer is active: "memseals" in ASCII.
pub(crate) const LOCK: i64 = 0x6d65_6d73_6561_6c73;

/// Seals every row whose transaction was finished when it was called, and anchors each seal as soon as it is written. Returns the numbers of
/// seals and rows. `earlier` are the public keys of earlier sealers: of a seal that is not anchored yet, the signature must be
/// of one of them or of `key`.
///
/// Any number of processes may call it; they take turns. An open transaction delays the sealing of all later
/// transactions, because rows with an earlier position may still appear.
///
/// # Errors
/// [`AuditError`] of the database or of NATS, and whatever speaks against adding a seal to what the database shows. A seal
/// that was written is kept, and is anchored by the next call.
pub async fn seal_all(
    connection: &mut AsyncPgConnection,
    anchors: &Anchors,
    key: &PrivateKey,
    earlier: &[PublicKey],
) -> Result<(u64, u64), AuditError> {
    row::as_stored(connection).await?;
    let keys: Vec<PublicKey> = [&[key.public()][..], earlier].concat();
    let (mut seals, mut rows, mut overtaken) = (0, 0, 0);
    while overtaken < MAX_OVERTAKEN {
        let faults = form::faults(connection).await?;
        if !faults.is_empty() {
            return Err(AuditError::Form { faults });
        }
        let last = chain::anchored(connection, anchors, &keys).await?;
        let step =
            connection.transaction(async |connection| seal_next(connection, key, last.as_ref()).await).await;
        match step {
            Ok(Step::Sealed(statement)) => {
                // What was signed, and not what the database shows of it.
                anchors.publish(&statement).await?;
                seals += 1;
                rows += u64::from(statement.count);
                // All that had finished when it was written is sealed. While others write, there would be more for ever.
                if usize::try_from(statement.count).is_ok_and(|count| count < MAX_LEAVES) {
                    break;
                }
            }
            Ok(Step::Overtaken) => overtaken += 1,
            Ok(Step::Nothing) => break,
            Err(AuditError::Locked { .. }) => {
                return Err(AuditError::Locked { holders: holder::of_lock(connection, LOCK).await? });
            }
            Err(error) => return Err(error),
        }
    }
    Ok((seals, rows))
}

/// How often another sealer may be faster before the work is left to it.
const MAX_OVERTAKEN: u32 = 10;

enum Step {
    Sealed(Statement),
    /// All finished transactions are sealed.
    Nothing,
    /// The last seal is not the one that was found anchored: another process has sealed meanwhile.
    Overtaken,
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

async fn seal_next(
    connection: &mut AsyncPgConnection,
    key: &PrivateKey,
    anchored: Option<&Statement>,
) -> Result<Step, AuditError> {
    lock(connection).await?;
    let last = chain::last(connection).await?;
    if last.as_ref() != anchored {
        return Ok(Step::Overtaken);
    }
    let types = form::types(connection).await?;
    let horizon: Vec<Number> = diesel::sql_query(HORIZON).load(connection).await?;
    let present = horizon.iter().map(|row| row.number).min().unwrap_or_default();
    let (start, sealed) = match &last {
        None => (Start::Beginning, i64::MIN),
        Some(last) => (Start::After((last.through_transaction, last.through_id)), last.through_transaction),
    };
    if sealed > present {
        return Err(AuditError::Behind { sealed, present });
    }
    let rows = row::read(connection, &types, start, (present, Uuid::nil()), MAX_LEAVES).await?;
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
    let seal = Seal { statement, leaves, key_name: key.name().to_owned(), signature };
    if insert(connection, &seal).await? != 1 {
        return Err(AuditError::NotStored { seal: number });
    }
    Ok(Step::Sealed(seal.statement))
}

/// How long a sealer waits for another one to write its seal.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '10s'";

/// Takes the lock of sealers until the end of the transaction.
async fn lock(connection: &mut AsyncPgConnection) -> Result<(), AuditError> {
    connection.batch_execute(LOCK_TIMEOUT).await.map_err(Fault::from)?;
    let lock = diesel::sql_query("SELECT pg_catalog.pg_advisory_xact_lock($1)").bind::<BigInt, _>(LOCK);
    match lock.execute(connection).await.map_err(Fault::from) {
        Ok(_) => Ok(()),
        Err(Fault { kind: FaultKind::Blocked, .. }) => Err(AuditError::Locked { holders: Vec::new() }),
        Err(fault) => Err(fault.into()),
    }
}

/// What the seals cover. The column has no default, so that an older program, which leaves the subjects out, seals nothing.
const FORMAT: i16 = 2;

/// Returns how many rows were written: something may keep the database from it without an error.
async fn insert(connection: &mut AsyncPgConnection, seal: &Seal) -> Result<usize, Fault> {
    let leaves: Vec<u8> = seal.leaves.iter().flat_map(Leaf::to_bytes).collect();
    let statement = &seal.statement;
    let written = diesel::insert_into(seals::table)
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
    Ok(written)
}
