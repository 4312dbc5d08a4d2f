use std::collections::{BTreeMap, HashMap, HashSet};

use contract::{
    ChatMode, ContextPut, ContextRemove, ContextType, ConversationPut, Json, List, MessageAdd, MessageRole,
    Name, Priority, ProfilePut, Request, SessionClose, SessionId, SessionOpen, SummaryPut, Text, UserId,
    UserPut, UserRole, UserStatus, VectorIndex, VectorRemove, Version,
};
use serde_json::json;
use uuid::Uuid;

use super::experts;
use super::prepare::{ACCOUNT_SERVICE, Out, Prepared, Slots, id, object};
use super::sample::{self, Person};
use super::{Corpus, Dialogue, DialogueError, Frame, NO_INTENT, Speaker};
use super::{policies, syncs};

/// The dialogue after which the group of experts of the sample works. Its user is known by then.
const EXPERTS_AFTER: u64 = 20;

/// Turns dialogues into requests, in the order of their turns.
pub struct Mapper {
    corpus: Corpus,
    users: u32,
    dialogues: u64,
    people: BTreeMap<i32, Person>,
    /// The latest session of each user so far.
    latest: HashMap<UserId, SessionId>,
    seen: HashSet<Uuid>,
}

impl Mapper {
    /// Maps a corpus. Dialogues without a user are distributed over `users` users.
    ///
    /// # Errors
    /// If the built-in sample cannot be read.
    pub fn new(corpus: Corpus, users: u32) -> Result<Self, DialogueError> {
        let people = match corpus {
            Corpus::Sgd => BTreeMap::new(),
            Corpus::Sample => sample::people()?,
        };
        let (latest, seen) = (HashMap::new(), HashSet::new());
        Ok(Self { corpus, users: users.max(1), dialogues: 0, people, latest, seen })
    }

    /// Number of users so far.
    pub fn users(&self) -> usize {
        self.latest.len()
    }

    /// Maps the next dialogue to requests.
    ///
    /// # Errors
    /// If it violates a limit of the contract, or its id is a duplicate.
    pub fn requests(&mut self, dialogue: &Dialogue) -> Result<Vec<Prepared>, DialogueError> {
        self.map(dialogue).map_err(|problem| {
            let id: String = dialogue.dialogue_id.chars().take(contract::limit::IDENTIFIER_CHARS).collect();
            DialogueError::new(format!("dialogue {id:?}"), problem)
        })
    }

    fn map(&mut self, dialogue: &Dialogue) -> Result<Vec<Prepared>, String> {
        check(dialogue)?;
        if !self.seen.insert(id(&[&dialogue.dialogue_id])) {
            return Err("is a duplicate in the same file".to_owned());
        }
        let user_id = self.user_of(dialogue)?;
        self.dialogues += 1;
        let session_id = SessionId::new(self.corpus.session_id(&dialogue.dialogue_id))?;
        let parent = self.latest.insert(user_id, session_id.clone());
        let mut out = Out::new(self.corpus, user_id);
        if parent.is_none() {
            self.add_account(user_id, &mut out)?;
        }
        let mut mapping = Mapping { dialogue, session_id, memory: Memory::default(), out: &mut out };
        mapping.open(parent)?;
        for at in 0..dialogue.turns.len() {
            mapping.turn(at)?;
        }
        mapping.summarise()?;
        if self.corpus == Corpus::Sample {
            let person = self.people.get(&user_id.get()).map(|person| person.first_name.clone());
            mapping.index_turns(person.as_deref().unwrap_or("user"), self.dialogues)?;
        }
        let Mapping { session_id, memory, .. } = mapping;
        if self.corpus == Corpus::Sample {
            sample::add_follow_ups(dialogue, &session_id, &memory.slots, self.dialogues, &mut out)?;
            if self.dialogues == EXPERTS_AFTER {
                experts::add(&mut out)?;
                syncs::add(&mut out)?;
                policies::add(&mut out)?;
            }
        }
        out.add(Request::SessionClose(SessionClose { session_id }), &[&dialogue.dialogue_id], false)?;
        Ok(out.requests)
    }

    fn user_of(&self, dialogue: &Dialogue) -> Result<UserId, String> {
        let number = match dialogue.user {
            Some(number) => number,
            None => {
                let number = 1 + self.dialogues % u64::from(self.users);
                i32::try_from(number).map_err(|_| format!("there is no user {number}"))?
            }
        };
        match UserId::new(number) {
            Ok(user_id) if user_id != UserId::PLATFORM => Ok(user_id),
            Ok(_) | Err(_) => Err(format!("user is {number}; it must be from 1 to {}", i32::MAX)),
        }
    }

