//! Verification: recomputes every digest, root, chain link and signature, and reports what differs from the seals.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde::Serialize;
use store::Fault;
use store::schema::{seals, subjects};
use uuid::Uuid;

use crate::AuditError;
use crate::anchor::Anchors;
use crate::difference::{Difference, Differing, Present, differences};
use crate::digest::Digest;
use crate::excuse::{self, Excuse};
use crate::leaf::{Leaf, Source};
use crate::row::{self, Place, Placed};
use crate::seal::{Seal, Statement};
use crate::sealer::{BEGINNING, Header, MAX_LEAVES};
use crate::tree;
use trust::PublicKey;

/// The maximum number of seals whose first finding is named.
const MAX_SEALS_NAMED: usize = 100;

/// How many findings are named at most if a seal has more than one. All of them are counted.
const MAX_NAMED: usize = 20;

/// A difference between the trail and its seals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The number of the seal.
    pub seal: i64,
    /// The index of the row in the seal, from 0; none for a row that was not sealed.
    pub leaf: Option<u32>,
    /// The table of the row.
    pub table: Option<&'static str>,
    /// The id of the row; of a subject, the token in the trail.
    pub row: Option<Uuid>,
    /// The user whom a token stands for now; none if nobody has it, and for other rows.
    pub user: Option<i32>,
    /// How the row differs; none if the seal itself is wrong.
    pub difference: Option<Difference>,
    /// What speaks for an edited or missing event, or a missing subject; none for anything else.
    pub excuse: Option<Excuse>,
    /// What is wrong.
    pub problem: String,
}

impl Finding {
    fn seal(seal: i64, problem: impl Into<String>) -> Self {
        let problem = problem.into();
        Self { seal, leaf: None, table: None, row: None, user: None, difference: None, excuse: None, problem }
    }

    fn row(seal: i64, differing: Differing, user: Option<i32>, excuse: Option<Excuse>) -> Self {
        let Differing { difference, place, leaf } = differing;
        Self {
            seal,
            leaf: place.and_then(|place| u32::try_from(place).ok()),
            table: Some(leaf.source.table()),
            row: Some(leaf.id),
            user,
            difference: Some(difference),
            excuse,
            problem: difference.problem(leaf.source).to_owned(),
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
        if let Some(user) = self.user {
            write!(f, ", now of user {user}")?;
        }
        write!(f, ": {}", self.problem)?;
        match &self.excuse {
            Some(excuse) => write!(f, "; {excuse}"),
            None => Ok(()),
        }
    }
}

/// The result of a verification. It counts the differences of all seals that are genuine themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The number of seals.
    pub seals: u64,
    /// The number of rows that they cover.
    pub rows: u64,
    /// Events whose change or removal is excused with proof. There is no proof of anything yet, so there are none.
    pub accounted: u64,
    /// Rows whose content was changed after they were sealed.
    pub edited: u64,
    /// Rows that are missing from their place.
    pub missing: u64,
    /// How many of the edited and missing rows are events that the trail has a row about, or subjects whose user it saw
    /// removed.
    pub excused_without_proof: u64,
    /// Rows that were added among sealed ones.
    pub added: u64,
    /// Sealed rows with an impossible timestamp.
    pub misdated: u64,
    /// The number of seals with a finding.
    pub broken_seals: u64,
    /// The number of anchored seals; none if the anchors were not checked.
    pub anchored: Option<u64>,
    /// Rows that are not sealed yet.
    pub unsealed: u64,
    /// The first finding of each seal, at most 100, and further ones until 20 are named; in order.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Notes the findings of one seal.
    fn note(&mut self, findings: impl IntoIterator<Item = Finding>) {
        for (number, finding) in findings.into_iter().enumerate() {
            let limit = if number == 0 { MAX_SEALS_NAMED } else { MAX_NAMED };
            self.broken_seals += u64::from(number == 0);
            self.count(&finding);
            if self.findings.len() < limit {
                self.findings.push(finding);
            }
        }
    }

    fn count(&mut self, finding: &Finding) {
        match finding.difference {
            Some(Difference::Edited) => self.edited += 1,
            Some(Difference::Missing) => self.missing += 1,
            Some(Difference::Added) => self.added += 1,
            Some(Difference::Misdated) => self.misdated += 1,
            None => {}
        }
        match finding.excuse {
            Some(Excuse::WithoutProof(_)) => self.excused_without_proof += 1,
            Some(Excuse::Absent) | None => {}
        }
    }
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
    row::as_stored(connection).await?;
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
        match check_seal(&seal, number + 1, &previous, keys, known.as_ref()) {
            Some(finding) => report.note([finding]),
            None => report.note(check_rows(connection, &seal, after, sealed_before).await?),
        }
        (number, previous) = (statement.number, statement.hash());
        after = (statement.through_transaction, statement.through_id);
        sealed_before = Some(statement.sealed_at);
    }
    if let Some(last) =
        known.and_then(|known| known.keys().next_back().copied()).filter(|last| *last > number)
    {
        let problem = format!("the last seals are missing: NATS has anchors up to seal {last}");
        report.note([Finding::seal(number + 1, problem)]);
    }
    report.unsealed = row::count_after(connection, after).await?;
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

