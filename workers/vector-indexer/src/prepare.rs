//! Before the transaction: embeds texts and stores their points in Qdrant.

use std::collections::HashMap;
use std::sync::PoisonError;

use ::store::vector::{Collection, Right};
use ::store::{Fault, FaultKind};
use contract::{
    Memory, SessionId, StreamRequest, UserId, VECTOR_INDEXER, VectorIndex, VectorRemove, VectorRequest,
    VectorType,
};
use runtime::Message;
use uuid::Uuid;
use vectors::{Point, PointKey, Tenant, VectorError, chunk_ids, first_point_id, metadata_digests};

use crate::embedding::{MemoryVectors, embed_each, points_of, unavailable};
use crate::known::{self, Known, Row};
use crate::text::pieces_of;
use crate::{Embedded, VectorIndexer};

/// The preparation of a batch.
#[derive(Debug, Default)]
pub struct Prepared {
    /// The collections to write to, starting with the active one, which searches use.
    pub collections: Vec<Collection>,
    /// The preparation of each message, by its event id.
    pub messages: HashMap<Uuid, Ready>,
    /// The number of stored points, by collection and event id.
    pub(crate) stored: HashMap<String, HashMap<Uuid, i64>>,
    /// The grants to act for the batch's users.
    pub(crate) grants: Vec<String>,
}

/// The preparation of a message.
#[derive(Debug)]
pub enum Ready {
    /// The memories to index, in order. Their points are stored in the active collection.
    Index(Vec<Item>),
    /// The memories to remove, in order.
    Remove(Vec<Item>),
    /// An earlier delivery was applied. Its memories, for the clean-up.
    AlreadyApplied(Vec<Item>),
    /// A prerequisite does not exist, for this reason.
    MissingPrerequisite(String),
    /// It can never take effect, for this reason.
    Rejected(String),
    /// Its service lacks a right, for this reason.
    Denied(String),
}

/// One memory of a message.
#[derive(Debug)]
pub struct Item {
    /// The tenant that owns it.
    pub tenant: Tenant,
    /// The memory.
    pub memory: Uuid,
    /// The id of its first point, and its number of points in the active collection.
    pub points: Option<(Uuid, i32)>,
    /// The texts and their hash.
    pub embedded: Option<(Embedded, [u8; 32])>,
    /// Whether the memory already had a row when it was prepared, and thus may have points of older requests.
    pub(crate) is_replacing: bool,
}

impl Item {
    fn new(tenant: &Tenant, memory: Uuid, row: Option<&Row>) -> Self {
        let is_replacing = row.is_some();
        Self { tenant: tenant.clone(), memory, points: None, embedded: None, is_replacing }
    }
}

impl Prepared {
    pub(crate) fn with(mut self, other: Self) -> Self {
        if !other.collections.is_empty() {
            self.collections = other.collections;
        }
        self.messages.extend(other.messages);
        for (collection, stored) in other.stored {
            self.stored.entry(collection).or_default().extend(stored);
        }
        self.grants.extend(other.grants);
        self
    }
}

/// The time that orders the requests for one memory: when JetStream stored it, in microseconds since 1970.
pub(crate) fn written(message: &Message<VectorRequest>) -> i64 {
    message.stored_at.timestamp_micros()
}

/// A memory to be indexed.
struct Draft<'a> {
    message: &'a Message<VectorRequest>,
    index: &'a VectorIndex,
    memory: &'a Memory,
    tenant: Tenant,
    embedded: Embedded,
    /// The hash of `embedded`.
    hash: [u8; 32],
}

