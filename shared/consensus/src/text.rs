//! The normal form of texts: what differs in spelling only becomes equal, what differs in meaning does not.

use unicode_normalization::UnicodeNormalization;

/// The longest run of letters that may be the symbol of a unit. Case tells milli from mega.
pub(crate) const UNIT_LETTERS: usize = 3;

/// The most characters of a normal form: so many for each character of the text, and so many beside them. One character may become
/// eighteen, but few texts that people write become twice as long.
const GROWTH: usize = 2;
const MARGIN: usize = 16;
/// Stands for the rest of a normal form that is longer. No other normal form has this character.
const CUT: char = '\u{ad}';

/// NFKC with one kind of space, without characters that cannot be seen, and cut if it is much longer than the text.
///
/// NFKC alone would turn `10²` into `102` and `1½` into `11/2`; an exponent becomes `^2` and a fraction ` 1/2`.
pub(crate) fn compatible(text: &str) -> String {
    let mut spelled = String::with_capacity(text.len());
    let mut raised = false;
    for character in text.chars() {
        let exponent = superscript(character);
        match character {
            _ if exponent.is_some() => {
                if !raised {
                    spelled.push('^');
                }
                spelled.extend(exponent);
            }
            '¼'..='¾' | '⅐'..='⅞' | '↉' => spelled.extend([' ', character]),
            '\u{2212}' => spelled.push('-'),
            '\u{ad}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{2069}'
            | '\u{feff}' => {}
            _ => spelled.push(character),
        }
        raised = exponent.is_some();
    }
    let limit = GROWTH * text.chars().count() + MARGIN;
    let mut result = String::with_capacity(spelled.len());
    let mut is_longer = false;
    for (place, character) in spelled.nfkc().enumerate() {
        if place == limit {
            is_longer = true;
            break;
        }
        let character = decimal_digit(character);
        if character.is_whitespace() || character.is_control() {
            if !result.ends_with(' ') && !result.is_empty() {
                result.push(' ');
            }
        } else {
            result.push(match character {
                '\u{2044}' => '/',
                '\u{2018}' | '\u{2019}' | '\u{2bc}' => '\'',
                _ => character,
            });
        }
    }
    result.truncate(result.trim_end().len());
    if is_longer {
        result.push(CUT);
    }
    result
}

/// Whether a normal form, or a claim of normal forms, is cut.
pub(crate) fn is_cut(form: &str) -> bool {
    form.contains(CUT)
}

/// The compatible form without case. Symbols of units keep theirs: `5 mW` is not `5 MW`.
pub(crate) fn fold(text: &str) -> String {
    let text = compatible(text);
    let mut result = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(character) = rest.chars().next() {
        let letters = rest.len() - rest.trim_start_matches(char::is_alphabetic).len();
        let (run, tail) = rest.split_at(letters.max(character.len_utf8()));
        if letters > 0 && run.chars().count() <= UNIT_LETTERS && follows_number(&result) {
            result.push_str(run);
        } else {
            result.extend(run.chars().flat_map(folded));
        }
        rest = tail;
    }
    // Folding may undo the composition of a letter and its marks.
    result.nfkc().collect()
}

/// A word without case.
pub(crate) fn fold_word(word: &str) -> String {
    word.chars().flat_map(folded).nfkc().collect()
}

/// Upper case first: so `ß` becomes `ss` and both forms of sigma become one.
fn folded(character: char) -> impl Iterator<Item = char> {
    character.to_uppercase().flat_map(char::to_lowercase)
}

fn follows_number(text: &str) -> bool {
    text.strip_suffix(' ').unwrap_or(text).ends_with(|character: char| character.is_ascii_digit())
}

fn superscript(character: char) -> Option<char> {
    Some(match character {
        '¹' => '1',
        '²' => '2',
        '³' => '3',
        '⁰' => '0',
        '⁴'..='⁹' => char::from(b'4' + u8::try_from(u32::from(character) - 0x2074).ok()?),
        '⁻' => '-',
        _ => return None,
    })
}

/// The first digits of the scripts that write numbers with ten digits of their own.
const ZEROS: [u32; 20] = [
    0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xe50, 0xed0, 0xf20,
    0x1040, 0x17e0, 0x1810, 0x1946, 0x19d0,
];

fn decimal_digit(character: char) -> char {
    let code = u32::from(character);
    ZEROS
        .iter()
        .find_map(|zero| code.checked_sub(*zero).filter(|digit| *digit < 10))
        .and_then(|digit| char::from_digit(digit, 10))
        .unwrap_or(character)
}

/// Whether a character belongs to a script that writes words without spaces between them.
pub(crate) fn is_unspaced(character: char) -> bool {
    matches!(u32::from(character),
        0x0e00..=0x0eff | 0x1000..=0x109f | 0x1780..=0x17ff | 0x3040..=0x30ff | 0x3400..=0x4dbf | 0x4e00..=0x9fff
        | 0xf900..=0xfaff | 0x2_0000..=0x3_ffff)
}

pub(crate) fn is_katakana(character: char) -> bool {
    matches!(u32::from(character), 0x30a1..=0x30fa | 0x30fc)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn spelling_is_equal_and_meaning_is_not() {
        for (a, b) in [
            ("Paris ", "paris"),
            ("STRASSE", "straße"),
            ("e\u{301}te\u{301}", "Été"),
            ("ﬁnal\u{200b}", "FINAL"),
            ("１２３", "123"),
            ("٣", "3"),
            ("ΣΑΣ", "σας"),
            ("a\u{a0}\tb\n", "A b"),
            ("isn’t", "isn't"),
            ("−5", "-5"),
        ] {
            assert_eq!(fold(a), fold(b), "{a:?} {b:?}");
        }
        for (a, b) in
            [("10²", "102"), ("1½", "11/2"), ("5 mW", "5 MW"), ("5mb", "5Mb"), ("x", "y"), ("10²³", "10^2^3")]
        {
            assert_ne!(fold(a), fold(b), "{a:?} {b:?}");
        }
        assert_eq!(fold("10²³ m"), "10^23 m");
        assert_eq!(fold("  "), "");
    }

    #[test]
    fn folding_twice_is_folding_once() {
        for text in ["İstanbul", "5 MW ΑΣ ﬀ ½", "日本 ガ", "\u{345}α", "ŉ 3 KM and 5 Apples"] {
            assert_eq!(fold(&fold(text)), fold(text), "{text:?}");
        }
    }

    #[test]
    fn a_text_becomes_little_longer() {
        // Eighteen characters in one.
        let ligatures = |count: usize| "\u{fdfa}".repeat(count);
        assert_eq!(compatible(&ligatures(1)).chars().count(), GROWTH + MARGIN);
        for text in [ligatures(2), ligatures(16_384), format!("Name {}", ligatures(500)), "…".repeat(100)] {
            let limit = GROWTH * text.chars().count() + MARGIN;
            for form in [compatible(&text), fold(&text)] {
                assert!(is_cut(&form) && form.chars().count() <= limit + 1, "{form:?}");
            }
        }
        // What is cut is not equal to its beginning.
        let form = compatible(&ligatures(10));
        assert_ne!(fold(&ligatures(10)), fold(form.trim_end_matches(CUT)));
        for text in
            ["\u{ad}soft", "½ ⅓ ¼ ﬁ ㎏", "e\u{301}", "בּ שׁ", "\u{fefb}\u{fefb}", "The Prophet \u{fdfa} said"]
        {
            assert!(!is_cut(&fold(text)), "{text:?}");
        }
    }
}
