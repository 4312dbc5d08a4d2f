//! Verdicts on nodes: a verifier or a human confirms, rejects or reopens one, and its status follows.

use std::sync::LazyLock;

use ::store::unnest::{UnnestRow, with_rows};
use ::store::{Connection, Fault, FaultKind};
use chrono::{DateTime, Utc};
use consensus::{Dossier, Rules, Standing, Status, Verdict as Judgement};
use contract::{EventType, VerdictGive, VerdictKind};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Double, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use runtime::{EventDraft, Verdict};
use serde_json::json;
use uuid::Uuid;

use super::batch::{Item, Verdicts, computed, overtaken, uncomputable};
use super::close::{MOST_WORK, event, superseded};
use super::nodes::{self, Live, NodeKey, Reassessed, Succession};
use super::task::TaskKey;
use crate::inputs::{self, Key, KeyRow, StoredDossier, key_rows};

static NODE_TASKS: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (KeyRow::arrays(1), KeyRow::names());
    format!(
        "SELECT n.user_id, n.task_id FROM unnest({arrays}) AS i ({names})
    JOIN consensus_memory_nodes n ON n.user_id = i.user_id AND n.id = i.id WHERE n.task_id IS NOT NULL"
    )
});

/// The tasks of the nodes that the batch has verdicts on. They are locked before nodes are.
pub(crate) async fn tasks(
    connection: &mut Connection,
    items: &[Item<'_, VerdictGive>],
) -> Result<Vec<TaskKey>, Fault> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Integer)]
        user_id: i32,
        #[diesel(sql_type = SqlUuid)]
        task_id: Uuid,
    }
    if items.is_empty() {
        return Ok(Vec::new());
    }
    let keys: Vec<Key> = items.iter().map(key).collect();
    let rows: Vec<Row> = with_rows(&NODE_TASKS, key_rows(&keys)).load(connection).await?;
    Ok(rows.into_iter().map(|row| (row.user_id, row.task_id)).collect())
}

/// Refuses verdicts on nodes whose tasks are too much work for one transaction. The runtime then writes parts of the batch.
pub(crate) async fn check_work(connection: &mut Connection, tasks: &[TaskKey]) -> Result<(), Fault> {
    if tasks.len() <= 1 || inputs::work(connection, tasks).await?.values().sum::<i64>() <= MOST_WORK {
        return Ok(());
    }
    let reason = "the verdicts of a batch concern nodes with too many answers for one transaction";
    Err(Fault { kind: FaultKind::Permanent, reason: reason.to_owned() })
}

fn key(item: &Item<'_, VerdictGive>) -> Key {
    (item.user(), item.request.node_id)
}

static NODES: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (KeyRow::arrays(1), KeyRow::names());
    format!(
        "SELECT n.user_id, n.id, n.node_type, n.node_key, n.task_id, n.consensus_score, n.valid_from, n.superseded_by,
        n.valid_to IS NULL AS is_valid, coalesce(n.verdict_sequence, -1) AS verdict_sequence, r.embedding_model, t.session_id,
        clock_timestamp() AS now
    FROM consensus_memory_nodes n JOIN unnest({arrays}) AS i ({names}) ON n.user_id = i.user_id AND n.id = i.id
    LEFT JOIN agent_responses r ON r.user_id = n.user_id AND r.id = n.response_id
    LEFT JOIN consensus_tasks t ON t.user_id = n.user_id AND t.id = n.task_id
    ORDER BY n.user_id, n.id FOR NO KEY UPDATE OF n"
    )
});

#[derive(Clone, Debug, QueryableByName)]
struct Node {
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Text)]
    node_type: String,
    #[diesel(sql_type = Text)]
    node_key: String,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    task_id: Option<Uuid>,
    #[diesel(sql_type = Double)]
    consensus_score: f64,
    #[diesel(sql_type = Timestamptz)]
    valid_from: DateTime<Utc>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    superseded_by: Option<Uuid>,
    #[diesel(sql_type = Bool)]
    is_valid: bool,
    #[diesel(sql_type = BigInt)]
    verdict_sequence: i64,
    #[diesel(sql_type = Nullable<Text>)]
    embedding_model: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    session_id: Option<String>,
    #[diesel(sql_type = Timestamptz)]
    now: DateTime<Utc>,
}

impl Node {
    fn node_key(&self) -> NodeKey {
        (self.user_id, self.node_type.clone(), self.node_key.clone())
    }
}

/// What a verdict makes of a node.
struct Judged {
    status: Status,
    score: f64,
    /// The dossier, if the node has votes and the verdict changes it.
    dossier: Option<Reassessed>,
    /// What the votes of a confirmed node were for, by its first agent.
    truth_of: Option<String>,
}

