//! Requests that the built-in sample adds to its dialogues, so that every kind of request occurs.

use std::collections::BTreeMap;

use contract::{
    AgentContextPut, AgentContextRemove, DevicePut, DeviceRemove, DeviceType, FeedbackPut, FeedbackType,
    Json, MemoryTier, Name, PasskeyPut, PasskeyRemove, Request, SecondFactorPut, SecondFactorRemove,
    SessionId, SettingPut, SettingRemove, Text, ToolPhase, ToolReport, UserId, Version,
};
use contract::{Bounded, SecondFactorMethod, SecurityLevel};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::prepare::{Out, Slots, id};
use super::{Dialogue, DialogueError, Speaker};

/// The dialogues, as JSON Lines.
pub const DIALOGUES: &[u8] = include_bytes!("../../sample/dialogues.jsonl");
const PEOPLE: &str = include_str!("../../sample/users.jsonl");

/// A user.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Person {
    pub(super) user_id: i32,
    pub(super) username: String,
    pub(super) email: String,
    pub(super) first_name: String,
    pub(super) last_name: String,
    pub(super) timezone: String,
    pub(super) preferences: Value,
}

impl Person {
    /// Generated account data for a user of which only the id is known.
    pub(super) fn generated(number: i32) -> Self {
        const ZONES: [&str; 4] = ["America/Los_Angeles", "Europe/Berlin", "Asia/Kolkata", "Africa/Lagos"];
        let zone = usize::try_from(number).ok().and_then(|number| ZONES.get(number % ZONES.len()));
        Self {
            user_id: number,
            username: format!("user-{number}"),
            email: format!("user-{number}@example.org"),
            first_name: "User".to_owned(),
            last_name: number.to_string(),
            timezone: zone.copied().unwrap_or("Etc/UTC").to_owned(),
            preferences: json!({ "language": "en" }),
        }
    }
}

/// The users of the sample, by user id.
pub(super) fn people() -> Result<BTreeMap<i32, Person>, DialogueError> {
    let people = serde_json::Deserializer::from_str(PEOPLE).into_iter::<Person>();
    people
        .map(|person| person.map(|person| (person.user_id, person)))
        .collect::<Result<_, _>>()
        .map_err(|error| DialogueError::new("the sample's users", error.to_string()))
}

/// Adds settings, devices and credentials of a user, and with the first user also the platform's settings.
pub(super) fn add_account_details(person: &Person, is_first: bool, out: &mut Out) -> Result<(), String> {
    if is_first {
        let user_id = std::mem::replace(&mut out.user_id, UserId::PLATFORM);
        setting(out, "summary.max_words", &json!(120))?;
        setting(out, "modes.enabled", &json!(["simple", "smart-router"]))?;
        out.user_id = user_id;
    }
    let language = person.preferences.get("language").cloned().unwrap_or_else(|| json!("en"));
    setting(out, "language", &language)?;
    // A sensitive setting, which is stored encrypted.
    sensitive_setting(out, "emergency.contact", &json!(format!("no-telephone-of-{}", person.user_id)))?;
    if person.user_id % 4 == 0 {
        setting(out, "trial.banner", &json!(true))?;
        let removed = SettingRemove { setting_key: Name::new("trial.banner")? };
        out.add(Request::SettingRemove(removed), &["trial.banner"], false)?;
    }
    devices(person, out)?;
    credentials(person, out)
}

fn setting(out: &mut Out, key: &str, value: &Value) -> Result<(), String> {
    put_setting(out, key, value, false)
}

fn sensitive_setting(out: &mut Out, key: &str, value: &Value) -> Result<(), String> {
    put_setting(out, key, value, true)
}

fn put_setting(out: &mut Out, key: &str, value: &Value, sensitive: bool) -> Result<(), String> {
    let setting_value = Json::new(value.to_string())?;
    let setting = SettingPut { setting_key: Name::new(key)?, setting_value, sensitive };
    out.add(Request::SettingPut(setting), &[key], true)
}

fn devices(person: &Person, out: &mut Out) -> Result<(), String> {
    let number = person.user_id.to_string();
    let mut register = |name: &str, device_type| {
        let device_id = id(&["device", &number, name]);
        let device = DevicePut {
            device_id,
            device_name: Text::new(format!("{}'s {name}", person.first_name))?,
            device_type,
            security_level: SecurityLevel::Trusted,
            last_seen_at: None,
        };
        out.add(Request::DevicePut(device), &[name], true).map(|()| device_id)
    };
    register("phone", DeviceType::Phone)?;
    if person.user_id % 3 == 0 {
        let device_id = register("old tablet", DeviceType::Tablet)?;
        out.add(Request::DeviceRemove(DeviceRemove { device_id }), &["old tablet"], false)?;
    }
    Ok(())
}

