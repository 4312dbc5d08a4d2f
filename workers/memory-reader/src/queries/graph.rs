//! `graph.walk`: the reference document's "Memory node relationship traversal".

use chrono::{DateTime, Utc};
use contract::{GraphAnswer, GraphNode, GraphRelation, GraphWalk, Malformed, Text as BoundedText, UserId};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Double, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use store::security::PlanCacheMode;
use store::{Connection, Fault};
use uuid::Uuid;

use crate::column::json;
use crate::page::{self, fits};
use crate::query_context::QueryContext;
use crate::query_failure::QueryFailure;
use crate::validated_query::{Answered, ValidatedQuery};

const NODES: &str = "consensus_memory_nodes";
const RELATIONS: &str = "consensus_memory_relations";
/// The maximum number of relations in an answer.
const MAX_RELATIONS: i64 = 2_000;

#[derive(Debug)]
pub(crate) struct Walk(GraphWalk);

impl ValidatedQuery for Walk {
    type Query = GraphWalk;

    fn validate(query: GraphWalk) -> Result<Self, Malformed> {
        Ok(Self(query))
    }

    async fn answer(self, context: &mut QueryContext<'_>) -> Result<Answered<GraphAnswer>, QueryFailure> {
        let user = context.user;
        let graph = context.read(PlanCacheMode::Auto, async |connection| self.graph(connection, user).await);
        Ok(graph.await?)
    }
}

/// Whether what began and ended at these times was there at a time; without a time, whether it has not ended.
macro_rules! there {
    ($from:literal, $to:literal, $at:literal) => {
        concat!(
            "coalesce(",
            $from,
            " <= ",
            $at,
            ", true) AND coalesce(",
            $to,
            " > ",
            $at,
            ", ",
            $to,
            " IS NULL)"
        )
    };
}

/// UNION drops rows that the walk has found before at the same depth, so that it visits each node at most once per
/// depth, however many paths lead to it and whether there are cycles. Each node is looked up before it is passed through,
/// since one that is not valid at the time ends its path.
const WALK: &str = concat!(
    "WITH RECURSIVE walk (id, depth) AS (
        SELECT id, 0 FROM consensus_memory_nodes
        WHERE user_id = $1 AND node_key = $2 AND ($3 IS NULL OR node_type = $3) AND ",
    there!("valid_from", "valid_to", "$8"),
    "   UNION
        SELECT n.id, w.depth + 1
        FROM walk w JOIN consensus_memory_relations r ON r.user_id = $1 AND r.source_node_id = w.id
        JOIN consensus_memory_nodes n ON n.user_id = $1 AND n.id = r.target_node_id
        WHERE w.depth < $4 AND ($5 IS NULL OR r.relation_type = $5) AND ",
    there!("r.created_at", "r.removed_at", "$8"),
    " AND ",
    there!("n.valid_from", "n.valid_to", "$8"),
    "), nearest AS (
        SELECT id, min(depth) AS depth FROM walk GROUP BY id
    ), page AS (
        SELECT n.*, w.depth FROM nearest w JOIN consensus_memory_nodes n ON n.user_id = $1 AND n.id = w.id
        ORDER BY w.depth, n.title, n.id LIMIT $6
    ), sized AS (
        SELECT p.*, count(*) OVER () AS found, row_number() OVER in_order AS place,
            sum(octet_length(p.content::text)) OVER in_order AS bytes
        FROM page p WINDOW in_order AS (ORDER BY p.depth, p.title, p.id))
    SELECT id, node_type, node_key, title, content::text AS content, validation_status::text AS validation_status,
        consensus_score, valid_from, valid_to, depth, found
    FROM sized WHERE ",
    fits!("place = 1", "place = 1 OR bytes <= $7"),
    " ORDER BY place"
);

const RELATE: &str = concat!(
    "SELECT source_node_id, target_node_id, relation_type, strength, confidence FROM consensus_memory_relations
    WHERE user_id = $1 AND source_node_id = ANY ($2) AND target_node_id = ANY ($2)
        AND ($3 IS NULL OR relation_type = $3) AND ",
    there!("created_at", "removed_at", "$5"),
    " ORDER BY source_node_id, target_node_id, relation_type LIMIT $4"
);

