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

/// The differences of one seal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// In the order of the seal. There are at most as many as the seal has rows, and [`MAX_ADDED`].
    pub(crate) list: Vec<Differing>,
    /// How many further rows were added.
    pub(crate) more_added: u64,
    /// Rows that are missing from their place and stand behind it, whatever their content is now.
    pub(crate) elsewhere: HashSet<(Source, Uuid)>,
}

/// How many added rows of a seal are kept; the others are counted. Nothing limits how many somebody adds.
const MAX_ADDED: usize = 100;

impl Found {
    fn push(&mut self, difference: Difference, place: Option<usize>, leaf: Leaf) {
        self.list.push(Differing { difference, place, leaf });
    }
}

/// Compares a seal with the rows that are there now, which it is given in their order and in as many parts as they come.
#[derive(Debug)]
pub(crate) struct Comparison<'a> {
    sealed: &'a [Leaf],
    /// How many sealed rows are judged.
    place: usize,
    /// The sealed rows that are still to come.
    ahead: HashSet<(Source, Uuid)>,
    /// Those that were named as missing and may turn up elsewhere.
    moved: HashSet<(Source, Uuid)>,
    added: usize,
    found: Found,
}

pub(crate) fn key(leaf: &Leaf) -> (Source, Uuid) {
    (leaf.source, leaf.id)
}

impl<'a> Comparison<'a> {
    pub(crate) fn new(sealed: &'a [Leaf]) -> Self {
        let ahead = sealed.iter().map(key).collect();
        Self { sealed, place: 0, ahead, moved: HashSet::new(), added: 0, found: Found::default() }
    }

    /// The next rows. `is_misdated` says it of a row that is as it was sealed.
    pub(crate) fn feed(&mut self, rows: &[Placed], is_misdated: impl Fn(&Placed) -> bool) {
        for row in rows {
            self.judge(row, &is_misdated);
        }
    }

    fn judge(&mut self, row: &Placed, is_misdated: impl Fn(&Placed) -> bool) {
        let row_key = key(&row.leaf);
        while let Some(leaf) = self.sealed.get(self.place) {
            let here = Some(self.place);
            if key(leaf) == row_key {
                self.ahead.remove(&row_key);
                self.place += 1;
                if row.leaf != *leaf {
                    self.found.push(Difference::Edited, here, *leaf);
                } else if is_misdated(row) {
                    self.found.push(Difference::Misdated, here, *leaf);
                }
                return;
            }
            if !self.ahead.contains(&row_key) {
                return self.add(row, here);
            }
            self.miss(leaf);
        }
        self.add(row, None);
    }

    fn add(&mut self, row: &Placed, place: Option<usize>) {
        if self.moved.remove(&key(&row.leaf)) {
            self.found.elsewhere.insert(key(&row.leaf));
            return;
        }
        self.added += 1;
        if self.added <= MAX_ADDED {
            self.found.push(Difference::Added, place, row.leaf);
        } else {
            self.found.more_added += 1;
        }
    }

    fn miss(&mut self, leaf: &Leaf) {
        self.ahead.remove(&key(leaf));
        self.moved.insert(key(leaf));
        self.found.push(Difference::Missing, Some(self.place), *leaf);
        self.place += 1;
    }

    /// All differences, after the last row.
    pub(crate) fn finish(mut self) -> Found {
        while let Some(leaf) = self.sealed.get(self.place) {
            self.miss(leaf);
        }
        self.found
    }
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

    fn placed(leaf: Leaf) -> Placed {
        Placed { place: (1, leaf.id), at: 0, leaf }
    }

    /// The class, place and number of each difference, of rows that come in parts of this size. The row 7 is misdated.
    fn told(sealed: &[u128], rows: &[Leaf], part: usize) -> Vec<(Difference, Option<usize>, u128)> {
        let sealed = all(sealed);
        let mut comparison = Comparison::new(&sealed);
        for rows in rows.chunks(part) {
            let rows: Vec<Placed> = rows.iter().copied().map(placed).collect();
            comparison.feed(&rows, |row| row.leaf.id == Uuid::from_u128(7));
        }
        let found = comparison.finish();
        assert_eq!(found.more_added, 0);
        found.list.into_iter().map(|one| (one.difference, one.place, one.leaf.id.as_u128())).collect()
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
            for part in [1, 2, 100] {
                assert_eq!(told(sealed, &rows, part), expected, "{sealed:?} {rows:?}");
            }
        }
    }

    #[test]
    fn rows_that_left_their_places_are_told_from_those_that_are_gone() {
        let sealed = all(&[1, 2, 3]);
        for (rows, elsewhere) in [
            (vec![leaf(3), edited(1)], vec![1_u128]),
            (vec![leaf(2), leaf(3), edited(1), leaf(9)], vec![1]),
            (vec![edited(1)], vec![]),
        ] {
            let mut comparison = Comparison::new(&sealed);
            let placed: Vec<Placed> = rows.iter().copied().map(placed).collect();
            comparison.feed(&placed, |_| false);
            let found: Vec<u128> = comparison.finish().elsewhere.iter().map(|row| row.1.as_u128()).collect();
            assert_eq!(found, elsewhere, "{rows:?}");
        }
    }

    #[test]
    fn a_flood_of_added_rows_hides_no_edit() {
        let sealed = all(&[1, 2]);
        let mut comparison = Comparison::new(&sealed);
        for number in 10..5_010 {
            comparison.feed(&[placed(leaf(number))], |_| false);
        }
        comparison.feed(&[placed(leaf(1)), placed(edited(2))], |_| false);
        let found = comparison.finish();
        let last = found.list.last().map(|one| (one.difference, one.leaf.id.as_u128()));
        assert_eq!((found.list.len(), found.more_added), (MAX_ADDED + 1, 5_000 - MAX_ADDED as u64));
        assert_eq!(last, Some((Difference::Edited, 2)));
    }
}
