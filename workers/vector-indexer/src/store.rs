//! The worker's SQL.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use ::store::security::Access;
use ::store::unnest::{UnnestRow, with_rows};
use ::store::vector::log_operations;
use ::store::{Connection, Fault, FaultKind};
use chrono::{DateTime, Utc};
use contract::{Memory, SessionId, VectorRequest};
use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use runtime::Reason;
use uuid::Uuid;

use crate::knowledge;
use crate::prepare::{Item, Prepared, Ready, said_at};
use crate::work::Work;

/// The result of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// It took effect, at least for one of its memories.
    Applied,
    /// Later requests have written all of its memories.
    Superseded,
    /// A prerequisite does not exist, for this reason.
    MissingPrerequisite(String),
    /// It can never take effect, for this reason.
    Rejected(Reason),
}

/// A finding about a message: it replaced an older version of this memory, whose points are superseded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replaced(pub Uuid);

::store::unnest_row! {
    /// A row of [`INDEX`].
    struct IndexRow<'a> {
        id: Uuid,
        user_id: i32,
        node_id: Uuid,
        session_id: Option<&'a str>,
        vector_type: &'a str,
        content_text: &'a str,
        speaker: Option<&'a str>,
        preceding_text: Option<&'a str>,
        point_id: Option<Uuid>,
        point_count: i32,
        content_hash: &'a [u8],
        own_text: &'a str,
        is_brought: bool,
        metadata: &'a str,
        relevance_score: Option<f64>,
        occurred_at: DateTime<Utc>,
        is_dated: bool,
        is_own_node: bool,
        is_of_node: bool,
        stored_sequence: i64,
        request_place: i32,
        stored_at: DateTime<Utc>,
        request_id: Uuid,
    }
}

impl<'l> IndexRow<'l> {
    /// `None` for a removal.
    fn new(line: &'l Line<'_>) -> Option<Self> {
        let (memory, session_id) = line.said?;
        let embedded = line.item.embedded.as_ref();
        Some(Self {
            id: line.item.memory,
            user_id: line.user(),
            node_id: memory.memory_node_id.unwrap_or(line.item.memory),
            session_id: session_id.map(SessionId::as_str),
            vector_type: memory.vector_type.as_str(),
            content_text: memory.content_text.as_str(),
            speaker: memory.speaker.as_ref().map(contract::Text::as_str),
            preceding_text: memory.preceding_text.as_ref().map(contract::Text::as_str),
            point_id: line.item.points.map(|(first, _)| first),
            point_count: line.item.points.map_or(0, |(_, count)| count),
            content_hash: embedded.map_or(&[][..], |(_, hash)| &hash[..]),
            own_text: embedded.map_or("", |(embedded, _)| embedded.own.as_str()),
            is_brought: memory.embedding.is_some(),
            metadata: memory.metadata.as_str(),
            relevance_score: memory.relevance_score.map(contract::Score::get),
            occurred_at: said_at(&line.work, memory),
            is_dated: memory.occurred_at.is_some(),
            is_own_node: memory.memory_node_id.is_none(),
            is_of_node: line.work.is_of_node,
            stored_sequence: i64::try_from(line.work.sequence).unwrap_or(i64::MAX),
            request_place: line.place,
            stored_at: line.work.stored_at,
            request_id: line.work.request_id,
        })
    }
}

