//! `node.list` and `node.dossier`: the nodes of the knowledge graph, and what their scores rest on.

use chrono::{DateTime, Utc};
use contract::{
    DossierInfo, Json, Malformed, Name, NodeDossier, NodeDossierAnswer, NodeInfo, NodeList, NodePage,
    NodeVerdict, Text as BoundedText, UserId, ValidationStatus,
};
use diesel::QueryableByName;
use diesel::sql_types::{
    BigInt, Binary, Bool, Double, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid,
};
use diesel_async::RunQueryDsl;
use store::security::PlanCacheMode;
use store::{Connection, Fault, FaultKind};
use uuid::Uuid;

use crate::column::{json, label};
use crate::page::{self, CursorTime, fits, within_page};
use crate::query_context::QueryContext;
use crate::query_failure::QueryFailure;
use crate::validated_query::{Answered, ValidatedQuery};

const NODES: &str = "consensus_memory_nodes";
const DOSSIERS: &str = "consensus_dossiers";

#[derive(Debug)]
pub(crate) struct List {
    query: NodeList,
    before: Option<(CursorTime, Uuid)>,
}

impl ValidatedQuery for List {
    type Query = NodeList;

    fn validate(query: NodeList) -> Result<Self, Malformed> {
        Ok(Self { before: page::position(query.cursor.as_ref())?, query })
    }

    async fn answer(self, context: &mut QueryContext<'_>) -> Result<Answered<NodePage>, QueryFailure> {
        let user = context.user;
        let page = context.read(PlanCacheMode::Auto, async |connection| self.page(connection, user).await);
        Ok(page.await?)
    }
}

/// The columns of a [`Row`].
macro_rules! columns {
    () => {
        "id, node_type, node_key, title, content::text AS content, semantic_tags::text AS semantic_tags,
        validation_status::text AS validation_status, consensus_score, task_id, established_at, valid_from, valid_to, superseded_by"
    };
}

const LIST: &str = concat!(
    "WITH page AS (
        SELECT * FROM consensus_memory_nodes
        WHERE user_id = $1 AND ($2 IS NULL OR node_type = $2) AND ($3 IS NULL OR node_key = $3)
            AND ($4 IS NULL OR validation_status = $4::validationstatus) AND ($5 IS NULL OR semantic_tags ? $5)
            AND ($6 IS NULL OR established_at >= $6) AND ($7 IS NULL OR established_at < $7) AND ($8 OR valid_to IS NULL)
            AND ($9 IS NULL OR (established_at, id) < ($9, $10))
        ORDER BY established_at DESC, id DESC LIMIT $11) ",
    within_page!(
        columns!(),
        "octet_length(p.content::text) + octet_length(p.semantic_tags::text)",
        "p.established_at DESC, p.id DESC",
        "$12"
    )
);

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Text)]
    node_type: String,
    #[diesel(sql_type = Text)]
    node_key: String,
    #[diesel(sql_type = Text)]
    title: String,
    #[diesel(sql_type = Text)]
    content: String,
    #[diesel(sql_type = Text)]
    semantic_tags: String,
    #[diesel(sql_type = Text)]
    validation_status: String,
    #[diesel(sql_type = Double)]
    consensus_score: f64,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    task_id: Option<Uuid>,
    #[diesel(sql_type = Timestamptz)]
    established_at: DateTime<Utc>,
    #[diesel(sql_type = Timestamptz)]
    valid_from: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    valid_to: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    superseded_by: Option<Uuid>,
}

impl Row {
    fn into_info(self) -> Result<NodeInfo, Fault> {
        Ok(NodeInfo {
            node_id: self.id,
            node_type: self.node_type,
            node_key: self.node_key,
            title: self.title,
            content: json(self.content)?,
            tags: json(self.semantic_tags)?,
            validation_status: label(&self.validation_status)?,
            consensus_score: self.consensus_score,
            task_id: self.task_id,
            established_at: self.established_at,
            valid_from: self.valid_from,
            valid_to: self.valid_to,
            superseded_by: self.superseded_by,
        })
    }
}

#[derive(QueryableByName)]
struct Listed {
    #[diesel(embed)]
    node: Row,
    #[diesel(sql_type = BigInt)]
    found: i64,
}

