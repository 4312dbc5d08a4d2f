//! `expert-conversation.read`: a conversation of experts and the agents' responses.

use chrono::{DateTime, Utc};
use contract::{ExpertConversationPage, ExpertConversationRead, ExpertResponseInfo, Malformed, UserId};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Double, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use store::security::PlanCacheMode;
use store::{Connection, Fault};
use uuid::Uuid;

use crate::column::{json, label};
use crate::page::{self, CursorTime, fits, within_page};
use crate::query_context::QueryContext;
use crate::query_failure::QueryFailure;
use crate::validated_query::{Answered, ValidatedQuery};

const CONVERSATIONS: &str = "multi_agent_conversations";
const RESPONSES: &str = "agent_responses";

#[derive(Debug)]
pub(crate) struct Read {
    query: ExpertConversationRead,
    after: Option<(CursorTime, Uuid)>,
}

impl ValidatedQuery for Read {
    type Query = ExpertConversationRead;

    fn validate(query: ExpertConversationRead) -> Result<Self, Malformed> {
        Ok(Self { after: page::position(query.cursor.as_ref())?, query })
    }

    async fn answer(
        self,
        context: &mut QueryContext<'_>,
    ) -> Result<Answered<ExpertConversationPage>, QueryFailure> {
        let user = context.user;
        let page = context.read(PlanCacheMode::Auto, async |connection| self.page(connection, user).await);
        Ok(page.await?)
    }
}

const FIND: &str = concat!(
    "SELECT conversation_title, current_phase::text AS current_phase, participating_agents::text AS participating_agents,
        total_tasks_delegated, tasks_completed, started_at, completed_at
    FROM (
        SELECT c.*, octet_length(c.participating_agents::text) AS bytes FROM multi_agent_conversations c
        WHERE c.user_id = $1 AND c.session_id = $2 OFFSET 0
    ) AS c WHERE ",
    fits!("true", "true")
);

/// The size is measured as JSON, whose escapes make a text larger.
const READ: &str = concat!(
    "WITH page AS (
        SELECT r.* FROM task_delegations d
        JOIN agent_responses r ON r.user_id = d.user_id AND r.task_delegation_id = d.id
        WHERE d.user_id = $1 AND d.session_id = $2 AND ($3 IS NULL OR r.task_id = $3)
            AND ($4 IS NULL OR (r.created_at, r.id) > ($4, $5))
        ORDER BY r.created_at, r.id LIMIT $6) ",
    within_page!(
        "id, task_id, agent_id, response_text, claim::text AS claim, evidence::text AS evidence, confidence_score,
        processing_time_seconds, is_counted, created_at",
        "octet_length(to_json(p.response_text)::text) + coalesce(octet_length(p.claim::text), 0)
            + octet_length(p.evidence::text)",
        "p.created_at, p.id",
        "$7"
    )
);

#[derive(QueryableByName)]
struct Conversation {
    #[diesel(sql_type = Text)]
    conversation_title: String,
    #[diesel(sql_type = Text)]
    current_phase: String,
    #[diesel(sql_type = Text)]
    participating_agents: String,
    #[diesel(sql_type = BigInt)]
    total_tasks_delegated: i64,
    #[diesel(sql_type = BigInt)]
    tasks_completed: i64,
    #[diesel(sql_type = Timestamptz)]
    started_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    completed_at: Option<DateTime<Utc>>,
}

#[derive(QueryableByName)]
struct Response {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    task_id: Option<Uuid>,
    #[diesel(sql_type = Text)]
    agent_id: String,
    #[diesel(sql_type = Text)]
    response_text: String,
    #[diesel(sql_type = Nullable<Text>)]
    claim: Option<String>,
    #[diesel(sql_type = Text)]
    evidence: String,
    #[diesel(sql_type = Nullable<Double>)]
    confidence_score: Option<f64>,
    #[diesel(sql_type = Nullable<Double>)]
    processing_time_seconds: Option<f64>,
    #[diesel(sql_type = Bool)]
    is_counted: bool,
    #[diesel(sql_type = Timestamptz)]
    created_at: DateTime<Utc>,
    #[diesel(sql_type = BigInt)]
    found: i64,
}

impl Response {
    fn into_info(self) -> Result<ExpertResponseInfo, Fault> {
        Ok(ExpertResponseInfo {
            response_id: self.id,
            task_id: self.task_id,
            agent_id: self.agent_id,
            response_text: self.response_text,
            claim: self.claim.map(json).transpose()?,
            evidence: json(self.evidence)?,
            confidence_score: self.confidence_score,
            processing_time_seconds: self.processing_time_seconds,
            counted: self.is_counted,
            created_at: self.created_at,
        })
    }
}

impl Read {
    async fn page(
        &self,
        connection: &mut Connection,
        user: UserId,
    ) -> Result<Answered<ExpertConversationPage>, Fault> {
        let Self { query, after } = self;
        let (session, limit) = (query.session_id.as_str(), query.limit.get());
        let find = diesel::sql_query(FIND).bind::<Integer, _>(user.get()).bind::<Text, _>(session);
        let found: Vec<Conversation> = store::prepared(find).load(connection).await?;
        let Some(conversation) = found.into_iter().next() else {
            let what = format!("conversation of experts {session:?}");
            return Ok(Answered::not_found(CONVERSATIONS, "session_id", &what, user));
        };
        let statement = diesel::sql_query(READ)
            .bind::<Integer, _>(user.get())
            .bind::<Text, _>(session)
            .bind::<Nullable<SqlUuid>, _>(query.task_id)
            .bind::<Nullable<Timestamptz>, _>(after.as_ref().map(|(CursorTime(time), _)| *time))
            .bind::<Nullable<SqlUuid>, _>(after.as_ref().map(|(_, id)| *id))
            .bind::<BigInt, _>(page::one_more(limit))
            .bind::<BigInt, _>(page::PAGE_BYTES);
        let responses: Vec<Response> = store::prepared(statement).load(connection).await?;
        let found = responses.as_slice().first().map_or(0, |response| response.found);
        let (responses, next_cursor) =
            page::cut(responses, limit, found, |response| (CursorTime(response.created_at), response.id));
        let read = responses.len();
        let page = ExpertConversationPage {
            title: conversation.conversation_title,
            phase: label(&conversation.current_phase)?,
            participating_agents: json(conversation.participating_agents)?,
            total_tasks_delegated: conversation.total_tasks_delegated,
            tasks_completed: conversation.tasks_completed,
            started_at: conversation.started_at,
            completed_at: conversation.completed_at,
            responses: responses.into_iter().map(Response::into_info).collect::<Result<_, Fault>>()?,
            next_cursor,
        };
        Ok(Answered::new(page, CONVERSATIONS, 1).and_read(RESPONSES, read))
    }
}
