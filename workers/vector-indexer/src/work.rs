//! What the worker takes in, and what it has to carry out: the requests of services, and those that a tick makes of nodes.

use chrono::{DateTime, Utc};
use contract::{UserId, VectorRequest};
use runtime::{Message, RequestOrTick};
use uuid::Uuid;

/// A scheduled job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Keeps the memories of validated nodes.
    KnowledgeIndex,
}

impl runtime::Job for Job {
    const ALL: &'static [Self] = &[Self::KnowledgeIndex];

    fn name(self) -> &'static str {
        match self {
            Self::KnowledgeIndex => "knowledge-index",
        }
    }
}

/// A request of the stream VECTOR, or a tick.
pub type VectorItem = RequestOrTick<VectorRequest, Job>;

/// A request that a tick makes of a node.
#[derive(Debug)]
pub struct NodeRequest {
    pub(crate) user: UserId,
    /// It indexes or removes one memory, whose id is that of the node.
    pub(crate) request: VectorRequest,
}

/// A request to carry out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work<'a> {
    pub user: UserId,
    /// The service, or the job.
    pub publisher: &'a str,
    pub request: &'a VectorRequest,
    pub request_id: Uuid,
    /// Of the message; or of a node in a tick, derived from it.
    pub event_id: Uuid,
    pub stored_at: DateTime<Utc>,
    pub sequence: u64,
    /// Whether a tick has made it of a node.
    pub is_of_node: bool,
}

impl<'a> Work<'a> {
    /// That of a service. None for a tick.
    pub fn of(message: &'a Message<VectorItem>) -> Option<Self> {
        let VectorItem::Request(request) = &message.request else { return None };
        Some(Self {
            user: message.user_id(),
            publisher: message.publisher(),
            request,
            request_id: message.request_id,
            event_id: message.event_id,
            stored_at: message.stored_at,
            sequence: message.sequence,
            is_of_node: false,
        })
    }

    /// Those of a tick.
    pub fn of_tick(tick: &'a Message<VectorItem>, requests: &'a [NodeRequest]) -> Vec<Self> {
        let work = |(place, NodeRequest { user, request }): (u64, &'a NodeRequest)| Self {
            user: *user,
            publisher: tick.publisher(),
            request,
            request_id: tick.request_id,
            event_id: Uuid::new_v5(&tick.event_id, &place.to_be_bytes()),
            stored_at: tick.stored_at,
            sequence: tick.sequence,
            is_of_node: true,
        };
        (0..).zip(requests).map(work).collect()
    }

    /// The memories that it concerns, in order.
    pub fn memories(&self) -> Vec<Uuid> {
        match self.request {
            VectorRequest::VectorIndex(index) => {
                index.memories.as_slice().iter().map(|one| one.memory_id).collect()
            }
            VectorRequest::VectorRemove(remove) => remove.memory_ids.as_slice().to_vec(),
        }
    }

    /// The time that orders the requests for one memory: when JetStream stored it, in microseconds since 1970.
    pub fn written(&self) -> i64 {
        self.stored_at.timestamp_micros()
    }
}
