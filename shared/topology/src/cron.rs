//! When a schedule of cron comes, as the NATS server determines it: six fields, the day by its number, its weekday or both.

use chrono::{DateTime, Utc};
use jiff::civil::{Date, DateTime as Local, Time};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Timestamp, ToSpan as _};

/// A schedule that has no time for so long never comes, for the server.
const YEARS: i16 = 5;

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// What a field may be.
struct Range {
    name: &'static str,
    first: u32,
    last: u32,
    names: &'static [&'static str],
}

const RANGES: [Range; 6] = [
    Range { name: "the second", first: 0, last: 59, names: &[] },
    Range { name: "the minute", first: 0, last: 59, names: &[] },
    Range { name: "the hour", first: 0, last: 23, names: &[] },
    Range { name: "the day of the month", first: 1, last: 31, names: &[] },
    Range { name: "the month", first: 1, last: 12, names: &MONTHS },
    Range { name: "the day of the week", first: 0, last: 6, names: &WEEKDAYS },
];

/// The values of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Field {
    values: Vec<u32>,
    /// Whether it is `*` or `?`, so that it restricts nothing.
    is_any: bool,
}

impl Field {
    fn has<T>(&self, value: T) -> bool
    where
        u32: TryFrom<T>,
    {
        u32::try_from(value).is_ok_and(|value| self.values.binary_search(&value).is_ok())
    }
}

/// A schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cron {
    seconds: Field,
    minutes: Field,
    hours: Field,
    days: Field,
    months: Field,
    weekdays: Field,
}

impl Cron {
    /// Reads six fields.
    ///
    /// # Errors
    /// What is wrong with which field.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let fields: Vec<&str> = text.split_whitespace().collect();
        if fields.len() != RANGES.len() {
            let expected = "second, minute, hour, day of the month, month, day of the week";
            return Err(format!("cron has six fields ({expected}), and not {}", fields.len()));
        }
        let mut parsed = Vec::with_capacity(RANGES.len());
        for (field, range) in fields.into_iter().zip(&RANGES) {
            let problem = |problem: String| format!("{} {field:?}: {problem}", range.name);
            parsed.push(self::field(field, range).map_err(problem)?);
        }
        let fields: [Field; 6] =
            parsed.try_into().map_err(|_: Vec<Field>| "cron has six fields".to_owned())?;
        let [seconds, minutes, hours, days, months, weekdays] = fields;
        Ok(Self { seconds, minutes, hours, days, months, weekdays })
    }

    /// The next time after this one. `None`: it does not come within five years.
    ///
    /// A time that the clocks skip does not come that day, and one that they repeat comes twice.
    pub(crate) fn next(&self, after: DateTime<Utc>, zone: &TimeZone) -> Option<DateTime<Utc>> {
        let after = Timestamp::from_second(after.timestamp()).ok()?;
        let local = zone.to_datetime(after);
        // The clocks may have been put back since: an earlier time of the day may come again.
        let mut date = local.date().checked_sub(1.day()).ok()?;
        let last_year = local.year() + YEARS;
        while date.year() <= last_year {
            if self.months.has(date.month())
                && self.is_day(date)
                && let Some(time) = self.next_of_day(date, after, zone)
            {
                return DateTime::from_timestamp(time.as_second(), 0);
            }
            date = date.tomorrow().ok()?;
        }
        None
    }

    /// If both the number and the weekday are restricted, either is enough.
    fn is_day(&self, date: Date) -> bool {
        let by_number = self.days.has(date.day());
        let by_weekday = self.weekdays.has(date.weekday().to_sunday_zero_offset());
        match self.days.is_any || self.weekdays.is_any {
            true => by_number && by_weekday,
            false => by_number || by_weekday,
        }
    }

    fn next_of_day(&self, date: Date, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut next: Option<Timestamp> = None;
        for hour in &self.hours.values {
            for minute in &self.minutes.values {
                let times = self.seconds.values.iter().filter_map(|second| time(*hour, *minute, *second));
                for time in times.flat_map(|time| instants(date.to_datetime(time), zone)).flatten() {
                    if time > after && next.is_none_or(|next| time < next) {
                        next = Some(time);
                    }
                }
            }
        }
        next
    }
}

