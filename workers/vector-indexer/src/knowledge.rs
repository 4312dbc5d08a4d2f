//! The job `knowledge-index`: what is validated is found by searches, and what is no longer valid is not.
//!
//! Each validated node that is valid has a memory with the node's id, of the type `knowledge`, which a tick makes and removes. It goes
//! the way of a service's request: points first, then the row (docs/adr/0049). What a tick does not take stays due, so
//! that nothing is lost while the vector store or the embedder is away. A memory of a service with the node's id is left
//! alone; what a service removes stays away.

use std::ops::Range;
use std::slice;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use ::store::unnest::{UnnestRow, with_rows};
use ::store::{Connection, Fault, FaultKind, lock, security};
use chrono::{DateTime, Utc};
use contract::{UserId, VECTOR_INDEXER, VectorRequest, VectorType};
use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Integer, Nullable, Text, Uuid as SqlUuid};
use diesel_async::{AsyncConnection, RunQueryDsl};
use runtime::{EventDraft, Message, Reason, Verdict, WorkItem};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::VectorIndexer;
use crate::prepare::{Prepared, Ready};
use crate::store::{Done, WrittenRow};
use crate::work::{NodeRequest, VectorItem, Work};

/// The most nodes of a tick, and the bytes of contents after which it takes no further one: some seconds of work for a model in this
/// process.
const NODES: i32 = 512;
const BYTES: i64 = 256 * 1024;
/// The most characters of a memory, and the bytes that count of a content that has more.
const CHARS: usize = 64 * 1024;
const COUNTED: i32 = 64 * 1024;
/// How often a part is tried while a server fails on it: a text may be why (`suspicion.rs`).
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(200);
/// How long nodes are written one by one. The others stay due.
const ONE_BY_ONE: Duration = Duration::from_secs(30);
/// The `lock_timeout` meanwhile: less than every `statement_timeout`, so that a node that waits for a lock is not taken for a slow one.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);

/// Validated nodes without a memory, and memories of nodes that are not valid any more: they have no content. Row-level security shows
/// the users alone that the tick acts for. The conditions are those of sec.due_knowledge_index.
///
/// What has been due longest is taken in any case. Of the others, users take turns by the bytes of their nodes: nobody's many or large
/// nodes keep those of others out. These bytes are those that are stored; contents are unpacked one after the other, until the bytes of a
/// tick are used up.
const DUE: &str = "
    WITH RECURSIVE due AS (
        SELECT n.user_id, n.id, n.updated_at, true AS is_valid, pg_column_size(n.content) AS size
        FROM consensus_memory_nodes n LEFT JOIN unified_memory_vectors v ON v.user_id = n.user_id AND v.id = n.id
        WHERE n.validation_status = 'validated' AND n.valid_to IS NULL
            AND (v.id IS NULL OR (v.removed_at IS NOT NULL AND NOT v.is_of_node))
        UNION ALL
        SELECT n.user_id, n.id, n.updated_at, false, 0
        FROM unified_memory_vectors v JOIN consensus_memory_nodes n ON n.user_id = v.user_id AND n.id = v.id
        WHERE v.is_of_node AND v.removed_at IS NULL AND (n.validation_status <> 'validated' OR n.valid_to IS NOT NULL)
    ), turns AS (
        SELECT d.*, row_number() OVER (ORDER BY updated_at, user_id, id) AS age,
            sum(size) OVER (PARTITION BY user_id ORDER BY updated_at, id) AS turn FROM due d
    ), chosen AS MATERIALIZED (
        SELECT t.*, row_number() OVER (ORDER BY age > 1, turn, updated_at, user_id, id) AS place FROM turns t
        ORDER BY place LIMIT $1
    ), page AS (
        SELECT 0::bigint AS place, 0::bigint AS bytes
        UNION ALL
        SELECT c.place, p.bytes + CASE WHEN c.is_valid THEN least(octet_length(n.content::text), $3) ELSE 0 END
        FROM page p JOIN chosen c ON c.place = p.place + 1
        JOIN consensus_memory_nodes n ON n.user_id = c.user_id AND n.id = c.id
        WHERE p.bytes < $2
    )
    SELECT c.user_id, c.id, n.node_type, n.node_key, n.title, CASE WHEN c.is_valid THEN n.content::text END AS content
    FROM page p JOIN chosen c ON c.place = p.place JOIN consensus_memory_nodes n ON n.user_id = c.user_id AND n.id = c.id
    ORDER BY c.place";

