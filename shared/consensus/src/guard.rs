//! The textual guard: texts that differ in a number, a unit, a name or a negation are different answers, however similar
//! their vectors are.
//!
//! It prefers to keep apart what says the same over joining what does not: a split answer costs a dispute, a false union a
//! wrong memory. English first; scripts without spaces are compared by characters.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::{
    Rules,
    claim::number,
    rules::Words,
    text::{UNIT_LETTERS, compatible, fold_word, is_katakana, is_unspaced},
};

/// In what two texts differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Difference {
    /// A number, or its unit.
    Number,
    /// A negation.
    Negation,
    /// One says the opposite of the other.
    Opposite,
    /// A name.
    Name,
}

/// Numbers for words. Answers to a question are compared in pairs, so that each word is compared many times.
#[derive(Debug, Default)]
pub struct Vocabulary(HashMap<String, u32>);

impl Vocabulary {
    /// The same number for the same word. A task has fewer words than numbers.
    fn number(&mut self, word: &str) -> u32 {
        if let Some(number) = self.0.get(word) {
            return *number;
        }
        let number = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0.insert(word.to_owned(), number);
        number
    }
}

/// What the guard compares of a text. Words are their numbers in one [`Vocabulary`]; lists of them are sorted, and each occurs once.
#[derive(Clone, Debug)]
pub struct Signature {
    /// Numbers with their units, sorted.
    numbers: Vec<(u32, u32)>,
    negations: usize,
    /// Pairs of opposites, and the side that the text is on. Sorted.
    sides: Vec<(usize, usize)>,
    /// Capitalised within a sentence, or in katakana.
    names: Vec<u32>,
    /// Capitalised at the start of a sentence, where any word is.
    perhaps_names: Vec<u32>,
    words: Vec<u32>,
    /// The text in units of comparison, in its order: words, or characters of a script without spaces.
    sequence: Vec<u32>,
    unspaced: bool,
    cased: bool,
}

/// A word, or one other character.
struct Token<'a> {
    text: &'a str,
    word: bool,
    /// No space before it.
    attached: bool,
    starts_sentence: bool,
}

impl Signature {
    /// What the guard compares of `text`. Signatures of one vocabulary can be compared.
    #[must_use]
    pub fn of(text: &str, rules: &Rules, vocabulary: &mut Vocabulary) -> Self {
        let text = compatible(text);
        let words = &rules.words;
        let mut signature = Self {
            numbers: Vec::new(),
            negations: marks(&text, words),
            sides: Vec::new(),
            names: Vec::new(),
            perhaps_names: Vec::new(),
            words: Vec::new(),
            sequence: Vec::new(),
            unspaced: text.chars().any(is_unspaced),
            cased: text.chars().any(char::is_uppercase),
        };
        let tokens = tokens(&text);
        let mut at = 0;
        while at < tokens.len() {
            at += match quantity(&tokens[at..], words) {
                Some((value, unit, used)) => {
                    let value = vocabulary.number(&value);
                    signature.sequence.push(value);
                    signature.numbers.push((value, vocabulary.number(&unit)));
                    used
                }
                None => {
                    signature.word(&tokens[at], words, vocabulary);
                    1
                }
            };
        }
        signature.numbers.sort_unstable();
        signature.sides.sort_unstable();
        signature.sides.dedup();
        for list in [&mut signature.names, &mut signature.perhaps_names, &mut signature.words] {
            list.sort_unstable();
            list.dedup();
        }
        signature
    }

    fn word(&mut self, token: &Token<'_>, words: &Words, vocabulary: &mut Vocabulary) {
        if !token.word {
            return;
        }
        let stem = token.text.strip_suffix("'s").unwrap_or(token.text);
        let folded = fold_word(stem);
        let number = vocabulary.number(&folded);
        let plain: String = folded.chars().filter(|character| *character != '\'').collect();
        self.negations += usize::from(words.is_negation(&plain));
        self.sides.extend(words.sides(&plain));
        if stem.chars().all(is_katakana) && stem.chars().count() > 1 {
            self.names.push(number);
        } else if stem.starts_with(char::is_uppercase) && !words.is_opener(&folded) {
            let names = if token.starts_sentence { &mut self.perhaps_names } else { &mut self.names };
            names.push(number);
        }
        if self.unspaced {
            let mut buffer = [0; 4];
            self.sequence.extend(folded.chars().map(|one| vocabulary.number(one.encode_utf8(&mut buffer))));
        } else {
            self.sequence.push(vocabulary.number(&plain));
        }
        self.words.push(number);
    }

