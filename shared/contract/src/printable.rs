//! Text from outside, such as a publisher's field names or a server's error, made safe for logs and terminals.
//!
//! A line feed would begin a forged line, an escape sequence would change the terminal, a bidirectional control would
//! reorder what is read, and an invisible character would make two texts look alike.

use std::borrow::Cow;

/// The text on one line, with the characters escaped that [are not shown as they are](self): `\u{1b}` for an escape.
/// Escaping again changes nothing.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, is_shown, |shown, character| shown.extend(character.escape_unicode()))
}

/// The same for text of several lines: line feeds stay.
#[must_use]
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    let is_kept = |character| character == '\n' || is_shown(character);
    escaped(text, is_kept, |shown, character| shown.extend(character.escape_unicode()))
}

/// As [`printable`], and at most `chars` characters long. No escape is cut in two.
#[must_use]
pub fn printable_within(text: &str, chars: usize) -> String {
    let (mut shown, mut left) = (String::new(), chars);
    for character in text.chars() {
        let length = if is_shown(character) { 1 } else { character.escape_unicode().len() };
        if length > left {
            break;
        }
        left -= length;
        if is_shown(character) { shown.push(character) } else { shown.extend(character.escape_unicode()) }
    }
    shown
}

/// JSON with the same characters escaped as JSON escapes them, `\u202e`, so that its value is the same. Line feeds stay:
/// strings have none, so they separate tokens.
#[must_use]
pub fn printable_json(json: &str) -> Cow<'_, str> {
    let is_kept = |character| character == '\n' || is_shown(character);
    escaped(json, is_kept, |shown, character| {
        if matches!(character, '\t' | '\r') {
            // As line feeds.
            return shown.push(' ');
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            shown.push_str(&format!("\\u{unit:04x}"));
        }
    })
}

fn escaped(
    text: &str,
    is_kept: impl Fn(char) -> bool,
    mut escape: impl FnMut(&mut String, char),
) -> Cow<'_, str> {
    if text.chars().all(&is_kept) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_kept(character) { shown.push(character) } else { escape(&mut shown, character) }
    }
    Cow::Owned(shown)
}

/// Whether a terminal shows the character itself, and only that. Variation selectors count as shown: ordinary emoji
/// have them, and they change the shape of one character only.
fn is_shown(character: char) -> bool {
    !character.is_control()
        && !matches!(
            character,
            // Line and paragraph separators.
            '\u{2028}' | '\u{2029}'
            // Invisible: the characters that Unicode lets a program ignore, the bidirectional controls among them.
            | '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One character of each kind that is escaped.
    const HOSTILE: [char; 22] = [
        '\0',
        '\t',
        '\n',
        '\r',
        '\u{1b}',
        '\u{7f}',
        '\u{85}',
        '\u{9b}',
        '\u{ad}',
        '\u{61c}',
        '\u{180e}',
        '\u{200b}',
        '\u{200d}',
        '\u{200f}',
        '\u{2028}',
        '\u{2029}',
        '\u{202e}',
        '\u{2066}',
        '\u{feff}',
        '\u{fff9}',
        '\u{e0001}',
        '\u{e0041}',
    ];

    #[test]
    fn what_a_terminal_does_not_show_is_escaped() {
        assert_eq!(printable("a\u{1b}[2J\nb\u{202e}é"), "a\\u{1b}[2J\\u{a}b\\u{202e}é");
        for character in HOSTILE {
            let code = u32::from(character);
            assert_eq!(printable(&format!("a{character}b")), format!("a\\u{{{code:x}}}b"));
        }
        for shown in ["", "naïve Größe 東京 שלום עברית ❤\u{fe0f} \\u{1b}", "a b"] {
            assert_eq!(printable(shown), shown, "as it is, and escaping again changes nothing");
        }
        assert_eq!(printable_lines("a\nb\r\n\u{1b}"), "a\nb\\u{d}\n\\u{1b}");
    }

    #[test]
    fn a_limit_counts_what_is_shown_and_splits_no_escape() {
        assert_eq!(printable_within("abc", 3), "abc");
        assert_eq!(printable_within("abcd", 3), "abc");
        assert_eq!(printable_within("a\u{1b}b", 7), "a\\u{1b}");
        assert_eq!(printable_within("a\u{1b}b", 6), "a");
        assert_eq!(printable_within(&"\u{e0041}".repeat(1_000), 100).chars().count(), 99);
    }

    #[test]
    fn escaped_json_has_the_same_value() {
        let text: String = HOSTILE.into_iter().chain(['\u{1d173}', 'é']).collect();
        let json = serde_json::json!({ (text.clone()): [text] });
        let shown = printable_json(&json.to_string()).into_owned();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).ok(), Some(json));
        assert_eq!(printable(&shown), shown);
        assert_eq!(printable_json("{\n\t\"a\":\r1\n}"), "{\n \"a\": 1\n}");
    }
}
