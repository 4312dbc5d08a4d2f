//! The comparison of a seal with the rows that are there now.

use std::collections::HashSet;

use serde::Serialize;
use uuid::Uuid;

use crate::leaf::{Leaf, Source};
use crate::row::Placed;

/// How a row differs from its seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// The row is there and its content is another one.
    Edited,
    /// The row is not in its place: removed, or moved to another.
    Missing,
    /// The row was not sealed, and stands among rows that were.
    Added,
    /// The row is as it was sealed, and tells a time at which it cannot have been written.
    Misdated,
}

impl Difference {
    /// What is wrong with the row.
    pub(crate) fn problem(self, source: Source) -> &'static str {
        match self {
            Self::Edited if source == Source::Subjects => {
                "the user or the key of this token was changed after it was sealed"
            }
            Self::Missing if source == Source::Subjects => {
                "the user of this token was removed, or given another one, without proof of an erasure after it was sealed"
            }
            Self::Edited => "it was changed after it was sealed",
            Self::Missing => "it is missing from its place: removed or moved after it was sealed",
            Self::Added => "it was added among sealed rows with an earlier position",
            Self::Misdated => "its timestamp is more than a day away from the time in which it was sealed",
        }
    }
}

/// A row that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Differing {
    pub(crate) difference: Difference,
    /// The index in the seal; none for a row after the last sealed one.
    pub(crate) place: Option<usize>,
    /// The sealed row; for one that was added, the row itself.
    pub(crate) leaf: Leaf,
}

/// The rows of one seal as they are now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Present<'a> {
    /// In their order.
    pub(crate) rows: &'a [Placed],
    /// Whether there are more of them than were read. The seal is then judged as far as they reach.
    pub(crate) is_cut: bool,
}

/// All differences, in the order of the seal. `is_misdated` says it of a row that is as it was sealed.
pub(crate) fn differences(
    sealed: &[Leaf],
    present: Present<'_>,
    is_misdated: impl Fn(&Placed) -> bool,
) -> Vec<Differing> {
    let key = |leaf: &Leaf| (leaf.source, leaf.id);
    // The sealed rows that are still to come, and those that were named as missing and may turn up elsewhere.
    let mut ahead: HashSet<(Source, Uuid)> = sealed.iter().map(key).collect();
    let mut moved = HashSet::new();
    let mut found = Vec::new();
    let mut rows = present.rows.iter().peekable();
    for (place, leaf) in sealed.iter().enumerate() {
        let differs = |difference, leaf: &Leaf| Differing { difference, place: Some(place), leaf: *leaf };
        while let Some(row) =
            rows.next_if(|row| key(&row.leaf) != key(leaf) && !ahead.contains(&key(&row.leaf)))
        {
            if !moved.remove(&key(&row.leaf)) {
                found.push(differs(Difference::Added, &row.leaf));
            }
        }
        ahead.remove(&key(leaf));
        match rows.next_if(|row| key(&row.leaf) == key(leaf)) {
            Some(row) if row.leaf != *leaf => found.push(differs(Difference::Edited, leaf)),
            Some(row) if is_misdated(row) => found.push(differs(Difference::Misdated, leaf)),
            Some(_) => {}
            // What follows was not read.
            None if present.is_cut && rows.peek().is_none() => return found,
            None => {
                moved.insert(key(leaf));
                found.push(differs(Difference::Missing, leaf));
            }
        }
    }
    let added = rows.filter(|row| !moved.remove(&key(&row.leaf)));
    found.extend(added.map(|row| Differing { difference: Difference::Added, place: None, leaf: row.leaf }));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(number: u128) -> Leaf {
        Leaf { source: Source::AuditLog, id: Uuid::from_u128(number), digest: [1; 32] }
    }

    fn edited(number: u128) -> Leaf {
        Leaf { digest: [2; 32], ..leaf(number) }
    }

    fn all(numbers: &[u128]) -> Vec<Leaf> {
        numbers.iter().copied().map(leaf).collect()
    }

    /// The class, place and number of each difference. The row 7 is misdated.
    fn told(sealed: &[u128], rows: &[Leaf], is_cut: bool) -> Vec<(Difference, Option<usize>, u128)> {
        let rows: Vec<Placed> =
            rows.iter().map(|leaf| Placed { place: (1, leaf.id), at: 0, leaf: *leaf }).collect();
        let is_misdated = |row: &Placed| row.leaf.id == Uuid::from_u128(7);
        differences(&all(sealed), Present { rows: &rows, is_cut }, is_misdated)
            .into_iter()
            .map(|one| (one.difference, one.place, one.leaf.id.as_u128()))
            .collect()
    }

    #[test]
    fn every_difference_is_told_with_its_class_and_place() {
        use Difference::{Added, Edited, Misdated, Missing};
        for (sealed, rows, expected) in [
            ([1, 2, 3].as_slice(), all(&[1, 2, 3]), vec![]),
            (&[1, 2, 3], all(&[1, 3]), vec![(Missing, Some(1), 2)]),
            (&[1, 2, 3], all(&[1, 2]), vec![(Missing, Some(2), 3)]),
            (&[1, 2], vec![], vec![(Missing, Some(0), 1), (Missing, Some(1), 2)]),
            (&[1, 2, 3], all(&[2, 1, 3]), vec![(Missing, Some(0), 1)]),
            (&[1, 2, 3], all(&[2, 3, 1]), vec![(Missing, Some(0), 1)]),
            (&[1, 2, 3], all(&[1, 9, 2, 8, 3]), vec![(Added, Some(1), 9), (Added, Some(2), 8)]),
            // Two rows of one id.
            (&[1, 2, 3], all(&[1, 1, 2, 3]), vec![(Added, Some(1), 1)]),
            (&[1, 1, 2], all(&[1, 1, 2]), vec![]),
            (&[1, 2, 3], all(&[1, 2, 3, 9, 8]), vec![(Added, None, 9), (Added, None, 8)]),
            (
                &[1, 2, 3],
                vec![edited(1), leaf(2), edited(3)],
                vec![(Edited, Some(0), 1), (Edited, Some(2), 3)],
            ),
            (
                &[1, 2, 3, 7],
                vec![leaf(9), edited(2), leaf(7)],
                vec![
                    (Added, Some(0), 9),
                    (Missing, Some(0), 1),
                    (Edited, Some(1), 2),
                    (Missing, Some(2), 3),
                    (Misdated, Some(3), 7),
                ],
            ),
        ] {
            assert_eq!(told(sealed, &rows, false), expected, "{sealed:?} {rows:?}");
        }
    }

    #[test]
    fn what_lies_beyond_the_rows_that_were_read_is_not_called_missing() {
        let rows = all(&[1, 8, 9]);
        let added = [(Difference::Added, Some(1), 8), (Difference::Added, Some(1), 9)];
        assert_eq!(told(&[1, 2], &rows, true), added);
        assert_eq!(told(&[1, 2], &rows, false)[2], (Difference::Missing, Some(1), 2));
    }
}
