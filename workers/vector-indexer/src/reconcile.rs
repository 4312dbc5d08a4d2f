//! The reconciler: compares the vector store with the database and repairs differences.
//!
//! It reads the rows of all users, for which it needs an administrator's role (`postgres.url`). A point may be newer
//! than its row, because its transaction has not committed yet. An apparent orphan is therefore checked again after a
//! grace period.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use ::store::vector::{Collection, all_tenants};
use ::store::{Connection, Fault};
use chrono::{DateTime, Utc};
use contract::{SessionId, VectorType};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use embed::Embedder;
use uuid::Uuid;
use vectors::{PointKey, StoredPoint, Tenant, VectorStore, chunk_ids, metadata_digests};

use crate::Embedded;
use crate::embedding::{ToEmbed, Unembedded, embed_each, points_of};
use crate::prepare::fault;
use crate::store::when_written;
use crate::suspicion::Trouble;
use crate::text::pieces_of;

/// The number of points or rows read at a time.
const PAGE: u32 = 500;

/// The result of a reconciliation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// The number of points in the collection.
    pub points: u64,
    /// The number of memories that it should contain.
    pub memories: u64,
    /// Orphans: points without a row.
    pub orphans: u64,
    /// Gaps: memories with a missing point.
    pub gaps: u64,
    /// Repaired orphans and gaps.
    pub repaired: u64,
    /// Gaps that cannot be repaired: the publisher supplied the vector, or the embedder rejects the text.
    pub lost: u64,
}

/// Reconciles one collection.
#[derive(Debug)]
pub struct Reconciler<'a> {
    /// The vector store.
    pub vectors: &'a VectorStore,
    /// The collection.
    pub collection: &'a Collection,
    /// The embedder of the collection's model, for missing vectors.
    pub embedder: Option<&'a Embedder>,
    /// Whether to delete orphans and fill gaps.
    pub repair: bool,
    /// The grace period after which a point without a row is an orphan.
    pub grace: Duration,
}

/// The points that have a row: by their id, or as further points of the same request.
const NAMED: &str = "
    SELECT i.id FROM unnest($1::uuid[], $2::integer[], $3::uuid[], $4::bigint[]) AS i (id, user_id, memory, written)
    JOIN unified_memory_vectors v ON v.user_id = i.user_id AND v.id = i.memory AND v.removed_at IS NULL
        AND (v.qdrant_point_id = i.id OR (extract(epoch FROM v.updated_at) * 1000000)::bigint = i.written)";

const ROWS: &str = "
    SELECT user_id, id, session_id, vector_type::text AS vector_type, content_text, speaker, preceding_text, embedding_model,
        qdrant_point_id, point_count, is_brought, metadata::text AS metadata, occurred_at, is_dated,
        (extract(epoch FROM updated_at) * 1000000)::bigint AS written
    FROM unified_memory_vectors
    WHERE (user_id, id) > ($1, $2) AND removed_at IS NULL AND qdrant_point_id IS NOT NULL ORDER BY user_id, id LIMIT $3";

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Nullable<Text>)]
    session_id: Option<String>,
    #[diesel(sql_type = Text)]
    vector_type: String,
    #[diesel(sql_type = Text)]
    content_text: String,
    #[diesel(sql_type = Nullable<Text>)]
    speaker: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    preceding_text: Option<String>,
    #[diesel(sql_type = Text)]
    embedding_model: String,
    #[diesel(sql_type = SqlUuid)]
    qdrant_point_id: Uuid,
    #[diesel(sql_type = Integer)]
    point_count: i32,
    #[diesel(sql_type = Bool)]
    is_brought: bool,
    #[diesel(sql_type = Text)]
    metadata: String,
    #[diesel(sql_type = Timestamptz)]
    occurred_at: DateTime<Utc>,
    #[diesel(sql_type = Bool)]
    is_dated: bool,
    #[diesel(sql_type = BigInt)]
    written: i64,
}

impl Row {
    /// The points that the collection must contain: all of them if they are of its model, or else at least the first.
    fn points(&self, model: &str) -> Vec<Uuid> {
        let count =
            if self.embedding_model == model { usize::try_from(self.point_count).unwrap_or(1) } else { 1 };
        chunk_ids(self.qdrant_point_id, count.max(1)).collect()
    }

