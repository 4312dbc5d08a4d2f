//! Texts that several sessions changed: blocks of their longest common subsequence.

use std::collections::HashMap;

/// Merges texts over a common ancestor. Where two changed the same block, both stay, in the order of the texts. Without an
/// ancestor, what the texts have in common takes its place, so that nothing is taken for removed.
///
/// `cells` is how many cells of tables may still be filled; what is filled is taken off. A table that needs more is not computed:
/// the texts are kept one after the other then.
pub(crate) fn merge(base: Option<&str>, texts: &[&str], cells: &mut usize) -> String {
    let lines = base.into_iter().chain(texts.iter().copied()).any(|text| text.contains('\n'));
    let unit = if lines { Unit::Line } else { Unit::Word };
    let mut rest = texts.iter();
    let mut merged = rest.next().map_or(String::new(), |text| (*text).to_owned());
    for text in rest {
        merged = two(unit, base, &merged, text, cells);
    }
    merged
}

/// What a text is cut into.
#[derive(Clone, Copy)]
enum Unit {
    Line,
    Word,
}

impl Unit {
    fn cut(self, text: &str) -> Vec<&str> {
        match self {
            Self::Line => text.split_inclusive('\n').collect(),
            Self::Word => text.split_inclusive(char::is_whitespace).collect(),
        }
    }

    /// A part without what separates it from the next: the last one of a text has no separator, and is the same word.
    fn bare(self, part: &str) -> &str {
        match self {
            Self::Line => part.strip_suffix('\n').unwrap_or(part),
            Self::Word => part.trim_end(),
        }
    }

    fn same(self, a: &[&str], b: &[&str]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| self.bare(a) == self.bare(b))
    }
}

fn two(unit: Unit, base: Option<&str>, ours: &str, theirs: &str, cells: &mut usize) -> String {
    if Some(ours) == base || ours == theirs {
        return theirs.to_owned();
    }
    if Some(theirs) == base {
        return ours.to_owned();
    }
    let (ours, theirs) = (unit.cut(ours), unit.cut(theirs));
    let mut merged = Merged { text: String::new(), unit };
    let base = match base {
        Some(base) => Some(unit.cut(base)),
        None => common(unit, &ours, &theirs, cells)
            .map(|pairs| pairs.into_iter().filter_map(|(at, _)| ours.get(at).copied()).collect()),
    };
    let anchors = base.and_then(|base| {
        let (a, b) = (places(unit, &base, &ours, cells)?, places(unit, &base, &theirs, cells)?);
        Some((base, a, b))
    });
    let Some((base, in_ours, in_theirs)) = anchors else {
        merged.push(&ours);
        merged.push(&theirs);
        return merged.text;
    };
    let (mut o, mut a, mut b) = (0, 0, 0);
    loop {
        let stable = (o..base.len()).find_map(|at| Some((at, in_ours[at]?, in_theirs[at]?)));
        let (o_end, a_end, b_end) = stable.unwrap_or((base.len(), ours.len(), theirs.len()));
        merged.block(&base[o..o_end], &ours[a..a_end], &theirs[b..b_end]);
        if stable.is_none() {
            return merged.text;
        }
        // The same word in all three; the space after it may have changed.
        merged.push(if ours[a_end] == base[o_end] { &theirs[b_end..=b_end] } else { &ours[a_end..=a_end] });
        (o, a, b) = (o_end + 1, a_end + 1, b_end + 1);
    }
}

struct Merged {
    text: String,
    unit: Unit,
}

impl Merged {
    fn push(&mut self, parts: &[&str]) {
        for part in parts {
            match self.unit {
                Unit::Line if !self.text.is_empty() && !self.text.ends_with('\n') => self.text.push('\n'),
                Unit::Word if !self.text.is_empty() && !self.text.ends_with(char::is_whitespace) => {
                    self.text.push(' ');
                }
                Unit::Line | Unit::Word => {}
            }
            self.text.push_str(part);
        }
    }

