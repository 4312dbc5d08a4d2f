//! `router.analytics`: the reference document's "Router performance analytics", from the hourly patterns.

use chrono::{DateTime, TimeDelta, Utc};
use contract::{
    AnalyticsRow, Dimension, Malformed, RouterAnalytics, RouterAnswer, Text as BoundedText, UserId,
};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Double, Integer, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;
use store::security::PlanCacheMode;
use store::{Connection, Fault};

use crate::column::label;
use crate::page;
use crate::query_context::QueryContext;
use crate::query_failure::QueryFailure;
use crate::validated_query::{Answered, ValidatedQuery};

const TABLE: &str = "router_hourly_patterns";
/// The maximum time range.
const MAX_RANGE: TimeDelta = TimeDelta::days(366);
const DEFAULT_RANGE: TimeDelta = TimeDelta::hours(24);

#[derive(Debug)]
pub(crate) struct Analytics {
    query: RouterAnalytics,
    from: DateTime<Utc>,
    until: DateTime<Utc>,
}

impl ValidatedQuery for Analytics {
    type Query = RouterAnalytics;

    fn validate(query: RouterAnalytics) -> Result<Self, Malformed> {
        let out_of_range = |field: &str| Malformed::new(field, "is too far from now");
        let until = query.until.unwrap_or_else(Utc::now);
        let from = match query.from {
            Some(from) => from,
            None => until.checked_sub_signed(DEFAULT_RANGE).ok_or_else(|| out_of_range("until"))?,
        };
        if from > until {
            return Err(Malformed::new("from", "is later than until"));
        }
        if until.signed_duration_since(from) > MAX_RANGE {
            return Err(Malformed::new("from", "is more than 366 days before until"));
        }
        // The patterns are of whole hours.
        let hour = |time: DateTime<Utc>| {
            DateTime::from_timestamp(time.timestamp().div_euclid(3_600).checked_mul(3_600)?, 0)
        };
        // The answer repeats both.
        let bounded = |time: Option<DateTime<Utc>>| time.filter(|&time| contract::bounded_time(time).is_ok());
        let default_from = query.from.is_none();
        let from = bounded(hour(from));
        let from = from.ok_or_else(|| out_of_range(if default_from { "until" } else { "from" }))?;
        let last = hour(until).and_then(|last| last.checked_add_signed(TimeDelta::hours(1)));
        Ok(Self { query, from, until: bounded(last).ok_or_else(|| out_of_range("until"))? })
    }

    async fn answer(self, context: &mut QueryContext<'_>) -> Result<Answered<RouterAnswer>, QueryFailure> {
        let user = context.user;
        let rows = context.read(PlanCacheMode::Auto, async |connection| self.rows(connection, user).await);
        Ok(rows.await?)
    }
}

impl Analytics {
    fn by(&self, dimension: Dimension) -> bool {
        self.query.by.as_slice().contains(&dimension)
    }
}

/// A dimension that the query does not group by has the same value in every row, so that one statement serves every
/// query. The histograms of the times are summed in a step of their own, and only for the rows of the answer.
const ANALYZE: &str = "
    WITH wanted AS MATERIALIZED (
        SELECT CASE WHEN $4 THEN hour ELSE '-infinity' END AS hour, CASE WHEN $5 THEN chat_mode::text ELSE '' END AS chat_mode,
            CASE WHEN $6 THEN route ELSE '' END AS route, CASE WHEN $7 THEN tool ELSE '' END AS tool,
            CASE WHEN $8 THEN model ELSE '' END AS model,
            decisions, successes, timed, times, time_ms_sum, tokens_sum, complexity_sum, confidence_sum
        FROM router_hourly_patterns
        WHERE user_id = $1 AND hour >= $2 AND hour < $3 AND ($9 IS NULL OR chat_mode = $9::chat_mode)
            AND ($10 IS NULL OR route = $10) AND ($12 IS NULL OR model = $12)
            AND CASE WHEN $11 IS NOT NULL THEN tool = $11 WHEN $7 THEN tool <> '' ELSE tool = '' END
    ), summed AS MATERIALIZED (
        SELECT hour, chat_mode, route, tool, model, sum(decisions)::bigint AS decisions, sum(successes)::bigint AS successes,
            sum(timed)::bigint AS timed, sum(time_ms_sum)::float8 AS time_ms_sum, sum(tokens_sum)::bigint AS tokens_sum,
            sum(complexity_sum)::float8 AS complexity_sum, sum(confidence_sum)::float8 AS confidence_sum
        FROM wanted GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5 LIMIT $13
    ), buckets AS (
        SELECT hour, chat_mode, route, tool, model, t.key::integer AS bucket, sum(t.value::bigint) AS amount
        FROM wanted JOIN summed USING (hour, chat_mode, route, tool, model) CROSS JOIN LATERAL jsonb_each_text(wanted.times) AS t
        GROUP BY 1, 2, 3, 4, 5, 6
    ), reached AS (
        SELECT hour, chat_mode, route, tool, model, bucket,
            sum(amount) OVER (PARTITION BY hour, chat_mode, route, tool, model ORDER BY bucket)
                >= 0.95 * sum(amount) OVER (PARTITION BY hour, chat_mode, route, tool, model) AS is_reached
        FROM buckets
    ), percentiles AS (
        SELECT hour, chat_mode, route, tool, model, router_bucket_end(min(bucket)) AS p95
        FROM reached WHERE is_reached GROUP BY 1, 2, 3, 4, 5
    )
    SELECT CASE WHEN $4 THEN s.hour END AS hour, s.chat_mode, s.route, s.tool, s.model, s.decisions,
        s.successes::float8 / s.decisions AS success_rate, s.time_ms_sum / nullif(s.timed, 0) AS mean_time_ms,
        p.p95 AS p95_time_ms, s.complexity_sum / s.decisions AS mean_complexity,
        s.confidence_sum / s.decisions AS mean_confidence, s.tokens_sum AS tokens_used
    FROM summed s LEFT JOIN percentiles p USING (hour, chat_mode, route, tool, model)
    ORDER BY s.hour, s.chat_mode, s.route, s.tool, s.model";

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Nullable<Timestamptz>)]
    hour: Option<DateTime<Utc>>,
    #[diesel(sql_type = Text)]
    chat_mode: String,
    #[diesel(sql_type = Text)]
    route: String,
    #[diesel(sql_type = Text)]
    tool: String,
    #[diesel(sql_type = Text)]
    model: String,
    #[diesel(sql_type = BigInt)]
    decisions: i64,
    #[diesel(sql_type = Double)]
    success_rate: f64,
    #[diesel(sql_type = Nullable<Double>)]
    mean_time_ms: Option<f64>,
    #[diesel(sql_type = Nullable<Double>)]
    p95_time_ms: Option<f64>,
    #[diesel(sql_type = Double)]
    mean_complexity: f64,
    #[diesel(sql_type = Double)]
    mean_confidence: f64,
    #[diesel(sql_type = BigInt)]
    tokens_used: i64,
}

