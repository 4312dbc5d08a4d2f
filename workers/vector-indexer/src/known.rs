//! The rows that a batch needs, read before its transaction.

use std::collections::{HashMap, HashSet};

use ::store::vector::{self, Collection, Right};
use ::store::{Connection, Fault, inbox, security};
use contract::{StreamRequest, UserId, VECTOR_INDEXER, VectorRequest};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Binary, Bool, Integer, Nullable, Text, Uuid as SqlUuid};
use diesel_async::{AsyncConnection, RunQueryDsl};
use uuid::Uuid;
use vectors::Tenant;

use crate::Embedded;
use crate::work::Work;

/// The rows that a batch needs.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) tenants: HashMap<i32, Tenant>,
    pub(crate) rights: Vec<Right>,
    pub(crate) collections: Vec<Collection>,
    /// The requests that were already applied, by user.
    pub(crate) taken: HashSet<(i32, Uuid)>,
    /// The memories of the batch that exist.
    pub(crate) memories: HashMap<(i32, Uuid), Row>,
    /// Memories with the same texts, by user and hash.
    pub(crate) same: HashMap<(i32, Vec<u8>), Row>,
    /// The sessions and nodes of the batch that exist.
    pub(crate) sessions: HashSet<(i32, String)>,
    pub(crate) nodes: HashSet<(i32, Uuid)>,
}

/// A stored memory.
#[derive(Clone, Debug, QueryableByName)]
pub(crate) struct Row {
    #[diesel(sql_type = Integer)]
    pub(crate) user_id: i32,
    #[diesel(sql_type = SqlUuid)]
    pub(crate) id: Uuid,
    #[diesel(sql_type = Nullable<Text>)]
    pub(crate) session_id: Option<String>,
    #[diesel(sql_type = Text)]
    pub(crate) vector_type: String,
    #[diesel(sql_type = Nullable<Binary>)]
    pub(crate) content_hash: Option<Vec<u8>>,
    #[diesel(sql_type = Text)]
    pub(crate) embedding_model: String,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub(crate) qdrant_point_id: Option<Uuid>,
    #[diesel(sql_type = Integer)]
    pub(crate) point_count: i32,
    #[diesel(sql_type = Bool)]
    pub(crate) is_brought: bool,
}

const ROWS: &str = "
    SELECT DISTINCT v.user_id, v.id, v.session_id,
        v.vector_type::text AS vector_type,
        v.content_hash, v.embedding_model, v.qdrant_point_id, v.point_count, v.is_brought
    FROM unnest($1::integer[], $2::uuid[], $3::bytea[]) AS i (user_id, id, hash)
    CROSS JOIN LATERAL (
        SELECT * FROM unified_memory_vectors m WHERE m.user_id = i.user_id AND m.id = i.id
        UNION ALL (SELECT * FROM unified_memory_vectors m WHERE m.user_id = i.user_id AND m.content_hash = i.hash
            AND NOT m.is_brought LIMIT 1)) AS v";

const PARENTS: &str = "
    SELECT DISTINCT i.user_id, s.session_id, n.id AS node_id
    FROM unnest($1::integer[], $2::text[], $3::uuid[]) AS i (user_id, session_id, node_id)
    LEFT JOIN chat_mode_sessions s ON s.user_id = i.user_id AND s.session_id = i.session_id
    LEFT JOIN consensus_memory_nodes n ON n.user_id = i.user_id AND n.id = i.node_id";

