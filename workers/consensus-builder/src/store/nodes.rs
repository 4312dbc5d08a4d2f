//! Nodes of the knowledge graph: those that are valid for a key, their succession, and their dossiers.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use ::store::unnest::{UnnestRow, with_rows};
use ::store::{Connection, Fault};
use chrono::{DateTime, Utc};
use consensus::{Dossier, Inputs, Likeness, Micro, Response, Rules, Standing};
use diesel::QueryableByName;
use diesel::sql_types::{Binary, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::batch::{computed, keep_alive, overtaken, uncomputable};
use crate::inputs::{self, Key, StoredDossier, stored_form};
use crate::prepare::from_bytes;

/// The key of nodes: user, type and key.
pub(crate) type NodeKey = (i32, String, String);

/// The most nodes of a key that a validated one supersedes: the validated one, and the latest of the others.
pub(crate) const SUPERSEDED: i32 = 16;
/// How many dossiers are read with their inputs at once.
const READ_AT_ONCE: usize = 16;

::store::unnest_row! {
    struct NodeKeyRow<'a> {
        user_id: i32,
        node_type: &'a str,
        node_key: &'a str,
        most: i32,
    }
}

/// The most characters of an answer and of a claim that are compared with a new one: one more than any response may have, with its
/// numbers written out and a space behind each comma and colon. A proposal may hold more; what is cut off equals no response.
const ANSWER_CHARS: usize = contract::limit::RESPONSE_CHARS + 1;
const CLAIM_CHARS: usize = 2 * contract::limit::CLAIM_BYTES + contract::limit::JSON_EXPANSION + 1;

/// Not locked: whoever supersedes one sees whether it is still valid. Contents are read of the validated one alone, since it is the only
/// one that answers are compared with.
static LIVE: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (NodeKeyRow::arrays(1), NodeKeyRow::names());
    format!(
        "SELECT n.user_id, n.id, n.node_type, n.node_key, n.validation_status = 'validated' AS is_validated, n.valid_from,
        CASE WHEN n.validation_status = 'validated' THEN left(coalesce(n.content ->> 'answer', n.title), {ANSWER_CHARS}) END AS answer,
        CASE WHEN n.validation_status = 'validated' THEN left((n.content -> 'claim')::text, {CLAIM_CHARS}) END AS claim,
        r.embedding, r.embedding_model
    FROM unnest({arrays}) AS i ({names})
    CROSS JOIN LATERAL (SELECT * FROM consensus_memory_nodes m WHERE m.user_id = i.user_id AND m.node_type = i.node_type
        AND m.node_key = i.node_key AND m.valid_to IS NULL
        ORDER BY m.validation_status = 'validated' DESC, m.established_at DESC, m.id LIMIT i.most) AS n
    LEFT JOIN agent_responses r ON r.user_id = n.user_id AND r.id = n.response_id AND n.validation_status = 'validated'
    ORDER BY n.user_id, n.id"
    )
});

/// A node that is valid.
#[derive(Clone, Debug, QueryableByName)]
pub(crate) struct Live {
    #[diesel(sql_type = Integer)]
    pub user_id: i32,
    #[diesel(sql_type = SqlUuid)]
    pub id: Uuid,
    #[diesel(sql_type = Text)]
    pub node_type: String,
    #[diesel(sql_type = Text)]
    pub node_key: String,
    #[diesel(sql_type = Bool)]
    pub is_validated: bool,
    #[diesel(sql_type = Timestamptz)]
    pub valid_from: DateTime<Utc>,
    /// What it says, if it is validated.
    #[diesel(sql_type = Nullable<Text>)]
    answer: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    claim: Option<String>,
    #[diesel(sql_type = Nullable<Binary>)]
    embedding: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<Text>)]
    embedding_model: Option<String>,
}

