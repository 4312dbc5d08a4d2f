//! What an operator does with the schedules of jobs: see them, change them, run a job at once, pause it.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::{HeaderMap, HeaderValue};
use chrono::{DateTime, SecondsFormat, Utc};
use contract::header::PAUSED;
use contract::{JOB_ROOT, SCHEDULE_ROOT, SCHEDULES};
use jiff::tz::TimeZone;

use crate::TopologyError;
use crate::cron::Cron;
use crate::every;
use crate::schedule::{SCHEDULE, TARGET, ZONE, last_message};

/// How soon a job runs that runs at once: the server takes no time that has passed.
const SOON: Duration = Duration::from_millis(500);

/// The schedule of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobSchedule {
    /// The job.
    pub job: &'static str,
    /// How often it runs by default.
    pub default: &'static str,
    /// How often it runs: cron with six fields, or `@every`. None if the broker has no schedule of it.
    pub every: Option<String>,
    /// The time zone of a cron expression; UTC if none.
    pub time_zone: Option<String>,
    /// Whether it is paused.
    pub is_paused: bool,
    /// When it was set.
    pub set_at: Option<DateTime<Utc>>,
    /// When it comes next. None of `@every`, which goes by the last time, and of a job that is paused.
    pub next: Option<DateTime<Utc>>,
}

fn find(job: &str) -> Result<(&'static str, &'static str), TopologyError> {
    SCHEDULES.iter().copied().find(|(known, _)| *known == job).ok_or_else(|| {
        let known: Vec<&str> = SCHEDULES.iter().map(|(job, _)| *job).collect();
        impossible(job, format!("there is no such job; expected one of {}", known.join(", ")))
    })
}

fn impossible(job: &str, problem: String) -> TopologyError {
    TopologyError::Schedule { job: job.to_owned(), problem }
}

fn refused(job: &str, problem: String) -> TopologyError {
    TopologyError::Refused { refused: format!("the schedule {SCHEDULE_ROOT}.{job}"), problem }
}

/// The schedules of all jobs, in the order of the catalogue.
///
/// # Errors
/// [`TopologyError::Unknown`] if the broker cannot be asked.
pub async fn schedules(broker: &jetstream::Context) -> Result<Vec<JobSchedule>, TopologyError> {
    let mut schedules = Vec::with_capacity(SCHEDULES.len());
    for (job, default) in SCHEDULES.iter().copied() {
        schedules.push(schedule_of(broker, job, default).await?);
    }
    Ok(schedules)
}

async fn schedule_of(
    broker: &jetstream::Context,
    job: &'static str,
    default: &'static str,
) -> Result<JobSchedule, TopologyError> {
    let none = JobSchedule {
        job,
        default,
        every: None,
        time_zone: None,
        is_paused: false,
        set_at: None,
        next: None,
    };
    let Some(message) = last_message(broker, job).await? else { return Ok(none) };
    let header = |name: &str| message.headers.get(name).map(|value: &HeaderValue| value.as_str().to_owned());
    let (paused, time_zone) = (header(PAUSED), header(ZONE));
    let is_paused = paused.is_some();
    let every = header(SCHEDULE).or(paused);
    let cron = every.as_deref().filter(|_| !is_paused).and_then(|every| Cron::parse(every).ok());
    Ok(JobSchedule {
        is_paused,
        next: cron.zip(zone(time_zone.as_deref()).ok()).and_then(|(cron, zone)| cron.next(Utc::now(), &zone)),
        every,
        time_zone,
        set_at: DateTime::from_timestamp_nanos(
            i64::try_from(message.time.unix_timestamp_nanos()).unwrap_or(i64::MAX),
        )
        .into(),
        ..none
    })
}

/// Sets how often a job runs.
///
/// # Errors
/// [`TopologyError`] if there is no such job, it would never run or too often, or the broker refuses it.
pub async fn set_schedule(
    broker: &jetstream::Context,
    job: &str,
    every: &str,
    time_zone: Option<&str>,
) -> Result<(), TopologyError> {
    let (job, _) = find(job)?;
    check(every, time_zone, Utc::now()).map_err(|problem| impossible(job, problem))?;
    let target = format!("{JOB_ROOT}.{job}");
    publish(broker, job, "", &[(SCHEDULE, Some(every)), (TARGET, Some(target.as_str())), (ZONE, time_zone)])
        .await
}

