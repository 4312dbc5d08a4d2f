//! Rows whose retention is over. Whoever removes them has the seal key, and states it: verification then knows that they may be gone,
//! and believes nobody else who removed rows (docs/adr/0055).

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Binary, Integer, SmallInt, Text, Timestamptz};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use futures::TryStreamExt as _;
use sha2::{Digest as _, Sha256};
use store::Fault;
use store::builtin::{self, Named};
use trust::PublicKey;

use crate::anchor::Known;
use crate::chain;
use crate::digest::Digest;
use crate::finding::Finding;
use crate::leaf::Source;
use crate::refused::Refused;
use crate::seal::Statement;
use crate::time::Time;

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
pub(crate) struct Retirement {
    pub(crate) number: i64,
    pub(crate) source: Source,
    pub(crate) through_seal: i64,
    pub(crate) seal_hash: Digest,
    pub(crate) keep_days: i32,
    pub(crate) retired_at: DateTime<Utc>,
}

impl Retirement {
    pub(crate) fn hash(&self) -> Digest {
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
    fn fault(&self, seal: Option<&Statement>, known: Option<&Known>) -> Option<String> {
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
        let anchor = known.and_then(|known| known.hashes.get(&self.through_seal));
        if anchor.is_some_and(|anchor| *anchor != self.seal_hash) {
            return Some(format!("NATS has an anchor of another seal {}", self.through_seal));
        }
        let age = self.retired_at - seal.sealed_at;
        (age < TimeDelta::days(i64::from(self.keep_days)))
            .then(|| format!("seal {} was younger than {} days then", seal.number, self.keep_days))
    }
}

/// How far the rows of each table may be gone.
#[derive(Debug, Default)]
pub(crate) struct Retired {
    /// Those whose seals verification has not come to.
    believed: Vec<Retirement>,
    /// Those of seals that it has read.
    confirmed: Vec<Retirement>,
}

impl Retired {
    pub(crate) fn covers(&self, source: Source, seal: i64) -> bool {
        self.believed.iter().any(|one| one.source == source && seal <= one.through_seal)
    }

    /// To be called with each seal that verification has read, after its rows. The database may have shown another one when the
    /// statements were read.
    pub(crate) fn confirm(&mut self, seal: &Statement) {
        let is_of_seal = |one: &Retirement| one.through_seal == seal.number && one.seal_hash == seal.hash();
        let (confirmed, believed): (Vec<_>, Vec<_>) = self.believed.drain(..).partition(is_of_seal);
        self.believed = believed;
        self.confirmed.extend(confirmed);
    }

    /// What is to be said of those that no seal has confirmed. Rows were excused by them.
    pub(crate) fn unconfirmed(&self) -> impl Iterator<Item = Finding> {
        self.believed.iter().map(|one| {
            Finding::database(format!(
                "retirement {} excuses nothing: the database showed another seal {} when its rows were read",
                one.number, one.through_seal
            ))
        })
    }

