//! Times, in the years that both PostgreSQL and RFC 3339 support: 1 to 9999.

use chrono::{DateTime, Datelike, Utc};
use serde::Deserialize;
use serde::de::{self, Deserializer};

use crate::value::StringVisitor;

/// The time in whole microseconds, as PostgreSQL stores it. A leap second counts as the first second of the next minute.
///
/// # Errors
/// A sentence that names the year, if it is not from 1 to 9999.
pub fn bounded_time(time: DateTime<Utc>) -> Result<DateTime<Utc>, String> {
    // PostgreSQL would round up instead, and the last moments of 9999 would become the year 10000.
    let whole = DateTime::from_timestamp_micros(time.timestamp_micros()).unwrap_or(time);
    if (1..=9999).contains(&whole.year()) {
        Ok(whole)
    } else {
        Err(format!("is in the year {}; it must be from 1 to 9999", whole.year()))
    }
}

/// A time, read from RFC 3339.
struct Time(DateTime<Utc>);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = deserializer.deserialize_string(StringVisitor)?;
        let time = text
            .parse()
            .map_err(|_| de::Error::custom("is not a time in RFC 3339, such as 2026-01-31T12:00:00Z"))?;
        bounded_time(time).map(Self).map_err(de::Error::custom)
    }
}

/// Reads an optional time.
pub(crate) fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DateTime<Utc>>, D::Error> {
    Ok(Option::<Time>::deserialize(deserializer)?.map(|Time(time)| time))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_years_1_to_9999() {
        let bounded = |text: &str| bounded_time(text.parse().unwrap()).map(|time| time.to_rfc3339());
        let same = ["0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59.999999+00:00"];
        for text in same {
            assert_eq!(bounded(text).unwrap(), text);
        }
        for text in [
            "9999-12-31T23:59:60Z",
            "9999-12-31T23:59:60.5Z",
            "9999-12-31T23:59:59-00:01",
            "+10000-01-01T00:00:00Z",
            "0001-01-01T00:00:00+00:01",
            "-0001-01-01T00:00:00Z",
            "-262143-01-01T00:00:00Z",
        ] {
            assert!(bounded(text).unwrap_err().ends_with("it must be from 1 to 9999"), "{text}");
        }
    }

    #[test]
    fn a_time_has_whole_microseconds_and_no_leap_second() {
        for (text, expected) in [
            ("9999-12-31T23:59:59.999999999Z", "9999-12-31T23:59:59.999999+00:00"),
            ("1969-12-31T23:59:59.0000019Z", "1969-12-31T23:59:59.000001+00:00"),
            ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00+00:00"),
            ("2016-12-31T23:59:60.25Z", "2017-01-01T00:00:00.250+00:00"),
        ] {
            assert_eq!(bounded_time(text.parse().unwrap()).unwrap().to_rfc3339(), expected, "{text}");
        }
    }
}
