//! `knowledge_share`: the target gets references to the validated nodes of the knowledge graph that the source knows.
//!
//! A session knows the nodes that its tasks made, and those that were shared with it. Nothing is copied: a node that is superseded
//! later leads on to its successor.

use std::collections::{BTreeSet, HashMap};
use std::sync::LazyLock;

use ::store::unnest::{UnnestRow, with_rows};
use ::store::{Connection, Fault};
use chrono::{DateTime, Utc};
use contract::{SyncEffect, SyncFilter};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Integer, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use sync::{Key, Knowledge, Withheld};
use uuid::Uuid;

use super::carry::change;
use super::events;
use super::run::{Round, Run};
use super::write::{Change, Writes};

/// The most nodes of one round of a sync.
const NODES: i32 = 500;

::store::unnest_row! {
    struct ShareRow<'a> {
        ordinal: i32,
        user_id: i32,
        source: &'a str,
        target: &'a str,
        filter: &'a str,
        is_all: bool,
        resume_after: Option<Uuid>,
        most: i32,
    }
}

static KNOWN: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (ShareRow::arrays(1), ShareRow::names());
    format!(
        "WITH i AS MATERIALIZED (SELECT ordinal, user_id, source, target, filter::jsonb AS filter, is_all, resume_after, most
            FROM unnest({arrays}) AS i ({names}))
        SELECT i.ordinal, k.id, k.node_key, k.is_validated, k.is_superseded, k.is_known, k.found
        FROM i CROSS JOIN LATERAL (
            SELECT n.id, n.node_key::text AS node_key, n.validation_status = 'validated' AND n.valid_to IS NULL AS is_validated,
                n.superseded_by IS NOT NULL OR n.valid_to IS NOT NULL AS is_superseded, count(*) OVER () AS found,
                EXISTS (SELECT FROM session_knowledge o
                    WHERE o.user_id = i.user_id AND o.session_id = i.target AND o.node_id = n.id) AS is_known
            FROM consensus_memory_nodes n
            WHERE n.user_id = i.user_id AND (i.resume_after IS NULL OR n.id > i.resume_after) AND n.id IN (
                SELECT t.node_id FROM consensus_tasks t WHERE t.user_id = i.user_id AND t.session_id = i.source
                UNION ALL SELECT s.node_id FROM session_knowledge s WHERE s.user_id = i.user_id AND s.session_id = i.source)
                AND (i.is_all OR i.filter -> 'keys' = '[]' AND i.filter -> 'prefixes' = '[]'
                    OR i.filter -> 'keys' ? n.node_key::text OR EXISTS (SELECT FROM jsonb_array_elements_text(i.filter -> 'prefixes') AS p
                        WHERE starts_with(n.node_key::text, p)))
            ORDER BY n.id LIMIT i.most
        ) AS k ORDER BY i.ordinal, k.id"
    )
});

#[derive(QueryableByName)]
struct Node {
    #[diesel(sql_type = Integer)]
    ordinal: i32,
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Text)]
    node_key: String,
    #[diesel(sql_type = Bool)]
    is_validated: bool,
    #[diesel(sql_type = Bool)]
    is_superseded: bool,
    #[diesel(sql_type = Bool)]
    is_known: bool,
    /// How many nodes are left to look at, this one included.
    #[diesel(sql_type = BigInt)]
    found: i64,
}

::store::unnest_row! {
    struct Reference<'a> {
        id: Uuid,
        user_id: i32,
        session_id: &'a str,
        node_id: Uuid,
        sync_id: Uuid,
        at: DateTime<Utc>,
        request_id: Uuid,
    }
}

static REFER: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (Reference::arrays(1), Reference::names());
    format!(
        "INSERT INTO session_knowledge (id, user_id, session_id, node_id, sync_id, created_at, request_id)
        SELECT id, user_id, session_id, node_id, sync_id, at, request_id FROM unnest({arrays}) AS i ({names})
        ORDER BY user_id, session_id, node_id ON CONFLICT (user_id, session_id, node_id) DO NOTHING"
    )
});

