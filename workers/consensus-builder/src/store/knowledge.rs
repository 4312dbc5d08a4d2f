//! Proposed knowledge, and relations between nodes.

use std::sync::LazyLock;

use ::store::unnest::UnnestRow;
use ::store::{Connection, Fault};
use chrono::{DateTime, Utc};
use contract::{KnowledgePropose, RelationPut, RelationRemove};
use uuid::Uuid;

use super::batch::{Item, Verdicts, apply, json};

::store::unnest_row! {
    struct ProposalRow<'a> {
        id: Uuid,
        user_id: i32,
        node_type: &'a str,
        node_key: &'a str,
        title: &'a str,
        content: &'a str,
        semantic_tags: String,
        stored_at: DateTime<Utc>,
        request_id: Uuid,
    }
}

static PROPOSE: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (ProposalRow::arrays(1), ProposalRow::names());
    format!(
        "WITH input AS MATERIALIZED (
        SELECT (i.place - 1)::integer AS ordinal, i.* FROM unnest({arrays}) WITH ORDINALITY AS i ({names}, place)
        JOIN users u ON u.id = i.user_id
    ), written AS (
        INSERT INTO consensus_memory_nodes (id, user_id, node_type, node_key, title, content, semantic_tags, established_at,
            updated_at, valid_from, request_id)
        SELECT id, user_id, node_type, node_key, title, content::jsonb, semantic_tags::jsonb, stored_at, stored_at, stored_at,
            request_id
        FROM input ORDER BY user_id, id
        ON CONFLICT (user_id, id) DO NOTHING
        RETURNING user_id, id
    )
    SELECT i.ordinal, w.id IS NOT NULL AS is_written FROM input i LEFT JOIN written w ON w.user_id = i.user_id AND w.id = i.id"
    )
});

impl<'a> ProposalRow<'a> {
    fn new(item: &Item<'a, KnowledgePropose>) -> Self {
        let request = item.request;
        Self {
            id: request.node_id,
            user_id: item.user(),
            node_type: request.node_type.as_str(),
            node_key: request.node_key.as_str(),
            title: request.title.as_str(),
            content: request.content.as_str(),
            semantic_tags: json(&request.semantic_tags),
            stored_at: item.message.stored_at,
            request_id: item.message.request_id,
        }
    }
}

/// Stores proposals, which nobody has validated.
pub(crate) async fn propose(
    connection: &mut Connection,
    items: &[Item<'_, KnowledgePropose>],
    verdicts: &mut Verdicts,
) -> Result<(), Fault> {
    let key = |item: &Item<'_, KnowledgePropose>| (item.user(), item.request.node_id);
    apply(connection, &PROPOSE, items, key, ProposalRow::new, verdicts).await.map(drop)
}

/// A request for a relation.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Relation<'a> {
    Put(&'a RelationPut),
    Remove(&'a RelationRemove),
}

impl<'a> Relation<'a> {
    fn ends(&self) -> (Uuid, Uuid, &'a str) {
        match self {
            Self::Put(put) => (put.source_node_id, put.target_node_id, put.relation_type.as_str()),
            Self::Remove(remove) => {
                (remove.source_node_id, remove.target_node_id, remove.relation_type.as_str())
            }
        }
    }
}

::store::unnest_row! {
    struct RelationRow<'a> {
        id: Uuid,
        user_id: i32,
        source: Uuid,
        target: Uuid,
        relation_type: &'a str,
        strength: f64,
        confidence: f64,
        is_removed: bool,
        stored_at: DateTime<Utc>,
        request_id: Uuid,
    }
}

/// A removed relation keeps its row. One that is stored again is valid from then on.
static RELATE: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (RelationRow::arrays(1), RelationRow::names());
    format!(
        "WITH input AS MATERIALIZED (
        SELECT (i.place - 1)::integer AS ordinal, i.* FROM unnest({arrays}) WITH ORDINALITY AS i ({names}, place)
        JOIN consensus_memory_nodes s ON s.user_id = i.user_id AND s.id = i.source
        JOIN consensus_memory_nodes t ON t.user_id = i.user_id AND t.id = i.target
    ), written AS (
        INSERT INTO consensus_memory_relations AS r (id, user_id, source_node_id, target_node_id, relation_type, strength,
            confidence, removed_at, created_at, updated_at, request_id)
        SELECT id, user_id, source, target, relation_type, strength, confidence, CASE WHEN is_removed THEN stored_at END,
            stored_at, stored_at, request_id
        FROM input ORDER BY user_id, source, target, relation_type
        ON CONFLICT (user_id, source_node_id, target_node_id, relation_type) DO UPDATE SET
            strength = CASE WHEN excluded.removed_at IS NULL THEN excluded.strength ELSE r.strength END,
            confidence = CASE WHEN excluded.removed_at IS NULL THEN excluded.confidence ELSE r.confidence END,
            created_at = CASE WHEN r.removed_at IS NULL OR excluded.removed_at IS NOT NULL THEN r.created_at
                ELSE excluded.created_at END,
            removed_at = excluded.removed_at, updated_at = excluded.updated_at, request_id = excluded.request_id
        WHERE excluded.updated_at >= r.updated_at AND (excluded.removed_at IS NULL OR r.removed_at IS NULL)
        RETURNING user_id, source_node_id, target_node_id, relation_type
    )
    SELECT i.ordinal, w.user_id IS NOT NULL AS is_written
    FROM input i LEFT JOIN written w ON w.user_id = i.user_id AND w.source_node_id = i.source AND w.target_node_id = i.target
        AND w.relation_type = i.relation_type"
    )
});

impl<'a> RelationRow<'a> {
    fn new(item: &Item<'a, Relation<'a>>) -> Self {
        let (source, target, relation_type) = item.request.ends();
        let (strength, confidence, is_removed) = match item.request {
            Relation::Put(put) => (put.strength.get(), put.confidence.get(), false),
            Relation::Remove(_) => (0.0, 0.0, true),
        };
        Self {
            id: item.message.event_id,
            user_id: item.user(),
            source,
            target,
            relation_type,
            strength,
            confidence,
            is_removed,
            stored_at: item.message.stored_at,
            request_id: item.message.request_id,
        }
    }
}

/// Stores and removes relations.
pub(crate) async fn relate(
    connection: &mut Connection,
    items: &[Item<'_, Relation<'_>>],
    verdicts: &mut Verdicts,
) -> Result<(), Fault> {
    let key = |item: &Item<'_, Relation<'_>>| {
        let (source, target, relation_type) = item.request.ends();
        (item.user(), source, target, relation_type.to_owned())
    };
    apply(connection, &RELATE, items, key, RelationRow::new, verdicts).await.map(drop)
}