/// Reads the rows in a transaction with the security context of the batch. `alias` is that of the collections.
pub(crate) async fn of_batch(
    connection: &mut Connection,
    alias: &str,
    batch: &[Work<'_>],
    grants: &[&str],
) -> Result<Known, Fault> {
    connection
        .transaction(async |connection| {
            security::open_context(connection, grants).await?;
            let mut known = Known::default();
            for tenant in vector::tenants(connection).await? {
                known.tenants.insert(tenant.user_id, Tenant::new(tenant.tenant, tenant.filter_key));
            }
            let mut services: Vec<&str> = batch.iter().map(|work| work.publisher).collect();
            services.sort_unstable();
            services.dedup();
            known.rights = vector::rights(connection, vectors::ALIAS, &services).await?;
            known.collections = vector::collections(connection, alias, &["active", "filling"]).await?;
            let entries: Vec<inbox::Entry> = batch
                .iter()
                .map(|work| inbox::Entry {
                    user_id: work.user.get(),
                    message_id: work.request_id,
                    event_id: work.event_id,
                    event_count: 1,
                })
                .collect();
            let taken = inbox::find(connection, VECTOR_INDEXER.name, &entries).await?;
            known.taken = taken.into_iter().map(|entry| (entry.user_id, entry.message_id)).collect();
            rows(connection, batch, &mut known).await?;
            parents(connection, batch, &mut known).await?;
            Ok(known)
        })
        .await
}

async fn rows(connection: &mut Connection, batch: &[Work<'_>], known: &mut Known) -> Result<(), Fault> {
    let (mut users, mut ids, mut hashes) = (Vec::new(), Vec::new(), Vec::new());
    for work in batch {
        let user = work.user.get();
        let mut wanted = |id, hash: Option<[u8; 32]>| {
            users.push(user);
            ids.push(id);
            hashes.push(hash.map(|hash| hash.to_vec()));
        };
        match work.request {
            VectorRequest::VectorIndex(index) => {
                for memory in index.memories.as_slice() {
                    let hash = memory.embedding.is_none().then(|| Embedded::new(memory).hash());
                    wanted(memory.memory_id, hash);
                }
            }
            VectorRequest::VectorRemove(remove) => {
                remove.memory_ids.as_slice().iter().for_each(|&id| wanted(id, None));
            }
        }
    }
    let query = diesel::sql_query(ROWS)
        .bind::<Array<Integer>, _>(users)
        .bind::<Array<SqlUuid>, _>(&ids)
        .bind::<Array<Nullable<Binary>>, _>(hashes);
    let found: Vec<Row> = ::store::prepared(query).load(connection).await?;
    let ids: HashSet<Uuid> = ids.into_iter().collect();
    for row in found {
        if let (Some(hash), Some(_), false) = (&row.content_hash, row.qdrant_point_id, row.is_brought) {
            known.same.insert((row.user_id, hash.clone()), row.clone());
        }
        if ids.contains(&row.id) {
            known.memories.insert((row.user_id, row.id), row);
        }
    }
    Ok(())
}

async fn parents(connection: &mut Connection, batch: &[Work<'_>], known: &mut Known) -> Result<(), Fault> {
    #[derive(QueryableByName)]
    struct Parent {
        #[diesel(sql_type = Integer)]
        user_id: i32,
        #[diesel(sql_type = Nullable<Text>)]
        session_id: Option<String>,
        #[diesel(sql_type = Nullable<SqlUuid>)]
        node_id: Option<Uuid>,
    }
    let mut wanted: HashSet<(i32, Option<&str>, Option<Uuid>)> = HashSet::new();
    for work in batch {
        let user = work.user.get();
        if let Some(session) = StreamRequest::facts(work.request).session_id() {
            wanted.insert((user, Some(session.as_str()), None));
        }
        if let VectorRequest::VectorIndex(index) = work.request {
            let nodes = index.memories.as_slice().iter().filter_map(|memory| memory.memory_node_id);
            wanted.extend(nodes.map(|node| (user, None, Some(node))));
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let query = diesel::sql_query(PARENTS)
        .bind::<Array<Integer>, _>(wanted.iter().map(|one| one.0).collect::<Vec<_>>())
        .bind::<Array<Nullable<Text>>, _>(wanted.iter().map(|one| one.1).collect::<Vec<_>>())
        .bind::<Array<Nullable<SqlUuid>>, _>(wanted.iter().map(|one| one.2).collect::<Vec<_>>());
    let parents: Vec<Parent> = ::store::prepared(query).load(connection).await?;
    for Parent { user_id, session_id, node_id } in parents {
        known.sessions.extend(session_id.map(|id| (user_id, id)));
        known.nodes.extend(node_id.map(|id| (user_id, id)));
    }
    Ok(())
}

impl Known {
    /// Whether a service has a right on a vector type.
    pub(crate) fn may(&self, service: &str, vector_type: &str, what: fn(&Right) -> bool) -> bool {
        self.rights
            .iter()
            .any(|right| right.service == service && right.vector_type == vector_type && what(right))
    }

    pub(crate) fn row(&self, user: UserId, memory: Uuid) -> Option<&Row> {
        self.memories.get(&(user.get(), memory))
    }

    /// The row of a memory that is not removed.
    pub(crate) fn live(&self, user: UserId, memory: Uuid) -> Option<&Row> {
        self.row(user, memory).filter(|row| row.qdrant_point_id.is_some())
    }
}
