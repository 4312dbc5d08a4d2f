//! `task.list`: the tasks that were delegated to agents.

use chrono::{DateTime, Utc};
use contract::{Malformed, SessionId, TaskInfo, TaskList, TaskPage, TaskState, Text as BoundedText, UserId};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Double, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use store::security::PlanCacheMode;
use store::{Connection, Fault};
use uuid::Uuid;

use crate::column::{json, label, time};
use crate::page::{self, CursorTime, within_page};
use crate::query_context::QueryContext;
use crate::query_failure::QueryFailure;
use crate::validated_query::{Answered, ValidatedQuery};

const TASKS: &str = "consensus_tasks";
const ESTIMATES: &str = "task_estimates";
const DELEGATIONS: &str = "task_delegations";

#[derive(Debug)]
pub(crate) struct List {
    query: TaskList,
    before: Option<(CursorTime, Uuid)>,
}

impl ValidatedQuery for List {
    type Query = TaskList;

    fn validate(query: TaskList) -> Result<Self, Malformed> {
        Ok(Self { before: page::position(query.cursor.as_ref())?, query })
    }

    async fn answer(self, context: &mut QueryContext<'_>) -> Result<Answered<TaskPage>, QueryFailure> {
        let user = context.user;
        let page = context.read(PlanCacheMode::Auto, async |connection| self.page(connection, user).await);
        Ok(page.await?)
    }
}

/// The agents are read for the tasks of the page only.
const LIST: &str = concat!(
    "WITH chosen AS MATERIALIZED (
        SELECT * FROM consensus_tasks t
        WHERE user_id = $1 AND ($2 IS NULL OR session_id = $2) AND ($3 IS NULL OR state = $3) AND ($4 IS NULL OR task_kind = $4)
            AND ($5 IS NULL OR EXISTS (SELECT FROM task_delegations d
                WHERE d.user_id = $1 AND d.task_id = t.id AND d.target_agent_id = $5))
            AND ($6 IS NULL OR (created_at, id) < ($6, $7))
        ORDER BY created_at DESC, id DESC LIMIT $8
    ), page AS (
        SELECT c.*, e.answer AS estimated_answer, e.probability AS estimated_probability, e.id IS NOT NULL AS has_estimate, a.agents,
            a.asked_agents
        FROM chosen c LEFT JOIN task_estimates e ON e.user_id = $1 AND e.id = c.id CROSS JOIN LATERAL (
            SELECT coalesce(jsonb_agg(jsonb_build_object('agent_id', d.target_agent_id, 'status', d.status)
                ORDER BY d.target_agent_id), '[]')::text AS agents, count(*) AS asked_agents
            FROM task_delegations d WHERE d.user_id = $1 AND d.task_id = c.id) AS a) ",
    within_page!(
        "id, session_id, pm_agent_id, question, task_kind, node_type, node_key, title, semantic_tags::text AS semantic_tags,
        options::text AS options, quorum, asked, responded, answered, deadline, state, close_reason, closed_at, node_id,
        estimated_answer, estimated_probability, has_estimate, created_at, agents, asked_agents",
        "octet_length(to_json(p.question)::text) + octet_length(p.semantic_tags::text)
            + coalesce(octet_length(p.options::text), 0) + octet_length(p.agents)",
        "p.created_at DESC, p.id DESC",
        "$9"
    )
);

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Text)]
    session_id: String,
    #[diesel(sql_type = Text)]
    pm_agent_id: String,
    #[diesel(sql_type = Text)]
    question: String,
    #[diesel(sql_type = Text)]
    task_kind: String,
    #[diesel(sql_type = Text)]
    node_type: String,
    #[diesel(sql_type = Text)]
    node_key: String,
    #[diesel(sql_type = Text)]
    title: String,
    #[diesel(sql_type = Text)]
    semantic_tags: String,
    #[diesel(sql_type = Nullable<Text>)]
    options: Option<String>,
    #[diesel(sql_type = Integer)]
    quorum: i32,
    #[diesel(sql_type = Integer)]
    asked: i32,
    #[diesel(sql_type = Integer)]
    responded: i32,
    #[diesel(sql_type = Integer)]
    answered: i32,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    deadline: Option<DateTime<Utc>>,
    #[diesel(sql_type = Text)]
    state: String,
    #[diesel(sql_type = Nullable<Text>)]
    close_reason: Option<String>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    closed_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    node_id: Option<Uuid>,
    #[diesel(sql_type = Nullable<Integer>)]
    estimated_answer: Option<i32>,
    #[diesel(sql_type = Nullable<Double>)]
    estimated_probability: Option<f64>,
    #[diesel(sql_type = Bool)]
    has_estimate: bool,
    #[diesel(sql_type = Timestamptz)]
    created_at: DateTime<Utc>,
    #[diesel(sql_type = Text)]
    agents: String,
    #[diesel(sql_type = BigInt)]
    asked_agents: i64,
    #[diesel(sql_type = BigInt)]
    found: i64,
}

