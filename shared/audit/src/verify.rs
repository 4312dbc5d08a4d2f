//! Verification: recomputes every digest, root, chain link and signature, and reports what differs from the seals.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde::Serialize;
use store::Fault;
use store::schema::seals;
use uuid::Uuid;

use crate::AuditError;
use crate::anchor::Anchors;
use crate::digest::Digest;
use crate::leaf::{self, Leaf, Place, Placed, Source};
use crate::seal::{Seal, Statement};
use crate::sealer::{BEGINNING, Header, MAX_LEAVES};
use crate::tree;
use trust::PublicKey;

/// The maximum number of findings that are reported.
const MAX_FINDINGS: usize = 100;

/// A difference between the trail and its seals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The number of the seal.
    pub seal: i64,
    /// The index of the row in the seal, from 0; none for a row that was not sealed.
    pub leaf: Option<u32>,
    /// The table of the row.
    pub table: Option<&'static str>,
    /// The id of the row.
    pub row: Option<Uuid>,
    /// What is wrong.
    pub problem: String,
}

impl Finding {
    fn seal(seal: i64, problem: impl Into<String>) -> Self {
        Self { seal, leaf: None, table: None, row: None, problem: problem.into() }
    }

    fn row(seal: i64, index: Option<usize>, leaf: &Leaf, problem: &str) -> Self {
        Self {
            seal,
            leaf: index.and_then(|index| u32::try_from(index).ok()),
            table: Some(leaf.source.table()),
            row: Some(leaf.id),
            problem: problem.to_owned(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seal {}", self.seal)?;
        if let Some(leaf) = self.leaf {
            write!(f, ", leaf {leaf}")?;
        }
        if let (Some(table), Some(row)) = (self.table, self.row) {
            write!(f, ", row {row} of {table}")?;
        }
        write!(f, ": {}", self.problem)
    }
}

/// The result of a verification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The number of seals.
    pub seals: u64,
    /// The number of rows that they cover.
    pub rows: u64,
    /// Events that were deleted or changed by an operation that the trail itself records, such as an erasure.
    pub accounted: u64,
    /// The number of anchored seals; none if the anchors were not checked.
    pub anchored: Option<u64>,
    /// Rows that are not sealed yet.
    pub unsealed: u64,
    /// The first finding of each seal, in order; at most 100.
    pub findings: Vec<Finding>,
}

/// Verifies the whole trail with the public keys that may have signed it and, if given, with the anchors. It reads one
/// seal with its rows at a time and changes nothing.
///
/// # Errors
/// [`AuditError`] if the database or the anchors cannot be read. A manipulated trail is not an error: see
/// [`Report::findings`].
pub async fn verify(
    connection: &mut AsyncPgConnection,
    anchors: Option<&Anchors>,
    keys: &[PublicKey],
) -> Result<Report, AuditError> {
    // Read first, because a seal that is written meanwhile need not be anchored.
    let known = match anchors {
        Some(anchors) => Some(anchors.read().await?),
        None => None,
    };
    let mut report = Report { anchored: known.as_ref().map(|known| known.len() as u64), ..Report::default() };
    let (mut number, mut previous, mut after) = (0, [0; 32], BEGINNING);
    let mut sealed_before = None;
    while let Some(seal) = read_seal(connection, number).await? {
        let statement = &seal.statement;
        report.seals += 1;
        report.rows += seal.leaves.len() as u64;
        let found = match check_seal(&seal, number + 1, &previous, keys, known.as_ref()) {
            Some(finding) => Some(finding),
            None => check_rows(connection, &seal, after, sealed_before, &mut report.accounted).await?,
        };
        if report.findings.len() < MAX_FINDINGS {
            report.findings.extend(found);
        }
        (number, previous) = (statement.number, statement.hash());
        after = (statement.through_transaction, statement.through_id);
        sealed_before = Some(statement.sealed_at);
    }
    if let Some(last) =
        known.and_then(|known| known.keys().next_back().copied()).filter(|last| *last > number)
    {
        let problem = format!("the last seals are missing: NATS has anchors up to seal {last}");
        report.findings.push(Finding::seal(number + 1, problem));
    }
    report.unsealed = count_after(connection, after).await?;
    Ok(report)
}

/// The first problem of a seal itself or of its place in the chain.
fn check_seal(
    seal: &Seal,
    expected: i64,
    previous: &Digest,
    keys: &[PublicKey],
    known: Option<&BTreeMap<i64, Digest>>,
) -> Option<Finding> {
    let Seal { statement, leaves, key_name, signature } = seal;
    let number = statement.number;
    if number != expected {
        let missing = if number - expected == 1 {
            format!("seal {expected} is missing")
        } else {
            format!("seals {expected} to {} are missing", number - 1)
        };
        return Some(Finding::seal(expected, missing));
    }
    let Some(key) = keys.iter().find(|key| key.name() == key_name) else {
        return Some(Finding::seal(
            number,
            format!("it is signed with the key {key_name}, which is not among the given public keys"),
        ));
    };
    let hash = statement.hash();
    if !key.verifies(&hash, signature) {
        return Some(Finding::seal(
            number,
            format!("its signature is not a valid signature of the key {key_name}"),
        ));
    }
    if statement.previous != *previous {
        return Some(Finding::seal(number, "it does not contain the hash of the previous seal"));
    }
    if tree::root(leaves.iter().map(|leaf| tree::leaf_hash(&leaf.to_bytes()))) != statement.root {
        return Some(Finding::seal(number, "its list of rows is not the signed one"));
    }
    match known.map(|known| known.get(&number)) {
        Some(Some(anchored)) if *anchored != hash => {
            Some(Finding::seal(number, "NATS has an anchor of another seal with this number"))
        }
        Some(Some(_) | None) | None => None,
    }
}

/// The first row of a seal that differs from the seal.
async fn check_rows(
    connection: &mut AsyncPgConnection,
    seal: &Seal,
    after: Place,
    sealed_before: Option<DateTime<Utc>>,
    accounted: &mut u64,
) -> Result<Option<Finding>, Fault> {
    let statement = &seal.statement;
    let through = (statement.through_transaction, statement.through_id);
    // One more than a seal may cover: such a row was added later.
    let rows = leaf::read(connection, after, through, MAX_LEAVES + 1).await?;
    if rows.iter().map(|row| &row.leaf).eq(seal.leaves.iter()) {
        return Ok(misdated(seal, &rows, sealed_before));
    }
    let excused = excused(connection, seal, &rows).await?;
    Ok(first_difference(statement.number, &seal.leaves, &rows, &excused, accounted))
}

/// How far the timestamp of a row may lie outside of the time between the previous seal and its own. A transaction that
/// was open for longer is reported too.
const TOLERANCE: TimeDelta = TimeDelta::days(1);

/// The first row whose timestamp does not fit the time of its seal: it was inserted with a false timestamp, or the
/// clock of its server was wrong.
fn misdated(seal: &Seal, rows: &[Placed], sealed_before: Option<DateTime<Utc>>) -> Option<Finding> {
    let earliest = sealed_before.map(|time| (time - TOLERANCE).timestamp_micros());
    let latest = (seal.statement.sealed_at + TOLERANCE).timestamp_micros();
    let wrong = |row: &Placed| earliest.is_some_and(|earliest| row.at < earliest) || row.at > latest;
    let place = rows.iter().position(wrong)?;
    let problem = "its timestamp is more than a day away from the time in which it was sealed";
    rows.get(place).map(|row| Finding::row(seal.statement.number, Some(place), &row.leaf, problem))
}

fn first_difference(
    number: i64,
    sealed: &[Leaf],
    rows: &[Placed],
    excused: &HashSet<Uuid>,
    accounted: &mut u64,
) -> Option<Finding> {
    let known: HashSet<(Source, Uuid)> = sealed.iter().map(|leaf| (leaf.source, leaf.id)).collect();
    let mut rows = rows.iter().map(|row| &row.leaf).peekable();
    for (place, leaf) in sealed.iter().enumerate() {
        let excuse = leaf.source == Source::Events && excused.contains(&leaf.id);
        match rows.peek() {
            Some(row) if *row == leaf => {
                rows.next();
            }
            Some(row) if (row.source, row.id) == (leaf.source, leaf.id) => {
                if !excuse {
                    return Some(Finding::row(
                        number,
                        Some(place),
                        leaf,
                        "it was changed after it was sealed",
                    ));
                }
                *accounted += 1;
                rows.next();
            }
            Some(row) if !known.contains(&(row.source, row.id)) => {
                let problem = "it was added among sealed rows with an earlier position";
                return Some(Finding::row(number, Some(place), row, problem));
            }
            Some(_) | None => {
                if !excuse {
                    let problem = "it is missing from its place: removed or moved after it was sealed";
                    return Some(Finding::row(number, Some(place), leaf, problem));
                }
                *accounted += 1;
            }
        }
    }
    let added = rows.next()?;
    Some(Finding::row(number, None, added, "it was added among sealed rows with an earlier position"))
}

/// The events of a seal that differ and whose change or deletion is recorded in `audit_log`, which is sealed itself.
async fn excused(
    connection: &mut AsyncPgConnection,
    seal: &Seal,
    rows: &[Placed],
) -> Result<HashSet<Uuid>, Fault> {
    const ASK: &str = "
        SELECT DISTINCT row_id FROM audit.audit_log
        WHERE table_name = 'blackboard_events' AND operation <> 'INSERT' AND row_id = ANY ($1)";
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = SqlUuid)]
        row_id: Uuid,
    }
    let present: HashSet<[u8; leaf::LEAF_BYTES]> = rows.iter().map(|row| row.leaf.to_bytes()).collect();
    let differ: Vec<Uuid> = seal
        .leaves
        .iter()
        .filter(|leaf| leaf.source == Source::Events && !present.contains(&leaf.to_bytes()))
        .map(|leaf| leaf.id)
        .collect();
    if differ.is_empty() {
        return Ok(HashSet::new());
    }
    let rows: Vec<Row> = diesel::sql_query(ASK).bind::<Array<SqlUuid>, _>(differ).load(connection).await?;
    Ok(rows.into_iter().map(|row| row.row_id).collect())
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = seals, check_for_backend(Pg))]
struct SealRow {
    #[diesel(embed)]
    header: Header,
    leaves: Vec<u8>,
    key_name: String,
    signature: Vec<u8>,
}

