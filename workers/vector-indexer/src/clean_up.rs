//! Deletes superseded points after the commit.
//!
//! Which points are superseded is read from the committed rows. What the transaction intended is not reliable: it may
//! have been rolled back, or another replica may have written a newer row.

use std::collections::{BTreeSet, HashMap};

use ::store::{Fault, FaultKind, security};
use diesel_async::AsyncConnection;
use runtime::Ended;
use uuid::Uuid;
use vectors::{SupersededPoints, VectorError};

use crate::VectorIndexer;
use crate::prepare::{Item, Prepared, Ready, fault};
use crate::store::{Replaced, when_written};
use crate::work::{VectorItem, Work};

/// A memory of a message that has been processed.
struct ProcessedMemory<'a> {
    user: i32,
    item: &'a Item,
    /// When JetStream stored the message, in microseconds since 1970.
    own: i64,
    committed: bool,
    /// Whether there may be points of older requests.
    replacing: bool,
}

/// What the rows of memories say.
#[derive(Default)]
struct Rows {
    /// When the present row of each was written, by user and memory.
    written: HashMap<(i32, Uuid), i64>,
    /// Users who are being erased, or whose data are restricted. Their rows are unknown. Points go with an erasure; if it is cancelled, or the
    /// restriction is lifted, `memfleet vectors reconcile` finds what is superseded.
    fenced: BTreeSet<i32>,
}

impl VectorIndexer {
    pub(crate) async fn clean_up_after(
        &self,
        ended: &[Ended<'_, VectorItem, Replaced>],
        prepared: &Prepared,
    ) -> Result<(), Fault> {
        let memories: Vec<ProcessedMemory<'_>> =
            ended.iter().flat_map(|ended| processed_memories(ended, prepared)).collect();
        if memories.is_empty() {
            return Ok(());
        }
        let Rows { written, fenced } = self.rows(&memories, prepared).await?;
        let known = memories.iter().filter(|memory| !fenced.contains(&memory.user));
        let obsolete: Vec<SupersededPoints> = known.flat_map(|memory| memory.obsolete(&written)).collect();
        if obsolete.is_empty() {
            return Ok(());
        }
        for collection in &prepared.collections {
            match self.vectors.delete_superseded(&collection.collection_name, &obsolete).await {
                // If the collection was deleted, its points are gone too.
                Ok(()) | Err(VectorError::NoCollection(_)) => {}
                Err(error) => return Err(fault(error)),
            }
        }
        Ok(())
    }

    /// When the current rows of the memories were written.
    async fn rows(&self, memories: &[ProcessedMemory<'_>], prepared: &Prepared) -> Result<Rows, Fault> {
        let keys: Vec<(i32, Uuid)> =
            memories.iter().map(|memory| (memory.user, memory.item.memory)).collect();
        let grants: Vec<&str> = prepared.grants.iter().map(String::as_str).collect();
        match self.written(&keys, &grants).await {
            Err(fault) if fault.kind.refuses_user() => self.written_by_user(&keys, &grants).await,
            written => Ok(Rows { written: written?, fenced: BTreeSet::new() }),
        }
    }

    /// The same for one user after the other, as no context opens with a user whom the database refuses. An erased user has no rows: points that
    /// were stored before the user was fenced would stay.
    async fn written_by_user(&self, keys: &[(i32, Uuid)], grants: &[&str]) -> Result<Rows, Fault> {
        let mut rows = Rows::default();
        for user in keys.iter().map(|(user, _)| *user).collect::<BTreeSet<_>>() {
            let own: Vec<(i32, Uuid)> = keys.iter().filter(|(of, _)| *of == user).copied().collect();
            let grants: Vec<&str> =
                grants.iter().filter(|grant| user_of(grant) == Some(user)).copied().collect();
            match self.written(&own, &grants).await {
                Ok(found) => rows.written.extend(found),
                Err(fault) if fault.kind == FaultKind::Erased => {}
                Err(Fault { kind: FaultKind::Fenced | FaultKind::Restricted { .. }, .. }) => {
                    rows.fenced.insert(user);
                }
                Err(fault) => return Err(fault),
            }
        }
        Ok(rows)
    }

    async fn written(
        &self,
        keys: &[(i32, Uuid)],
        grants: &[&str],
    ) -> Result<HashMap<(i32, Uuid), i64>, Fault> {
        let mut connection = ::store::acquire(&self.pool).await?;
        let rows = connection
            .transaction(async |connection| {
                security::open_context(connection, grants).await?;
                when_written(connection, keys).await
            })
            .await;
        if rows.is_err() {
            ::store::discard(connection);
        }
        rows
    }
}

/// The user of a grant, which the database verifies: `v1|key id|user|…`.
fn user_of(grant: &str) -> Option<i32> {
    grant.split('|').nth(2)?.parse().ok()
}

fn processed_memories<'a>(
    ended: &Ended<'_, VectorItem, Replaced>,
    prepared: &'a Prepared,
) -> Vec<ProcessedMemory<'a>> {
    let works = match Work::of(ended.message) {
        Some(work) => vec![work],
        None => Work::of_tick(ended.message, &prepared.node_requests),
    };
    works.iter().flat_map(|work| memories_of(work, ended, prepared)).collect()
}

fn memories_of<'a>(
    work: &Work<'_>,
    ended: &Ended<'_, VectorItem, Replaced>,
    prepared: &'a Prepared,
) -> Vec<ProcessedMemory<'a>> {
    let (items, before) = match prepared.messages.get(&work.event_id) {
        // A tick may have been committed before, with other nodes.
        Some(Ready::Index(items) | Ready::Remove(items)) => (items, work.is_of_node),
        Some(Ready::AlreadyApplied(items)) => (items, true),
        Some(Ready::MissingPrerequisite(_) | Ready::Rejected(_) | Ready::Denied(_)) | None => {
            return Vec::new();
        }
    };
    let (user, own) = (work.user.get(), work.written());
    // Which memories an earlier delivery of the message replaced is unknown.
    let replacing = |item: &Item| {
        before || item.is_replacing || ended.findings.iter().any(|Replaced(memory)| *memory == item.memory)
    };
    items
        .iter()
        .map(|item| ProcessedMemory {
            user,
            item,
            own,
            committed: ended.committed,
            replacing: replacing(item),
        })
        .collect()
}

impl ProcessedMemory<'_> {
    /// Its superseded points: those written before the row, and the message's own if the row was written by another
    /// message or is missing. Newer points of other messages are kept.
    fn obsolete(&self, rows: &HashMap<(i32, Uuid), i64>) -> Vec<SupersededPoints> {
        let row = rows.get(&(self.user, self.item.memory)).copied();
        let span = |written: std::ops::Range<i64>| SupersededPoints {
            tenant: self.item.tenant.clone(),
            memory: self.item.memory,
            written,
        };
        let mut obsolete = Vec::new();
        if row != Some(self.own) && self.item.points.is_some() {
            obsolete.push(span(self.own..self.own + 1));
        }
        let replacing = self.replacing || row != Some(self.own);
        if let Some(row) = row.filter(|_| self.committed && replacing) {
            obsolete.push(span(0..row));
        }
        obsolete
    }
}
