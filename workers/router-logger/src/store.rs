//! The worker's SQL.

use std::collections::HashSet;
use std::sync::LazyLock;

use ::store::unnest::{UnnestRow, with_rows};
use ::store::{Connection, Fault};
use chrono::{DateTime, Utc};
use contract::{DecisionLog, RouterRequest, ToolReport};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Bool, Integer, Text};
use diesel_async::RunQueryDsl;
use keys::{DataKeys, Field};
use runtime::Message;
use uuid::Uuid;

/// The result of a statement for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It took effect.
    Applied,
    /// A decision with this id exists.
    Duplicate,
    /// Its session does not exist.
    Missing,
}

struct Item<'a, T> {
    index: usize,
    message: &'a Message<RouterRequest>,
    request: &'a T,
}

/// Aggregates the decisions of a table by hour, mode, route, tool and model. Times are first counted by bucket, and
/// then the buckets of a pattern are combined: adding up one JSON object per decision would take most of a batch's
/// time.
macro_rules! patterns_of {
    ($decisions:literal) => {
        concat!(
            "SELECT user_id, hour, chat_mode, route, tool, model, sum(decisions)::bigint AS decisions,
                sum(successes)::bigint AS successes, sum(timed)::bigint AS timed,
                coalesce(jsonb_object_agg(bucket, timed) FILTER (WHERE bucket IS NOT NULL), '{}') AS times,
                sum(time_ms_sum)::bigint AS time_ms_sum, sum(tokens_sum)::bigint AS tokens_sum,
                sum(complexity_sum) AS complexity_sum, sum(confidence_sum) AS confidence_sum
            FROM (
                SELECT d.user_id, date_trunc('hour', d.created_at, 'UTC') AS hour, d.chat_mode, d.route, t.tool,
                    coalesce(d.model_used, '') AS model, d.bucket, count(*) AS decisions,
                    count(*) FILTER (WHERE d.success) AS successes, count(d.processing_time_ms) AS timed,
                    coalesce(sum(d.processing_time_ms), 0) AS time_ms_sum, coalesce(sum(d.tokens_used), 0) AS tokens_sum,
                    sum(d.complexity_score::numeric) AS complexity_sum, sum(d.confidence_score::numeric) AS confidence_sum
                FROM (SELECT *, router_route(routing_decision) AS route, router_time_bucket(processing_time_ms) AS bucket FROM ",
            $decisions,
            ") AS d CROSS JOIN LATERAL unnest(array_prepend('', router_tools(d.tools_invoked))) AS t (tool)
                GROUP BY 1, 2, 3, 4, 5, 6, 7
            ) AS by_bucket
            GROUP BY 1, 2, 3, 4, 5, 6"
        )
    };
}

/// Recomputes the patterns from the log. `router_hourly_patterns` must hold the same rows.
pub const RECOMPUTED: &str = patterns_of!("router_decision_log");

::store::unnest_row! {
    /// A row of [`WRITE`].
    struct Row<'a> {
        id: Uuid,
        user_id: i32,
        session_id: &'a str,
        user_request: &'a str,
        routing_decision: &'a str,
        tools_invoked: String,
        complexity_score: f64,
        confidence_score: f64,
        processing_time_ms: Option<i64>,
        tokens_used: Option<i64>,
        model_used: Option<&'a str>,
        success: bool,
        error_details: Option<&'a str>,
        created_at: DateTime<Utc>,
        is_sensitive: bool,
        event_id: Uuid,
        request_id: Uuid,
    }
}