impl VectorIndexer {
    pub(crate) async fn prepare_batch(
        &self,
        batch: &[&Message<VectorRequest>],
        grants: &[&str],
    ) -> Result<Prepared, Fault> {
        let mut connection = ::store::acquire(&self.pool).await?;
        let known = known::of_batch(&mut connection, batch, grants).await;
        if known.is_err() {
            ::store::discard(connection);
        } else {
            drop(connection);
        }
        let known = known?;
        if known.collections.is_empty() {
            return Err(unavailable("there is no collection; `memfleet vectors apply` creates it"));
        }
        let grants = grants.iter().map(|&grant| grant.to_owned()).collect();
        let collections = known.collections.clone();
        let mut prepared = Prepared { collections, grants, ..Prepared::default() };
        for &message in batch {
            prepared.messages.insert(message.event_id, self.classify(message, &known));
        }
        let open = |message: &&&Message<VectorRequest>| {
            matches!(prepared.messages.get(&message.event_id), Some(Ready::Index(_)))
        };
        let drafts: Vec<Draft<'_>> =
            batch.iter().filter(open).flat_map(|message| drafts(message, &known)).collect();
        let mut of_collections = Vec::with_capacity(known.collections.len());
        for collection in &known.collections {
            let made = self.vectors_of(collection, &drafts, &known).await?;
            of_collections.push((collection, made));
        }
        self.set_embedder_result(Ok(()));
        match self.store_points(&drafts, of_collections, &mut prepared).await {
            // With a single message in the batch, it must be the one that the vector store rejects.
            Err(fault) if fault.kind == FaultKind::Permanent && batch.len() == 1 => {
                // The store's own answer is for operators: publishers receive the reason of a rejection.
                tracing::warn!(worker = VECTOR_INDEXER.name, %fault, "the vector store rejects a request");
                let refused = |message: &&Message<VectorRequest>| {
                    (message.event_id, Ready::Rejected("memories: the vector store rejects them".to_owned()))
                };
                prepared.messages = batch.iter().map(refused).collect();
                Ok(prepared)
            }
            stored => stored.map(|()| prepared),
        }
    }

    /// Records, for the probe, whether the texts of a batch could be embedded.
    fn set_embedder_result(&self, found: Result<(), &str>) {
        *self.embedder_problem.lock().unwrap_or_else(PoisonError::into_inner) =
            found.err().map(str::to_owned);
    }

    /// Validates a message against the known rows, before anything is embedded.
    fn classify(&self, message: &Message<VectorRequest>, known: &Known) -> Ready {
        let user = message.user_id();
        let Some(tenant) = known.tenants.get(&user.get()) else {
            return Ready::MissingPrerequisite(format!("user {user} has no account"));
        };
        let item = |id: Uuid| Item::new(tenant, id, known.row(user, id));
        let ids: Vec<Uuid> = match &message.request {
            VectorRequest::VectorIndex(index) => {
                index.memories.as_slice().iter().map(|one| one.memory_id).collect()
            }
            VectorRequest::VectorRemove(remove) => remove.memory_ids.as_slice().to_vec(),
        };
        if known.taken.contains(&(user.get(), message.request_id)) {
            return Ready::AlreadyApplied(ids.into_iter().map(item).collect());
        }
        let problem = match &message.request {
            VectorRequest::VectorIndex(index) => {
                self.problem_of_index(user, message.publisher(), index, known)
            }
            VectorRequest::VectorRemove(remove) => {
                problem_of_remove(user, message.publisher(), remove, known)
            }
        };
        let missing = || {
            let session = StreamRequest::facts(&message.request).session_id()?;
            let there = known.sessions.contains(&(user.get(), session.as_str().to_owned()));
            (!there).then(|| {
                Ready::MissingPrerequisite(format!("session_id: user {user} has opened no session {session}"))
            })
        };
        problem.or_else(missing).unwrap_or_else(|| {
            let items = ids.into_iter().map(item).collect();
            match &message.request {
                VectorRequest::VectorIndex(_) => Ready::Index(items),
                VectorRequest::VectorRemove(_) => Ready::Remove(items),
            }
        })
    }