impl List {
    async fn page(&self, connection: &mut Connection, user: UserId) -> Result<Answered<NodePage>, Fault> {
        let Self { query, before } = self;
        let limit = query.limit.get();
        let ended = [Some(ValidationStatus::Superseded), Some(ValidationStatus::Rejected)];
        let past = query.include_past || ended.contains(&query.status);
        let statement = diesel::sql_query(LIST)
            .bind::<Integer, _>(user.get())
            .bind::<Nullable<Text>, _>(query.node_type.as_ref().map(BoundedText::as_str))
            .bind::<Nullable<Text>, _>(query.node_key.as_ref().map(Name::as_str))
            .bind::<Nullable<Text>, _>(query.status.map(ValidationStatus::as_str))
            .bind::<Nullable<Text>, _>(query.tag.as_ref().map(BoundedText::as_str))
            .bind::<Nullable<Timestamptz>, _>(query.since)
            .bind::<Nullable<Timestamptz>, _>(query.until)
            .bind::<Bool, _>(past)
            .bind::<Nullable<Timestamptz>, _>(before.as_ref().map(|(CursorTime(time), _)| *time))
            .bind::<Nullable<SqlUuid>, _>(before.as_ref().map(|(_, id)| *id))
            .bind::<BigInt, _>(page::one_more(limit))
            .bind::<BigInt, _>(page::PAGE_BYTES);
        let rows: Vec<Listed> = store::prepared(statement).load(connection).await?;
        let found = rows.as_slice().first().map_or(0, |listed| listed.found);
        let key = |listed: &Listed| (CursorTime(listed.node.established_at), listed.node.id);
        let (rows, next_cursor) = page::cut(rows, limit, found, key);
        let nodes: Vec<NodeInfo> =
            rows.into_iter().map(|listed| listed.node.into_info()).collect::<Result<_, Fault>>()?;
        let read = nodes.len();
        Ok(Answered::new(NodePage { nodes, next_cursor }, NODES, read))
    }
}

#[derive(Debug)]
pub(crate) struct Dossier(NodeDossier);

impl ValidatedQuery for Dossier {
    type Query = NodeDossier;

    fn validate(query: NodeDossier) -> Result<Self, Malformed> {
        Ok(Self(query))
    }

    async fn answer(
        self,
        context: &mut QueryContext<'_>,
    ) -> Result<Answered<NodeDossierAnswer>, QueryFailure> {
        let user = context.user;
        let read = context.read(PlanCacheMode::Auto, async |connection| self.read(connection, user).await);
        Ok(read.await?)
    }
}

const FIND: &str = concat!(
    "SELECT ",
    columns!(),
    ", verdict, verdict_by, verdict_reason, verdict_at FROM (
        SELECT n.*, octet_length(n.content::text) + octet_length(n.semantic_tags::text)
            + coalesce(octet_length(to_json(n.verdict_reason)::text), 0) AS bytes
        FROM consensus_memory_nodes n WHERE n.user_id = $1 AND n.id = $2 OFFSET 0
    ) AS n WHERE ",
    fits!("true", "true")
);

const STORED: &str = concat!(
    "SELECT rules_version, inputs_sha256::text AS inputs_sha256, computed_at, dossier FROM (
        SELECT d.*, octet_length(d.dossier) AS bytes FROM consensus_dossiers d WHERE d.user_id = $1 AND d.id = $2 OFFSET 0
    ) AS d WHERE ",
    fits!("true", "true")
);

#[derive(QueryableByName)]
struct Found {
    #[diesel(embed)]
    node: Row,
    #[diesel(sql_type = Nullable<Text>)]
    verdict: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    verdict_by: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    verdict_reason: Option<String>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    verdict_at: Option<DateTime<Utc>>,
}

impl Found {
    fn verdict(&self) -> Option<NodeVerdict> {
        let verdict = self.verdict.clone()?;
        let (given_by, reason) = (self.verdict_by.clone(), self.verdict_reason.clone());
        Some(NodeVerdict { verdict, given_by, reason, given_at: self.verdict_at })
    }
}

#[derive(QueryableByName)]
struct Stored {
    #[diesel(sql_type = Integer)]
    rules_version: i32,
    #[diesel(sql_type = Text)]
    inputs_sha256: String,
    #[diesel(sql_type = Timestamptz)]
    computed_at: DateTime<Utc>,
    #[diesel(sql_type = Binary)]
    dossier: Vec<u8>,
}

impl Stored {
    fn into_info(self) -> Result<DossierInfo, Fault> {
        let content = String::from_utf8(self.dossier).map_err(|error| error.to_string());
        let content = content.and_then(Json::recorded).map_err(|problem| Fault {
            kind: FaultKind::Permanent,
            reason: format!(
                "a stored dossier is not JSON, `memfleet consensus explain --verify` finds which: {problem}"
            ),
        })?;
        Ok(DossierInfo {
            rules_version: self.rules_version,
            inputs_sha256: self.inputs_sha256,
            computed_at: self.computed_at,
            content,
        })
    }
}

impl Dossier {
    async fn read(
        &self,
        connection: &mut Connection,
        user: UserId,
    ) -> Result<Answered<NodeDossierAnswer>, Fault> {
        let Self(NodeDossier { node_id }) = self;
        let bound = |sql| diesel::sql_query(sql).bind::<Integer, _>(user.get()).bind::<SqlUuid, _>(*node_id);
        let found: Vec<Found> = store::prepared(bound(FIND)).load(connection).await?;
        let Some(found) = found.into_iter().next() else {
            return Ok(Answered::not_found(NODES, "node_id", &format!("node {node_id}"), user));
        };
        let stored: Vec<Stored> = store::prepared(bound(STORED)).load(connection).await?;
        let read = stored.len();
        let dossier = stored.into_iter().next().map(Stored::into_info).transpose()?;
        let answer = NodeDossierAnswer { verdict: found.verdict(), node: found.node.into_info()?, dossier };
        Ok(Answered::new(answer, NODES, 1).and_read(DOSSIERS, read))
    }
}