/// Refuses what would never come, or come too often, with the reason.
fn check(every: &str, time_zone: Option<&str>, now: DateTime<Utc>) -> Result<(), String> {
    if let Some(duration) = every.strip_prefix("@every ") {
        return match time_zone {
            Some(_) => Err("@every has no time zone; omit it, or use cron".to_owned()),
            None => every::check(duration),
        };
    }
    if every.starts_with('@') {
        return Err("expected cron with six fields, or @every with a duration such as 30s".to_owned());
    }
    let (cron, zone) = (Cron::parse(every)?, zone(time_zone)?);
    match cron.next(now, &zone) {
        Some(_) => Ok(()),
        None => Err("it never comes: no day of the next five years is one of it".to_owned()),
    }
}

fn zone(name: Option<&str>) -> Result<TimeZone, String> {
    let Some(name) = name else { return Ok(TimeZone::UTC) };
    TimeZone::get(name)
        .map_err(|_| format!("there is no time zone {name:?}; expected a name such as Europe/Berlin"))
}

/// Runs a job at once, beside its schedule. A run that is under way is not started twice.
///
/// # Errors
/// [`TopologyError`] if there is no such job, or the broker refuses it.
pub async fn run_now(broker: &jetstream::Context, job: &str) -> Result<(), TopologyError> {
    let (job, _) = find(job)?;
    let at = format!("@at {}", (Utc::now() + SOON).to_rfc3339_opts(SecondsFormat::Millis, true));
    let target = format!("{JOB_ROOT}.{job}");
    publish(broker, job, ".now", &[(SCHEDULE, Some(at.as_str())), (TARGET, Some(target.as_str()))]).await
}

/// Pauses a job: it has no ticks until it is resumed. Ticks that are there are still processed.
///
/// # Errors
/// [`TopologyError`] if there is no such job, it has no schedule, or the broker refuses it.
pub async fn pause(broker: &jetstream::Context, job: &str) -> Result<(), TopologyError> {
    let (job, default) = find(job)?;
    let now = schedule_of(broker, job, default).await?;
    if now.is_paused {
        return Ok(());
    }
    let Some(every) = now.every else {
        return Err(impossible(job, "it has no schedule; run `memfleet nats apply`".to_owned()));
    };
    publish(broker, job, "", &[(PAUSED, Some(every.as_str())), (ZONE, now.time_zone.as_deref())]).await
}

/// Resumes a paused job, as often as before.
///
/// # Errors
/// [`TopologyError`] if there is no such job, it is not paused, or the broker refuses it.
pub async fn resume(broker: &jetstream::Context, job: &str) -> Result<(), TopologyError> {
    let (job, default) = find(job)?;
    let now = schedule_of(broker, job, default).await?;
    match now.every.filter(|_| now.is_paused) {
        Some(every) => set_schedule(broker, job, &every, now.time_zone.as_deref()).await,
        None => Err(impossible(job, "it is not paused".to_owned())),
    }
}

async fn publish(
    broker: &jetstream::Context,
    job: &str,
    suffix: &str,
    headers: &[(&str, Option<&str>)],
) -> Result<(), TopologyError> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        if let Some(value) = value {
            let value: HeaderValue =
                value.parse().map_err(|_| impossible(job, format!("{name} cannot be a header")))?;
            map.insert(*name, value);
        }
    }
    let refused = |problem: String| refused(job, problem);
    let sent = broker.publish_with_headers(format!("{SCHEDULE_ROOT}.{job}{suffix}"), map, "".into()).await;
    let sent = sent.map_err(|error| refused(error.to_string()))?;
    sent.await.map_err(|error| refused(error.to_string()))?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn what_never_comes_or_too_often_is_refused_with_the_reason() {
        let now: DateTime<Utc> = "2026-11-30T00:00:00Z".parse().unwrap();
        for (every, zone) in [
            ("@every 1s", None),
            ("@every 30s", None),
            ("@every 8784h", None),
            ("0 0 3 * * *", Some("Europe/Berlin")),
            ("0 0 0 29 2 *", None),
            ("0 0 0 31 * *", Some("Pacific/Kiritimati")),
        ] {
            assert_eq!(check(every, zone, now), Ok(()), "{every}");
        }
        for (every, zone, reason) in [
            ("0 3 * * *", None, "cron has six fields"),
            ("@daily", None, "expected cron with six fields"),
            ("@every 30s", Some("UTC"), "@every has no time zone"),
            ("@every 999ms", None, "at least 1s"),
            ("@every 8784h1s", None, "at most 8784h"),
            ("0 0 3 * * *", Some("Mars/Olympus"), "there is no time zone \"Mars/Olympus\""),
            ("0 0 0 30 2 *", None, "it never comes"),
            ("0 0 0 30 Feb ?", Some("Europe/Berlin"), "it never comes"),
            ("", None, "cron has six fields"),
        ] {
            let refused = check(every, zone, now).unwrap_err();
            assert!(refused.contains(reason), "{every}: {refused}");
        }
        assert!(find("retention-sweeep").is_err());
    }
}