    fn embedded(&self) -> Embedded {
        let said_at = self.is_dated.then_some(self.occurred_at);
        Embedded::of(&self.content_text, self.speaker.as_deref(), self.preceding_text.as_deref(), said_at)
    }
}

impl Reconciler<'_> {
    /// Reconciles the whole collection.
    ///
    /// # Errors
    /// A [`Fault`] of one of the stores. Repairs up to then are kept.
    pub async fn run(&self, connection: &mut Connection) -> Result<Findings, Fault> {
        let mut findings = Findings::default();
        let rows = all_tenants(connection).await?;
        let tenants: HashMap<i32, Tenant> =
            rows.into_iter().map(|row| (row.user_id, Tenant::new(row.tenant, row.filter_key))).collect();
        self.find_orphans(connection, &tenants, &mut findings).await?;
        self.find_gaps(connection, &tenants, &mut findings).await?;
        Ok(findings)
    }

    async fn find_orphans(
        &self,
        connection: &mut Connection,
        tenants: &HashMap<i32, Tenant>,
        findings: &mut Findings,
    ) -> Result<(), Fault> {
        let users: HashMap<Uuid, i32> =
            tenants.iter().map(|(user, tenant)| (tenant.token(), *user)).collect();
        let (mut from, mut suspects) = (None, Vec::new());
        loop {
            let (points, next) =
                self.vectors.scroll(&self.collection.collection_name, from, PAGE).await.map_err(fault)?;
            findings.points += u64::try_from(points.len()).unwrap_or(0);
            let named = named(connection, &points, &users).await?;
            suspects.extend(points.into_iter().filter(|point| !named.contains(&point.id)));
            match next {
                Some(next) => from = Some(next),
                None => break,
            }
        }
        if suspects.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(self.grace).await;
        for some in suspects.chunks(PAGE as usize) {
            let named = named(connection, some, &users).await?;
            let orphans: Vec<Uuid> =
                some.iter().map(|point| point.id).filter(|id| !named.contains(id)).collect();
            let count = u64::try_from(orphans.len()).unwrap_or(0);
            findings.orphans += count;
            if self.repair && !orphans.is_empty() {
                self.vectors.delete(&self.collection.collection_name, &orphans).await.map_err(fault)?;
                findings.repaired += count;
            }
        }
        Ok(())
    }

    async fn find_gaps(
        &self,
        connection: &mut Connection,
        tenants: &HashMap<i32, Tenant>,
        findings: &mut Findings,
    ) -> Result<(), Fault> {
        let mut after = (i32::MIN, Uuid::nil());
        loop {
            let query = diesel::sql_query(ROWS)
                .bind::<Integer, _>(after.0)
                .bind::<SqlUuid, _>(after.1)
                .bind::<BigInt, _>(i64::from(PAGE));
            let rows: Vec<Row> = query.load(connection).await?;
            let Some(last) = rows.as_slice().last() else { return Ok(()) };
            after = (last.user_id, last.id);
            findings.memories += u64::try_from(rows.len()).unwrap_or(0);
            let ids: Vec<Uuid> = rows.iter().flat_map(|row| row.points(&self.collection.model)).collect();
            let there = self.vectors.present(&self.collection.collection_name, &ids).await.map_err(fault)?;
            let is_whole =
                |row: &&Row| row.points(&self.collection.model).iter().all(|id| there.contains(id));
            let missing: Vec<&Row> = rows.iter().filter(|row| !is_whole(row)).collect();
            findings.gaps += u64::try_from(missing.len()).unwrap_or(0);
            if self.repair {
                self.fill(&missing, tenants, findings).await?;
                self.delete_superseded(connection, &missing).await?;
            }
        }
    }

    /// Embeds memories again and writes their points, as the original requests did.
    async fn fill(
        &self,
        rows: &[&Row],
        tenants: &HashMap<i32, Tenant>,
        findings: &mut Findings,
    ) -> Result<(), Fault> {
        // A vector from the publisher cannot be computed here, unless the collection is for another model.
        let can_be_made = |row: &Row| !row.is_brought || row.embedding_model != self.collection.model;
        let known: Vec<(&Row, &Tenant)> = rows
            .iter()
            .filter(|row| can_be_made(row))
            .filter_map(|row| Some((*row, tenants.get(&row.user_id)?)))
            .collect();
        let Some(embedder) = self.embedder.filter(|_| !known.is_empty()) else {
            findings.lost += u64::try_from(rows.len()).unwrap_or(0);
            return Ok(());
        };
        findings.lost += u64::try_from(rows.len() - known.len()).unwrap_or(0);
        let pieces = pieces_of(embedder, known.iter().map(|(row, _)| row.embedded()).collect()).await;
        let to_embed = |(group, ((row, _), pieces)): (usize, (&(&Row, &Tenant), Vec<String>))| ToEmbed {
            user: row.user_id,
            group,
            pieces,
        };
        let memories = known.iter().zip(pieces).enumerate().map(to_embed).collect();
        let made = embed_each(embedder, memories).await.map_err(Trouble::into_fault)?;
        let mut points = Vec::new();
        for ((row, tenant), made) in known.into_iter().zip(made) {
            let made = match made {
                Ok(made) => made,
                Err(unembedded) => {
                    findings.lost += 1;
                    let reason = match unembedded {
                        Unembedded::Rejected(reason) => reason,
                        Unembedded::Skipped => String::new(),
                    };
                    tracing::warn!(user = row.user_id, memory = %row.id, reason, "cannot embed a memory");
                    continue;
                }
            };
            findings.repaired += 1;
            points.extend(points_of(row.qdrant_point_id, made, tenant, &key_of(row, tenant)));
        }
        self.vectors.upsert(&self.collection.collection_name, points).await.map_err(fault)
    }

    /// Deletes the points of memories that requests replaced or removed while the points were computed.
    async fn delete_superseded(&self, connection: &mut Connection, rows: &[&Row]) -> Result<(), Fault> {
        let keys: Vec<(i32, Uuid)> = rows.iter().map(|row| (row.user_id, row.id)).collect();
        let now = when_written(connection, &keys).await?;
        let changed = rows.iter().filter(|row| now.get(&(row.user_id, row.id)) != Some(&row.written));
        let most = i64::from(PAGE);
        let points: Vec<Uuid> = changed
            .flat_map(|row| chunk_ids(row.qdrant_point_id, usize::try_from(most).unwrap_or(1)))
            .collect();
        self.vectors.delete(&self.collection.collection_name, &points).await.map_err(fault)
    }
}

