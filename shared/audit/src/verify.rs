//! Verification: recomputes every digest, root, chain link and signature, and reports what differs from the seals.

use std::collections::{BTreeSet, HashMap};
use std::mem;

use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection as _};
use store::schema::{seals, subjects};
use store::{Fault, FaultKind};
use uuid::Uuid;

use crate::AuditError;
use crate::anchor::{Anchors, Known};
use crate::chain::{self, Header, LastBefore};
use crate::difference::{Comparison, Difference, Differing, Found, key};
use crate::digest::Digest;
use crate::erasure::Erased;
use crate::excuse::{self, Excuse};
use crate::finding::{Finding, Report};
use crate::form::{self, Form};
use crate::holder;
use crate::leaf::{Leaf, Source};
use crate::outside;
use crate::record::Types;
use crate::retirement::{self, Retired};
use crate::row::{self, Place, Placed, Start};
use crate::seal::{Seal, Statement};
use crate::sealer::MAX_LEAVES;
use crate::tree;
use crate::voucher::Vouch;
use trust::PublicKey;

/// The public keys whose signatures are believed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Accepted<'a> {
    /// Of seals and retirements.
    pub seals: &'a [PublicKey],
    /// Of statements of erasures. Without them, what was erased is reported as missing.
    pub receipts: &'a [PublicKey],
    /// Who knows the receipts of erasures. Without one, no statement is believed.
    pub erasures: Option<&'a dyn Vouch>,
}

