//! Splitting of texts into chunks that a model can read.

use std::ops::Range;

/// The number of characters before a boundary that are checked for the end of a sentence: quotes may follow a full
/// stop.
const ENDING: usize = 3;
/// How many bytes of a text are read for each token of its chunks. Words have far fewer bytes per token.
const BYTES_PER_TOKEN: usize = 16;

/// How texts are split into chunks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunking {
    /// The maximum number of tokens of a chunk, at least 1.
    pub(crate) tokens: usize,
    /// The number of tokens that a chunk shares with the previous one, less than `tokens`.
    pub(crate) overlap: usize,
    /// The maximum number of chunks of a text.
    pub(crate) limit: usize,
}

impl Chunking {
    /// The part of a text that its chunks can contain, so that the cost of a huge text is limited.
    pub(crate) fn readable<'a>(&self, text: &'a str) -> &'a str {
        let most = self.tokens.saturating_mul(self.limit).saturating_mul(BYTES_PER_TOKEN);
        prefix(text, most)
    }

    /// The chunks of a text with these token ranges, in order. A chunk ends with a sentence if one ends in its last
    /// third, or else between words if there are words. A text that is not blank but has no tokens is one chunk.
    pub(crate) fn split(&self, text: &str, tokens: &[Range<usize>]) -> Vec<Range<usize>> {
        let start = text.len() - text.trim_start().len();
        let whole = start..start + text.trim().len();
        if whole.is_empty() {
            return Vec::new();
        }
        if tokens.len() <= self.tokens {
            return vec![whole];
        }
        let boundaries = Boundaries { text, tokens };
        let mut chunks = Vec::new();
        let (mut from, mut end) = (0, 0);
        while chunks.len() < self.limit {
            end = self.end(&boundaries, from, end);
            chunks.push(boundaries.floor(tokens[from].start)..boundaries.ceiling(tokens[end - 1].end));
            if end == tokens.len() {
                break;
            }
            let earliest = end.saturating_sub(self.overlap).max(from + 1);
            from = boundaries.best(earliest..end).unwrap_or(end);
        }
        chunks
    }

    /// The index of the token before which the chunk ends that starts with the token `from`: after the end of the
    /// previous chunk, so that every chunk contains something new.
    fn end(&self, boundaries: &Boundaries<'_>, from: usize, before: usize) -> usize {
        let last = from + self.tokens;
        if last >= boundaries.tokens.len() {
            return boundaries.tokens.len();
        }
        let sentences = (from + self.tokens.div_ceil(3) * 2).max(before + 1);
        let words = (from + self.tokens.div_ceil(2)).max(before + 1);
        let sentence = (sentences..=last).rev().find(|&at| boundaries.between_sentences(at));
        sentence.or_else(|| boundaries.best((words..last + 1).rev())).unwrap_or(last)
    }
}

/// The boundaries between the tokens of a text. The boundary `at`, from 1, is before the token with that index.
struct Boundaries<'a> {
    text: &'a str,
    tokens: &'a [Range<usize>],
}

impl Boundaries<'_> {
    /// The first of these boundaries with white space, or else the first that does not split a word.
    fn best(&self, mut boundaries: impl Iterator<Item = usize> + Clone) -> Option<usize> {
        let spaced = boundaries.clone().find(|&at| !self.gap(at).is_empty());
        spaced.or_else(|| boundaries.find(|&at| self.between_words(at)))
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
        // Scripts that use these marks have no spaces after them.
        ends_with(&['。', '！', '？']) || (!gap.is_empty() && ends_with(&['.', '!', '?', '…']))
    }

    /// The text between the two tokens.
    fn gap(&self, at: usize) -> &str {
        match (at.checked_sub(1).and_then(|at| self.tokens.get(at)), self.tokens.get(at)) {
            (Some(one), Some(next)) => self.text.get(one.end..next.start).unwrap_or_default(),
            (_, None) | (None, _) => "",
        }
    }

    /// The last characters before the boundary.
    fn before(&self, at: usize) -> &str {
        let end =
            at.checked_sub(1).and_then(|at| self.tokens.get(at)).map_or(0, |token| self.floor(token.end));
        let start = self.text[..end].char_indices().rev().take(ENDING).last().map_or(end, |(start, _)| start);
        &self.text[start..end]
    }

    /// The first character after the boundary.
    fn after(&self, at: usize) -> Option<char> {
        self.text.get(self.tokens.get(at)?.start..)?.chars().next()
    }

    /// The last character boundary that is not after this byte.
    fn floor(&self, byte: usize) -> usize {
        prefix(self.text, byte).len()
    }

    /// The first character boundary that is not before this byte.
    fn ceiling(&self, byte: usize) -> usize {
        (byte..self.text.len()).find(|&byte| self.text.is_char_boundary(byte)).unwrap_or(self.text.len())
    }
}

/// The longest prefix of a text of at most so many bytes that ends at a character boundary.
pub(crate) fn prefix(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Estimated token ranges for an unknown tokenizer: a run of up to eight ASCII letters or digits, or any other
/// character that is not white space. English has more letters per token, other scripts about one or two.
pub(crate) fn estimated_tokens(text: &str) -> Vec<Range<usize>> {
    /// The maximum number of letters of a token.
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

    fn pieces(chunking: Chunking, text: &str) -> Vec<&str> {
        chunking.split(text, &estimated_tokens(text)).into_iter().map(|piece| &text[piece]).collect()
    }

    #[test]
    fn a_blank_text_has_no_chunks_and_a_short_text_has_one() {
        let chunking = Chunking { tokens: 10, overlap: 3, limit: 9 };
        assert!(pieces(chunking, "").is_empty());
        assert!(pieces(chunking, " \n\t ").is_empty());
        assert_eq!(pieces(chunking, "  to be or not\n"), ["to be or not"]);
    }

    #[test]
    fn a_chunk_ends_with_a_sentence_or_else_with_a_word() {
        let chunking = Chunking { tokens: 10, overlap: 3, limit: 9 };
        let text = "one two three four five six seven (eight.) nine ten eleven";
        assert_eq!(
            pieces(chunking, text),
            ["one two three four five six seven", "five six seven (eight.) nine ten eleven"]
        );
        let text = "one two three four five six seven. Eight nine ten eleven twelve";
        assert_eq!(
            pieces(chunking, text),
            ["one two three four five six seven.", "six seven. Eight nine ten eleven twelve"]
        );
        // The tenth token would be the first half of a word.
        let text = "one two three four five six seven eight nine internationalisation";
        assert_eq!(pieces(chunking, text)[0], "one two three four five six seven eight nine");
        assert_eq!(pieces(chunking, &"あ".repeat(12)), ["あ".repeat(10), "あ".repeat(2)]);
    }

    #[test]
    fn the_number_of_chunks_is_limited() {
        let chunking = Chunking { tokens: 10, overlap: 3, limit: 4 };
        assert_eq!(pieces(chunking, &"word ".repeat(1_000)).len(), 4);
        assert_eq!(chunking.readable(&"é".repeat(1_000)).len(), 640);
        assert_eq!(prefix("aé", 2), "a");
    }

    proptest! {
        #[test]
        fn chunks_cover_the_text_in_order_at_character_boundaries(
            text in "(\\PC|[ a-z.\n\"é。]){0,300}", tokens in 1..20_usize, overlap in 0..10_usize,
        ) {
            let chunking = Chunking { tokens, overlap: overlap.min(tokens / 2), limit: usize::MAX };
            let places = estimated_tokens(&text);
            let found = chunking.split(&text, &places);
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