/// Adds credentials. They are placeholders and not valid anywhere.
fn credentials(person: &Person, out: &mut Out) -> Result<(), String> {
    let number = person.user_id;
    if number % 3 == 1 {
        let codes = json!([format!("no-code-1-of-{number}"), format!("no-code-2-of-{number}")]);
        let factor = SecondFactorPut {
            method: SecondFactorMethod::Totp,
            secret_key: read(json!(format!("no-secret-of-{number}")))?,
            backup_codes: read(codes)?,
            is_enabled: true,
        };
        out.add(Request::SecondFactorPut(factor), &["totp"], true)?;
    }
    if number % 6 == 1 {
        let factor = SecondFactorPut {
            method: SecondFactorMethod::Sms,
            secret_key: read(json!(format!("no-number-of-{number}")))?,
            backup_codes: read(json!([]))?,
            is_enabled: false,
        };
        out.add(Request::SecondFactorPut(factor), &["sms"], true)?;
        let removed = SecondFactorRemove { method: SecondFactorMethod::Sms };
        out.add(Request::SecondFactorRemove(removed), &["sms"], false)?;
    }
    if number % 3 == 2 {
        passkey(number, "phone", out)?;
    }
    if number % 6 == 2 {
        let credential_id = passkey(number, "lost-key", out)?;
        out.add(Request::PasskeyRemove(PasskeyRemove { credential_id }), &["lost-key"], false)?;
    }
    Ok(())
}

fn passkey(number: i32, name: &str, out: &mut Out) -> Result<Text<1, 1400>, String> {
    let credential_id = Text::new(format!("no-credential-{name}-of-{number}"))?;
    let passkey = PasskeyPut {
        credential_id: credential_id.clone(),
        public_key: read(json!(format!("no-key-{name}-of-{number}")))?,
        sign_count: Bounded::new(i64::from(number))?,
        passkey_name: Some(Text::new(name)?),
    };
    out.add(Request::PasskeyPut(passkey), &[name], true)?;
    Ok(credential_id)
}

/// Adds feedback, routing decisions and agent contexts that follow a dialogue. `number` counts the dialogues from 1.
pub(super) fn add_follow_ups(
    dialogue: &Dialogue,
    session_id: &SessionId,
    settled: &Slots,
    number: u64,
    out: &mut Out,
) -> Result<(), String> {
    feedback(dialogue, number, out)?;
    if dialogue.services.len() > 1 {
        routes(dialogue, session_id, out)?;
    }
    if dialogue.services.len() > 1 || number.is_multiple_of(4) {
        agents(dialogue, session_id, settled, out)?;
    }
    Ok(())
}

/// Adds a routing decision for each user turn: to one tool per service concerned, or to a direct answer. The figures
/// are derived from the turn, so they are the same in every run.
fn routes(dialogue: &Dialogue, session_id: &SessionId, out: &mut Out) -> Result<(), String> {
    let spoken = dialogue.turns.iter().enumerate().filter(|(_, turn)| turn.speaker == Speaker::User);
    for (at, turn) in spoken {
        let (turn_id, user) = (at.to_string(), out.user_id.to_string());
        let parts = [dialogue.dialogue_id.as_str(), &turn_id];
        let decision_id = id(&["sample", &user, "decision", parts[0], parts[1]]);
        let tools: Vec<String> =
            turn.frames.iter().map(|frame| format!("{}.search", frame.service.to_lowercase())).collect();
        let slots: usize = turn.frames.iter().map(|frame| frame.slot_values.len()).sum();
        let time = turn.utterance.len() * 7 + slots * 40 + tools.len() * 180;
        let fails = (at + turn.utterance.len()).is_multiple_of(17) && !tools.is_empty();
        for tool in &tools {
            let call_id = id(&["sample", &user, "call", parts[0], parts[1], tool]);
            let ended = if fails { ToolPhase::Failed } else { ToolPhase::Succeeded };
            for (phase, name) in [(ToolPhase::Requested, "requested"), (ended, "ended")] {
                let report = ToolReport {
                    session_id: session_id.clone(),
                    tool: Text::new(tool)?,
                    call_id,
                    phase,
                    decision_id: Some(decision_id),
                    processing_time_ms: None,
                    detail: None,
                };
                out.add(Request::ToolReport(report), &[parts[0], parts[1], tool, name], false)?;
            }
        }
        let route = if tools.is_empty() { "direct" } else { "tools" };
        let (services, failed) = (dialogue.services.len() as f64, json!({ "reason": "no answer in time" }));
        let decision = json!({
            "decision_id": decision_id, "session_id": session_id, "user_request": turn.utterance,
            "routing_decision": { "route": route, "services": turn.frames.iter().map(|frame| &frame.service).collect::<Vec<_>>() },
            "tools_invoked": tools, "complexity_score": (slots as f64 / 12.0).min(1.0),
            "confidence_score": 1.0 - (services - 1.0) / 10.0, "processing_time_ms": time, "tokens_used": turn.utterance.len() / 4 + 60,
            "model_used": if slots > 4 { "large" } else { "small" }, "success": !fails,
            "error_details": if fails { failed } else { Value::Null },
        });
        out.add(Request::DecisionLog(read(decision)?), &parts, true)?;
    }
    Ok(())
}

