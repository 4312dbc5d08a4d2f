//! Facts that sessions state differently: nothing is merged, and a disputed node of the knowledge graph names all values.

use std::collections::HashMap;
use std::sync::LazyLock;

use ::store::unnest::{UnnestRow, with_rows};
use ::store::{Connection, Fault};
use chrono::{DateTime, Utc};
use contract::{SyncCandidate, UserId};
use diesel::QueryableByName;
use diesel::sql_types::{Integer, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use serde::Serialize;
use serde_json::json;
use sync::{Dispute, Key};
use uuid::Uuid;

use super::convert;
use super::run::Run;
use super::write::marked;

/// A dispute, as the node that is raised for it.
#[derive(Clone, Debug)]
pub(crate) struct Raised {
    pub(crate) node_id: Uuid,
    /// The change that it is on record with.
    pub(crate) change: Uuid,
    pub(crate) key: Key,
    pub(crate) values: Vec<SyncCandidate>,
    user: UserId,
    is_sensitive: bool,
    sync_id: Uuid,
    request_id: Uuid,
    at: DateTime<Utc>,
}

impl Raised {
    /// The node of a dispute. The same writes are the same node, whichever session finds them first, unless somebody has taken its id
    /// ([`raise`]).
    pub(crate) fn new(run: &Run, change: Uuid, dispute: &Dispute) -> Result<Self, Fault> {
        let (name, agent, tier) = convert::named(&dispute.key);
        let tier = tier.map(contract::MemoryTier::as_str);
        let stamps: Vec<_> = dispute.values.iter().map(|value| value.stamp.clone()).collect();
        let identity = super::json(&json!(["sync-dispute", run.user.get(), name, agent, tier, stamps]));
        Ok(Self {
            node_id: Uuid::new_v5(&Uuid::NAMESPACE_OID, identity.as_bytes()),
            change,
            key: dispute.key.clone(),
            values: dispute.values.iter().map(convert::candidate).collect::<Result<_, _>>()?,
            user: run.user,
            is_sensitive: dispute.sensitive,
            sync_id: run.id,
            request_id: run.request_id,
            at: run.now,
        })
    }

    /// What the node says. Values that are stored encrypted only are not among it.
    fn content(&self) -> String {
        let (context_key, agent_id, memory_tier) = convert::named(&self.key);
        let marked = |value: &SyncCandidate| if self.is_sensitive { marked(value) } else { value.clone() };
        let values = self.values.iter().map(marked).collect();
        super::json(&Content { context_key, agent_id, memory_tier, sync_id: self.sync_id, values })
    }

    fn row(&self) -> NodeRow<'_> {
        NodeRow {
            id: self.node_id,
            user_id: self.user.get(),
            node_key: self.key.name(),
            title: format!("Sessions state {} differently", self.key.name()),
            content: self.content(),
            request_id: self.request_id,
            at: self.at,
        }
    }
}

/// The content of such a node.
#[derive(Serialize)]
struct Content {
    context_key: String,
    agent_id: Option<String>,
    memory_tier: Option<contract::MemoryTier>,
    sync_id: Uuid,
    values: Vec<SyncCandidate>,
}

/// The type of such nodes.
pub(crate) const NODE_TYPE: &str = "sync-dispute";

::store::unnest_row! {
    struct NodeRow<'a> {
        id: Uuid,
        user_id: i32,
        node_key: &'a str,
        title: String,
        content: String,
        request_id: Uuid,
        at: DateTime<Utc>,
    }
}

static RAISE: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (NodeRow::arrays(1), NodeRow::names());
    format!(
        "INSERT INTO consensus_memory_nodes (id, user_id, node_type, node_key, title, content, validation_status, semantic_tags,
            established_at, updated_at, valid_from, request_id)
        SELECT DISTINCT ON (user_id, id) id, user_id, '{NODE_TYPE}', node_key, title, content::jsonb, 'disputed',
            '[\"sync\"]', at, at, at, request_id
        FROM unnest({arrays}) AS i ({names}) ORDER BY user_id, id
        ON CONFLICT (user_id, id) DO NOTHING"
    )
});

/// Nodes that were there and do not say this: their ids could be foreseen. Nobody proposes a disputed node, but a sync.
static TAKEN: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (NodeRow::arrays(1), NodeRow::names());
    format!(
        "SELECT DISTINCT i.user_id, i.id FROM unnest({arrays}) AS i ({names})
        JOIN consensus_memory_nodes n ON n.user_id = i.user_id AND n.id = i.id
        WHERE n.node_type <> '{NODE_TYPE}' OR n.node_key <> i.node_key OR n.validation_status = 'unvalidated'
            OR n.content -> 'values' IS DISTINCT FROM i.content::jsonb -> 'values'"
    )
});

#[derive(QueryableByName)]
struct Taken {
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
}

/// Raises the disputed nodes that are not there yet. One whose id another node has gets another id, which nobody could foresee.
pub(crate) async fn raise(connection: &mut Connection, raised: &mut [(usize, Raised)]) -> Result<(), Fault> {
    if raised.is_empty() {
        return Ok(());
    }
    with_rows(&RAISE, rows(raised)).execute(connection).await?;
    let taken: Vec<Taken> = with_rows(&TAKEN, rows(raised)).load(connection).await?;
    if taken.is_empty() {
        return Ok(());
    }
    let others: HashMap<(i32, Uuid), Uuid> =
        taken.into_iter().map(|node| ((node.user_id, node.id), Uuid::new_v4())).collect();
    for (_, one) in raised.iter_mut() {
        if let Some(other) = others.get(&(one.user.get(), one.node_id)) {
            one.node_id = *other;
        }
    }
    with_rows(&RAISE, rows(raised)).execute(connection).await?;
    Ok(())
}

fn rows(raised: &[(usize, Raised)]) -> Vec<NodeRow<'_>> {
    raised.iter().map(|(_, one)| one.row()).collect()
}
