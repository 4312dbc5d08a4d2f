//! Conversations with questions in the format of the LoCoMo data set, one per file.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use contract::{SessionId, VectorIndex, limit};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use uuid::Uuid;

/// A conversation of two people, and questions about it.
pub(super) struct Conversation {
    /// The file name without its extension.
    pub(super) name: String,
    pub(super) sessions: Vec<Session>,
    /// The questions that turns of the conversation answer.
    pub(super) questions: Vec<Question>,
}

/// A session of a conversation.
pub(super) struct Session {
    pub(super) id: SessionId,
    /// The requests that index its turns.
    pub(super) indexes: Vec<VectorIndex>,
}

pub(super) struct Question {
    pub(super) text: String,
    /// The memories that answer it, at least one.
    pub(super) evidence: HashSet<Uuid>,
}

#[derive(Deserialize)]
struct Turn {
    speaker: String,
    dia_id: String,
    text: String,
    /// The caption of an attached photo.
    #[serde(default)]
    blip_caption: Option<String>,
}

#[derive(Deserialize)]
struct QuestionAndEvidence {
    question: String,
    #[serde(default)]
    evidence: Vec<String>,
}

/// Maximum number of memories per request.
const MAX_MEMORIES: usize = 100;
/// Number of preceding turns that are added to a turn as context.
const PRECEDING_TURNS: usize = 2;

/// Reads every `*.json` of a folder, sorted by name.
pub(super) fn read(folder: &Path) -> anyhow::Result<Vec<Conversation>> {
    let unreadable = || format!("the folder {} cannot be read", folder.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            files.push(path);
        }
    }
    ensure!(!files.is_empty(), "the folder {} has no file *.json", folder.display());
    files.sort();
    let read =
        |file: &PathBuf| conversation(file).with_context(|| format!("invalid file {}", file.display()));
    files.iter().map(read).collect()
}

fn conversation(file: &Path) -> anyhow::Result<Conversation> {
    let bytes = fs::read(file).context("cannot read it")?;
    let mut parts: BTreeMap<String, Value> =
        serde_json::from_slice(&bytes).context("it is not one JSON object")?;
    let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    // Sorted numerically, so that session_10 comes after session_2.
    let mut numbers: Vec<u32> =
        parts.keys().filter_map(|key| key.strip_prefix("session_")?.parse().ok()).collect();
    numbers.sort_unstable();
    ensure!(!numbers.is_empty(), "it has no session_1");
    let (mut sessions, mut known) = (Vec::new(), HashMap::new());
    for number in numbers {
        let key = format!("session_{number}");
        let turns: Vec<Turn> = take(&mut parts, &key)?;
        let began: String = take(&mut parts, &format!("{key}_date_time"))?;
        for turn in &turns {
            let before = known.insert(turn.dia_id.clone(), memory_id(&name, &turn.dia_id));
            ensure!(before.is_none(), "it has the dia_id {:?} twice", turn.dia_id);
        }
        sessions.push(session(&name, number, &turns, &began).context(key)?);
    }
    let asked: Vec<QuestionAndEvidence> = take(&mut parts, "qa")?;
    let questions = asked.into_iter().filter_map(|asked| {
        let ids = asked.evidence.iter().flat_map(|text| ids_in(text));
        let evidence: HashSet<Uuid> = ids.filter_map(|id| known.get(&id).copied()).collect();
        (!evidence.is_empty()).then_some(Question { text: asked.question, evidence })
    });
    Ok(Conversation { questions: questions.collect(), name, sessions })
}

fn take<T: DeserializeOwned>(parts: &mut BTreeMap<String, Value>, key: &str) -> anyhow::Result<T> {
    let value = parts.remove(key).with_context(|| format!("it has no {key}"))?;
    serde_json::from_value(value).with_context(|| format!("its {key} does not have the format of LoCoMo"))
}

/// The memory id of a turn, derived from the conversation and the turn's id.
fn memory_id(conversation: &str, dia_id: &str) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{conversation}\u{1f}{dia_id}").as_bytes())
}

