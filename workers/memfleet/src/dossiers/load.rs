//! Reads nodes with their dossiers, and the rows that their inputs came from.

use contract::UserId;
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Binary, Double, Integer, Nullable, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use store::{Connection, Fault};
use uuid::Uuid;

use crate::visibility;

/// How many nodes are listed at a time.
const BATCH: i64 = 1_000;

/// A node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, QueryableByName)]
pub struct Key {
    /// The user.
    #[diesel(sql_type = Integer)]
    pub user: i32,
    /// The node.
    #[diesel(sql_type = SqlUuid)]
    pub node: Uuid,
}

/// A node, its dossier, and the rows that the inputs of the dossier came from.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) node: NodeRow,
    pub(super) task: Option<TaskRow>,
    pub(super) responses: Vec<ResponseRow>,
}

#[derive(Clone, Debug, QueryableByName)]
pub(super) struct NodeRow {
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub(super) task_id: Option<Uuid>,
    #[diesel(sql_type = Text)]
    pub(super) validation_status: String,
    #[diesel(sql_type = Double)]
    pub(super) consensus_score: f64,
    #[diesel(sql_type = Nullable<Text>)]
    pub(super) verdict: Option<String>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub(super) superseded_by: Option<Uuid>,
    #[diesel(sql_type = Nullable<Integer>)]
    pub(super) node_rules_version: Option<i32>,
    #[diesel(sql_type = Nullable<Text>)]
    pub(super) node_inputs_sha256: Option<String>,
    #[diesel(sql_type = Nullable<Binary>)]
    pub(super) inputs: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<Text>)]
    pub(super) standing: Option<String>,
    #[diesel(sql_type = Nullable<Binary>)]
    pub(super) dossier: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<Integer>)]
    pub(super) rules_version: Option<i32>,
    #[diesel(sql_type = Nullable<Text>)]
    pub(super) inputs_sha256: Option<String>,
}

#[derive(Clone, Debug, QueryableByName)]
pub(super) struct TaskRow {
    #[diesel(sql_type = Text)]
    pub(super) question: String,
    #[diesel(sql_type = Text)]
    pub(super) task_kind: String,
    #[diesel(sql_type = Integer)]
    pub(super) quorum: i32,
}

/// A response that counts.
#[derive(Clone, Debug, QueryableByName)]
pub(super) struct ResponseRow {
    #[diesel(sql_type = SqlUuid)]
    pub(super) id: Uuid,
    #[diesel(sql_type = Text)]
    pub(super) agent_id: String,
    #[diesel(sql_type = Text)]
    pub(super) response_text: String,
    #[diesel(sql_type = Nullable<Text>)]
    pub(super) claim: Option<String>,
    #[diesel(sql_type = Text)]
    pub(super) evidence: String,
    #[diesel(sql_type = Nullable<Double>)]
    pub(super) confidence_score: Option<f64>,
    #[diesel(sql_type = BigInt)]
    pub(super) stored_sequence: i64,
    #[diesel(sql_type = Nullable<Binary>)]
    pub(super) embedding: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<Text>)]
    pub(super) embedding_model: Option<String>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub(super) event_id: Option<Uuid>,
}

/// The nodes with this id, of one user or of all who have such a node, and at most a few.
///
/// # Errors
/// A [`Fault`] of the database, or a permanent one if row-level security hides nodes from the role.
pub async fn find(connection: &mut Connection, node: Uuid, user: Option<UserId>) -> Result<Vec<Key>, Fault> {
    const FIND: &str = "
        SELECT user_id AS \"user\", id AS node FROM consensus_memory_nodes
        WHERE id = $1 AND ($2 IS NULL OR user_id = $2) ORDER BY user_id LIMIT 3";
    check_sees_all(connection).await?;
    let statement =
        diesel::sql_query(FIND).bind::<SqlUuid, _>(node).bind::<Nullable<Integer>, _>(user.map(UserId::get));
    Ok(statement.load(connection).await?)
}