/// The first parameter is the model. A memory that is written and names no node gets one of its own; a superseded
/// request creates none. The foreign key is checked at the end of the statement. The title of a node is only the type,
/// so that removing the text of the memory leaves no content in the node.
///
/// Of nodes, only those get a memory that are validated and valid; a memory of a service stays, and one that a service has removed
/// stays away.
static INDEX: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (IndexRow::arrays(2), IndexRow::names());
    format!(
        "WITH input AS MATERIALIZED (
        SELECT * FROM unnest({arrays}) AS i ({names})
        WHERE NOT i.is_of_node OR EXISTS (SELECT FROM consensus_memory_nodes n WHERE n.user_id = i.user_id AND n.id = i.id
            AND n.validation_status = 'validated' AND n.valid_to IS NULL)
    ), written AS (
        INSERT INTO unified_memory_vectors AS t (id, user_id, memory_node_id, session_id, vector_type, content_text, speaker,
            preceding_text, embedding_model, qdrant_point_id, point_count, content_hash, content_words, is_brought, metadata,
            relevance_score, occurred_at, is_dated, is_of_node, stored_sequence, request_place, created_at, updated_at, request_id)
        SELECT id, user_id, node_id, session_id, vector_type::vectortype, content_text, speaker, preceding_text, $1, point_id,
            point_count, content_hash, memory_words(own_text), is_brought, metadata::jsonb, relevance_score, occurred_at, is_dated,
            is_of_node, stored_sequence, request_place, stored_at, stored_at, request_id
        FROM input ORDER BY user_id, id
        ON CONFLICT (user_id, id) DO UPDATE SET memory_node_id = excluded.memory_node_id, session_id = excluded.session_id,
            vector_type = excluded.vector_type, content_text = excluded.content_text, speaker = excluded.speaker,
            preceding_text = excluded.preceding_text, embedding_model = excluded.embedding_model,
            qdrant_point_id = excluded.qdrant_point_id, point_count = excluded.point_count, content_hash = excluded.content_hash,
            content_words = excluded.content_words, is_brought = excluded.is_brought, metadata = excluded.metadata,
            relevance_score = excluded.relevance_score, occurred_at = excluded.occurred_at, is_dated = excluded.is_dated,
            is_of_node = excluded.is_of_node, updated_at = excluded.updated_at, removed_at = NULL, request_id = excluded.request_id
        WHERE excluded.updated_at >= t.updated_at AND (NOT excluded.is_of_node OR t.is_of_node = (t.removed_at IS NULL))
        RETURNING user_id, id, xmax = 0 AS is_new
    ), nodes AS (
        INSERT INTO consensus_memory_nodes (id, user_id, node_type, node_key, title, content, request_id)
        SELECT i.id, i.user_id, 'memory', i.id::text, i.vector_type, jsonb_build_object('memory_id', i.id), i.request_id
        FROM input i JOIN written w ON w.user_id = i.user_id AND w.id = i.id
        WHERE i.is_own_node ORDER BY i.user_id, i.id
        ON CONFLICT DO NOTHING
    )
    SELECT user_id, id, is_new FROM written"
    )
});

::store::unnest_row! {
    /// A row of [`REMOVE`].
    struct RemoveRow {
        id: Uuid,
        user_id: i32,
        stored_at: DateTime<Utc>,
        request_id: Uuid,
    }
}

static REMOVE: LazyLock<String> = LazyLock::new(|| {
    let (arrays, names) = (RemoveRow::arrays(1), RemoveRow::names());
    format!(
        "INSERT INTO unified_memory_vectors AS t (id, user_id, vector_type, content_text, embedding_model, point_count, created_at,
        updated_at, removed_at, request_id)
    SELECT id, user_id, 'context', '', '', 0, stored_at, stored_at, stored_at, request_id
    FROM unnest({arrays}) AS i ({names})
    ORDER BY i.user_id, i.id
    ON CONFLICT (user_id, id) DO UPDATE SET content_text = '', speaker = NULL, preceding_text = NULL, qdrant_point_id = NULL,
        point_count = 0, content_hash = NULL, content_words = '', metadata = '{{}}', relevance_score = NULL,
        updated_at = excluded.updated_at, removed_at = excluded.removed_at, request_id = excluded.request_id
    WHERE excluded.updated_at >= t.updated_at
    RETURNING user_id, id, xmax = 0 AS is_new"
    )
});

const WRITTEN: &str = "
    SELECT v.user_id, v.id, (extract(epoch FROM v.updated_at) * 1000000)::bigint AS written
    FROM unnest($1::integer[], $2::uuid[]) AS i (user_id, id)
    JOIN unified_memory_vectors v ON v.user_id = i.user_id AND v.id = i.id";

#[derive(QueryableByName)]
pub(crate) struct WrittenRow {
    #[diesel(sql_type = Integer)]
    user_id: i32,
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = Bool)]
    is_new: bool,
}

/// A memory of a request.
struct Line<'a> {
    index: usize,
    work: Work<'a>,
    item: &'a Item,
    /// Its place in the request.
    place: i32,
    /// The memory to index and its session. `None` for a removal.
    said: Option<(&'a Memory, Option<&'a SessionId>)>,
}

impl Line<'_> {
    fn user(&self) -> i32 {
        self.work.user.get()
    }

    fn key(&self) -> (i32, Uuid) {
        (self.user(), self.item.memory)
    }
}