#[derive(QueryableByName)]
struct Node {
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Text)]
    node_type: String,
    #[diesel(sql_type = Text)]
    node_key: String,
    #[diesel(sql_type = Text)]
    title: String,
    #[diesel(sql_type = Nullable<Text>)]
    content: Option<String>,
}

impl Node {
    fn into_request(self) -> Option<NodeRequest> {
        let user = UserId::new(self.user_id).ok()?;
        let decoded = match &self.content {
            None => {
                let body = json!({ "memory_ids": [self.id] });
                serde_json::from_str(&body.to_string()).map(VectorRequest::VectorRemove)
            }
            Some(content) => {
                let memory = json!({
                    "memory_id": self.id, "memory_node_id": self.id, "vector_type": VectorType::Knowledge,
                    "content_text": text_of(&self.title, content),
                    "metadata": { "node_type": self.node_type, "node_key": self.node_key },
                });
                let body = json!({ "memories": [memory] });
                serde_json::from_str(&body.to_string()).map(VectorRequest::VectorIndex)
            }
        };
        match decoded {
            Ok(request) => Some(NodeRequest { user, request }),
            Err(error) => {
                tracing::warn!(worker = VECTOR_INDEXER.name, node = %self.id, %error, "a node cannot be indexed");
                None
            }
        }
    }
}

/// What a node says: its title, the question unless the title is its beginning, and the answer; without an answer, the claim or all of
/// its content.
fn text_of(title: &str, content: &str) -> String {
    let fields: Value = serde_json::from_str(content).unwrap_or_default();
    let text = |field: &str| fields[field].as_str().filter(|text| !text.trim().is_empty());
    let question = text("question");
    let title = Some(title).filter(|title| question.is_none_or(|question| !question.starts_with(title)));
    let answer = match (text("answer"), &fields["claim"]) {
        (Some(answer), _) => answer.to_owned(),
        (None, Value::Null) => content.to_owned(),
        (None, claim) => claim.to_string(),
    };
    let parts: Vec<&str> = title.into_iter().chain(question).chain([answer.as_str()]).collect();
    parts.join("\n").chars().take(CHARS).collect()
}

impl VectorIndexer {
    /// Reads what is due of the users of these grants, and prepares it.
    pub(crate) async fn prepare_tick(
        &self,
        tick: &Message<VectorItem>,
        grants: &[&str],
    ) -> Result<Prepared, Fault> {
        if grants.is_empty() || !self.can_embed().await? {
            return Ok(Prepared::default());
        }
        let requests = self.due_nodes(grants).await?;
        let works = Work::of_tick(tick, &requests);
        let mut prepared = Prepared::default();
        // The parts still to be prepared, the next one last.
        let mut parts: Vec<Range<usize>> = std::iter::once(0..works.len()).collect();
        while let Some(part) = parts.pop().filter(|part| !part.is_empty()) {
            match self.prepare_part(&works[part.clone()], grants).await {
                Ok(made) => prepared = prepared.with(made),
                Err(fault) if fault.kind.is_outage() => return Err(fault),
                Err(_) if part.len() > 1 => {
                    let middle = part.start + part.len() / 2;
                    parts.extend([middle..part.end, part.start..middle]);
                }
                Err(fault) => {
                    let reason = Reason::new("its text cannot be indexed").for_operators(fault.to_string());
                    prepared.messages.insert(works[part.start].event_id, Ready::Rejected(reason));
                }
            }
        }
        prepared.node_requests = requests;
        Ok(prepared)
    }

    /// Whether there is an embedder for the texts of nodes. Without one, a tick does nothing.
    async fn can_embed(&self) -> Result<bool, Fault> {
        let collections = self.collections().await?;
        Ok(collections.as_slice().first().is_some_and(|active| self.embedders.of(&active.model).is_some()))
    }

    async fn due_nodes(&self, grants: &[&str]) -> Result<Vec<NodeRequest>, Fault> {
        let mut connection = ::store::acquire(&self.pool).await?;
        let found: Result<Vec<Node>, Fault> = connection
            .transaction(async |connection| {
                security::open_context(connection, grants).await?;
                let query = diesel::sql_query(DUE)
                    .bind::<Integer, _>(NODES)
                    .bind::<BigInt, _>(BYTES)
                    .bind::<Integer, _>(COUNTED);
                Ok(::store::prepared(query).load(connection).await?)
            })
            .await;
        ::store::discard_if_unusable(connection, &found);
        Ok(found?.into_iter().filter_map(Node::into_request).collect())
    }