impl Row {
    fn into_info(self, query: &Analytics) -> Result<AnalyticsRow, Fault> {
        let chat_mode = query.by(Dimension::ChatMode).then(|| label(&self.chat_mode)).transpose()?;
        Ok(AnalyticsRow {
            hour: self.hour,
            chat_mode,
            route: query.by(Dimension::Route).then_some(self.route),
            tool: query.by(Dimension::Tool).then_some(self.tool),
            model: query.by(Dimension::Model).then_some(self.model),
            decisions: self.decisions,
            success_rate: self.success_rate,
            mean_time_ms: self.mean_time_ms,
            p95_time_ms: self.p95_time_ms,
            mean_complexity: self.mean_complexity,
            mean_confidence: self.mean_confidence,
            tokens_used: self.tokens_used,
        })
    }
}

impl Analytics {
    async fn rows(&self, connection: &mut Connection, user: UserId) -> Result<Answered<RouterAnswer>, Fault> {
        let Self { query, from, until } = self;
        let limit = query.limit.get();
        let statement = diesel::sql_query(ANALYZE)
            .bind::<Integer, _>(user.get())
            .bind::<Timestamptz, _>(from)
            .bind::<Timestamptz, _>(until)
            .bind::<Bool, _>(self.by(Dimension::Hour))
            .bind::<Bool, _>(self.by(Dimension::ChatMode))
            .bind::<Bool, _>(self.by(Dimension::Route))
            .bind::<Bool, _>(self.by(Dimension::Tool))
            .bind::<Bool, _>(self.by(Dimension::Model))
            .bind::<Nullable<Text>, _>(query.chat_mode.map(contract::ChatMode::as_str))
            .bind::<Nullable<Text>, _>(query.route.as_ref().map(BoundedText::as_str))
            .bind::<Nullable<Text>, _>(query.tool.as_ref().map(BoundedText::as_str))
            .bind::<Nullable<Text>, _>(query.model.as_ref().map(BoundedText::as_str))
            .bind::<BigInt, _>(page::one_more(limit));
        let mut rows: Vec<Row> = store::prepared(statement).load(connection).await?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let truncated = rows.len() > limit;
        rows.truncate(limit);
        let read = rows.len();
        let rows = rows.into_iter().map(|row| row.into_info(self)).collect::<Result<_, Fault>>()?;
        Ok(Answered::new(RouterAnswer { from: *from, until: *until, rows, truncated }, TABLE, read))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn validated(json: &str) -> Result<Analytics, String> {
        Analytics::validate(serde_json::from_str(json).unwrap()).map_err(|malformed| malformed.to_string())
    }

    #[test]
    fn whole_hours_are_asked_about_and_not_too_many() {
        let day = validated(r#"{"from":"2026-11-01T10:59:00Z","until":"2026-11-01T12:00:00Z"}"#).unwrap();
        assert_eq!(
            (day.from.to_rfc3339(), day.until.to_rfc3339()),
            ("2026-11-01T10:00:00+00:00".into(), "2026-11-01T13:00:00+00:00".into())
        );
        assert_eq!(validated(r#"{"until":"1969-12-31T23:30:00Z"}"#).unwrap().until.timestamp(), 0);
        assert!(validated("{}").is_ok());
        for (json, problem) in [
            (
                r#"{"from":"2026-11-02T00:00:00Z","until":"2026-11-01T00:00:00Z"}"#,
                "from: is later than until",
            ),
            (
                r#"{"from":"2025-01-01T00:00:00Z","until":"2026-11-01T00:00:00Z"}"#,
                "from: is more than 366 days before until",
            ),
            (r#"{"until":"9999-12-31T23:30:00Z"}"#, "until: is too far from now"),
            (r#"{"until":"0001-01-01T00:30:00Z"}"#, "until: is too far from now"),
        ] {
            assert_eq!(validated(json).unwrap_err(), problem);
        }
    }
}