/// Writes a batch whose points are stored. Returns the result of each request, in order, and the replaced memories.
///
/// # Errors
/// A [`Fault`] of the database, or of the kind `Denied` if a service lacks a right. The caller must roll the
/// transaction back.
pub(crate) async fn write(
    connection: &mut Connection,
    batch: &[Work<'_>],
    prepared: &Prepared,
) -> Result<(Vec<Done>, Vec<(Uuid, Replaced)>), Fault> {
    let mut done = Vec::with_capacity(batch.len());
    let mut lines: Vec<Line<'_>> = Vec::new();
    for (index, &work) in batch.iter().enumerate() {
        let (kind, reason) = match prepared.messages.get(&work.event_id) {
            Some(Ready::Index(items) | Ready::Remove(items)) => {
                lines.extend(lines_of(index, work, items));
                done.push(Done::Superseded);
                continue;
            }
            Some(Ready::MissingPrerequisite(reason)) => {
                done.push(Done::MissingPrerequisite(reason.clone()));
                continue;
            }
            Some(Ready::Rejected(reason)) => {
                done.push(Done::Rejected(reason.clone()));
                continue;
            }
            Some(Ready::Denied(reason)) => (FaultKind::Denied, reason.clone()),
            // The message was not prepared, or its earlier delivery was applied then but is no longer in the inbox.
            Some(Ready::AlreadyApplied(_)) | None => {
                (FaultKind::Transient, "the vectors of the message have not been prepared".to_owned())
            }
        };
        return Err(Fault { kind, reason });
    }
    // Of several requests for one memory, only the last one is written. The others count as applied before it.
    let mut last: HashMap<(i32, Uuid), usize> = HashMap::new();
    for (place, line) in lines.iter().enumerate() {
        let other = last.entry(line.key()).or_insert(place);
        if (line.work.stored_at, line.work.sequence)
            >= (lines[*other].work.stored_at, lines[*other].work.sequence)
        {
            *other = place;
        }
    }
    let written: HashSet<usize> = last.values().copied().collect();
    let chosen = |is_index: bool| {
        let those = lines
            .iter()
            .enumerate()
            .filter(|(place, line)| written.contains(place) && line.said.is_some() == is_index);
        those.map(|(_, line)| line).collect::<Vec<_>>()
    };
    let (indexed, removed) = (chosen(true), chosen(false));
    let model = prepared.collections.as_slice().first().map_or("", |one| one.model.as_str());
    let mut won: HashMap<(i32, Uuid), bool> = HashMap::new();
    for rows in [index(connection, &indexed, model).await?, remove(connection, &removed).await?] {
        won.extend(rows.into_iter().map(|row| ((row.user_id, row.id), row.is_new)));
    }
    let replaced = mark_applied(&lines, &last, &won, &mut done);
    log_vector_operations(connection, batch, prepared, &done).await?;
    Ok((done, replaced))
}

fn lines_of<'a>(
    index: usize,
    work: Work<'a>,
    items: &'a [Item],
) -> Box<dyn Iterator<Item = Line<'a>> + Send + 'a> {
    match work.request {
        VectorRequest::VectorIndex(request) => {
            let said =
                request.memories.as_slice().iter().map(|memory| Some((memory, request.session_id.as_ref())));
            let line = move |((item, said), place)| Line { index, work, item, place, said };
            Box::new(items.iter().zip(said).zip(0..).map(line))
        }
        VectorRequest::VectorRemove(_) => {
            let line = move |(item, place)| Line { index, work, item, place, said: None };
            Box::new(items.iter().zip(0..).map(line))
        }
    }
}

/// Marks the requests that took effect. Returns the memories that may have points of older requests.
fn mark_applied(
    lines: &[Line<'_>],
    last: &HashMap<(i32, Uuid), usize>,
    won: &HashMap<(i32, Uuid), bool>,
    done: &mut [Done],
) -> Vec<(Uuid, Replaced)> {
    let mut replaced = Vec::new();
    for line in lines {
        let is_last = last.get(&line.key()).is_some_and(|&place| lines[place].index == line.index);
        let is_new = won.get(&line.key());
        if is_new.is_some() {
            done[line.index] = Done::Applied;
        }
        // A memory that is new, also within this batch, has no superseded points.
        if is_new != Some(&true) || !is_last {
            let last = last.get(&line.key()).map(|&place| &lines[place]);
            let both = last.into_iter().chain([line]);
            replaced.extend(both.map(|line| (line.work.event_id, Replaced(line.item.memory))));
        }
    }
    replaced
}

/// When the rows of memories were written, by user and memory, in microseconds.
pub(crate) async fn when_written(
    connection: &mut Connection,
    memories: &[(i32, Uuid)],
) -> Result<HashMap<(i32, Uuid), i64>, Fault> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Integer)]
        user_id: i32,
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
        #[diesel(sql_type = BigInt)]
        written: i64,
    }
    if memories.is_empty() {
        return Ok(HashMap::new());
    }
    let query = diesel::sql_query(WRITTEN)
        .bind::<Array<Integer>, _>(memories.iter().map(|one| one.0).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(memories.iter().map(|one| one.1).collect::<Vec<_>>());
    let rows: Vec<Row> = ::store::prepared(query).load(connection).await?;
    Ok(rows.into_iter().map(|row| ((row.user_id, row.id), row.written)).collect())
}

