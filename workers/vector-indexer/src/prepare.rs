//! Before the transaction: embeds texts and stores their points in Qdrant.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use ::store::vector::Collection;
use ::store::{Fault, FaultKind};
use contract::{Memory, VECTOR_INDEXER, VectorIndex, VectorRequest};
use runtime::Reason;
use uuid::Uuid;
use vectors::{Point, PointKey, Tenant, VectorError, chunk_ids, first_point_id, metadata_digests};

use crate::embedding::{MemoryVectors, ToEmbed, Unembedded, embed_each, points_of};
use crate::known::{self, Known, Row};
use crate::suspicion::{Trouble, unavailable};
use crate::text::pieces_of;
use crate::work::{NodeRequest, Work};
use crate::{Embedded, VectorIndexer};

/// The preparation of a batch.
#[derive(Debug, Default)]
pub struct Prepared {
    /// The collections to write to, starting with the active one, which searches use.
    pub collections: Vec<Collection>,
    /// The preparation of each message, by its event id.
    pub messages: HashMap<Uuid, Ready>,
    /// What a tick makes of nodes.
    pub(crate) node_requests: Vec<NodeRequest>,
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
    Rejected(Reason),
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
    pub(crate) fn new(tenant: &Tenant, memory: Uuid, row: Option<&Row>) -> Self {
        let is_replacing = row.is_some();
        Self { tenant: tenant.clone(), memory, points: None, embedded: None, is_replacing }
    }
}

impl Prepared {
    /// Rejects the messages of a batch.
    fn reject_all(&mut self, batch: &[Work<'_>], reason: &Reason) {
        let rejected = |work: &Work<'_>| (work.event_id, Ready::Rejected(reason.clone()));
        self.messages = batch.iter().map(rejected).collect();
    }

    pub(crate) fn with(mut self, other: Self) -> Self {
        if !other.collections.is_empty() {
            self.collections = other.collections;
        }
        self.messages.extend(other.messages);
        self.node_requests.extend(other.node_requests);
        for (collection, stored) in other.stored {
            self.stored.entry(collection).or_default().extend(stored);
        }
        self.grants.extend(other.grants);
        self
    }
}

/// A memory to be indexed.
struct Draft<'a> {
    work: Work<'a>,
    /// The index of the request in the batch, and of the memory in the request.
    work_index: usize,
    place: usize,
    index: &'a VectorIndex,
    memory: &'a Memory,
    tenant: Tenant,
    embedded: Embedded,
    /// The hash of `embedded`.
    hash: [u8; 32],
}