    /// A block that was changed by one, by both alike, or by both differently.
    fn block(&mut self, base: &[&str], ours: &[&str], theirs: &[&str]) {
        if self.unit.same(ours, base) || self.unit.same(ours, theirs) {
            self.push(theirs);
        } else if self.unit.same(theirs, base) {
            self.push(ours);
        } else {
            self.push(ours);
            self.push(theirs);
        }
    }
}

/// Where each block of the base is in a text.
fn places(unit: Unit, base: &[&str], text: &[&str], cells: &mut usize) -> Option<Vec<Option<usize>>> {
    let mut places = vec![None; base.len()];
    for (at, place) in common(unit, base, text, cells)? {
        places[at] = Some(place);
    }
    Some(places)
}

/// The pairs of a longest common subsequence; `None` if its table needs more cells than are left.
fn common(unit: Unit, a: &[&str], b: &[&str], cells: &mut usize) -> Option<Vec<(usize, usize)>> {
    let same = |a: &&str, b: &&str| unit.bare(a) == unit.bare(b);
    let start = a.iter().zip(b).take_while(|(a, b)| same(a, b)).count();
    let (inner_a, inner_b) = (&a[start..], &b[start..]);
    let end = inner_a.iter().rev().zip(inner_b.iter().rev()).take_while(|(a, b)| same(a, b)).count();
    let (inner_a, inner_b) = (&inner_a[..inner_a.len() - end], &inner_b[..inner_b.len() - end]);
    let mut pairs: Vec<_> = (0..start).map(|at| (at, at)).collect();
    // Where only one has something, there is nothing to compare.
    if !inner_a.is_empty() && !inner_b.is_empty() {
        let needed = (inner_a.len() + 1).checked_mul(inner_b.len() + 1)?;
        *cells = cells.checked_sub(needed)?;
        let mut numbers = HashMap::new();
        let (inner_a, inner_b) =
            (numbered(unit, inner_a, &mut numbers), numbered(unit, inner_b, &mut numbers));
        pairs.extend(table(&inner_a, &inner_b).into_iter().map(|(i, j)| (start + i, start + j)));
    }
    pairs.extend((0..end).map(|at| (a.len() - end + at, b.len() - end + at)));
    Some(pairs)
}

/// The same number for the same part: a cell costs the same, however long the words are.
fn numbered<'a>(unit: Unit, parts: &[&'a str], numbers: &mut HashMap<&'a str, usize>) -> Vec<usize> {
    let number = |part: &'a str| {
        let next = numbers.len();
        *numbers.entry(unit.bare(part)).or_insert(next)
    };
    parts.iter().copied().map(number).collect()
}