fn key_of(row: &Row, tenant: &Tenant) -> PointKey {
    let vector_type = VectorType::ALL.iter().copied().find(|one| one.as_str() == row.vector_type);
    PointKey {
        memory: row.id,
        written: row.written,
        session: row.session_id.as_ref().and_then(|id| SessionId::new(id.clone()).ok()),
        vector_type: vector_type.unwrap_or(VectorType::Context),
        time: row.occurred_at.timestamp_millis(),
        meta: metadata_digests(tenant, &row.metadata),
    }
}

async fn named(
    connection: &mut Connection,
    points: &[StoredPoint],
    users: &HashMap<Uuid, i32>,
) -> Result<HashSet<Uuid>, Fault> {
    #[derive(QueryableByName)]
    struct Id {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
    }
    // A point without a tenant or without a memory has no row.
    let whose =
        |point: &StoredPoint| Some((point.id, *users.get(&point.tenant?)?, point.memory?, point.written));
    let known: Vec<(Uuid, i32, Uuid, i64)> = points.iter().filter_map(whose).collect();
    let query = diesel::sql_query(NAMED)
        .bind::<Array<SqlUuid>, _>(known.iter().map(|one| one.0).collect::<Vec<_>>())
        .bind::<Array<Integer>, _>(known.iter().map(|one| one.1).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(known.iter().map(|one| one.2).collect::<Vec<_>>())
        .bind::<Array<BigInt>, _>(known.iter().map(|one| one.3).collect::<Vec<_>>());
    let rows: Vec<Id> = query.load(connection).await?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}
