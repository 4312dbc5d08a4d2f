//! Before the transaction: texts become vectors, and vectors are stored in Qdrant.

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

use crate::embedding::{Made, away, embed_each, points_of};
use crate::known::{self, Known, Row};
use crate::text::pieces_of;
use crate::{Embedded, VectorIndexer};

/// What was got ready for a batch.
#[derive(Debug, Default)]
pub struct Prepared {
    /// The collections that are written to, the one that is searched first.
    pub collections: Vec<Collection>,
    /// What was got ready for each message, by the id of its event.
    pub messages: HashMap<Uuid, Ready>,
    /// How many points were stored, by collection and by the id of the event.
    pub(crate) stored: HashMap<String, HashMap<Uuid, i64>>,
    /// Leave to act for the batch's users.
    pub(crate) grants: Vec<String>,
}

/// What was got ready for a message.
#[derive(Debug)]
pub enum Ready {
    /// Its memories, in their order: their points are stored in the collection that is searched.
    Index(Vec<Item>),
    /// Its memories, in their order.
    Remove(Vec<Item>),
    /// It had its effect before; its memories, for cleaning up after it.
    Before(Vec<Item>),
    /// What it needs is not there; says what.
    MissingPrerequisite(String),
    /// It can never take effect; says why.
    Rejected(String),
    /// Its service may not do this; says what.
    Denied(String),
}

