//! What a verification found.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use uuid::Uuid;

use crate::difference::{Difference, Differing};
use crate::excuse::Excuse;
use crate::leaf::Source;

/// The maximum number of seals whose first finding is named.
const MAX_SEALS_NAMED: usize = 100;

/// How many findings are named at most if a seal has more than one; and as many added rows. All of them are counted.
const MAX_NAMED: usize = 20;

/// A difference between the trail and its seals, or a reason not to believe what the database shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The number of the seal; none for what concerns the database or a row that belongs to no seal.
    pub seal: Option<i64>,
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
    /// Of the database as a whole.
    pub(crate) fn database(problem: impl Into<String>) -> Self {
        let problem = problem.into();
        Self {
            seal: None,
            leaf: None,
            table: None,
            row: None,
            user: None,
            difference: None,
            excuse: None,
            problem,
        }
    }

    pub(crate) fn seal(seal: i64, problem: impl Into<String>) -> Self {
        Self { seal: Some(seal), ..Self::database(problem) }
    }

    pub(crate) fn row(seal: i64, differing: Differing, user: Option<i32>, excuse: Option<Excuse>) -> Self {
        let Differing { difference, place, leaf } = differing;
        Self {
            leaf: place.and_then(|place| u32::try_from(place).ok()),
            table: Some(leaf.source.table()),
            row: Some(leaf.id),
            user,
            difference: Some(difference),
            excuse,
            ..Self::seal(seal, difference.problem(leaf.source))
        }
    }

    /// Whether it is about the trail, its seals or the database, and not about an event or a subject, which erasures and retention remove.
    pub(crate) fn is_of_trail(&self) -> bool {
        ![Source::Events, Source::Subjects].map(Source::table).iter().any(|table| self.table == Some(*table))
    }

    /// Of a row that no seal can cover.
    pub(crate) fn without_place(source: Source, row: Option<Uuid>) -> Self {
        let problem = "its transaction_id or its id is NULL, so that no seal covers it: it was added by hand";
        Self {
            table: Some(source.table()),
            row,
            difference: Some(Difference::Added),
            ..Self::database(problem)
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.seal, self.table) {
            (Some(seal), _) => write!(f, "seal {seal}")?,
            (None, Some(_)) => write!(f, "no seal")?,
            (None, None) => write!(f, "the database")?,
        }
        if let Some(leaf) = self.leaf {
            write!(f, ", leaf {leaf}")?;
        }
        match (self.table, self.row) {
            (Some(table), Some(row)) => write!(f, ", row {row} of {table}")?,
            (Some(table), None) => write!(f, ", a row of {table}")?,
            (None, _) => {}
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

/// What an erasure excuses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ErasedRows {
    /// How many rows.
    pub rows: u64,
    /// Whether it has no receipt yet.
    pub is_under_way: bool,
}

/// The result of a verification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The number of seals.
    pub seals: u64,
    /// The number of rows that they cover.
    pub rows: u64,
    /// Rows that are missing and whose removal is excused with proof: they were retired (docs/adr/0055) or erased (docs/adr/0057).
    pub accounted: u64,
    /// Rows whose content was changed after they were sealed.
    pub edited: u64,
    /// Rows that are missing from their place.
    pub missing: u64,
    /// The erasures that excuse missing rows.
    pub erasures: BTreeMap<Uuid, ErasedRows>,
    /// How many of the edited and missing rows are events that the trail has a row about, subjects whose user it saw
    /// removed, or of an erasure without a receipt.
    pub excused_without_proof: u64,
    /// Rows that were added among sealed ones, or that no seal can cover.
    pub added: u64,
    /// Sealed rows with an impossible timestamp.
    pub misdated: u64,
    /// The number of seals with a finding.
    pub broken_seals: u64,
    /// The number of anchored seals; none if the anchors were not checked.
    pub anchored: Option<u64>,
    /// Rows that are not sealed yet.
    pub unsealed: u64,
    /// What is wrong with the database as a whole; the first finding of each seal, at most 100, and further ones until 20
    /// added rows and 20 others are named; in order. Empty if nothing is wrong.
    pub findings: Vec<Finding>,
    /// How many of the further ones that are named were added.
    #[serde(skip)]
    added_named: usize,
    #[serde(skip)]
    others_named: usize,
    /// How many findings are about the trail, its seals or the database, and not about events or subjects.
    #[serde(skip)]
    pub(crate) of_trail: u64,
}

