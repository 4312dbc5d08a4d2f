//! The vector store's part of the database: collections, access rights of services, and tenants.

use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Binary, Bool, Integer, Text, Uuid as SqlUuid};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use crate::fault::Fault;
use crate::prepared;
use crate::security::Access;

/// A collection of the vector store.
#[derive(Clone, Debug, PartialEq, Eq, QueryableByName)]
pub struct Collection {
    /// Its name.
    #[diesel(sql_type = Text)]
    pub collection_name: String,
    /// The model of its vectors.
    #[diesel(sql_type = Text)]
    pub model: String,
    /// The dimension of its vectors.
    #[diesel(sql_type = Integer)]
    pub dimension: i32,
    /// `none`, `int8` or `binary`.
    #[diesel(sql_type = Text)]
    pub quantization: String,
    /// `active`, `filling` or `former`.
    #[diesel(sql_type = Text)]
    pub state: String,
    /// The deployment of this database, which must be its owner in the vector store.
    #[diesel(sql_type = SqlUuid)]
    pub deployment: Uuid,
}

impl Collection {
    /// Whether searches use it.
    pub fn is_active(&self) -> bool {
        self.state == "active"
    }
}

/// The collections of an alias in these states, the active one first.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn collections(
    connection: &mut AsyncPgConnection,
    alias: &str,
    states: &[&str],
) -> Result<Vec<Collection>, Fault> {
    const LIST: &str = "
        SELECT collection_name, model, dimension, quantization, state::text AS state, sec.deployment_id() AS deployment
        FROM vector_collections
        WHERE alias = $1 AND state::text = ANY ($2) ORDER BY state <> 'active', collection_name";
    let query = diesel::sql_query(LIST).bind::<Text, _>(alias).bind::<Array<Text>, _>(states);
    Ok(prepared(query).load(connection).await?)
}

/// The id of the deployment: of this database, also after it was restored from a backup. It is made by the first call. For
/// an administrator.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn deployment(connection: &mut AsyncPgConnection) -> Result<Uuid, Fault> {
    #[derive(QueryableByName)]
    struct Deployment {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
    }
    diesel::sql_query("INSERT INTO sec.deployment DEFAULT VALUES ON CONFLICT DO NOTHING")
        .execute(connection)
        .await?;
    let Deployment { id } =
        diesel::sql_query("SELECT sec.deployment_id() AS id").get_result(connection).await?;
    Ok(id)
}

/// The tenant of a user in the vector store.
#[derive(Clone, Debug, QueryableByName)]
pub struct Tenant {
    /// The user.
    #[diesel(sql_type = Integer)]
    pub user_id: i32,
    /// The id of the tenant.
    #[diesel(sql_type = SqlUuid)]
    pub tenant: Uuid,
    /// The key that filter values are hashed with.
    #[diesel(sql_type = Binary)]
    pub filter_key: Vec<u8>,
}

/// The tenants of the users of the open context. Users without an account have none.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn tenants(connection: &mut AsyncPgConnection) -> Result<Vec<Tenant>, Fault> {
    const ASK: &str = "SELECT user_id, tenant, filter_key FROM sec.vector_tenants()";
    Ok(prepared(diesel::sql_query(ASK)).load(connection).await?)
}

/// The tenants of all users. For an administrator: a worker can read those of its context only.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn all_tenants(connection: &mut AsyncPgConnection) -> Result<Vec<Tenant>, Fault> {
    // The same derivation as in `sec.vector_tenants`.
    const ASK: &str = "
        SELECT user_id, encode(substr(sha256(digest_key || convert_to('vector tenant', 'UTF8')), 1, 16), 'hex')::uuid AS tenant,
            sha256(digest_key || convert_to('vector filters', 'UTF8')) AS filter_key
        FROM audit.subjects WHERE user_id IS NOT NULL";
    Ok(diesel::sql_query(ASK).load(connection).await?)
}

/// The access rights of a service to one vector type.
#[derive(Clone, Debug, QueryableByName)]
pub struct Right {
    /// The service.
    #[diesel(sql_type = Text)]
    pub service: String,
    /// The label of the vector type.
    #[diesel(sql_type = Text)]
    pub vector_type: String,
    /// Whether it may search.
    #[diesel(sql_type = Bool)]
    pub may_search: bool,
    /// Whether it may index.
    #[diesel(sql_type = Bool)]
    pub may_write: bool,
    /// Whether it may remove.
    #[diesel(sql_type = Bool)]
    pub may_delete: bool,
}

/// The access rights of these services to the collections of an alias (`qdrant_access_control`). What is not listed is
/// denied.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn rights(
    connection: &mut AsyncPgConnection,
    alias: &str,
    services: &[&str],
) -> Result<Vec<Right>, Fault> {
    const LIST: &str = "
        SELECT service, vector_type::text AS vector_type, may_search, may_write, may_delete FROM qdrant_access_control
        WHERE collection_name = $1 AND service = ANY ($2)";
    let query = diesel::sql_query(LIST).bind::<Text, _>(alias).bind::<Array<Text>, _>(services);
    Ok(prepared(query).load(connection).await?)
}

/// The data that a search by a service for a user may read.
#[derive(Clone, Debug, QueryableByName)]
pub struct SearchScope {
    /// The tenant of the user in the vector store; none for a user without an account.
    #[diesel(embed)]
    pub tenant: Option<Tenant>,
    /// The labels of the vector types that the service may search.
    #[diesel(sql_type = Array<Text>)]
    pub may_search: Vec<String>,
    /// The active collection; none if there is no active collection yet.
    #[diesel(embed)]
    pub active: Option<Collection>,
}

