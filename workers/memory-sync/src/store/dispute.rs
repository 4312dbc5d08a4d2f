//! Facts that sessions state differently: nothing is merged, and a disputed node of the knowledge graph names all values.

use std::sync::LazyLock;

use ::store::unnest::{UnnestRow, with_rows};
use ::store::{Connection, Fault};
use chrono::{DateTime, Utc};
use contract::{SyncCandidate, UserId};
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
    pub(crate) key: Key,
    pub(crate) values: Vec<SyncCandidate>,
    user: UserId,
    is_sensitive: bool,
    sync_id: Uuid,
    request_id: Uuid,
    at: DateTime<Utc>,
}

impl Raised {
    /// The node of a dispute. The same writes are the same node, whichever session finds them first.
    pub(crate) fn new(run: &Run, dispute: &Dispute) -> Result<Self, Fault> {
        let (name, agent, tier) = convert::named(&dispute.key);
        let tier = tier.map(contract::MemoryTier::as_str);
        let stamps: Vec<_> = dispute.values.iter().map(|value| value.stamp.clone()).collect();
        let identity = super::json(&json!(["sync-dispute", run.user.get(), name, agent, tier, stamps]));
        Ok(Self {
            node_id: Uuid::new_v5(&Uuid::NAMESPACE_OID, identity.as_bytes()),
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

/// Raises the disputed nodes that are not there yet.
pub(crate) async fn raise(connection: &mut Connection, raised: &[Raised]) -> Result<(), Fault> {
    if raised.is_empty() {
        return Ok(());
    }
    let row = |one| {
        let Raised { node_id, key, user, request_id, at, .. }: &Raised = one;
        NodeRow {
            id: *node_id,
            user_id: user.get(),
            node_key: key.name(),
            title: format!("Sessions state {} differently", key.name()),
            content: one.content(),
            request_id: *request_id,
            at: *at,
        }
    };
    with_rows(&RAISE, raised.iter().map(row).collect()).execute(connection).await?;
    Ok(())
}
