//! Embedding of memories.

use std::collections::{BTreeMap, HashMap};

use ::store::{Fault, FaultKind};
use embed::{EmbedError, Embedder};
use uuid::Uuid;
use vectors::{Point, PointKey, Tenant, chunk_ids};

/// The vectors of a memory in a collection, one per point.
pub(crate) type MemoryVectors = Vec<Vec<f32>>;

/// The points of a memory. `first` is the id of the first one.
pub(crate) fn points_of(
    first: Uuid,
    made: MemoryVectors,
    tenant: &Tenant,
    key: &PointKey,
) -> impl Iterator<Item = Point> {
    chunk_ids(first, made.len()).zip(made).map(move |(id, vector)| Point {
        id,
        vector,
        tenant: tenant.clone(),
        key: key.clone(),
    })
}

/// Embeds the chunks of memories, given with their users. Equal chunks of a user are embedded once. Chunks of different
/// users are never shared, because the response time would reveal that another user has the same text. For a memory
/// with a text that the embedder rejects, the result is the reason.
pub(crate) async fn embed_each(
    embedder: &Embedder,
    memories: Vec<(i32, Vec<String>)>,
) -> Result<Vec<Result<MemoryVectors, String>>, Fault> {
    let mut texts: Vec<String> = Vec::new();
    let mut known: HashMap<(i32, String), usize> = HashMap::new();
    let mut index_of = |user: i32, piece: String| {
        *known.entry((user, piece)).or_insert_with_key(|(_, piece)| {
            texts.push(piece.clone());
            texts.len() - 1
        })
    };
    let places: Vec<Vec<usize>> = memories
        .into_iter()
        .map(|(user, pieces)| pieces.into_iter().map(|piece| index_of(user, piece)).collect())
        .collect();
    let made = embed_all(embedder, texts).await?;
    Ok(places
        .into_iter()
        .map(|places| places.into_iter().map(|place| made[place].clone()).collect())
        .collect())
}

/// A vector for each text, or the reason why the embedder rejects it.
async fn embed_all(embedder: &Embedder, texts: Vec<String>) -> Result<Vec<Result<Vec<f32>, String>>, Fault> {
    let mut made: BTreeMap<usize, Result<Vec<f32>, String>> = BTreeMap::new();
    let mut open: Vec<usize> = (0..texts.len()).collect();
    // Each round except the last finds at least one rejected text.
    while !open.is_empty() {
        let some: Vec<String> = open.iter().map(|&place| texts[place].clone()).collect();
        match embedder.embed(some).await {
            Ok(vectors) => {
                made.extend(open.drain(..).zip(vectors.into_iter().map(Ok)));
                break;
            }
            Err(EmbedError::Unavailable(reason) | EmbedError::Misconfigured(reason)) => {
                return Err(unavailable(&reason));
            }
            Err(EmbedError::Refused(refusal)) => {
                let reason = format!("the embedder rejects the text: {}", refusal.reason);
                let refused: Vec<usize> =
                    refusal.texts.iter().filter_map(|&at| open.get(at).copied()).collect();
                if refused.is_empty() {
                    made.extend(open.drain(..).map(|place| (place, Err(reason.clone()))));
                }
                open.retain(|place| !refused.contains(place));
                made.extend(refused.into_iter().map(|place| (place, Err(reason.clone()))));
            }
        }
    }
    Ok(made.into_values().collect())
}

/// A fault that puts the batch on hold.
pub(crate) fn unavailable(reason: &str) -> Fault {
    Fault { kind: FaultKind::Unavailable, reason: reason.to_owned() }
}
