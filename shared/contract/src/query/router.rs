use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{QueryKind, QueryType};
use crate::number::Bounded;
use crate::session::ChatMode;
use crate::value::{List, Text};

/// A dimension by which routing decisions are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Dimension {
    /// The hour (UTC) of the decision.
    Hour,
    /// The chat mode of the session.
    ChatMode,
    /// The route.
    Route,
    /// The tool. A decision counts for each tool it invoked, and is left out if it invoked none.
    Tool,
    /// The model.
    Model,
}

/// Reads statistics of the routing decisions of the user over a time range.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouterAnalytics {
    /// From the start of this hour. Absent: 24 hours before `until`.
    #[serde(default, deserialize_with = "crate::time::read")]
    pub from: Option<DateTime<Utc>>,
    /// To the end of this hour. Absent: now. At most 366 days after `from`.
    #[serde(default, deserialize_with = "crate::time::read")]
    pub until: Option<DateTime<Utc>>,
    /// What the rows are grouped by. Empty: one row for all decisions.
    #[serde(default = "hour")]
    pub by: List<Dimension, 5>,
    /// Only decisions in this chat mode.
    #[serde(default)]
    pub chat_mode: Option<ChatMode>,
    /// Only decisions for this route.
    #[serde(default)]
    pub route: Option<Text<1, 200>>,
    /// Only decisions that invoked this tool.
    #[serde(default)]
    pub tool: Option<Text<1, 200>>,
    /// Only decisions made by this model.
    #[serde(default)]
    pub model: Option<Text<1, 100>>,
    /// The maximum number of rows; the first are returned.
    #[serde(default = "five_hundred")]
    pub limit: Bounded<1, 1000>,
}

impl QueryType for RouterAnalytics {
    type Answer = RouterAnswer;

    const KIND: &'static QueryKind =
        &QueryKind::new::<Self>("router", "analytics", "Statistics of routing decisions over a time range.");

    fn session_id(&self) -> Option<&str> {
        None
    }
}

fn hour() -> List<Dimension, 5> {
    List(vec![Dimension::Hour])
}

fn five_hundred() -> Bounded<1, 1000> {
    Bounded::literal(500)
}

/// The statistics of a group of decisions.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AnalyticsRow {
    /// The start of the hour. This and the next four fields are present if the rows are grouped by them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hour: Option<DateTime<Utc>>,
    /// The chat mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_mode: Option<ChatMode>,
    /// The route; `unknown` where a decision names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// The tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// The model; empty where a decision names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The number of decisions.
    pub decisions: i64,
    /// The share of successful decisions, 0 to 1.
    pub success_rate: f64,
    /// The mean processing time in milliseconds, of the decisions that report one.
    pub mean_time_ms: Option<f64>,
    /// The 95th percentile of the processing time in milliseconds: at most 10 % too high, never too low.
    pub p95_time_ms: Option<f64>,
    /// The mean complexity score, 0 to 1.
    pub mean_complexity: f64,
    /// The mean confidence score, 0 to 1.
    pub mean_confidence: f64,
    /// The total number of tokens used.
    pub tokens_used: i64,
}

/// Statistics of routing decisions.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RouterAnswer {
    /// The start of the first hour.
    pub from: DateTime<Utc>,
    /// The end of the last hour.
    pub until: DateTime<Utc>,
    /// The groups, ordered by hour, chat mode, route, tool and model.
    pub rows: Vec<AnalyticsRow>,
    /// Whether there are more rows than `limit`.
    pub truncated: bool,
}
