//! Events and subjects that were erased. Whoever erases has the receipt key, and states which leaves may be missing, in the transaction
//! that removes their rows (docs/adr/0057).
//!
//! A statement lists leaves as a seal does, with their digests. An event that was edited before it was erased, or that was given to the
//! person so that it would be erased, has another digest than its seal, and stays a finding.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, SubsecRound, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Binary, Integer, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use futures::TryStreamExt as _;
use sha2::{Digest as _, Sha256};
use store::Fault;
use store::builtin::{self, Named};
use trust::{PrivateKey, PublicKey};
use uuid::Uuid;

use crate::AuditError;
use crate::difference::key;
use crate::digest::Digest;
use crate::excuse::Excuse;
use crate::finding::Finding;
use crate::form;
use crate::leaf::{LEAF_BYTES, Leaf, Source};
use crate::refused::Refused;
use crate::row;
use crate::time::Time;
use crate::tree;
use crate::verify::Accepted;
use crate::voucher::Vouched;

/// The prefix of the hashed bytes, for domain separation from other messages that the key may sign.
const CONTEXT: &[u8] = b"memfleet erasure statement v1\n";

/// The most leaves of a statement.
pub const MAX_STATED: usize = 10_000;

/// The advisory lock of the numbers of statements: "memstate" in ASCII.
const NUMBERS: i64 = 0x6d65_6d73_7461_7465;

/// The table of statements.
pub(crate) const TABLE: &str = "audit.erasures";

/// What is stated: these leaves may be missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErasureStatement {
    /// Its number, from 1.
    pub number: i64,
    /// The erasure, which is the request.
    pub erasure: Uuid,
    /// How many leaves.
    pub count: u32,
    /// The root of their Merkle tree, in the order of their ids.
    pub root: Digest,
    /// When, in whole microseconds.
    pub stated_at: DateTime<Utc>,
}

impl ErasureStatement {
    fn new(number: i64, erasure: Uuid, leaves: &[Leaf], stated_at: DateTime<Utc>) -> Self {
        let count = u32::try_from(leaves.len()).unwrap_or(u32::MAX);
        Self { number, erasure, count, root: root_of(leaves), stated_at }
    }

    /// The hash that is signed: SHA-256 of all fields in order, with numbers as eight bytes big-endian and the time in microseconds since
    /// 1970.
    pub fn hash(&self) -> Digest {
        Sha256::new()
            .chain_update(CONTEXT)
            .chain_update(self.number.to_be_bytes())
            .chain_update(self.erasure.as_bytes())
            .chain_update(i64::from(self.count).to_be_bytes())
            .chain_update(self.root)
            .chain_update(self.stated_at.timestamp_micros().to_be_bytes())
            .finalize()
            .into()
    }
}

fn root_of(leaves: &[Leaf]) -> Digest {
    tree::root(leaves.iter().map(|leaf| tree::leaf_hash(&leaf.to_bytes())))
}

/// The leaves of events of a user, as their rows are now, at most `most` of them in any order. None if there are no events any more.
/// To be called in the transaction that states and removes them, whose further statements name tables with their schema.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn leaves_of_events(
    connection: &mut AsyncPgConnection,
    user: i32,
    most: usize,
) -> Result<Vec<Leaf>, Fault> {
    row::as_stored_locally(connection).await?;
    let types = form::types(connection).await?;
    row::of_user(connection, &types, Source::Events, user, most.min(MAX_STATED)).await
}

/// The leaf of a user's subject; none if there is no subject. To be called in the transaction that removes it, as [`leaves_of_events`].
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn subject_leaf(connection: &mut AsyncPgConnection, user: i32) -> Result<Option<Leaf>, Fault> {
    row::as_stored_locally(connection).await?;
    let types = form::types(connection).await?;
    Ok(row::of_user(connection, &types, Source::Subjects, user, 1).await?.into_iter().next())
}

