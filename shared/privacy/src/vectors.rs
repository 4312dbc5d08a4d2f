//! The points of a person in the vector store, which knows the person by a pseudonym.

use ::vectors::{VectorError, VectorStore};
use contract::UserId;
use diesel::QueryableByName;
use diesel::sql_types::{Bool, Integer, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use serde::{Deserialize, Serialize};
use store::{Connection, Fault};
use uuid::Uuid;

use crate::error::PrivacyError;

/// What a collection had of a person before the first deletion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// The collection.
    pub collection: String,
    /// The number of points.
    pub before: u64,
}

#[derive(QueryableByName)]
pub(crate) struct Collection {
    #[diesel(sql_type = Text)]
    pub(crate) name: String,
    /// Whether the vector store need not have it any more.
    #[diesel(sql_type = Bool)]
    pub(crate) is_former: bool,
}

/// All collections that points were ever written into.
pub(crate) async fn collections(db: &mut Connection) -> Result<Vec<Collection>, Fault> {
    const COLLECTIONS: &str = "
        SELECT collection_name::text AS name, state::text = 'former' AS is_former FROM public.vector_collections ORDER BY collection_name";
    Ok(diesel::sql_query(COLLECTIONS).load(db).await?)
}

/// Whether there is any collection.
pub(crate) async fn exist(db: &mut Connection) -> Result<bool, Fault> {
    Ok(!collections(db).await?.is_empty())
}

/// The pseudonym of a user; none if the trail does not know the user, so that nobody has it any more. As `sec.vector_tenants` gives it.
pub(crate) async fn tenant(db: &mut Connection, user: UserId) -> Result<Option<Uuid>, Fault> {
    #[derive(QueryableByName)]
    struct Tenant {
        #[diesel(sql_type = SqlUuid)]
        tenant: Uuid,
    }
    const TENANT: &str = "
        SELECT encode(substr(sha256(s.digest_key || convert_to('vector tenant', 'UTF8')), 1, 16), 'hex')::uuid AS tenant
        FROM audit.subjects s WHERE s.user_id = $1";
    let rows: Vec<Tenant> = diesel::sql_query(TENANT).bind::<Integer, _>(user.get()).load(db).await?;
    Ok(rows.into_iter().next().map(|row| row.tenant))
}

/// The points of a pseudonym in each collection. Those of another deployment on the same server are an error.
pub(crate) async fn count(
    db: &mut Connection,
    store: &VectorStore,
    tenant: Uuid,
) -> Result<Vec<Counted>, PrivacyError> {
    let deployment = store::vector::deployment(db).await?;
    let mut counted = Vec::new();
    for Collection { name, is_former } in collections(db).await? {
        let count = async {
            store.owner(&name, deployment).await?;
            store.count_tenant(&name, tenant).await
        };
        match count.await {
            Ok(before) => counted.push(Counted { collection: name, before }),
            Err(VectorError::NoCollection(_)) if is_former => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(counted)
}

/// Deletes the points of a pseudonym from all collections.
///
/// # Errors
/// [`PrivacyError::Left`] if there are any afterwards.
pub(crate) async fn delete(
    db: &mut Connection,
    store: &VectorStore,
    tenant: Uuid,
) -> Result<u64, PrivacyError> {
    let before = count(db, store, tenant).await?;
    for one in before.iter().filter(|one| one.before > 0) {
        store.delete_tenant(&one.collection, tenant).await?;
    }
    let left = count(db, store, tenant).await?;
    if let Some(after) = left.into_iter().find(|after| after.before > 0) {
        let of_it = before.iter().find(|one| one.collection == after.collection);
        let (before, left) = (of_it.map_or(0, |one| one.before), after.before);
        let (table, deleted) = (format!("the collection {}", after.collection), before.saturating_sub(left));
        return Err(PrivacyError::Left { table, before, deleted, left });
    }
    Ok(before.iter().map(|one| one.before).sum())
}