    /// Adds the account records that must exist before a user's first session.
    fn add_account(&self, user_id: UserId, out: &mut Out) -> Result<(), String> {
        let number = user_id.get();
        let known = self.people.get(&number);
        let person = known.cloned().unwrap_or_else(|| Person::generated(number));
        out.service = ACCOUNT_SERVICE;
        let user = UserPut {
            username: Text::new(&person.username)?,
            email: Text::new(&person.email)?,
            password_hash: None,
            role: UserRole::default(),
            status: UserStatus::default(),
        };
        let profile = ProfilePut {
            first_name: Some(Text::new(&person.first_name)?),
            last_name: Some(Text::new(&person.last_name)?),
            timezone: Some(Text::new(&person.timezone)?),
            preferences: object(&person.preferences)?,
        };
        out.add(Request::UserPut(user), &[], true)?;
        out.add(Request::ProfilePut(profile), &[], true)?;
        if self.corpus == Corpus::Sample {
            sample::add_account_details(&person, self.latest.len() == 1, out)?;
        }
        Ok(())
    }
}

/// Checks assumptions of the mapping that the contract does not check.
fn check(dialogue: &Dialogue) -> Result<(), String> {
    for (at, turn) in dialogue.turns.iter().enumerate() {
        let mut services = HashSet::new();
        for frame in &turn.frames {
            let service = &frame.service;
            if !services.insert(service) {
                return Err(format!("turns[{at}] has two frames for {service}"));
            }
            // Context keys are <service>.<slot> and <service>.intent.
            if service.contains('.') || frame.slot_values.contains_key("intent") {
                return Err(format!(
                    "turns[{at}]: a service name must not contain a dot, and no slot may be named intent ({service})"
                ));
            }
        }
    }
    Ok(())
}

/// The dialogue state after a turn.
#[derive(Default)]
struct Memory {
    slots: Slots,
    intents: BTreeMap<String, String>,
    keys: HashSet<String>,
}

/// A dialogue that is being mapped.
struct Mapping<'a> {
    dialogue: &'a Dialogue,
    session_id: SessionId,
    memory: Memory,
    out: &'a mut Out,
}

