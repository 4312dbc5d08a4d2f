//! Recovery of a collection that was not closed cleanly.

use std::fs;
use std::io;
use std::path::Path;

use qdrant_edge::{
    Condition, CountRequest, EdgeShard, Filter, HasIdCondition, PointId, PointInsertOperations,
    PointOperations, PointStructPersisted, ScrollRequest, UpdateOperation, VectorStructPersisted,
    WithPayloadInterface, WithVector,
};

use crate::error::Problem;
use crate::files;

/// How many points are read at a time.
const PAGE: usize = 1000;

/// Removes leftovers of the engine: incomplete segments, and the part of its write-ahead log that it never reads.
pub(crate) fn remove_leftovers(folder: &Path) -> Result<(), Problem> {
    let temporary = folder.join("temp_segments");
    files::remove_folder(&temporary).map_err(|source| Problem::file("remove", &temporary, source))?;
    let log = folder.join("wal");
    trim(&log).map_err(|source| Problem::file("trim", &log, source))
}

/// Removes all closed files of the log except the newest. The engine continues its operation numbers from there, and
/// would ignore operations with lower numbers than its points have.
fn trim(log: &Path) -> io::Result<()> {
    let mut closed = Vec::new();
    for found in fs::read_dir(log)? {
        let path = found?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(first) = name.strip_prefix("closed-").and_then(|first| first.parse::<u64>().ok()) {
            closed.push((first, path));
        }
    }
    closed.sort_unstable();
    closed.pop();
    closed.iter().try_for_each(|(_, path)| fs::remove_file(path))
}

/// Removes duplicate points after the optimizer was interrupted between adding a segment and removing the segments that
/// it replaces. The newest copy of each point is written again, and the engine then removes the other copies.
pub(crate) fn remove_duplicates(shard: &EdgeShard) -> Result<(), Problem> {
    let mut offset = None;
    loop {
        let page = ScrollRequest {
            offset,
            limit: Some(PAGE),
            filter: None,
            with_payload: Some(WithPayloadInterface::Bool(false)),
            with_vector: WithVector::Bool(false),
            order_by: None,
        };
        let (records, next) = shard.scroll(page)?;
        let ids: Vec<PointId> = records.iter().map(|record| record.id).collect();
        // The engine counts every copy of a point.
        let filter = Filter::new_must(Condition::HasId(ids.iter().copied().collect::<HasIdCondition>()));
        if shard.count(CountRequest { filter: Some(filter), exact: true })? > ids.len() {
            write_again(shard, &ids)?;
        }
        match next {
            Some(next) => offset = Some(next),
            None => return Ok(()),
        }
    }
}

fn write_again(shard: &EdgeShard, ids: &[PointId]) -> Result<(), Problem> {
    let records =
        shard.retrieve(ids, Some(WithPayloadInterface::Bool(true)), Some(WithVector::Bool(true)))?;
    let points = records.into_iter().filter_map(|record| {
        let vector = VectorStructPersisted::from(record.vector?);
        Some(PointStructPersisted {
            id: record.id,
            vector,
            payload: Some(record.payload.unwrap_or_default()),
        })
    });
    let points = PointInsertOperations::PointsList(points.collect());
    Ok(shard.update(UpdateOperation::PointOperation(PointOperations::UpsertPoints(points)))?)
}