/// The valid nodes of keys, validated or not.
pub(crate) async fn live(
    connection: &mut Connection,
    keys: &[NodeKey],
) -> Result<HashMap<NodeKey, Vec<Live>>, Fault> {
    let different: HashSet<&NodeKey> = keys.iter().collect();
    let rows = different
        .into_iter()
        .map(|(user_id, node_type, node_key)| NodeKeyRow {
            user_id: *user_id,
            node_type,
            node_key,
            most: SUPERSEDED,
        })
        .collect();
    let found: Vec<Live> = with_rows(&LIVE, rows).load(connection).await?;
    let mut by_key: HashMap<NodeKey, Vec<Live>> = HashMap::new();
    for node in found {
        by_key.entry((node.user_id, node.node_type.clone(), node.node_key.clone())).or_default().push(node);
    }
    Ok(by_key)
}

impl Live {
    /// Whether an answer, whose vector is of this model, says the same. A proposal may hold what no response may, such as a claim that
    /// nests too deep: no response says the same.
    pub fn says(&self, answer: &Response, model: Option<&str>, rules: &Rules) -> bool {
        let vector = self.embedding.as_deref().filter(|_| self.embedding_model.as_deref() == model);
        let own = Response {
            text: self.answer.clone().unwrap_or_default(),
            claim: self.claim.clone(),
            embedding: vector.map(from_bytes),
            ..Response::default()
        };
        match consensus::likeness(&own, answer, rules) {
            Ok(Likeness::Equal) => true,
            Ok(Likeness::Cosine(cosine)) => cosine >= Micro::from_f64(rules.cluster.similarity),
            Ok(Likeness::Apart | Likeness::Guarded(_)) | Err(_) => false,
        }
    }
}

::store::unnest_row! {
    /// A node that another one takes the place of.
    pub(crate) struct Succession {
        user_id: i32,
        id: Uuid,
        successor: Uuid,
        at: DateTime<Utc>,
        request_id: Uuid,
    }
}

static SUPERSEDE: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (Succession::arrays(1), Succession::names());
    format!(
        "WITH input AS MATERIALIZED (SELECT * FROM unnest({arrays}) AS i ({names})), held AS MATERIALIZED (
        SELECT n.user_id, n.id FROM consensus_memory_nodes n JOIN input i ON n.user_id = i.user_id AND n.id = i.id
        WHERE n.valid_to IS NULL ORDER BY n.user_id, n.id FOR NO KEY UPDATE OF n
    )
    UPDATE consensus_memory_nodes n SET validation_status = 'superseded', is_active = false,
        valid_to = greatest(i.at, n.valid_from), superseded_by = i.successor, updated_at = now(), request_id = i.request_id
    FROM input i JOIN held h ON h.user_id = i.user_id AND h.id = i.id
    WHERE n.user_id = i.user_id AND n.id = i.id AND n.valid_to IS NULL"
    )
});

impl Succession {
    pub fn new(old: &Live, successor: Uuid, at: DateTime<Utc>, request_id: Uuid) -> Self {
        Self { user_id: old.user_id, id: old.id, successor, at, request_id }
    }

    fn key(&self) -> Key {
        (self.user_id, self.id)
    }
}

/// Ends the validity of nodes that others take the place of, and computes their dossiers anew.
pub(crate) async fn supersede(
    connection: &mut Connection,
    rules: &Rules,
    successions: Vec<Succession>,
) -> Result<(), Fault> {
    if successions.is_empty() {
        return Ok(());
    }
    let count = successions.len();
    let keys: Vec<Key> = successions.iter().map(Succession::key).collect();
    let successors: HashMap<Key, (Uuid, Uuid)> =
        successions.iter().map(|one| (one.key(), (one.successor, one.request_id))).collect();
    let ended = with_rows(&SUPERSEDE, successions).execute(connection).await?;
    if ended < count {
        return Err(overtaken("a node"));
    }
    // Their inputs may be large, so that few are read at a time.
    for keys in keys.chunks(READ_AT_ONCE) {
        let found = inputs::of_nodes(connection, keys).await?;
        let mut changed = Vec::with_capacity(found.len());
        for stored in found {
            let key = (stored.user_id, stored.node_id);
            let Some(&(successor, request_id)) = successors.get(&key) else { continue };
            let standing =
                Standing { superseded_by: Some(successor.to_string()), ..stored.inputs.standing.clone() };
            changed.push(computed(|| Reassessed::new(stored, standing, rules, request_id))?.0);
            keep_alive(connection).await?;
        }
        reassess(connection, changed).await?;
    }
    Ok(())
}