/// States that these leaves may be missing. To be called in the transaction that removes their rows.
///
/// # Errors
/// A [`Fault`] of the database: also if there are no leaves, more than [`MAX_STATED`], or leaves of tables of which nothing is erased.
pub async fn state_erasure(
    connection: &mut AsyncPgConnection,
    key: &PrivateKey,
    erasure: Uuid,
    leaves: &[Leaf],
) -> Result<ErasureStatement, Fault> {
    #[derive(QueryableByName)]
    struct Next {
        #[diesel(sql_type = BigInt)]
        number: i64,
    }
    // Erasures state at once. Whoever comes second waits until the first one has its number for good.
    const LOCK: &str = "SELECT pg_catalog.pg_advisory_xact_lock($1)";
    const NEXT: &str = "SELECT coalesce(max(number), 0) + 1 AS number FROM audit.erasures";
    const STATE: &str = "
        INSERT INTO audit.erasures (number, erasure, leaves, root, stated_at, key_name, signature)
        VALUES ($1, $2, $3, $4, $5, $6, $7)";
    let mut leaves = leaves.to_vec();
    leaves.sort_by_key(|leaf| leaf.id);
    if leaves.is_empty() {
        return Err(refused("it has no leaves"));
    }
    if let Some(problem) = fault_of_leaves(&leaves) {
        return Err(refused(&problem));
    }
    diesel::sql_query(LOCK).bind::<BigInt, _>(NUMBERS).execute(connection).await?;
    let next: Vec<Next> = diesel::sql_query(NEXT).load(connection).await?;
    let number = next.as_slice().first().map_or(1, |next| next.number);
    // PostgreSQL stores microseconds, and the signed time must equal the stored one.
    let statement = ErasureStatement::new(number, erasure, &leaves, Utc::now().trunc_subsecs(6));
    diesel::sql_query(STATE)
        .bind::<BigInt, _>(statement.number)
        .bind::<SqlUuid, _>(erasure)
        .bind::<Binary, _>(leaves.iter().flat_map(Leaf::to_bytes).collect::<Vec<u8>>())
        .bind::<Binary, _>(statement.root.to_vec())
        .bind::<Timestamptz, _>(statement.stated_at)
        .bind::<Text, _>(key.name())
        .bind::<Binary, _>(key.sign(&statement.hash()).to_vec())
        .execute(connection)
        .await?;
    Ok(statement)
}

fn refused(problem: &str) -> Fault {
    Fault {
        kind: store::FaultKind::Permanent,
        reason: format!("the statement of an erasure is refused: {problem}"),
    }
}

/// What speaks against a list of leaves.
fn fault_of_leaves(leaves: &[Leaf]) -> Option<String> {
    if leaves.len() > MAX_STATED {
        return Some(format!("it has {} leaves; {MAX_STATED} are the most", leaves.len()));
    }
    let is_erasable = |source: Source| match source {
        Source::Events | Source::Subjects => true,
        Source::AuditLog | Source::Violations | Source::DataAccess => false,
    };
    let other = leaves.iter().find(|leaf| !is_erasable(leaf.source))?;
    Some(format!("it names rows of {}, which no erasure removes", other.source.table()))
}

/// The statements of an erasure, in their order.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn statements_of(
    connection: &mut AsyncPgConnection,
    erasure: Uuid,
) -> Result<Vec<ErasureStatement>, Fault> {
    const OF: &str = "SELECT e.number FROM audit.erasures e WHERE e.erasure = $1 ORDER BY e.number";
    #[derive(QueryableByName)]
    struct Number {
        #[diesel(sql_type = BigInt)]
        number: i64,
    }
    let numbers: Vec<Number> = diesel::sql_query(OF).bind::<SqlUuid, _>(erasure).load(connection).await?;
    let mut found = Vec::with_capacity(numbers.len());
    for Number { number } in numbers {
        found.extend(by_number(connection, number).await?.map(|row| row.statement()));
    }
    Ok(found)
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = BigInt)]
    number: i64,
    #[diesel(sql_type = SqlUuid)]
    erasure: Uuid,
    #[diesel(sql_type = Binary)]
    leaves: Vec<u8>,
    #[diesel(sql_type = Binary)]
    root: Vec<u8>,
    #[diesel(sql_type = Timestamptz, deserialize_as = Time)]
    stated_at: DateTime<Utc>,
    #[diesel(sql_type = Text)]
    key_name: String,
    #[diesel(sql_type = Binary)]
    signature: Vec<u8>,
}

impl Row {
    fn statement(&self) -> ErasureStatement {
        let count = self.leaves.len() / LEAF_BYTES;
        ErasureStatement {
            number: self.number,
            erasure: self.erasure,
            count: u32::try_from(count).unwrap_or(u32::MAX),
            root: self.root.clone().try_into().unwrap_or([0; 32]),
            stated_at: self.stated_at,
        }
    }

    /// Its leaves, or what speaks against believing them.
    fn judge(&self, keys: &[PublicKey]) -> Result<Vec<Leaf>, String> {
        let statement = self.statement();
        let key = keys.iter().find(|key| key.name() == self.key_name).ok_or_else(|| {
            format!(
                "it is signed with the key {}, which is not among the given public keys of receipts",
                self.key_name
            )
        })?;
        if !key.verifies(&statement.hash(), &self.signature.clone().try_into().unwrap_or([0; 64])) {
            return Err(format!("its signature is not a valid signature of the key {}", self.key_name));
        }
        let leaves = Leaf::read_all(&self.leaves).ok_or("its list of rows is malformed")?;
        if root_of(&leaves) != statement.root {
            return Err("its list of rows is not the signed one".to_owned());
        }
        match fault_of_leaves(&leaves) {
            Some(problem) => Err(problem),
            None => Ok(leaves),
        }
    }
}