/// The pairs of a longest common subsequence, by its table.
fn table(a: &[usize], b: &[usize]) -> Vec<(usize, usize)> {
    let width = b.len() + 1;
    // lengths[i][j]: the longest common subsequence of what follows i and j.
    let mut lengths = vec![0_u32; width * (a.len() + 1)];
    for i in (0..a.len()).rev() {
        let (row, below) = lengths[i * width..].split_at_mut(width);
        for j in (0..b.len()).rev() {
            row[j] = if a[i] == b[j] { below[j + 1] + 1 } else { below[j].max(row[j + 1]) };
        }
    }
    let mut pairs = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < a.len() && j < b.len() {
        if a[i] == b[j] {
            pairs.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if lengths[(i + 1) * width + j] >= lengths[i * width + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    /// Merges texts with as many cells as nobody here needs.
    fn merge(base: Option<&str>, texts: &[&str]) -> String {
        super::merge(base, texts, &mut 10_000)
    }

    #[test]
    fn a_text_is_cut_into_parts_that_give_it_again() {
        use super::Unit;
        let text = "one two\n\n three\nfour";
        assert_eq!(Unit::Line.cut(text), ["one two\n", "\n", " three\n", "four"]);
        assert_eq!(Unit::Word.cut(text), ["one ", "two\n", "\n", " ", "three\n", "four"]);
        assert!(Unit::Line.cut("").is_empty() && Unit::Word.cut("").is_empty());
    }

    #[test]
    fn changes_of_different_blocks_both_take_effect() {
        let base = "one\ntwo\nthree\n";
        let merged = merge(Some(base), &["ONE\ntwo\nthree\n", "one\ntwo\nTHREE\nfour\n"]);
        assert_eq!(merged, "ONE\ntwo\nTHREE\nfour\n");
        assert_eq!(merge(Some("a b c"), &["a c", "a b c d"]), "a c d");
        assert_eq!(merge(Some("a b c d e"), &["x b c d e", "a b c d y", "a b z d e"]), "x b z d y");
    }

    #[test]
    fn of_a_block_that_both_changed_both_stay() {
        assert_eq!(merge(Some("one\ntwo\n"), &["one\n2\n", "one\nzwei\n"]), "one\n2\nzwei\n");
        assert_eq!(merge(Some("tea"), &["green tea", "black tea"]), "green black tea");
        assert_eq!(merge(Some("tea"), &["coffee", "milk"]), "coffee milk");
        assert_eq!(merge(Some("tea"), &["coffee", "coffee"]), "coffee");
    }

    #[test]
    fn without_an_ancestor_nothing_is_taken_for_removed() {
        assert_eq!(merge(None, &["a b c", "a c d"]), "a b c d");
        assert_eq!(merge(None, &["x", "y"]), "x y");
    }

    #[test]
    fn what_is_too_large_is_kept_twice() {
        let (ours, theirs) = ("a b c d", "e f g h");
        assert_eq!(super::merge(Some("q"), &[ours, theirs], &mut 4), "a b c d e f g h");
        let long: String = (0..3_000).map(|at| format!("{at} ")).collect();
        let other: String = (0..3_000).map(|at| format!("x{at} ")).collect();
        let mut cells = 1_000_000;
        assert_eq!(super::merge(None, &[&long, &other], &mut cells).len(), long.len() + other.len());
        assert_eq!(cells, 1_000_000, "a table that is not computed takes nothing from those that follow");
    }

    #[test]
    fn each_cell_is_taken_off_and_what_needs_more_than_is_left_is_kept_twice() {
        let (base, ours, theirs) = ("a b c d", "a x c d", "a b c y");
        let mut cells = 10_000;
        assert_eq!(super::merge(Some(base), &[ours, theirs], &mut cells), "a x c y");
        // What is the same at the beginning and at the end is in no table: two of one word on either side.
        assert_eq!(10_000 - cells, 8);
        assert_eq!(super::merge(Some(base), &[ours, theirs], &mut 8), "a x c y");
        assert_eq!(super::merge(Some(base), &[ours, theirs], &mut 7), "a x c d a b c y");
        // What only one has at the end needs no table at all.
        assert_eq!(super::merge(None, &[base, "a b c d e f"], &mut 0), "a b c d e f");
    }

    fn text() -> impl Strategy<Value = String> {
        proptest::collection::vec("[a-d]", 0..8).prop_map(|words| words.join(" "))
    }

    proptest! {
        #[test]
        fn every_word_that_one_added_is_there(base in text(), ours in text(), theirs in text(), known in any::<bool>()) {
            let merged = merge(known.then_some(&base), &[&ours, &theirs]);
            let count = |text: &str, word: &str| text.split_whitespace().filter(|other| *other == word).count();
            for word in ["a", "b", "c", "d"] {
                let new = !known || count(&base, word) == 0;
                if new && count(&ours, word) + count(&theirs, word) > 0 {
                    prop_assert!(count(&merged, word) > 0, "{word:?} in {merged:?}");
                }
            }
        }

        #[test]
        fn who_changed_nothing_has_no_influence(base in text(), other in text()) {
            prop_assert_eq!(&merge(Some(&base), &[&base, &other]), &other);
            prop_assert_eq!(&merge(Some(&base), &[&other, &base]), &other);
            prop_assert_eq!(&merge(None, &[&other, &other]), &other);
        }
    }
}