::store::unnest_row! {
    /// A dossier as it is stored.
    pub(crate) struct DossierRow {
        user_id: i32,
        id: Uuid,
        inputs: Vec<u8>,
        standing: String,
        dossier: Vec<u8>,
        rules_version: i32,
        inputs_sha256: String,
        request_id: Uuid,
    }
}

impl DossierRow {
    /// Computes the dossier of a new node. What the node contradicts is known once there is an answer.
    pub fn compute(
        (user_id, id): Key,
        inputs: &Inputs,
        rules: &Rules,
        request_id: Uuid,
        contradicts: impl FnOnce(&Dossier) -> Vec<String>,
    ) -> Result<(Self, Dossier), Fault> {
        let (bytes, mut inputs) = stored_form(inputs)?;
        let mut dossier = Dossier::compute(&inputs, rules).map_err(|error| uncomputable(&error))?;
        let contradicts = contradicts(&dossier);
        if !contradicts.is_empty() {
            inputs.standing.contradicts = contradicts;
            dossier = dossier.with_standing(&inputs, rules).map_err(|error| uncomputable(&error))?;
        }
        let row = Self {
            user_id,
            id,
            inputs: bytes,
            standing: serde_json::to_string(&inputs.standing).map_err(|error| uncomputable(&error))?,
            dossier: dossier.to_bytes().map_err(|error| uncomputable(&error))?,
            rules_version: i32::try_from(rules.id.version).unwrap_or(i32::MAX),
            inputs_sha256: dossier.inputs_sha256.clone(),
            request_id,
        };
        Ok((row, dossier))
    }

    pub fn rules_version(&self) -> i32 {
        self.rules_version
    }

    pub fn inputs_sha256(&self) -> &str {
        &self.inputs_sha256
    }
}

static DOSSIERS: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (DossierRow::arrays(1), DossierRow::names());
    format!(
        "INSERT INTO consensus_dossiers (user_id, id, inputs, standing, dossier, rules_version, inputs_sha256, request_id)
    SELECT user_id, id, inputs, standing::jsonb, dossier, rules_version, inputs_sha256, request_id
    FROM unnest({arrays}) AS i ({names}) ORDER BY user_id, id"
    )
});

/// Stores the dossiers of new nodes.
pub(crate) async fn add_dossiers(connection: &mut Connection, rows: Vec<DossierRow>) -> Result<(), Fault> {
    with_rows(&DOSSIERS, rows).execute(connection).await?;
    Ok(())
}

::store::unnest_row! {
    /// The dossier of a node whose standing has changed. The inputs do not change with it, so they are not written again.
    pub(crate) struct Reassessed {
        user_id: i32,
        id: Uuid,
        standing: String,
        dossier: Vec<u8>,
        rules_version: i32,
        inputs_sha256: String,
        request_id: Uuid,
    }
}

impl Reassessed {
    /// The dossier of a node under this standing. Under the rules of the stored one, answers are not compared again.
    pub fn new(
        stored: StoredDossier,
        standing: Standing,
        rules: &Rules,
        request_id: Uuid,
    ) -> Result<(Self, Dossier), Fault> {
        let inputs = Inputs { standing, ..stored.inputs };
        let dossier = match Dossier::read(&stored.dossier, rules) {
            Some(dossier) => dossier.with_standing(&inputs, rules),
            None => Dossier::compute(&inputs, rules),
        };
        let dossier = dossier.map_err(|error| uncomputable(&error))?;
        let row = Self {
            user_id: stored.user_id,
            id: stored.node_id,
            standing: serde_json::to_string(&inputs.standing).map_err(|error| uncomputable(&error))?,
            dossier: dossier.to_bytes().map_err(|error| uncomputable(&error))?,
            rules_version: i32::try_from(rules.id.version).unwrap_or(i32::MAX),
            inputs_sha256: dossier.inputs_sha256.clone(),
            request_id,
        };
        Ok((row, dossier))
    }
}