fn session(name: &str, number: u32, turns: &[Turn], began: &str) -> anyhow::Result<Session> {
    let id = SessionId::new(format!("session-{number}")).map_err(anyhow::Error::msg)?;
    let began = spoken_at(began)?;
    let mut memories = Vec::with_capacity(turns.len());
    for (at, turn) in turns.iter().enumerate() {
        // Only the start of a session is known; adding one second per turn keeps the turns in order.
        let later = i64::try_from(at).ok().and_then(TimeDelta::try_seconds);
        let occurred_at =
            later.and_then(|later| began.checked_add_signed(later)).context("it is too long")?;
        memories.push(json!({
            "memory_id": memory_id(name, &turn.dia_id),
            "vector_type": "context",
            "content_text": said(turn),
            "speaker": turn.speaker,
            "preceding_text": preceding(&turns[at.saturating_sub(PRECEDING_TURNS)..at]),
            "metadata": { "dia_id": turn.dia_id },
            "occurred_at": occurred_at,
        }));
    }
    let index = |memories: &[Value]| {
        let index = json!({ "session_id": id.as_str(), "memories": memories });
        serde_json::from_value::<VectorIndex>(index).context("a turn exceeds the limits of a memory")
    };
    let indexes: Vec<VectorIndex> =
        memories.chunks(MAX_MEMORIES).map(index).collect::<anyhow::Result<_>>()?;
    Ok(Session { id, indexes })
}

/// Parses a time. The data set has no time zones; all times are taken as UTC.
fn spoken_at(text: &str) -> anyhow::Result<DateTime<Utc>> {
    NaiveDateTime::parse_from_str(text, "%I:%M %p on %d %B, %Y")
        .map(|at| at.and_utc())
        .with_context(|| format!("{text:?} is not a time such as \"1:56 pm on 8 May, 2023\""))
}

fn said(turn: &Turn) -> String {
    match &turn.blip_caption {
        Some(caption) => format!("{} [photo: {caption}]", turn.text),
        None => turn.text.clone(),
    }
}

/// The turns as lines, truncated at the start if too long; `None` without turns.
fn preceding(turns: &[Turn]) -> Option<String> {
    let lines: Vec<String> = turns.iter().map(|turn| format!("{}: {}", turn.speaker, said(turn))).collect();
    let text = lines.join("\n");
    let over = text.chars().count().saturating_sub(limit::PRECEDING_CHARS);
    (!text.is_empty()).then(|| text.chars().skip(over).collect())
}

/// The turn ids in a text, normalized. The data set has several ids in one text, superfluous colons and leading zeros.
fn ids_in(text: &str) -> Vec<String> {
    let id = |rest: &str| {
        let (session, rest) = number(rest.strip_prefix(':').unwrap_or(rest))?;
        let (turn, _) = number(rest.strip_prefix(':')?)?;
        Some(format!("D{session}:{turn}"))
    };
    text.split('D').skip(1).filter_map(id).collect()
}

/// The number at the start of a text, and the rest.
fn number(text: &str) -> Option<(u32, &str)> {
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_normalized() {
        assert_eq!(ids_in("D8:6; D9:17"), ["D8:6", "D9:17"]);
        assert_eq!(ids_in("D:11:26 D30:05"), ["D11:26", "D30:5"]);
        assert_eq!(ids_in("D"), Vec::<String>::new());
        assert_eq!(ids_in("3:4 D5 D:6 D7: D:x:1"), Vec::<String>::new());
    }

    #[test]
    fn times_are_parsed() {
        let read = |text| spoken_at(text).ok().map(|at| at.to_rfc3339());
        assert_eq!(read("1:56 pm on 8 May, 2023").as_deref(), Some("2023-05-08T13:56:00+00:00"));
        assert_eq!(read("12:09 am on 13 September, 2023").as_deref(), Some("2023-09-13T00:09:00+00:00"));
        assert_eq!(read("8 May, 2023"), None);
    }

    #[test]
    fn a_folder_that_is_missing_is_named() {
        let error = read(Path::new("/nowhere/at/all")).err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), Some("the folder /nowhere/at/all cannot be read"));
    }
}