    /// A server that fails may do so because of a text, which shows when it is tried again.
    async fn prepare_part(&self, works: &[Work<'_>], grants: &[&str]) -> Result<Prepared, Fault> {
        let mut tries = 1;
        loop {
            match self.prepare_works(works, grants).await {
                Err(fault) if fault.kind == FaultKind::Unavailable && tries < TRIES => {
                    tries += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                done => return done,
            }
        }
    }
}

/// Writes the memories of a tick. The events are those that a service's requests would cause.
pub(crate) async fn write(
    connection: &mut Connection,
    tick: &Message<VectorItem>,
    prepared: &Prepared,
) -> Result<Verdict, Fault> {
    let works = Work::of_tick(tick, &prepared.node_requests);
    let done = match write_nodes(connection, &works, prepared).await {
        Err(fault) if may_lie_in_a_node(&fault) => {
            tracing::warn!(worker = VECTOR_INDEXER.name, %fault, "nodes cannot be indexed together, writing one at a time");
            write_one_by_one(connection, &works, prepared).await?
        }
        done => done?,
    };
    let (mut events, mut refused) = (Vec::new(), Vec::new());
    for (work, done) in works.iter().zip(done) {
        match done {
            Done::Applied => events.extend(event(work)),
            Done::Rejected(reason) => {
                tracing::warn!(worker = VECTOR_INDEXER.name, user = %work.user, %reason, "a node is left out of searches");
                refused.push(*work);
            }
            Done::Superseded | Done::MissingPrerequisite(_) => {}
        }
    }
    leave_out(connection, &refused).await?;
    Ok(if events.is_empty() { Verdict::unchanged(tick) } else { Verdict::Applied(events) })
}

/// Whether what a node holds can be why it cannot be written.
fn may_lie_in_a_node(fault: &Fault) -> bool {
    match fault.kind {
        FaultKind::Permanent => true,
        FaultKind::Blocked => fault.is_statement_timeout(),
        FaultKind::Transient
        | FaultKind::Unavailable
        | FaultKind::ConnectionLost
        | FaultKind::MissingPrerequisite
        | FaultKind::Denied
        | FaultKind::Erased
        | FaultKind::Fenced
        | FaultKind::Restricted { .. } => false,
    }
}

/// Writes all of these nodes, or none.
async fn write_nodes(
    connection: &mut Connection,
    works: &[Work<'_>],
    prepared: &Prepared,
) -> Result<Vec<Done>, Fault> {
    let written: Result<_, Fault> = connection
        .transaction(async |connection| crate::store::write(connection, works, prepared).await)
        .await;
    Ok(written?.0)
}

/// Writes nodes up to the first one that fails by itself, which is rejected. Those without a result stay due.
async fn write_one_by_one(
    connection: &mut Connection,
    works: &[Work<'_>],
    prepared: &Prepared,
) -> Result<Vec<Done>, Fault> {
    lock::set_timeout(connection, LOCK_TIMEOUT).await?;
    let (since, mut done) = (Instant::now(), Vec::with_capacity(works.len()));
    for work in works {
        match write_nodes(connection, slice::from_ref(work), prepared).await {
            Ok(one) => done.extend(one),
            Err(fault) if may_lie_in_a_node(&fault) => {
                let reason = Reason::new("the database cannot store it").for_operators(fault.to_string());
                done.push(Done::Rejected(reason));
                break;
            }
            Err(fault) => return Err(fault),
        }
        if since.elapsed() >= ONE_BY_ONE {
            break;
        }
    }
    Ok(done)
}

fn event(work: &Work<'_>) -> Option<EventDraft> {
    // The message has no body that could be the payload.
    let (event_type, payload) = WorkItem::event(work.request, true)?;
    Some(EventDraft {
        user_id: work.user,
        event_type,
        performative: contract::Performative::Inform,
        source_agent_id: None,
        target_agent_id: None,
        session_id: contract::Event::ACCOUNT_SESSION.into(),
        payload,
    })
}

::store::unnest_row! {
    struct NodeRow {
        user_id: i32,
        id: Uuid,
        stored_at: DateTime<Utc>,
        request_id: Uuid,
    }
}

fn rows(works: &[Work<'_>]) -> Vec<NodeRow> {
    let row = |work: &Work<'_>| {
        let (user_id, stored_at, request_id) = (work.user.get(), work.stored_at, work.request_id);
        let ids = work.memories().into_iter();
        ids.map(move |id| NodeRow { user_id, id, stored_at, request_id }).collect::<Vec<_>>()
    };
    works.iter().flat_map(row).collect()
}

/// Only memories that a tick has made of nodes that are not valid any more; such a node gets a memory again if it becomes valid again.
static FORGET: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (NodeRow::arrays(1), NodeRow::names());
    format!(
        "UPDATE unified_memory_vectors t SET content_text = '', speaker = NULL, preceding_text = NULL, qdrant_point_id = NULL,
        point_count = 0, content_hash = NULL, content_words = '', metadata = '{{}}', relevance_score = NULL, is_of_node = false,
        updated_at = i.stored_at, removed_at = i.stored_at, request_id = i.request_id
    FROM unnest({arrays}) AS i ({names}) JOIN consensus_memory_nodes n ON n.user_id = i.user_id AND n.id = i.id
    WHERE t.user_id = i.user_id AND t.id = i.id AND t.is_of_node AND t.removed_at IS NULL AND t.updated_at <= i.stored_at
        AND (n.validation_status <> 'validated' OR n.valid_to IS NOT NULL)
    RETURNING t.user_id, t.id, false AS is_new"
    )
});

/// Removes the memories of nodes that are not valid any more.
pub(crate) async fn forget(
    connection: &mut Connection,
    works: &[Work<'_>],
) -> Result<Vec<WrittenRow>, Fault> {
    if works.is_empty() {
        return Ok(Vec::new());
    }
    Ok(with_rows(&FORGET, rows(works)).load(connection).await?)
}

/// As if a service had removed them, so that they are not due again. Points that were stored for them have the time of the tick: the row
/// has another one, so that they are superseded.
static LEAVE_OUT: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (NodeRow::arrays(1), NodeRow::names());
    format!(
        "INSERT INTO unified_memory_vectors AS t (id, user_id, vector_type, content_text, embedding_model, point_count, created_at,
        updated_at, removed_at, is_of_node, request_id)
    SELECT n.id, n.user_id, 'knowledge', '', '', 0, i.stored_at, i.stored_at + interval '1 microsecond', i.stored_at, true, i.request_id
    FROM unnest({arrays}) AS i ({names}) JOIN consensus_memory_nodes n ON n.user_id = i.user_id AND n.id = i.id
    ORDER BY n.user_id, n.id
    ON CONFLICT (user_id, id) DO UPDATE SET is_of_node = true, updated_at = excluded.updated_at, request_id = excluded.request_id
    WHERE t.removed_at IS NOT NULL AND excluded.updated_at >= t.updated_at"
    )
});

