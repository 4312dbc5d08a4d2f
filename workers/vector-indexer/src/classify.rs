//! Validates messages against the rows that they refer to, before anything is embedded.

use ::store::vector::{Collection, Right};
use contract::{
    Memory, SessionId, StreamRequest, UserId, VectorIndex, VectorRemove, VectorRequest, VectorType,
};
use uuid::Uuid;

use crate::VectorIndexer;
use crate::known::{Known, Row};
use crate::prepare::{Item, Ready};
use crate::work::Work;

impl VectorIndexer {
    /// Validates a request against the known rows, before anything is embedded.
    pub(crate) fn classify(&self, work: &Work<'_>, known: &Known) -> Ready {
        let (user, service) = (work.user, work.publisher);
        let Some(tenant) = known.tenants.get(&user.get()) else {
            return Ready::MissingPrerequisite(format!("user {user} has no account"));
        };
        let item = |id: Uuid| Item::new(tenant, id, known.row(user, id));
        let ids = work.memories();
        if known.taken.contains(&(user.get(), work.request_id)) {
            return Ready::AlreadyApplied(ids.into_iter().map(item).collect());
        }
        let problem = match work.request {
            // What a tick makes of a node needs no service's right.
            _ if work.is_of_node => None,
            VectorRequest::VectorIndex(index) => self.problem_of_index(user, service, index, known),
            VectorRequest::VectorRemove(remove) => problem_of_remove(user, service, remove, known),
        };
        let missing = || {
            let session = StreamRequest::facts(work.request).session_id()?;
            let there = known.sessions.contains(&(user.get(), session.as_str().to_owned()));
            (!there).then(|| {
                Ready::MissingPrerequisite(format!("session_id: user {user} has opened no session {session}"))
            })
        };
        problem.or_else(missing).unwrap_or_else(|| {
            let items = ids.into_iter().map(item).collect();
            match work.request {
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
                return Some(Ready::Rejected(
                    format!("memories[{place}].memory_id: occurs twice in the request").into(),
                ));
            }
            if let Some(problem) = self.problem_of_embedding(active, memory) {
                return Some(Ready::Rejected(format!("memories[{place}].embedding{problem}").into()));
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
}

/// Rejects a request that names a session but changes a memory of another: its token may be bound to that session.
fn foreign_session(session: Option<&SessionId>, live: Option<&Row>, user: UserId) -> Option<Ready> {
    let (session, row) = (session?, live?);
    let is_foreign = row.session_id.as_deref() != Some(session.as_str());
    is_foreign.then(|| {
        let id = row.id;
        Ready::Rejected(
            format!("session_id: the memory {id} of user {user} is not from the session {session}").into(),
        )
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
