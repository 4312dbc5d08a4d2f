//! What is left of persons who were anonymised: sums over all of them, by month.
//!
//! A row that is kept with another id in the place of the person's leads back to the person, for whoever knows a few of the rows from
//! before: by its times, its texts, and the rows that belong to it. A sum does not, if it is of enough persons.

use chrono::NaiveDate;
use contract::UserId;
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Date, Integer, Text};
use diesel_async::RunQueryDsl;
use serde::Serialize;
use store::{Connection, Fault};

/// A sum of fewer persons than these is not shown: somebody may know what the others did.
pub const FEWEST_PERSONS: i64 = 5;

/// One sum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, QueryableByName)]
pub struct Statistic {
    /// What is counted, such as `sessions`.
    #[diesel(sql_type = Text)]
    pub statistic: String,
    /// The first day of the month, in UTC.
    #[diesel(sql_type = Date)]
    pub month: NaiveDate,
    /// A value of the enumeration by which it is counted, such as a chat mode.
    #[diesel(sql_type = Text)]
    pub label: String,
    /// How many persons it is of.
    #[diesel(sql_type = BigInt)]
    pub persons: i64,
    /// The sum, in decimal digits: it may have more of them than a number of JSON.
    #[diesel(sql_type = Text)]
    pub amount: String,
}

/// What is counted: its name, the sum, the label, and the table `t`.
const COUNTED: [(&str, &str, &str, &str); 11] = [
    ("sessions", "count(*)", "t.chat_mode", "chat_mode_sessions"),
    ("events", "count(*)", "t.event_type", "blackboard_events"),
    ("contexts", "count(*)", "t.context_type", "simple_chat_context"),
    ("agent_contexts", "count(*)", "t.memory_tier", "agent_context_states"),
    ("memories", "count(*)", "t.vector_type", "unified_memory_vectors"),
    ("feedback", "count(*)", "t.feedback_type", "message_feedback"),
    ("delegations", "count(*)", "t.status", "task_delegations"),
    ("decisions", "count(*)", DECISION, "router_decision_log"),
    ("decision_milliseconds", "sum(t.processing_time_ms)", DECISION, "router_decision_log"),
    ("decision_tokens", "sum(t.tokens_used)", DECISION, "router_decision_log"),
    ("consensus_tasks", "count(*)", "'all'", "consensus_tasks"),
];
const DECISION: &str = "t.chat_mode::text || CASE WHEN t.success THEN ' succeeded' ELSE ' failed' END";

/// Adds what a person's rows count to the sums. The transaction must [`see_all`](crate::fence::see_all), and commit the next
/// step of the person's request, too: a second time would count the person twice.
///
/// # Errors
/// A [`Fault`] of the database.
pub(crate) async fn add(connection: &mut Connection, user: UserId) -> Result<(), Fault> {
    let counted: Vec<String> = COUNTED
        .iter()
        .map(|(name, sum, label, table)| {
            format!(
                "SELECT '{name}' AS statistic, date_trunc('month', t.created_at AT TIME ZONE 'UTC')::date AS month,
                    ({label})::text AS label, {sum} AS amount FROM public.{table} AS t WHERE t.user_id = $1 GROUP BY 2, 3"
            )
        })
        .collect();
    // In one order, so that two anonymisations at once wait for each other and for nothing else.
    let add = format!(
        "INSERT INTO public.anonymous_statistics AS s (statistic, month, label, persons, amount)
         SELECT c.statistic, c.month, c.label, 1, c.amount FROM ({}) AS c WHERE c.amount IS NOT NULL ORDER BY 1, 2, 3
         ON CONFLICT (statistic, month, label) DO UPDATE SET persons = s.persons + 1, amount = s.amount + excluded.amount",
        counted.join(" UNION ALL ")
    );
    diesel::sql_query(add).bind::<Integer, _>(user.get()).execute(connection).await?;
    Ok(())
}

/// The sums of at least [`FEWEST_PERSONS`], by name, month and label, and how many sums are of fewer.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn shown(connection: &mut Connection) -> Result<(Vec<Statistic>, u64), Fault> {
    #[derive(QueryableByName)]
    struct Few {
        #[diesel(sql_type = BigInt)]
        few: i64,
    }
    const SHOWN: &str =
        "SELECT statistic::text, month, label::text, persons, amount::text FROM public.anonymous_statistics
        WHERE persons >= $1 ORDER BY statistic, month, label";
    const FEW: &str = "SELECT count(*) AS few FROM public.anonymous_statistics WHERE persons < $1";
    let shown = diesel::sql_query(SHOWN).bind::<BigInt, _>(FEWEST_PERSONS).load(connection).await?;
    let Few { few } = diesel::sql_query(FEW).bind::<BigInt, _>(FEWEST_PERSONS).get_result(connection).await?;
    Ok((shown, few.unsigned_abs()))
}