impl<'a> Row<'a> {
    fn new(item: &Item<'a, DecisionLog>) -> Self {
        let Item { message, request, .. } = *item;
        let tools: Vec<&str> = request.tools_invoked.as_slice().iter().map(contract::Json::as_str).collect();
        Self {
            id: request.decision_id,
            user_id: message.user_id().get(),
            session_id: request.session_id.as_str(),
            user_request: request.user_request.as_str(),
            routing_decision: request.routing_decision.as_str(),
            tools_invoked: format!("[{}]", tools.join(",")),
            complexity_score: request.complexity_score.get(),
            confidence_score: request.confidence_score.get(),
            processing_time_ms: request.processing_time_ms.map(contract::Bounded::get),
            tokens_used: request.tokens_used.map(contract::Bounded::get),
            model_used: request.model_used.as_ref().map(contract::Text::as_str),
            success: request.success,
            error_details: request.error_details.as_ref().map(contract::Json::as_str),
            created_at: decided_at(item),
            is_sensitive: request.sensitive,
            event_id: message.event_id,
            request_id: message.request_id,
        }
    }
}

static WRITE: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (Row::arrays(1), Row::names());
    let patterns = patterns_of!("written");
    format!(
        "WITH input AS MATERIALIZED (
        SELECT DISTINCT ON (i.user_id, i.id) (i.place - 1)::integer AS ordinal, i.*, s.chat_mode
        FROM unnest({arrays}) WITH ORDINALITY AS i ({names}, place)
        JOIN chat_mode_sessions s ON s.user_id = i.user_id AND s.session_id = i.session_id
        ORDER BY i.user_id, i.id, i.place
    ), written AS (
        INSERT INTO router_decision_log (id, user_id, session_id, user_request, routing_decision, tools_invoked,
            complexity_score, confidence_score, processing_time_ms, tokens_used, model_used, success, error_details,
            blackboard_event_id, created_at, chat_mode, is_sensitive, request_id)
        SELECT id, user_id, session_id, user_request, routing_decision::jsonb, tools_invoked::jsonb, complexity_score,
            confidence_score, processing_time_ms, tokens_used, model_used, success, error_details::jsonb, event_id, created_at,
            chat_mode, is_sensitive, request_id
        FROM input ORDER BY user_id, id
        ON CONFLICT (user_id, id) DO NOTHING
        RETURNING *
    ), learnt AS (
        INSERT INTO router_hourly_patterns AS p (user_id, hour, chat_mode, route, tool, model, decisions, successes, timed,
            times, time_ms_sum, tokens_sum, complexity_sum, confidence_sum)
        {patterns} ORDER BY 1, 2, 3, 4, 5, 6
        ON CONFLICT (user_id, hour, chat_mode, route, tool, model) DO UPDATE SET
            decisions = p.decisions + excluded.decisions, successes = p.successes + excluded.successes,
            timed = p.timed + excluded.timed, times = add_counts(p.times, excluded.times),
            time_ms_sum = p.time_ms_sum + excluded.time_ms_sum, tokens_sum = p.tokens_sum + excluded.tokens_sum,
            complexity_sum = p.complexity_sum + excluded.complexity_sum,
            confidence_sum = p.confidence_sum + excluded.confidence_sum
    )
    SELECT i.ordinal, w.id IS NOT NULL AS is_new FROM input i LEFT JOIN written w ON w.user_id = i.user_id AND w.id = i.id"
    )
});

/// Writes a batch and returns the result of each request, in order. `keys` holds the data keys of the users whose
/// secrets are in the batch.
///
/// # Errors
/// A [`Fault`] of the database: the caller must roll the transaction back.
pub async fn write(
    connection: &mut Connection,
    batch: &[&Message<RouterRequest>],
    keys: &DataKeys,
) -> Result<Vec<Done>, Fault> {
    let (mut decisions, mut reports) = (Vec::new(), Vec::new());
    for (index, &message) in batch.iter().enumerate() {
        match &message.request {
            RouterRequest::DecisionLog(request) => decisions.push(Item { index, message, request }),
            RouterRequest::ToolReport(request) => reports.push(Item { index, message, request }),
        }
    }
    let mut done = vec![Done::Missing; batch.len()];
    write_decisions(connection, &decisions, &mut done).await?;
    accept_reports(connection, &reports, &mut done).await?;
    write_secrets(connection, &decisions, &done, keys).await?;
    Ok(done)
}

