//! Recomputes every digest, root, chain link and signature, and says what is not as it was sealed.

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
use crate::leaf::{self, Leaf, Place, Placed, Source};
use crate::seal::{Digest, Seal, Statement};
use crate::sealer::{BEGINNING, Header, MOST_LEAVES};
use crate::tree;
use trust::PublicKey;

/// The most findings that are reported. A trail with more has one fate.
const MOST_FINDINGS: usize = 100;

/// Something that is not as it was sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The seal.
    pub seal: i64,
    /// The place of the row under it, from 0 on, if it is about a row that was sealed.
    pub leaf: Option<u32>,
    /// The row's table.
    pub table: Option<&'static str>,
    /// The row's id.
    pub row: Option<Uuid>,
    /// What is wrong.
    pub problem: String,
}

impl Finding {
    fn seal(seal: i64, problem: impl Into<String>) -> Self {
        Self { seal, leaf: None, table: None, row: None, problem: problem.into() }
    }

    fn row(seal: i64, place: Option<usize>, leaf: &Leaf, problem: &str) -> Self {
        Self {
            seal,
            leaf: place.and_then(|place| u32::try_from(place).ok()),
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

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Seals that were read.
    pub seals: u64,
    /// Rows under them.
    pub rows: u64,
    /// Events that are gone or changed by a deed which the trail itself tells of, as an erasure is.
    pub accounted: u64,
    /// Seals that the broker knows; none if it was not asked.
    pub anchored: Option<u64>,
    /// Rows that no seal covers yet.
    pub unsealed: u64,
    /// The first of each seal, in order; at most 100.
    pub findings: Vec<Finding>,
}

/// Reads the whole trail and proves it: with the keys that may have signed, and, unless the broker is left out, with what it
/// was told. Reads one seal and its rows at a time, and changes nothing.
///
/// # Errors
/// [`AuditError`] if the database or the broker cannot be read. What is wrong with the trail is no error: see
/// [`Report::findings`].
pub async fn verify(
    connection: &mut AsyncPgConnection,
    anchors: Option<&Anchors>,
    keys: &[PublicKey],
) -> Result<Report, AuditError> {
    // First, so that a seal made meanwhile is one that the broker need not know.
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
        if report.findings.len() < MOST_FINDINGS {
            report.findings.extend(found);
        }
        (number, previous) = (statement.number, statement.hash());
        after = (statement.through_transaction, statement.through_id);
        sealed_before = Some(statement.sealed_at);
    }
    if let Some(last) =
        known.and_then(|known| known.keys().next_back().copied()).filter(|last| *last > number)
    {
        let problem = format!("the last seals are missing: the broker was told of {last}");
        report.findings.push(Finding::seal(number + 1, problem));
    }
    report.unsealed = count_after(connection, after).await?;
    Ok(report)
}

/// What is wrong with a seal by itself and in the chain.
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
            format!("it is signed with the key {key_name}, which is not given"),
        ));
    };
    let hash = statement.hash();
    if !key.verifies(&hash, signature) {
        return Some(Finding::seal(
            number,
            format!("its signature is not one of the key {key_name} over it"),
        ));
    }
    if statement.previous != *previous {
        return Some(Finding::seal(number, "it does not follow the seal before it"));
    }
    if tree::root(leaves.iter().map(|leaf| tree::leaf_hash(&leaf.to_bytes()))) != statement.root {
        return Some(Finding::seal(number, "its list of rows is not the one that was signed"));
    }
    match known.map(|known| known.get(&number)) {
        Some(Some(told)) if *told != hash => {
            Some(Finding::seal(number, "the broker was told of another seal with this number"))
        }
        Some(Some(_) | None) | None => None,
    }
}

/// The first row under a seal that is not as it was sealed.
async fn check_rows(
    connection: &mut AsyncPgConnection,
    seal: &Seal,
    after: Place,
    sealed_before: Option<DateTime<Utc>>,
    accounted: &mut u64,
) -> Result<Option<Finding>, Fault> {
    let statement = &seal.statement;
    let through = (statement.through_transaction, statement.through_id);
    // One more than there may be under a seal is one that was added.
    let rows = leaf::read(connection, after, through, MOST_LEAVES + 1).await?;
    if rows.iter().map(|row| &row.leaf).eq(seal.leaves.iter()) {
        return Ok(misdated(seal, &rows, sealed_before));
    }
    let excused = excused(connection, seal, &rows).await?;
    Ok(first_difference(statement.number, &seal.leaves, &rows, &excused, accounted))
}

/// How far the time that a row tells may lie outside of the time between its seal and the one before. A transaction that was
/// open for longer when it was sealed is worth a look.
const TOLERANCE: TimeDelta = TimeDelta::days(1);

/// The first row that was sealed as new and tells another time: it was written in to look old, or its server's clock was
/// wrong.
fn misdated(seal: &Seal, rows: &[Placed], sealed_before: Option<DateTime<Utc>>) -> Option<Finding> {
    let earliest = sealed_before.map(|time| (time - TOLERANCE).timestamp_micros());
    let latest = (seal.statement.sealed_at + TOLERANCE).timestamp_micros();
    let wrong = |row: &Placed| earliest.is_some_and(|earliest| row.at < earliest) || row.at > latest;
    let place = rows.iter().position(wrong)?;
    let problem = "it tells a time far outside of that in which it was sealed";
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
                let problem = "it was added among sealed rows, dated back";
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
    Some(Finding::row(number, None, added, "it was added among sealed rows, dated back"))
}

/// The events under a seal that differ, and of which the trail itself says that they were changed or deleted: by a row of
/// `audit_log`, which is sealed like every other.
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

/// The first seal with a number above this one.
async fn read_seal(connection: &mut AsyncPgConnection, above: i64) -> Result<Option<Seal>, Fault> {
    let row = seals::table
        .filter(seals::number.gt(above))
        .order(seals::number)
        .select(SealRow::as_select())
        .first(connection)
        .await
        .optional()?;
    Ok(row.map(|row| {
        // A list that is none has no leaf, and so not the root that was signed.
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
