//! Numbers with limits.

use std::borrow::Cow;

use chrono::Utc;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};

use crate::limit;
use crate::malformed::Malformed;

/// An integer between `MIN` and `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Bounded<const MIN: i64, const MAX: i64>(i64);

/// The version of a keyed record, from 1. The writer of a key chooses its versions: a counter, or the time in
/// milliseconds. A request may be at most [`limit::VERSION_AHEAD_MS`] ahead of that time.
pub type Version = Bounded<1, { i64::MAX }>;

/// Checks that a version is not so far ahead that later ones could hardly exceed it: the greatest one would fix its key
/// for good. The limit grows with the time, so that what is accepted once stays acceptable.
///
/// # Errors
/// [`Malformed`] names the limit.
pub(crate) fn check_version(version: Version) -> Result<(), Malformed> {
    if version.get() <= Utc::now().timestamp_millis().saturating_add(limit::VERSION_AHEAD_MS) {
        return Ok(());
    }
    let problem = "is more than a day ahead of the current time in milliseconds; use a counter or that time";
    Err(Malformed::new("version", problem))
}

/// The priority of a context: 0 to 100, higher is more important.
pub type Priority = Bounded<0, 100>;

impl<const MIN: i64, const MAX: i64> Bounded<MIN, MAX> {
    /// A constant. In a constant expression, a value out of range is a compile error.
    pub(crate) const fn literal(value: i64) -> Self {
        assert!(MIN <= value && value <= MAX, "out of range");
        Self(value)
    }

    /// Checks the range.
    ///
    /// # Errors
    /// A sentence that names the range.
    pub fn new(value: i64) -> Result<Self, String> {
        if (MIN..=MAX).contains(&value) {
            Ok(Self(value))
        } else {
            Err(format!("{value} is not between {MIN} and {MAX}"))
        }
    }

    /// The value.
    pub fn get(self) -> i64 {
        self.0
    }
}

impl<'de, const MIN: i64, const MAX: i64> Deserialize<'de> for Bounded<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(i64::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl<const MIN: i64, const MAX: i64> JsonSchema for Bounded<MIN, MAX> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("Integer{MIN}To{MAX}").into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }
}

/// A number from 0 to `MAX`.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Real<const MAX: u32>(f64);

impl<const MAX: u32> Real<MAX> {
    /// A constant. In a constant expression, a value out of range is a compile error.
    pub(crate) const fn literal(value: f64) -> Self {
        assert!(0.0 <= value && value <= MAX as f64, "out of range");
        Self(value)
    }

    /// Checks the range.
    ///
    /// # Errors
    /// A sentence that names the range.
    pub fn new(value: f64) -> Result<Self, String> {
        if (0.0..=f64::from(MAX)).contains(&value) {
            Ok(Self(value))
        } else {
            Err(format!("{value} is not between 0 and {MAX}"))
        }
    }

    /// The value.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl<'de, const MAX: u32> Deserialize<'de> for Real<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(f64::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl<const MAX: u32> JsonSchema for Real<MAX> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("Real0To{MAX}").into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "number", "minimum": 0, "maximum": MAX })
    }
}

/// A number from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Score(f64);

impl Score {
    /// One.
    pub(crate) const ONE: Self = Self(1.0);

    /// Checks the range.
    ///
    /// # Errors
    /// A sentence that names the range.
    pub fn new(value: f64) -> Result<Self, String> {
        if (0.0..=1.0).contains(&value) {
            Ok(Self(value))
        } else {
            Err(format!("{value} is not between 0 and 1"))
        }
    }

    /// The value.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl<'de> Deserialize<'de> for Score {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(f64::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl JsonSchema for Score {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Score".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "number", "minimum": 0, "maximum": 1 })
    }
}
