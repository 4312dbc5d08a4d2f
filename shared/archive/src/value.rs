use chrono::{DateTime, SecondsFormat, Utc};
use data_encoding::HEXLOWER;
use uuid::Uuid;

use crate::column::Kind;

/// A value of a row.
#[derive(Clone, Debug)]
pub enum Value {
    /// None.
    Null,
    /// Of [`Kind::Boolean`].
    Boolean(bool),
    /// Of [`Kind::Integer`] and [`Kind::BigInteger`].
    Integer(i64),
    /// Of [`Kind::Double`].
    Double(f64),
    /// Of [`Kind::Text`], [`Kind::Json`] and [`Kind::Array`].
    Text(String),
    /// Of [`Kind::Uuid`].
    Uuid(Uuid),
    /// Of [`Kind::Time`], in microseconds since 1970.
    Time(i64),
    /// Of [`Kind::Bytes`].
    Bytes(Vec<u8>),
}

impl PartialEq for Value {
    /// Numbers are equal if their bits are: one that is not a number is equal to itself.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Boolean(one), Self::Boolean(two)) => one == two,
            (Self::Integer(one), Self::Integer(two)) | (Self::Time(one), Self::Time(two)) => one == two,
            (Self::Double(one), Self::Double(two)) => one.to_bits() == two.to_bits(),
            (Self::Text(one), Self::Text(two)) => one == two,
            (Self::Uuid(one), Self::Uuid(two)) => one == two,
            (Self::Bytes(one), Self::Bytes(two)) => one == two,
            _ => false,
        }
    }
}

impl Value {
    /// Reads the text that [`Kind::text_of`] gives. `None` if it is not of this kind.
    pub fn parse(kind: Kind, text: String) -> Option<Self> {
        match kind {
            Kind::Boolean => text.parse().ok().map(Self::Boolean),
            Kind::Integer => text.parse::<i32>().ok().map(|number| Self::Integer(number.into())),
            Kind::BigInteger => text.parse().ok().map(Self::Integer),
            // PostgreSQL writes NaN and Infinity, which Rust reads, too.
            Kind::Double => text.parse().ok().map(Self::Double),
            Kind::Text | Kind::Json | Kind::Array => Some(Self::Text(text)),
            Kind::Uuid => text.parse().ok().map(Self::Uuid),
            Kind::Time => text.parse().ok().map(Self::Time),
            Kind::Bytes => HEXLOWER.decode(text.as_bytes()).ok().map(Self::Bytes),
        }
    }

    /// The text that [`Kind::value_of`] makes a value of. `None` for NULL.
    pub fn to_text(&self) -> Option<String> {
        match self {
            Self::Null => None,
            Self::Boolean(value) => Some(value.to_string()),
            Self::Integer(value) => Some(value.to_string()),
            Self::Time(micros) => Some(rfc3339(*micros)),
            Self::Double(value) => Some(value.to_string()),
            Self::Text(value) => Some(value.clone()),
            Self::Uuid(value) => Some(value.to_string()),
            Self::Bytes(value) => Some(HEXLOWER.encode(value)),
        }
    }

    /// The time, of a value that is one.
    pub fn time(&self) -> Option<DateTime<Utc>> {
        match self {
            Self::Time(micros) => DateTime::from_timestamp_micros(*micros),
            Self::Null
            | Self::Boolean(_)
            | Self::Integer(_)
            | Self::Double(_)
            | Self::Text(_)
            | Self::Uuid(_)
            | Self::Bytes(_) => None,
        }
    }

    /// The value for people and programs: times as RFC 3339 has them, bytes in hexadecimal digits, JSON as it is.
    pub fn to_json(&self, kind: Kind) -> serde_json::Value {
        match self {
            Self::Null => serde_json::Value::Null,
            Self::Boolean(value) => (*value).into(),
            Self::Integer(value) => (*value).into(),
            Self::Double(value) => (*value).into(),
            Self::Text(value) if matches!(kind, Kind::Json | Kind::Array) => {
                serde_json::from_str(value).unwrap_or_else(|_| value.as_str().into())
            }
            Self::Text(value) => value.as_str().into(),
            Self::Uuid(value) => value.to_string().into(),
            Self::Time(micros) => rfc3339(*micros).into(),
            Self::Bytes(value) => HEXLOWER.encode(value).into(),
        }
    }

    /// About how much memory it takes.
    pub(crate) fn size(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Text(value) => value.len(),
                Self::Bytes(value) => value.len(),
                Self::Null
                | Self::Boolean(_)
                | Self::Integer(_)
                | Self::Double(_)
                | Self::Uuid(_)
                | Self::Time(_) => 0,
            }
    }
}

/// The time as text. PostgreSQL has times that this cannot express, and columns of memfleet's tables do not.
fn rfc3339(micros: i64) -> String {
    DateTime::from_timestamp_micros(micros)
        .map_or_else(|| micros.to_string(), |time| time.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_another_kind_is_none() {
        for (kind, text) in [
            (Kind::Boolean, "t"),
            (Kind::Integer, "2147483648"),
            (Kind::BigInteger, "1.0"),
            (Kind::Double, "one"),
            (Kind::Uuid, "1"),
            (Kind::Time, "2027-01-01"),
            (Kind::Bytes, "xyz"),
        ] {
            assert_eq!(Value::parse(kind, text.to_owned()), None, "{kind:?} {text}");
        }
    }

    #[test]
    fn every_number_comes_back() {
        for number in ["0.1", "-0", "1e-300", "1.7976931348623157e308", "NaN", "Infinity", "-Infinity"] {
            let read = Value::parse(Kind::Double, number.to_owned()).unwrap();
            assert_eq!(Value::parse(Kind::Double, read.to_text().unwrap()), Some(read));
        }
    }
}