/// All rows of a seal that differ from it.
async fn check_rows(
    connection: &mut AsyncPgConnection,
    seal: &Seal,
    after: Place,
    sealed_before: Option<DateTime<Utc>>,
) -> Result<Vec<Finding>, Fault> {
    let statement = &seal.statement;
    let through = (statement.through_transaction, statement.through_id);
    // One more than a seal may cover: such a row was added later.
    let rows = row::read(connection, after, through, MAX_LEAVES + 1).await?;
    let present = Present { rows: &rows, is_cut: rows.len() > MAX_LEAVES };
    let found = differences(&seal.leaves, present, |row| is_misdated(row, statement, sealed_before));
    let ids = |kind: Excusable| -> Vec<Uuid> {
        found.iter().filter(|one| excusable(one) == Some(kind)).map(|one| one.leaf.id).collect()
    };
    let mut excuses = excuse::changes_of_events(connection, ids(Excusable::Event)).await?;
    excuses.extend(excuse::removals_of_users(connection, ids(Excusable::Subject)).await?);
    let users = users_of(connection, &found).await?;
    let finding = |one: Differing| {
        let id = one.leaf.id;
        let excuse =
            excusable(&one).map(|_| excuses.remove(&id).map_or(Excuse::Absent, Excuse::WithoutProof));
        Finding::row(statement.number, one, users.get(&id).copied(), excuse)
    };
    Ok(found.into_iter().map(finding).collect())
}

/// What was changed or removed and may be excused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Excusable {
    Event,
    Subject,
}

/// Whether something may speak for a difference: for an event that was changed or removed, and for a subject that was
/// removed, as an erasure does. Nothing speaks for a change of the trail itself or of a subject, and nothing can for a row
/// that was never sealed.
fn excusable(differing: &Differing) -> Option<Excusable> {
    match (differing.leaf.source, differing.difference) {
        (Source::Events, Difference::Edited | Difference::Missing) => Some(Excusable::Event),
        (Source::Subjects, Difference::Missing) => Some(Excusable::Subject),
        (Source::Events, Difference::Added | Difference::Misdated)
        | (Source::Subjects, Difference::Edited | Difference::Added | Difference::Misdated)
        | (
            Source::AuditLog | Source::Violations | Source::DataAccess,
            Difference::Edited | Difference::Missing | Difference::Added | Difference::Misdated,
        ) => None,
    }
}

/// The users whom the tokens of these differences stand for now.
async fn users_of(
    connection: &mut AsyncPgConnection,
    found: &[Differing],
) -> Result<HashMap<Uuid, i32>, Fault> {
    let tokens: Vec<Uuid> =
        found.iter().filter(|one| one.leaf.source == Source::Subjects).map(|one| one.leaf.id).collect();
    if tokens.is_empty() {
        return Ok(HashMap::new());
    }
    let query = subjects::table.filter(subjects::token.eq_any(tokens));
    Ok(query.select((subjects::token, subjects::user_id)).load(connection).await?.into_iter().collect())
}

/// How far the timestamp of a row may lie outside of the time between the previous seal and its own. A transaction that
/// was open for longer is reported too.
const TOLERANCE: TimeDelta = TimeDelta::days(1);

/// Whether the timestamp of a row does not fit the time of its seal: it was inserted with a false timestamp, or the clock
/// of its server was wrong.
///
/// A subject is judged by nothing that its time says, and those from before subjects were sealed are older than their seal.
fn is_misdated(row: &Placed, statement: &Statement, sealed_before: Option<DateTime<Utc>>) -> bool {
    if row.leaf.source == Source::Subjects {
        return false;
    }
    let earliest = sealed_before.map(|time| (time - TOLERANCE).timestamp_micros());
    let latest = (statement.sealed_at + TOLERANCE).timestamp_micros();
    earliest.is_some_and(|earliest| row.at < earliest) || row.at > latest
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

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(seal: i64, excuse: Excuse) -> Finding {
        let leaf = Leaf { source: Source::Events, id: Uuid::nil(), digest: [1; 32] };
        Finding::row(
            seal,
            Differing { difference: Difference::Edited, place: Some(0), leaf },
            None,
            Some(excuse),
        )
    }

    #[test]
    fn all_findings_are_counted_and_twenty_or_one_of_each_seal_named() {
        let mut report = Report::default();
        report.note((0..1_000).map(|_| edited(1, Excuse::Absent)));
        assert_eq!((report.edited, report.findings.len(), report.broken_seals), (1_000, MAX_NAMED, 1));
        for seal in 2..=200 {
            report.note([edited(seal, Excuse::Absent), edited(seal, Excuse::Absent)]);
        }
        assert_eq!(
            (report.edited, report.findings.len(), report.broken_seals),
            (1_398, MAX_SEALS_NAMED, 200)
        );
        assert_eq!(report.findings.last().map(|finding| finding.seal), Some(81));
        report.note([]);
        assert_eq!((report.broken_seals, report.excused_without_proof, report.accounted), (200, 0, 0));
    }
}