/// The next nodes that agents were asked about, ordered by user and node.
pub(super) async fn keys(
    connection: &mut Connection,
    user: Option<UserId>,
    after: Option<Key>,
) -> Result<Vec<Key>, Fault> {
    // A node of a task is listed also if its dossier is gone, and one with a dossier also if its task is.
    const KEYS: &str = "
        SELECT n.user_id AS \"user\", n.id AS node FROM consensus_memory_nodes n
        WHERE ($1 IS NULL OR n.user_id = $1) AND ($2 IS NULL OR (n.user_id, n.id) > ($2, $3))
            AND (n.task_id IS NOT NULL OR n.inputs_sha256 IS NOT NULL
                OR EXISTS (SELECT FROM consensus_dossiers d WHERE d.user_id = n.user_id AND d.id = n.id))
        ORDER BY n.user_id, n.id LIMIT $4";
    if after.is_none() {
        check_sees_all(connection).await?;
    }
    let statement = diesel::sql_query(KEYS)
        .bind::<Nullable<Integer>, _>(user.map(UserId::get))
        .bind::<Nullable<Integer>, _>(after.map(|key| key.user))
        .bind::<Nullable<SqlUuid>, _>(after.map(|key| key.node))
        .bind::<BigInt, _>(BATCH);
    Ok(store::prepared(statement).load(connection).await?)
}

/// A node with all that belongs to it, as of one moment. `None` if there is no such node.
///
/// # Errors
/// A [`Fault`] of the database.
pub(super) async fn held(connection: &mut Connection, key: Key) -> Result<Option<Held>, Fault> {
    connection
        .build_transaction()
        .repeatable_read()
        .read_only()
        .run(async |connection| read(connection, key).await)
        .await
}

async fn read(connection: &mut Connection, Key { user, node }: Key) -> Result<Option<Held>, Fault> {
    const NODE: &str = "
        SELECT n.task_id, n.validation_status::text AS validation_status, n.consensus_score, n.verdict::text AS verdict,
            n.superseded_by, n.rules_version AS node_rules_version, n.inputs_sha256::text AS node_inputs_sha256, d.inputs,
            d.standing::text AS standing, d.dossier, d.rules_version, d.inputs_sha256::text AS inputs_sha256
        FROM consensus_memory_nodes n LEFT JOIN consensus_dossiers d ON d.user_id = n.user_id AND d.id = n.id
        WHERE n.user_id = $1 AND n.id = $2";
    const TASK: &str =
        "SELECT question, task_kind, quorum FROM consensus_tasks WHERE user_id = $1 AND id = $2";
    const RESPONSES: &str = "
        SELECT id, agent_id, response_text, claim::text AS claim, evidence::text AS evidence, confidence_score,
            stored_sequence, embedding, embedding_model, event_id
        FROM agent_responses WHERE user_id = $1 AND task_id = $2 AND is_counted ORDER BY id";
    let bound = |sql, id: Uuid| diesel::sql_query(sql).bind::<Integer, _>(user).bind::<SqlUuid, _>(id);
    let rows: Vec<NodeRow> = store::prepared(bound(NODE, node)).load(connection).await?;
    let Some(node) = rows.into_iter().next() else { return Ok(None) };
    let Some(task) = node.task_id else {
        return Ok(Some(Held { node, task: None, responses: Vec::new() }));
    };
    let tasks: Vec<TaskRow> = store::prepared(bound(TASK, task)).load(connection).await?;
    let responses = store::prepared(bound(RESPONSES, task)).load(connection).await?;
    Ok(Some(Held { node, task: tasks.into_iter().next(), responses }))
}

async fn check_sees_all(connection: &mut Connection) -> Result<(), Fault> {
    visibility::check_sees_all(connection, &["consensus_dossiers"], "dossiers").await
}

/// The bytes of the dossier of a node; none if the node has none.
///
/// # Errors
/// A [`Fault`] of the database.
pub async fn stored(connection: &mut Connection, key: Key) -> Result<Option<Vec<u8>>, Fault> {
    Ok(held(connection, key).await?.and_then(|held| held.node.dossier))
}