impl<'a> Accepted<'a> {
    /// The keys of a trail from which nothing was erased.
    pub const fn of_seals(seals: &'a [PublicKey]) -> Self {
        Self { seals, receipts: &[], erasures: None }
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
    keys: Accepted<'_>,
) -> Result<Report, AuditError> {
    let (report, _) = verify_trail(connection, anchors, keys, &mut []).await?;
    Ok(report)
}

/// The same. `lasts` see all seals as it reads them. Also returns what was stated of retired rows and is confirmed: nothing if the trail
/// cannot be read to its end.
pub(crate) async fn verify_trail(
    connection: &mut AsyncPgConnection,
    anchors: Option<&Anchors>,
    keys: Accepted<'_>,
    lasts: &mut [LastBefore],
) -> Result<(Report, Retired), AuditError> {
    row::as_stored(connection).await?;
    connection.batch_execute(LOCK_TIMEOUT).await.map_err(Fault::from)?;
    match verify_all(connection, anchors, keys, lasts).await {
        Err(AuditError::Database(fault))
            if fault.kind == FaultKind::Blocked && !fault.is_statement_timeout() =>
        {
            Err(AuditError::Blocked { holders: holder::of_tables(connection).await? })
        }
        result => result,
    }
}

/// How long a statement waits for a table that somebody has locked.
const LOCK_TIMEOUT: &str = "SET lock_timeout = '10s'";

/// There is no transaction around it, and no lock is held between the statements: a verification may last for hours, and what waits for a
/// lock of a table keeps its writers waiting. A superuser swaps tables without any lock, by UPDATE of the catalogs. What was another table
/// for a while only is known by the transaction that changed it.
async fn verify_all(
    connection: &mut AsyncPgConnection,
    anchors: Option<&Anchors>,
    keys: Accepted<'_>,
    lasts: &mut [LastBefore],
) -> Result<(Report, Retired), AuditError> {
    let mut report = Report::default();
    let before = form::look(connection).await?;
    note_form(&mut report, &before, &Form::default());
    let retired = match verify_seals(connection, anchors, keys, &mut report, lasts).await {
        // Such as a table without one of its columns, or a value that none of its rows has unless somebody wrote it.
        Err(AuditError::Database(fault))
            if !report.findings.is_empty() || fault.kind == FaultKind::Permanent =>
        {
            // No seal has confirmed what these rows were excused by.
            report.missing += mem::take(&mut report.accounted);
            report.note_outside(Finding::database(format!("the rest cannot be read: {fault}")));
            return Ok((report, Retired::default()));
        }
        result => result?,
    };
    // What is another thing since the reading began was it at one of the two looks, or was changed twice.
    note_form(&mut report, &form::look(connection).await?, &before);
    Ok((report, retired))
}

/// Notes what a look at the catalogs shows and an earlier one did not.
fn note_form(report: &mut Report, form: &Form, earlier: &Form) {
    let known: BTreeSet<&String> = earlier.faults.iter().collect();
    let new = form.faults.iter().filter(|fault| !known.contains(fault));
    for fault in new {
        let problem = format!("{fault}: the database does not show what it stores");
        report.note_outside(Finding::database(problem));
    }
    for change in form.changed_since(earlier) {
        report.note_outside(Finding::database(change));
    }
}

async fn verify_seals(
    connection: &mut AsyncPgConnection,
    anchors: Option<&Anchors>,
    keys: Accepted<'_>,
    report: &mut Report,
    lasts: &mut [LastBefore],
) -> Result<Retired, AuditError> {
    let started = Utc::now();
    // Read first, because a seal that is written meanwhile need not be anchored.
    let known = match anchors {
        Some(anchors) => Some(anchors.read().await?),
        None => None,
    };
    report.anchored = known.as_ref().map(|known| known.hashes.len() as u64);
    let types = form::types(connection).await?;
    let (mut retired, faults) = retirement::read(connection, keys.seals, known.as_ref()).await?;
    faults.into_iter().for_each(|fault| report.note_outside(fault));
    let (erased, faults) = Erased::read(connection, keys).await?;
    faults.into_iter().for_each(|fault| report.note_outside(fault));
    // None behind a missing seal, whose hash and last row nobody knows.
    let mut previous: Option<Digest> = Some([0; 32]);
    let (mut start, mut sealed_before) = (Start::Beginning, None);
    // Whether a seal was passed over, so that its rows are read with those of the next one.
    let (mut number, mut is_passed) = (0, false);
    let mut end = End::new(anchors, known.as_ref());
    while let Some(seal) = read_seal(connection, number).await? {
        let statement = &seal.statement;
        if end.lies_before(statement.number).await? {
            let more = chain::count_from(connection, statement.number).await?;
            report.note([beyond(statement.number, more)]);
            break;
        }
        if statement.number <= number {
            report
                .note([Finding::seal(number, "the database returns seals in another order than asked for")]);
            break;
        }
        report.seals += 1;
        report.rows += seal.leaves.len() as u64;
        if statement.number != number + 1 {
            report.note([Finding::seal(number + 1, missing(number + 1, statement.number - 1))]);
            previous = None;
        }
        let judgement = judge(&seal, previous.as_ref(), keys.seals, known.as_ref(), started);
        let fault = judgement.fault.map(|fault| Finding::seal(statement.number, fault));
        let seals_precede = previous.is_none() || is_passed;
        let rows = Rows { start, sealed_before, seals_precede, proven: judgement.proven };
        let through = (statement.through_transaction, statement.through_id);
        is_passed = !start.is_before(through);
        if is_passed {
            report.note(fault.into_iter().chain([passed(statement.number)]));
        } else {
            let gone = Gone { retired: &retired, erased: &erased };
            let checked = check_rows(connection, &types, &seal, rows, gone).await?;
            report.note(fault.into_iter().chain(checked.findings));
            report.added += checked.more_added;
            report.accounted += checked.accounted;
            start = Start::After(through);
        }
        retired.confirm(statement);
        lasts.iter_mut().for_each(|last| last.see(statement));
        (number, previous) = (statement.number, Some(statement.hash()));
        sealed_before = Some(statement.sealed_at);
    }
    report.note(known.as_ref().and_then(|known| cut_off(known, number)));
    for finding in retired.unconfirmed() {
        report.missing += mem::take(&mut report.accounted);
        report.note_outside(finding);
    }
    outside::note(connection, start, report).await?;
    Ok(retired)
}

/// The last seal that the sealer can have written: it writes none before the previous one is anchored. Without anchors, nobody knows.
struct End<'a> {
    anchors: Option<&'a Anchors>,
    last: Option<i64>,
}

impl<'a> End<'a> {
    fn new(anchors: Option<&'a Anchors>, known: Option<&Known>) -> Self {
        Self { anchors, last: known.and_then(Known::last).map(|last| last.saturating_add(1)) }
    }