    /// In what the texts of two signatures differ, if the guard sees a difference. Symmetric.
    #[must_use]
    pub fn difference(&self, other: &Self, rules: &Rules) -> Option<Difference> {
        if self.numbers != other.numbers {
            Some(Difference::Number)
        } else if self.negations != other.negations {
            Some(Difference::Negation)
        } else if self.opposes(other) {
            Some(Difference::Opposite)
        } else if self.differs_in_name(other) || other.differs_in_name(self) || self.is_replaced(other, rules)
        {
            Some(Difference::Name)
        } else {
            None
        }
    }

    /// One is on one side of a pair only, the other on the other only.
    fn opposes(&self, other: &Self) -> bool {
        self.sides.iter().any(|(pair, side)| {
            let has = |signature: &Self, side| signature.sides.contains(&(*pair, side));
            let opposite = 1 - side;
            !has(self, opposite) && has(other, opposite) && !has(other, *side)
        })
    }

    /// A name is missing in the other text; or a word that may be one, where the other has such a word in its place.
    fn differs_in_name(&self, other: &Self) -> bool {
        let missing = |names: &[u32], text: &Self| {
            let mut words = text.words.iter();
            names.iter().any(|name| words.find(|word| *word >= name) != Some(name))
        };
        missing(&self.names, other)
            || (missing(&self.perhaps_names, other)
                && (missing(&other.perhaps_names, self) || missing(&other.names, self)))
    }

    /// The texts are equal but for one short part. Where case tells no names, that part may be one.
    fn is_replaced(&self, other: &Self, rules: &Rules) -> bool {
        let unspaced = self.unspaced || other.unspaced;
        if self.cased && other.cased && !unspaced {
            return false;
        }
        let limit = if unspaced { rules.cluster.replaced_characters } else { rules.cluster.replaced_words };
        let (a, b) = (&self.sequence, &other.sequence);
        let start = a.iter().zip(b).take_while(|(a, b)| a == b).count();
        let end = a[start..].iter().rev().zip(b[start..].iter().rev()).take_while(|(a, b)| a == b).count();
        let (a, b) = (a.len() - start - end, b.len() - start - end);
        (1..=limit).contains(&a) && (1..=limit).contains(&b)
    }
}

/// Negations that are parts of words.
fn marks(text: &str, words: &Words) -> usize {
    let mut count = 0;
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let mark =
            words.negation_marks.iter().filter(|mark| rest.starts_with(mark.as_str())).map(String::len).max();
        count += usize::from(mark.is_some());
        rest = &rest[mark.unwrap_or(character.len_utf8())..];
    }
    count
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let (mut starts_sentence, mut attached) = (true, false);
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = token_length(rest, first);
        let (token, tail) = rest.split_at(length);
        let word = first.is_alphabetic();
        if first != ' ' {
            tokens.push(Token { text: token, word, attached, starts_sentence });
        }
        attached = first != ' ';
        starts_sentence = match first {
            '.' | '!' | '?' | ':' | ';' | '。' | '！' | '？' => true,
            _ if word || first.is_ascii_digit() => false,
            _ => starts_sentence,
        };
        rest = tail;
    }
    tokens
}

/// A run of letters of one kind, with apostrophes and marks inside; a run of digits with separators; or one character.
fn token_length(text: &str, first: char) -> usize {
    if first.is_ascii_digit() {
        return number_length(text);
    }
    if !first.is_alphabetic() {
        return first.len_utf8();
    }
    let kind = |character: char| (is_unspaced(character), is_katakana(character));
    let of_word = |character: char| {
        (character.is_alphabetic() && kind(character) == kind(first))
            || (!character.is_ascii()
                && !character.is_whitespace()
                && !character.is_alphanumeric()
                && is_mark(character))
            || character == '\''
    };
    let length = text.find(|character: char| !of_word(character)).unwrap_or(text.len());
    text[..length].trim_end_matches('\'').len()
}

