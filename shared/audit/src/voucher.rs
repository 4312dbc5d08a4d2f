//! What vouches for the statements of an erasure: its receipt, which says how many there are and which.
//!
//! A statement is signed while rows are deleted, by a process that does what a row of the database asks of it. Whoever may write that row could
//! have chosen rows removed, one by one, and take the row away again. Only an erasure that came to its end has a receipt, and its person is
//! gone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};
use diesel_async::AsyncPgConnection;
use futures::future::BoxFuture;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::AuditError;
use crate::digest::Digest;
use crate::erasure::{ErasureStatement, statements_of};
use crate::excuse::Excuse;

/// For how long an erasure may be under way: the month in which it must be done, and a day.
const UNDER_WAY_FOR: TimeDelta = TimeDelta::days(32);

/// What vouches for the statements of an erasure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Voucher {
    /// Its receipt, which a key of receipts signed.
    Receipt {
        /// The number of statements.
        statements: u64,
        /// The SHA-256 of their roots, in the order of their numbers.
        roots: Digest,
    },
    /// It is under way: the database has its request, and its person is fenced or has a tombstone.
    UnderWay,
}

/// Knows receipts.
pub trait Vouch: fmt::Debug + Sync {
    /// What vouches for these erasures. One that nothing vouches for is left out.
    fn vouch<'a>(
        &'a self,
        connection: &'a mut AsyncPgConnection,
        erasures: &'a [Uuid],
    ) -> BoxFuture<'a, Result<HashMap<Uuid, Voucher>, AuditError>>;
}

/// The SHA-256 of the roots of statements, as receipts have it.
pub fn hash_of_roots<'a>(roots: impl IntoIterator<Item = &'a Digest>) -> Digest {
    let hash = roots.into_iter().fold(Sha256::new(), Sha256::chain_update);
    hash.finalize().into()
}

/// The genuine statements of an erasure.
#[derive(Debug)]
struct Stated {
    roots: Vec<Digest>,
    since: DateTime<Utc>,
}

impl Stated {
    fn is_believed(&self, voucher: Option<&Voucher>, now: DateTime<Utc>) -> bool {
        match voucher {
            Some(Voucher::Receipt { statements, roots }) => {
                u64::try_from(self.roots.len()).is_ok_and(|count| count == *statements)
                    && hash_of_roots(&self.roots) == *roots
            }
            Some(Voucher::UnderWay) => now - self.since <= UNDER_WAY_FOR,
            None => false,
        }
    }

    /// The same statements, and those that came since.
    async fn again(
        &self,
        connection: &mut AsyncPgConnection,
        erasure: Uuid,
    ) -> Result<Option<Self>, AuditError> {
        let statements = statements_of(connection, erasure).await?;
        let roots: Vec<Digest> = statements.iter().map(|one| one.root).collect();
        let has_all = self.roots.iter().all(|root| roots.contains(root));
        Ok(has_all.then_some(Self { roots, since: self.since }))
    }
}

/// The erasures with statements, and which of them are believed.
#[derive(Debug, Default)]
pub(crate) struct Vouched {
    stated: BTreeMap<Uuid, Stated>,
    under_way: BTreeSet<Uuid>,
    unproven: BTreeSet<Uuid>,
}

impl Vouched {
    /// Adds a genuine statement; they come in the order of their numbers.
    pub(crate) fn add(&mut self, statement: &ErasureStatement) {
        let new = Stated { roots: Vec::new(), since: statement.stated_at };
        let stated = self.stated.entry(statement.erasure).or_insert(new);
        stated.roots.push(statement.root);
        stated.since = stated.since.min(statement.stated_at);
    }

    /// Looks for what vouches for the erasures. To be called when all statements are added: one that completes meanwhile has more of them.
    pub(crate) async fn judge(
        &mut self,
        connection: &mut AsyncPgConnection,
        by: Option<&dyn Vouch>,
        now: DateTime<Utc>,
    ) -> Result<(), AuditError> {
        let erasures: Vec<Uuid> = self.stated.keys().copied().collect();
        let vouchers = match by {
            Some(by) if !erasures.is_empty() => by.vouch(connection, &erasures).await?,
            Some(_) | None => HashMap::new(),
        };
        for (erasure, stated) in &self.stated {
            let voucher = vouchers.get(erasure);
            if voucher == Some(&Voucher::UnderWay) {
                self.under_way.insert(*erasure);
            }
            let mut is_believed = stated.is_believed(voucher, now);
            if !is_believed && voucher.is_some() {
                let again = stated.again(connection, *erasure).await?;
                is_believed = again.is_some_and(|again| again.is_believed(voucher, now));
            }
            if !is_believed {
                self.unproven.insert(*erasure);
            }
        }
        Ok(())
    }

    /// What speaks for a row that an erasure has stated.
    pub(crate) fn excuse(&self, erasure: Uuid) -> Excuse {
        match self.unproven.contains(&erasure) {
            true => Excuse::WithoutReceipt { erasure },
            false => Excuse::Erased { erasure, is_under_way: self.under_way.contains(&erasure) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_erasure_is_believed_only_as_its_voucher_says() {
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut vouched = Vouched::default();
        vouched.under_way.insert(one);
        vouched.unproven.insert(other);
        assert_eq!(vouched.excuse(one), Excuse::Erased { erasure: one, is_under_way: true });
        assert_eq!(vouched.excuse(other), Excuse::WithoutReceipt { erasure: other });
        assert!(vouched.excuse(one).is_proof() && !vouched.excuse(other).is_proof());
    }

    #[test]
    fn a_receipt_vouches_for_all_its_statements_in_their_order_and_for_no_other() {
        let now = DateTime::<Utc>::UNIX_EPOCH;
        let of = |roots: &[Digest]| Stated { roots: roots.to_vec(), since: now };
        let (one, two, three) = ([1; 32], [2; 32], [3; 32]);
        let receipt = Voucher::Receipt { statements: 2, roots: hash_of_roots(&[one, two]) };
        assert!(of(&[one, two]).is_believed(Some(&receipt), now));
        for others in [&[two, one][..], &[one], &[one, three], &[one, two, three]] {
            assert!(!of(others).is_believed(Some(&receipt), now), "{others:?}");
        }
        assert!(!of(&[one, two]).is_believed(None, now));
    }

    #[test]
    fn an_erasure_is_under_way_for_a_month() {
        let since = DateTime::<Utc>::UNIX_EPOCH;
        let stated = Stated { roots: vec![[1; 32]], since };
        for (days, expected) in [(0, true), (32, true), (33, false)] {
            let now = since + TimeDelta::days(days);
            assert_eq!(stated.is_believed(Some(&Voucher::UnderWay), now), expected, "{days}");
        }
    }
}
