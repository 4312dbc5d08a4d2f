//! What of a memory is embedded, and what its words are.
//!
//! A turn of a conversation says little alone: "Yes, on Friday." So its words are kept with who said it and when, and it is embedded
//! twice if what was said before is known: by itself, and with that (docs/adr/0025).

use chrono::{DateTime, Utc};
use contract::{Memory, Text};
use embed::Embedder;
use sha2::{Digest, Sha256};

/// The texts of a memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Embedded {
    /// The text with its speaker and its date: what is found by words, and embedded piece by piece.
    pub own: String,
    /// The text after what was said before it.
    pub in_context: Option<String>,
}

impl Embedded {
    /// The texts of a memory that was said then.
    pub fn new(memory: &Memory) -> Self {
        Self::of(
            memory.content_text.as_str(),
            memory.speaker.as_ref().map(Text::as_str),
            memory.preceding_text.as_ref().map(Text::as_str),
            memory.occurred_at,
        )
    }

    /// The same of its parts, as a row has them.
    pub fn of(
        text: &str,
        speaker: Option<&str>,
        preceding: Option<&str>,
        said_at: Option<DateTime<Utc>>,
    ) -> Self {
        let date = said_at.map(|time| time.format("%-d %B %Y").to_string());
        let own = match (speaker, date) {
            (Some(speaker), Some(date)) => format!("{speaker} ({date}): {text}"),
            (Some(speaker), None) => format!("{speaker}: {text}"),
            (None, Some(date)) => format!("({date}) {text}"),
            (None, None) => text.to_owned(),
        };
        let in_context = preceding.map(|preceding| match speaker {
            Some(speaker) => format!("{preceding}\n{speaker}: {text}"),
            None => format!("{preceding}\n{text}"),
        });
        Self { own, in_context }
    }

    /// The same texts have the same hash, and no others have.
    pub fn hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for text in [Some(&self.own), self.in_context.as_ref()].into_iter().flatten() {
            hash.update(u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(text);
        }
        hash.finalize().into()
    }

    /// The pieces that an embedder makes vectors of, one for each point, in their order.
    fn pieces(&self, embedder: &Embedder) -> Vec<String> {
        let mut pieces: Vec<String> =
            embedder.chunks(&self.own).into_iter().map(|range| self.own[range].to_owned()).collect();
        if let Some(in_context) = &self.in_context {
            // The text itself comes last; what does not fit is what came long before.
            pieces.extend(embedder.chunks(in_context).pop().map(|range| in_context[range].to_owned()));
        }
        pieces
    }
}

/// The pieces of several memories, for each of them in order. Found on a thread that may be kept busy: a batch of long texts takes
/// seconds, in which the runtime has heartbeats to answer.
///
/// # Panics
/// If the tokenizer does.
pub(crate) async fn pieces_of(embedder: &Embedder, texts: Vec<Embedded>) -> Vec<Vec<String>> {
    let embedder = embedder.clone();
    let split = move || texts.iter().map(|one| one.pieces(&embedder)).collect();
    match tokio::task::spawn_blocking(split).await {
        Ok(pieces) => pieces,
        // It cannot be cancelled: nobody has its handle.
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}