/// The first seal with a higher number.
async fn read_seal(connection: &mut AsyncPgConnection, above: i64) -> Result<Option<Seal>, Fault> {
    let row = seals::table
        .filter(seals::number.gt(above))
        .order(seals::number)
        .select(SealRow::as_select())
        .first(connection)
        .await
        .optional()?;
    Ok(row.map(|row| {
        // A malformed list becomes an empty one, whose root is not the signed one.
        let leaves = Leaf::read_all(&row.leaves).unwrap_or_default();
        Seal {
            statement: Statement {
                count: u32::try_from(leaves.len()).unwrap_or(u32::MAX),
                ..Statement::from(row.header)
            },
            leaves,
            key_name: row.key_name,
            signature: row.signature.try_into().unwrap_or([0; 64]),
        }
    }))
}

async fn count_after(connection: &mut AsyncPgConnection, after: Place) -> Result<u64, Fault> {
    const COUNT: &str = "
        SELECT (SELECT count(*) FROM audit.audit_log WHERE (transaction_id, id) > ($1, $2))
            + (SELECT count(*) FROM audit.security_violations WHERE (transaction_id, id) > ($1, $2))
            + (SELECT count(*) FROM audit.data_access_log WHERE (transaction_id, id) > ($1, $2))
            + (SELECT count(*) FROM blackboard_events WHERE (transaction_id, id) > ($1, $2)) AS number";
    #[derive(QueryableByName)]
    struct Number {
        #[diesel(sql_type = BigInt)]
        number: i64,
    }
    let rows: Vec<Number> = diesel::sql_query(COUNT)
        .bind::<BigInt, _>(after.0)
        .bind::<SqlUuid, _>(after.1)
        .load(connection)
        .await?;
    Ok(rows.iter().map(|row| u64::try_from(row.number).unwrap_or(0)).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(number: u128) -> Leaf {
        Leaf { source: Source::AuditLog, id: Uuid::from_u128(number), digest: [1; 32] }
    }

    fn difference(sealed: &[u128], rows: &[Leaf]) -> Option<(Option<u32>, u128, String)> {
        let sealed: Vec<Leaf> = sealed.iter().copied().map(leaf).collect();
        let rows: Vec<Placed> =
            rows.iter().map(|leaf| Placed { place: (1, leaf.id), at: 0, leaf: *leaf }).collect();
        let found = first_difference(1, &sealed, &rows, &HashSet::new(), &mut 0)?;
        Some((found.leaf, found.row?.as_u128(), found.problem))
    }

    #[test]
    fn the_first_difference_is_named() {
        let all = |numbers: &[u128]| numbers.iter().copied().map(leaf).collect::<Vec<_>>();
        let says = |sealed: &[u128], rows: &[Leaf], place: Option<u32>, row: u128, what: &str| {
            let Some(found) = difference(sealed, rows) else { panic!("no difference from {rows:?}") };
            assert_eq!((found.0, found.1), (place, row), "{}", found.2);
            assert!(found.2.contains(what), "{}", found.2);
        };
        assert_eq!(difference(&[1, 2, 3], &all(&[1, 2, 3])), None);
        says(&[1, 2, 3], &all(&[1, 3]), Some(1), 2, "missing");
        says(&[1, 2, 3], &all(&[1, 2]), Some(2), 3, "missing");
        says(&[1, 2, 3], &[], Some(0), 1, "missing");
        says(&[1, 2, 3], &all(&[2, 1, 3]), Some(0), 1, "moved");
        says(&[1, 2, 3], &all(&[1, 9, 2, 3]), Some(1), 9, "added");
        says(&[1, 2, 3], &all(&[1, 2, 3, 9]), None, 9, "added");
        says(&[1, 2, 3], &[leaf(1), Leaf { digest: [2; 32], ..leaf(2) }, leaf(3)], Some(1), 2, "changed");
    }
}
