//! The inputs of consensus, from the rows of tasks and responses; and the dossiers that are stored with the inputs they were
//! computed from.
//!
//! `memfleet consensus explain --verify` uses both: it computes a dossier again from its stored inputs, and compares the
//! stored inputs with the rows.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use ::store::unnest::{UnnestRow, with_rows};
use ::store::{Connection, Fault};
use consensus::{Agent, Evidence, Inputs, Micro, Record, Response, Standing};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Binary, Double, Integer, Nullable, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use crate::prepare::from_bytes;
use crate::store::batch::uncomputable;
use crate::store::nodes::SUPERSEDED;

/// A task or a node: its user and its id.
pub type Key = (i32, Uuid);

::store::unnest_row! {
    /// A row of the statements that look tasks or nodes up.
    pub(crate) struct KeyRow {
        user_id: i32,
        id: Uuid,
    }
}

pub(crate) fn key_rows(keys: &[Key]) -> Vec<KeyRow> {
    keys.iter().map(|&(user_id, id)| KeyRow { user_id, id }).collect()
}

/// A task as it is closed.
#[derive(Clone, Debug, QueryableByName)]
pub struct TaskRow {
    /// The user.
    #[diesel(sql_type = Integer)]
    pub user_id: i32,
    /// The task.
    #[diesel(sql_type = SqlUuid)]
    pub id: Uuid,
    /// The session of its conversation.
    #[diesel(sql_type = Text)]
    pub session_id: String,
    /// What was asked.
    #[diesel(sql_type = Text)]
    pub question: String,
    /// The kind of task.
    #[diesel(sql_type = Text)]
    pub task_kind: String,
    /// The type of its node.
    #[diesel(sql_type = Text)]
    pub node_type: String,
    /// The key of its node.
    #[diesel(sql_type = Text)]
    pub node_key: String,
    /// The title of its node.
    #[diesel(sql_type = Text)]
    pub title: String,
    /// The tags of its node, as JSON.
    #[diesel(sql_type = Text)]
    pub semantic_tags: String,
    /// The fixed answers, as JSON.
    #[diesel(sql_type = Nullable<Text>)]
    pub options: Option<String>,
    /// How many answers close it.
    #[diesel(sql_type = Integer)]
    pub quorum: i32,
    /// The event of its delegation.
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub event_id: Option<Uuid>,
}

static TASKS: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (KeyRow::arrays(1), KeyRow::names());
    format!(
        "SELECT t.user_id, t.id, t.session_id, t.question, t.task_kind, t.node_type, t.node_key, t.title,
        t.semantic_tags::text AS semantic_tags, t.options::text AS options, t.quorum, t.event_id
    FROM unnest({arrays}) AS i ({names}) JOIN consensus_tasks t ON t.user_id = i.user_id AND t.id = i.id"
    )
});

/// The latest counted response of each agent.
static RESPONSES: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (KeyRow::arrays(1), KeyRow::names());
    format!(
        "SELECT DISTINCT ON (r.user_id, r.task_id, r.agent_id COLLATE \"C\") r.user_id, r.task_id, r.id, r.agent_id,
        r.response_text, r.claim::text AS claim, r.evidence::text AS evidence, r.confidence_score, r.stored_sequence,
        r.embedding, r.embedding_model, r.event_id
    FROM unnest({arrays}) AS i ({names})
    JOIN agent_responses r ON r.user_id = i.user_id AND r.task_id = i.id AND r.is_counted
    ORDER BY r.user_id, r.task_id, r.agent_id COLLATE \"C\", r.stored_sequence DESC, r.id DESC"
    )
});

#[derive(QueryableByName)]
struct ResponseRow {
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = SqlUuid)]
    task_id: Uuid,
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Text)]
    agent_id: String,
    #[diesel(sql_type = Text)]
    response_text: String,
    #[diesel(sql_type = Nullable<Text>)]
    claim: Option<String>,
    #[diesel(sql_type = Text)]
    evidence: String,
    #[diesel(sql_type = Nullable<Double>)]
    confidence_score: Option<f64>,
    #[diesel(sql_type = BigInt)]
    stored_sequence: i64,
    #[diesel(sql_type = Nullable<Binary>)]
    embedding: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<Text>)]
    embedding_model: Option<String>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    event_id: Option<Uuid>,
}

/// A task with the inputs of its consensus. They have no agents and no standing yet.
#[derive(Clone, Debug)]
pub struct TaskInputs {
    /// The task.
    pub task: TaskRow,
    /// What its consensus is computed from.
    pub inputs: Inputs,
    /// The model of the vectors.
    pub model: Option<String>,
}