fn time(hour: u32, minute: u32, second: u32) -> Option<Time> {
    let small = |value: u32| i8::try_from(value).ok();
    Time::new(small(hour)?, small(minute)?, small(second)?, 0).ok()
}

/// When the clocks show a time: never, once or twice.
fn instants(local: Local, zone: &TimeZone) -> [Option<Timestamp>; 2] {
    match zone.to_ambiguous_timestamp(local).offset() {
        AmbiguousOffset::Unambiguous { offset } => [offset.to_timestamp(local).ok(), None],
        AmbiguousOffset::Gap { .. } => [None, None],
        AmbiguousOffset::Fold { before, after } => {
            [before, after].map(|offset| offset.to_timestamp(local).ok())
        }
    }
}

/// A list of ranges: `*`, `?`, `5`, `1-5`, each also with a step.
fn field(text: &str, range: &Range) -> Result<Field, String> {
    let (mut values, mut is_any) = (Vec::new(), false);
    for part in text.split(',') {
        let (span, step) = match part.split_once('/') {
            Some((span, step)) => (span, Some(number(step, &[], 0)?)),
            None => (part, None),
        };
        let of = |text: &str| number(text, range.names, range.first);
        let (first, last) = match span.split_once('-') {
            Some((first, last)) => (of(first)?, of(last)?),
            None if ["*", "?"].contains(&span) => {
                is_any |= step.is_none_or(|step| step == 1);
                (range.first, range.last)
            }
            // A step without an end goes on to the last value.
            None => (of(span)?, if step.is_some() { range.last } else { of(span)? }),
        };
        if first < range.first || last > range.last || first > last {
            return Err(format!("expected {} to {}", range.first, range.last));
        }
        let step = usize::try_from(step.unwrap_or(1)).unwrap_or(usize::MAX);
        if step == 0 {
            return Err("a step is at least 1".to_owned());
        }
        values.extend((first..=last).step_by(step));
    }
    values.sort_unstable();
    values.dedup();
    Ok(Field { values, is_any })
}