/// Gives verdicts, one after the other: they are rare, and a second one on the same key sees what the first one did.
pub(crate) async fn give(
    connection: &mut Connection,
    rules: &Rules,
    items: &[Item<'_, VerdictGive>],
    verdicts: &mut Verdicts,
) -> Result<(), Fault> {
    if items.is_empty() {
        return Ok(());
    }
    let keys: Vec<Key> = items.iter().map(key).collect();
    // In one order, before the first of them changes.
    let _: Vec<Node> = with_rows(&NODES, key_rows(&keys)).load(connection).await?;
    for item in items {
        let found: Vec<Node> = with_rows(&NODES, key_rows(&[key(item)])).load(connection).await?;
        let Some(node) = found.into_iter().next() else { continue };
        let sequence = i64::try_from(item.message.sequence).unwrap_or(i64::MAX);
        if sequence <= node.verdict_sequence {
            verdicts.written(item, false);
            continue;
        }
        let events = judge(connection, rules, item, &node, sequence).await?;
        verdicts.set(item.index, Verdict::Applied(events));
    }
    Ok(())
}

async fn judge(
    connection: &mut Connection,
    rules: &Rules,
    item: &Item<'_, VerdictGive>,
    node: &Node,
    sequence: i64,
) -> Result<Vec<EventDraft>, Fault> {
    let Item { message, request, .. } = *item;
    let live =
        nodes::live(connection, &[node.node_key()]).await?.remove(&node.node_key()).unwrap_or_default();
    let stored = inputs::of_nodes(connection, &[(node.user_id, node.id)]).await?.pop();
    let judged = match stored {
        Some(stored) => {
            computed(|| of_votes(rules, request.verdict, node, stored, &live, message.request_id))?
        }
        None => of_proposal(request.verdict, node),
    };
    let is_superseded = node.superseded_by.is_some();
    let replaced: Vec<&Live> =
        live.iter().filter(|other| judged.status == Status::Validated && other.id != node.id).collect();
    // A node that was no longer valid is valid again from now on; so is one that takes the place of others.
    let since = if node.is_valid && replaced.is_empty() { node.valid_from } else { node.now };
    let valid_from = replaced.iter().map(|other| other.valid_from).fold(since, DateTime::max);
    let successions = replaced
        .iter()
        .map(|other| Succession::new(other, node.id, valid_from, message.request_id))
        .collect();
    nodes::supersede(connection, rules, successions).await?;
    let row = NodeRow {
        user_id: node.user_id,
        id: node.id,
        validation_status: judged.status.as_str(),
        consensus_score: judged.score,
        verdict: match request.verdict {
            VerdictKind::Confirm => Some("confirmed"),
            VerdictKind::Reject => Some("rejected"),
            VerdictKind::Reopen => None,
        },
        verdict_by: request.given_by.as_str(),
        verdict_reason: request.reason.as_str(),
        verdict_at: message.stored_at,
        verdict_sequence: sequence,
        is_superseded,
        is_rejected: judged.status == Status::Rejected,
        valid_from,
        now: node.now,
        task_id: node.task_id,
        truth_of: judged.truth_of,
        request_id: message.request_id,
    };
    if with_rows(&JUDGE, vec![row]).execute(connection).await? == 0 {
        return Err(overtaken("a node"));
    }
    nodes::reassess(connection, judged.dossier.into_iter().collect()).await?;
    Ok(events(item, node, judged.status, judged.score, &replaced))
}

fn of_votes(
    rules: &Rules,
    verdict: VerdictKind,
    node: &Node,
    stored: StoredDossier,
    live: &[Live],
    request_id: Uuid,
) -> Result<Judged, Fault> {
    let current = Dossier::read(&stored.dossier, rules);
    let is_current = current.is_some();
    let dossier = match current {
        Some(dossier) => dossier,
        None => Dossier::compute(&stored.inputs, rules).map_err(|error| uncomputable(&error))?,
    };
    let before = &stored.inputs.standing;
    // What is valid may have changed since the node was made.
    let contradicts = match node.superseded_by {
        Some(_) => before.contradicts.clone(),
        None => {
            let answer = nodes::representative(&dossier, &stored.inputs);
            nodes::contradictions(live, node.id, answer, node.embedding_model.as_deref(), rules)
        }
    };
    let standing = Standing { verdict: judgement(verdict), contradicts, ..before.clone() };
    // A verdict that changes nothing of the dossier leaves it: its row is large, and the audit trail digests it.
    let (row, dossier) = if is_current && standing == *before {
        (None, dossier)
    } else {
        let (row, dossier) = Reassessed::new(stored, standing, rules, request_id)?;
        (Some(row), dossier)
    };
    let leader = dossier.outcome.leaders.as_slice();
    let truth_of = match (judgement(verdict), leader) {
        (Some(Judgement::Confirmed), [leader]) => {
            dossier.clusters.get(*leader as usize).and_then(|cluster| cluster.agents.iter().min().cloned())
        }
        (Some(Judgement::Confirmed | Judgement::Rejected) | None, _) => None,
    };
    Ok(Judged { status: dossier.outcome.status, score: dossier.score(), dossier: row, truth_of })
}

fn judgement(verdict: VerdictKind) -> Option<Judgement> {
    match verdict {
        VerdictKind::Confirm => Some(Judgement::Confirmed),
        VerdictKind::Reject => Some(Judgement::Rejected),
        VerdictKind::Reopen => None,
    }
}

/// A proposal has no votes: its status is the verdict's.
fn of_proposal(verdict: VerdictKind, node: &Node) -> Judged {
    let status = match (node.superseded_by, verdict) {
        (Some(_), _) => Status::Superseded,
        (None, VerdictKind::Confirm) => Status::Validated,
        (None, VerdictKind::Reject) => Status::Rejected,
        (None, VerdictKind::Reopen) => Status::Unvalidated,
    };
    Judged { status, score: node.consensus_score, dossier: None, truth_of: None }
}

::store::unnest_row! {
    struct NodeRow<'a> {
        user_id: i32,
        id: Uuid,
        validation_status: &'a str,
        consensus_score: f64,
        verdict: Option<&'a str>,
        verdict_by: &'a str,
        verdict_reason: &'a str,
        verdict_at: DateTime<Utc>,
        verdict_sequence: i64,
        is_superseded: bool,
        is_rejected: bool,
        valid_from: DateTime<Utc>,
        now: DateTime<Utc>,
        task_id: Option<Uuid>,
        truth_of: Option<String>,
        request_id: Uuid,
    }
}