/// A row.
const ROW: &str =
    "SELECT e.number, e.erasure, e.leaves, e.root, e.stated_at, e.key_name::pg_catalog.text AS key_name, e.signature
    FROM audit.erasures e";

/// The statement of a number. Each has up to half a megabyte.
async fn by_number(connection: &mut AsyncPgConnection, number: i64) -> Result<Option<Row>, Fault> {
    let query = format!("{ROW} WHERE e.number OPERATOR(pg_catalog.=) $1 LIMIT 1");
    let rows: Vec<Row> = diesel::sql_query(query).bind::<BigInt, _>(number).load(connection).await?;
    Ok(rows.into_iter().next())
}

/// A statement that is believed: its number and the range of the ids of its leaves.
#[derive(Clone, Copy, Debug)]
struct Genuine {
    number: i64,
    first: Uuid,
    last: Uuid,
}

/// The most leaves that are held in memory, some 50 MB. The statements of further ones are read for each seal again.
const MAX_HELD: usize = 500_000;

/// What the statements excuse. Nothing limits how many somebody adds; those that were not signed are read once.
#[derive(Debug, Default)]
pub(crate) struct Erased<'a> {
    keys: &'a [PublicKey],
    /// Leaves, each with its erasure.
    held: HashMap<Leaf, Uuid>,
    /// The statements of the other leaves.
    further: Vec<Genuine>,
    vouched: Vouched,
}

impl<'a> Erased<'a> {
    /// Looks through all statements, one at a time. Those that are not to be believed are findings, and excuse nothing: 20 are named.
    pub(crate) async fn read(
        connection: &mut AsyncPgConnection,
        accepted: Accepted<'a>,
    ) -> Result<(Self, Vec<Finding>), AuditError> {
        let keys = accepted.receipts;
        let mut erased = Self { keys, ..Self::default() };
        let (mut refused, mut number) = (Refused::new("statements of erasures"), i64::MIN);
        // The trail may be of an earlier version.
        if builtin::id_of(connection, Named::Relation, TABLE).await?.is_none() {
            return Ok((erased, Vec::new()));
        }
        let query = format!("{ROW} ORDER BY e.number");
        let mut rows = diesel::sql_query(query).load_stream::<Row>(connection).await.map_err(Fault::from)?;
        while let Some(row) = rows.try_next().await.map_err(Fault::from)? {
            let name = format!("statement {} of an erasure", row.number);
            match row.judge(keys) {
                // A copy is a second row of its number: the signature holds the number.
                Ok(_) if row.number <= number => refused.note(&name, "it is there twice"),
                Ok(leaves) => {
                    erased.vouched.add(&row.statement());
                    erased.hold(&row, leaves);
                    number = row.number;
                }
                Err(problem) => refused.note(&name, &problem),
            }
        }
        drop(rows);
        erased.vouched.judge(connection, accepted.erasures, Utc::now()).await?;
        Ok((erased, refused.findings()))
    }

    fn hold(&mut self, row: &Row, leaves: Vec<Leaf>) {
        if self.held.len() + leaves.len() <= MAX_HELD {
            self.held.extend(leaves.into_iter().map(|leaf| (leaf, row.erasure)));
        } else {
            self.further.extend(Genuine::of(row.number, &leaves));
        }
    }

    /// What speaks for a row that this erasure has stated.
    pub(crate) fn excuse(&self, erasure: Uuid) -> Excuse {
        self.vouched.excuse(erasure)
    }

    /// Those of these leaves that a statement has, each with the erasure. Of a leaf with another digest, nothing is stated.
    pub(crate) async fn covering(
        &self,
        connection: &mut AsyncPgConnection,
        leaves: &[Leaf],
    ) -> Result<HashMap<(Source, Uuid), Uuid>, Fault> {
        let mut found = HashMap::new();
        let mut wanted: HashSet<Leaf> = leaves.iter().copied().collect();
        wanted.retain(|leaf| {
            let erasure = self.held.get(leaf);
            found.extend(erasure.map(|erasure| (key(leaf), *erasure)));
            erasure.is_none()
        });
        let ids = || wanted.iter().map(|leaf| leaf.id);
        let (Some(first), Some(last)) = (ids().min(), ids().max()) else { return Ok(found) };
        let may_have = |one: &&Genuine| one.first <= last && one.last >= first;
        for Genuine { number, .. } in self.further.iter().filter(may_have) {
            // It is judged again: the database may show another one now.
            let Some(row) = by_number(connection, *number).await? else { continue };
            let stated = row.judge(self.keys).unwrap_or_default();
            found.extend(
                stated.iter().filter(|leaf| wanted.remove(*leaf)).map(|leaf| (key(leaf), row.erasure)),
            );
            if wanted.is_empty() {
                break;
            }
        }
        Ok(found)
    }
}

