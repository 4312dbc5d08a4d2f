//! The knowledge around a node: the reference document's "Memory node relationship traversal".

use contract::{GraphAnswer, GraphNode, GraphRelation, GraphWalk, Text as BoundedText, UserId};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Double, Integer, Nullable, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use store::{Connection, Fault};
use uuid::Uuid;

use super::{Answer, json, one_more};
use crate::page;

pub(crate) const NODES: &str = "consensus_memory_nodes";
pub(crate) const RELATIONS: &str = "consensus_memory_relations";
/// How many relations an answer has at most.
const MOST_RELATIONS: i64 = 2_000;

/// UNION drops what the walk has found before at the same depth, so that it visits each node once for each depth at most,
/// however many ways lead there and whether they come back.
const WALK: &str = "
    WITH RECURSIVE walk (id, depth) AS (
        SELECT id, 0 FROM consensus_memory_nodes
        WHERE user_id = $1 AND node_key = $2 AND ($3 IS NULL OR node_type = $3)
        UNION
        SELECT r.target_node_id, w.depth + 1
        FROM walk w JOIN consensus_memory_relations r ON r.user_id = $1 AND r.source_node_id = w.id
        WHERE w.depth < $4 AND ($5 IS NULL OR r.relation_type = $5)
    ), nearest AS (
        SELECT id, min(depth) AS depth FROM walk GROUP BY id
    ), page AS (
        SELECT n.*, w.depth FROM nearest w JOIN consensus_memory_nodes n ON n.user_id = $1 AND n.id = w.id
        ORDER BY w.depth, n.title, n.id LIMIT $6
    ), sized AS (
        SELECT p.*, count(*) OVER () AS found, row_number() OVER in_order AS place,
            sum(octet_length(p.content::text)) OVER in_order AS bytes
        FROM page p WINDOW in_order AS (ORDER BY p.depth, p.title, p.id))
    SELECT id, node_type, node_key, title, content::text AS content, validation_status::text AS validation_status, consensus_score,
        depth, found
    FROM sized WHERE place = 1 OR bytes <= $7 ORDER BY place";

const RELATE: &str = "
    SELECT source_node_id, target_node_id, relation_type, strength, confidence FROM consensus_memory_relations
    WHERE user_id = $1 AND source_node_id = ANY ($2) AND target_node_id = ANY ($2)
        AND ($3 IS NULL OR relation_type = $3)
    ORDER BY source_node_id, target_node_id, relation_type LIMIT $4";

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

pub(crate) async fn walk(
    connection: &mut Connection,
    user: UserId,
    walk: &GraphWalk,
) -> Result<Answer, Fault> {
    let limit = walk.limit.get();
    let relation_type = walk.relation_type.as_ref().map(BoundedText::as_str);
    let query = diesel::sql_query(WALK)
        .bind::<Integer, _>(user.get())
        .bind::<Text, _>(walk.node_key.as_str())
        .bind::<Nullable<Text>, _>(walk.node_type.as_ref().map(BoundedText::as_str))
        // Its bounds are within the type's.
        .bind::<Integer, _>(i32::try_from(walk.depth.get()).unwrap_or(0))
        .bind::<Nullable<Text>, _>(relation_type)
        .bind::<BigInt, _>(one_more(limit))
        .bind::<BigInt, _>(page::PAGE_BYTES);
    let mut nodes: Vec<Node> = store::prepared(query).load(connection).await?;
    let Some(found) = nodes.as_slice().first().map(|node| node.found) else {
        return Ok(Answer::Nothing("node_key"));
    };
    nodes.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let cut = usize::try_from(found).unwrap_or(usize::MAX) > nodes.len();
    let query = diesel::sql_query(RELATE)
        .bind::<Integer, _>(user.get())
        .bind::<Array<SqlUuid>, _>(nodes.iter().map(|node| node.id).collect::<Vec<_>>())
        .bind::<Nullable<Text>, _>(relation_type)
        .bind::<BigInt, _>(one_more(MOST_RELATIONS));
    let mut relations: Vec<Relation> = store::prepared(query).load(connection).await?;
    let room = usize::try_from(MOST_RELATIONS).unwrap_or(usize::MAX);
    let truncated = cut || relations.len() > room;
    relations.truncate(room);
    Ok(Answer::Graph(GraphAnswer {
        nodes: nodes.into_iter().map(Node::into_info).collect::<Result<_, Fault>>()?,
        relations: relations
            .into_iter()
            .map(|relation| GraphRelation {
                source: relation.source_node_id,
                target: relation.target_node_id,
                relation_type: relation.relation_type,
                strength: relation.strength,
                confidence: relation.confidence,
            })
            .collect(),
        truncated,
    }))
}
