//! What is computed before the transaction opens: the vectors of responses without a claim, and estimates.

use std::collections::HashMap;

use ::store::{Fault, FaultKind};
use contract::{ConsensusRequest, ResponseSubmit};
use embed::{EmbedError, Embedder};
use uuid::Uuid;

use crate::store::reestimate::Estimated;
use crate::{ConsensusItem, Message};

/// How many texts are embedded at a time.
const TEXTS: usize = 32;

/// What has been prepared for a batch.
#[derive(Debug, Default)]
pub struct Prepared {
    model: String,
    /// By the event id of the message.
    vectors: HashMap<Uuid, Vec<f32>>,
    /// Of a tick.
    pub(crate) estimates: Vec<Estimated>,
}

impl Prepared {
    /// The estimates of a tick.
    pub(crate) fn of_estimates(estimates: Vec<Estimated>) -> Self {
        Self { estimates, ..Self::default() }
    }

    /// The vector of a response, and the model that computed it.
    pub(crate) fn vector(&self, event_id: Uuid) -> Option<(&str, &[f32])> {
        self.vectors.get(&event_id).map(|vector| (self.model.as_str(), vector.as_slice()))
    }

    /// Both.
    pub(crate) fn with(mut self, other: Self) -> Self {
        if self.model.is_empty() {
            self.model = other.model;
        }
        self.vectors.extend(other.vectors);
        self.estimates.extend(other.estimates);
        self
    }
}

/// Embeds the responses that have a text and no claim. A text that the embedder refuses is compared by equality alone.
pub(crate) async fn prepare(embedder: Option<&Embedder>, batch: &[&Message]) -> Result<Prepared, Fault> {
    let Some(embedder) = embedder else { return Ok(Prepared::default()) };
    let text = |message: &&Message| {
        let ConsensusItem::Request(ConsensusRequest::ResponseSubmit(request)) = &message.request else {
            return None;
        };
        beginning(embedder, request).map(|text| (message.event_id, text))
    };
    let mut texts: Vec<(Uuid, String)> = batch.iter().filter_map(text).collect();
    let mut prepared = Prepared { model: embedder.model().to_owned(), ..Prepared::default() };
    while !texts.is_empty() {
        let rest = texts.split_off(texts.len().min(TEXTS));
        embed(embedder, texts, &mut prepared.vectors).await?;
        texts = rest;
    }
    Ok(prepared)
}

/// What the model reads of a text at once.
fn beginning(embedder: &Embedder, request: &ResponseSubmit) -> Option<String> {
    if request.claim.is_some() {
        return None;
    }
    let text = request.response_text.as_str();
    let first = embedder.chunks(text).into_iter().next()?;
    text.get(first).map(str::to_owned)
}

async fn embed(
    embedder: &Embedder,
    mut texts: Vec<(Uuid, String)>,
    vectors: &mut HashMap<Uuid, Vec<f32>>,
) -> Result<(), Fault> {
    while !texts.is_empty() {
        match embedder.embed(texts.iter().map(|(_, text)| text.clone()).collect()).await {
            Ok(made) => {
                vectors.extend(texts.iter().map(|(id, _)| *id).zip(made));
                return Ok(());
            }
            Err(EmbedError::Refused(refusal)) if !refusal.texts.is_empty() => {
                let mut place = 0;
                texts.retain(|_| {
                    place += 1;
                    !refusal.texts.contains(&(place - 1))
                });
            }
            // Without the place of a refused text, each is tried by itself.
            Err(EmbedError::Refused(_)) if texts.len() > 1 => {
                for text in texts {
                    Box::pin(embed(embedder, vec![text], vectors)).await?;
                }
                return Ok(());
            }
            Err(EmbedError::Refused(_)) => return Ok(()),
            Err(
                error @ (EmbedError::Unavailable(_) | EmbedError::Misconfigured(_) | EmbedError::Stopped(_)),
            ) => {
                return Err(Fault { kind: FaultKind::Unavailable, reason: error.to_string() });
            }
        }
    }
    Ok(())
}

/// A vector as it is stored: floats of 32 bits, little-endian.
pub(crate) fn to_bytes(vector: &[f32]) -> Vec<u8> {
    vector.iter().flat_map(|component| component.to_le_bytes()).collect()
}

/// The vector that was stored so.
pub(crate) fn from_bytes(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|component| f32::from_le_bytes(*component)).collect()
}
