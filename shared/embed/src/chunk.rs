//! A text into pieces that a model can read whole.

use std::ops::Range;

/// How many letters before a place are looked at for the end of a sentence: a full stop may stand before quotes.
const ENDING: usize = 3;
/// How many bytes of a text are looked at for each token that its pieces may have. Words have fewer by far.
const BYTES_PER_TOKEN: usize = 16;

/// How texts are cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    /// The most tokens of a piece, at least 1.
    pub(crate) tokens: usize,
    /// How many tokens a piece shares with the one before it, less than `tokens`.
    pub(crate) overlap: usize,
    /// The most pieces of a text.
    pub(crate) pieces: usize,
}

impl Cut {
    /// As much of a text as its pieces can hold, so that a huge one costs no more than a large one.
    pub(crate) fn readable<'a>(&self, text: &'a str) -> &'a str {
        let most = self.tokens.saturating_mul(self.pieces).saturating_mul(BYTES_PER_TOKEN);
        prefix(text, most)
    }

    /// The pieces of a text whose tokens are at these places, in order. A piece ends where a sentence does, if one does in its
    /// last third, or else between words, if there are words. One piece for a text that is not blank but has no tokens.
    pub(crate) fn pieces(&self, text: &str, tokens: &[Range<usize>]) -> Vec<Range<usize>> {
        let start = text.len() - text.trim_start().len();
        let whole = start..start + text.trim().len();
        if whole.is_empty() {
            return Vec::new();
        }
        if tokens.len() <= self.tokens {
            return vec![whole];
        }
        let seams = Seams { text, tokens };
        let mut pieces = Vec::new();
        let (mut from, mut end) = (0, 0);
        while pieces.len() < self.pieces {
            end = self.end(&seams, from, end);
            pieces.push(seams.floor(tokens[from].start)..seams.ceiling(tokens[end - 1].end));
            if end == tokens.len() {
                break;
            }
            let earliest = end.saturating_sub(self.overlap).max(from + 1);
            from = seams.best(earliest..end).unwrap_or(end);
        }
        pieces
    }

    /// The token before which the piece ends that begins with the token `from`: after the end of the one before, so that
    /// every piece has something new.
    fn end(&self, seams: &Seams<'_>, from: usize, before: usize) -> usize {
        let last = from + self.tokens;
        if last >= seams.tokens.len() {
            return seams.tokens.len();
        }
        let sentences = (from + self.tokens.div_ceil(3) * 2).max(before + 1);
        let words = (from + self.tokens.div_ceil(2)).max(before + 1);
        let sentence = (sentences..=last).rev().find(|&at| seams.between_sentences(at));
        sentence.or_else(|| seams.best((words..last + 1).rev())).unwrap_or(last)
    }
}

/// The places between the tokens of a text: the one of the number `at`, from 1 on, is before the token of that number.
struct Seams<'a> {
    text: &'a str,
    tokens: &'a [Range<usize>],
}

impl Seams<'_> {
    /// The first of these places where there is a space, or else where no word is cut.
    fn best(&self, mut places: impl Iterator<Item = usize> + Clone) -> Option<usize> {
        let spaced = places.clone().find(|&at| !self.gap(at).is_empty());
        spaced.or_else(|| places.find(|&at| self.between_words(at)))
    }

    fn between_words(&self, at: usize) -> bool {
        let is_letter = |letter: Option<char>| letter.is_some_and(char::is_alphanumeric);
        !is_letter(self.before(at).chars().next_back()) || !is_letter(self.after(at))
    }

    fn between_sentences(&self, at: usize) -> bool {
        let gap = self.gap(at);
        if gap.contains('\n') {
            return true;
        }
        let ending = self.before(at).trim_end_matches(['"', '\'', ')', ']', '”', '’', '»']);
        let ends_with = |marks: &[char]| ending.ends_with(marks);
        // Where such marks are used, no space follows.
        ends_with(&['。', '！', '？']) || (!gap.is_empty() && ends_with(&['.', '!', '?', '…']))
    }

    /// What stands between the two tokens.
    fn gap(&self, at: usize) -> &str {
        match (at.checked_sub(1).and_then(|at| self.tokens.get(at)), self.tokens.get(at)) {
            (Some(one), Some(next)) => self.text.get(one.end..next.start).unwrap_or_default(),
            (_, None) | (None, _) => "",
        }
    }

    /// The last letters before the place.
    fn before(&self, at: usize) -> &str {
        let end =
            at.checked_sub(1).and_then(|at| self.tokens.get(at)).map_or(0, |token| self.floor(token.end));
        let start = self.text[..end].char_indices().rev().take(ENDING).last().map_or(end, |(start, _)| start);
        &self.text[start..end]
    }

    /// The first letter after the place.
    fn after(&self, at: usize) -> Option<char> {
        self.text.get(self.tokens.get(at)?.start..)?.chars().next()
    }

    /// The nearest place between letters, not after this byte.
    fn floor(&self, byte: usize) -> usize {
        prefix(self.text, byte).len()
    }

    /// The nearest place between letters, not before this byte.
    fn ceiling(&self, byte: usize) -> usize {
        (byte..self.text.len()).find(|&byte| self.text.is_char_boundary(byte)).unwrap_or(self.text.len())
    }
}

