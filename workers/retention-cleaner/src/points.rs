//! Points of memories that a run has removed: they are deleted from the vector store while no transaction is open, and the row of the
//! memory keeps saying that there are some until that is done. So a crash at any moment leaves nothing behind.

use std::collections::HashMap;
use std::ops::Range;

use ::store::{Connection, Fault, Pool, security, vector};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Integer, Uuid as SqlUuid};
use diesel_async::{AsyncConnection, RunQueryDsl};
use uuid::Uuid;
use vectors::{SupersededPoints, Tenant, VectorError, VectorStore};

/// The most memories of a run.
const MEMORIES: i32 = 1_000;

/// The memories whose points are deleted: user, memory, and when its row was written.
#[derive(Debug, Default)]
pub struct Removed(Vec<(i32, Uuid, i64)>);

impl Removed {
    pub(crate) fn with(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = BigInt)]
    written: i64,
}

/// What is known of the memories and of where their points are.
struct Known {
    rows: Vec<Row>,
    tenants: HashMap<i32, Tenant>,
    collections: Vec<vector::Collection>,
}

async fn known(connection: &mut Connection, alias: &str, grants: &[&str]) -> Result<Known, Fault> {
    const ROWS: &str = "
        SELECT user_id, id, (extract(epoch FROM updated_at) * 1000000)::bigint AS written FROM unified_memory_vectors
        WHERE has_points ORDER BY user_id, id LIMIT $1";
    security::open_context(connection, grants).await?;
    let query = diesel::sql_query(ROWS).bind::<Integer, _>(MEMORIES);
    let rows: Vec<Row> = ::store::prepared(query).load(connection).await?;
    if rows.is_empty() {
        return Ok(Known { rows, tenants: HashMap::new(), collections: Vec::new() });
    }
    let tenants = vector::tenants(connection).await?;
    let tenants =
        tenants.into_iter().map(|row| (row.user_id, Tenant::new(row.tenant, row.filter_key))).collect();
    let collections = vector::collections(connection, alias, &["active", "filling", "former"]).await?;
    Ok(Known { rows, tenants, collections })
}

/// Deletes points that earlier runs have left. While the vector store is unreachable they stay, and the sweep goes on.
pub(crate) async fn remove(
    pool: &Pool,
    vectors: Option<&VectorStore>,
    grants: &[&str],
) -> Result<Removed, Fault> {
    if grants.is_empty() {
        return Ok(Removed::default());
    }
    let alias = vectors.map_or("", VectorStore::alias);
    let mut connection = ::store::acquire(pool).await?;
    let known = connection.transaction(async |connection| known(connection, alias, grants).await).await;
    ::store::discard_if_unusable(connection, &known);
    let Known { rows, tenants, collections } = known?;
    let spans: Vec<SupersededPoints> = rows
        .iter()
        .filter_map(|row| {
            let tenant = tenants.get(&row.user_id)?.clone();
            let written: Range<i64> = 0..row.written;
            Some(SupersededPoints { tenant, memory: row.id, written })
        })
        .collect();
    if let Some(vectors) = vectors.filter(|_| !spans.is_empty()) {
        for collection in &collections {
            match vectors.delete_superseded(&collection.collection_name, &spans).await {
                // If the collection was deleted, its points are gone too.
                Ok(()) | Err(VectorError::NoCollection(_)) => {}
                Err(error) => {
                    tracing::warn!(%error, memories = spans.len(), "points of removed memories stay until the next run");
                    return Ok(Removed::default());
                }
            }
        }
    }
    Ok(Removed(rows.into_iter().map(|row| (row.user_id, row.id, row.written)).collect()))
}

/// Notes that the points are deleted, unless the memory was written again meanwhile.
pub(crate) async fn forget(connection: &mut Connection, removed: &Removed) -> Result<(), Fault> {
    const FORGET: &str = "
        UPDATE unified_memory_vectors v SET has_points = false FROM unnest($1::integer[], $2::uuid[], $3::bigint[]) AS i (user_id, id, written)
        WHERE v.user_id = i.user_id AND v.id = i.id AND v.has_points
            AND (extract(epoch FROM v.updated_at) * 1000000)::bigint = i.written";
    if removed.0.is_empty() {
        return Ok(());
    }
    let query = diesel::sql_query(FORGET)
        .bind::<Array<Integer>, _>(removed.0.iter().map(|one| one.0).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(removed.0.iter().map(|one| one.1).collect::<Vec<_>>())
        .bind::<Array<BigInt>, _>(removed.0.iter().map(|one| one.2).collect::<Vec<_>>());
    ::store::prepared(query).execute(connection).await?;
    Ok(())
}