    /// Whether no sealer can have written this seal. Seals that are written while the trail is read have anchors by then.
    async fn lies_before(&mut self, number: i64) -> Result<bool, AuditError> {
        let (Some(anchors), Some(last)) = (self.anchors, self.last) else { return Ok(false) };
        if number > last {
            let now = anchors.last().await?.map_or(last, |(last, _)| last.saturating_add(1));
            self.last = Some(now.max(last));
        }
        Ok(self.last.is_some_and(|last| number > last))
    }
}

/// What is said of a seal behind the last one that the sealer can have written. `more` are that seal and those behind it.
fn beyond(seal: i64, more: i64) -> Finding {
    let problem = format!(
        "this seal and those behind it, {more} of them, were not written by the sealer: NATS has no anchor of them nor of the one before \
         them. They are not read"
    );
    Finding::seal(seal, problem)
}

/// What is said of a seal whose rows would be read a second time.
fn passed(seal: i64) -> Finding {
    Finding::seal(seal, "it ends where the seals before it end, or earlier: its rows are not compared")
}

/// What is said if the last seal is not the last one that was anchored.
fn cut_off(known: &Known, number: i64) -> Option<Finding> {
    let last = known.last().filter(|last| *last > number)?;
    let problem = format!("the last seals are missing: NATS has anchors up to seal {last}");
    Some(Finding::seal(number.saturating_add(1), problem))
}

fn missing(first: i64, last: i64) -> String {
    if first == last {
        format!("seal {first} is missing")
    } else {
        format!("seals {first} to {last} are missing")
    }
}

/// What is to be believed of a seal.
struct Judgement {
    /// The first problem of the seal itself or of its place in the chain.
    fault: Option<String>,
    /// Whether its list of rows is the one that was sealed: by its signature, or by the anchor of the whole seal.
    proven: bool,
}

fn judge(
    seal: &Seal,
    previous: Option<&Digest>,
    keys: &[PublicKey],
    known: Option<&Known>,
    now: DateTime<Utc>,
) -> Judgement {
    let Seal { statement, leaves, key_name, signature } = seal;
    let hash = statement.hash();
    let is_signed = match keys.iter().find(|key| key.name() == key_name) {
        None => {
            Err(format!("it is signed with the key {key_name}, which is not among the given public keys"))
        }
        Some(key) if !key.verifies(&hash, signature) => {
            Err(format!("its signature is not a valid signature of the key {key_name}"))
        }
        Some(_) => Ok(()),
    };
    let is_listed = tree::root(leaves.iter().map(|leaf| tree::leaf_hash(&leaf.to_bytes()))) == statement.root;
    let is_anchored = known.is_some_and(|known| known.hashes.get(&statement.number) == Some(&hash));
    let proven = is_listed && (is_signed.is_ok() || is_anchored);
    let fault = if let Err(fault) = is_signed {
        Some(fault)
    } else if previous.is_some_and(|previous| statement.previous != *previous) {
        Some("it does not contain the hash of the previous seal".to_owned())
    } else if !is_listed {
        Some("its list of rows is not the signed one".to_owned())
    } else {
        known.and_then(|known| known.fault(statement, now))
    };
    Judgement { fault, proven }
}

/// Which rows belong to a seal, and how far it is believed.
#[derive(Clone, Copy)]
struct Rows {
    start: Start,
    sealed_before: Option<DateTime<Utc>>,
    /// Whether seals before it are missing, so that their rows are among those that are read for it.
    seals_precede: bool,
    /// See [`Judgement::proven`].
    proven: bool,
}

/// How many rows are read at a time: one more than a seal covers, as such a row was added later.
const PAGE: usize = MAX_LEAVES + 1;

/// The rows of a seal.
struct Checked {
    /// All that differ from it.
    findings: Vec<Finding>,
    /// How many further rows were added.
    more_added: u64,
    /// How many are missing because they were retired.
    accounted: u64,
}

/// What is stated of rows that are gone.
#[derive(Clone, Copy)]
struct Gone<'a> {
    retired: &'a Retired,
    erased: &'a Erased<'a>,
}

