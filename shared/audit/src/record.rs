//! A row as PostgreSQL sends it, and as the JSON that its digest is made of.

use std::fmt::Write as _;

use trust::text::to_hex;
use uuid::Uuid;

/// The form of a column, of which the bytes of its JSON follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Column {
    /// A number of 2, 4 or 8 bytes.
    Integer,
    Uuid,
    /// A time, as microseconds since 1970.
    Time,
    /// A text or the label of an enumeration.
    Text,
    /// Bytes, as a text of hex digits.
    Hex,
    /// An array of texts.
    Texts,
    /// JSON, as a text.
    Jsonb,
    /// Not a part of the content: the key of its digest.
    Key,
}

/// A row.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    /// A JSON array of its columns, exactly as PostgreSQL's `json_build_array` writes it: the digests of old seals are made
    /// of these bytes.
    pub(crate) json: String,
    pub(crate) key: Option<&'a [u8]>,
    /// The time, in microseconds since 1970.
    pub(crate) at: i64,
}

/// PostgreSQL counts microseconds from 2000 on.
const YEAR_2000: i64 = 946_684_800_000_000;

impl<'a> Record<'a> {
    /// Reads a row of these columns. None if it has others.
    pub(crate) fn read(bytes: &'a [u8], columns: impl ExactSizeIterator<Item = Column>) -> Option<Self> {
        let mut rest = Bytes(bytes);
        if usize::try_from(rest.number()?).ok()? != columns.len() {
            return None;
        }
        let mut record = Self { json: "[".to_owned(), key: None, at: 0 };
        for (place, column) in columns.enumerate() {
            // The type, which is not the same in all databases for enumerations.
            rest.number()?;
            let value = rest.value()?;
            if column == Column::Key {
                record.key = value;
                continue;
            }
            if place > 0 {
                record.json.push_str(", ");
            }
            match value {
                Some(value) => record.push(column, value)?,
                None => record.json.push_str("null"),
            }
        }
        record.json.push(']');
        rest.0.is_empty().then_some(record)
    }

    fn push(&mut self, column: Column, value: &[u8]) -> Option<()> {
        let json = &mut self.json;
        match column {
            Column::Integer => write!(json, "{}", integer(value)?).ok()?,
            Column::Time => {
                self.at = i64::from_be_bytes(value.try_into().ok()?).saturating_add(YEAR_2000);
                write!(json, "{}", self.at).ok()?;
            }
            Column::Uuid => write!(json, "\"{}\"", Uuid::from_slice(value).ok()?).ok()?,
            Column::Text => push_text(json, value)?,
            Column::Hex => write!(json, "\"{}\"", to_hex(value)).ok()?,
            Column::Texts => push_texts(json, value)?,
            Column::Jsonb => push_text(json, value.strip_prefix(&[JSONB_VERSION])?)?,
            Column::Key => return None,
        }
        Some(())
    }
}

/// The first byte of a `jsonb` value.
const JSONB_VERSION: u8 = 1;

fn integer(value: &[u8]) -> Option<i64> {
    match value.len() {
        2 => Some(i16::from_be_bytes(value.try_into().ok()?).into()),
        4 => Some(i32::from_be_bytes(value.try_into().ok()?).into()),
        8 => Some(i64::from_be_bytes(value.try_into().ok()?)),
        _ => None,
    }
}

/// PostgreSQL escapes the same characters as `serde_json`, in the same way.
fn push_text(json: &mut String, value: &[u8]) -> Option<()> {
    json.push_str(&serde_json::to_string(std::str::from_utf8(value).ok()?).ok()?);
    Some(())
}

fn push_texts(json: &mut String, value: &[u8]) -> Option<()> {
    let mut rest = Bytes(value);
    let dimensions = rest.number()?;
    // Whether there are NULLs, and the type of the elements.
    rest.number()?;
    rest.number()?;
    let count = match dimensions {
        0 => 0,
        1 => rest.number()?,
        _ => return None,
    };
    if dimensions == 1 {
        // The index of the first element.
        rest.number()?;
    }
    json.push('[');
    for place in 0..count {
        if place > 0 {
            json.push(',');
        }
        match rest.value()? {
            Some(value) => push_text(json, value)?,
            None => json.push_str("null"),
        }
    }
    json.push(']');
    rest.0.is_empty().then_some(())
}

