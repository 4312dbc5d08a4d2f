//! Schedules of jobs: when the server ticks, and when it does not.

use std::time::Duration;

use async_nats::jetstream;
use chrono::{DateTime, Utc};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use testkit::attack::{attempt, login};
use testkit::{Fixture, eventually};

use crate::support::program::{Ended, memfleet, output};
use crate::support::retention::{cleaner, with_old_sessions};

async fn run(fixture: &Fixture, arguments: &[&str]) -> Ended {
    output(memfleet(fixture, arguments)).await.into()
}

async fn succeeds(fixture: &Fixture, arguments: &[&str]) -> String {
    let ended = run(fixture, arguments).await;
    assert!(ended.is_success(), "{arguments:?}: {}", ended.all());
    ended.out
}

/// The last tick of a job, by its sequence number; 0 if there is none.
async fn last_tick(fixture: &Fixture, job: &str) -> u64 {
    tick(fixture, job).await.map_or(0, |tick| tick.sequence)
}

async fn tick(fixture: &Fixture, job: &str) -> Option<jetstream::message::StreamMessage> {
    let stream = fixture.jetstream.get_stream("JOBS").await.expect("the stream");
    stream.get_last_raw_message_by_subject(&format!("memory.job.{job}")).await.ok()
}

/// Waits until a job has ticked some times more.
async fn ticks(fixture: &Fixture, job: &str, times: usize) {
    for _ in 0..times {
        let before = last_tick(fixture, job).await;
        eventually("a tick", async || (last_tick(fixture, job).await > before).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_job_has_no_ticks_until_it_is_resumed() {
    const JOB: &str = "retention-sweep";
    /// Its ticks tell how the time goes by.
    const CLOCK: &str = "sync-forget";
    let fixture = Fixture::new().await;
    let ended = "chat_mode_sessions WHERE session_id = 'ended'";
    for job in [JOB, CLOCK] {
        succeeds(&fixture, &["schedule", "set", job, "@every 1s"]).await;
    }
    ticks(&fixture, JOB, 1).await;
    succeeds(&fixture, &["schedule", "pause", JOB]).await;
    succeeds(&fixture, &["schedule", "pause", JOB]).await;
    // A tick that the server had begun to publish is there by now.
    ticks(&fixture, CLOCK, 1).await;
    let last = last_tick(&fixture, JOB).await;
    let worker = fixture.run(cleaner(&fixture));
    eventually("the ticks until then are done", async || {
        let info = fixture.consumer("JOBS", "retention-cleaner-jobs").await.get_info().await.ok()?;
        (info.num_pending == 0 && info.num_ack_pending == 0).then_some(())
    })
    .await;
    with_old_sessions(&fixture, 1..=2, 400).await;
    let client = fixture.jetstream.client();
    for _ in 0..3 {
        // Events that wake the job do not either.
        client.publish("memory.wake.retention-sweep", "".into()).await.expect("a hint");
        ticks(&fixture, CLOCK, 1).await;
    }
    assert_eq!(last_tick(&fixture, JOB).await, last, "a tick of a paused job");
    assert_eq!(fixture.stored("WAKES").await, 0, "a tick of a paused job after an event");
    assert_eq!(fixture.count(ended).await, 2);

    let status: Value = serde_json::from_str(&succeeds(&fixture, &["status", "--json"]).await).expect("JSON");
    assert_eq!(status["nats"]["missing"], json!([]), "it is not missing");
    assert_eq!(status["nats"]["paused"], json!([JOB]));
    assert!(succeeds(&fixture, &["status"]).await.contains("paused: retention-sweep"));
    assert!(succeeds(&fixture, &["schedule", "list"]).await.contains("paused"));
    let applied = succeeds(&fixture, &["nats", "apply"]).await;
    assert!(applied.starts_with("nothing to do"), "a pause is kept: {applied}");

    // What an operator runs at once does run, and only once.
    succeeds(&fixture, &["schedule", "run-now", JOB]).await;
    eventually("a run", async || (fixture.count(ended).await == 0).then_some(())).await;
    let once = last_tick(&fixture, JOB).await;
    ticks(&fixture, CLOCK, 2).await;
    assert_eq!(last_tick(&fixture, JOB).await, once, "it is still paused");

    succeeds(&fixture, &["schedule", "resume", JOB]).await;
    ticks(&fixture, JOB, 2).await;
    worker.stop().await.expect("a clean end");
}

/// Neither by details that take a kilobyte and are a gigabyte as text nor by a time that no other run reaches.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_role_notes_of_a_run_hides_no_other_one() {
    const JOB: &str = "consensus-close";
    let fixture = Fixture::new().await;
    let mut worker = login(&fixture, "w_consensus_builder").await;
    let numbers = format!("{{\"a\":[{}0]}}", "1e131071,".repeat(9_000));
    let long = format!("{{\"a\":\"{}\"}}", "x".repeat(262_144));
    let left_out = json!({ "left_out": true });
    let mut expected = Vec::new();
    for (details, kept) in [
        (numbers.as_str(), left_out.clone()),
        ("{\"a\":1E+5}", left_out.clone()),
        (long.as_str(), left_out),
        ("{\"a\":[\"1e5 \\\" 2e9\",true,-2.5]}", json!({ "a": ["1e5 \" 2e9", true, -2.5] })),
    ] {
        let note = format!(
            "SELECT sec.note_job_run('{JOB}', gen_random_uuid(), '9999-01-01', 1, 1, 0, NULL, '{details}')"
        );
        attempt(&mut worker, &note).await.expect("a note");
        expected.insert(0, kept);
    }
    let shown = succeeds(&fixture, &["schedule", "history", JOB]).await;
    assert_eq!(shown.matches("completed").count(), 4, "{shown}");
    let history: Value =
        serde_json::from_str(&succeeds(&fixture, &["schedule", "history", JOB, "--json"]).await)
            .expect("JSON");
    let runs = history["runs"].as_array().expect("runs");
    let details: Vec<&Value> = runs.iter().map(|run| &run["details"]).collect();
    assert_eq!(details, expected.iter().collect::<Vec<_>>());
    // What fails after it is what the job did last.
    let failed = format!(
        "SELECT sec.note_job_run('{JOB}', gen_random_uuid(), clock_timestamp(), 1, 0, 0, 'no space', '{{}}')"
    );
    attempt(&mut worker, &failed).await.expect("a note");
    let listed: Value =
        serde_json::from_str(&succeeds(&fixture, &["schedule", "list", "--json"]).await).expect("JSON");
    let mut listed = listed["schedules"].as_array().expect("schedules").iter();
    let listed = listed.find(|one| one["job"] == JOB).expect("the job");
    assert_eq!(listed["last_failure"], "no space");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_that_never_comes_is_refused_with_the_reason() {
    let fixture = Fixture::new().await;
    for (every, reason) in [
        ("0 0 0 30 2 *", "it never comes"),
        ("0 0 24 * * *", "the hour \"24\": expected 0 to 23"),
        ("@every 500ms", "at least 1s"),
        ("@every 10000h", "at most 8784h"),
    ] {
        let ended = run(&fixture, &["schedule", "set", "retention-sweep", every]).await;
        assert!(ended.code == Some(1) && ended.all().contains(reason), "{every}: {}", ended.all());
    }
    let set = succeeds(&fixture, &["schedule", "set", "retention-sweep", "0 0 0 29 2 *"]).await;
    assert!(set.contains("-02-29T00:00:00Z"), "the next leap day: {set}");
}

/// Cron in a time zone that comes at a time, and with other values of these fields: hour, day, month, weekday.
fn also(time: Timestamp, zone: &str, [hour, day, month, weekday]: [&str; 4]) -> String {
    let local = TimeZone::get(zone).expect("a zone").to_datetime(time);
    let with =
        |value: i8, more: &str| if more.is_empty() { value.to_string() } else { format!("{value}{more}") };
    let weekday = match weekday {
        "*" => "*".to_owned(),
        more => with(local.weekday().to_sunday_zero_offset(), more),
    };
    format!(
        "{} {} {} {} {} {weekday}",
        local.second(),
        local.minute(),
        with(local.hour(), hour),
        with(local.day(), day),
        with(local.month(), month),
    )
}

/// The server says with each tick when the next one is.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_time_of_a_schedule_is_that_of_the_server() {
    let fixture = Fixture::new().await;
    let jobs = contract::SCHEDULES.iter().map(|(job, _)| *job);
    let year = TimeZone::UTC.to_datetime(Timestamp::now()).year();
    let sunday = |month: i8, day: i8| {
        let date = Date::new(year + 1, month, day).expect("a date");
        format!(",{}", day - date.weekday().to_sunday_zero_offset())
    };
    // The last Sunday of March, and the first one of November: when clocks change.
    let (march, november) = (sunday(3, 31), sunday(11, 7));
    let cases = [
        ("UTC", ["", ",31", ",2,4", "*"]),
        ("Europe/Berlin", [",2", march.as_str(), ",3", "*"]),
        ("America/New_York", [",1", november.as_str(), ",11", "*"]),
        ("Australia/Lord_Howe", [",2", ",29", ",2", ",0"]),
        ("Asia/Kolkata", ["", ",13", ",5", ",5"]),
        ("Pacific/Kiritimati", [",0", ",1", ",1", "*"]),
    ];
    let mut expected = Vec::new();
    for (job, (zone, more)) in jobs.zip(cases) {
        let soon = Timestamp::now() + Duration::from_secs(3);
        let cron = also(soon, zone, more);
        succeeds(&fixture, &["schedule", "set", job, &cron, "--time-zone", zone]).await;
        expected.push((job, cron, zone, soon));
    }
    for (job, cron, zone, soon) in &expected {
        let tick = eventually("its tick", async || {
            // One of before is of the schedule that was there.
            tick(&fixture, job).await.filter(|tick| tick.time.unix_timestamp() >= soon.as_second())
        })
        .await;
        let of_server = tick.headers.get("Nats-Schedule-Next").expect("the next time").as_str().to_owned();
        let of_server: DateTime<Utc> = of_server.parse().expect("a time");
        let listed = succeeds(&fixture, &["schedule", "list", "--json"]).await;
        let listed: Value = serde_json::from_str(&listed).expect("JSON");
        let mut listed = listed["schedules"].as_array().expect("schedules").iter();
        let listed = listed.find(|one| one["job"] == *job).expect("its schedule");
        let next: DateTime<Utc> = listed["next"].as_str().expect("a time").parse().expect("a time");
        assert_eq!(next, of_server, "{cron} in {zone}");
    }
    assert_eq!(expected.len(), 6);
}