async fn check_rows(
    connection: &mut AsyncPgConnection,
    types: &Types,
    seal: &Seal,
    rows: Rows,
    gone: Gone<'_>,
) -> Result<Checked, Fault> {
    let Found { mut list, mut more_added, elsewhere } = compare(connection, types, seal, rows).await?;
    if rows.seals_precede {
        list.retain(|one| one.difference != Difference::Added);
        more_added = 0;
    }
    let differing = list.len();
    // Of a list of rows that nothing proves, nobody knows what was removed. A row that only left its place was not.
    let is_gone = |one: &Differing| {
        one.difference == Difference::Missing && rows.proven && !elsewhere.contains(&key(&one.leaf))
    };
    list.retain(|one| !is_gone(one) || !gone.retired.covers(one.leaf.source, seal.statement.number));
    let accounted = u64::try_from(differing - list.len()).unwrap_or(0);
    let missing: Vec<Leaf> = list.iter().filter(|one| is_gone(one)).map(|one| one.leaf).collect();
    let erased = gone.erased.covering(connection, &missing).await?;
    let erasure = |leaf: &Leaf| erased.get(&key(leaf)).map(|erasure| gone.erased.excuse(*erasure));
    let ids = |kind: Excusable| -> Vec<Uuid> {
        let of_kind = list.iter().filter(|one| excusable(one) == Some(kind) && erasure(&one.leaf).is_none());
        of_kind.map(|one| one.leaf.id).collect()
    };
    let mut excuses = excuse::changes_of_events(connection, ids(Excusable::Event)).await?;
    excuses.extend(excuse::removals_of_users(connection, ids(Excusable::Subject)).await?);
    let users = users_of(connection, &list).await?;
    let finding = |one: Differing| {
        let id = one.leaf.id;
        let without_proof =
            excusable(&one).map(|_| excuses.remove(&id).map_or(Excuse::Absent, Excuse::WithoutProof));
        let excuse = erasure(&one.leaf).or(without_proof);
        let mut finding = Finding::row(seal.statement.number, one, users.get(&id).copied(), excuse);
        if !rows.proven {
            finding.problem.push_str(" (by a list of rows that nothing proves)");
        }
        finding
    };
    Ok(Checked { findings: list.into_iter().map(finding).collect(), more_added, accounted })
}

async fn compare(
    connection: &mut AsyncPgConnection,
    types: &Types,
    seal: &Seal,
    rows: Rows,
) -> Result<Found, Fault> {
    let statement = &seal.statement;
    let through = (statement.through_transaction, statement.through_id);
    let mut comparison = Comparison::new(&seal.leaves);
    let mut start = rows.start;
    loop {
        let page = row::read(connection, types, start, through, PAGE).await?;
        let next = if page.len() < PAGE { None } else { last_place(&page) };
        let whole = next.map_or(page.len(), |next| page.partition_point(|row| row.place <= next));
        let part = page.get(..whole).unwrap_or(&page);
        comparison.feed(part, |row| is_misdated(row, statement, rows.sealed_before));
        match next {
            Some(place) => start = Start::After(place),
            None => return Ok(comparison.finish()),
        }
    }
}

/// The last place of which all rows are on this page: more rows of the very last place may follow. If the whole page is of
/// one place, the rest of it is passed over: there is no such place unless somebody made it, and thousands of its rows are
/// told as added.
fn last_place(page: &[Placed]) -> Option<Place> {
    let last = page.last()?.place;
    let before = page.partition_point(|row| row.place < last);
    Some(before.checked_sub(1).and_then(|place| page.get(place)).map_or(last, |row| row.place))
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
const TOLERANCE_MICROS: i64 = 24 * 60 * 60 * 1_000_000;

/// Whether the timestamp of a row does not fit the time of its seal: it was inserted with a false timestamp, or the clock
/// of its server was wrong.
///
/// A subject is judged by nothing that its time says, and those from before subjects were sealed are older than their seal.
fn is_misdated(row: &Placed, statement: &Statement, sealed_before: Option<DateTime<Utc>>) -> bool {
    if row.leaf.source == Source::Subjects {
        return false;
    }
    let earliest = sealed_before.map(|time| time.timestamp_micros().saturating_sub(TOLERANCE_MICROS));
    let latest = statement.sealed_at.timestamp_micros().saturating_add(TOLERANCE_MICROS);
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