    /// The last seal of which something is stated, of those that were confirmed.
    pub(crate) fn through(&self, source: Source) -> i64 {
        let of_source = self.confirmed.iter().filter(|one| one.source == source);
        of_source.map(|one| one.through_seal).max().unwrap_or(0)
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
    #[diesel(sql_type = Timestamptz, deserialize_as = Time)]
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

/// What was stated and is believed, until [`Retired::confirm`], and findings about what is not and excuses nothing: 20 are named.
pub(crate) async fn read(
    connection: &mut AsyncPgConnection,
    keys: &[PublicKey],
    known: Option<&Known>,
) -> Result<(Retired, Vec<Finding>), Fault> {
    let (mut retired, mut refused) = (Retired::default(), Refused::new("retirements"));
    for retirement in genuine(connection, keys, &mut refused).await? {
        let seal = chain::by_number(connection, retirement.through_seal).await?;
        match retirement.fault(seal.as_ref(), known) {
            None => retired.believed.push(retirement),
            Some(problem) => refused.note(&name(retirement.number), &problem),
        }
    }
    Ok((retired, refused.findings()))
}

fn name(number: i64) -> String {
    format!("retirement {number}")
}

/// Those that are signed, once each, in the order of their numbers.
async fn genuine(
    connection: &mut AsyncPgConnection,
    keys: &[PublicKey],
    refused: &mut Refused,
) -> Result<Vec<Retirement>, Fault> {
    const TABLE: &str = "audit.retirements";
    const READ: &str = "
        SELECT r.number, r.source, r.through_seal, r.seal_hash, r.keep_days, r.retired_at, r.key_name::pg_catalog.text AS key_name,
            r.signature FROM audit.retirements r ORDER BY r.number";
    let mut genuine: Vec<Retirement> = Vec::new();
    // The trail may be of an earlier version.
    if builtin::id_of(connection, Named::Relation, TABLE).await?.is_none() {
        return Ok(genuine);
    }
    let mut rows = diesel::sql_query(READ).load_stream::<Row>(connection).await?;
    while let Some(row) = rows.try_next().await? {
        match row.judge(keys) {
            // A copy is a second row of its number: the signature holds the number.
            Ok(one) if genuine.last().is_some_and(|last| last.number >= one.number) => {
                refused.note(&name(one.number), "it is there twice");
            }
            Ok(one) => genuine.push(one),
            Err(problem) => refused.note(&name(row.number), &problem),
        }
    }
    Ok(genuine)
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
        assert_eq!(retirement(&seal, 400).fault(Some(&seal), None), None);
        assert!(retirement(&seal, 399).fault(Some(&seal), None).is_some());
        assert!(retirement(&seal, 400).fault(Some(&other), None).is_some());
        assert!(retirement(&seal, 400).fault(None, None).is_some());
        let retired = Retired { believed: vec![retirement(&seal, 400)], confirmed: Vec::new() };
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
            assert_eq!(of(least).fault(Some(&seal), None), None, "{source:?}");
            let fault = of(least - 1).fault(Some(&seal), None).unwrap_or_default();
            assert!(fault.ends_with(&format!("{least} are the least")), "{source:?}: {fault}");
        }
    }

    #[test]
    fn a_seal_with_another_anchor_retires_nothing() {
        let at = DateTime::from_timestamp(1_800_000_000, 0).unwrap_or_default();
        let seal = Statement::new(3, [0; 32], (7, Uuid::nil()), &[], at);
        let mut known = Known::default();
        assert_eq!(
            retirement(&seal, 400).fault(Some(&seal), Some(&known)),
            None,
            "anchors are not kept for ever"
        );
        known.hashes.insert(3, seal.hash());
        assert_eq!(retirement(&seal, 400).fault(Some(&seal), Some(&known)), None);
        known.hashes.insert(3, [9; 32]);
        let fault = retirement(&seal, 400).fault(Some(&seal), Some(&known));
        assert_eq!(fault.as_deref(), Some("NATS has an anchor of another seal 3"));
    }

    #[test]
    fn a_statement_is_confirmed_by_the_seal_that_verification_reads() {
        let at = DateTime::from_timestamp(1_800_000_000, 0).unwrap_or_default();
        let seal = |number: i64, days: i64| {
            Statement::new(number, [0; 32], (7, Uuid::nil()), &[], at - TimeDelta::days(days))
        };
        let mut retired = Retired { believed: vec![retirement(&seal(2, 400), 0)], ..Retired::default() };
        // When the statement was read, the seal was 400 days old.
        for other in [seal(1, 400), seal(2, 0), seal(3, 400)] {
            retired.confirm(&other);
            assert!(retired.covers(Source::AuditLog, 2) && retired.through(Source::AuditLog) == 0);
            assert_eq!(retired.unconfirmed().count(), 1, "{other:?}");
        }
        retired.confirm(&seal(2, 400));
        assert_eq!((retired.unconfirmed().count(), retired.through(Source::AuditLog)), (0, 2));
        assert_eq!(retired.through(Source::Events), 0);
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
