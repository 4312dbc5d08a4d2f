//! A row as PostgreSQL sends it, and as the JSON that its digest is made of.

use std::fmt::Write as _;

use trust::text::to_hex;
use uuid::Uuid;

/// The type of a column, which decides the form of its JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Column {
    Int4,
    Int8,
    Uuid,
    /// A time, as microseconds since 1970.
    Time,
    Text,
    Varchar,
    /// The label of an enumeration.
    Enum(EnumType),
    /// Bytes, as a text of hex digits.
    Hex,
    /// An array of texts.
    Texts,
    /// JSON, as a text.
    Jsonb,
    /// Not a part of the content: the key of its digest.
    Key,
    /// The same, which is the key of the user of the row.
    KeyOfUser,
}

/// An enumeration of the migrations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EnumType {
    Operation,
    Severity,
    EventType,
    Performative,
}

impl EnumType {
    pub(crate) const ALL: [Self; 4] = [Self::Operation, Self::Severity, Self::EventType, Self::Performative];

    /// Its name in the database.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Operation => "audit.operation",
            Self::Severity => "audit.severity",
            Self::EventType => "public.eventtype",
            Self::Performative => "public.performative",
        }
    }
}

/// The oid of the type `text`.
const TEXT: u32 = 25;

impl Column {
    /// The type of PostgreSQL itself, or else the enumeration.
    pub(crate) fn built_in(self) -> Result<u32, EnumType> {
        Ok(match self {
            Self::Int4 => 23,
            Self::Int8 => 20,
            Self::Uuid => 2950,
            Self::Time => 1184,
            Self::Text => TEXT,
            Self::Varchar => 1043,
            Self::Enum(name) => return Err(name),
            Self::Hex | Self::Key | Self::KeyOfUser => 17,
            Self::Texts => 1009,
            Self::Jsonb => 3802,
        })
    }
}

/// The oids of types, of which those of enumerations are not the same in all databases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Types(Vec<(EnumType, u32)>);

impl Types {
    pub(crate) fn new(enums: Vec<(EnumType, u32)>) -> Self {
        Self(enums)
    }

    /// None for an enumeration that is not there.
    pub(crate) fn oid(&self, column: Column) -> Option<u32> {
        column.built_in().map_or_else(|name| self.of_enum(name), Some)
    }