async fn write_decisions(
    connection: &mut Connection,
    items: &[Item<'_, DecisionLog>],
    done: &mut [Done],
) -> Result<(), Fault> {
    #[derive(QueryableByName)]
    struct Answer {
        #[diesel(sql_type = Integer)]
        ordinal: i32,
        #[diesel(sql_type = Bool)]
        is_new: bool,
    }
    if items.is_empty() {
        return Ok(());
    }
    let rows = items.iter().map(Row::new).collect();
    let answers: Vec<Answer> = with_rows(&WRITE, rows).load(connection).await?;
    // Of several decisions with the same id in a batch, only the first one is written.
    let mut known: HashSet<(i32, Uuid)> = HashSet::new();
    for answer in answers {
        let item = usize::try_from(answer.ordinal).ok().and_then(|ordinal| items.get(ordinal));
        if let Some(item) = item {
            known.insert((item.message.user_id().get(), item.request.decision_id));
            done[item.index] = if answer.is_new { Done::Applied } else { Done::Duplicate };
        }
    }
    for item in items.iter().filter(|item| done[item.index] == Done::Missing).collect::<Vec<_>>() {
        if known.contains(&(item.message.user_id().get(), item.request.decision_id)) {
            done[item.index] = Done::Duplicate;
        }
    }
    Ok(())
}

/// The time of a decision, at most the time when it was stored: the publisher's clock may be ahead.
fn decided_at(item: &Item<'_, DecisionLog>) -> DateTime<Utc> {
    let stored_at = item.message.stored_at;
    item.request.decided_at.map_or(stored_at, |decided_at| decided_at.min(stored_at))
}

fn column<'i, 'a, R, T>(items: &'i [Item<'a, R>], field: impl Fn(&'i Item<'a, R>) -> T) -> Vec<T> {
    items.iter().map(field).collect()
}

/// Marks the reports whose session exists as applied. No table is written.
async fn accept_reports(
    connection: &mut Connection,
    items: &[Item<'_, ToolReport>],
    done: &mut [Done],
) -> Result<(), Fault> {
    const FIND: &str = "
        SELECT (i.ordinal - 1)::integer AS ordinal
        FROM unnest($1::integer[], $2::text[]) WITH ORDINALITY AS i (user_id, session_id, ordinal)
        JOIN chat_mode_sessions s ON s.user_id = i.user_id AND s.session_id = i.session_id";
    #[derive(QueryableByName)]
    struct Found {
        #[diesel(sql_type = Integer)]
        ordinal: i32,
    }
    if items.is_empty() {
        return Ok(());
    }
    let query = diesel::sql_query(FIND)
        .bind::<Array<Integer>, _>(column(items, |item| item.message.user_id().get()))
        .bind::<Array<Text>, _>(column(items, |item| item.request.session_id.as_str()));
    let found: Vec<Found> = ::store::prepared(query).load(connection).await?;
    for Found { ordinal } in found {
        if let Some(item) = usize::try_from(ordinal).ok().and_then(|ordinal| items.get(ordinal)) {
            done[item.index] = Done::Applied;
        }
    }
    Ok(())
}

/// Encrypts and writes the secrets of the new decisions.
async fn write_secrets(
    connection: &mut Connection,
    items: &[Item<'_, DecisionLog>],
    done: &[Done],
    keys: &DataKeys,
) -> Result<(), Fault> {
    let new = items.iter().filter(|item| done[item.index] == Done::Applied);
    let secrets: Vec<_> = new
        .flat_map(|item| item.message.secrets.iter().map(move |secret| (item, secret)))
        .map(|(item, secret)| {
            let field = Field {
                user: item.message.user_id(),
                table: "router_decision_log",
                column: secret.field,
                row: item.request.decision_id,
                request_id: item.message.request_id,
                stored_at: item.message.stored_at,
            };
            (field, &secret.value)
        })
        .collect();
    keys::encrypt_fields(connection, &secrets, keys).await
}