impl Mapping<'_> {
    fn open(&mut self, parent: Option<SessionId>) -> Result<(), String> {
        let Dialogue { dialogue_id, services, .. } = self.dialogue;
        let chat_mode = if services.len() > 1 { ChatMode::SmartRouter } else { ChatMode::Simple };
        self.out.service = if services.len() > 1 { "smart-router" } else { "simple-chat" };
        let source = self.out.corpus.as_str();
        let session = SessionOpen {
            session_id: self.session_id.clone(),
            chat_mode,
            configuration: object(&json!({ "services": services }))?,
            parent_session_id: parent,
            session_metadata: object(&json!({ "source": source }))?,
        };
        let conversation = ConversationPut {
            conversation_id: self.session_id.clone(),
            summary: None,
            metadata: object(&json!({ "source": source, "session_id": self.session_id.as_str() }))?,
            sensitive: false,
        };
        self.out.add(Request::SessionOpen(session), &[dialogue_id], true)?;
        self.out.add(Request::ConversationPut(conversation), &[dialogue_id], true)
    }

    fn turn(&mut self, at: usize) -> Result<(), String> {
        let Some(turn) = self.dialogue.turns.get(at) else { return Ok(()) };
        let dialogue_id = &self.dialogue.dialogue_id;
        let message = MessageAdd {
            message_id: self.out.message_id(dialogue_id, at),
            conversation_id: self.session_id.clone(),
            role: match turn.speaker {
                Speaker::User => MessageRole::User,
                Speaker::System => MessageRole::Assistant,
            },
            content: Text::new(&turn.utterance)
                .map_err(|problem| format!("turns[{at}].utterance {problem}"))?,
            sent_at: None,
            sensitive: false,
        };
        self.out.add(Request::MessageAdd(message), &[dialogue_id, &at.to_string()], true)?;
        if turn.speaker == Speaker::User {
            for frame in &turn.frames {
                self.frame(at, frame)
                    .map_err(|problem| format!("turns[{at}], service {}: {problem}", frame.service))?;
            }
        }
        Ok(())
    }

    fn frame(&mut self, at: usize, frame: &Frame) -> Result<(), String> {
        let service = &frame.service;
        let before = self.memory.slots.insert(service.clone(), frame.slot_values.clone()).unwrap_or_default();
        for (slot, values) in
            frame.slot_values.iter().filter(|(slot, values)| before.get(*slot) != Some(values))
        {
            let value = serde_json::to_string(values).map_err(|error| error.to_string())?;
            self.put(at, &format!("{service}.{slot}"), value, ContextType::State)?;
        }
        for slot in before.keys().filter(|slot| !frame.slot_values.contains_key(*slot)) {
            self.remove(at, &format!("{service}.{slot}"))?;
        }
        if frame.intent != NO_INTENT && self.memory.intents.get(service) != Some(&frame.intent) {
            self.memory.intents.insert(service.clone(), frame.intent.clone());
            let value = serde_json::to_string(&frame.intent).map_err(|error| error.to_string())?;
            self.put(at, &format!("{service}.intent"), value, ContextType::Conversation)?;
        }
        Ok(())
    }

    fn put(&mut self, at: usize, key: &str, value: String, context_type: ContextType) -> Result<(), String> {
        let context = ContextPut {
            session_id: self.session_id.clone(),
            context_key: Name::new(key)?,
            context_value: Json::new(value).map_err(|problem| format!("{key} {problem}"))?,
            context_type,
            access_level: contract::AccessLevel::default(),
            priority: Priority::new(1)?,
            version: version(at)?,
            expires_at: None,
            is_persistent: false,
            sensitive: false,
        };
        let is_new = self.memory.keys.insert(key.to_owned());
        let parts: [&str; 3] = [&self.dialogue.dialogue_id, &at.to_string(), key];
        self.out.add(Request::ContextPut(context), &parts, is_new)
    }

    fn remove(&mut self, at: usize, key: &str) -> Result<(), String> {
        let context = ContextRemove {
            session_id: self.session_id.clone(),
            context_key: Name::new(key)?,
            version: version(at)?,
        };
        let parts: [&str; 3] = [&self.dialogue.dialogue_id, &at.to_string(), key];
        self.out.add(Request::ContextRemove(context), &parts, false)
    }

    /// Indexes every turn for searches, with its speaker.
    fn index_turns(&mut self, person: &str, dialogues: u64) -> Result<(), String> {
        let dialogue_id = &self.dialogue.dialogue_id;
        let name = |speaker: Speaker| match speaker {
            Speaker::User => person,
            Speaker::System => "assistant",
        };
        let turns = &self.dialogue.turns;
        let memories: Vec<serde_json::Value> = turns
            .iter()
            .enumerate()
            .map(|(at, turn)| {
                json!({ "memory_id": self.out.message_id(dialogue_id, at), "content_text": turn.utterance,
                    "vector_type": match turn.speaker { Speaker::User => "query", Speaker::System => "response" },
                    "speaker": name(turn.speaker), "metadata": { "services": self.dialogue.services.join(" ") } })
            })
            .collect();
        let index = json!({ "session_id": self.session_id.as_str(), "memories": memories });
        let index: VectorIndex = serde_json::from_value(index).map_err(|error| error.to_string())?;
        self.out.add(Request::VectorIndex(index), &[dialogue_id], false)?;
        // Removes the last turn, a goodbye, from the index of some dialogues.
        if dialogues.is_multiple_of(10) {
            let last = self.out.message_id(dialogue_id, turns.len().saturating_sub(1));
            let remove = json!({ "session_id": self.session_id.as_str(), "memory_ids": [last] });
            let remove: VectorRemove = serde_json::from_value(remove).map_err(|error| error.to_string())?;
            self.out.add(Request::VectorRemove(remove), &[dialogue_id], false)?;
        }
        Ok(())
    }

    fn summarise(&mut self) -> Result<(), String> {
        let Dialogue { dialogue_id, services, turns, .. } = self.dialogue;
        let mut text = format!("{} turns about {}.", turns.len(), services.join(", "));
        for (service, slots) in self.memory.slots.iter().filter(|(_, slots)| !slots.is_empty()) {
            let settled: Vec<String> =
                slots.iter().map(|(slot, values)| format!("{slot} is {}", values.join(" or "))).collect();
            text.push_str(&format!(" {service}: {}.", settled.join(", ")));
        }
        let topics: List<Name, 64> =
            serde_json::from_value(json!(services)).map_err(|error| format!("services: {error}"))?;
        let summary = SummaryPut {
            session_id: self.session_id.clone(),
            summary: Text::new(text).map_err(|problem| format!("its summary {problem}"))?,
            key_topics: topics,
            sensitive: false,
        };
        self.out.add(Request::SummaryPut(summary), &[dialogue_id], true)
    }
}

/// The version of contexts set in a turn.
fn version(turn: usize) -> Result<Version, String> {
    Version::new(i64::try_from(turn).unwrap_or(i64::MAX).saturating_add(1))
}