/// Adds a rating of the last answer, and for some dialogues a correction of the first one.
fn feedback(dialogue: &Dialogue, number: u64, out: &mut Out) -> Result<(), String> {
    let mut answers = dialogue
        .turns
        .iter()
        .enumerate()
        .filter(|(_, turn)| turn.speaker == Speaker::System)
        .map(|(at, _)| at);
    let (first, last) = (answers.next(), answers.next_back());
    if let Some(at) = last {
        let stars = i64::try_from(number % 3).unwrap_or(0) + 3;
        let rating = Some(Bounded::new(if number.is_multiple_of(7) { -2 } else { stars })?);
        add_feedback(dialogue, at, FeedbackType::Rating, rating, None, out)?;
    }
    if let Some(at) = first.filter(|_| number.is_multiple_of(7)) {
        let comment = Some(Text::new("You asked for something that I had already told you.")?);
        add_feedback(dialogue, at, FeedbackType::Correction, None, comment, out)?;
    }
    Ok(())
}

fn add_feedback(
    dialogue: &Dialogue,
    at: usize,
    feedback_type: FeedbackType,
    rating: Option<Bounded<-5, 5>>,
    comment: Option<Text<1, 8192>>,
    out: &mut Out,
) -> Result<(), String> {
    let message_id = out.message_id(&dialogue.dialogue_id, at);
    let feedback = FeedbackPut { message_id, feedback_type, rating, comment, sensitive: false };
    let parts: [&str; 3] = [&dialogue.dialogue_id, &at.to_string(), feedback_type.as_str()];
    out.add(Request::FeedbackPut(feedback), &parts, true)
}

/// Adds contexts of a planner agent: a private note, which is removed again, shared slot values, and consensus topics.
fn agents(dialogue: &Dialogue, session_id: &SessionId, settled: &Slots, out: &mut Out) -> Result<(), String> {
    let open = dialogue.services.iter().filter(|service| !settled.contains_key(*service)).count();
    let memories = [
        (MemoryTier::Private, "note", json!({ "services_without_slots": open })),
        (MemoryTier::Shared, "settled", json!(settled)),
        (MemoryTier::Consensus, "topics", json!(dialogue.services)),
    ];
    let agent_id = SessionId::new("planner")?;
    for (memory_tier, key, value) in memories {
        let memory = AgentContextPut {
            agent_id: agent_id.clone(),
            session_id: session_id.clone(),
            memory_tier,
            context_key: Name::new(key)?,
            context_value: Json::new(value.to_string())?,
            is_shareable: memory_tier != MemoryTier::Private,
            expires_at: None,
            version: Version::new(1)?,
            // Private notes are stored encrypted.
            sensitive: memory_tier == MemoryTier::Private,
        };
        let parts = [dialogue.dialogue_id.as_str(), memory_tier.as_str(), key];
        out.add(Request::AgentContextPut(memory), &parts, true)?;
    }
    let done = AgentContextRemove {
        agent_id,
        session_id: session_id.clone(),
        memory_tier: MemoryTier::Private,
        context_key: Name::new("note")?,
        version: Version::new(2)?,
    };
    out.add(Request::AgentContextRemove(done), &[&dialogue.dialogue_id, "note"], false)
}

/// Converts JSON to a contract type that can only be constructed by deserializing.
pub(super) fn read<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}