impl Report {
    /// Notes the findings of one seal. What is excused with proof is counted, and is none.
    pub(crate) fn note(&mut self, findings: impl IntoIterator<Item = Finding>) {
        let (accounted, findings): (Vec<_>, Vec<_>) =
            findings.into_iter().partition(|finding| finding.excuse.as_ref().is_some_and(Excuse::is_proof));
        self.accounted += u64::try_from(accounted.len()).unwrap_or(u64::MAX);
        for finding in accounted {
            if let Some(Excuse::Erased { erasure, is_under_way }) = finding.excuse {
                let erased = self.erasures.entry(erasure).or_default();
                erased.rows += 1;
                erased.is_under_way |= is_under_way;
            }
        }
        for (number, finding) in findings.into_iter().enumerate() {
            self.broken_seals += u64::from(number == 0);
            self.count(&finding);
            let named = match finding.difference {
                Some(Difference::Added) => &mut self.added_named,
                Some(Difference::Edited | Difference::Missing | Difference::Misdated) | None => {
                    &mut self.others_named
                }
            };
            let is_named = *named < MAX_NAMED || (number == 0 && self.findings.len() < MAX_SEALS_NAMED);
            if is_named {
                *named += 1;
                self.findings.push(finding);
            }
        }
    }

    /// Notes what concerns no seal. Whoever calls it does so a few hundred times at most.
    pub(crate) fn note_outside(&mut self, finding: Finding) {
        self.count(&finding);
        self.findings.push(finding);
    }

    fn count(&mut self, finding: &Finding) {
        self.of_trail += u64::from(finding.is_of_trail());
        match finding.difference {
            Some(Difference::Edited) => self.edited += 1,
            Some(Difference::Missing) => self.missing += 1,
            Some(Difference::Added) => self.added += 1,
            Some(Difference::Misdated) => self.misdated += 1,
            None => {}
        }
        match finding.excuse {
            Some(Excuse::WithoutProof(_) | Excuse::WithoutReceipt { .. }) => self.excused_without_proof += 1,
            Some(Excuse::Erased { .. } | Excuse::Absent) | None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leaf::Leaf;

    fn differing(seal: i64, difference: Difference) -> Finding {
        let leaf = Leaf { source: Source::Events, id: Uuid::nil(), digest: [1; 32] };
        Finding::row(seal, Differing { difference, place: Some(0), leaf }, None, Some(Excuse::Absent))
    }

    fn edited(seal: i64) -> Finding {
        differing(seal, Difference::Edited)
    }

    #[test]
    fn all_findings_are_counted_and_twenty_or_one_of_each_seal_named() {
        let mut report = Report::default();
        report.note((0..1_000).map(|_| edited(1)));
        assert_eq!((report.edited, report.findings.len(), report.broken_seals), (1_000, MAX_NAMED, 1));
        for seal in 2..=200 {
            report.note([edited(seal), edited(seal)]);
        }
        assert_eq!(
            (report.edited, report.findings.len(), report.broken_seals),
            (1_398, MAX_SEALS_NAMED, 200)
        );
        assert_eq!(report.findings.last().and_then(|finding| finding.seal), Some(81));
        report.note([]);
        assert_eq!((report.broken_seals, report.excused_without_proof, report.accounted), (200, 0, 0));
    }

    #[test]
    fn what_is_excused_with_proof_is_no_finding() {
        let mut report = Report::default();
        let erased = Excuse::Erased { erasure: Uuid::nil(), is_under_way: false };
        let missing = Finding { excuse: Some(erased), ..differing(1, Difference::Missing) };
        report.note([missing.clone(), missing.clone()]);
        assert_eq!((report.accounted, report.missing, report.broken_seals), (2, 0, 0));
        assert_eq!((report.findings.len(), report.of_trail), (0, 0));
        report.note([missing, differing(2, Difference::Missing)]);
        assert_eq!((report.accounted, report.missing, report.broken_seals), (3, 1, 1));
        let named = ErasedRows { rows: 3, is_under_way: false };
        assert_eq!(report.erasures, BTreeMap::from([(Uuid::nil(), named)]));
    }

    #[test]
    fn added_rows_take_no_name_from_edited_ones() {
        let mut report = Report::default();
        report.note((0..50).map(|_| differing(1, Difference::Added)).chain([edited(1)]));
        assert_eq!((report.added, report.edited, report.findings.len()), (50, 1, MAX_NAMED + 1));
        assert_eq!(report.findings.last(), Some(&edited(1)));
    }
}