/// The task's truth is what the named agent voted for; its estimate is then due again.
static JUDGE: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (NodeRow::arrays(1), NodeRow::names());
    format!(
        "WITH input AS MATERIALIZED (SELECT * FROM unnest({arrays}) AS i ({names})), known AS (
        UPDATE consensus_tasks t SET truth = t.choices[array_position(t.voters, i.truth_of)], updated_at = now(),
            request_id = i.request_id
        FROM input i WHERE t.user_id = i.user_id AND t.id = i.task_id
    ), held AS MATERIALIZED (
        SELECT e.user_id, e.id, i.request_id FROM task_estimates e JOIN input i ON e.user_id = i.user_id AND e.id = i.task_id
        ORDER BY e.user_id, e.id FOR NO KEY UPDATE OF e
    ), due AS (
        UPDATE task_estimates e SET estimated_at = NULL, updated_at = now(), request_id = h.request_id
        FROM held h WHERE e.user_id = h.user_id AND e.id = h.id
    )
    UPDATE consensus_memory_nodes n SET validation_status = i.validation_status::validationstatus,
        consensus_score = i.consensus_score, verdict = i.verdict, verdict_by = i.verdict_by, verdict_reason = i.verdict_reason,
        verdict_at = i.verdict_at, verdict_sequence = i.verdict_sequence,
        is_active = NOT (i.is_superseded OR i.is_rejected),
        valid_from = CASE WHEN i.is_superseded OR i.is_rejected THEN n.valid_from ELSE i.valid_from END,
        valid_to = CASE WHEN i.is_superseded THEN n.valid_to WHEN i.is_rejected THEN greatest(i.now, n.valid_from) END,
        updated_at = now(), request_id = i.request_id
    FROM input i WHERE n.user_id = i.user_id AND n.id = i.id"
    )
});

/// That of the verdict, with what the node is now; and one for each node that it takes the place of.
fn events(
    item: &Item<'_, VerdictGive>,
    node: &Node,
    status: Status,
    score: f64,
    replaced: &[&Live],
) -> Vec<EventDraft> {
    let mut body = serde_json::to_value(item.request).unwrap_or_default();
    if let Some(fields) = body.as_object_mut() {
        fields.insert("validation_status".to_owned(), json!(status.as_str()));
        fields.insert("consensus_score".to_owned(), json!(score));
    }
    let session = node.session_id.as_deref();
    let own = EventDraft::of_request(item.message).map(|event| EventDraft {
        payload: Some(body.to_string()),
        session_id: session.map_or(event.session_id.clone(), |session| session.to_owned().into()),
        ..event
    });
    let session = session.unwrap_or(contract::Event::ACCOUNT_SESSION);
    let others = replaced.iter().map(|other| {
        let payload = superseded(other.id, node.id);
        event(item.message.user_id(), EventType::NodeSuperseded, session, &payload)
    });
    own.into_iter().chain(others).collect()
}