fn number(text: &str, names: &[&str], first: u32) -> Result<u32, String> {
    let named = names.iter().position(|name| name.eq_ignore_ascii_case(text));
    match named.map(u32::try_from) {
        Some(Ok(place)) => Ok(place + first),
        Some(Err(_)) | None => text.parse().map_err(|_| format!("{text:?} is not a number")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    /// The next times after one, in a zone.
    fn nexts(cron: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
        let (cron, zone) = (Cron::parse(cron).unwrap(), TimeZone::get(zone).unwrap());
        let first: DateTime<Utc> = after.parse().unwrap();
        let times = std::iter::successors(Some(first), |time| cron.next(*time, &zone));
        times.skip(1).take(count).map(|time| time.format("%F %T").to_string()).collect()
    }

    #[test]
    fn the_end_of_a_month_and_leap_days_come_when_there_are_such_days() {
        assert_eq!(
            nexts("0 0 12 31 * *", "UTC", "2026-01-31T12:00:00Z", 4),
            ["2026-03-31 12:00:00", "2026-05-31 12:00:00", "2026-07-31 12:00:00", "2026-08-31 12:00:00"]
        );
        assert_eq!(
            nexts("0 0 0 29 2 *", "UTC", "2026-11-30T00:00:00Z", 2),
            ["2028-02-29 00:00:00", "2032-02-29 00:00:00"]
        );
        assert_eq!(
            nexts("59 59 23 28-31 feb ?", "UTC", "2028-02-28T00:00:00Z", 3),
            ["2028-02-28 23:59:59", "2028-02-29 23:59:59", "2029-02-28 23:59:59"]
        );
        assert_eq!(nexts("0 0 0 1 1 *", "UTC", "2026-12-31T23:59:59Z", 1), ["2027-01-01 00:00:00"]);
        // 1900 and 2100 have no leap day, and the next one is eight years away.
        assert_eq!(nexts("0 0 0 29 2 *", "UTC", "2096-03-01T00:00:00Z", 1), [""; 0]);
    }

    #[test]
    fn a_time_that_clocks_skip_does_not_come_and_one_that_they_repeat_comes_twice() {
        // In Berlin, clocks go from 2 to 3 on 28 March 2027, and from 3 to 2 on 31 October.
        assert_eq!(
            nexts("0 30 2 * * *", "Europe/Berlin", "2027-03-26T12:00:00Z", 3),
            ["2027-03-27 01:30:00", "2027-03-29 00:30:00", "2027-03-30 00:30:00"]
        );
        assert_eq!(
            nexts("0 30 2 * * *", "Europe/Berlin", "2027-10-30T12:00:00Z", 3),
            ["2027-10-31 00:30:00", "2027-10-31 01:30:00", "2027-11-01 01:30:00"]
        );
        // A time of every day keeps its hour.
        assert_eq!(
            nexts("0 0 4 * * *", "Europe/Berlin", "2027-03-27T03:00:00Z", 2),
            ["2027-03-28 02:00:00", "2027-03-29 02:00:00"]
        );
        // Every half of an hour comes in both of the hours that are one on the clock.
        assert_eq!(
            nexts("0 */30 * * * *", "Europe/Berlin", "2027-10-31T00:00:00Z", 4),
            ["2027-10-31 00:30:00", "2027-10-31 01:00:00", "2027-10-31 01:30:00", "2027-10-31 02:00:00"]
        );
        // On the other side of the world, and by half an hour.
        assert_eq!(
            nexts("0 15 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00:00Z", 2),
            ["2026-10-04 15:15:00", "2026-10-05 15:15:00"]
        );
    }

    #[test]
    fn a_day_is_one_of_both_fields_or_of_either() {
        // 1 January 2027 is a Friday.
        assert_eq!(
            nexts("0 0 0 13 * fri", "UTC", "2027-01-01T00:00:00Z", 3),
            ["2027-01-08 00:00:00", "2027-01-13 00:00:00", "2027-01-15 00:00:00"]
        );
        assert_eq!(
            nexts("0 0 0 * * 1-5/4", "UTC", "2027-01-01T00:00:00Z", 2),
            ["2027-01-04 00:00:00", "2027-01-08 00:00:00"]
        );
        assert_eq!(nexts("30/15 59 23 */31 * *", "UTC", "2027-01-01T00:00:00Z", 1), ["2027-01-01 23:59:30"]);
    }

    #[test]
    fn what_never_comes_has_no_next_time_and_nonsense_is_refused() {
        for never in ["0 0 0 30 2 *", "0 0 0 31 2,4,6,9,11 ?", "0 0 0 31 feb-feb *"] {
            assert_eq!(nexts(never, "UTC", "2026-11-30T00:00:00Z", 1), [""; 0], "{never}");
        }
        // A weekday comes in every month.
        assert_eq!(nexts("0 0 0 30 2 mon", "UTC", "2026-11-30T00:00:00Z", 1), ["2027-02-01 00:00:00"]);
        for (wrong, reason) in [
            ("0 0 3 * *", "six fields"),
            ("60 0 3 * * *", "the second \"60\": expected 0 to 59"),
            ("0 0 24 * * *", "the hour"),
            ("0 0 3 0 * *", "expected 1 to 31"),
            ("0 0 3 * 13 *", "expected 1 to 12"),
            ("0 0 3 * * 7", "the day of the week \"7\": expected 0 to 6"),
            ("0 0 5-3 * * *", "expected 0 to 23"),
            ("0 0 */0 * * *", "a step is at least 1"),
            ("0 0 x * * *", "\"x\" is not a number"),
            ("0 0 -1 * * *", "is not a number"),
            ("0 0 , * * *", "is not a number"),
        ] {
            let refused = Cron::parse(wrong).unwrap_err();
            assert!(refused.contains(reason), "{wrong}: {refused}");
        }
    }
}