/// What is left to be read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn number(&mut self) -> Option<i32> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(i32::from_be_bytes(*number))
    }

    /// A value with its length in front; none for NULL.
    fn value(&mut self) -> Option<Option<&'a [u8]>> {
        let length = self.number()?;
        if length == -1 {
            return Some(None);
        }
        let (value, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(Some(value))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    /// A row as PostgreSQL sends it.
    fn record(values: &[Option<&[u8]>]) -> Vec<u8> {
        let mut bytes = i32::try_from(values.len()).unwrap().to_be_bytes().to_vec();
        for value in values {
            bytes.extend(25_i32.to_be_bytes());
            match value {
                Some(value) => {
                    bytes.extend(i32::try_from(value.len()).unwrap().to_be_bytes());
                    bytes.extend(*value);
                }
                None => bytes.extend((-1_i32).to_be_bytes()),
            }
        }
        bytes
    }

    fn json(column: Column, value: Option<&[u8]>) -> Option<String> {
        Record::read(&record(&[value]), [column].into_iter()).map(|record| record.json)
    }

    /// The array `{a,NULL}` of texts with so many dimensions.
    fn array(dimensions: i32) -> Vec<u8> {
        let header = [dimensions, 1, 25, 2, 1].map(i32::to_be_bytes).concat();
        [header, [0, 0, 0, 1].to_vec(), b"a".to_vec(), (-1_i32).to_be_bytes().to_vec()].concat()
    }

    #[test]
    fn each_column_has_its_form() {
        let micros = (1_800_000_000_000_000 - YEAR_2000).to_be_bytes();
        for (column, value, expected) in [
            (Column::Integer, 7_i64.to_be_bytes().as_slice(), "[7]"),
            (Column::Integer, &(-7_i32).to_be_bytes(), "[-7]"),
            (Column::Time, &micros, "[1800000000000000]"),
            (Column::Time, &i64::MAX.to_be_bytes(), "[9223372036854775807]"),
            (Column::Uuid, &[0xab; 16], "[\"abababab-abab-abab-abab-abababababab\"]"),
            (Column::Text, "a\"\\\n\u{1}\u{7f}é".as_bytes(), "[\"a\\\"\\\\\\n\\u0001\u{7f}é\"]"),
            (Column::Hex, &[0, 255], "[\"00ff\"]"),
            (Column::Texts, &array(1), "[[\"a\",null]]"),
            (Column::Texts, &[0; 12], "[[]]"),
            (Column::Jsonb, b"\x01{\"a\": 1}", "[\"{\\\"a\\\": 1}\"]"),
        ] {
            assert_eq!(json(column, Some(value)).as_deref(), Some(expected), "{column:?}");
            assert_eq!(json(column, None).as_deref(), Some("[null]"), "{column:?}");
        }
    }

    #[test]
    fn several_columns_are_separated_and_the_key_is_none_of_them() {
        let values = [Some([0, 1].as_slice()), Some(b"x"), Some(b"secret")];
        let columns = [Column::Integer, Column::Text, Column::Key];
        let bytes = record(&values);
        let read = Record::read(&bytes, columns.into_iter()).unwrap();
        assert_eq!((read.json.as_str(), read.key), ("[1, \"x\"]", Some(b"secret".as_slice())));
    }

    #[test]
    fn a_row_of_another_form_is_not_read() {
        for (column, value) in [
            (Column::Integer, [0; 3].as_slice()),
            (Column::Time, &[0; 4]),
            (Column::Uuid, &[0; 4]),
            (Column::Text, &[0xff]),
            (Column::Texts, &array(2)),
            (Column::Texts, &array(1)[..20]),
            (Column::Jsonb, b"\x02{}"),
            (Column::Jsonb, b""),
        ] {
            assert_eq!(json(column, Some(value)), None, "{column:?}");
        }
        let bytes = record(&[Some(&[0, 1])]);
        assert_eq!(Record::read(&bytes, [].into_iter()), None);
        assert_eq!(Record::read(&bytes, [Column::Integer, Column::Integer].into_iter()), None);
        assert_eq!(Record::read(&bytes[..bytes.len() - 1], [Column::Integer].into_iter()), None);
        assert_eq!(Record::read(&[bytes, vec![0]].concat(), [Column::Integer].into_iter()), None);
    }
}
