//! `agent.list`: the agents of the user, with their profiles and records.

use chrono::{DateTime, Utc};
use contract::{
    AgentInfo, AgentList, AgentPage, AgentProfileInfo, AgentRecordInfo, Malformed, Text as BoundedText,
    UserId,
};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Double, Integer, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;
use store::security::PlanCacheMode;
use store::{Connection, Fault, FaultKind};

use crate::column::{json, label};
use crate::page::{self, within_page};
use crate::query_context::QueryContext;
use crate::query_failure::QueryFailure;
use crate::validated_query::{Answered, ValidatedQuery};

const CONFIGURATIONS: &str = "agent_configurations";
const PROFILES: &str = "agent_profiles";
const RECORDS: &str = "agent_records";
/// The most records of an agent in an answer.
const MAX_RECORDS: i64 = 20;

#[derive(Debug)]
pub(crate) struct List {
    query: AgentList,
    after: Option<String>,
}

impl ValidatedQuery for List {
    type Query = AgentList;

    fn validate(query: AgentList) -> Result<Self, Malformed> {
        Ok(Self { after: page::position(query.cursor.as_ref())?, query })
    }

    async fn answer(self, context: &mut QueryContext<'_>) -> Result<Answered<AgentPage>, QueryFailure> {
        let user = context.user;
        let page = context.read(PlanCacheMode::Auto, async |connection| self.page(connection, user).await);
        Ok(page.await?)
    }
}

/// Profiles and records are read for the agents of the page only.
const LIST: &str = concat!(
    "WITH chosen AS MATERIALIZED (
        SELECT * FROM agent_configurations
        WHERE user_id = $1 AND ($2 IS NULL OR agent_type = $2) AND ($3 IS NULL OR is_active = $3)
            AND ($4 IS NULL OR agent_id > $4)
        ORDER BY agent_id LIMIT $5
    ), page AS (
        SELECT c.*, p.display_name, p.description, p.expertise_areas, p.current_status, p.performance_metrics, r.records
        FROM chosen c LEFT JOIN agent_profiles p ON p.user_id = $1 AND p.agent_id = c.agent_id
        CROSS JOIN LATERAL (
            SELECT coalesce(jsonb_agg(jsonb_build_object('task_kind', l.task_kind, 'right', l.right_micro / 1e6,
                'wrong', l.wrong_micro / 1e6, 'estimated_at', l.estimated_at)), '[]')::text AS records
            FROM (SELECT * FROM agent_records a WHERE a.user_id = $1 AND a.agent_id = c.agent_id
                ORDER BY a.right_micro + a.wrong_micro DESC, a.task_kind LIMIT $6) AS l) AS r) ",
    within_page!(
        "agent_id, agent_type, agent_role, assigned_llm, model_provider::text AS model_provider, model_family, gpu_assignment, system_prompt,
        temperature, constraints::text AS constraints, capabilities::text AS capabilities, is_active, created_at, updated_at,
        display_name, description, expertise_areas::text AS expertise_areas, current_status::text AS current_status,
        performance_metrics::text AS performance_metrics, records",
        "coalesce(octet_length(to_json(p.system_prompt)::text), 0) + octet_length(p.constraints::text)
            + octet_length(p.capabilities::text) + coalesce(octet_length(to_json(p.description)::text), 0)
            + coalesce(octet_length(p.expertise_areas::text), 0) + coalesce(octet_length(p.performance_metrics::text), 0)
            + octet_length(p.records)",
        "p.agent_id",
        "$7"
    )
);

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    agent_id: String,
    #[diesel(sql_type = Text)]
    agent_type: String,
    #[diesel(sql_type = Text)]
    agent_role: String,
    #[diesel(sql_type = Text)]
    assigned_llm: String,
    #[diesel(sql_type = Text)]
    model_provider: String,
    #[diesel(sql_type = Nullable<Text>)]
    model_family: Option<String>,
    #[diesel(sql_type = Nullable<Integer>)]
    gpu_assignment: Option<i32>,
    #[diesel(sql_type = Nullable<Text>)]
    system_prompt: Option<String>,
    #[diesel(sql_type = Double)]
    temperature: f64,
    #[diesel(sql_type = Text)]
    constraints: String,
    #[diesel(sql_type = Text)]
    capabilities: String,
    #[diesel(sql_type = Bool)]
    is_active: bool,
    #[diesel(sql_type = Timestamptz)]
    created_at: DateTime<Utc>,
    #[diesel(sql_type = Timestamptz)]
    updated_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Text>)]
    display_name: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    description: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    expertise_areas: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    current_status: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    performance_metrics: Option<String>,
    #[diesel(sql_type = Text)]
    records: String,
    #[diesel(sql_type = BigInt)]
    found: i64,
}

impl Row {
    fn into_info(self) -> Result<AgentInfo, Fault> {
        let profile = self.display_name.map(|display_name| {
            Ok::<_, Fault>(AgentProfileInfo {
                display_name,
                description: self.description.unwrap_or_default(),
                expertise_areas: json(self.expertise_areas.unwrap_or_else(|| "[]".to_owned()))?,
                current_status: label(&self.current_status.unwrap_or_default())?,
                performance_metrics: json(self.performance_metrics.unwrap_or_else(|| "{}".to_owned()))?,
            })
        });
        Ok(AgentInfo {
            agent_id: self.agent_id,
            agent_type: self.agent_type,
            agent_role: self.agent_role,
            assigned_llm: self.assigned_llm,
            model_provider: label(&self.model_provider)?,
            model_family: self.model_family,
            gpu_assignment: self.gpu_assignment,
            system_prompt: self.system_prompt,
            temperature: self.temperature,
            constraints: json(self.constraints)?,
            capabilities: json(self.capabilities)?,
            is_active: self.is_active,
            created_at: self.created_at,
            updated_at: self.updated_at,
            profile: profile.transpose()?,
            records: records(&self.records)?,
        })
    }
}

fn records(json: &str) -> Result<Vec<AgentRecordInfo>, Fault> {
    serde_json::from_str(json).map_err(|error| Fault {
        kind: FaultKind::Permanent,
        reason: format!("the records of an agent are unreadable: {error}"),
    })
}

impl List {
    async fn page(&self, connection: &mut Connection, user: UserId) -> Result<Answered<AgentPage>, Fault> {
        let Self { query, after } = self;
        let limit = query.limit.get();
        let statement = diesel::sql_query(LIST)
            .bind::<Integer, _>(user.get())
            .bind::<Nullable<Text>, _>(query.agent_type.as_ref().map(BoundedText::as_str))
            .bind::<Nullable<Bool>, _>(query.active)
            .bind::<Nullable<Text>, _>(after.as_deref())
            .bind::<BigInt, _>(page::one_more(limit))
            .bind::<BigInt, _>(MAX_RECORDS)
            .bind::<BigInt, _>(page::PAGE_BYTES);
        let rows: Vec<Row> = store::prepared(statement).load(connection).await?;
        let found = rows.as_slice().first().map_or(0, |row| row.found);
        let (rows, next_cursor) = page::cut(rows, limit, found, |row| row.agent_id.clone());
        let agents: Vec<AgentInfo> = rows.into_iter().map(Row::into_info).collect::<Result<_, Fault>>()?;
        let profiles = agents.iter().filter(|agent| agent.profile.is_some()).count();
        let records = agents.iter().map(|agent| agent.records.len()).sum();
        let read = agents.len();
        Ok(Answered::new(AgentPage { agents, next_cursor }, CONFIGURATIONS, read)
            .and_read(PROFILES, profiles)
            .and_read(RECORDS, records))
    }
}