    /// None if it is not there.
    pub(crate) fn of_enum(&self, name: EnumType) -> Option<u32> {
        self.0.iter().find(|one| one.0 == name).map(|one| one.1)
    }
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
pub(crate) const YEAR_2000: i64 = 946_684_800_000_000;

impl<'a> Record<'a> {
    /// Reads a row of these columns. None if it has others, or if one is of another type: such a type may send anything.
    pub(crate) fn read(
        bytes: &'a [u8],
        columns: impl ExactSizeIterator<Item = Column>,
        types: &Types,
    ) -> Option<Self> {
        let mut rest = Bytes(bytes);
        if usize::try_from(rest.number()?).ok()? != columns.len() {
            return None;
        }
        let mut record = Self { json: "[".to_owned(), key: None, at: 0 };
        for (place, column) in columns.enumerate() {
            if rest.oid()? != types.oid(column)? {
                return None;
            }
            let value = rest.value()?;
            if matches!(column, Column::Key | Column::KeyOfUser) {
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
            Column::Int4 => write!(json, "{}", i32::from_be_bytes(value.try_into().ok()?)).ok()?,
            Column::Int8 => write!(json, "{}", i64::from_be_bytes(value.try_into().ok()?)).ok()?,
            Column::Time => {
                self.at = i64::from_be_bytes(value.try_into().ok()?).saturating_add(YEAR_2000);
                write!(json, "{}", self.at).ok()?;
            }
            Column::Uuid => write!(json, "\"{}\"", Uuid::from_slice(value).ok()?).ok()?,
            Column::Text | Column::Varchar | Column::Enum(_) => push_text(json, value)?,
            Column::Hex => write!(json, "\"{}\"", to_hex(value)).ok()?,
            Column::Texts => push_texts(json, value)?,
            Column::Jsonb => push_text(json, value.strip_prefix(&[JSONB_VERSION])?)?,
            Column::Key | Column::KeyOfUser => return None,
        }
        Some(())
    }
}

/// The first byte of a `jsonb` value.
const JSONB_VERSION: u8 = 1;

/// PostgreSQL escapes the same characters as `serde_json`, in the same way.
fn push_text(json: &mut String, value: &[u8]) -> Option<()> {
    json.push_str(&serde_json::to_string(std::str::from_utf8(value).ok()?).ok()?);
    Some(())
}

fn push_texts(json: &mut String, value: &[u8]) -> Option<()> {
    let mut rest = Bytes(value);
    let dimensions = rest.number()?;
    // Whether there are NULLs.
    rest.number()?;
    if rest.oid()? != TEXT {
        return None;
    }
    let count = match dimensions {
        0 => 0,
        1 => rest.number()?,
        _ => return None,
    };
    // The index of the first element, which the JSON does not have.
    if dimensions == 1 && rest.number()? != 1 {
        return None;
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

    fn oid(&mut self) -> Option<u32> {
        self.number().map(i32::cast_unsigned)
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

    fn types() -> Types {
        Types::new(vec![(EnumType::Operation, 17_559)])
    }

    /// A row as PostgreSQL sends it.
    fn record(values: &[(Column, Option<&[u8]>)]) -> Vec<u8> {
        let mut bytes = i32::try_from(values.len()).unwrap().to_be_bytes().to_vec();
        for (column, value) in values {
            bytes.extend(types().oid(*column).unwrap().to_be_bytes());
            match value {
                Some(value) => {
                    bytes.extend(i32::try_from(value.len()).unwrap().to_be_bytes());
                    bytes.extend_from_slice(value);
                }
                None => bytes.extend((-1_i32).to_be_bytes()),
            }
        }
        bytes
    }

    fn json(column: Column, value: Option<&[u8]>) -> Option<String> {
        Record::read(&record(&[(column, value)]), [column].into_iter(), &types()).map(|record| record.json)
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
            (Column::Int8, 7_i64.to_be_bytes().as_slice(), "[7]"),
            (Column::Int4, &(-7_i32).to_be_bytes(), "[-7]"),
            (Column::Time, &micros, "[1800000000000000]"),
            (Column::Time, &i64::MAX.to_be_bytes(), "[9223372036854775807]"),
            (Column::Uuid, &[0xab; 16], "[\"abababab-abab-abab-abab-abababababab\"]"),
            (Column::Text, "a\"\\\n\u{1}\u{7f}é".as_bytes(), "[\"a\\\"\\\\\\n\\u0001\u{7f}é\"]"),
            (Column::Varchar, b"a", "[\"a\"]"),
            (Column::Enum(EnumType::Operation), b"UPDATE", "[\"UPDATE\"]"),
            (Column::Hex, &[0, 255], "[\"00ff\"]"),
            (Column::Texts, &array(1), "[[\"a\",null]]"),
            (Column::Texts, &[0, 0, 25].map(i32::to_be_bytes).concat(), "[[]]"),
            (Column::Jsonb, b"\x01{\"a\": 1}", "[\"{\\\"a\\\": 1}\"]"),
        ] {
            assert_eq!(json(column, Some(value)).as_deref(), Some(expected), "{column:?}");
            assert_eq!(json(column, None).as_deref(), Some("[null]"), "{column:?}");
        }
    }

    #[test]
    fn several_columns_are_separated_and_the_key_is_none_of_them() {
        let columns = [Column::Int4, Column::Text, Column::Key];
        let bytes = record(&[
            (columns[0], Some([0, 0, 0, 1].as_slice())),
            (columns[1], Some(b"x")),
            (columns[2], Some(b"secret")),
        ]);
        let read = Record::read(&bytes, columns.into_iter(), &types()).unwrap();
        assert_eq!((read.json.as_str(), read.key), ("[1, \"x\"]", Some(b"secret".as_slice())));
    }

    #[test]
    fn a_row_of_another_form_is_not_read() {
        for (column, value) in [
            (Column::Int8, [0; 3].as_slice()),
            (Column::Int8, &[0; 4]),
            (Column::Int4, &[0; 8]),
            (Column::Time, &[0; 4]),
            (Column::Uuid, &[0; 4]),
            (Column::Text, &[0xff]),
            (Column::Texts, &array(2)),
            (Column::Texts, &array(1)[..20]),
            // Its first element has the index 2.
            (Column::Texts, &[&array(1)[..19], &[2], &array(1)[20..]].concat()),
            (Column::Jsonb, b"\x02{}"),
            (Column::Jsonb, b""),
        ] {
            assert_eq!(json(column, Some(value)), None, "{column:?}");
        }
        let read = |bytes: &[u8], columns: &[Column]| {
            Record::read(bytes, columns.iter().copied(), &types()).map(|record| record.json)
        };
        let bytes = record(&[(Column::Int4, Some(&[0; 4]))]);
        assert_eq!(read(&bytes, &[Column::Int4]).as_deref(), Some("[0]"));
        assert_eq!(read(&bytes, &[]), None);
        assert_eq!(read(&bytes, &[Column::Int4, Column::Int4]), None);
        assert_eq!(read(&bytes[..bytes.len() - 1], &[Column::Int4]), None);
        assert_eq!(read(&[bytes, vec![0]].concat(), &[Column::Int4]), None);
    }

    #[test]
    fn a_value_of_another_type_is_not_read() {
        let text = record(&[(Column::Text, Some(b"x"))]);
        for column in [Column::Varchar, Column::Enum(EnumType::Operation), Column::Key] {
            assert_eq!(Record::read(&text, [column].into_iter(), &types()), None, "{column:?}");
        }
        // A type that nobody has looked up is none.
        let unknown = Column::Enum(EnumType::Severity);
        assert_eq!(Record::read(&text, [unknown].into_iter(), &types()), None);
        // The same of the elements of an array.
        let other = [[1, 1, 1043, 1, 1].map(i32::to_be_bytes).concat(), [0, 0, 0, 1].to_vec(), b"a".to_vec()]
            .concat();
        assert_eq!(json(Column::Texts, Some(&other)), None);
    }
}