/// Reads the scope of a search by this service for this user, who must be a user of the open context. `object` is what
/// services have rights on, `alias` that of the collections.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn search_scope(
    connection: &mut AsyncPgConnection,
    object: &str,
    alias: &str,
    service: &str,
    user: i32,
) -> Result<SearchScope, Fault> {
    const ASK: &str = "
        SELECT t.user_id, t.tenant, t.filter_key, c.collection_name, c.model, c.dimension, c.quantization, c.state::text AS state,
            sec.deployment_id() AS deployment,
            ARRAY(SELECT q.vector_type::text FROM qdrant_access_control q
                WHERE q.collection_name = $1 AND q.service = $2 AND q.may_search) AS may_search
        FROM (SELECT) AS one LEFT JOIN sec.vector_tenants() AS t ON t.user_id = $3
            LEFT JOIN vector_collections c ON c.alias = $4 AND c.state = 'active'";
    let query = diesel::sql_query(ASK)
        .bind::<Text, _>(object)
        .bind::<Text, _>(service)
        .bind::<Integer, _>(user)
        .bind::<Text, _>(alias);
    Ok(prepared(query).get_result(connection).await?)
}

/// Records operations on the vector store in `audit.data_access_log`: `search`, `upsert` or `delete`, under the open
/// context, which must include all their users.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn log_operations(
    connection: &mut AsyncPgConnection,
    operation: &str,
    collection: &str,
    accesses: &[Access],
) -> Result<(), Fault> {
    const LOG: &str = "SELECT audit.log_vector_operation($1, $2, $3, $4, $5) AS noted";
    #[derive(QueryableByName)]
    struct Noted {
        #[allow(dead_code, reason = "the answer is the absence of an error")]
        #[diesel(sql_type = Integer)]
        noted: i32,
    }
    if accesses.is_empty() {
        return Ok(());
    }
    let query = diesel::sql_query(LOG)
        .bind::<Text, _>(operation)
        .bind::<Text, _>(collection)
        .bind::<Array<Integer>, _>(accesses.iter().map(|access| access.user_id).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(accesses.iter().map(|access| access.request_id).collect::<Vec<_>>())
        .bind::<Array<BigInt>, _>(accesses.iter().map(|access| access.amount).collect::<Vec<_>>());
    let _: Vec<Noted> = prepared(query).load(connection).await?;
    Ok(())
}

/// Registers a collection or changes its state. If the alias has another collection in this state and only one may have
/// it, that one becomes `former`. For an administrator.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn put_collection(
    connection: &mut AsyncPgConnection,
    alias: &str,
    collection: &Collection,
) -> Result<(), Fault> {
    const PUT: &str = "
        INSERT INTO vector_collections (collection_name, alias, model, dimension, quantization, state)
        VALUES ($1, $2, $3, $4, $5, $6::vector_collection_state)
        ON CONFLICT (collection_name) DO UPDATE SET state = excluded.state, updated_at = now()";
    // In two statements, because a unique index is checked row by row and not at the end of a statement.
    const RETIRE: &str = "
        UPDATE vector_collections SET state = 'former', updated_at = now()
        WHERE alias = $1 AND state::text = $2 AND state <> 'former' AND collection_name <> $3";
    connection
        .transaction(async |connection| {
            deployment(connection).await?;
            diesel::sql_query(RETIRE)
                .bind::<Text, _>(alias)
                .bind::<Text, _>(&collection.state)
                .bind::<Text, _>(&collection.collection_name)
                .execute(connection)
                .await?;
            diesel::sql_query(PUT)
                .bind::<Text, _>(&collection.collection_name)
                .bind::<Text, _>(alias)
                .bind::<Text, _>(&collection.model)
                .bind::<Integer, _>(collection.dimension)
                .bind::<Text, _>(&collection.quantization)
                .bind::<Text, _>(&collection.state)
                .execute(connection)
                .await?;
            Ok(())
        })
        .await
}

/// Sets the access rights of a service to one vector type. For an administrator.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn put_right(connection: &mut AsyncPgConnection, alias: &str, right: &Right) -> Result<(), Fault> {
    const PUT: &str = "
        INSERT INTO qdrant_access_control (id, service, collection_name, vector_type, may_search, may_write, may_delete)
        VALUES (gen_random_uuid(), $1, $2, $3::vectortype, $4, $5, $6)
        ON CONFLICT (service, collection_name, vector_type) DO UPDATE SET may_search = excluded.may_search,
            may_write = excluded.may_write, may_delete = excluded.may_delete, updated_at = now()";
    diesel::sql_query(PUT)
        .bind::<Text, _>(&right.service)
        .bind::<Text, _>(alias)
        .bind::<Text, _>(&right.vector_type)
        .bind::<Bool, _>(right.may_search)
        .bind::<Bool, _>(right.may_write)
        .bind::<Bool, _>(right.may_delete)
        .execute(connection)
        .await?;
    Ok(())
}

/// The access rights of all services to the collections of an alias, by service and vector type. For an administrator.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn all_rights(connection: &mut AsyncPgConnection, alias: &str) -> Result<Vec<Right>, Fault> {
    const LIST: &str = "
        SELECT service, vector_type::text AS vector_type, may_search, may_write, may_delete FROM qdrant_access_control
        WHERE collection_name = $1 ORDER BY service, vector_type";
    Ok(diesel::sql_query(LIST).bind::<Text, _>(alias).load(connection).await?)
}

/// Deletes the record of a former collection. For an administrator.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn delete_collection(connection: &mut AsyncPgConnection, name: &str) -> Result<(), Fault> {
    const DELETE: &str = "DELETE FROM vector_collections WHERE collection_name = $1 AND state = 'former'";
    diesel::sql_query(DELETE).bind::<Text, _>(name).execute(connection).await?;
    Ok(())
}