/// One memory of a message.
#[derive(Debug)]
pub struct Item {
    /// Whose it is.
    pub tenant: Tenant,
    /// The memory.
    pub memory: Uuid,
    /// Its first point, and how many it has in the collection that is searched.
    pub points: Option<(Uuid, i32)>,
    /// The texts and their hash.
    pub embedded: Option<(Embedded, [u8; 32])>,
    /// Whether there were points of older requests when it was prepared.
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

/// The place of a request among those for the same memory.
pub(crate) fn written(message: &Message<VectorRequest>) -> i64 {
    message.stored_at.timestamp_micros()
}

/// A memory whose vectors are still to be made, or are there.
struct Draft<'a> {
    message: &'a Message<VectorRequest>,
    index: &'a VectorIndex,
    memory: &'a Memory,
    tenant: Tenant,
    embedded: Embedded,
    /// Of what is embedded.
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
            return Err(away("there is no collection; `memfleet vectors apply` makes it"));
        }
        let grants = grants.iter().map(|&grant| grant.to_owned()).collect();
        let collections = known.collections.clone();
        let mut prepared = Prepared { collections, grants, ..Prepared::default() };
        for &message in batch {
            prepared.messages.insert(message.event_id, self.judge(message, &known));
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
        self.embedder_is(Ok(()));
        match self.store_points(&drafts, of_collections, &mut prepared).await {
            // Nobody else is to blame for what the vector store refuses of a message that is alone.
            Err(fault) if fault.kind == FaultKind::Permanent && batch.len() == 1 => {
                let refused = |message: &&Message<VectorRequest>| {
                    (message.event_id, Ready::Rejected(fault.reason.clone()))
                };
                prepared.messages = batch.iter().map(refused).collect();
                Ok(prepared)
            }
            stored => stored.map(|()| prepared),
        }
    }

    /// Notes whether all the vectors that a batch needs could be made.
    fn embedder_is(&self, found: Result<(), &str>) {
        *self.embedder_away.lock().unwrap_or_else(PoisonError::into_inner) = found.err().map(str::to_owned);
    }

    /// What can be said of a message before any vector is made.
    fn judge(&self, message: &Message<VectorRequest>, known: &Known) -> Ready {
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
            return Ready::Before(ids.into_iter().map(item).collect());
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
            // What is there would be gone: whoever may not write it may not replace it either.
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

    /// What is wrong with the vector that a memory brings, or with bringing none.
    fn problem_of_embedding(&self, active: &Collection, memory: &Memory) -> Option<String> {
        let Collection { model, dimension, .. } = active;
        let Some(embedding) = &memory.embedding else {
            // Where others are made but these, somebody has yet to configure it: the message waits.
            let absent = self.embedders.primary().is_none();
            return absent.then(|| format!(": is needed, since nobody here makes vectors of {model}"));
        };
        if embedding.model.as_str() != model {
            return Some(format!(".model: is {}, and the collection is for {model}", embedding.model));
        }
        let length = embedding.vector.as_slice().len();
        (usize::try_from(*dimension).ok() != Some(length))
            .then(|| format!(".vector: has {length} numbers, and the collection is for {dimension}"))
    }

    /// The vectors of every draft in one collection: those that were brought, those of the same texts that are there, and the rest
    /// made now. A text that the embedder refuses has the reason instead.
    async fn vectors_of(
        &self,
        collection: &Collection,
        drafts: &[Draft<'_>],
        known: &Known,
    ) -> Result<Vec<Result<Made, String>>, Fault> {
        let stored = self.stored_vectors(collection, drafts, known).await?;
        let embedder = self.embedders.of(&collection.model);
        // For each draft: its vectors, or none yet.
        let mut made: Vec<Option<Result<Made, String>>> = Vec::with_capacity(drafts.len());
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
            let problem = format!("nobody here makes vectors of {}", collection.model);
            self.embedder_is(Err(&problem));
            return Err(away(&problem));
        };
        let pieces = pieces_of(embedder, open().map(|draft| draft.embedded.clone()).collect()).await;
        let users = open().map(|draft| draft.message.user_id().get());
        let embedded = embed_each(embedder, users.zip(pieces).collect()).await;
        let mut embedded = embedded.inspect_err(|fault| self.embedder_is(Err(&fault.reason)))?.into_iter();
        Ok(made.into_iter().filter_map(|one| one.or_else(|| embedded.next())).collect())
    }

    /// The vectors of texts that are there already.
    async fn stored_vectors(
        &self,
        collection: &Collection,
        drafts: &[Draft<'_>],
        known: &Known,
    ) -> Result<HashMap<(i32, [u8; 32]), Made>, Fault> {
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
        // One whose points are not all there is embedded again.
        let whole = |(key, ids): ((i32, [u8; 32]), Vec<Uuid>)| {
            let made: Option<Made> = ids.iter().map(|id| found.get(id).cloned()).collect();
            made.map(|made| (key, made))
        };
        Ok(wanted.into_iter().filter_map(whole).collect())
    }

    /// Stores the points of the drafts, and notes them in what was got ready.
    async fn store_points(
        &self,
        drafts: &[Draft<'_>],
        of_collections: Vec<(&Collection, Vec<Result<Made, String>>)>,
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
                // What only a collection that is being filled cannot have is no reason to refuse a message, as a text is not that only
                // its model refuses: it is missing there, with what was stored together with it, until `memfleet vectors migrate`
                // has looked.
                Err(VectorError::Refused(reason)) if place > 0 => {
                    tracing::warn!(worker = VECTOR_INDEXER.name, collection = %name, reason, "points are missing in a new collection");
                }
                Err(error) => return Err(fault(error)),
            }
        }
        Ok(())
    }
}

/// The points of the drafts in one collection, and how many each message has of them. Notes them in what was got ready if it is the
/// collection that is searched.
fn points_of_drafts(
    drafts: &[Draft<'_>],
    made: Vec<Result<Made, String>>,
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

/// Nobody says anything in the future, whatever clock the publisher has.
pub(crate) fn said_at(message: &Message<VectorRequest>, memory: &Memory) -> chrono::DateTime<chrono::Utc> {
    memory.occurred_at.map_or(message.stored_at, |time| time.min(message.stored_at))
}

/// A request of one session leaves the memories of others alone: its token may be for that session only.
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
        // What it will be is not known yet, so that only who may remove all of it is not told to wait.
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

/// What an error of the vector store means for the batch.
pub(crate) fn fault(error: VectorError) -> Fault {
    let kind = if error.is_transient() { FaultKind::Unavailable } else { FaultKind::Permanent };
    Fault { kind, reason: error.to_string() }
}