async fn leave_out(connection: &mut Connection, works: &[Work<'_>]) -> Result<(), Fault> {
    if !works.is_empty() {
        with_rows(&LEAVE_OUT, rows(works)).execute(connection).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_the_cause_of_what_it_holds_and_of_the_time_it_takes_and_not_of_locks() {
        let may_lie =
            |kind: FaultKind, reason: &str| may_lie_in_a_node(&Fault { kind, reason: reason.to_owned() });
        assert!(may_lie(FaultKind::Permanent, "value out of range"));
        assert!(may_lie(FaultKind::Blocked, "canceling statement due to statement timeout"));
        assert!(!may_lie(FaultKind::Blocked, "canceling statement due to lock timeout"));
        assert!(!may_lie(FaultKind::Unavailable, "out of memory"));
    }

    #[test]
    fn a_memory_has_the_question_and_the_answer() {
        for (title, content, expected) in [
            (
                "Which river?",
                json!({ "question": "Which river?", "answer": "The Tagus" }),
                "Which river?\nThe Tagus",
            ),
            ("Rivers", json!({ "question": "Which?", "answer": "The Tagus" }), "Rivers\nWhich?\nThe Tagus"),
            ("Port", json!({ "claim": { "port": 80 }, "answer": " " }), "Port\n{\"port\":80}"),
            ("Port", json!({ "claim": 80 }), "Port\n80"),
            ("Fact", json!({ "note": "wet" }), "Fact\n{\"note\":\"wet\"}"),
        ] {
            assert_eq!(text_of(title, &content.to_string()), expected);
        }
        let long = json!({ "answer": "é".repeat(CHARS * 2) }).to_string();
        assert_eq!(text_of("T", &long).chars().count(), CHARS);
    }
}
