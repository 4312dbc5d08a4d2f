//! JSON over several lines.

use serde_json::value::RawValue;

/// Deepest nesting that is laid out: each level indents its lines further.
const MAX_DEPTH: usize = 128;

/// JSON over several lines, each number and string as it is written: a number may have more digits than any type of this
/// program, and an object a field twice. `None` for text that is no JSON, or is nested deeper than 128 levels.
pub fn pretty(json: &str) -> Option<String> {
    serde_json::from_str::<&RawValue>(json).ok()?;
    let mut layout = Layout { shown: String::with_capacity(json.len() * 2), depth: 0, is_open: false };
    let (mut in_string, mut is_escaped) = (false, false);
    for character in json.chars() {
        if in_string {
            layout.shown.push(character);
            in_string = is_escaped || character != '"';
            is_escaped = !is_escaped && character == '\\';
            continue;
        }
        layout.token(character);
        in_string = character == '"';
        if layout.depth > MAX_DEPTH {
            return None;
        }
    }
    Some(layout.shown)
}

struct Layout {
    shown: String,
    depth: usize,
    /// The last token opened an object or an array, so that an empty one stays on its line.
    is_open: bool,
}

impl Layout {
    /// Adds a character outside of strings.
    fn token(&mut self, character: char) {
        match character {
            ' ' | '\t' | '\n' | '\r' => {}
            '}' | ']' => {
                self.depth = self.depth.saturating_sub(1);
                if !std::mem::take(&mut self.is_open) {
                    self.new_line();
                }
                self.shown.push(character);
            }
            ',' => {
                self.shown.push(character);
                self.new_line();
            }
            ':' => self.shown.push_str(": "),
            other => {
                if std::mem::take(&mut self.is_open) {
                    self.new_line();
                }
                self.shown.push(other);
                if matches!(other, '{' | '[') {
                    self.depth += 1;
                    self.is_open = true;
                }
            }
        }
    }

    fn new_line(&mut self) {
        self.shown.push('\n');
        self.shown.extend(std::iter::repeat_n("  ", self.depth));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_layout_is_that_of_serde() {
        for value in [
            json!({}),
            json!([]),
            json!("a, b: {\"c\": [1]} \\"),
            json!({ "a": [1, { "b": {} }, [], "\\\"", null], "c": { "d": true } }),
            json!([[[[]]], [{}, {}]]),
        ] {
            let expected = serde_json::to_string_pretty(&value).unwrap();
            for written in [value.to_string(), expected.clone(), format!(" \n\t{value} ")] {
                assert_eq!(pretty(&written).as_ref(), Some(&expected));
            }
        }
    }

    #[test]
    fn numbers_and_fields_stay_as_they_are_written() {
        let json = r#"{"b":123456789012345678901234567890.10,"a":1e400,"b":-0.0,"s":"\u0041"}"#;
        let expected = "{\n  \"b\": 123456789012345678901234567890.10,\n  \"a\": 1e400,\n  \"b\": -0.0,\n  \"s\": \"\\u0041\"\n}";
        assert_eq!(pretty(json).as_deref(), Some(expected));
    }

    #[test]
    fn what_is_no_json_or_nested_too_deep_is_not_laid_out() {
        for text in ["", "{", "[1", "a", "{\"a\":\u{1b}1}", "1 2"] {
            assert_eq!(pretty(text), None, "{text:?}");
        }
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(serde_json::from_str::<Value>(&pretty(&nested(120)).unwrap()).is_ok());
        assert_eq!(pretty(&nested(100_000)), None);
    }
}