#[derive(QueryableByName)]
struct Node {
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
    validation_status: String,
    #[diesel(sql_type = Double)]
    consensus_score: f64,
    #[diesel(sql_type = Timestamptz)]
    valid_from: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    valid_to: Option<DateTime<Utc>>,
    #[diesel(sql_type = Integer)]
    depth: i32,
    #[diesel(sql_type = BigInt)]
    found: i64,
}

impl Node {
    fn into_info(self) -> Result<GraphNode, Fault> {
        Ok(GraphNode {
            node_id: self.id,
            node_type: self.node_type,
            node_key: self.node_key,
            title: self.title,
            content: json(self.content)?,
            validation_status: self.validation_status,
            consensus_score: self.consensus_score,
            valid_from: self.valid_from,
            valid_to: self.valid_to,
            depth: self.depth,
        })
    }
}

#[derive(QueryableByName)]
struct Relation {
    #[diesel(sql_type = SqlUuid)]
    source_node_id: Uuid,
    #[diesel(sql_type = SqlUuid)]
    target_node_id: Uuid,
    #[diesel(sql_type = Text)]
    relation_type: String,
    #[diesel(sql_type = Double)]
    strength: f64,
    #[diesel(sql_type = Double)]
    confidence: f64,
}

impl Relation {
    fn into_info(self) -> GraphRelation {
        GraphRelation {
            source: self.source_node_id,
            target: self.target_node_id,
            relation_type: self.relation_type,
            strength: self.strength,
            confidence: self.confidence,
        }
    }
}

impl Walk {
    async fn graph(&self, connection: &mut Connection, user: UserId) -> Result<Answered<GraphAnswer>, Fault> {
        let Self(query) = self;
        let (node_key, limit) = (query.node_key.as_str(), query.limit.get());
        let node_type = query.node_type.as_ref().map(BoundedText::as_str);
        let relation_type = query.relation_type.as_ref().map(BoundedText::as_str);
        let statement = diesel::sql_query(WALK)
            .bind::<Integer, _>(user.get())
            .bind::<Text, _>(node_key)
            .bind::<Nullable<Text>, _>(node_type)
            // The type of the field keeps it below the maximum of i32.
            .bind::<Integer, _>(i32::try_from(query.depth.get()).unwrap_or(0))
            .bind::<Nullable<Text>, _>(relation_type)
            .bind::<BigInt, _>(page::one_more(limit))
            .bind::<BigInt, _>(page::PAGE_BYTES)
            .bind::<Nullable<Timestamptz>, _>(query.as_of);
        let mut nodes: Vec<Node> = store::prepared(statement).load(connection).await?;
        let Some(found) = nodes.as_slice().first().map(|node| node.found) else {
            let of_type = node_type.map(|node_type| format!(" of type {node_type:?}")).unwrap_or_default();
            let what = format!("node {node_key:?}{of_type}");
            return Ok(Answered::not_found(NODES, "node_key", &what, user));
        };
        nodes.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        let cut = usize::try_from(found).unwrap_or(usize::MAX) > nodes.len();
        let statement = diesel::sql_query(RELATE)
            .bind::<Integer, _>(user.get())
            .bind::<Array<SqlUuid>, _>(nodes.iter().map(|node| node.id).collect::<Vec<_>>())
            .bind::<Nullable<Text>, _>(relation_type)
            .bind::<BigInt, _>(page::one_more(MAX_RELATIONS))
            .bind::<Nullable<Timestamptz>, _>(query.as_of);
        let mut relations: Vec<Relation> = store::prepared(statement).load(connection).await?;
        let max_relations = usize::try_from(MAX_RELATIONS).unwrap_or(usize::MAX);
        let truncated = cut || relations.len() > max_relations;
        relations.truncate(max_relations);
        let read = (nodes.len(), relations.len());
        let answer = GraphAnswer {
            nodes: nodes.into_iter().map(Node::into_info).collect::<Result<_, Fault>>()?,
            relations: relations.into_iter().map(Relation::into_info).collect(),
            truncated,
        };
        Ok(Answered::new(answer, NODES, read.0).and_read(RELATIONS, read.1))
    }
}