impl Row {
    fn into_info(self) -> Result<TaskInfo, Fault> {
        Ok(TaskInfo {
            task_id: self.id,
            session_id: self.session_id,
            pm_agent_id: self.pm_agent_id,
            question: self.question,
            task_kind: self.task_kind,
            node_type: self.node_type,
            node_key: self.node_key,
            title: self.title,
            tags: json(self.semantic_tags)?,
            options: self.options.map(json).transpose()?,
            quorum: self.quorum,
            asked: self.asked,
            responded: self.responded,
            answered: self.answered,
            deadline: self.deadline.map(time),
            state: label(&self.state)?,
            close_reason: self.close_reason,
            closed_at: self.closed_at,
            node_id: self.node_id,
            estimated_answer: self.estimated_answer,
            estimated_probability: self.estimated_probability,
            created_at: self.created_at,
            agents: json(self.agents)?,
        })
    }
}

impl List {
    async fn page(&self, connection: &mut Connection, user: UserId) -> Result<Answered<TaskPage>, Fault> {
        let Self { query, before } = self;
        let limit = query.limit.get();
        let statement = diesel::sql_query(LIST)
            .bind::<Integer, _>(user.get())
            .bind::<Nullable<Text>, _>(query.session_id.as_ref().map(SessionId::as_str))
            .bind::<Nullable<Text>, _>(query.state.map(TaskState::as_str))
            .bind::<Nullable<Text>, _>(query.task_kind.as_ref().map(BoundedText::as_str))
            .bind::<Nullable<Text>, _>(query.agent_id.as_ref().map(SessionId::as_str))
            .bind::<Nullable<Timestamptz>, _>(before.as_ref().map(|(CursorTime(time), _)| *time))
            .bind::<Nullable<SqlUuid>, _>(before.as_ref().map(|(_, id)| *id))
            .bind::<BigInt, _>(page::one_more(limit))
            .bind::<BigInt, _>(page::PAGE_BYTES);
        let rows: Vec<Row> = store::prepared(statement).load(connection).await?;
        let found = rows.as_slice().first().map_or(0, |row| row.found);
        let (rows, next_cursor) = page::cut(rows, limit, found, |row| (CursorTime(row.created_at), row.id));
        let delegations: i64 = rows.iter().map(|row| row.asked_agents).sum();
        let estimates = rows.iter().filter(|row| row.has_estimate).count();
        let tasks: Vec<TaskInfo> = rows.into_iter().map(Row::into_info).collect::<Result<_, Fault>>()?;
        let read = tasks.len();
        let page = TaskPage { tasks, next_cursor };
        let delegations = usize::try_from(delegations).unwrap_or(0);
        Ok(Answered::new(page, TASKS, read).and_read(DELEGATIONS, delegations).and_read(ESTIMATES, estimates))
    }
}