/// The inputs of tasks, from their rows. Tasks that the connection's context does not show are absent.
///
/// # Errors
/// A [`Fault`] of the database, or of a row that is not as this program writes it.
pub async fn of_tasks(connection: &mut Connection, keys: &[Key]) -> Result<HashMap<Key, TaskInputs>, Fault> {
    let tasks: Vec<TaskRow> = with_rows(&TASKS, key_rows(keys)).load(connection).await?;
    let rows: Vec<ResponseRow> = with_rows(&RESPONSES, key_rows(keys)).load(connection).await?;
    let mut responses: HashMap<Key, Vec<ResponseRow>> = HashMap::new();
    for row in rows {
        responses.entry((row.user_id, row.task_id)).or_default().push(row);
    }
    let mut result = HashMap::with_capacity(tasks.len());
    for task in tasks {
        let key = (task.user_id, task.id);
        let rows = responses.remove(&key).unwrap_or_default();
        let model = most_common_model(&rows);
        let inputs = inputs(&task, rows, model.as_deref())?;
        result.insert(key, TaskInputs { task, inputs, model });
    }
    Ok(result)
}

/// The bytes of a response `r` that are compared with those of others, and of the evidence that its dossier repeats.
const ANSWER_BYTES: &str = "octet_length(r.response_text) + coalesce(octet_length(r.claim::text), 0) + octet_length(r.evidence::text) + coalesce(octet_length(r.embedding), 0)";
/// What comparing two answers counts for, in bytes.
const PAIR_BYTES: i64 = 4;
/// How many bytes of the stored inputs of a superseded node count for one: they are read, and their answers are not compared again.
const INPUT_BYTES: i64 = 8;

/// The work of closing a task `t`, in bytes: those of its counted answers, their pairs, and the inputs of the nodes that its node may
/// supersede.
pub(crate) static WORK: LazyLock<String> = LazyLock::new(|| {
    format!(
        "(SELECT coalesce(sum({ANSWER_BYTES}), 0) + {PAIR_BYTES} * count(DISTINCT r.agent_id) * count(DISTINCT r.agent_id)
        FROM agent_responses r WHERE r.user_id = t.user_id AND r.task_id = t.id AND r.is_counted)
        + (SELECT coalesce(sum(octet_length(d.inputs)), 0) / {INPUT_BYTES}
        FROM (SELECT n.user_id, n.id FROM consensus_memory_nodes n WHERE n.user_id = t.user_id AND n.node_type = t.node_type
            AND n.node_key = t.node_key AND n.valid_to IS NULL
            ORDER BY n.validation_status = 'validated' DESC, n.established_at DESC, n.id LIMIT {SUPERSEDED}) AS n
        JOIN consensus_dossiers d ON d.user_id = n.user_id AND d.id = n.id)"
    )
});

/// The work of closing each of these tasks.
pub(crate) async fn work(connection: &mut Connection, keys: &[Key]) -> Result<HashMap<Key, i64>, Fault> {
    static OF_TASKS: LazyLock<String> = LazyLock::new(|| {
        let (arrays, names, work) = (KeyRow::arrays(1), KeyRow::names(), WORK.as_str());
        format!(
            "SELECT t.user_id, t.id, ({work})::bigint AS work
    FROM unnest({arrays}) AS i ({names}) JOIN consensus_tasks t ON t.user_id = i.user_id AND t.id = i.id"
        )
    });
    #[derive(QueryableByName)]
    struct Work {
        #[diesel(sql_type = Integer)]
        user_id: i32,
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
        #[diesel(sql_type = BigInt)]
        work: i64,
    }
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    let found: Vec<Work> = with_rows(&OF_TASKS, key_rows(keys)).load(connection).await?;
    Ok(found.into_iter().map(|task| ((task.user_id, task.id), task.work)).collect())
}

fn inputs(task: &TaskRow, rows: Vec<ResponseRow>, model: Option<&str>) -> Result<Inputs, Fault> {
    let mut events: Vec<(i64, Uuid)> =
        rows.iter().filter_map(|row| Some((row.stored_sequence, row.event_id?))).collect();
    events.sort_unstable();
    let responses = rows.into_iter().map(|row| response(row, model)).collect::<Result<_, _>>()?;
    let causes = task.event_id.into_iter().chain(events.into_iter().map(|(_, event)| event));
    Ok(Inputs {
        task: task.id.to_string(),
        question: task.question.clone(),
        task_kind: task.task_kind.clone(),
        quorum: u32::try_from(task.quorum).unwrap_or_default(),
        responses,
        causality: causes.map(|event| event.to_string()).collect(),
        ..Inputs::default()
    })
}

