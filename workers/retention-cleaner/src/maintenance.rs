//! The job `maintenance`: functions of the database do the work, and this calls them.
//!
//! Each call is a transaction of its own, is bounded, and finds by itself where the one before it ended. So a run that is killed loses
//! nothing, and two at once do nothing twice. Anomalies are searched in the transaction of the tick, which has their events.

use std::borrow::Cow;
use std::collections::BTreeMap;

use ::store::job_runs::Counts;
use ::store::{Connection, Fault, Pool};
use chrono::{DateTime, Utc};
use contract::{Anomaly, Event, EventType, Performative, UserId};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use runtime::{EventDraft, Verdict, Written};
use serde::Serialize;
use uuid::Uuid;

use crate::Message;

/// How often a step is called in one run at most. What is left is done by the next one.
const CALLS: usize = 50;

const MAKE_PARTITIONS: &str = "SELECT sec.make_partitions_ahead() AS count";
const ALARMS: &str = "SELECT alarm FROM sec.partition_alarms() AS alarm";
const ROLL_UP: &str = "SELECT audit.roll_up_metrics() AS count";
const MEASURE: &str = "SELECT audit.measure_tables() AS count";
const CLEAN_UP: &str = "SELECT what, removed FROM audit.cleanup_old_data()";
const DETECT: &str = "SELECT id, kind, service, hour, severity, observed, usual, expected_at_most FROM audit.detect_security_anomalies()";

/// What a run did before the transaction of its tick.
#[derive(Debug, Default, Serialize)]
pub struct Steps {
    /// Partitions that were created.
    partitions: u64,
    /// Hours whose figures were rolled up.
    hours: u64,
    /// Sizes that were noted.
    sizes: u64,
    /// Rows that had aged out, by table.
    removed: BTreeMap<String, u64>,
    /// What an operator has to do.
    alarms: Vec<String>,
    /// The steps that failed, and why. The next run tries them again.
    failed: BTreeMap<&'static str, String>,
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = Integer)]
    count: i32,
}

#[derive(QueryableByName)]
struct Alarm {
    #[diesel(sql_type = Text)]
    alarm: String,
}

#[derive(QueryableByName)]
struct Aged {
    #[diesel(sql_type = Text)]
    what: String,
    #[diesel(sql_type = BigInt)]
    removed: i64,
}

#[derive(QueryableByName)]
struct Detected {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = Nullable<Text>)]
    service: Option<String>,
    #[diesel(sql_type = Timestamptz)]
    hour: DateTime<Utc>,
    #[diesel(sql_type = Text)]
    severity: String,
    #[diesel(sql_type = BigInt)]
    observed: i64,
    #[diesel(sql_type = BigInt)]
    usual: i64,
    #[diesel(sql_type = BigInt)]
    expected_at_most: i64,
}

/// Runs all steps. One that fails keeps no other from running, unless the database cannot be used.
pub(crate) async fn steps(pool: &Pool) -> Result<Steps, Fault> {
    let mut connection = ::store::acquire(pool).await?;
    let done = run(&mut connection).await;
    ::store::discard_if_unusable(connection, &done);
    let steps = done?;
    for alarm in &steps.alarms {
        tracing::error!("maintenance: {alarm}");
    }
    for (step, reason) in &steps.failed {
        tracing::warn!(step, "a step of the maintenance failed and is tried again: {reason}");
    }
    Ok(steps)
}

async fn run(connection: &mut Connection) -> Result<Steps, Fault> {
    let mut steps = Steps::default();
    let partitions = call(connection, MAKE_PARTITIONS).await;
    steps.partitions = steps.counted("partitions", partitions)?;
    let alarms = ::store::prepared(diesel::sql_query(ALARMS)).load::<Alarm>(connection).await;
    let alarms = steps.counted("alarms", alarms.map_err(Fault::from))?;
    steps.alarms = alarms.into_iter().map(|row| row.alarm).collect();
    for _ in 0..CALLS {
        let rolled = call(connection, ROLL_UP).await;
        let rolled = steps.counted("figures", rolled)?;
        steps.hours += rolled;
        if rolled == 0 {
            break;
        }
    }
    let sizes = call(connection, MEASURE).await;
    steps.sizes = steps.counted("sizes", sizes)?;
    for _ in 0..CALLS {
        let aged = ::store::prepared(diesel::sql_query(CLEAN_UP)).load::<Aged>(connection).await;
        let aged = steps.counted("aged", aged.map_err(Fault::from))?;
        let removed: u64 = aged.iter().map(|row| row.removed.unsigned_abs()).sum();
        for row in aged.into_iter().filter(|row| row.removed > 0) {
            *steps.removed.entry(row.what).or_default() += row.removed.unsigned_abs();
        }
        if removed == 0 {
            break;
        }
    }
    Ok(steps)
}

