//! What is computed before the transaction opens: what responses say, the vectors of those without a claim, and estimates.

use std::collections::HashMap;
use std::sync::Arc;

use ::store::{Fault, FaultKind};
use consensus::{InputError, Response, Rules};
use contract::ConsensusRequest;
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
    /// Whether a response abstains, or why it is not taken in, by the event id of the message.
    abstains: HashMap<Uuid, Result<bool, String>>,
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

    /// Whether a response abstains, or why it is not taken in. None if it is not prepared.
    pub(crate) fn abstains(&self, event_id: Uuid) -> Option<Result<bool, &str>> {
        self.abstains.get(&event_id).map(|read| read.as_ref().copied().map_err(String::as_str))
    }

    /// Both.
    pub(crate) fn with(mut self, other: Self) -> Self {
        if self.model.is_empty() {
            self.model = other.model;
        }
        self.vectors.extend(other.vectors);
        self.abstains.extend(other.abstains);
        self.estimates.extend(other.estimates);
        self
    }
}

/// Reads the responses of a batch, and embeds those that have a text and no claim. A text that the embedder refuses is compared by
/// equality alone.
pub(crate) async fn prepare(
    embedder: Option<&Embedder>,
    rules: &Arc<Rules>,
    batch: &[&Message],
) -> Result<Prepared, Fault> {
    let responses: Vec<(Uuid, Response)> = batch.iter().filter_map(|message| response(message)).collect();
    let mut prepared = Prepared::default();
    let mut texts = Vec::new();
    for Read { event_id, abstains, beginning } in read(embedder, rules, responses).await {
        prepared.abstains.insert(event_id, abstains);
        texts.extend(beginning.map(|text| (event_id, text)));
    }
    let Some(embedder) = embedder else { return Ok(prepared) };
    embedder.model().clone_into(&mut prepared.model);
    while !texts.is_empty() {
        let rest = texts.split_off(texts.len().min(TEXTS));
        embed(embedder, texts, &mut prepared.vectors).await?;
        texts = rest;
    }
    Ok(prepared)
}

/// A response as consensus takes it in, as far as it decides whether it is an abstention.
fn response(message: &Message) -> Option<(Uuid, Response)> {
    let ConsensusItem::Request(ConsensusRequest::ResponseSubmit(request)) = &message.request else {
        return None;
    };
    let response = Response {
        id: request.response_id.to_string(),
        text: request.response_text.to_string(),
        claim: request.claim.as_ref().map(|claim| claim.as_str().to_owned()),
        ..Response::default()
    };
    Some((message.event_id, response))
}

/// What is read of a response.
struct Read {
    event_id: Uuid,
    abstains: Result<bool, String>,
    /// What the model reads of its text at once.
    beginning: Option<String>,
}

impl Read {
    fn new(embedder: Option<&Embedder>, rules: &Rules, event_id: Uuid, response: &Response) -> Self {
        let abstains = consensus::abstains(response, rules).map_err(|error| refusal(&error));
        let is_compared = response.claim.is_none() && abstains.is_ok();
        let beginning = embedder.filter(|_| is_compared).and_then(|embedder| {
            let first = embedder.chunks(&response.text).into_iter().next()?;
            response.text.get(first).map(str::to_owned)
        });
        Self { event_id, abstains, beginning }
    }
}

/// Normal forms and tokens of a batch of long texts take seconds. They are computed on a blocking thread, so that the other workers of
/// the process go on, and before the transaction, which must not be idle for as long.
///
/// # Panics
/// If the tokenizer panics.
async fn read(
    embedder: Option<&Embedder>,
    rules: &Arc<Rules>,
    responses: Vec<(Uuid, Response)>,
) -> Vec<Read> {
    if responses.is_empty() {
        return Vec::new();
    }
    let (embedder, rules) = (embedder.cloned(), Arc::clone(rules));
    let read = move || {
        let read = |(id, response): &(Uuid, Response)| Read::new(embedder.as_ref(), &rules, *id, response);
        responses.iter().map(read).collect()
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(read) => read,
        // The task cannot have been cancelled, because its handle is not shared.
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

/// Why a response is not taken in.
fn refusal(error: &InputError) -> String {
    let field = match error {
        InputError::Growth { .. } => "response_text, claim",
        InputError::Claim { .. }
        | InputError::Confidence { .. }
        | InputError::Vector { .. }
        | InputError::TooMany(_)
        | InputError::Dimensions(..) => "claim",
    };
    format!("{field}: {error}")
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::pin::pin;
    use std::task::Poll;

    use chrono::Utc;
    use contract::Tick;
    use runtime::Source;
    use serde_json::json;

    use super::*;

    fn message(text: &str) -> Message {
        let body = json!({ "response_id": Uuid::nil(), "task_id": Uuid::nil(), "session_id": "group", "agent_id": "a",
            "response_text": text });
        let request = serde_json::from_value(body).unwrap();
        let job = "consensus-close".parse().unwrap();
        Message {
            request: ConsensusItem::Request(ConsensusRequest::ResponseSubmit(request)),
            secrets: Vec::new(),
            source: Source::Tick(Tick { job, scheduler: String::new(), stored_at: Utc::now() }),
            request_id: Uuid::now_v7(),
            parent_event_id: None,
            stored_at: Utc::now(),
            sequence: 0,
            event_id: Uuid::now_v7(),
            body: Default::default(),
            is_widened: false,
        }
    }

    /// The only blocking thread is busy, so that nothing is read until it is free.
    #[test]
    fn responses_are_read_on_a_blocking_thread() {
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        let (release, released) = std::sync::mpsc::channel();
        runtime.block_on(async move {
            let busy = tokio::task::spawn_blocking(move || released.recv());
            let rules = Arc::new(Rules::current().unwrap());
            let messages = [message("unknown"), message("The Tagus"), message(&"\u{fdfa}".repeat(50))];
            let batch: Vec<&Message> = messages.iter().collect();
            let mut prepared = pin!(prepare(None, &rules, &batch));
            let poll = |context: &mut std::task::Context<'_>| Poll::Ready(prepared.as_mut().poll(context));
            assert!(std::future::poll_fn(poll).await.is_pending());
            release.send(()).unwrap();
            busy.await.unwrap().unwrap();
            let prepared = prepared.await.unwrap();
            let [silent, answer, long] =
                messages.each_ref().map(|message| prepared.abstains(message.event_id));
            assert_eq!((silent, answer), (Some(Ok(true)), Some(Ok(false))));
            assert!(long.unwrap().unwrap_err().starts_with("response_text, claim: "), "{long:?}");
            assert_eq!(prepared.abstains(Uuid::nil()), None);
        });
    }
}