impl VectorIndexer {
    pub(crate) async fn prepare_works(&self, batch: &[Work<'_>], grants: &[&str]) -> Result<Prepared, Fault> {
        let mut connection = ::store::acquire(&self.pool).await?;
        let known = known::of_batch(&mut connection, self.vectors.alias(), batch, grants).await;
        if known.is_err() {
            ::store::discard(connection);
        } else {
            drop(connection);
        }
        let known = known?;
        if known.collections.is_empty() {
            return Err(unavailable("there is no collection; `memfleet vectors apply` creates it"));
        }
        self.check_owner(&known.collections).await.map_err(|problem| unavailable(&problem))?;
        let grants = grants.iter().map(|&grant| grant.to_owned()).collect();
        let collections = known.collections.clone();
        let mut prepared = Prepared { collections, grants, ..Prepared::default() };
        for work in batch {
            prepared.messages.insert(work.event_id, self.classify(work, &known));
        }
        let open = |work: &Work<'_>| matches!(prepared.messages.get(&work.event_id), Some(Ready::Index(_)));
        let drafts: Vec<Draft<'_>> = batch
            .iter()
            .enumerate()
            .filter(|(_, work)| open(work))
            .flat_map(|(at, work)| drafts(at, *work, &known))
            .collect();
        let mut of_collections = Vec::with_capacity(known.collections.len());
        for (place, collection) in known.collections.iter().enumerate() {
            let made = match self.vectors_of(collection, &drafts, &known, place == 0).await {
                Ok(made) => made,
                Err(Trouble::Fault(fault)) => return Err(fault),
                Err(Trouble::Suspected(reason)) => {
                    set_problem(&self.embedder_problem, Err(&reason));
                    self.suspicion.count(batch, &reason)?;
                    if place == 0 {
                        let sentence = Reason::new("memories: the embedder fails on them each time");
                        prepared.reject_all(batch, &sentence.for_operators(format!("memories: {reason}")));
                        return Ok(prepared);
                    }
                    // The memories are left out of a collection that is being filled.
                    drafts.iter().map(|_| Err(Unembedded::Rejected(reason.clone()))).collect()
                }
            };
            of_collections.push((collection, made));
        }
        set_problem(&self.embedder_problem, Ok(()));
        match self.store_points(&drafts, of_collections, &mut prepared).await {
            Ok(()) => {}
            // With a single message in the batch, it must be the one that the vector store rejects.
            Err(Trouble::Fault(fault)) if fault.kind == FaultKind::Permanent && batch.len() == 1 => {
                tracing::warn!(worker = VECTOR_INDEXER.name, %fault, "the vector store rejects a request");
                let reason = Reason::new("memories: the vector store rejects them");
                prepared.reject_all(batch, &reason.for_operators(format!("memories: {fault}")));
            }
            Err(Trouble::Fault(fault)) => return Err(fault),
            Err(Trouble::Suspected(reason)) => {
                self.suspicion.count(batch, &reason)?;
                let sentence = Reason::new("memories: the vector store fails on them each time");
                prepared.reject_all(batch, &sentence.for_operators(format!("memories: {reason}")));
            }
        }
        Ok(prepared)
    }

    /// The vectors of every draft for one collection: supplied by the publisher, reused from stored points with the
    /// same texts, or computed now.
    async fn vectors_of(
        &self,
        collection: &Collection,
        drafts: &[Draft<'_>],
        known: &Known,
        is_searched: bool,
    ) -> Result<Vec<Result<MemoryVectors, Unembedded>>, Trouble> {
        let stored = self.stored_vectors(collection, drafts, known).await?;
        let embedder = self.embedders.of(&collection.model);
        // For each draft: its vectors, or `None` if they have to be computed.
        let mut made: Vec<Option<Result<MemoryVectors, Unembedded>>> = Vec::with_capacity(drafts.len());
        for draft in drafts {
            let brought =
                draft.memory.embedding.as_ref().filter(|one| one.model.as_str() == collection.model);
            let key = (draft.work.user.get(), draft.hash);
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
            set_problem(&self.embedder_problem, Err(&problem));
            return Err(unavailable(&problem).into());
        };
        let pieces = pieces_of(embedder, open().map(|draft| draft.embedded.clone()).collect()).await;
        // In the collection that is searched, the memories of a message take effect together; in one that is being
        // filled, each by itself.
        let group = |(at, draft): (usize, &Draft<'_>)| if is_searched { draft.work_index } else { at };
        let groups = drafts.iter().enumerate().zip(&made).filter(|(_, made)| made.is_none());
        let groups: Vec<usize> = groups.map(|(draft, _)| group(draft)).collect();
        let to_embed = |((draft, group), pieces): ((&Draft<'_>, usize), Vec<String>)| ToEmbed {
            user: draft.work.user.get(),
            group,
            pieces,
        };
        let embedded = embed_each(embedder, open().zip(groups).zip(pieces).map(to_embed).collect()).await;
        let embedded = embedded.inspect_err(|trouble| {
            if let Trouble::Fault(fault) = trouble {
                set_problem(&self.embedder_problem, Err(&fault.reason));
            }
        });
        let mut embedded = embedded?.into_iter();
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
            let user = draft.work.user.get();
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
        // No message can cause an error of a read by ids.
        let waiting = |error: VectorError| unavailable(&error.to_string());
        let found = self.vectors.vectors(&collection.collection_name, &ids).await.map_err(waiting)?;
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
        of_collections: Vec<(&Collection, Vec<Result<MemoryVectors, Unembedded>>)>,
        prepared: &mut Prepared,
    ) -> Result<(), Trouble> {
        for (draft, made) in drafts.iter().zip(of_collections.first().into_iter().flat_map(|(_, made)| made))
        {
            if let Err(Unembedded::Rejected(reason)) = made {
                let (place, id) = (draft.place, draft.memory.memory_id);
                let sentence =
                    format!("memories[{place}]: the embedder cannot embed the text of the memory {id}");
                let reason = Reason::new(sentence.clone()).for_operators(format!("{sentence}: {reason}"));
                prepared.messages.insert(draft.work.event_id, Ready::Rejected(reason));
            }
        }
        for (place, (collection, made)) in of_collections.into_iter().enumerate() {
            let name = &collection.collection_name;
            let (points, counts) = points_of_drafts(drafts, made, place == 0, prepared);
            let stored = match self.vectors.upsert(name, points).await {
                Ok(()) => Ok(()),
                Err(error) => Err(self.cause_of(collection, error).await),
            };
            let problem = stored.as_ref().err().map(|(_, error)| error.to_string());
            set_problem(&self.store_problem, problem.as_deref().map_or(Ok(()), Err));
            match stored {
                Ok(()) => {
                    prepared.stored.insert(name.clone(), counts);
                }
                // If only a collection that is being filled rejects points, the message still succeeds. The points of
                // this batch are missing there until `memfleet vectors migrate` adds them.
                Err((Cause::Points, VectorError::Refused(reason))) if place > 0 => {
                    tracing::warn!(
                        worker = VECTOR_INDEXER.name,
                        collection = %name,
                        reason,
                        "points are missing in a new collection"
                    );
                }
                Err((Cause::Points, error @ VectorError::Refused(_))) => return Err(fault(error).into()),
                Err((Cause::Points, error)) => return Err(Trouble::Suspected(error.to_string())),
                Err((Cause::Store, error)) => return Err(unavailable(&error.to_string()).into()),
            }
        }
        Ok(())
    }

    /// What causes an error of storing points: the points only if the vector store accepts a harmless one right
    /// afterwards. Otherwise the store is unreachable, full or restricted, or the collection is another one.
    async fn cause_of(&self, collection: &Collection, error: VectorError) -> (Cause, VectorError) {
        let dimension = usize::try_from(collection.dimension).unwrap_or(0);
        match self.vectors.check_upsert(&collection.collection_name, dimension).await {
            Ok(()) => (Cause::Points, error),
            Err(_) => (Cause::Store, error),
        }
    }
}

/// What causes an error of storing points.
enum Cause {
    Points,
    Store,
}

/// Records, for the probe, whether a server could be used.
fn set_problem(problem: &Mutex<Option<String>>, found: Result<(), &str>) {
    *problem.lock().unwrap_or_else(PoisonError::into_inner) = found.err().map(str::to_owned);
}

/// The points of the drafts for one collection, and their number for each message. For the active collection, they are
/// recorded in `prepared`.
fn points_of_drafts(
    drafts: &[Draft<'_>],
    made: Vec<Result<MemoryVectors, Unembedded>>,
    is_searched: bool,
    prepared: &mut Prepared,
) -> (Vec<Point>, HashMap<Uuid, i64>) {
    let (mut points, mut counts) = (Vec::new(), HashMap::new());
    for (draft, made) in drafts.iter().zip(made) {
        let event = draft.work.event_id;
        let (Some(Ready::Index(items)), Ok(made)) = (prepared.messages.get_mut(&event), made) else {
            continue;
        };
        let first = {
            let (request, memory) = (draft.work.request_id, draft.memory.memory_id);
            first_point_id(&draft.tenant, request, draft.work.written(), memory)
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

fn drafts<'a>(work_index: usize, work: Work<'a>, known: &Known) -> Vec<Draft<'a>> {
    let (VectorRequest::VectorIndex(index), Some(tenant)) =
        (work.request, known.tenants.get(&work.user.get()))
    else {
        return Vec::new();
    };
    let draft = |(place, memory)| {
        let embedded = Embedded::new(memory);
        let hash = embedded.hash();
        Draft { work, work_index, place, index, memory, tenant: tenant.clone(), embedded, hash }
    };
    index.memories.as_slice().iter().enumerate().map(draft).collect()
}

fn key_of(draft: &Draft<'_>) -> PointKey {
    let memory = draft.memory;
    PointKey {
        memory: memory.memory_id,
        written: draft.work.written(),
        session: draft.index.session_id.clone(),
        vector_type: memory.vector_type,
        time: said_at(&draft.work, memory).timestamp_millis(),
        meta: metadata_digests(&draft.tenant, memory.metadata.as_str()),
    }
}

/// The time of a memory, at most the time when it was stored: the publisher's clock may be ahead.
pub(crate) fn said_at(work: &Work<'_>, memory: &Memory) -> chrono::DateTime<chrono::Utc> {
    memory.occurred_at.map_or(work.stored_at, |time| time.min(work.stored_at))
}

/// The fault for an error of the vector store.
pub(crate) fn fault(error: VectorError) -> Fault {
    let kind = if error.is_transient() { FaultKind::Unavailable } else { FaultKind::Permanent };
    Fault { kind, reason: error.to_string() }
}