impl Genuine {
    /// None without leaves.
    fn of(number: i64, leaves: &[Leaf]) -> Option<Self> {
        let ids = || leaves.iter().map(|leaf| leaf.id);
        Some(Self { number, first: ids().min()?, last: ids().max()? })
    }
}

/// Writes the row of the trail that tells of an erasure, which commits the next seal to the digest of the receipt's body. Returns its id.
/// To be called before the subject is removed: the row is under its token.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn record_erasure(
    connection: &mut AsyncPgConnection,
    erasure: Uuid,
    user: i32,
    body: &Digest,
) -> Result<Uuid, Fault> {
    #[derive(QueryableByName)]
    struct Id {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
    }
    const RECORD: &str = "
        INSERT INTO audit.audit_log (subject_token, role_name, request_id, table_name, row_id, operation, row_digest_after)
        SELECT (SELECT s.token FROM audit.subjects s WHERE s.user_id = $1), session_user, $2, 'erasures', $2, 'INSERT', $3
        RETURNING id";
    let ids: Vec<Id> = diesel::sql_query(RECORD)
        .bind::<Integer, _>(user)
        .bind::<SqlUuid, _>(erasure)
        .bind::<Binary, _>(body.to_vec())
        .load(connection)
        .await?;
    ids.as_slice()
        .first()
        .map(|row| row.id)
        .ok_or_else(|| refused("the trail took no row, and gave no error"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn key() -> PrivateKey {
        PrivateKey::parse(&format!("receipts private {}", "07".repeat(32))).unwrap()
    }

    fn leaves(sources: &[Source]) -> Vec<Leaf> {
        let leaf = |(number, source): (u128, &Source)| Leaf {
            source: *source,
            id: Uuid::from_u128(number),
            digest: [source.code(); 32],
        };
        (1..).zip(sources).map(leaf).collect()
    }

    fn row(leaves: &[Leaf]) -> Row {
        let at = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let statement = ErasureStatement::new(3, Uuid::from_u128(9), leaves, at);
        Row {
            number: statement.number,
            erasure: statement.erasure,
            leaves: leaves.iter().flat_map(Leaf::to_bytes).collect(),
            root: statement.root.to_vec(),
            stated_at: at,
            key_name: key().name().to_owned(),
            signature: key().sign(&statement.hash()).to_vec(),
        }
    }

    fn refusal(row: &Row, keys: &[PublicKey]) -> String {
        row.judge(keys).unwrap_err()
    }

    #[test]
    fn a_statement_of_events_and_a_subject_is_believed() {
        let stated = leaves(&[Source::Events, Source::Subjects]);
        assert_eq!(row(&stated).judge(&[key().public()]), Ok(stated));
    }

    #[test]
    fn a_statement_of_rows_of_the_trail_excuses_nothing() {
        for source in [Source::AuditLog, Source::Violations, Source::DataAccess] {
            let problem = refusal(&row(&leaves(&[Source::Events, source])), &[key().public()]);
            assert!(problem.contains(source.table()), "{problem}");
        }
    }

    #[test]
    fn another_key_list_or_field_is_noticed() {
        let (of, keys) = (leaves(&[Source::Events, Source::Events]), [key().public()]);
        assert!(refusal(&row(&of), &[]).contains("not among the given public keys"));
        let other = PrivateKey::parse(&format!("receipts private {}", "08".repeat(32))).unwrap().public();
        assert!(refusal(&row(&of), &[other]).contains("not a valid signature"));
        let mut list = row(&of);
        list.leaves[20] ^= 1;
        assert_eq!(refusal(&list, &keys), "its list of rows is not the signed one");
        let mut short = row(&of);
        short.leaves.truncate(49);
        assert!(refusal(&short, &keys).contains("not a valid signature"));
        for (change, name) in [
            ((|row: &mut Row| row.number = 4) as fn(&mut Row), "number"),
            (|row| row.erasure = Uuid::nil(), "erasure"),
            (|row| row.root = vec![0; 32], "root"),
            (|row| row.stated_at += chrono::TimeDelta::microseconds(1), "time"),
            (|row| row.signature = vec![0; 64], "signature"),
        ] {
            let mut changed = row(&of);
            change(&mut changed);
            assert!(refusal(&changed, &keys).contains("not a valid signature"), "{name}");
        }
    }

    #[test]
    fn too_long_a_statement_is_refused() {
        let one = leaves(&[Source::Events]);
        let many: Vec<Leaf> = one.iter().copied().cycle().take(MAX_STATED + 1).collect();
        assert!(fault_of_leaves(&many).is_some() && fault_of_leaves(&many[1..]).is_none());
    }
}