/// Combining marks, which scripts of India and Arabic have within words.
fn is_mark(character: char) -> bool {
    unicode_normalization::char::is_combining_mark(character)
}

/// Digits, groups of three behind commas, and a fraction behind a point or, where no groups are, a comma.
fn number_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let digits = |from: usize| bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut length = digits(0);
    while bytes.get(length) == Some(&b',') && digits(length + 1) > 0 {
        length += 1 + digits(length + 1);
    }
    if bytes.get(length) == Some(&b'.') && digits(length + 1) > 0 {
        length += 1 + digits(length + 1);
    }
    length
}

/// A number at the start of the tokens with its sign and unit, and how many tokens it takes.
fn quantity(tokens: &[Token<'_>], words: &Words) -> Option<(String, String, usize)> {
    let first = tokens.first()?;
    let is_number = |token: &Token<'_>| token.text.starts_with(|character: char| character.is_ascii_digit());
    let prefix = match first.text {
        "$" | "€" | "£" | "¥" => Some(first.text),
        "-" | "+" if !first.attached => Some(""),
        _ => None,
    };
    if let (Some(symbol), Some(second)) = (prefix, tokens.get(1))
        && is_number(second)
        && (second.attached || !symbol.is_empty())
    {
        let (value, unit, used) = quantity(&tokens[1..], words)?;
        let value = if first.text == "-" { format!("-{value}") } else { value };
        let unit = if symbol.is_empty() { unit } else { symbol.to_owned() };
        return Some((value, unit, used + 1));
    }
    if !is_number(first) {
        let value = words.numbers.get(&fold_word(first.text)).filter(|_| first.word)?;
        let (unit, used) = unit(&tokens[1..], words);
        return Some((value.clone(), unit, 1 + used));
    }
    let (unit, used) = unit(&tokens[1..], words);
    Some((plain_number(first.text), unit, 1 + used))
}

fn plain_number(text: &str) -> String {
    let mut groups = text.split('.').next().unwrap_or(text).split(',');
    let leading = groups.next().unwrap_or_default().len();
    let rest: Vec<_> = groups.collect();
    let grouped = (1..=3).contains(&leading) && rest.iter().all(|group| group.len() == 3);
    // A single comma that is no separator of groups is a decimal comma.
    let plain = if grouped || rest.len() != 1 { text.replace(',', "") } else { text.replace(',', ".") };
    number(&plain).unwrap_or(plain)
}

/// The unit behind a number, and how many tokens it takes.
fn unit(tokens: &[Token<'_>], words: &Words) -> (String, usize) {
    let nothing = (String::new(), 0);
    let Some(token) = tokens.first() else { return nothing };
    if token.text == "°"
        && let Some(scale) = tokens.get(1).filter(|scale| scale.attached)
        && let Some(unit) = words.units.get(&format!("°{}", scale.text.to_lowercase()))
    {
        return (unit.clone(), 2);
    }
    let letters = token.text.chars().count();
    if token.word && token.text.starts_with(is_unspaced) {
        // A counter of one or two characters; the word goes on behind it and is compared as well.
        return (token.text.chars().take(2).collect(), 0);
    }
    if matches!(token.text, "st" | "nd" | "rd" | "th") && token.attached {
        return (String::new(), 1);
    }
    if let Some(unit) = words.units.get(token.text) {
        return (unit.clone(), 1);
    }
    let folded = fold_word(token.text);
    if letters > UNIT_LETTERS {
        return words.units.get(&folded).map_or(nothing, |unit| (unit.clone(), 1));
    }
    let symbol = token.word && !words.is_opener(&folded) && token.text.contains(char::is_uppercase);
    if symbol || (token.word && token.attached) { (token.text.to_owned(), 1) } else { nothing }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#[path = "guard_tests.rs"]
mod tests;
