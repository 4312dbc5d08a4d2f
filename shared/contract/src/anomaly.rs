//! Anomalies in the use of the platform.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The payload of `anomaly.detected`, an event of user 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Anomaly {
    /// The row of `audit.security_violations`.
    pub violation_id: Uuid,
    /// `anomaly-refusals`, `anomaly-reads`, `anomaly-strangers` (users that the service never read), `anomaly-hours` or
    /// `anomaly-seals`.
    pub kind: String,
    /// The service; `unregistered` stands for all that are not registered. Absent for seals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The beginning of the hour; for seals, of the day.
    pub hour: DateTime<Utc>,
    /// `low`, `medium`, `high` or `critical`.
    pub severity: String,
    /// What was counted in that hour: refusals, rows, users, uses; of seals, those that are missing or the hours since the last one.
    pub observed: i64,
    /// The median of the same hour on the days before.
    pub usual: i64,
    /// What would not have been an anomaly.
    pub expected_at_most: i64,
}
