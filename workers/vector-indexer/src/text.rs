//! The texts of a memory that are embedded and indexed.
//!
//! A turn of a conversation means little by itself: "Yes, on Friday." It is therefore indexed with its speaker and its
//! date. If the preceding text is known, it is embedded twice: by itself, and together with the preceding text
//! (docs/adr/0025).

use chrono::{DateTime, Utc};
use contract::{Memory, Text};
use embed::Embedder;
use sha2::{Digest, Sha256};

/// The texts of a memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Embedded {
    /// The text with its speaker and its date. It is indexed for full-text search and embedded in chunks.
    pub own: String,
    /// The preceding text followed by the text.
    pub in_context: Option<String>,
}

impl Embedded {
    /// The texts of a memory.
    pub fn new(memory: &Memory) -> Self {
        Self::of(
            memory.content_text.as_str(),
            memory.speaker.as_ref().map(Text::as_str),
            memory.preceding_text.as_ref().map(Text::as_str),
            memory.occurred_at,
        )
    }

    /// The texts of a memory from the columns of its row.
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

    /// The hash of the texts, with a length before each one.
    pub fn hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for text in [Some(&self.own), self.in_context.as_ref()].into_iter().flatten() {
            hash.update(u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(text);
        }
        hash.finalize().into()
    }

    /// The chunks to embed, one per point, in order.
    fn pieces(&self, embedder: &Embedder) -> Vec<String> {
        let mut pieces: Vec<String> =
            embedder.chunks(&self.own).into_iter().map(|range| self.own[range].to_owned()).collect();
        if let Some(in_context) = &self.in_context {
            // The text itself is at the end; the beginning of a long preceding text is left out.
            pieces.extend(embedder.chunks(in_context).pop().map(|range| in_context[range].to_owned()));
        }
        pieces
    }
}

/// Splits several memories into chunks, in order. It runs on a blocking thread: a batch of long texts takes seconds,
/// during which the async runtime must answer heartbeats.
///
/// # Panics
/// If the tokenizer panics.
pub(crate) async fn pieces_of(embedder: &Embedder, texts: Vec<Embedded>) -> Vec<Vec<String>> {
    let embedder = embedder.clone();
    let split = move || texts.iter().map(|one| one.pieces(&embedder)).collect();
    match tokio::task::spawn_blocking(split).await {
        Ok(pieces) => pieces,
        // The task cannot have been cancelled, because its handle is not shared.
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}
