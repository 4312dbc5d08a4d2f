//! What the database knows of the vector store: its collections, who may use them, and how users are called there.

use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Binary, Bool, Integer, Text, Uuid as SqlUuid};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use crate::fault::Fault;
use crate::prepared;
use crate::security::Access;

/// A collection that is in use.
#[derive(Clone, Debug, PartialEq, Eq, QueryableByName)]
pub struct Collection {
    /// Its name.
    #[diesel(sql_type = Text)]
    pub collection_name: String,
    /// The model whose vectors it has.
    #[diesel(sql_type = Text)]
    pub model: String,
    /// The length of its vectors.
    #[diesel(sql_type = Integer)]
    pub dimension: i32,
    /// How they are kept: `none`, `int8` or `binary`.
    #[diesel(sql_type = Text)]
    pub quantization: String,
    /// `active`, `filling` or `former`.
    #[diesel(sql_type = Text)]
    pub state: String,
}

impl Collection {
    /// Whether searches go to it.
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
        SELECT collection_name, model, dimension, quantization, state::text AS state FROM vector_collections
        WHERE alias = $1 AND state::text = ANY ($2) ORDER BY state <> 'active', collection_name";
    let query = diesel::sql_query(LIST).bind::<Text, _>(alias).bind::<Array<Text>, _>(states);
    Ok(prepared(query).load(connection).await?)
}

/// How a user of the context is called in the vector store.
#[derive(Clone, Debug, QueryableByName)]
pub struct Tenant {
    /// The user.
    #[diesel(sql_type = Integer)]
    pub user_id: i32,
    /// The name.
    #[diesel(sql_type = SqlUuid)]
    pub tenant: Uuid,
    /// The key of filters.
    #[diesel(sql_type = Binary)]
    pub filter_key: Vec<u8>,
}

/// How the users of the open context are called in the vector store. Users without an account have no name.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn tenants(connection: &mut AsyncPgConnection) -> Result<Vec<Tenant>, Fault> {
    const ASK: &str = "SELECT user_id, tenant, filter_key FROM sec.vector_tenants()";
    Ok(prepared(diesel::sql_query(ASK)).load(connection).await?)
}

/// How every user is called there. For an administrator: a worker learns of the users of its context only.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn all_tenants(connection: &mut AsyncPgConnection) -> Result<Vec<Tenant>, Fault> {
    // As `sec.vector_tenants` has it.
    const ASK: &str = "
        SELECT user_id, encode(substr(sha256(digest_key || convert_to('vector tenant', 'UTF8')), 1, 16), 'hex')::uuid AS tenant,
            sha256(digest_key || convert_to('vector filters', 'UTF8')) AS filter_key
        FROM audit.subjects WHERE user_id IS NOT NULL";
    Ok(diesel::sql_query(ASK).load(connection).await?)
}

/// What a service may do with one type of vectors.
#[derive(Clone, Debug, QueryableByName)]
pub struct Right {
    /// The service.
    #[diesel(sql_type = Text)]
    pub service: String,
    /// The label of the type.
    #[diesel(sql_type = Text)]
    pub vector_type: String,
    /// Whether it may find them.
    #[diesel(sql_type = Bool)]
    pub may_search: bool,
    /// Whether it may index them.
    #[diesel(sql_type = Bool)]
    pub may_write: bool,
    /// Whether it may remove them.
    #[diesel(sql_type = Bool)]
    pub may_delete: bool,
}

/// What these services may do in an alias's collections (`qdrant_access_control`). What is not there they may not.
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

/// Where the searches of a service look, and for what.
#[derive(Clone, Debug, QueryableByName)]
pub struct Ground {
    /// How the user is called in the vector store; none for a user without an account.
    #[diesel(embed)]
    pub tenant: Option<Tenant>,
    /// The labels of the types that the service may find.
    #[diesel(sql_type = Array<Text>)]
    pub may_search: Vec<String>,
    /// The collection that searches go to; none before there is one.
    #[diesel(embed)]
    pub active: Option<Collection>,
}

/// Where a search of this service for this user looks. The user is of the open context.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn ground(
    connection: &mut AsyncPgConnection,
    alias: &str,
    service: &str,
    user: i32,
) -> Result<Ground, Fault> {
    const ASK: &str = "
        SELECT t.user_id, t.tenant, t.filter_key, c.collection_name, c.model, c.dimension, c.quantization, c.state::text AS state,
            ARRAY(SELECT q.vector_type::text FROM qdrant_access_control q
                WHERE q.collection_name = $1 AND q.service = $2 AND q.may_search) AS may_search
        FROM (SELECT) AS one LEFT JOIN sec.vector_tenants() AS t ON t.user_id = $3
            LEFT JOIN vector_collections c ON c.alias = $1 AND c.state = 'active'";
    let query =
        diesel::sql_query(ASK).bind::<Text, _>(alias).bind::<Text, _>(service).bind::<Integer, _>(user);
    Ok(prepared(query).get_result(connection).await?)
}

/// Notes operations on the vector store in `audit.data_access_log`: `search`, `upsert` or `delete`, in the name of the open
/// context, which has all their users.
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

/// Notes a collection that is made, or has another state from now on; the one that had this state among those of the alias, if
/// only one can, becomes a former one. For an administrator.
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
    // In two steps, since a unique index does not wait for the end of a statement.
    const STEP_DOWN: &str = "
        UPDATE vector_collections SET state = 'former', updated_at = now()
        WHERE alias = $1 AND state::text = $2 AND state <> 'former' AND collection_name <> $3";
    connection
        .transaction(async |connection| {
            diesel::sql_query(STEP_DOWN)
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

/// Sets what a service may do with one type of vectors. For an administrator.
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

/// What every service may do in an alias's collections, by service and type. For an administrator.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn all_rights(connection: &mut AsyncPgConnection, alias: &str) -> Result<Vec<Right>, Fault> {
    const LIST: &str = "
        SELECT service, vector_type::text AS vector_type, may_search, may_write, may_delete FROM qdrant_access_control
        WHERE collection_name = $1 ORDER BY service, vector_type";
    Ok(diesel::sql_query(LIST).bind::<Text, _>(alias).load(connection).await?)
}

/// Forgets a collection that is no more. For an administrator.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn delete_collection(connection: &mut AsyncPgConnection, name: &str) -> Result<(), Fault> {
    const DELETE: &str = "DELETE FROM vector_collections WHERE collection_name = $1 AND state = 'former'";
    diesel::sql_query(DELETE).bind::<Text, _>(name).execute(connection).await?;
    Ok(())
}
