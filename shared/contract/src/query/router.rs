use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::number::Bounded;
use crate::session::ChatMode;
use crate::value::{List, Text};

/// What decisions are put together by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Dimension {
    /// The hour (UTC) of the decision.
    Hour,
    /// The mode of the session.
    ChatMode,
    /// The route.
    Route,
    /// The tool. A decision counts for each tool that it invoked, and not at all if it invoked none.
    Tool,
    /// The model.
    Model,
}

/// Asks what is learnt from the routing decisions of the user over a time.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouterAnalytics {
    /// From the beginning of this hour on. Absent: 24 hours before `until`.
    #[serde(default, deserialize_with = "crate::value::time")]
    pub from: Option<DateTime<Utc>>,
    /// Until the end of this hour. Absent: now. At most 366 days after `from`.
    #[serde(default, deserialize_with = "crate::value::time")]
    pub until: Option<DateTime<Utc>>,
    /// A row for each value of these. Empty: one row for all.
    #[serde(default = "hour")]
    pub by: List<Dimension, 5>,
    /// Only decisions in this mode.
    #[serde(default)]
    pub chat_mode: Option<ChatMode>,
    /// Only decisions for this route.
    #[serde(default)]
    pub route: Option<Text<1, 200>>,
    /// Only decisions that invoked this tool.
    #[serde(default)]
    pub tool: Option<Text<1, 200>>,
    /// Only decisions of this model.
    #[serde(default)]
    pub model: Option<Text<1, 100>>,
    /// The most rows, the first ones.
    #[serde(default = "five_hundred")]
    pub limit: Bounded<1, 1000>,
}

fn hour() -> List<Dimension, 5> {
    List(vec![Dimension::Hour])
}

fn five_hundred() -> Bounded<1, 1000> {
    Bounded::literal(500)
}

/// What some decisions add up to.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AnalyticsRow {
    /// When the hour begins, if asked by it; likewise the next four.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hour: Option<DateTime<Utc>>,
    /// The mode.
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
    /// How many decisions.
    pub decisions: i64,
    /// The share of those that ended well, 0 to 1.
    pub success_rate: f64,
    /// How long they took on average, in milliseconds, as far as it is known.
    pub mean_time_ms: Option<f64>,
    /// Within which time 95 of 100 ended, in milliseconds: at most a tenth too much, and never too little.
    pub p95_time_ms: Option<f64>,
    /// How hard they were on average, 0 to 1.
    pub mean_complexity: f64,
    /// How sure the router was on average, 0 to 1.
    pub mean_confidence: f64,
    /// How many tokens they used together.
    pub tokens_used: i64,
}

/// What is learnt from decisions.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RouterAnswer {
    /// When the first hour begins.
    pub from: DateTime<Utc>,
    /// When the last hour ends.
    pub until: DateTime<Utc>,
    /// By what was asked for, in this order: hour, mode, route, tool, model.
    pub rows: Vec<AnalyticsRow>,
    /// Whether there are more rows than were asked for.
    pub truncated: bool,
}
