//! Recorded dialogues, and their mapping to the requests that a chat service would have published.
//!
//! The format is a subset of the Schema-Guided Dialogue data set: speaker, utterance and, for user turns, the intent
//! and current slot values of each service. [`Dialogues`] reads them, one JSON object per line; [`Mapper`] turns each
//! into requests. Both are deterministic: the same file yields the same requests with the same ids, so loading it again
//! has no effect.

mod experts;
mod policies;
mod prepare;
mod read;
mod requests;
mod sample;
mod syncs;

use std::collections::BTreeMap;

use serde::Deserialize;

pub use prepare::Prepared;
pub use read::{Dialogues, LINE_BYTES};
pub use requests::Mapper;
pub use sample::DIALOGUES as SAMPLE;

/// One conversation.
#[derive(Clone, Debug, Deserialize)]
pub struct Dialogue {
    /// Unique in its file; 1 to 120 of `A-Z a-z 0-9 . _ : -`.
    pub dialogue_id: String,
    /// The user. If absent, the mapper assigns one in rotation.
    #[serde(default)]
    pub user: Option<i32>,
    /// The services involved.
    pub services: Vec<String>,
    /// The turns, in order.
    pub turns: Vec<Turn>,
}

/// A turn of a dialogue.
#[derive(Clone, Debug, Deserialize)]
pub struct Turn {
    /// The speaker.
    pub speaker: Speaker,
    /// The text.
    pub utterance: String,
    /// The dialogue state after a user's turn, for each service concerned.
    #[serde(default)]
    pub frames: Vec<Frame>,
}

/// The speaker of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Speaker {
    /// The user.
    User,
    /// The assistant.
    System,
}

/// The dialogue state of one service after a turn.
#[derive(Clone, Debug, Deserialize)]
pub struct Frame {
    /// The service.
    pub service: String,
    /// The user's current intent, or [`NO_INTENT`].
    pub intent: String,
    /// All slots with values so far.
    pub slot_values: BTreeMap<String, Vec<String>>,
}

/// The intent of a frame without one.
pub const NO_INTENT: &str = "NONE";

/// The origin of dialogues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corpus {
    /// A file in the format of the Schema-Guided Dialogue data set.
    Sgd,
    /// The built-in sample. Its mapping adds devices, feedback and more, so that every kind of request occurs.
    Sample,
}

impl Corpus {
    /// The name of the corpus in session metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sgd => "sgd",
            Self::Sample => "sample",
        }
    }

    /// The session id of a dialogue.
    pub fn session_id(self, dialogue_id: &str) -> String {
        match self {
            Self::Sgd => format!("sgd-{dialogue_id}"),
            Self::Sample => dialogue_id.to_owned(),
        }
    }
}

/// A dialogue that cannot be read or turned into requests.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct DialogueError {
    /// The location: a file and line, or a dialogue.
    pub place: String,
    /// The problem.
    pub problem: String,
}

impl DialogueError {
    fn new(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { place: place.into(), problem: problem.into() }
    }
}
