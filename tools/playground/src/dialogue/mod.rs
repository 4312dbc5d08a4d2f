//! Recorded dialogues, and the requests that a chat service would have published while they were spoken.
//!
//! The shape is that of the Schema-Guided Dialogue data set, reduced to what a memory needs: who speaks, what is
//! said, and for user turns per service the intent and the full state of its slots so far. [`Dialogues`] reads
//! them, one JSON object a line; [`Mapper`] turns each into requests. Both are deterministic: the same file gives
//! the same requests with the same ids, so that loading it twice has no second effect.

mod prepare;
mod read;
mod requests;
mod sample;

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
    /// Who speaks with the assistant. Absent: users take turns.
    #[serde(default)]
    pub user: Option<i32>,
    /// What it is about.
    pub services: Vec<String>,
    /// What is said, in order.
    pub turns: Vec<Turn>,
}

/// Something said.
#[derive(Clone, Debug, Deserialize)]
pub struct Turn {
    /// Who says it.
    pub speaker: Speaker,
    /// What is said.
    pub utterance: String,
    /// What is known after a user's turn, for the services it speaks about.
    #[serde(default)]
    pub frames: Vec<Frame>,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Speaker {
    /// The person.
    User,
    /// The assistant.
    System,
}

/// What is known about one service after a turn.
#[derive(Clone, Debug, Deserialize)]
pub struct Frame {
    /// The service.
    pub service: String,
    /// What the user wants of it; `NONE` for nothing more.
    pub intent: String,
    /// Every slot that has values so far.
    pub slot_values: BTreeMap<String, Vec<String>>,
}

/// The intent of a frame without one.
pub const NO_INTENT: &str = "NONE";

/// Where dialogues come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corpus {
    /// A file in the shape of the Schema-Guided Dialogue data set.
    Sgd,
    /// The sample that is built into this program. It also has devices, feedback and more, so that every kind of
    /// request occurs.
    Sample,
}

impl Corpus {
    /// The name that sessions carry in their metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sgd => "sgd",
            Self::Sample => "sample",
        }
    }

    /// The session of a dialogue.
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
    /// Where: a file and its line, or a dialogue and what of it.
    pub place: String,
    /// What is wrong with it.
    pub problem: String,
}

impl DialogueError {
    fn new(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { place: place.into(), problem: problem.into() }
    }
}