/// The start of a text, of at most so many bytes, in whole letters.
pub(crate) fn prefix(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Where a tokenizer that is not known may see tokens, guessed: a run of eight ASCII letters or digits, or any other letter
/// that is no space. English has more letters to a token, other scripts about one or two.
pub(crate) fn guessed_tokens(text: &str) -> Vec<Range<usize>> {
    /// The most letters of a word that are one token.
    const RUN: usize = 8;
    let mut tokens: Vec<Range<usize>> = Vec::new();
    let mut run = 0;
    for (at, letter) in text.char_indices() {
        let continues = letter.is_ascii_alphanumeric() && (1..RUN).contains(&run);
        match tokens.last_mut() {
            Some(token) if continues => {
                token.end = at + letter.len_utf8();
                run += 1;
            }
            _ if letter.is_whitespace() => run = 0,
            Some(_) | None => {
                tokens.push(at..at + letter.len_utf8());
                run = usize::from(letter.is_ascii_alphanumeric());
            }
        }
    }
    tokens
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use proptest::prelude::*;

    fn pieces(cut: Cut, text: &str) -> Vec<&str> {
        cut.pieces(text, &guessed_tokens(text)).into_iter().map(|piece| &text[piece]).collect()
    }

    #[test]
    fn a_blank_text_has_no_pieces_and_a_short_one_is_its_own() {
        let cut = Cut { tokens: 10, overlap: 3, pieces: 9 };
        assert!(pieces(cut, "").is_empty());
        assert!(pieces(cut, " \n\t ").is_empty());
        assert_eq!(pieces(cut, "  to be or not\n"), ["to be or not"]);
    }

    #[test]
    fn a_piece_ends_with_a_sentence_or_else_with_a_word() {
        let cut = Cut { tokens: 10, overlap: 3, pieces: 9 };
        let text = "one two three four five six seven (eight.) nine ten eleven";
        assert_eq!(
            pieces(cut, text),
            ["one two three four five six seven", "five six seven (eight.) nine ten eleven"]
        );
        let text = "one two three four five six seven. Eight nine ten eleven twelve";
        assert_eq!(
            pieces(cut, text),
            ["one two three four five six seven.", "six seven. Eight nine ten eleven twelve"]
        );
        // The tenth token would be the first half of a word.
        let text = "one two three four five six seven eight nine internationalisation";
        assert_eq!(pieces(cut, text)[0], "one two three four five six seven eight nine");
        assert_eq!(pieces(cut, &"あ".repeat(12)), ["あ".repeat(10), "あ".repeat(2)]);
    }

    #[test]
    fn the_number_of_pieces_is_bounded() {
        let cut = Cut { tokens: 10, overlap: 3, pieces: 4 };
        assert_eq!(pieces(cut, &"word ".repeat(1_000)).len(), 4);
        assert_eq!(cut.readable(&"é".repeat(1_000)).len(), 640);
        assert_eq!(prefix("aé", 2), "a");
    }

    proptest! {
        #[test]
        fn pieces_are_whole_letters_in_order_and_leave_nothing_out(
            text in "(\\PC|[ a-z.\n\"é。]){0,300}", tokens in 1..20_usize, overlap in 0..10_usize,
        ) {
            let cut = Cut { tokens, overlap: overlap.min(tokens / 2), pieces: usize::MAX };
            let places = guessed_tokens(&text);
            let found = cut.pieces(&text, &places);
            prop_assert_eq!(found.is_empty(), text.trim().is_empty());
            for piece in &found {
                prop_assert!(!text.get(piece.clone()).unwrap().trim().is_empty());
            }
            for pair in found.windows(2) {
                prop_assert!(pair[0].start < pair[1].start && pair[0].end < pair[1].end);
                let between = text.get(pair[0].end..pair[1].start).unwrap_or_default();
                prop_assert!(between.trim().is_empty());
            }
            let covered = |at: usize| found.iter().any(|piece| piece.contains(&at));
            prop_assert!(places.iter().all(|place| covered(place.start) && covered(place.end - 1)));
        }
    }
}