/// Logs the operations in the vector store under the current security context.
async fn log_vector_operations(
    connection: &mut Connection,
    batch: &[Work<'_>],
    prepared: &Prepared,
    done: &[Done],
) -> Result<(), Fault> {
    let applied = || batch.iter().zip(done).filter(|(_, done)| **done == Done::Applied).map(|(work, _)| work);
    let access = |work: &Work<'_>, amount: i64| Access {
        user_id: work.user.get(),
        request_id: work.request_id,
        amount,
    };
    let deletes: Vec<Access> = applied()
        .filter_map(|work| match prepared.messages.get(&work.event_id) {
            Some(Ready::Remove(items)) => Some(access(work, i64::try_from(items.len()).unwrap_or(i64::MAX))),
            Some(
                Ready::Index(_)
                | Ready::AlreadyApplied(_)
                | Ready::MissingPrerequisite(_)
                | Ready::Rejected(_)
                | Ready::Denied(_),
            )
            | None => None,
        })
        .collect();
    for collection in &prepared.collections {
        let stored = prepared.stored.get(&collection.collection_name);
        let upserts: Vec<Access> =
            applied().filter_map(|work| Some(access(work, *stored?.get(&work.event_id)?))).collect();
        log_operations(connection, "upsert", &collection.collection_name, &upserts).await?;
        log_operations(connection, "delete", &collection.collection_name, &deletes).await?;
    }
    Ok(())
}

async fn index(
    connection: &mut Connection,
    lines: &[&Line<'_>],
    model: &str,
) -> Result<Vec<WrittenRow>, Fault> {
    if lines.is_empty() {
        return Ok(Vec::new());
    }
    let rows = lines.iter().filter_map(|line| IndexRow::new(line)).collect();
    let query = diesel::sql_query(INDEX.as_str()).into_boxed().bind::<Text, _>(model);
    Ok(::store::prepared(IndexRow::bind(query, rows)).load(connection).await?)
}

async fn remove(connection: &mut Connection, lines: &[&Line<'_>]) -> Result<Vec<WrittenRow>, Fault> {
    if lines.is_empty() {
        return Ok(Vec::new());
    }
    if lines.iter().any(|line| line.work.is_of_node) {
        let works: Vec<Work<'_>> = lines.iter().map(|line| line.work).collect();
        return knowledge::forget(connection, &works).await;
    }
    let rows = lines.iter().map(|line| RemoveRow {
        id: line.item.memory,
        user_id: line.user(),
        stored_at: line.work.stored_at,
        request_id: line.work.request_id,
    });
    Ok(with_rows(&REMOVE, rows.collect()).load(connection).await?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_new_memory_has_superseded_points_only_of_earlier_requests_of_its_batch() {
        let request = serde_json::from_value(serde_json::json!({ "memory_ids": [Uuid::nil()] })).unwrap();
        let request = VectorRequest::VectorRemove(request);
        let item = Item::new(&vectors::Tenant::new(Uuid::nil(), Vec::new()), Uuid::nil(), None);
        let line = |index: usize| Line {
            index,
            work: Work {
                user: contract::UserId::new(1).unwrap(),
                publisher: "chat",
                request: &request,
                request_id: Uuid::nil(),
                event_id: Uuid::from_u128(u128::try_from(index).unwrap()),
                stored_at: DateTime::UNIX_EPOCH,
                sequence: 1,
                is_of_node: false,
            },
            item: &item,
            place: 0,
            said: None,
        };
        let (lines, key) = ([line(0), line(1)], line(0).key());
        let replaced = |lines: &[Line<'_>], won: Option<bool>| {
            let (last, won) = (HashMap::from([(key, lines.len() - 1)]), won.map(|is_new| (key, is_new)));
            let mut done = vec![Done::Superseded; 2];
            let replaced = mark_applied(lines, &last, &won.into_iter().collect(), &mut done);
            let events: Vec<u128> = replaced.iter().map(|(event, _)| event.as_u128()).collect();
            (events, done.iter().filter(|done| **done == Done::Applied).count())
        };
        assert_eq!(replaced(&lines[..1], Some(true)), (vec![], 1), "it has no other points");
        assert_eq!(replaced(&lines, Some(true)), (vec![1, 0], 2), "the first request has left points");
        assert_eq!(replaced(&lines[..1], Some(false)), (vec![0, 0], 1), "an older version has left points");
        assert_eq!(
            replaced(&lines[..1], None),
            (vec![0, 0], 0),
            "a newer one has; these are the request's own"
        );
    }
}