async fn call(connection: &mut Connection, sql: &'static str) -> Result<u64, Fault> {
    let rows: Vec<Count> = ::store::prepared(diesel::sql_query(sql)).load(connection).await?;
    Ok(rows.iter().map(|row| u64::from(row.count.unsigned_abs())).sum())
}

impl Steps {
    /// The result of a step, or nothing if it failed, which is noted. If the database cannot be used, all of it waits.
    fn counted<T: Default>(&mut self, step: &'static str, result: Result<T, Fault>) -> Result<T, Fault> {
        match result {
            Ok(result) => Ok(result),
            Err(fault) if fault.kind.is_outage() => Err(fault),
            Err(fault) => {
                self.failed.insert(step, fault.reason);
                Ok(T::default())
            }
        }
    }

    /// What an operator or the next run has to do.
    fn left(&self) -> u64 {
        u64::try_from(self.alarms.len() + self.failed.len()).unwrap_or(u64::MAX)
    }

    /// The steps that failed, and why.
    fn failure(&self) -> Option<String> {
        let failed: Vec<String> =
            self.failed.iter().map(|(step, reason)| format!("{step}: {reason}")).collect();
        (!failed.is_empty()).then(|| failed.join("; "))
    }

    fn changed(&self) -> u64 {
        self.partitions + self.hours + self.sizes + self.removed.values().sum::<u64>()
    }
}

/// Searches for anomalies, with an event for each.
pub(crate) async fn finish(
    connection: &mut Connection,
    tick: &Message,
    steps: Option<&Steps>,
) -> Result<Written<Uuid>, Fault> {
    let detected: Vec<Detected> = ::store::prepared(diesel::sql_query(DETECT)).load(connection).await?;
    let anomalies: Vec<Anomaly> = detected.into_iter().map(Anomaly::from).collect();
    for anomaly in &anomalies {
        let Anomaly { kind, observed, expected_at_most, hour, .. } = anomaly;
        let service = anomaly.service.as_deref().unwrap_or("none");
        tracing::warn!(%kind, service, observed, expected_at_most, %hour, "an anomaly");
    }
    let changed = steps.map_or(0, Steps::changed) + u64::try_from(anomalies.len()).unwrap_or(0);
    let skipped = steps.map_or(0, Steps::left);
    let details = serde_json::json!({ "steps": steps, "anomalies": anomalies });
    let counts = Counts {
        examined: changed + skipped,
        changed,
        skipped,
        details: Some(details.to_string()),
        failure: steps.and_then(Steps::failure),
    };
    let events: Vec<EventDraft> = anomalies.iter().map(event).collect::<Result<_, _>>()?;
    let verdict = if events.is_empty() { Verdict::unchanged(tick) } else { Verdict::Applied(events) };
    Ok(Written { counts: Some(counts), ..vec![verdict].into() })
}

fn event(anomaly: &Anomaly) -> Result<EventDraft, Fault> {
    let payload = serde_json::to_string(anomaly)
        .map_err(|error| Fault { kind: ::store::FaultKind::Permanent, reason: error.to_string() })?;
    Ok(EventDraft {
        user_id: UserId::PLATFORM,
        event_type: EventType::AnomalyDetected,
        performative: Performative::Inform,
        source_agent_id: None,
        target_agent_id: None,
        session_id: Cow::Borrowed(Event::ACCOUNT_SESSION),
        payload: Some(payload),
    })
}

impl From<Detected> for Anomaly {
    fn from(row: Detected) -> Self {
        Self {
            violation_id: row.id,
            kind: row.kind,
            service: row.service,
            hour: row.hour,
            severity: row.severity,
            observed: row.observed,
            usual: row.usual,
            expected_at_most: row.expected_at_most,
        }
    }
}