    fn problem_of_index(
        &self,
        user: UserId,
        service: &str,
        index: &VectorIndex,
        known: &Known,
    ) -> Option<Ready> {
        let active = known.collections.first()?;
        let mut seen = std::collections::HashSet::new();
        for (place, memory) in index.memories.as_slice().iter().enumerate() {
            let vector_type = memory.vector_type.as_str();
            if !known.may(service, vector_type, |right: &Right| right.may_write) {
                let name = vectors::ALIAS;
                return Some(Ready::Denied(format!(
                    "{service} may not index {vector_type} vectors in {name}"
                )));
            }
            // Replacing a memory overwrites it, so the service also needs the right to write the existing type.
            let replaced = known.live(user, memory.memory_id);
            if let Some(problem) = foreign_session(index.session_id.as_ref(), replaced, user) {
                return Some(problem);
            }
            if let Some(row) =
                replaced.filter(|row| !known.may(service, &row.vector_type, |right| right.may_write))
            {
                let (name, kind) = (vectors::ALIAS, &row.vector_type);
                return Some(Ready::Denied(format!("{service} may not replace {kind} vectors in {name}")));
            }
            if !seen.insert(memory.memory_id) {
                return Some(Ready::Rejected(format!(
                    "memories[{place}].memory_id: occurs twice in the request"
                )));
            }
            if let Some(problem) = self.problem_of_embedding(active, memory) {
                return Some(Ready::Rejected(format!("memories[{place}].embedding{problem}")));
            }
            if let Some(node) =
                memory.memory_node_id.filter(|node| !known.nodes.contains(&(user.get(), *node)))
            {
                let field = format!("memories[{place}].memory_node_id");
                return Some(Ready::MissingPrerequisite(format!("{field}: user {user} has no node {node}")));
            }
        }
        None
    }

    /// The problem with the embedding that a memory supplies, or with its absence.
    fn problem_of_embedding(&self, active: &Collection, memory: &Memory) -> Option<String> {
        let Collection { model, dimension, .. } = active;
        let Some(embedding) = &memory.embedding else {
            // If another embedder is configured, but not for this model, the batch waits for the configuration instead.
            let absent = self.embedders.primary().is_none();
            return absent.then(|| format!(": is required, since no embedder is configured for {model}"));
        };
        if embedding.model.as_str() != model {
            return Some(format!(
                ".model: is {}, but the collection has vectors of {model}",
                embedding.model
            ));
        }
        let length = embedding.vector.as_slice().len();
        (usize::try_from(*dimension).ok() != Some(length))
            .then(|| format!(".vector: has {length} dimensions, but the collection has {dimension}"))
    }