/// Shares nodes of syncs that do not concern each other's sessions. Returns what is on record.
pub(crate) async fn share(
    connection: &mut Connection,
    runs: &mut [Run],
    group: &[usize],
    rounds: &mut [Round],
) -> Result<Writes, Fault> {
    let filters: Vec<String> = group.iter().map(|index| super::json(&runs[*index].filter)).collect();
    let input = group.iter().zip(&filters).enumerate().map(|(ordinal, (index, filter))| ShareRow {
        ordinal: i32::try_from(ordinal).unwrap_or(i32::MAX),
        user_id: runs[*index].user.get(),
        source: &runs[*index].source,
        target: &runs[*index].target,
        filter,
        is_all: runs[*index].filter == SyncFilter::default(),
        resume_after: runs[*index].resume_after,
        most: NODES,
    });
    let found: Vec<Node> = with_rows(&KNOWN, input.collect()).load(connection).await?;
    let mut of_sync: HashMap<usize, Vec<Node>> = HashMap::new();
    for node in found {
        of_sync.entry(usize::try_from(node.ordinal).unwrap_or(usize::MAX)).or_default().push(node);
    }
    let mut writes = Writes::default();
    let mut references = Vec::new();
    for (ordinal, index) in group.iter().enumerate() {
        let nodes = of_sync.remove(&ordinal).unwrap_or_default();
        references.extend(plan(&mut runs[*index], &nodes, &mut rounds[*index], &mut writes));
    }
    if !references.is_empty() {
        let rows = references
            .iter()
            .map(|(index, node_id)| {
                let Run { user, target, id, now, request_id, .. } = index;
                Reference {
                    id: Uuid::now_v7(),
                    user_id: user.get(),
                    session_id: target,
                    node_id: *node_id,
                    sync_id: *id,
                    at: *now,
                    request_id: *request_id,
                }
            })
            .collect();
        with_rows(&REFER, rows).execute(connection).await?;
    }
    Ok(writes)
}

fn plan(run: &mut Run, nodes: &[Node], round: &mut Round, writes: &mut Writes) -> Vec<(Run, Uuid)> {
    let knowledge = |node: &Node| Knowledge {
        node: node.id.to_string(),
        validated: node.is_validated,
        superseded: node.is_superseded,
    };
    let all: Vec<Knowledge> = nodes.iter().map(knowledge).collect();
    let known: BTreeSet<String> =
        nodes.iter().filter(|node| node.is_known).map(|node| node.id.to_string()).collect();
    let share = sync::share(&all, &known, usize::try_from(NODES).unwrap_or(usize::MAX));
    let number = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    run.counts.references += number(share.references.len());
    run.counts.unchanged += number(share.known);
    let withheld = share.withheld.iter().filter(|(_, why)| match why {
        Withheld::NotValidated | Withheld::Superseded => true,
    });
    run.counts.withheld += number(withheld.count());
    let shared: BTreeSet<&String> = share.references.iter().collect();
    let shared: Vec<&Node> = nodes.iter().filter(|node| shared.contains(&node.id.to_string())).collect();
    for node in &shared {
        let key = Key::Context(node.node_key.clone());
        let change = Change { effect: SyncEffect::Referenced, node_id: Some(node.id), ..change(run, &key) };
        writes.changes.push(change);
    }
    let ids: Vec<Uuid> = shared.iter().map(|node| node.id).collect();
    round.has_written = !ids.is_empty();
    if round.has_written {
        round.events.push(events::referenced(run, ids.clone()));
    }
    let left = nodes.first().map_or(0, |node| node.found);
    round.has_more = usize::try_from(left).is_ok_and(|left| left > nodes.len());
    run.resume_after = if round.has_more { nodes.last().map(|node| node.id) } else { None };
    ids.into_iter().map(|id| (run.clone(), id)).collect()
}
