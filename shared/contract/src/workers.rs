//! The workers of the fleet.

use crate::request_kind::{REQUESTS, RequestKind};

/// A worker of the fleet. Its stream, consumers and broker permissions follow from this entry, and so do the requests that it
/// takes (`request.rs`). One name is used everywhere: the crate, the durable consumer, the database role, the metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerInfo {
    /// The name of its crate and of its durable consumer, such as `context-writer`.
    pub name: &'static str,
    /// The stream of its requests; none for a worker that answers queries.
    pub stream: Option<&'static str>,
    /// What it does, in one sentence.
    pub description: &'static str,
    /// The scheduled jobs that it runs: ticks on `memory.job.<job>`.
    pub jobs: &'static [&'static str],
}

/// Sessions, contexts, conversations, accounts and the contexts of agents.
pub const CONTEXT_WRITER: WorkerInfo = WorkerInfo {
    name: "context-writer",
    stream: Some("CONTEXT"),
    description: "Writes sessions, contexts, conversations, accounts and the contexts of agents",
    jobs: &[],
};
/// Routing decisions and tool calls.
pub const ROUTER_LOGGER: WorkerInfo = WorkerInfo {
    name: "router-logger",
    stream: Some("ROUTER"),
    description: "Writes routing decisions, hourly routing statistics and tool calls",
    jobs: &[],
};
/// The semantic search index.
pub const VECTOR_INDEXER: WorkerInfo = WorkerInfo {
    name: "vector-indexer",
    stream: Some("VECTOR"),
    description: "Maintains the semantic search index",
    jobs: &[],
};
/// Answers to queries.
pub const MEMORY_READER: WorkerInfo =
    WorkerInfo { name: "memory-reader", stream: None, description: "Answers queries", jobs: &[] };
/// Service tokens.
pub const TOKEN_ISSUER: WorkerInfo =
    WorkerInfo { name: "token-issuer", stream: None, description: "Issues service tokens", jobs: &[] };

/// Every worker.
pub static WORKERS: &[WorkerInfo] =
    &[CONTEXT_WRITER, ROUTER_LOGGER, VECTOR_INDEXER, MEMORY_READER, TOKEN_ISSUER];

impl WorkerInfo {
    /// The worker of a name.
    pub fn find(name: &str) -> Option<&'static Self> {
        WORKERS.iter().find(|worker| worker.name == name)
    }

    /// Its login role in the database.
    pub fn role(&self) -> String {
        format!("w_{}", self.name.replace('-', "_"))
    }

    /// The durable consumer of the advisories about messages that it never settled.
    pub fn advisory_consumer(&self) -> String {
        format!("{}-advisory", self.name)
    }

    /// The requests that it takes.
    pub fn requests(&self) -> impl Iterator<Item = &'static RequestKind> {
        let name = self.name;
        REQUESTS.iter().copied().filter(move |kind| kind.worker == name)
    }
}