    /// The vectors of every draft for one collection: supplied by the publisher, reused from stored points with the
    /// same texts, or computed now. If the embedder rejects a text, the result is the reason.
    async fn vectors_of(
        &self,
        collection: &Collection,
        drafts: &[Draft<'_>],
        known: &Known,
    ) -> Result<Vec<Result<MemoryVectors, String>>, Fault> {
        let stored = self.stored_vectors(collection, drafts, known).await?;
        let embedder = self.embedders.of(&collection.model);
        // For each draft: its vectors, or `None` if they have to be computed.
        let mut made: Vec<Option<Result<MemoryVectors, String>>> = Vec::with_capacity(drafts.len());
        for draft in drafts {
            let brought =
                draft.memory.embedding.as_ref().filter(|one| one.model.as_str() == collection.model);
            let key = (draft.message.user_id().get(), draft.hash);
            made.push(match (brought, stored.get(&key)) {
                (Some(embedding), _) => Some(Ok(vec![embedding.vector.normalized()])),
                (None, Some(made)) => Some(Ok(made.clone())),
                (None, None) => None,
            });
        }
        let open = || drafts.iter().zip(&made).filter(|(_, made)| made.is_none()).map(|(draft, _)| draft);
        if open().next().is_none() {
            return Ok(made.into_iter().flatten().collect());
        }
        let Some(embedder) = embedder else {
            let problem = format!("no embedder is configured for {}", collection.model);
            self.set_embedder_result(Err(&problem));
            return Err(unavailable(&problem));
        };
        let pieces = pieces_of(embedder, open().map(|draft| draft.embedded.clone()).collect()).await;
        let users = open().map(|draft| draft.message.user_id().get());
        let embedded = embed_each(embedder, users.zip(pieces).collect()).await;
        let mut embedded =
            embedded.inspect_err(|fault| self.set_embedder_result(Err(&fault.reason)))?.into_iter();
        Ok(made.into_iter().filter_map(|one| one.or_else(|| embedded.next())).collect())
    }

    /// The stored vectors of memories with the same texts.
    async fn stored_vectors(
        &self,
        collection: &Collection,
        drafts: &[Draft<'_>],
        known: &Known,
    ) -> Result<HashMap<(i32, [u8; 32]), MemoryVectors>, Fault> {
        let mut wanted: HashMap<(i32, [u8; 32]), Vec<Uuid>> = HashMap::new();
        for draft in drafts.iter().filter(|draft| draft.memory.embedding.is_none()) {
            let user = draft.message.user_id().get();
            let same = known.same.get(&(user, draft.hash.to_vec()));
            if let Some(row) = same.filter(|row| row.embedding_model == collection.model)
                && let Some(first) = row.qdrant_point_id
            {
                let count = usize::try_from(row.point_count).unwrap_or(0);
                wanted.insert((user, draft.hash), chunk_ids(first, count).collect());
            }
        }
        if wanted.is_empty() {
            return Ok(HashMap::new());
        }
        let ids: Vec<Uuid> = wanted.values().flatten().copied().collect();
        let found = self.vectors.vectors(&collection.collection_name, &ids).await.map_err(fault)?;
        // If a point is missing, the texts are embedded again.
        let whole = |(key, ids): ((i32, [u8; 32]), Vec<Uuid>)| {
            let made: Option<MemoryVectors> = ids.iter().map(|id| found.get(id).cloned()).collect();
            made.map(|made| (key, made))
        };
        Ok(wanted.into_iter().filter_map(whole).collect())
    }

    /// Stores the points of the drafts and records them in `prepared`.
    async fn store_points(
        &self,
        drafts: &[Draft<'_>],
        of_collections: Vec<(&Collection, Vec<Result<MemoryVectors, String>>)>,
        prepared: &mut Prepared,
    ) -> Result<(), Fault> {
        for (draft, made) in drafts.iter().zip(of_collections.first().into_iter().flat_map(|(_, made)| made))
        {
            if let Err(reason) = made {
                let refused = Ready::Rejected(format!("memories: {reason}"));
                prepared.messages.insert(draft.message.event_id, refused);
            }
        }
        for (place, (collection, made)) in of_collections.into_iter().enumerate() {
            let name = &collection.collection_name;
            let (points, counts) = points_of_drafts(drafts, made, place == 0, prepared);
            match self.vectors.upsert(name, points).await {
                Ok(()) => {
                    prepared.stored.insert(name.clone(), counts);
                }
                // If only a collection that is being filled rejects points, the message still succeeds. The points of
                // this batch are missing there until `memfleet vectors migrate` adds them.
                Err(VectorError::Refused(reason)) if place > 0 => {
                    tracing::warn!(
                        worker = VECTOR_INDEXER.name,
                        collection = %name,
                        reason,
                        "points are missing in a new collection"
                    );
                }
                Err(error) => return Err(fault(error)),
            }
        }
        Ok(())
    }
}

/// The points of the drafts for one collection, and their number for each message. For the active collection, they are
/// recorded in `prepared`.
fn points_of_drafts(
    drafts: &[Draft<'_>],
    made: Vec<Result<MemoryVectors, String>>,
    is_searched: bool,
    prepared: &mut Prepared,
) -> (Vec<Point>, HashMap<Uuid, i64>) {
    let (mut points, mut counts) = (Vec::new(), HashMap::new());
    for (draft, made) in drafts.iter().zip(made) {
        let event = draft.message.event_id;
        let (Some(Ready::Index(items)), Ok(made)) = (prepared.messages.get_mut(&event), made) else {
            continue;
        };
        let first = {
            let (request, memory) = (draft.message.request_id, draft.memory.memory_id);
            first_point_id(&draft.tenant, request, written(draft.message), memory)
        };
        let count = i32::try_from(made.len()).unwrap_or(i32::MAX);
        *counts.entry(event).or_insert(0) += i64::from(count);
        if is_searched && let Some(item) = items.iter_mut().find(|item| item.memory == draft.memory.memory_id)
        {
            item.points = Some((first, count));
            item.embedded = Some((draft.embedded.clone(), draft.hash));
        }
        points.extend(points_of(first, made, &draft.tenant, &key_of(draft)));
    }
    (points, counts)
}

fn drafts<'a>(message: &'a Message<VectorRequest>, known: &Known) -> Vec<Draft<'a>> {
    let (VectorRequest::VectorIndex(index), Some(tenant)) =
        (&message.request, known.tenants.get(&message.user_id().get()))
    else {
        return Vec::new();
    };
    let draft = |memory| {
        let embedded = Embedded::new(memory);
        let hash = embedded.hash();
        Draft { message, index, memory, tenant: tenant.clone(), embedded, hash }
    };
    index.memories.as_slice().iter().map(draft).collect()
}

fn key_of(draft: &Draft<'_>) -> PointKey {
    let memory = draft.memory;
    PointKey {
        memory: memory.memory_id,
        written: written(draft.message),
        session: draft.index.session_id.clone(),
        vector_type: memory.vector_type,
        time: said_at(draft.message, memory).timestamp_millis(),
        meta: metadata_digests(&draft.tenant, memory.metadata.as_str()),
    }
}

/// The time of a memory, at most the time when it was stored: the publisher's clock may be ahead.
pub(crate) fn said_at(message: &Message<VectorRequest>, memory: &Memory) -> chrono::DateTime<chrono::Utc> {
    memory.occurred_at.map_or(message.stored_at, |time| time.min(message.stored_at))
}

/// Rejects a request that names a session but changes a memory of another: its token may be bound to that session.
fn foreign_session(session: Option<&SessionId>, live: Option<&Row>, user: UserId) -> Option<Ready> {
    let (session, row) = (session?, live?);
    let is_foreign = row.session_id.as_deref() != Some(session.as_str());
    is_foreign.then(|| {
        let id = row.id;
        Ready::Rejected(format!(
            "session_id: the memory {id} of user {user} is not from the session {session}"
        ))
    })
}

fn problem_of_remove(user: UserId, service: &str, remove: &VectorRemove, known: &Known) -> Option<Ready> {
    let name = vectors::ALIAS;
    if !known.rights.iter().any(|right| right.service == service && right.may_delete) {
        return Some(Ready::Denied(format!("{service} may remove no vectors from {name}")));
    }
    let may_delete = |vector_type: &str| known.may(service, vector_type, |right: &Right| right.may_delete);
    let may_delete_all = VectorType::ALL.iter().all(|one| may_delete(one.as_str()));
    remove.memory_ids.as_slice().iter().enumerate().find_map(|(place, &id)| {
        let live = known.live(user, id);
        if let Some(problem) = foreign_session(remove.session_id.as_ref(), live, user) {
            return Some(problem);
        }
        // The type of an unknown memory is not known either. A service that may remove every type need not wait for it.
        if known.row(user, id).is_none() && !may_delete_all {
            return Some(Ready::MissingPrerequisite(format!(
                "memory_ids[{place}]: user {user} has no memory {id}"
            )));
        }
        let row = live?;
        let may = may_delete(&row.vector_type);
        (!may).then(|| {
            Ready::Denied(format!("{service} may not remove {} vectors from {name}", row.vector_type))
        })
    })
}

/// The fault for an error of the vector store.
pub(crate) fn fault(error: VectorError) -> Fault {
    let kind = if error.is_transient() { FaultKind::Unavailable } else { FaultKind::Permanent };
    Fault { kind, reason: error.to_string() }
}