/// Vectors of different models cannot be compared: those of the most common model count; of several, of the one whose name
/// sorts first.
fn most_common_model(rows: &[ResponseRow]) -> Option<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for model in rows.iter().filter_map(|row| row.embedding_model.as_deref()) {
        *counts.entry(model).or_default() += 1;
    }
    let most = counts.values().copied().max()?;
    counts.into_iter().find(|(_, count)| *count == most).map(|(model, _)| model.to_owned())
}

fn response(row: ResponseRow, model: Option<&str>) -> Result<Response, Fault> {
    let evidence: Vec<Evidence> =
        serde_json::from_str(&row.evidence).map_err(|error| uncomputable(&error))?;
    let embedding = row.embedding.filter(|_| row.embedding_model.as_deref() == model);
    Ok(Response {
        id: row.id.to_string(),
        agent: row.agent_id,
        sequence: u64::try_from(row.stored_sequence).unwrap_or_default(),
        text: row.response_text,
        claim: row.claim,
        confidence: row.confidence_score,
        embedding: embedding.map(|bytes| from_bytes(&bytes)),
        evidence,
    })
}

::store::unnest_row! {
    struct AgentKeyRow<'a> {
        user_id: i32,
        agent_id: &'a str,
        task_kind: &'a str,
    }
}

/// The family is what the configuration names, else the provider; prompts are compared by their hash.
static AGENTS: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (AgentKeyRow::arrays(1), AgentKeyRow::names());
    format!(
        "SELECT i.user_id, i.agent_id, i.task_kind, coalesce(c.model_family, c.model_provider::text) AS family,
        encode(sha256(convert_to(c.system_prompt, 'UTF8')), 'hex') AS prompt, coalesce(r.right_micro, 0) AS right_micro,
        coalesce(r.wrong_micro, 0) AS wrong_micro, coalesce(r.confidence_micro, 0) AS confidence_micro
    FROM unnest({arrays}) AS i ({names})
    LEFT JOIN agent_configurations c ON c.user_id = i.user_id AND c.agent_id = i.agent_id
    LEFT JOIN agent_records r ON r.user_id = i.user_id AND r.agent_id = i.agent_id AND r.task_kind = i.task_kind
    WHERE c.agent_id IS NOT NULL OR r.agent_id IS NOT NULL"
    )
});

#[derive(QueryableByName)]
struct AgentRow {
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = Text)]
    agent_id: String,
    #[diesel(sql_type = Text)]
    task_kind: String,
    #[diesel(sql_type = Nullable<Text>)]
    family: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    prompt: Option<String>,
    #[diesel(sql_type = BigInt)]
    right_micro: i64,
    #[diesel(sql_type = BigInt)]
    wrong_micro: i64,
    #[diesel(sql_type = BigInt)]
    confidence_micro: i64,
}

/// Adds what is known of the agents at this time.
pub(crate) async fn add_agents(
    connection: &mut Connection,
    tasks: &mut HashMap<Key, TaskInputs>,
) -> Result<(), Fault> {
    let mut wanted: Vec<(i32, &str, &str)> = tasks
        .values()
        .flat_map(|one| {
            let agents = one.inputs.responses.iter().map(|response| response.agent.as_str());
            agents.map(move |agent| (one.task.user_id, agent, one.task.task_kind.as_str()))
        })
        .collect();
    wanted.sort_unstable();
    wanted.dedup();
    if wanted.is_empty() {
        return Ok(());
    }
    let row = |(user_id, agent_id, task_kind)| AgentKeyRow { user_id, agent_id, task_kind };
    let rows: Vec<AgentRow> =
        with_rows(&AGENTS, wanted.into_iter().map(row).collect()).load(connection).await?;
    let mut known: HashMap<(i32, String), HashMap<String, Agent>> = HashMap::new();
    for row in rows {
        let micro = |value| Micro::from_millionths(u64::try_from(value).unwrap_or_default());
        let record = Record {
            right: micro(row.right_micro),
            wrong: micro(row.wrong_micro),
            confidence: micro(row.confidence_micro),
        };
        let agent = Agent { family: row.family, prompt: row.prompt, record };
        known.entry((row.user_id, row.task_kind)).or_default().insert(row.agent_id, agent);
    }
    for one in tasks.values_mut() {
        let Some(agents) = known.get(&(one.task.user_id, one.task.task_kind.clone())) else { continue };
        for response in &one.inputs.responses {
            if let Some(agent) = agents.get(&response.agent) {
                one.inputs.agents.insert(response.agent.clone(), agent.clone());
            }
        }
    }
    Ok(())
}

