//! Embedding of memories.

use std::collections::{BTreeSet, HashMap};

use embed::{EmbedError, Embedder};
use uuid::Uuid;
use vectors::{Point, PointKey, Tenant, chunk_ids};

use crate::suspicion::{Trouble, unavailable};

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

/// The chunks of a memory.
pub(crate) struct ToEmbed {
    pub(crate) user: i32,
    /// Memories of a group take effect together. If a text of one is rejected, no more texts of the group are embedded.
    pub(crate) group: usize,
    pub(crate) pieces: Vec<String>,
}

/// Why a memory has no vectors.
#[derive(Clone, Debug)]
pub(crate) enum Unembedded {
    /// The embedder rejects one of its texts, for this reason.
    Rejected(String),
    /// A text of its group was rejected before.
    Skipped,
}

/// The texts of a call, each with the groups that need it.
#[derive(Default)]
struct Texts {
    texts: Vec<String>,
    groups: Vec<BTreeSet<usize>>,
}

/// Embeds the chunks of memories. Equal chunks of a user are embedded once. Chunks of different users are never shared,
/// because the response time would reveal that another user has the same text.
pub(crate) async fn embed_each(
    embedder: &Embedder,
    memories: Vec<ToEmbed>,
) -> Result<Vec<Result<MemoryVectors, Unembedded>>, Trouble> {
    let mut texts = Texts::default();
    let mut known: HashMap<(i32, String), usize> = HashMap::new();
    let mut index_of = |user: i32, group: usize, piece: String| {
        let index = *known.entry((user, piece)).or_insert_with_key(|(_, piece)| {
            texts.texts.push(piece.clone());
            texts.groups.push(BTreeSet::new());
            texts.texts.len() - 1
        });
        texts.groups[index].insert(group);
        index
    };
    let places: Vec<Vec<usize>> = memories
        .into_iter()
        .map(|ToEmbed { user, group, pieces }| {
            pieces.into_iter().map(|piece| index_of(user, group, piece)).collect()
        })
        .collect();
    let made = embed_all(embedder, texts).await?;
    let vectors_of = |places: Vec<usize>| {
        let rejected = places.iter().find_map(|&place| match &made[place] {
            Err(rejected @ Unembedded::Rejected(_)) => Some(rejected.clone()),
            Ok(_) | Err(Unembedded::Skipped) => None,
        });
        match rejected {
            Some(rejected) => Err(rejected),
            None => places.into_iter().map(|place| made[place].clone()).collect(),
        }
    };
    Ok(places.into_iter().map(vectors_of).collect())
}

/// A vector for each text, or why there is none.
async fn embed_all(
    embedder: &Embedder,
    Texts { texts, groups }: Texts,
) -> Result<Vec<Result<Vec<f32>, Unembedded>>, Trouble> {
    let mut made: Vec<Result<Vec<f32>, Unembedded>> = vec![Err(Unembedded::Skipped); texts.len()];
    let mut open: Vec<usize> = (0..texts.len()).collect();
    let mut rejected_groups: BTreeSet<usize> = BTreeSet::new();
    // Each round except the last finds at least one rejected text.
    while !open.is_empty() {
        let some: Vec<String> = open.iter().map(|&place| texts[place].clone()).collect();
        let refusal = match embedder.embed(some).await {
            Ok(vectors) => {
                for (place, vector) in open.drain(..).zip(vectors) {
                    made[place] = Ok(vector);
                }
                break;
            }
            Err(error @ EmbedError::Stopped(_)) => return Err(Trouble::Suspected(error.to_string())),
            Err(error @ (EmbedError::Unavailable(_) | EmbedError::Misconfigured(_))) => {
                return Err(unavailable(&error.to_string()).into());
            }
            Err(EmbedError::Refused(refusal)) => refusal,
        };
        let refused: Vec<usize> = refusal.texts.iter().filter_map(|&at| open.get(at).copied()).collect();
        // Without the index of a rejected text, any may be meant.
        let refused = if refused.is_empty() { open.clone() } else { refused };
        for place in refused {
            rejected_groups.extend(&groups[place]);
            made[place] = Err(Unembedded::Rejected(refusal.reason.clone()));
        }
        open.retain(|&place| {
            let is_rejected = matches!(made[place], Err(Unembedded::Rejected(_)));
            !is_rejected && !groups[place].is_subset(&rejected_groups)
        });
    }
    Ok(made)
}
