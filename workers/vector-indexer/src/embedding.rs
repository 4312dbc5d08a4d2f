//! Vectors of texts and their points, and which texts have none.

use std::collections::{BTreeMap, HashMap};

use ::store::{Fault, FaultKind};
use embed::{EmbedError, Embedder};
use uuid::Uuid;
use vectors::{Point, PointKey, Tenant, chunk_ids};

/// The vectors of a memory in one collection, one for each point.
pub(crate) type Made = Vec<Vec<f32>>;

/// The points of a memory, of which this is the first one's id.
pub(crate) fn points_of(
    first: Uuid,
    made: Made,
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

/// The vectors of memories, of which these are the users and the pieces. The same piece of one user is embedded once. Texts of other
/// users are never asked for: how long it takes would tell that they are there. A memory whose text the embedder refuses has the
/// reason instead.
pub(crate) async fn embed_each(
    embedder: &Embedder,
    memories: Vec<(i32, Vec<String>)>,
) -> Result<Vec<Result<Made, String>>, Fault> {
    let mut texts: Vec<String> = Vec::new();
    let mut known: HashMap<(i32, String), usize> = HashMap::new();
    let mut place_of = |user: i32, piece: String| {
        *known.entry((user, piece)).or_insert_with_key(|(_, piece)| {
            texts.push(piece.clone());
            texts.len() - 1
        })
    };
    let places: Vec<Vec<usize>> = memories
        .into_iter()
        .map(|(user, pieces)| pieces.into_iter().map(|piece| place_of(user, piece)).collect())
        .collect();
    let made = embed_all(embedder, texts).await?;
    Ok(places
        .into_iter()
        .map(|places| places.into_iter().map(|place| made[place].clone()).collect())
        .collect())
}

/// A vector for each text, or why there is none.
async fn embed_all(embedder: &Embedder, texts: Vec<String>) -> Result<Vec<Result<Vec<f32>, String>>, Fault> {
    let mut made: BTreeMap<usize, Result<Vec<f32>, String>> = BTreeMap::new();
    let mut open: Vec<usize> = (0..texts.len()).collect();
    // Each round but the last finds at least one text that is at fault.
    while !open.is_empty() {
        let some: Vec<String> = open.iter().map(|&place| texts[place].clone()).collect();
        match embedder.embed(some).await {
            Ok(vectors) => {
                made.extend(open.drain(..).zip(vectors.into_iter().map(Ok)));
                break;
            }
            Err(EmbedError::Unavailable(reason) | EmbedError::Misconfigured(reason)) => {
                return Err(away(&reason));
            }
            Err(EmbedError::Refused(refusal)) => {
                let reason = format!("the embedder refuses the text: {}", refusal.reason);
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

pub(crate) fn away(reason: &str) -> Fault {
    Fault { kind: FaultKind::Unavailable, reason: reason.to_owned() }
}