static REASSESS: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (Reassessed::arrays(1), Reassessed::names());
    format!(
        "WITH written AS (
        UPDATE consensus_dossiers d SET standing = i.standing::jsonb, dossier = i.dossier, rules_version = i.rules_version,
            inputs_sha256 = i.inputs_sha256, computed_at = now(), request_id = i.request_id
        FROM unnest({arrays}) AS i ({names}) WHERE d.user_id = i.user_id AND d.id = i.id
        RETURNING d.user_id, d.id, d.rules_version, d.inputs_sha256
    )
    UPDATE consensus_memory_nodes n SET rules_version = w.rules_version, inputs_sha256 = w.inputs_sha256
    FROM written w WHERE n.user_id = w.user_id AND n.id = w.id"
    )
});

/// Replaces the dossiers of nodes whose standing has changed.
pub(crate) async fn reassess(connection: &mut Connection, rows: Vec<Reassessed>) -> Result<(), Fault> {
    if !rows.is_empty() {
        with_rows(&REASSESS, rows).execute(connection).await?;
    }
    Ok(())
}

/// The response that stands for the answer: of the leading cluster, the one with the most weight; of several, that of the agent
/// whose name sorts first. None if no answer leads alone.
pub(crate) fn representative<'i>(dossier: &Dossier, inputs: &'i Inputs) -> Option<&'i Response> {
    let [leader] = dossier.outcome.leaders.as_slice() else { return None };
    let votes = dossier.votes.iter().filter(|vote| vote.cluster == Some(*leader));
    let heaviest = votes.min_by_key(|vote| (std::cmp::Reverse(vote.counted), vote.agent.as_str()))?;
    inputs.responses.iter().find(|response| response.id == heaviest.response)
}

/// What a valid, validated node of the key says otherwise. `own` is the node itself.
pub(crate) fn contradictions(
    live: &[Live],
    own: Uuid,
    answer: Option<&Response>,
    model: Option<&str>,
    rules: &Rules,
) -> Vec<String> {
    let Some(answer) = answer else { return Vec::new() };
    let others = live.iter().filter(|node| node.is_validated && node.id != own);
    others.filter(|node| !node.says(answer, model, rules)).map(|node| node.id.to_string()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::prepare::to_bytes;

    #[test]
    fn answers_are_compared_by_vectors_of_one_model_only() {
        let vector = vec![1.0, 0.0, 0.0];
        let node = Live {
            user_id: 1,
            id: Uuid::nil(),
            node_type: "fact".to_owned(),
            node_key: "harbour".to_owned(),
            is_validated: true,
            valid_from: DateTime::UNIX_EPOCH,
            answer: Some("The harbour is closed".to_owned()),
            claim: None,
            embedding: Some(to_bytes(&vector)),
            embedding_model: Some("a".to_owned()),
        };
        let answer = |text: &str| Response {
            text: text.to_owned(),
            embedding: Some(vector.clone()),
            ..Response::default()
        };
        let rules = Rules::current().unwrap();
        let says = |text, model| node.says(&answer(text), model, &rules);
        assert!(says("The port is shut", Some("a")));
        assert!(!says("The port is shut", Some("b")) && !says("The port is shut", None));
        assert!(says("the harbour is closed", Some("b")), "the texts are the same");
    }

    #[test]
    fn nothing_repeats_what_no_response_may_say() {
        let deep = format!("{}1{}", "[".repeat(40), "]".repeat(40));
        let node = |claim: &str| Live {
            user_id: 1,
            id: Uuid::nil(),
            node_type: "fact".to_owned(),
            node_key: "harbour".to_owned(),
            is_validated: true,
            valid_from: DateTime::UNIX_EPOCH,
            answer: Some("closed".to_owned()),
            claim: Some(claim.to_owned()),
            embedding: None,
            embedding_model: None,
        };
        let answer =
            Response { text: "closed".to_owned(), claim: Some("[1]".to_owned()), ..Response::default() };
        let rules = Rules::current().unwrap();
        let says = |claim: &str| node(claim).says(&answer, None, &rules);
        assert!(says("[1]"));
        assert!(!says(&deep) && !says("[1, 1"), "too deep, and cut off");
        assert_eq!(contradictions(&[node(&deep)], Uuid::max(), Some(&answer), None, &rules).len(), 1);
    }
}