/// The bytes in which inputs are stored, without their standing, and the inputs as they are read back. A dossier is computed
/// from these: a number that JSON does not keep to the last bit then makes no difference.
///
/// # Errors
/// A [`Fault`] if they cannot be serialized.
pub fn stored_form(inputs: &Inputs) -> Result<(Vec<u8>, Inputs), Fault> {
    let without = Inputs { standing: Standing::default(), ..inputs.clone() };
    let bytes = serde_json::to_vec(&without).map_err(|error| uncomputable(&error))?;
    let inputs = Inputs { standing: inputs.standing.clone(), ..read(&bytes)? };
    Ok((bytes, inputs))
}

fn read(bytes: &[u8]) -> Result<Inputs, Fault> {
    serde_json::from_slice(bytes).map_err(|error| uncomputable(&error))
}

/// The dossier of a node, and what it was computed from.
#[derive(Clone, Debug)]
pub struct StoredDossier {
    /// The user.
    pub user_id: i32,
    /// The node.
    pub node_id: Uuid,
    /// Its task.
    pub task_id: Option<Uuid>,
    /// The inputs, with their present standing.
    pub inputs: Inputs,
    /// The bytes of the dossier.
    pub dossier: Vec<u8>,
    /// The version of the rules that it was computed under.
    pub rules_version: i32,
}

#[derive(QueryableByName)]
struct DossierRow {
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    task_id: Option<Uuid>,
    #[diesel(sql_type = Binary)]
    inputs: Vec<u8>,
    #[diesel(sql_type = Text)]
    standing: String,
    #[diesel(sql_type = Binary)]
    dossier: Vec<u8>,
    #[diesel(sql_type = Integer)]
    rules_version: i32,
}

impl DossierRow {
    fn read(self) -> Result<StoredDossier, Fault> {
        let standing = serde_json::from_str(&self.standing).map_err(|error| uncomputable(&error))?;
        Ok(StoredDossier {
            user_id: self.user_id,
            node_id: self.id,
            task_id: self.task_id,
            inputs: Inputs { standing, ..read(&self.inputs)? },
            dossier: self.dossier,
            rules_version: self.rules_version,
        })
    }
}

macro_rules! dossiers_from {
    ($from:literal) => {
        concat!(
            "SELECT d.user_id, d.id, n.task_id, d.inputs, d.standing::text AS standing, d.dossier, d.rules_version FROM ",
            $from
        )
    };
}

static DOSSIERS: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (KeyRow::arrays(1), KeyRow::names());
    format!(
        "{} ({names}) ON d.user_id = i.user_id AND d.id = i.id JOIN consensus_memory_nodes n ON n.user_id = d.user_id AND n.id = d.id",
        dossiers_from!("consensus_dossiers d JOIN unnest(ARRAYS) AS i").replace("ARRAYS", &arrays)
    )
});

/// The stored dossiers of nodes. Nodes without one are absent: proposals have none.
///
/// # Errors
/// A [`Fault`] of the database, or of a row that is not as this program writes it.
pub async fn of_nodes(connection: &mut Connection, keys: &[Key]) -> Result<Vec<StoredDossier>, Fault> {
    let rows: Vec<DossierRow> = with_rows(&DOSSIERS, key_rows(keys)).load(connection).await?;
    rows.into_iter().map(DossierRow::read).collect()
}

/// The stored dossiers after a node in the order of users and nodes, at most `limit`: a way through the whole store.
///
/// # Errors
/// As [`of_nodes`].
pub async fn after(connection: &mut Connection, after: Key, limit: i64) -> Result<Vec<StoredDossier>, Fault> {
    const AFTER: &str = dossiers_from!(
        "consensus_dossiers d JOIN consensus_memory_nodes n ON n.user_id = d.user_id AND n.id = d.id
        WHERE (d.user_id, d.id) > ($1, $2) ORDER BY d.user_id, d.id LIMIT $3"
    );
    let query = diesel::sql_query(AFTER)
        .bind::<Integer, _>(after.0)
        .bind::<SqlUuid, _>(after.1)
        .bind::<BigInt, _>(limit);
    let rows: Vec<DossierRow> = ::store::prepared(query).load(connection).await?;
    rows.into_iter().map(DossierRow::read).collect()
}
