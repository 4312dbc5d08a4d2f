//! Times of the database.

use chrono::{DateTime, Utc};
use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::pg::data_types::PgTimestamp;
use diesel::pg::{Pg, PgValue};
use diesel::sql_types::Timestamptz;

use crate::record::YEAR_2000;

/// A time. PostgreSQL has times that chrono has not, such as infinity: they are the first or the last one of chrono. No row must end a
/// verification, and a time that is signed is compared with what was signed.
#[derive(Clone, Copy, Debug, FromSqlRow)]
pub struct Time(DateTime<Utc>);

impl Time {
    /// Of microseconds since 2000.
    fn new(micros: i64) -> Self {
        let micros = micros.saturating_add(YEAR_2000);
        let beyond = if micros < 0 { DateTime::<Utc>::MIN_UTC } else { DateTime::<Utc>::MAX_UTC };
        Self(DateTime::from_timestamp_micros(micros).unwrap_or(beyond))
    }
}

impl FromSql<Timestamptz, Pg> for Time {
    fn from_sql(bytes: PgValue<'_>) -> deserialize::Result<Self> {
        let PgTimestamp(micros) = FromSql::<Timestamptz, Pg>::from_sql(bytes)?;
        Ok(Self::new(micros))
    }
}

impl From<Time> for DateTime<Utc> {
    fn from(time: Time) -> Self {
        time.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_of_postgresql_is_one_of_chrono() {
        assert_eq!(Time::new(0).0.to_rfc3339(), "2000-01-01T00:00:00+00:00");
        assert_eq!(Time::new(-1).0.to_rfc3339(), "1999-12-31T23:59:59.999999+00:00");
        assert_eq!(Time::new(i64::MAX).0, DateTime::<Utc>::MAX_UTC);
        assert_eq!(Time::new(i64::MIN).0, DateTime::<Utc>::MIN_UTC);
    }
}
